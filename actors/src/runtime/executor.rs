//! Executors: actix actors on arbiters of their own. An executor is sent the shards it is to run for one slice of
//! wall time, and gives them back at a window boundary.

use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender};

use super::exchange::BatchOf;
use super::fault::Fault;
use super::gate::{Agreed, Gate};
use super::shard::Shard;
use super::{Model, Transport, codec};
use crate::time::Ps;

/// Events of one shard between two looks at the clock: about a millisecond.
const EVENTS_PER_LOOK: u64 = 16_384;
/// Windows between two looks at the clock when they are nearly empty.
const WINDOWS_PER_LOOK: u64 = 64;
/// Events that a shard may handle in one window before the others go on: a window that never ends must not keep a
/// run from being stopped. Any point of a shard's order is a window boundary for it.
const EVENTS_PER_WINDOW: u64 = 262_144;

/// The terms of one slice.
#[derive(Clone, Copy)]
pub(super) struct Terms {
    /// Events at this time or later are left alone.
    pub until: Ps,
    pub deadline: Instant,
    pub transport: Transport,
    /// Executors that the shards are or would be spread over, shard i on executor i modulo this.
    pub spread: usize,
}

/// What a slice amounted to.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    pub windows: u64,
    pub events: u64,
    /// Sum over windows of the most events that fell to one executor: the critical path if shards are spread.
    pub critical: u64,
    /// Wall time spent in handling events, and in all, when shards are spread.
    pub busy_ns: u64,
    /// Nothing is left before `until`.
    pub done: bool,
    /// Another executor died.
    pub broken: bool,
}

/// A batch for one shard, from the window after barrier `epoch`.
struct Parcel<M: Model> {
    epoch: u64,
    shard: usize,
    batch: Payload<M>,
}

enum Payload<M: Model> {
    Values(BatchOf<M>),
    Bytes(Vec<u8>),
}

/// Connects the executors of one slice.
pub(super) struct Exchange<M: Model> {
    pub executor: usize,
    gate: Arc<Gate>,
    senders: Vec<Sender<Parcel<M>>>,
    receiver: Receiver<Parcel<M>>,
}

/// One exchange per executor.
pub(super) fn connect<M: Model>(executors: usize, shards: usize, cores: usize) -> Vec<Exchange<M>> {
    let gate = Arc::new(Gate::new(executors, shards, cores));
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..executors)
        .map(|_| crossbeam_channel::unbounded())
        .unzip();
    receivers
        .into_iter()
        .enumerate()
        .map(|(executor, receiver)| Exchange {
            executor,
            gate: gate.clone(),
            senders: senders.clone(),
            receiver,
        })
        .collect()
}

/// Dropped before its slice is done, for whatever reason, it frees the executors that wait at the gate.
struct Lifeline(Option<Arc<Gate>>);

impl Drop for Lifeline {
    fn drop(&mut self) {
        if let Some(gate) = self.0.take() {
            gate.break_up();
        }
    }
}

/// The message an executor is sent.
pub(super) struct Slice<M: Model> {
    shards: Vec<Shard<M>>,
    terms: Terms,
    exchange: Option<Exchange<M>>,
    reply: Sender<Done<M>>,
    lifeline: Lifeline,
}

/// What it gives back.
pub(super) struct Done<M: Model> {
    pub shards: Vec<Shard<M>>,
    pub tally: Tally,
}

impl<M: Model> Slice<M> {
    pub fn new(
        shards: Vec<Shard<M>>,
        terms: Terms,
        exchange: Option<Exchange<M>>,
        reply: Sender<Done<M>>,
    ) -> Self {
        let lifeline = Lifeline(exchange.as_ref().map(|e| e.gate.clone()));
        Self {
            shards,
            terms,
            exchange,
            reply,
            lifeline,
        }
    }
}

impl<M: Model> actix::Message for Slice<M> {
    type Result = ();
}

pub(super) struct Executor;

impl actix::Actor for Executor {
    type Context = actix::Context<Self>;
}

impl<M: Model> actix::Handler<Slice<M>> for Executor {
    type Result = ();

