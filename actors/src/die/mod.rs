//! A die: what it does on each message. Its part in serving (prefill rank, decode rank, or neither) decides
//! which of the two state machines a message goes to; asking for decode slots is common to all.

mod blocks;
mod calibrate;
mod cut;
mod decode;
mod decode_root;
mod estimate;
mod experts;
mod launch;
mod members;
mod node_step;
mod placer;
mod prefill;
mod prefill_batch;
mod prefill_recovery;
mod prefill_root;
mod prompt_queue;
mod rebalance;
mod recovery;
mod rejoin;
mod roll_call;
mod surface;
mod weights;

pub use blocks::{WARM, cache_plane};
pub use calibrate::{Class, Condition};
pub use decode::DecodeRank;
pub use decode_root::Report;
use launch::Launches;
pub use members::{Members, Watch};
pub use placer::{Placer, pause_ps};
pub use prefill::PrefillRank;
pub(crate) use roll_call::tell_homes;
pub use weights::Weights;

use std::sync::Arc;

use crate::beats::Beats;
use crate::env::Env;
use crate::fault::{Body, Change};
use crate::layout::Role;
use crate::message::Msg;
use crate::runtime::Actor;
use crate::world::Shared;

/// A die actor.
#[derive(Debug)]
pub struct Die {
    pub index: u32,
    pub part: Part,
    pub weights: Weights,
    /// What faults leave of it.
    pub body: Body,
    pub(crate) beats: Beats,
    launches: Launches,
}

/// Its part in serving.
#[derive(Debug)]
pub enum Part {
    Idle,
    Prefill(Box<PrefillRank>),
    Decode(Box<DecodeRank>),
}

impl Die {
    pub fn new(index: u32, shared: &Shared) -> Self {
        let part = match shared.layout.roles[index as usize] {
            Role::Idle => Part::Idle,
            Role::Prefill { group, rank } => {
                Part::Prefill(Box::new(PrefillRank::new(group, rank, shared)))
            }
            Role::Decode { group, rank } => {
                Part::Decode(Box::new(DecodeRank::new(group, rank, shared)))
            }
        };
        Self {
            index,
            part,
            weights: Weights::default(),
            body: Body::default(),
            beats: Beats::default(),
            launches: Launches::default(),
        }
    }

    /// A fault strikes this die, or is over.
    fn changed(&mut self, change: Change, env: &mut Env<'_, '_>) {
        if change == Change::Crashed {
            self.weights.forget();
        }
        if change == Change::Restarted {
            self.beats.begin(env);
        }
        let reloads = env.shared.weights.is_some() && change == Change::Restarted;
        match (&mut self.part, change) {
            (Part::Idle, _) | (_, Change::Pace | Change::Hung) => {}
            (Part::Prefill(p), Change::Crashed) => p.forget(env),
            (Part::Prefill(p), Change::Restarted) if !reloads => p.restart(env),
            (Part::Prefill(p), Change::Resumed) => p.resumed(env),
            (Part::Decode(d), Change::Crashed) => d.crashed(env),
            (Part::Decode(d), Change::Restarted) if !reloads => d.restart(env),
            (Part::Decode(d), Change::Restarted) => d.awaits_reload(),
            (Part::Prefill(_), Change::Restarted) => {}
            (Part::Decode(d), Change::Resumed) => d.resumed(env),
        }
        if reloads {
            self.reload(env);
        }
        let pace = self.body.pace();
        match &mut self.part {
            Part::Idle => {}
            Part::Prefill(p) => {
                let times = env.shared.prefill_times.as_ref();
                p.slowed = pace
                    .and_then(|(clock, hbm)| times.map(|t| t.slowed(clock, hbm)))
                    .map(Arc::new);
            }
            Part::Decode(d) => {
                let times = &env.shared.decode_times;
                d.slowed = pace.map(|(clock, hbm)| Arc::new(times.slowed(clock, hbm)));
            }
        }
    }

