//! A decode rank: requests in slots, and decode steps in lockstep with the other ranks of its group.
//!
//! ```text
//! step    = dense layers, MoE layers ............ head, [MTP layer, head] x k
//! stream A  attn(l,0) attn(l,1) attn(l+1,0) ...
//! stream M            moe(l,0)  moe(l,1)  ...      moe = gate, dispatch, experts, combine
//! ```
//! A layer starts when what it waits for has arrived: dispatch and combine wait for every rank's flag.

mod layers;
mod slots;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::compute::DecodeTimes;
use crate::env::Env;
use crate::experts::{ExpertMsg, Plan};
use crate::message::{Claim, Msg};
use crate::runtime::Actor;
use crate::time::Ps;
use crate::trace::{Counter, Mark, What};
use crate::world::Shared;

use super::decode_root::{DecodeRoot, Report};
use super::experts::RankExperts;
use super::placer::Placer;
use super::recovery::Watching;
use layers::Step;
pub(super) use layers::sum_by_slot;
pub use layers::{combine_bytes, dispatch_bytes};

/// A request in a slot.
#[derive(Clone, Debug)]
pub(super) struct Active {
    claim: Claim,
    context: u32,
    left: u32,
    /// Tokens delivered or on their way to the home, and made but not yet sent.
    sent: u32,
    unsent: u32,
    /// When the token before was sent home (by prefill, for the first one).
    last_token_ps: Option<Ps>,
}

/// A die of a decode group.
#[derive(Debug)]
pub struct DecodeRank {
    pub(super) group: u16,
    pub(super) rank: u16,
    pub(super) board: u16,
    pub(super) slots_max: u32,
    pub(super) kv_tokens_max: u64,
    /// Granted requests: tokens of KV memory and slots that are spoken for.
    pub(super) kv_tokens_used: u64,
    pub(super) slots_used: u32,
    pub(super) active: Vec<Active>,
    /// Granted, KV on its way.
    pub(super) granted: Vec<Claim>,
    /// KV arrived, waiting for the next step.
    pub(super) joining: Vec<Claim>,
    /// Claims that wait for a slot, with who claimed.
    pub(super) waiting: std::collections::VecDeque<(Actor, Claim)>,
    pub(super) step: Step,
    pub(super) phase: u32,
    /// Units received in the last dispatch, by `source * slots + slot`.
    pub(super) received: Vec<u16>,
    pub(super) per_slot: Vec<u32>,
    pub root: Option<Box<DecodeRoot>>,
    pub placer: Placer,
    /// This die's own operator times while a fault makes it slower.
    pub slowed: Option<Arc<DecodeTimes>>,
    pub experts: RankExperts,
    /// What it knows of the other ranks.
    pub(super) watch: Watching,
    /// Expert plans while not all ranks take part.
    pub(super) shrunk: Option<Arc<Vec<Plan>>>,
    /// When each granted request was granted its slot.
    pub(super) granted_ps: BTreeMap<u64, Ps>,
}

impl DecodeRank {
    pub fn new(group: u16, rank: u16, shared: &Shared) -> Self {
        let ranks = shared.layout.decode[group as usize].ranks();
        let slots = shared
            .decode_experts
            .as_ref()
            .map_or(1, |e| e.slots_per_rank);
        let dies_per_npu = shared.machine.die_count() / shared.machine.npu_count();
        Self {
            group,
            rank,
            board: shared.layout.prefill.len() as u16 + group,
            slots_max: (shared.serving.decode.max_batch_per_npu / dies_per_npu).max(1),
            kv_tokens_max: shared.decode_kv_tokens,
            kv_tokens_used: 0,
            slots_used: 0,
            active: Vec::new(),
            granted: Vec::new(),
            joining: Vec::new(),
            waiting: std::collections::VecDeque::new(),
            step: Step::default(),
            phase: 0,
            received: vec![0; (ranks * slots) as usize],
            per_slot: vec![0; slots as usize],
            root: (rank == 0).then(|| Box::new(DecodeRoot::new(group, shared))),
            placer: Placer::default(),
            slowed: None,
            experts: RankExperts::new(group, rank, shared),
            watch: Watching::new(ranks, 0),
            shrunk: None,
            granted_ps: BTreeMap::new(),
        }
    }

    pub fn group(&self) -> u16 {
        self.group
    }

    /// Tokens that this rank's experts got, by layer.
    pub fn served(&self) -> &[u64] {
        self.experts.served()
    }

