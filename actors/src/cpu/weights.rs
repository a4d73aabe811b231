//! This CPU's share of the pooled model weights: blocks in DRAM, set aside for them and never evicted. What is not
//! there is fetched from object storage, once, for all who wait for it.

use std::collections::{BTreeMap, BTreeSet};

use crate::die::cache_plane;
use crate::env::Env;
use crate::message::{Msg, Plane};
use crate::runtime::Actor;
use crate::time::Ps;
use crate::weights::{BlockName, MODELS, WeightPlan};
use crate::world::Shared;

/// Above this, what has left is forgotten.
const LEAVING_MOST: usize = 4_096;

#[derive(Debug)]
pub struct WeightStore {
    cpu: u32,
    /// By model: what this CPU owns of it has been here from the start.
    warm: [bool; MODELS],
    held: BTreeSet<u64>,
    held_bytes: u64,
    /// Blocks on their way from object storage, and who waits for how much of each.
    loading: BTreeMap<u64, Vec<(Actor, u64)>>,
    /// When what was sent to whom will have left: who asks again meanwhile is not sent it again.
    leaving: BTreeMap<(u64, Actor), Ps>,
}

fn plan<'a>(env: &Env<'a, '_>) -> &'a WeightPlan {
    let plan = env.shared.weights.as_ref();
    plan.expect("only where weights are loaded is asked for them")
}

impl WeightStore {
    pub fn new(cpu: u32, shared: &Shared) -> Self {
        Self {
            cpu,
            warm: shared.weights.as_ref().map_or([false; MODELS], |w| w.warm),
            held: BTreeSet::new(),
            held_bytes: 0,
            loading: BTreeMap::new(),
            leaving: BTreeMap::new(),
        }
    }

    /// What was in DRAM is lost.
    pub fn forget(&mut self) {
        self.warm = [false; MODELS];
        self.held.clear();
        self.held_bytes = 0;
        self.loading.clear();
        self.leaving.clear();
    }

    fn holds(&self, key: u64, plan: &WeightPlan) -> bool {
        let name = BlockName::of(key);
        self.held.contains(&key)
            || self.warm[usize::from(name.model)] && plan.owner(name, |_| true) == Some(self.cpu)
    }

    /// A die wants `bytes` of a block.
    pub fn ask(&mut self, from: Actor, key: u64, bytes: u64, env: &mut Env<'_, '_>) {
        if self.holds(key, plan(env)) {
            let now = env.now();
            if self.leaving.get(&(key, from)).is_some_and(|t| *t > now) {
                return env.control(from, Msg::WeightsComing { key });
            }
            return self.send(from, key, bytes, env);
        }
        let mut first = false;
        let waiting = self.loading.entry(key).or_insert_with(|| {
            first = true;
            Vec::new()
        });
        if waiting.iter().all(|w| w.0 != from) {
            waiting.push((from, bytes));
        }
        if first {
            self.fetch(key, env);
        }
        env.control(from, Msg::WeightsComing { key });
    }

    fn fetch(&self, key: u64, env: &mut Env<'_, '_>) {
        let bytes = plan(env).image.block_bytes(BlockName::of(key).block);
        let latency_ps = env.shared.paths.vpc.latency_ps;
        let store = env.shared.object_store();
        env.tally.messages.control += 1;
        env.ctx
            .send_in(latency_ps, store, Msg::StoreAsk { key, bytes });
    }

    /// The first byte of a block is at the node's VPC port; the last one follows at `tail_ps`.
    pub fn arriving(&mut self, key: u64, bytes: u64, tail_ps: Ps, env: &mut Env<'_, '_>) {
        let (now, me) = (env.now(), env.ctx.me());
        let toll = env.toll(false, me, bytes, Plane::Vpc);
        let port = env.port(me, Plane::Vpc);
        if toll.lost {
            env.fabric.link(port).down.lost_bytes += bytes;
            return self.fetch(key, env);
        }
        let ps = toll.ps(env.shared.paths.vpc.per_byte.ps(bytes));
        let served = env.fabric.link(port).down.serve(now, ps, bytes);
        env.at(
            served.end_ps.max(tail_ps) + toll.extra_ps,
            Msg::StoreIn { key },
        );
    }

    /// A block is in DRAM: whoever waits for it gets it.
    pub fn arrived(&mut self, key: u64, env: &mut Env<'_, '_>) {
        if self.held.insert(key) {
            self.held_bytes += plan(env).image.block_bytes(BlockName::of(key).block);
        }
        for (reader, bytes) in self.loading.remove(&key).unwrap_or_default() {
            self.send(reader, key, bytes, env);
        }
    }

    fn send(&mut self, reader: Actor, key: u64, bytes: u64, env: &mut Env<'_, '_>) {
        let plane = cache_plane(env.shared.serving.cache.plane);
        env.transfer_other(reader, bytes, plane, true, Msg::WeightBlock { key });
        let (now, port) = (env.now(), env.port(env.ctx.me(), plane));
        let leaves_ps = env.fabric.link(port).up.free_ps;
        if self.leaving.len() >= LEAVING_MOST {
            self.leaving.retain(|_, t| *t > now);
        }
        self.leaving.insert((key, reader), leaves_ps);
    }

    /// Bytes of weights in DRAM.
    pub fn dram_bytes(&self, shared: &Shared) -> u64 {
        let Some(plan) = &shared.weights else {
            return 0;
        };
        self.held_bytes + plan.warm_bytes(self.cpu, self.warm)
    }
}
