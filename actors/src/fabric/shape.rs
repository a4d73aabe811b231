//! The shape of a group as its collective phases see it: which ranks share a node or a package, in which order a
//! source sends, and which ranks live on this shard.

use std::ops::Range;

/// Ranks of a group that follow each other on one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    pub ranks: Range<usize>,
    pub node: u32,
}

/// How a group lies on the machine, seen from one shard.
#[derive(Clone, Debug)]
pub struct Shape {
    pub slots: usize,
    pub node_of_rank: Vec<u32>,
    /// Ranks with the same number share a package: between them activations take the die-to-die link.
    pub npu_of_rank: Vec<u32>,
    pub runs: Vec<Run>,
    /// Ranks that live on this shard, in order, and where each is in that list.
    pub local: Vec<u16>,
    index_of: Vec<u16>,
    /// By shard: how many ranks live there.
    pub of_shard: Vec<usize>,
    /// By `rank * slots + slot`: the shard it is on, its rank's place among those that live there, and the slot.
    pub shard_of: Vec<u16>,
    pub local_of: Vec<u16>,
    pub slot_of: Vec<u16>,
    /// No node appears in two runs.
    pub runs_are_nodes: bool,
}

impl Shape {
    /// The group as shard `here` sees it.
    pub fn new(
        node_of_rank: Vec<u32>,
        npu_of_rank: Vec<u32>,
        shard_of_rank: &[usize],
        here: usize,
        slots: usize,
    ) -> Self {
        let local: Vec<u16> = (0..node_of_rank.len())
            .filter(|&r| shard_of_rank[r] == here)
            .map(|r| r as u16)
            .collect();
        let shards = shard_of_rank
            .iter()
            .max()
            .map_or(1, |s| s + 1)
            .max(here + 1);
        let mut of_shard = vec![0; shards];
        shard_of_rank.iter().for_each(|&s| of_shard[s] += 1);
        let by_slot = |of_rank: &dyn Fn(usize) -> u16| -> Vec<u16> {
            let all = 0..shard_of_rank.len() * slots;
            all.map(|i| of_rank(i / slots)).collect()
        };
        let mut runs: Vec<Run> = Vec::new();
        for (rank, &node) in node_of_rank.iter().enumerate() {
            match runs.last_mut() {
                Some(run) if run.node == node => run.ranks.end = rank + 1,
                _ => runs.push(Run {
                    ranks: rank..rank + 1,
                    node,
                }),
            }
        }
        let mut nodes: Vec<u32> = runs.iter().map(|r| r.node).collect();
        nodes.sort_unstable();
        nodes.dedup();
        let mut index_of = vec![u16::MAX; node_of_rank.len()];
        for (i, &r) in local.iter().enumerate() {
            index_of[r as usize] = i as u16;
        }
        Self {
            slots,
            shard_of: by_slot(&|r| shard_of_rank[r] as u16),
            local_of: by_slot(&|r| index_of[r]),
            slot_of: (0..node_of_rank.len() * slots)
                .map(|i| (i % slots) as u16)
                .collect(),
            runs_are_nodes: nodes.len() == runs.len(),
            node_of_rank,
            npu_of_rank,
            runs,
            local,
            index_of,
            of_shard,
        }
    }

    pub fn ranks(&self) -> usize {
        self.node_of_rank.len()
    }

    /// Where a local rank is among the local ones.
    pub fn index(&self, rank: u16) -> usize {
        debug_assert!(self.is_local(rank));
        usize::from(self.index_of[rank as usize])
    }

    pub fn is_local(&self, rank: u16) -> bool {
        self.index_of[rank as usize] != u16::MAX
    }

    /// Calls `each` with the pieces of runs in the order in which `rank` sends to them: from the rank after its own
    /// to the last, then from the first to the one before its own.
    pub fn in_sending_order(&self, rank: usize, mut each: impl FnMut(Range<usize>, u32)) {
        let own = self
            .runs
            .iter()
            .position(|r| r.ranks.contains(&rank))
            .expect("every rank is in a run");
        let after = rank + 1..self.runs[own].ranks.end;
        let before = self.runs[own].ranks.start..rank;
        let node = self.runs[own].node;
        if !after.is_empty() {
            each(after, node);
        }
        for run in self.runs[own + 1..].iter().chain(&self.runs[..own]) {
            each(run.ranks.clone(), run.node);
        }
        if !before.is_empty() {
            each(before, node);
        }
    }
}