    /// A message about experts: to the root of the group, or to any rank.
    pub fn about_experts(&mut self, from: Actor, msg: ExpertMsg, env: &mut Env<'_, '_>) {
        match msg {
            ExpertMsg::Load { .. } | ExpertMsg::PlanMade { .. } | ExpertMsg::Loaded { .. } => {
                if let Some(root) = &mut self.root {
                    root.experts.handle(msg, env);
                }
            }
            msg => self.experts.handle(from, msg, env),
        }
    }

    // ---- the root of the group

    pub fn wake(&mut self, env: &mut Env<'_, '_>) {
        if let Some(root) = &mut self.root
            && root.wake(env)
        {
            self.start_step(env);
        }
    }

    pub fn step_done(&mut self, from: Actor, step: u32, report: Report, env: &mut Env<'_, '_>) {
        if let Some(root) = &mut self.root
            && root.step_done(from, step, report, env)
        {
            self.start_step(env);
        }
    }

    // ---- one step

    pub fn step_start(
        &mut self,
        step: u32,
        microbatch: bool,
        drawn_ps: Option<Ps>,
        env: &mut Env<'_, '_>,
    ) {
        let now = env.now();
        self.heard(env);
        self.step.running = true;
        for claim in self.joining.drain(..) {
            env.mark(Mark::Joined, claim.request, 0);
            self.active.push(Active {
                context: claim.context,
                left: claim.left,
                sent: claim.delivered,
                unsent: 0,
                last_token_ps: claim.token_ps,
                claim,
            });
        }
        self.step.number = step;
        self.step.started_ps = now;
        self.step.requests = self.active.len() as u32;
        self.step.drawn = drawn_ps.is_some();
        self.observe(env);
        if let Some(ps) = drawn_ps {
            env.after(ps, Msg::StepEnd);
            return;
        }
        self.begin_layers(microbatch, env);
    }

    /// Tokens of this step: accepted ones go home, finished requests leave.
    pub fn step_end(&mut self, env: &mut Env<'_, '_>) {
        if self.is_stale(env) {
            return;
        }
        let now = env.now();
        let d = &env.shared.serving.decode;
        let stream = env.shared.streams_tokens();
        let mut i = 0;
        let mut made = 0;
        while i < self.active.len() {
            let mut n = 1;
            while n <= d.mtp_tokens && env.ctx.rng().f64() < d.mtp_acceptance {
                n += 1;
            }
            let a = &mut self.active[i];
            let n = n.min(a.left);
            a.left -= n;
            a.context += n;
            a.unsent += n;
            made += n;
            let stepped = (u64::from(self.step.number) << 32) | u64::from(n);
            env.mark(Mark::Stepped, a.claim.request, stepped);
            if let Some(before_ps) = a.last_token_ps.replace(now) {
                env.tally.itl.record(now - before_ps);
            }
            let last = a.left == 0;
            if last || stream || a.sent == 0 {
                let home = env.shared.cpu_actor(a.claim.home);
                let msg = Msg::Tokens {
                    request: a.claim.request,
                    from: a.sent,
                    count: a.unsent,
                    last,
                };
                a.sent += a.unsent;
                a.unsent = 0;
                env.control(home, msg);
            }
            if last {
                let a = self.active.swap_remove(i);
                self.slots_used -= 1;
                self.kv_tokens_used -= u64::from(a.claim.context) + u64::from(a.claim.left);
            } else {
                i += 1;
            }
        }
        if !self.step.drawn {
            env.meter().stepped_ps += now - self.step.started_ps;
        }
        let (started_ps, requests) = (self.step.started_ps, u64::from(self.step.requests));
        let (place, drawn) = (self.step.place(0, 0, 1), u64::from(self.step.drawn));
        env.span(What::Step, started_ps, now, place, requests, drawn);
        self.grant_waiting(env);
        let context_sum = self
            .active
            .iter()
            .map(|a| u64::from(a.context))
            .sum::<u64>()
            + self
                .joining
                .iter()
                .map(|c| u64::from(c.context))
                .sum::<u64>();
        let requests = (self.active.len() + self.joining.len()) as u32;
        self.step.running = false;
        let root = self.root_actor(env);
        env.control(
            root,
            Msg::StepDone {
                step: self.step.number,
                requests,
                context_sum,
                made,
                duration_ps: now - self.step.started_ps,
            },
        );
    }

    /// What this die's counters show.
    fn observe(&self, env: &mut Env<'_, '_>) {
        if env.trace.is_on() {
            env.counter(Counter::BatchSize, self.active.len() as u64);
            env.counter(Counter::KvTokens, self.kv_tokens_used);
            env.counter(Counter::QueueDepth, self.waiting.len() as u64);
        }
    }
}
