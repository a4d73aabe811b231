//! Who plays which part: the dies of prefill and decode instances, the CPUs that are homes and that pool
//! their DRAM, and the shard that each node belongs to. Plain data, made once from machine and scenario.

use supernode_topology::Machine;

use crate::config::Serving;

/// What a die does in serving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Idle,
    Prefill { group: u16, rank: u16 },
    Decode { group: u16, rank: u16 },
}

/// An instance: its dies by rank. Rank 0 is the root of its collectives.
#[derive(Clone, Debug)]
pub struct Group {
    pub dies: Vec<u32>,
    pub nodes: Vec<u32>,
    /// Node of each rank, for paths.
    pub node_of_rank: Vec<u32>,
}

impl Group {
    pub fn ranks(&self) -> u32 {
        self.dies.len() as u32
    }

    pub fn root(&self) -> u32 {
        self.dies[0]
    }
}

#[derive(Clone, Debug)]
pub struct Layout {
    pub roles: Vec<Role>,
    pub prefill: Vec<Group>,
    pub decode: Vec<Group>,
    /// CPUs that requests arrive at.
    pub homes: Vec<u32>,
    /// CPUs whose DRAM pools KV blocks.
    pub pool: Vec<u32>,
    pub ring: Ring,
}

impl Layout {
    /// # Errors
    /// Says which instances do not fit on the machine, with the sum.
    pub fn new(
        machine: &Machine,
        serving: &Serving,
        prefill: bool,
        decode: bool,
    ) -> Result<Self, String> {
        let npus = machine.npu_count();
        let dies_per_npu = machine.die_count() / npus;
        let want_prefill = if prefill {
            serving.prefill.instances * serving.prefill.npus_per_instance
        } else {
            0
        };
        let want_decode = if decode {
            serving.decode.instances * serving.decode.npus_per_instance
        } else {
            0
        };
        if u64::from(want_prefill) + u64::from(want_decode) > u64::from(npus) {
            let pools = [
                (want_prefill, "prefill", serving.prefill.instances),
                (want_decode, "decode", serving.decode.instances),
            ];
            let sum: Vec<String> = pools
                .iter()
                .filter(|(npus, ..)| *npus > 0)
                .map(|(npus, pool, n)| {
                    format!(
                        "{pool}.instances x {pool}.npus_per_instance = {n} x {}",
                        npus / n
                    )
                })
                .collect();
            return Err(format!(
                "{} need {} NPUs, but machine `{}` has {npus}: lower one of these keys or choose a larger machine",
                sum.join(" and "),
                want_prefill + want_decode,
                machine.spec.name,
            ));
        }
        let mut roles = vec![Role::Idle; machine.die_count() as usize];
        let mut next_npu = 0;
        let mut take = |n_npus: u32, role: &dyn Fn(u16) -> Role| {
            let dies: Vec<u32> =
                (next_npu * dies_per_npu..(next_npu + n_npus) * dies_per_npu).collect();
            next_npu += n_npus;
            for (rank, &d) in dies.iter().enumerate() {
                roles[d as usize] = role(rank as u16);
            }
            let node_of_rank: Vec<u32> =
                dies.iter().map(|&d| d / machine.dies_per_node()).collect();
            let mut nodes = node_of_rank.clone();
            nodes.dedup();
            Group {
                dies,
                nodes,
                node_of_rank,
            }
        };
        let mut prefills = Vec::new();
        if prefill {
            for group in 0..serving.prefill.instances as u16 {
                prefills.push(take(serving.prefill.npus_per_instance, &|rank| {
                    Role::Prefill { group, rank }
                }));
            }
        }
        let mut decodes = Vec::new();
        if decode {
            for group in 0..serving.decode.instances as u16 {
                decodes.push(take(serving.decode.npus_per_instance, &|rank| {
                    Role::Decode { group, rank }
                }));
            }
        }
        let mut serving_nodes: Vec<u32> = prefills
            .iter()
            .chain(&decodes)
            .flat_map(|g: &Group| g.nodes.iter().copied())
            .collect();
        serving_nodes.dedup();
        let cpus = |nodes: &[u32]| -> Vec<u32> {
            nodes
                .iter()
                .flat_map(|&n| {
                    (0..machine.cpus_per_node()).map(move |c| n * machine.cpus_per_node() + c)
                })
                .collect()
        };
        let pool_nodes: Vec<u32> = match serving.cache.nodes {
            Some(n) if n > machine.node_count() => {
                return Err(format!(
                    "cache.nodes = {n}: expected 1 to {}, the nodes of machine `{}`",
                    machine.node_count(),
                    machine.spec.name
                ));
            }
            Some(n) => (0..n).collect(),
            None => serving_nodes,
        };
        let pool = if serving.cache.enabled {
            cpus(&pool_nodes)
        } else {
            Vec::new()
        };
        let ring = Ring::new(&pool);
        Ok(Self {
            roles,
            prefill: prefills,
            decode: decodes,
            homes: (0..machine.cpu_count()).collect(),
            pool,
            ring,
        })
    }

