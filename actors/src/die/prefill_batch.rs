//! A batch at a prefill rank, layer by layer.
//!
//! ```text
//! layer          = latents (SP) > gather > heads (TP) > scatter > output (SP) > dispatch > experts > combine
//! compute stream   [attention of 0: latents .. output] [attention of 1] [experts of 0] [experts of 1] [attention of 0] ..
//! vector stream      quantise, assemble, sum                dispatch 0       dispatch 1     combine 0      combine 1
//! ```
//! The compute stream takes the two microbatches in the same order on all ranks. Attention holds it from first to
//! last stage, collectives included, because each of its stages needs the one before; what microbatches hide is the
//! dispatch and combine of the other one: their vector work, and their time on the wire. All share the die's lanes.

use std::sync::Arc;

use super::decode::{combine_bytes, dispatch_bytes, sum_by_slot};
use super::prefill::PrefillRank;
use crate::compute::{PrefillLoad, PrefillTimes, Share};
use crate::config::Balance;
use crate::env::Env;
use crate::experts::Hand;
use crate::fabric::{PhaseOut, Sent};
use crate::message::{BatchPart, BatchWork, Msg};
use crate::time::{Ps, ps_from_s, ps_from_us};
use crate::trace::{Place, Stage as Op, What};
use crate::world::Shared;

/// Where one microbatch is in its layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Latents,
    Gather,
    Heads,
    Scatter,
    Output,
    Dense,
    Dispatch,
    Assemble,
    Experts,
    Combine,
    Done,
}

/// What the compute stream takes next: attention, or the experts, of one microbatch in one layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Turn {
    layer: u32,
    experts: bool,
    part: usize,
}

impl Turn {
    fn next(self, parts: usize, dense_layers: u32) -> Self {
        if self.part + 1 < parts {
            return Self {
                part: self.part + 1,
                ..self
            };
        }
        let experts = !self.experts && self.layer >= dense_layers;
        Self {
            layer: self.layer + u32::from(!experts),
            experts,
            part: 0,
        }
    }
}

#[derive(Debug, Default)]
struct Part {
    load: PrefillLoad,
    layer: u32,
    stage: Stage,
    /// Has all that its stage needs but the compute stream.
    ready: bool,
    since_ps: Ps,
    phase: u32,
    received: Vec<u16>,
    /// Who the collective before was waiting for, and until when.
    waited: (u64, u64),
    /// Tokens for each of the rank's expert slots.
    per_slot: Vec<u32>,
}

#[derive(Debug)]
pub(super) struct Work {
    batch: u64,
    started_ps: Ps,
    finishing: u32,
    parts: Vec<Part>,
    turn: Turn,
    /// The compute stream is taken.
    busy: bool,
    /// Its duration is drawn: nothing of it is simulated.
    drawn: bool,
}

impl Work {
    /// Where microbatch `i` is.
    fn place(&self, i: usize) -> Place {
        Place {
            run: self.batch as u32,
            layer: self.parts[i].layer as u16,
            part: i as u8,
            parts: self.parts.len() as u8,
        }
    }
}

/// A die's operator times: its own while a fault slows it, else those of every die.
fn times<'a>(slowed: &'a Option<Arc<PrefillTimes>>, shared: &'a Shared) -> &'a PrefillTimes {
    slowed
        .as_deref()
        .or(shared.prefill_times.as_ref())
        .expect("a prefill group has times")
}

/// A part of a batch as the operators want it.
pub fn load_of(part: &BatchPart, finishing: u32) -> PrefillLoad {
    PrefillLoad {
        tokens: part.tokens,
        attended_sum: part.attended_sum,
        finishing,
        context_tokens: part.context_tokens,
    }
}