    pub fn handle(&mut self, from: Actor, msg: Msg, env: &mut Env<'_, '_>) {
        if let Msg::Changed(change) = msg {
            return self.changed(change, env);
        }
        if let Msg::Beat(beat) = msg {
            return self.beats.handle(from, beat, env);
        }
        let Some(msg) = self.about_weights(from, msg, env) else {
            return;
        };
        let Some(msg) = self.launched(from, msg, env) else {
            return;
        };
        match &mut self.part {
            Part::Prefill(p) => {
                match msg {
                    // Root of the group: prompts in, batches out.
                    Msg::BacklogAsk { request } => p.backlog_ask(from, request, env),
                    Msg::Prompt(prompt) => p.prompt(*prompt, env),
                    Msg::LookupReply(reply) => p.lookup_reply(from, *reply, env),
                    Msg::Blocks { request, blocks } => p.blocks(request, blocks, env),
                    Msg::BlockGone { request, index } => p.block_gone(request, index, env),
                    Msg::BatchEnd { batch } => p.batch_end(batch, env),
                    Msg::BatchDone { batch } => p.batch_done(batch, env),
                    Msg::Learned(learned) => p.learned(&learned),
                    // Any rank: its share of a batch.
                    Msg::Batch(work) => p.batch(*work, env),
                    Msg::Computed { part } => p.computed(part, env),
                    Msg::Collected { channel, phase } => p.collected(channel, phase, env),
                    Msg::Landed { part } => p.landed(part, env),
                    // Any rank: looking after a finished prompt.
                    Msg::Handoff(handoff) => p.handoff(*handoff, env),
                    Msg::SlotReply {
                        request,
                        free,
                        waiting,
                    } => p.slot_reply(from, request, free, waiting, env),
                    Msg::SlotGrant { request } => p.slot_grant(from, request, env),
                    Msg::Cancel { request } => p.cancel(request, env),
                    Msg::Release { request } => p.release(request, env),
                    Msg::Ask { request } => {
                        let held = p.has(request);
                        env.control(from, Msg::Answer { request, held });
                    }
                    Msg::Answer { request, held } => p.answer(request, held, env),
                    // Who is there.
                    Msg::Watch(what) => p.watch(what, env),
                    Msg::Ping { round } => p.ping(from, round, env),
                    Msg::Pong {
                        round,
                        progress,
                        epoch,
                    } => p.pong(from, round, (progress, epoch > 0), env),
                    Msg::Reset { epoch } => p.reset(epoch, env),
                    Msg::Hello { .. } => p.hello(from, env),
                    Msg::Gone { die } => p.said_gone(die, env),
                    Msg::Loaded => p.loaded(env),
                    Msg::WeightsIn => p.weights_in(from, env),
                    other => unexpected("a prefill die", &other),
                }
                p.arm(env);
            }
            Part::Decode(d) => match msg {
                // Placement: slots and KV memory.
                Msg::SlotAsk { request } => d.slot_ask(from, request, env),
                Msg::SlotClaim(claim) => d.slot_claim(from, *claim, env),
                Msg::Kv { request } => d.kv_arrived(request, env),
                Msg::Cancel { request } => d.cancel(request, env),
                Msg::Release { request } => d.release(request, env),
                Msg::Resend { request, first } => d.resend(request, first),
                Msg::Ask { request } => {
                    let held = d.has(request);
                    env.control(from, Msg::Answer { request, held });
                }
                // Who is there, and who takes part.
                Msg::Watch(what) => d.watch(what, env),
                Msg::Ping { round } => d.ping(from, round, env),
                Msg::Pong {
                    round,
                    epoch,
                    progress,
                } => d.pong(from, round, epoch, progress, env),
                Msg::Members(members) => d.members(from, *members, env),
                Msg::Joined {
                    epoch,
                    requests,
                    context_sum,
                } => d.rank_joined(from, epoch, requests, context_sum, env),
                Msg::Hello { epoch } => d.hello(from, epoch, env),
                Msg::Gone { die } => d.said_gone(die, env),
                Msg::Loaded => d.loaded(env),
                // Steps, started by the root of the group and ended by each rank.
                Msg::Wake { .. } => d.wake(env),
                Msg::StepStart {
                    epoch,
                    step,
                    microbatch,
                    drawn_ps,
                    experts,
                } => {
                    if d.takes_step(epoch, env) {
                        d.experts.put_in_force(experts, env);
                        d.step_start(step, microbatch, drawn_ps, env);
                    }
                }
                Msg::Experts(msg) => d.about_experts(from, *msg, env),
                Msg::AttentionDone { part } => d.attention_done(part, env),
                Msg::Collected { phase, .. } => d.collected(phase, env),
                Msg::ExpertsDone => d.experts_done(env),
                Msg::LayerDone => d.layer_done(env),
                Msg::SegmentDone => d.segment_done(env),
                Msg::StepEnd => d.step_end(env),
                Msg::StepDone {
                    step,
                    requests,
                    context_sum,
                    made,
                    duration_ps,
                } => {
                    d.step_done(
                        from,
                        step,
                        Report {
                            requests,
                            context_sum,
                            made,
                            duration_ps,
                        },
                        env,
                    );
                }
                Msg::NodeDone {
                    step,
                    made,
                    duration_ps,
                    held,
                } => d.node_done(step, (made, duration_ps), &held, env),
                other => unexpected("a decode die", &other),
            },
            Part::Idle => unexpected("an idle die", &msg),
        }
    }
}

fn unexpected(who: &str, msg: &Msg) {
    unreachable!("{who} does not take {msg:?}")
}