    fn handle(&mut self, slice: Slice<M>, _: &mut Self::Context) {
        let Slice {
            mut shards,
            terms,
            exchange,
            reply,
            mut lifeline,
        } = slice;
        let _span =
            tracing::debug_span!("slice", shards = shards.len(), spread = exchange.is_some())
                .entered();
        let tally = match exchange {
            None => run_alone(&mut shards, &terms),
            Some(exchange) => run_spread(&mut shards, &terms, &exchange),
        };
        tracing::debug!(
            windows = tally.windows,
            events = tally.events,
            done = tally.done,
            "slice ends"
        );
        lifeline.0 = None;
        // Nobody listens when the simulation was dropped: then nobody misses the shards.
        let _ = reply.send(Done { shards, tally });
    }
}

/// How far each shard may go, given how early the shards can send: up to the others' earliest message, and up to
/// the answer to its own.
struct Bounds {
    first: Ps,
    first_shard: usize,
    second: Ps,
}

impl Bounds {
    fn of(reaches: impl Iterator<Item = (usize, Ps)>) -> Self {
        let mut bounds = Self {
            first: Ps::MAX,
            first_shard: usize::MAX,
            second: Ps::MAX,
        };
        for (shard, reach) in reaches {
            if reach < bounds.first || bounds.first_shard == usize::MAX {
                bounds.second = bounds.first;
                (bounds.first, bounds.first_shard) = (reach, shard);
            } else {
                bounds.second = bounds.second.min(reach);
            }
        }
        bounds
    }

    fn bound(&self, shard: usize, lookahead_least: Ps) -> Ps {
        if shard == self.first_shard {
            self.second.min(self.first.saturating_add(lookahead_least))
        } else {
            self.first
        }
    }
}

/// Where these shards end: at `until`, or at the first fault among them.
#[inline]
fn limit<M: Model>(shards: &[Shard<M>], until: Ps) -> Ps {
    shards
        .iter()
        .filter_map(|s| s.core.fault_limit())
        .fold(until, Ps::min)
}

/// All shards on this thread.
fn run_alone<M: Model>(shards: &mut [Shard<M>], terms: &Terms) -> Tally {
    let mut tally = Tally::default();
    let (mut windows_unseen, mut events_unseen) = (0, 0);
    let mut loads = vec![0u64; terms.spread];
    loop {
        let mut next = Ps::MAX;
        let bounds = Bounds::of(shards.iter_mut().enumerate().map(|(i, s)| {
            let (earliest, reach) = s.core.horizon();
            next = next.min(earliest);
            (i, reach)
        }));
        let limit = limit(shards, terms.until);
        if next >= limit {
            tally.done = true;
            return tally;
        }
        let mut events = 0;
        if let [shard] = shards {
            events = shard.run(limit, EVENTS_PER_LOOK);
        } else {
            loads.fill(0);
            for (i, shard) in shards.iter_mut().enumerate() {
                let bound = bounds.bound(i, shard.core.lookahead_least()).min(limit);
                let n = shard.run(bound, EVENTS_PER_WINDOW);
                loads[i % terms.spread] += n;
                events += n;
            }
            tally.critical += loads.iter().copied().max().unwrap_or(0);
            for i in 0..shards.len() {
                if shards[i].core.dirty {
                    exchange_alone(shards, i, terms.transport);
                }
            }
        }
        tally.windows += 1;
        tally.events += events;
        windows_unseen += 1;
        events_unseen += events;
        if events_unseen >= EVENTS_PER_LOOK || windows_unseen >= WINDOWS_PER_LOOK {
            (windows_unseen, events_unseen) = (0, 0);
            if Instant::now() >= terms.deadline {
                return tally;
            }
        }
    }
}

/// Delivers what shard `from` has for the others.
fn exchange_alone<M: Model>(shards: &mut [Shard<M>], from: usize, transport: Transport) {
    shards[from].core.dirty = false;
    for to in 0..shards.len() {
        if shards[from].core.outboxes[to].batch.is_empty() {
            continue;
        }
        let mut outbox = std::mem::take(&mut shards[from].core.outboxes[to]);
        match transport {
            Transport::Memory => {
                shards[to].deliver(&mut outbox.batch);
                // The emptied vectors go back to be filled again.
                shards[from].core.outboxes[to].batch = outbox.batch;
            }
            Transport::Bytes => match codec::encode(&outbox.batch) {
                Ok(bytes) => deliver_bytes(&mut shards[to], &bytes),
                Err(e) => shards[from].raise(Fault::Codec(e)),
            },
        }
    }
}

fn deliver_bytes<M: Model>(shard: &mut Shard<M>, bytes: &[u8]) {
    match codec::decode::<BatchOf<M>>(bytes) {
        Ok(mut batch) => shard.deliver(&mut batch),
        Err(e) => shard.raise(Fault::Codec(e)),
    }
}

