//! This CPU's share of the pooled KV cache: blocks in DRAM, least recently used first out, with an SSD tier
//! that every write goes through to.

use std::collections::BTreeMap;

use crate::die::WARM;
use crate::env::Env;
use crate::message::{Lookup, LookupReply, Msg, ReadBlocks};
use crate::runtime::Actor;
use crate::time::{Ps, ps_from_s, ps_from_us};
use crate::world::Shared;

use super::lru::Lru;

/// Tiers.
const DRAM: usize = 0;
const SSD: usize = 1;

#[derive(Debug)]
pub struct Store {
    /// The two tiers.
    blocks: Lru<2>,
    ssd_free_ps: Ps,
    ssd_gb_per_s: f64,
    ssd_latency_ps: Ps,
    /// Blocks on their way from the SSD tier, with when each is here.
    loading: BTreeMap<u64, Ps>,
    block_bytes: u64,
}

impl Store {
    /// The store of a CPU of the pool (or an empty one outside it).
    pub fn new(cpu: u32, shared: &Shared) -> Self {
        let c = &shared.serving.cache;
        let per_node = f64::from(shared.machine.cpus_per_node());
        let in_pool = shared.layout.pool.contains(&cpu);
        let weights = shared.weights.as_ref();
        let aside_bytes = weights.map_or(0, |w| w.set_aside_bytes(cpu)) as f64;
        let blocks = |gb: f64, aside_bytes: f64| {
            if in_pool {
                ((gb * 1e9 / per_node - aside_bytes).max(0.0) / shared.block_bytes as f64) as usize
            } else {
                0
            }
        };
        Self {
            blocks: Lru::new([
                blocks(c.dram_gb_per_node, aside_bytes),
                blocks(c.ssd_gb_per_node, 0.0),
            ]),
            ssd_free_ps: 0,
            ssd_gb_per_s: shared.machine.spec.storage.ssd_gb_per_s_per_node / per_node,
            ssd_latency_ps: ps_from_us(shared.machine.spec.storage.ssd_latency_us),
            loading: BTreeMap::new(),
            block_bytes: shared.block_bytes,
        }
    }

    /// What was in DRAM is lost; the SSD tier keeps its own.
    pub fn forget(&mut self) {
        self.blocks.clear(DRAM);
        self.ssd_free_ps = 0;
    }

    fn holds(&self, key: u64) -> bool {
        key & WARM != 0 || self.blocks.holds(key)
    }

    pub fn lookup(&mut self, from: Actor, lookup: Lookup, env: &mut Env<'_, '_>) {
        let held = lookup
            .keys
            .iter()
            .filter(|(_, key)| self.holds(*key))
            .map(|(i, _)| *i)
            .collect();
        env.control(
            from,
            Msg::LookupReply(Box::new(LookupReply {
                request: lookup.request,
                held,
            })),
        );
    }

    /// Sends blocks to the dies that read them: from DRAM at once, from the SSD tier when they are loaded.
    pub fn read(&mut self, read: ReadBlocks, env: &mut Env<'_, '_>) {
        let (dram, ssd): (Vec<_>, Vec<_>) = read
            .blocks
            .iter()
            .copied()
            .partition(|b| b.key & WARM != 0 || self.blocks.touch(DRAM, b.key));
        self.send(
            &ReadBlocks {
                blocks: dram,
                ..read.clone()
            },
            env,
        );
        if !ssd.is_empty() {
            // A block that another prompt has asked for already is loaded once.
            let mut at = env.now();
            for b in &ssd {
                let done = match self.loading.get(&b.key) {
                    Some(done) => *done,
                    None => {
                        env.tally.cache.ssd_read_bytes += self.block_bytes;
                        let done = self.ssd_pass(env) + self.ssd_latency_ps;
                        self.loading.insert(b.key, done);
                        done
                    }
                };
                at = at.max(done);
            }
            env.at(
                at,
                Msg::SsdLoaded(Box::new(ReadBlocks {
                    blocks: ssd,
                    ..read
                })),
            );
        }
    }

    /// One block crosses the SSDs' bandwidth, behind what crosses it already; says when the last byte is through.
    fn ssd_pass(&mut self, env: &mut Env<'_, '_>) -> Ps {
        let ps = ps_from_s(self.block_bytes as f64 / (self.ssd_gb_per_s * 1e9));
        let now = env.now();
        let start_ps = self.ssd_free_ps.max(now);
        self.ssd_free_ps = start_ps + ps;
        let meter = env.meter();
        meter.queue.record(start_ps - now);
        meter.service.record(ps);
        meter.busy_ps += ps;
        self.ssd_free_ps
    }

    /// Blocks have come from the SSD tier (those that it still had).
    pub fn loaded(&mut self, read: ReadBlocks, env: &mut Env<'_, '_>) {
        let now = env.now();
        self.loading.retain(|_, at| *at > now);
        let (there, gone): (Vec<_>, Vec<_>) = read
            .blocks
            .iter()
            .copied()
            .partition(|b| self.blocks.touch(SSD, b.key) || self.blocks.contains(DRAM, b.key));
        for b in &there {
            self.keep(b.key, env);
        }
        for b in gone {
            env.control(
                b.reader,
                Msg::BlockGone {
                    request: read.request,
                    index: b.index,
                },
            );
        }
        self.send(
            &ReadBlocks {
                blocks: there,
                ..read
            },
            env,
        );
    }

    fn send(&self, read: &ReadBlocks, env: &mut Env<'_, '_>) {
        for b in &read.blocks {
            env.tally.cache.read_bytes += self.block_bytes;
            env.transfer(
                b.reader,
                self.block_bytes,
                read.plane,
                Msg::Blocks {
                    request: read.request,
                    blocks: 1,
                },
            );
        }
    }

    /// A new block: kept once, however often it is written.
    pub fn write(&mut self, key: u64, bytes: u64, env: &mut Env<'_, '_>) {
        env.tally.cache.write_bytes += bytes;
        if self.holds(key) {
            env.tally.cache.deduplicated_blocks += 1;
        } else if self.blocks.capacity(SSD) > 0 {
            // Written through behind the answer: reads from the SSDs wait for it, the writer does not.
            self.ssd_pass(env);
        }
        self.blocks.insert(SSD, key);
        self.keep(key, env);
    }

    fn keep(&mut self, key: u64, env: &mut Env<'_, '_>) {
        if self.blocks.insert(DRAM, key).is_some() {
            env.tally.cache.evicted_blocks += 1;
        }
    }

    /// Bytes of KV in DRAM.
    pub fn dram_bytes(&self) -> u64 {
        self.blocks.len(DRAM) as u64 * self.block_bytes
    }
}
