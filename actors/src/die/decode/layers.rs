//! The layers of one step on a decode rank: two streams that take the microbatches in turn, and the waiting for all other
//! ranks in dispatch and combine.

use std::borrow::Cow;
use std::sync::Arc;

use super::DecodeRank;
use crate::compute::{DecodeTimes, MicrobatchLoad, Share};
use crate::config::Balance;
use crate::die::experts::RankExperts;
use crate::env::Env;
use crate::experts::{Hand, Plan, Routing, SlotUse, of_layer, unit_of};
use crate::fabric::{PhaseOut, Scratch, Sent};
use crate::message::Msg;
use crate::time::{Ps, ps_from_us};
use crate::trace::{Place, Stage};
use crate::world::Shared;

/// One microbatch in the current step.
#[derive(Clone, Debug, Default)]
pub(in crate::die) struct Microbatch {
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
pub(in crate::die) struct Step {
    /// Started and not ended.
    pub(in crate::die) running: bool,
    pub(in crate::die) number: u32,
    pub(in crate::die) started_ps: Ps,
    pub(in crate::die) requests: u32,
    pub(in crate::die) drawn: bool,
    pub(in crate::die) parts: Vec<Microbatch>,
    /// Layers of the running segment: `[first, end)` in MoE layers; 0-based over main and MTP layers.
    pub(in crate::die) end_layer: u32,
    pub(in crate::die) segments_left: u32,
    pub(in crate::die) attention_busy: bool,
    pub(in crate::die) moe_busy: Option<usize>,
    /// The (layer, part) that the MoE stream takes next, the same on all ranks.
    pub(in crate::die) next_moe: (u32, usize),
    pub(in crate::die) attention_share: Option<Share>,
    pub(in crate::die) moe_share: Option<Share>,
    pub(in crate::die) stage_from_ps: Ps,
}

impl Step {
    /// Layer `layer` of the model in microbatch `part` of `parts`.
    pub(super) fn place(&self, layer: u16, part: usize, parts: usize) -> Place {
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

/// A die's operator times: its own while a fault slows it, else those of every die.
fn times<'a>(slowed: &'a Option<Arc<DecodeTimes>>, shared: &'a Shared) -> &'a DecodeTimes {
    slowed.as_deref().unwrap_or(&shared.decode_times)
}

impl DecodeRank {
    /// Divides the requests into microbatches and starts on the layers.
    pub(super) fn begin_layers(&mut self, microbatch: bool, env: &mut Env<'_, '_>) {
        let now = env.now();
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
        let mut scratch = std::mem::take(&mut env.fabric.scratch);
        self.choose_experts(layer, load.tokens, &mut scratch, env);
        let cal = &times(&self.slowed, shared).roof.cal.dispatch;
        let prepare_ps =
            ps_from_us(cal.startup_us + cal.token_us * f64::from(load.tokens) / share.vector);
        self.phase += 1;
        env.send_phase(&PhaseOut {
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
            units: Sent::BySlot(&scratch.by_slot),
        });
        env.fabric.scratch = scratch;
        let s = &mut self.step;
        s.parts[i].at = At::Moe;
        s.moe_busy = Some(i);
        s.stage_from_ps = now + gate_ps;
    }

    /// Draws the experts of `tokens` tokens in a layer, and counts them by slot.
    fn choose_experts(
        &self,
        layer: u32,
        tokens: u32,
        scratch: &mut Scratch,
        env: &mut Env<'_, '_>,
    ) {
        let Scratch {
            counts, by_slot, ..
        } = scratch;
        let (plan, routing) = plan_at(self.shrunk.as_deref(), &self.experts, layer);
        let perfect = env.shared.serving.experts.balance == Balance::Perfect;
        let slots = self.received.len();
        by_slot.clear();
        by_slot.resize(slots, 0);
        counts.clear();
        if tokens == 0 {
            return;
        }
        if perfect {
            let members = &self.watch.members;
            let hand = Hand {
                place: members.place(self.rank),
                ranks: members.count().into(),
                tokens,
                top_k: env.shared.model.top_k,
                first: self.phase.into(),
            };
            plan.deal(hand, by_slot);
        } else {
            counts.resize(plan.experts(), 0);
            routing.draw(tokens, env.ctx.rng(), counts);
            plan.send_to_slots(self.rank, counts, by_slot);
        }
        if !plan.shared.is_empty() {
            let slot = plan.shared[self.rank as usize % plan.shared.len()];
            by_slot[slot as usize] += tokens * env.shared.model.shared_experts;
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
        let dispatch = phase == self.phase && phase % 2 == 1;
        // What a dispatch brings is sent back; of what a combine brings only the sums matter.
        let mut received = if dispatch {
            std::mem::take(&mut self.received)
        } else {
            let mut units = std::mem::take(&mut env.fabric.scratch.received);
            units.resize(self.received.len(), 0);
            units
        };
        let place = self.moe_place(env);
        let receipt = env.collect(self.board, self.rank, 0, phase, place, &mut received);
        let complete_ps = receipt.complete_ps.max(now);
        let waited = env.waited_for(self.board, self.rank, 0, phase, complete_ps);
        if dispatch {
            sum_by_slot(&received, &mut self.per_slot);
            let units: u32 = self.per_slot.iter().sum();
            self.experts.count(self.step.next_moe.0, &self.per_slot);
            env.meter().expert_tokens += u64::from(units);
            let times = times(&self.slowed, shared);
            let cal = &times.roof.cal.dispatch;
            let bytes = f64::from(units) * f64::from(dispatch_bytes(shared)) * cal.assemble_passes;
            let assemble_ps = ps_from_us(cal.assemble_us)
                + crate::time::ps_from_s(times.roof.vector_s(bytes, share));
            let layer = self.step.next_moe.0;
            let (plan, routing) = plan_at(self.shrunk.as_deref(), &self.experts, layer);
            let (uses, units) = by_expert(plan, routing, self.rank, &self.per_slot, shared);
            let experts_ps = times.experts_ps(&units, share);
            let start = complete_ps + assemble_ps;
            let from_ps = self.step.stage_from_ps;
            env.stage(Stage::Dispatch, from_ps, start, place, waited.0, waited.1);
            let busiest = env.busiest_expert(&uses, &units);
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
            env.fabric.scratch.received = received;
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

/// Sums what each source sent (`source * slots + slot`) by slot.
pub(in crate::die) fn sum_by_slot(received: &[u16], per_slot: &mut [u32]) {
    if let [only] = per_slot {
        *only = received.iter().map(|&n| u32::from(n)).sum();
        return;
    }
    per_slot.fill(0);
    for of_source in received.chunks_exact(per_slot.len()) {
        for (sum, &n) in per_slot.iter_mut().zip(of_source) {
            *sum += u32::from(n);
        }
    }
}

/// Bytes of one expert output on its way back: BF16.
pub fn combine_bytes(shared: &Shared) -> u32 {
    shared.model.hidden * 2
}

/// A rank's experts with the units of each: slot by slot, unless slots stand for several.
fn by_expert<'a>(
    plan: &'a Plan,
    routing: &Routing,
    rank: u16,
    per_slot: &'a [u32],
    shared: &Shared,
) -> (Cow<'a, [SlotUse]>, Cow<'a, [u32]>) {
    let rank = u32::from(rank);
    if plan.beside_of(rank).is_empty() {
        return (plan.uses_of(rank).into(), per_slot.into());
    }
    let (balance, shared_experts) = (shared.serving.experts.balance, shared.model.shared_experts);
    let unit = |what| unit_of(what, plan, routing, balance, shared_experts);
    let (uses, units) = plan.by_expert(rank, per_slot, &unit);
    (uses.into(), units.into())
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