/// The shards of this executor, in step with those of the others.
fn run_spread<M: Model>(shards: &mut [Shard<M>], terms: &Terms, exchange: &Exchange<M>) -> Tally {
    let mut tally = Tally::default();
    let gate = &*exchange.gate;
    let (me, executors) = (exchange.executor, exchange.senders.len());
    let all_shards = shards.first().map_or(0, |s| s.core.outboxes.len());
    let mut early: Vec<Parcel<M>> = Vec::new();
    // What this executor sent in the window before the barrier.
    let (mut sent_next, mut sent_reach) = (Ps::MAX, Ps::MAX);
    for epoch in 1u64.. {
        let mut next = sent_next;
        for shard in shards.iter_mut() {
            let (earliest, reach) = shard.core.horizon();
            next = next.min(earliest);
            gate.set_reach(usize::from(shard.core.id), epoch, reach);
        }
        // At least one window is run, however short the slice.
        let stop = me == 0 && epoch > 1 && Instant::now() >= terms.deadline;
        let said = Agreed {
            next,
            flight: sent_reach,
            limit: limit(shards, terms.until),
            stop,
        };
        let Ok(agreed) = gate.meet(me, epoch, said) else {
            tally.broken = true;
            return tally;
        };
        // Everything sent before the barrier is here; what a faster executor sent after it waits for the next.
        for parcel in std::mem::take(&mut early)
            .into_iter()
            .chain(exchange.receiver.try_iter())
        {
            if parcel.epoch >= epoch {
                early.push(parcel);
                continue;
            }
            if let Some(shard) = shards
                .iter_mut()
                .find(|s| usize::from(s.core.id) == parcel.shard)
            {
                match parcel.batch {
                    Payload::Values(mut batch) => shard.deliver(&mut batch),
                    Payload::Bytes(bytes) => deliver_bytes(shard, &bytes),
                }
            }
        }
        if agreed.next >= agreed.limit {
            tally.done = true;
            return tally;
        }
        if agreed.next >= agreed.limit {
            tally.done = true;
            return tally;
        }
        if agreed.stop {
            return tally;
        }
        let bounds = Bounds::of((0..all_shards).map(|s| (s, gate.reach(s, epoch))));
        let started = Instant::now();
        let mut events = 0;
        for shard in shards.iter_mut() {
            let id = usize::from(shard.core.id);
            let bound = bounds
                .bound(id, shard.core.lookahead_least())
                .min(agreed.flight)
                .min(agreed.limit);
            events += shard.run(bound, EVENTS_PER_WINDOW);
        }
        tracing::trace!(epoch, events, "window");
        (sent_next, sent_reach) = (Ps::MAX, Ps::MAX);
        for i in 0..shards.len() {
            if !std::mem::take(&mut shards[i].core.dirty) {
                continue;
            }
            for to in 0..all_shards {
                if shards[i].core.outboxes[to].batch.is_empty() {
                    continue;
                }
                let mut outbox = std::mem::take(&mut shards[i].core.outboxes[to]);
                if to % executors == me {
                    if let Some(shard) = shards.iter_mut().find(|s| usize::from(s.core.id) == to) {
                        match terms.transport {
                            Transport::Memory => shard.deliver(&mut outbox.batch),
                            Transport::Bytes => match codec::encode(&outbox.batch) {
                                Ok(bytes) => deliver_bytes(shard, &bytes),
                                Err(e) => shard.raise(Fault::Codec(e)),
                            },
                        }
                    }
                    continue;
                }
                sent_next = sent_next.min(outbox.next_ps);
                sent_reach = sent_reach.min(outbox.reach_ps);
                let batch = match terms.transport {
                    Transport::Memory => Payload::Values(outbox.batch),
                    Transport::Bytes => match codec::encode(&outbox.batch) {
                        Ok(bytes) => Payload::Bytes(bytes),
                        Err(e) => {
                            shards[i].raise(Fault::Codec(e));
                            continue;
                        }
                    },
                };
                if exchange.senders[to % executors]
                    .send(Parcel {
                        epoch,
                        shard: to,
                        batch,
                    })
                    .is_err()
                {
                    // The receiver is gone with its executor; the gate will say so.
                    gate.break_up();
                }
            }
        }
        tally.busy_ns += started.elapsed().as_nanos() as u64;
        tally.windows += 1;
        tally.events += events;
    }
    tally
}