impl PrefillRank {
    /// Timer: a drawn batch is over (root), or this rank's last operator is.
    pub fn batch_end(&mut self, batch: u64, env: &mut Env<'_, '_>) {
        if env.ctx.event_seq() < self.life.from_seq {
            return;
        }
        if let Some(w) = self.work.take_if(|w| w.batch == batch) {
            let (started_ps, now) = (w.started_ps, env.now());
            if !w.drawn {
                env.meter().stepped_ps += now - started_ps;
                let tokens = w.parts.iter().map(|p| p.load.tokens).sum();
                env.span(What::Batch, started_ps, now, w.place(0), tokens, 0);
            }
            let root = env
                .shared
                .die_actor(env.shared.layout.prefill[self.group as usize].root());
            env.control(root, Msg::BatchDone { batch });
        } else if let Some(root) = &mut self.root {
            root.done(batch, env);
        }
    }

    pub fn batch(&mut self, work: BatchWork, env: &mut Env<'_, '_>) {
        if !self.takes_batch(&work, env) {
            return;
        }
        let now = env.now();
        let received = vec![0u16; self.by_slot.len()];
        let parts = work
            .parts
            .iter()
            .map(|p| Part {
                load: load_of(p, work.finishing),
                since_ps: now,
                ready: true,
                received: received.clone(),
                ..Part::default()
            })
            .collect::<Vec<_>>();
        self.vector_free_ps = self.vector_free_ps.max(now);
        self.work = Some(Work {
            batch: work.batch,
            started_ps: now,
            finishing: work.finishing,
            parts,
            turn: Turn::default(),
            busy: false,
            drawn: work.drawn_ps.is_some(),
        });
        match work.drawn_ps {
            Some(ps) => env.after(ps, Msg::BatchEnd { batch: work.batch }),
            None => self.take_turn(env),
        }
    }

    /// Vector stream, first come first served: when work that is ready at `from` will be done.
    fn on_vector(&mut self, ps: Ps, from: Ps) -> Ps {
        self.vector_free_ps = self.vector_free_ps.max(from) + ps;
        self.vector_free_ps
    }

    /// Gives the compute stream to the microbatch whose turn it is, if both are ready.
    fn take_turn(&mut self, env: &mut Env<'_, '_>) {
        let now = env.now();
        let work = self.work.as_mut().expect("a batch is running");
        let Turn {
            layer,
            experts,
            part: i,
        } = work.turn;
        let part = &mut work.parts[i];
        let its_turn = part.layer == layer && (part.stage == Stage::Experts) == experts;
        if work.busy || !part.ready || !its_turn {
            return;
        }
        work.busy = true;
        part.ready = false;
        let since = part.since_ps;
        let place = work.place(i);
        env.stage(Op::WaitComputeStream, since, now, place, 0, 0);
        self.begin(i, env);
    }

    /// The compute stream is free for the next in order.
    fn end_turn(&mut self, dense_layers: u32) {
        let work = self.work.as_mut().expect("a batch is running");
        work.busy = false;
        work.turn = work.turn.next(work.parts.len(), dense_layers);
    }

    /// Starts the stage that part `i` has come to.
    fn begin(&mut self, i: usize, env: &mut Env<'_, '_>) {
        let now = env.now();
        let slowed = self.slowed.clone();
        let times = times(&slowed, env.shared);
        let work = self.work.as_mut().expect("a batch is running");
        let part = &mut work.parts[i];
        part.since_ps = now;
        let (load, layer) = (part.load, part.layer);
        let ps = match part.stage {
            Stage::Latents => times.latents_ps(load),
            Stage::Heads => times.heads_ps(load),
            Stage::Output => times.output_ps(load),
            Stage::Dense => times.dense_mlp_ps(load),
            Stage::Experts => times.experts_ps(&part.per_slot),
            Stage::Gather => return self.collective(i, Op::Gather, times.gather_bytes(load), env),
            Stage::Scatter => {
                return self.collective(i, Op::Scatter, times.scatter_bytes(load), env);
            }
            Stage::Dispatch => {
                let moe_layer = layer - env.shared.model.dense_layers;
                return self.dispatch(i, moe_layer, env);
            }
            Stage::Assemble | Stage::Combine | Stage::Done => {
                unreachable!("these stages are begun by what they wait for")
            }
        };
        env.at(now + ps, Msg::Computed { part: i as u8 });
    }

