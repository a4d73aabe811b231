//! A decode rank: requests in slots, and decode steps in lockstep with the other ranks of its group.
//!
//! ```text
//! step    = dense layers, MoE layers ............ head, [MTP layer, head] x k
//! stream A  attn(l,0) attn(l,1) attn(l+1,0) ...
//! stream M            moe(l,0)  moe(l,1)  ...      moe = gate, dispatch, experts, combine
//! ```
//! A layer starts when what it waits for has arrived: dispatch and combine wait for every rank's flag.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::compute::{DecodeTimes, MicrobatchLoad, Share};
use crate::config::Balance;
use crate::env::Env;
use crate::experts::{Dealer, ExpertMsg, Plan, Routing, of_layer};
use crate::fabric::{PhaseOut, Sent};
use crate::message::{Claim, Msg};
use crate::runtime::Actor;
use crate::time::{Ps, ps_from_us};
use crate::trace::{Counter, Mark, Place, Stage, What};
use crate::world::Shared;

use super::decode_root::{DecodeRoot, Report};
use super::experts::RankExperts;
use super::placer::Placer;
use super::recovery::Watching;

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

/// One microbatch in the current step.
#[derive(Clone, Debug, Default)]
pub(super) struct Microbatch {
    load: MicrobatchLoad,
    attention_ps: Ps,
    layer: u32,
    at: At,
    /// When it began to wait or work at `at`.
    since_ps: Ps,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    #[default]
    WaitAttention,
    Attention,
    WaitMoe,
    Moe,
    Done,
}

/// State of the step that is running.
#[derive(Debug, Default)]
pub(super) struct Step {
    /// Started and not ended.
    pub(super) running: bool,
    pub(super) number: u32,
    pub(super) started_ps: Ps,
    pub(super) requests: u32,
    pub(super) drawn: bool,
    pub(super) parts: Vec<Microbatch>,
    /// Layers of the running segment: `[first, end)` in MoE layers; 0-based over main and MTP layers.
    pub(super) end_layer: u32,
    pub(super) segments_left: u32,
    pub(super) attention_busy: bool,
    pub(super) moe_busy: Option<usize>,
    /// The (layer, part) that the MoE stream takes next, the same on all ranks.
    pub(super) next_moe: (u32, usize),
    pub(super) attention_share: Option<Share>,
    pub(super) moe_share: Option<Share>,
    pub(super) dispatch_sent_ps: Ps,
    pub(super) moe_started_ps: Ps,
    pub(super) stage_from_ps: Ps,
}

impl Step {
    /// Layer `layer` of the model in microbatch `part` of `parts`.
    fn place(&self, layer: u16, part: usize, parts: usize) -> Place {
        Place {
            run: self.number,
            layer,
            part: part as u8,
            parts: parts as u8,
        }
    }
}