    /// The group whose board this is: prefill groups come first.
    pub fn group_of_board(&self, board: u16) -> &Group {
        let prefills = self.prefill.len();
        match (board as usize).checked_sub(prefills) {
            None => &self.prefill[board as usize],
            Some(decode) => &self.decode[decode],
        }
    }

    /// Shard of each node: nodes in turn, so that every instance is spread over all shards.
    pub fn shard_of_node(node: u32, shards: u32) -> u32 {
        node % shards
    }
}

/// Consistent hashing of keys over CPUs: each CPU owns many arcs of a ring.
#[derive(Clone, Debug)]
pub struct Ring {
    points: Vec<(u64, u32)>,
    /// By the uppermost bits of a hash: the first point that is not below all hashes with these bits.
    first: Vec<u32>,
}

impl Ring {
    /// Arcs per CPU: 64 keep the largest share within about a third of the mean.
    const ARCS: u64 = 64;
    /// About as many values as there are points on a ring of 128 CPUs.
    const FIRST_BITS: u32 = 13;

    pub fn new(cpus: &[u32]) -> Self {
        let mut points: Vec<(u64, u32)> = cpus
            .iter()
            .flat_map(|&c| {
                // Mixed twice: keys are small numbers mixed once, and must not fall on the points of the CPUs of the same numbers.
                (0..Self::ARCS).map(move |i| (mix(mix(u64::from(c) * Self::ARCS + i + 1)), c))
            })
            .collect();
        points.sort_unstable();
        let first = (0..1u64 << Self::FIRST_BITS)
            .map(|top| points.partition_point(|p| p.0 >> (64 - Self::FIRST_BITS) < top) as u32)
            .collect();
        Self { points, first }
    }

    pub fn is_empty(&self) -> bool {
        self.points.is_empty()
    }

    /// The CPU that owns `key`, if any that `usable` accepts is left.
    pub fn owner(&self, key: u64, usable: impl Fn(u32) -> bool) -> Option<u32> {
        let h = mix(key);
        let near = self.first[(h >> (64 - Self::FIRST_BITS)) as usize] as usize;
        let below = self.points[near..].iter().take_while(|p| p.0 < h).count();
        let (start, n) = (near + below, self.points.len());
        (0..n)
            .map(|i| self.points[(start + i) % n].1)
            .find(|&c| usable(c))
    }
}

/// A 64-bit finaliser (as SplitMix64's): equal inputs give equal outputs on every platform.
pub fn mix(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_moves_only_the_keys_of_a_lost_cpu() {
        let ring = Ring::new(&(0..16).collect::<Vec<_>>());
        let mut of = [0u32; 16];
        for key in 0..16_000 {
            let o = ring.owner(key, |_| true).unwrap();
            of[o as usize] += 1;
            let without = ring.owner(key, |c| c != 3).unwrap();
            assert!(o == 3 || o == without);
        }
        assert!(of.iter().all(|&n| (500..1600).contains(&n)), "{of:?}");
    }

    /// Blocks of one prompt, or of one layer's weights, have consecutive keys.
    #[test]
    fn neighbouring_keys_have_owners_of_their_own() {
        let ring = Ring::new(&(0..128).collect::<Vec<_>>());
        for first in (0..20_000).step_by(64) {
            let mut of = [0u32; 128];
            for key in first..first + 64 {
                of[ring.owner(key, |_| true).unwrap() as usize] += 1;
            }
            let most = of.iter().max().unwrap();
            assert!(*most <= 8, "{most} of 64 keys from {first} have one owner");
        }
    }
}