    fn next_phase(&mut self, i: usize) -> u32 {
        self.phases[i] += 1;
        let phase = self.phases[i];
        self.work.as_mut().expect("a batch is running").parts[i].phase = phase;
        phase
    }

    fn place(&self, i: usize) -> Place {
        self.work.as_ref().expect("a batch is running").place(i)
    }

    /// Sends `bytes` to every other rank by SDMA.
    fn collective(&mut self, i: usize, stage: Op, bytes: u64, env: &mut Env<'_, '_>) {
        let phase = self.next_phase(i);
        let start_ps = env.now()
            + ps_from_us(
                times(&self.slowed, env.shared)
                    .roof
                    .cal
                    .prefill
                    .collective_startup_us,
            );
        env.send_phase(&PhaseOut {
            board: self.group,
            channel: i as u8,
            phase,
            rank: self.rank,
            expected: self.ranks as u16,
            start_ps,
            unit_bytes: bytes.min(u64::from(u32::MAX)) as u32,
            issue_ps: 0,
            flag_ps: 0,
            barrier_ps: 0,
            stage,
            place: self.place(i),
            units: Sent::ToEach,
        });
    }

    fn dispatch(&mut self, i: usize, moe_layer: u32, env: &mut Env<'_, '_>) {
        let now = env.now();
        let shared = env.shared;
        let tokens = {
            let t = self.work.as_ref().expect("a batch is running").parts[i]
                .load
                .tokens;
            let ranks = u64::from(self.ranks);
            (t / ranks + u64::from(u64::from(self.rank) < t % ranks)) as u32
        };
        self.spread_over_slots(moe_layer, tokens, env);
        let slowed = self.slowed.clone();
        let times = times(&slowed, shared);
        let cal = &times.roof.cal.dispatch;
        let copies = shared.model.top_k + shared.model.shared_experts;
        let prepare = times.dispatch_ps(tokens, copies, dispatch_bytes(shared));
        let phase = self.next_phase(i);
        let start_ps = self.on_vector(prepare, now);
        // SDMA engines move the messages, not vector cores.
        env.send_phase(&PhaseOut {
            board: self.group,
            channel: i as u8,
            phase,
            rank: self.rank,
            expected: self.ranks as u16,
            start_ps,
            unit_bytes: dispatch_bytes(shared),
            issue_ps: 0,
            flag_ps: (cal.flag_ns * 1e3) as Ps,
            barrier_ps: ps_from_us(cal.barrier_us),
            stage: Op::PrefillDispatch,
            place: self.place(i),
            units: Sent::BySlot(&self.by_slot),
        });
    }

    /// Draws the experts of `tokens` tokens in a layer, and spreads each expert's over all its copies (a rank of decode
    /// sends them to one copy instead).
    fn spread_over_slots(&mut self, layer: u32, tokens: u32, env: &mut Env<'_, '_>) {
        let experts = env
            .shared
            .prefill_experts
            .as_ref()
            .expect("a prefill group has experts");
        let (plan, routing) = experts.at(layer);
        self.by_slot.fill(0);
        if tokens == 0 {
            return;
        }
        if env.shared.serving.experts.balance == Balance::Perfect {
            let hand = Hand {
                place: self.rank.into(),
                ranks: self.ranks,
                tokens,
                top_k: env.shared.model.top_k,
                first: layer.into(),
            };
            plan.deal(hand, &mut self.by_slot);
        } else {
            self.counts.clear();
            self.counts.resize(plan.experts(), 0);
            routing.draw(tokens, env.ctx.rng(), &mut self.counts);
            for (e, &c) in self.counts.iter().enumerate() {
                let copies = plan.copies_of(e);
                // Copies share an expert's tokens evenly.
                let n = copies.len() as u32;
                for (j, slot) in copies.iter().enumerate() {
                    self.by_slot[*slot as usize] += c / n + u32::from((j as u32) < c % n);
                }
            }
        }
        // A shared copy on the own die serves its tokens; else copies are taken in turn.
        if !plan.shared.is_empty() {
            let slot = plan.shared[self.rank as usize % plan.shared.len()];
            self.by_slot[slot as usize] += tokens * env.shared.model.shared_experts;
        }
    }