/// The layer of the model that is MoE layer `layer`.
fn moe_layer(layer: u32, env: &Env<'_, '_>) -> u16 {
    (env.shared.model.dense_layers + layer) as u16
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
    pub(super) counts: Vec<u32>,
    pub(super) by_slot: Vec<u32>,
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

/// A die's operator times: its own while a fault slows it, else those of every die.
fn times<'a>(slowed: &'a Option<Arc<DecodeTimes>>, shared: &'a Shared) -> &'a DecodeTimes {
    slowed.as_deref().unwrap_or(&shared.decode_times)
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
            counts: vec![0; shared.model.routed_experts as usize],
            by_slot: vec![0; (ranks * slots) as usize],
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

    // ---- placement

    pub fn slot_ask(&mut self, from: Actor, request: u64, env: &mut Env<'_, '_>) {
        if self.watch.out {
            let (free, waiting) = (0, u32::MAX);
            return env.control(
                from,
                Msg::SlotReply {
                    request,
                    free,
                    waiting,
                },
            );
        }
        let free = self.slots_max.saturating_sub(self.slots_used);
        let free = if self.kv_tokens_used < self.kv_tokens_max {
            free
        } else {
            0
        };
        env.control(
            from,
            Msg::SlotReply {
                request,
                free,
                waiting: self.waiting.len() as u32,
            },
        );
    }

    pub fn slot_claim(&mut self, from: Actor, claim: Claim, env: &mut Env<'_, '_>) {
        self.waiting.push_back((from, claim));
        self.grant_waiting(env);
    }

    fn grant_waiting(&mut self, env: &mut Env<'_, '_>) {
        while let Some((_, claim)) = self.waiting.front() {
            let kv = u64::from(claim.context) + u64::from(claim.left);
            if self.slots_used >= self.slots_max || self.kv_tokens_used + kv > self.kv_tokens_max {
                return;
            }
            let (from, claim) = self.waiting.pop_front().expect("it was just there");
            self.slots_used += 1;
            self.kv_tokens_used += kv;
            env.mark(Mark::SlotGranted, claim.request, 0);
            if claim.kv_in_place {
                self.join(claim, env);
            } else {
                env.control(
                    from,
                    Msg::SlotGrant {
                        request: claim.request,
                    },
                );
                let home = env.shared.cpu_actor(claim.home);
                let request = claim.request;
                env.control(home, Msg::Placed { request });
                self.granted_ps.insert(request, env.now());
                self.granted.push(claim);
                self.watch_root(env);
            }
        }
    }

    pub fn kv_arrived(&mut self, request: u64, env: &mut Env<'_, '_>) {
        let Some(i) = self.granted.iter().position(|c| c.request == request) else {
            return; // Cancelled on the way, or started again elsewhere.
        };
        self.granted_ps.remove(&request);
        let claim = self.granted.swap_remove(i);
        env.mark(Mark::KvMoved, request, 0);
        self.join(claim, env);
    }

    /// Nobody waits for a request any more: its slot and its memory are free again. One that has just ended is not
    /// here: its home has its last tokens, or is about to.
    pub fn cancel(&mut self, request: u64, env: &mut Env<'_, '_>) {
        if let Some(claim) = self.let_go(request) {
            let home = env.shared.cpu_actor(claim.home);
            env.control(home, Msg::Cancelled { request });
            self.grant_waiting(env);
        }
    }

    /// Its home has started a request again elsewhere.
    pub fn release(&mut self, request: u64, env: &mut Env<'_, '_>) {
        if self.let_go(request).is_some() {
            self.grant_waiting(env);
        }
    }

    /// Tokens did not reach their home: they go with those of the next step.
    pub fn resend(&mut self, request: u64, first: u32) {
        let held = self.active.iter_mut().find(|a| a.claim.request == request);
        if let Some(a) = held.filter(|a| first < a.sent) {
            a.unsent += a.sent - first;
            a.sent = first;
        }
    }

    /// Whether a request is here.
    pub fn has(&self, request: u64) -> bool {
        !self.watch.out
            && (self.active.iter().any(|a| a.claim.request == request)
                || self.joining.iter().any(|c| c.request == request)
                || self.granted.iter().any(|c| c.request == request)
                || self.waiting.iter().any(|(_, c)| c.request == request))
    }

    /// Grants whose KV never came: who was to send it is gone.
    pub(super) fn drop_stale_grants(&mut self, env: &mut Env<'_, '_>) {
        let now = env.now();
        let patience = crate::time::ps_from_s(env.shared.serving.recovery.give_up_s) / 4;
        let stale: Vec<u64> = self
            .granted_ps
            .iter()
            .filter(|(_, at)| *at + patience <= now)
            .map(|(r, _)| *r)
            .collect();
        for request in stale {
            self.release(request, env);
        }
    }

    /// (requests, context tokens) that this rank has for the next step.
    pub(super) fn holds(&self) -> (u32, u64) {
        let active = self.active.iter().map(|a| u64::from(a.context));
        let joining = self.joining.iter().map(|c| u64::from(c.context));
        (
            (self.active.len() + self.joining.len()) as u32,
            active.chain(joining).sum(),
        )
    }

    fn let_go(&mut self, request: u64) -> Option<Claim> {
        self.granted_ps.remove(&request);
        let claims = [&mut self.granted, &mut self.joining];
        let held = claims.into_iter().find_map(|list| {
            let i = list.iter().position(|c| c.request == request)?;
            Some(list.swap_remove(i))
        });
        let held = held.or_else(|| {
            let i = self
                .active
                .iter()
                .position(|a| a.claim.request == request)?;
            Some(self.active.swap_remove(i).claim)
        });
        if let Some(claim) = held {
            self.slots_used -= 1;
            self.kv_tokens_used -= u64::from(claim.context) + u64::from(claim.left);
            return Some(claim);
        }
        let i = self
            .waiting
            .iter()
            .position(|(_, c)| c.request == request)?;
        self.waiting.remove(i).map(|(_, claim)| claim)
    }

    /// (slots in use, slots, tokens of KV memory in use, tokens there is memory for).
    pub fn occupancy(&self) -> (u32, u32, u64, u64) {
        (
            self.slots_used,
            self.slots_max,
            self.kv_tokens_used,
            self.kv_tokens_max,
        )
    }

    /// Requests that wait for a slot here.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    fn join(&mut self, claim: Claim, env: &mut Env<'_, '_>) {
        self.joining.push(claim);
        self.watch_root(env);
        if self.joining.len() == 1 && self.active.is_empty() {
            let root = self.root_actor(env);
            env.control(root, Msg::Wake { group: self.group });
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
        let d = &env.shared.serving.decode;
        let times = times(&self.slowed, env.shared);
        let parts = if microbatch { 2 } else { 1 };
        let (attention_share, moe_share) = if microbatch {
            (times.attention_share, times.moe_share)
        } else {
            (Share::WHOLE, Share::WHOLE)
        };
        let mut loads = vec![MicrobatchLoad::default(); parts];
        for (i, a) in self.active.iter().enumerate() {
            let l = &mut loads[i % parts];
            l.requests += 1;
            l.tokens += 1 + d.mtp_tokens;
            l.context_sum += u64::from(a.context);
        }
        let whole = loads.iter().fold(MicrobatchLoad::default(), |a, b| a + *b);
        let s = &mut self.step;
        s.parts = loads
            .into_iter()
            .map(|load| Microbatch {
                load,
                attention_ps: times.attention_ps(load, attention_share),
                ..Microbatch::default()
            })
            .collect();
        s.attention_share = Some(attention_share);
        s.moe_share = Some(moe_share);
        s.attention_busy = false;
        s.moe_busy = None;
        s.next_moe = (0, 0);
        s.end_layer = env.shared.model.moe_layers();
        s.segments_left = d.mtp_tokens;
        // The dense layers come first, on the whole die.
        let dense_ps = times
            .dense_layers_ps(whole)
            .max(env.shared.phase_lookahead_ps);
        let place = s.place(0, 0, 1);
        env.stage(Stage::DenseLayers, now, now + dense_ps, place, 0, 0);
        if s.end_layer == 0 {
            env.after(dense_ps, Msg::SegmentDone);
        } else {
            self.start_attention_at(now + dense_ps, env);
        }
    }

    /// Puts the attention stream to work, from `at_ps` on.
    fn start_attention_at(&mut self, at_ps: Ps, env: &mut Env<'_, '_>) {
        let s = &mut self.step;
        if s.attention_busy {
            return;
        }
        // Without microbatches one stream serves each in turn, so attention is never held up by it.
        let next = (0..s.parts.len())
            .filter(|&i| s.parts[i].at == At::WaitAttention)
            .min_by_key(|&i| (s.parts[i].layer, i));
        if let Some(i) = next {
            s.attention_busy = true;
            let part = &mut s.parts[i];
            part.at = At::Attention;
            let (layer, end_ps) = (part.layer, at_ps + part.attention_ps);
            let place = s.place(moe_layer(layer, env), i, s.parts.len());
            env.stage(Stage::Attention, at_ps, end_ps, place, 0, 0);
            env.at(end_ps, Msg::AttentionDone { part: i as u8 });
        }
    }

    pub fn attention_done(&mut self, part: u8, env: &mut Env<'_, '_>) {
        if self.is_stale(env) {
            return;
        }
        let now = env.now();
        let s = &mut self.step;
        s.attention_busy = false;
        let p = &mut s.parts[part as usize];
        p.at = At::WaitMoe;
        p.since_ps = now;
        self.start_moe(env);
        self.start_attention_at(now, env);
    }

    /// Starts gate and dispatch of the microbatch whose turn it is, if it is ready and the stream is free.
    fn start_moe(&mut self, env: &mut Env<'_, '_>) {
        let now = env.now();
        let (layer, i) = self.step.next_moe;
        let s = &self.step;
        if s.moe_busy.is_some() || s.parts[i].at != At::WaitMoe || s.parts[i].layer != layer {
            return;
        }
        let shared = env.shared;
        let load = s.parts[i].load;
        let share = s.moe_share.expect("a step is running");
        let place = s.place(moe_layer(layer, env), i, s.parts.len());
        let since_ps = s.parts[i].since_ps;
        env.stage(Stage::WaitMoeStream, since_ps, now, place, 0, 0);
        let gate_ps = times(&self.slowed, shared).gate_ps(load.tokens, share);
        env.stage(Stage::Gate, now, now + gate_ps, place, 0, 0);
        self.choose_experts(layer, load.tokens, env);
        let cal = &times(&self.slowed, shared).roof.cal.dispatch;
        let prepare_ps =
            ps_from_us(cal.startup_us + cal.token_us * f64::from(load.tokens) / share.vector);
        self.phase += 1;
        let sent = env.send_phase(&PhaseOut {
            board: self.board,
            channel: 0,
            phase: self.phase,
            rank: self.rank,
            expected: self.watch.members.count(),
            start_ps: now + gate_ps + prepare_ps,
            unit_bytes: dispatch_bytes(shared),
            issue_ps: (cal.issue_ns * 1e3 / share.vector) as Ps,
            flag_ps: (cal.flag_ns * 1e3) as Ps,
            barrier_ps: ps_from_us(cal.barrier_us),
            stage: Stage::Dispatch,
            place,
            units: Sent::BySlot(&self.by_slot),
        });
        let s = &mut self.step;
        s.parts[i].at = At::Moe;
        s.moe_busy = Some(i);
        s.moe_started_ps = now;
        s.stage_from_ps = now + gate_ps;
        s.dispatch_sent_ps = sent;
    }

    /// Draws the experts of `tokens` tokens in a layer, and counts them by slot.
    fn choose_experts(&mut self, layer: u32, tokens: u32, env: &mut Env<'_, '_>) {
        let (plan, routing) = plan_at(self.shrunk.as_deref(), &self.experts, layer);
        let perfect = env.shared.serving.experts.balance == Balance::Perfect;
        let ranks = self.by_slot.len() as u64 / u64::from(plan.slots_per_rank);
        self.by_slot.fill(0);
        if tokens == 0 {
            return;
        }
        if perfect {
            // Every slot of the group gets the same from all ranks together: each rank begins where its neighbour ended.
            let units = u64::from(tokens) * u64::from(env.shared.model.top_k);
            let n = plan.copies.len() as u64;
            let start =
                (u64::from(self.rank) * (n / ranks.max(1)).max(1) + u64::from(self.phase)) % n;
            let mut dealt = std::mem::take(&mut self.counts);
            dealt.clear();
            dealt.resize(n as usize, 0);
            Dealer::starting_at(start).deal(units, &mut dealt);
            for (slot, c) in plan.copies.iter().zip(&dealt) {
                self.by_slot[*slot as usize] += c;
            }
            self.counts = dealt;
        } else {
            self.counts.clear();
            self.counts.resize(plan.experts(), 0);
            routing.draw(tokens, env.ctx.rng(), &mut self.counts);
            for (e, &c) in self.counts.iter().enumerate() {
                if c > 0 {
                    let copies = plan.copies_of(e);
                    let slot = copies[self.rank as usize % copies.len()];
                    self.by_slot[slot as usize] += c;
                }
            }
        }
        if !plan.shared.is_empty() {
            let slot = plan.shared[self.rank as usize % plan.shared.len()];
            self.by_slot[slot as usize] += tokens * env.shared.model.shared_experts;
        }
    }

    /// All flags of a phase are here.
    pub fn collected(&mut self, phase: u32, env: &mut Env<'_, '_>) {
        if self.watch.out || phase != self.phase || self.step.moe_busy.is_none() {
            return; // Of a step that was given up.
        }
        let now = env.now();
        let i = self
            .step
            .moe_busy
            .expect("a phase belongs to the MoE stream");
        let share = self.step.moe_share.expect("a step is running");
        let shared = env.shared;
        let mut received = std::mem::take(&mut self.received);
        let place = self.moe_place(env);
        let receipt = env.collect(self.board, self.rank, 0, phase, place, &mut received);
        let complete_ps = receipt.complete_ps.max(now);
        let waited = env.waited_for(self.board, self.rank, 0, phase, complete_ps);
        let place = self.moe_place(env);
        let dispatch = phase == self.phase && phase % 2 == 1;
        if dispatch {
            self.per_slot.fill(0);
            for of_source in received.chunks_exact(self.per_slot.len()) {
                for (sum, &n) in self.per_slot.iter_mut().zip(of_source) {
                    *sum += u32::from(n);
                }
            }
            let units: u32 = self.per_slot.iter().sum();
            self.experts.count(self.step.next_moe.0, &self.per_slot);
            env.meter().expert_tokens += u64::from(units);
            let times = times(&self.slowed, shared);
            let cal = &times.roof.cal.dispatch;
            let bytes = f64::from(units) * f64::from(dispatch_bytes(shared)) * cal.assemble_passes;
            let assemble_ps = ps_from_us(cal.assemble_us)
                + crate::time::ps_from_s(times.roof.vector_s(bytes, share));
            let experts_ps = times.experts_ps(&self.per_slot, share);
            let start = complete_ps + assemble_ps;
            let from_ps = self.step.stage_from_ps;
            env.stage(Stage::Dispatch, from_ps, start, place, waited.0, waited.1);
            let (plan, _) = plan_at(self.shrunk.as_deref(), &self.experts, self.step.next_moe.0);
            let busiest = env.busiest_expert(plan.uses_of(u32::from(self.rank)), &self.per_slot);
            env.stage(
                Stage::Experts,
                start,
                start + experts_ps,
                place,
                busiest.0,
                busiest.1,
            );
            self.step.stage_from_ps = start + experts_ps;
            self.received = received;
            env.at(start + experts_ps, Msg::ExpertsDone);
        } else {
            self.received = received;
            let times = times(&self.slowed, shared);
            let cal = &times.roof.cal.combine;
            let tokens = f64::from(self.step.parts[i].load.tokens);
            let copies = f64::from(shared.model.top_k + shared.model.shared_experts);
            let bytes = tokens * copies * f64::from(combine_bytes(shared)) * cal.sum_passes;
            let sum_ps =
                ps_from_us(cal.sum_us) + crate::time::ps_from_s(times.roof.vector_s(bytes, share));
            let from_ps = self.step.stage_from_ps;
            env.stage(
                Stage::Combine,
                from_ps,
                complete_ps + sum_ps,
                place,
                waited.0,
                waited.1,
            );
            env.at(complete_ps + sum_ps, Msg::LayerDone);
        }
    }

    /// Where the MoE stream is.
    fn moe_place(&self, env: &Env<'_, '_>) -> Place {
        let s = &self.step;
        let i = s.moe_busy.expect("the MoE stream is at work");
        s.place(moe_layer(s.parts[i].layer, env), i, s.parts.len())
    }

    /// The experts have run: their outputs go back where the tokens came from.
    pub fn experts_done(&mut self, env: &mut Env<'_, '_>) {
        if self.is_stale(env) {
            return;
        }
        let shared = env.shared;
        let cal = &times(&self.slowed, shared).roof.cal.combine;
        let share = self.step.moe_share.expect("a step is running");
        self.phase += 1;
        env.send_phase(&PhaseOut {
            board: self.board,
            channel: 0,
            phase: self.phase,
            rank: self.rank,
            expected: self.watch.members.count(),
            start_ps: env.ctx.now() + ps_from_us(cal.startup_us),
            unit_bytes: combine_bytes(shared),
            issue_ps: (cal.issue_ns * 1e3 / share.vector) as Ps,
            flag_ps: (cal.flag_ns * 1e3) as Ps,
            barrier_ps: ps_from_us(cal.barrier_us),
            stage: Stage::Combine,
            place: self.moe_place(env),
            units: Sent::Returned(&self.received),
        });
    }

    /// A microbatch has its layer's output.
    pub fn layer_done(&mut self, env: &mut Env<'_, '_>) {
        if self.is_stale(env) {
            return;
        }
        let now = env.now();
        let s = &mut self.step;
        let i = s.moe_busy.take().expect("the MoE stream was at work");
        let part = &mut s.parts[i];
        part.layer += 1;
        part.at = if part.layer < s.end_layer {
            At::WaitAttention
        } else {
            At::Done
        };
        let n = s.parts.len();
        s.next_moe = if i + 1 < n {
            (s.next_moe.0, i + 1)
        } else {
            (s.next_moe.0 + 1, 0)
        };
        if s.parts.iter().all(|p| p.at == At::Done) {
            // Head and sampling over the whole batch, on the whole die: of all tokens to verify them, of one for
            // each request to draft the next.
            let times = times(&self.slowed, env.shared);
            let drafts = env.shared.serving.decode.mtp_tokens - s.segments_left;
            let whole = s
                .parts
                .iter()
                .fold(MicrobatchLoad::default(), |a, p| a + p.load);
            let of = |drafts: u32| {
                if drafts == 0 {
                    whole.tokens
                } else {
                    whole.requests
                }
            };
            let mut ps = times.head_ps(of(drafts));
            if s.segments_left > 0 {
                ps += times.mtp_join_ps(of(drafts));
            }
            let last = s.end_layer.saturating_sub(1);
            let place = s.place(moe_layer(last, env), 0, 1);
            env.stage(Stage::Head, now, now + ps, place, 0, 0);
            env.after(ps.max(env.shared.phase_lookahead_ps), Msg::SegmentDone);
            return;
        }
        if s.next_moe.0 < s.end_layer {
            self.start_moe(env);
        }
        self.start_attention_at(now, env);
    }

    /// Head and sampling are done: on to the next speculative layer, or the step is over.
    pub fn segment_done(&mut self, env: &mut Env<'_, '_>) {
        if self.is_stale(env) {
            return;
        }
        let now = env.now();
        let s = &mut self.step;
        if s.segments_left == 0 {
            self.step_end(env);
            return;
        }
        let first_draft = s.segments_left == env.shared.serving.decode.mtp_tokens;
        s.segments_left -= 1;
        s.end_layer += 1;
        s.next_moe = (s.end_layer - 1, 0);
        let share = s.attention_share.expect("a step is running");
        for p in &mut s.parts {
            // The first draft takes what the model has verified; each further one, the draft before it.
            if !first_draft {
                p.load = p.load.one_token_each();
                p.attention_ps = times(&self.slowed, env.shared).attention_ps(p.load, share);
            }
            p.at = At::WaitAttention;
            p.layer = s.end_layer - 1;
        }
        self.start_attention_at(now, env);
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

    /// Everything given back: true at the end of every quiet run.
    ///
    /// # Errors
    /// Says what is still held.
    pub fn check_idle(&self) -> Result<(), String> {
        let held = [
            ("active requests", self.active.len() as u64),
            ("granted requests", self.granted.len() as u64),
            ("joining requests", self.joining.len() as u64),
            ("waiting claims", self.waiting.len() as u64),
            ("slots", u64::from(self.slots_used)),
            ("KV tokens", self.kv_tokens_used),
        ];
        match held.iter().find(|h| h.1 != 0) {
            Some((what, n)) => Err(format!("{n} {what} left")),
            None => Ok(()),
        }
    }
}

/// Bytes of one token's activation on its way to an expert.
pub fn dispatch_bytes(shared: &Shared) -> u32 {
    match shared.serving.precision.dispatch {
        crate::config::Number::Int8 => shared.cal.wire.dispatch_bytes_int8,
        crate::config::Number::Bf16 => {
            shared.model.hidden * 2 + shared.cal.wire.dispatch_scale_bytes
        }
    }
}

/// Bytes of one expert output on its way back: BF16.
pub fn combine_bytes(shared: &Shared) -> u32 {
    shared.model.hidden * 2
}

/// Plan and routing of an MoE layer in the running step, of all ranks or of those that are left.
fn plan_at<'a>(
    shrunk: Option<&'a Vec<Plan>>,
    experts: &'a RankExperts,
    layer: u32,
) -> (&'a Plan, &'a Routing) {
    let (plan, routing) = experts.at(layer);
    (shrunk.map_or(plan, |left| of_layer(left, layer)), routing)
}
