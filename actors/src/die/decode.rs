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
use crate::message::{Claim, Held, Msg, NodeStep};
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
    /// KV arrived at this time, waiting for the next step.
    pub(super) joining: Vec<(Ps, Claim)>,
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

    pub fn node_done(
        &mut self,
        step: u32,
        (made, duration_ps): (u32, Ps),
        held: &[Held],
        env: &mut Env<'_, '_>,
    ) {
        if let Some(root) = &mut self.root
            && root.node_done(step, (made, duration_ps), held, env)
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
        self.begin(step, env.now(), drawn_ps.is_some(), env);
        match drawn_ps {
            Some(ps) => env.after(ps, Msg::StepEnd),
            None => self.begin_layers(microbatch, env),
        }
    }

    /// Takes part in a step from `started_ps` on, with the requests that were here by then.
    fn begin(&mut self, step: u32, started_ps: Ps, drawn: bool, env: &mut Env<'_, '_>) {
        self.heard(env);
        self.step.running = true;
        let mut i = 0;
        while i < self.joining.len() {
            if self.joining[i].0 > started_ps {
                i += 1;
                continue;
            }
            let (_, claim) = self.joining.remove(i);
            env.mark_at(started_ps, Mark::Joined, claim.request, 0);
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
        self.step.started_ps = started_ps;
        self.step.requests = self.active.len() as u32;
        self.step.drawn = drawn;
        self.observe(env);
    }

    pub fn step_end(&mut self, env: &mut Env<'_, '_>) {
        if !self.is_stale(env) {
            let report = self.finish(env.shared.streams_tokens(), env);
            self.report(report, env);
        }
    }

    /// A drawn step, from its start to its end, which is now; not if this rank takes no part in it any more.
    pub fn drawn_step(
        &mut self,
        s: &NodeStep,
        stream: bool,
        env: &mut Env<'_, '_>,
    ) -> Option<Report> {
        self.begin_drawn(s, env).then(|| self.finish(stream, env))
    }

    /// Begins a drawn step, if it takes part in it.
    pub fn begin_drawn(&mut self, s: &NodeStep, env: &mut Env<'_, '_>) -> bool {
        let takes = self.takes_step(s.epoch, env);
        if takes {
            self.experts.put_in_force(s.experts, env);
            self.begin(s.step, s.started_ps, true, env);
        }
        takes
    }

    /// Tokens of this step: accepted ones go home, finished requests leave. `stream`: all tokens go home at once.
    fn finish(&mut self, stream: bool, env: &mut Env<'_, '_>) -> Report {
        let now = env.now();
        let d = &env.shared.serving.decode;
        // Mostly all tokens of a step are as long after those before.
        let (mut gap_ps, mut gaps) = (0, 0);
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
                if now - before_ps != gap_ps {
                    env.tally.itl.record_n(gap_ps, gaps);
                    (gap_ps, gaps) = (now - before_ps, 0);
                }
                gaps += 1;
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
        env.tally.itl.record_n(gap_ps, gaps);
        if !self.step.drawn {
            env.meter().stepped_ps += now - self.step.started_ps;
        }
        let (started_ps, requests) = (self.step.started_ps, u64::from(self.step.requests));
        let (place, drawn) = (self.step.place(0, 0, 1), u64::from(self.step.drawn));
        env.span(What::Step, started_ps, now, place, requests, drawn);
        self.grant_waiting(env);
        self.step.running = false;
        let (requests, context_sum) = self.holds();
        Report {
            requests,
            context_sum,
            made,
            duration_ps: now - started_ps,
        }
    }

    /// Tells the root.
    pub fn report(&mut self, report: Report, env: &mut Env<'_, '_>) {
        let root = self.root_actor(env);
        env.control(
            root,
            Msg::StepDone {
                step: self.step.number,
                requests: report.requests,
                context_sum: report.context_sum,
                made: report.made,
                duration_ps: report.duration_ps,
            },
        );
    }

    /// What this die's counters show from the beginning of the step on.
    fn observe(&self, env: &mut Env<'_, '_>) {
        if env.trace.is_on() {
            let from_ps = self.step.started_ps;
            env.counter_from(from_ps, Counter::BatchSize, self.active.len() as u64);
            env.counter_from(from_ps, Counter::KvTokens, self.kv_tokens_used);
            env.counter_from(from_ps, Counter::QueueDepth, self.waiting.len() as u64);
        }
    }
}
