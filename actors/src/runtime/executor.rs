//! Executors: actix actors on arbiters of their own. An executor is sent the shards it is to run for one slice of
//! wall time, and gives them back at a window boundary.

use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Sender;

use super::bounds::{Bounds, limit};
use super::exchange::Payload;
use super::gate::Gate;
use super::shard::Shard;
use super::spread::{Exchange, run_spread};
use super::{Model, Transport};
use crate::time::Ps;

/// Events of one shard between two looks at the clock: about a millisecond.
const EVENTS_PER_LOOK: u64 = 16_384;
/// Windows between two looks at the clock when they are nearly empty.
const WINDOWS_PER_LOOK: u64 = 64;
/// Events that a shard may handle in one window before the others go on: a window that never ends must not keep a
/// run from being stopped. Any point of a shard's order is a window boundary for it.
pub(super) const EVENTS_PER_WINDOW: u64 = 262_144;

/// The terms of one slice.
#[derive(Clone, Copy)]
pub(super) struct Terms {
    /// Events at this time or later are left alone.
    pub until: Ps,
    pub deadline: Instant,
    pub transport: Transport,
    /// Events between two words of a shard to the other, where there are two.
    pub events_per_word: u64,
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
        let mut batch = std::mem::take(&mut shards[from].core.outboxes[to]).batch;
        if transport == Transport::Memory {
            shards[to].deliver(&mut batch);
            // The emptied vectors go back to be filled again.
            shards[from].core.outboxes[to].batch = batch;
            continue;
        }
        match Payload::pack(batch, transport) {
            Ok(payload) => payload.unpack(&mut shards[to]),
            Err(fault) => shards[from].raise(fault),
        }
    }
}