    /// A timer of the compute or vector stream: part `i` has finished a stage.
    pub fn computed(&mut self, i: u8, env: &mut Env<'_, '_>) {
        if self.is_stale(env) {
            return;
        }
        let model = &env.shared.model;
        let (layers, dense_layers) = (model.layers, model.dense_layers);
        let now = env.now();
        let work = self.work.as_mut().expect("a batch is running");
        let place = work.place(i as usize);
        let part = &mut work.parts[i as usize];
        let since = part.since_ps;
        let (op, next) = match part.stage {
            Stage::Latents => (Op::Latents, Stage::Gather),
            Stage::Heads => (Op::Heads, Stage::Scatter),
            Stage::Output if part.layer < dense_layers => (Op::Output, Stage::Dense),
            Stage::Output => (Op::Output, Stage::Dispatch),
            Stage::Dense => (Op::DenseMlp, Stage::Latents),
            Stage::Assemble => (Op::PrefillDispatch, Stage::Experts),
            Stage::Experts => (Op::PrefillExperts, Stage::Combine),
            Stage::Combine => (Op::PrefillCombine, Stage::Latents),
            Stage::Gather | Stage::Scatter | Stage::Dispatch | Stage::Done => {
                unreachable!("no stream works on these")
            }
        };
        let waited = if matches!(part.stage, Stage::Assemble | Stage::Combine) {
            part.waited
        } else {
            (0, 0)
        };
        env.stage(op, since, now, place, waited.0, waited.1);
        let ended = part.stage;
        part.stage = next;
        part.since_ps = now;
        if next == Stage::Latents {
            part.layer += 1;
            if part.layer == layers {
                part.stage = Stage::Done;
            }
        }
        part.ready = matches!(part.stage, Stage::Latents | Stage::Experts);
        let stage = part.stage;
        let turn_over = matches!(
            (ended, next),
            (Stage::Output, Stage::Dispatch) | (Stage::Dense | Stage::Experts, _)
        );
        if turn_over {
            self.end_turn(dense_layers);
        }
        match stage {
            Stage::Combine => self.combine(i as usize, env),
            Stage::Gather | Stage::Scatter | Stage::Dense | Stage::Dispatch => {
                self.begin(i as usize, env);
            }
            Stage::Done => return self.part_done(env),
            _ => {}
        }
        self.take_turn(env);
    }

    fn part_done(&mut self, env: &mut Env<'_, '_>) {
        let work = self.work.as_ref().expect("a batch is running");
        if work.parts.iter().all(|p| p.stage == Stage::Done) {
            let ps = times(&self.slowed, env.shared)
                .head_ps(work.finishing)
                .max(env.shared.phase_lookahead_ps);
            let batch = work.batch;
            env.after(ps, Msg::BatchEnd { batch });
        }
    }

    fn combine(&mut self, i: usize, env: &mut Env<'_, '_>) {
        let shared = env.shared;
        let slowed = self.slowed.clone();
        let cal = &times(&slowed, shared).roof.cal.combine;
        let now = env.now();
        let start_ps = self.on_vector(ps_from_us(cal.startup_us), now);
        let phase = self.next_phase(i);
        let received =
            std::mem::take(&mut self.work.as_mut().expect("a batch is running").parts[i].received);
        env.send_phase(&PhaseOut {
            board: self.group,
            channel: i as u8,
            phase,
            rank: self.rank,
            expected: self.ranks as u16,
            start_ps,
            unit_bytes: combine_bytes(shared),
            issue_ps: 0,
            flag_ps: (cal.flag_ns * 1e3) as Ps,
            barrier_ps: ps_from_us(cal.barrier_us),
            stage: Op::PrefillCombine,
            place: self.place(i),
            units: Sent::Returned(&received),
        });
        self.work.as_mut().expect("a batch is running").parts[i].received = received;
    }

    /// Everything of a collective is here.
    pub fn collected(&mut self, channel: u8, phase: u32, env: &mut Env<'_, '_>) {
        if self.is_old(phase) {
            return; // Of a batch that was given up.
        }
        let now = env.now();
        let shared = env.shared;
        let i = channel as usize;
        let slowed = self.slowed.clone();
        let times = times(&slowed, shared);
        let mut received =
            std::mem::take(&mut self.work.as_mut().expect("a batch is running").parts[i].received);
        let place = self.place(i);
        let receipt = env.collect(self.group, self.rank, channel, phase, place, &mut received);
        let complete = receipt.complete_ps.max(now);
        let waited = env.waited_for(self.group, self.rank, channel, phase, complete);
        let place = self.work.as_ref().expect("a batch is running").place(i);
        let mut per_slot = vec![0u32; self.slots];
        sum_by_slot(&received, &mut per_slot);
        let part = &mut self.work.as_mut().expect("a batch is running").parts[i];
        part.received = received;
        let (stage, since, load) = (part.stage, part.since_ps, part.load);
        match stage {
            Stage::Gather | Stage::Scatter => {
                let (op, next) = if stage == Stage::Gather {
                    (Op::Gather, Stage::Heads)
                } else {
                    (Op::Scatter, Stage::Output)
                };
                env.stage(op, since, complete, place, waited.0, waited.1);
                part.received.fill(0);
                part.stage = next;
                if complete > now {
                    // The next stage's engine is asked when the last byte is in.
                    env.at(complete, Msg::Landed { part: channel });
                } else {
                    self.begin(i, env);
                }
            }
            Stage::Dispatch => {
                let cal = &times.roof.cal.dispatch;
                let units: u32 = per_slot.iter().sum();
                let bytes =
                    f64::from(units) * f64::from(dispatch_bytes(shared)) * cal.assemble_passes;
                let assemble = ps_from_us(cal.assemble_us)
                    + ps_from_s(times.roof.vector_s(bytes, Share::WHOLE));
                self.count(i, units, env);
                let assembled = self.on_vector(assemble, complete);
                env.meter().expert_tokens += u64::from(units);
                let part = &mut self.work.as_mut().expect("a batch is running").parts[i];
                part.stage = Stage::Assemble;
                part.waited = waited;
                part.per_slot = per_slot;
                env.at(assembled, Msg::Computed { part: channel });
            }
            Stage::Combine => {
                let cal = &times.roof.cal.combine;
                let copies = f64::from(shared.model.top_k + shared.model.shared_experts);
                let tokens = load.tokens as f64 / f64::from(self.ranks);
                let bytes = tokens * copies * f64::from(combine_bytes(shared)) * cal.sum_passes;
                let sum =
                    ps_from_us(cal.sum_us) + ps_from_s(times.roof.vector_s(bytes, Share::WHOLE));
                let at = self.on_vector(sum, complete);
                self.work.as_mut().expect("a batch is running").parts[i].waited = waited;
                env.at(at, Msg::Computed { part: channel });
            }
            other => unreachable!("a collective ended in stage {other:?}"),
        }
    }

    /// The last byte of a gather or scatter is in.
    pub fn landed(&mut self, i: u8, env: &mut Env<'_, '_>) {
        if self.is_stale(env) {
            return;
        }
        self.begin(i as usize, env);
    }

    fn count(&mut self, part: usize, units: u32, env: &Env<'_, '_>) {
        let work = self.work.as_ref().expect("a batch is running");
        let layer = (work.parts[part].layer - env.shared.model.dense_layers) as usize;
        if layer >= self.served.len() {
            self.served.resize(layer + 1, 0);
        }
        self.served[layer] += u64::from(units);
    }
}
