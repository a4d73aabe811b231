//! The shards of one executor, in step with those of others. All executors meet at a barrier and agree how far each
//! shard may go: a window. Where there are two shards, each on an executor of its own, a window does not end there:
//! each tells the other how far it has come (see [`Lead`]) and goes on for as long as that lets it. With more, what is
//! under way between two of them would have to be known to a third.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender};

use super::Model;
use super::bounds::{Bounds, limit};
use super::exchange::Payload;
use super::executor::{EVENTS_PER_WINDOW, Tally, Terms};
use super::gate::{Agreed, Gate};
use super::lead::{Lead, Said};
use super::shard::Shard;
use crate::time::Ps;

/// Words between two looks at the clock.
const WORDS_PER_LOOK: u64 = 16;

/// A batch for one shard.
struct Parcel<M: Model> {
    shard: usize,
    payload: Payload<M>,
}

/// Connects the executors of one slice.
pub(super) struct Exchange<M: Model> {
    pub gate: Arc<Gate>,
    leads: Arc<[Lead]>,
    executor: usize,
    senders: Vec<Sender<Parcel<M>>>,
    receiver: Receiver<Parcel<M>>,
}

/// One exchange per executor.
pub(super) fn connect<M: Model>(executors: usize, shards: usize, cores: usize) -> Vec<Exchange<M>> {
    let gate = Arc::new(Gate::new(executors, shards, cores));
    let leads: Arc<[Lead]> = (0..executors).map(|_| Lead::default()).collect();
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..executors)
        .map(|_| crossbeam_channel::unbounded())
        .unzip();
    receivers
        .into_iter()
        .enumerate()
        .map(|(executor, receiver)| Exchange {
            gate: gate.clone(),
            leads: leads.clone(),
            executor,
            senders: senders.clone(),
            receiver,
        })
        .collect()
}

/// A parcel whose receiver has not said yet that it has taken it.
struct UnderWay {
    /// The earliest event in it, or that its bulks may cause.
    next: Ps,
    /// The earliest time at which it can make its receiver send on.
    reach: Ps,
}

/// What is under way together.
fn earliest<'a>(parcels: impl IntoIterator<Item = &'a UnderWay>) -> UnderWay {
    let none = UnderWay {
        next: Ps::MAX,
        reach: Ps::MAX,
    };
    parcels.into_iter().fold(none, |least, parcel| UnderWay {
        next: least.next.min(parcel.next),
        reach: least.reach.min(parcel.reach),
    })
}

/// An executor's side of a slice.
struct Side<'a, M: Model> {
    shards: &'a mut [Shard<M>],
    terms: &'a Terms,
    exchange: &'a Exchange<M>,
    /// Shards of all executors.
    all_shards: usize,
    under_way: VecDeque<UnderWay>,
    /// Parcels that the other of two shards has taken, as far as it said.
    taken_by_other: u64,
    /// Parcels taken from others.
    taken: u64,
    tally: Tally,
}

/// Runs the shards until the slice ends for all executors.
pub(super) fn run_spread<M: Model>(
    shards: &mut [Shard<M>],
    terms: &Terms,
    exchange: &Exchange<M>,
) -> Tally {
    let all_shards = shards.first().map_or(0, |s| s.core.outboxes.len());
    let mut side = Side {
        shards,
        terms,
        exchange,
        all_shards,
        under_way: VecDeque::new(),
        taken_by_other: 0,
        taken: 0,
        tally: Tally::default(),
    };
    side.run();
    side.tally
}

impl<M: Model> Side<'_, M> {
    fn run(&mut self) {
        let exchange = self.exchange;
        let gate = &*exchange.gate;
        let pair = self.all_shards == 2 && exchange.senders.len() == 2;
        for epoch in 1u64.. {
            if pair {
                self.forget_taken();
            }
            let said = self.part(epoch);
            let Ok(agreed) = gate.meet(exchange.executor, epoch, said) else {
                self.tally.broken = true;
                return;
            };
            // Everything sent before the barrier is here.
            self.take_in();
            if agreed.next >= agreed.limit {
                self.tally.done = true;
                return;
            }
            if agreed.stop {
                return;
            }
            let started = Instant::now();
            let bounds = Bounds::of((0..self.all_shards).map(|s| (s, gate.reach(s, epoch))));
            let most = agreed.flight.min(agreed.limit);
            let events = self.tally.events;
            let idle_ns = if pair {
                let shard = &self.shards[0].core;
                let bound = bounds.bound(shard.id.into(), shard.lookahead_least());
                self.run_on(epoch, bound.min(most), agreed.limit)
            } else {
                // Taken by the time of the next window.
                self.under_way.clear();
                self.run_window(&bounds, most);
                0
            };
            tracing::trace!(epoch, events = self.tally.events - events, "window");
            self.tally.busy_ns += (started.elapsed().as_nanos() as u64).saturating_sub(idle_ns);
            self.tally.windows += 1;
        }
    }

    /// What this executor says at a barrier.
    fn part(&self, epoch: u64) -> Agreed {
        let gate = &self.exchange.gate;
        let under_way = earliest(&self.under_way);
        let mut next = under_way.next;
        for shard in &*self.shards {
            let (earliest, reach) = shard.core.horizon();
            next = next.min(earliest);
            gate.set_reach(usize::from(shard.core.id), epoch, reach);
        }
        Agreed {
            next,
            flight: under_way.reach,
            limit: limit(self.shards, self.terms.until),
            // At least one window is run, however short the slice.
            stop: epoch > 1 && self.is_over(),
        }
    }

    /// Whether the slice is to end: one executor looks at the clock for all.
    fn is_over(&self) -> bool {
        self.exchange.executor == 0 && Instant::now() >= self.terms.deadline
    }

    /// Delivers what has come.
    fn take_in(&mut self) {
        while let Ok(Parcel { shard: to, payload }) = self.exchange.receiver.try_recv() {
            self.taken += 1;
            let mut shards = self.shards.iter_mut();
            if let Some(shard) = shards.find(|s| usize::from(s.core.id) == to) {
                payload.unpack(shard);
            }
        }
    }

    /// Runs every shard up to its bound.
    fn run_window(&mut self, bounds: &Bounds, most: Ps) {
        for i in 0..self.shards.len() {
            let shard = &mut self.shards[i];
            let bound = bounds.bound(shard.core.id.into(), shard.core.lookahead_least());
            self.tally.events += shard.run(bound.min(most), EVENTS_PER_WINDOW);
        }
        for i in 0..self.shards.len() {
            self.send_off(i);
        }
    }

    /// Sends what shard `i` of this executor has for others.
    fn send_off(&mut self, i: usize) {
        if !std::mem::take(&mut self.shards[i].core.dirty) {
            return;
        }
        let executors = self.exchange.senders.len();
        for to in 0..self.all_shards {
            if self.shards[i].core.outboxes[to].batch.is_empty() {
                continue;
            }
            let outbox = std::mem::take(&mut self.shards[i].core.outboxes[to]);
            let payload = match Payload::pack(outbox.batch, self.terms.transport) {
                Ok(payload) => payload,
                Err(fault) => {
                    self.shards[i].raise(fault);
                    continue;
                }
            };
            if to % executors == self.exchange.executor {
                let mut shards = self.shards.iter_mut();
                if let Some(shard) = shards.find(|s| usize::from(s.core.id) == to) {
                    payload.unpack(shard);
                }
                continue;
            }
            self.under_way.push_back(UnderWay {
                next: outbox.next_ps,
                reach: outbox.reach_ps,
            });
            let parcel = Parcel { shard: to, payload };
            if self.exchange.senders[to % executors].send(parcel).is_err() {
                // The receiver is gone with its executor; the gate will say so.
                self.exchange.gate.break_up();
            }
        }
    }

    /// Of two shards, runs this one up to `bound`, and on for as long as the other's words let it. Returns the wall
    /// time in which it could not, in nanoseconds.
    fn run_on(&mut self, epoch: u64, mut bound: Ps, limit: Ps) -> u64 {
        let (mut words, mut idle_ns) = (0u64, 0);
        loop {
            let events = self.shards[0].run(bound, self.terms.events_per_word);
            self.tally.events += events;
            self.send_off(0);
            if self.shards[0].core.fault_limit().is_some() {
                return idle_ns;
            }
            self.say();
            words += 1;
            if words.is_multiple_of(WORDS_PER_LOOK) && (self.other_waits(epoch) || self.is_over()) {
                return idle_ns;
            }
            if events == self.terms.events_per_word {
                continue;
            }
            let stopped = Instant::now();
            let further = self.wait_for_more(epoch, limit);
            idle_ns += stopped.elapsed().as_nanos() as u64;
            match further {
                Some(further) => bound = further,
                None => return idle_ns,
            }
        }
    }

    /// Whether the other of two executors has come to the barrier after `epoch`.
    fn other_waits(&self, epoch: u64) -> bool {
        let exchange = self.exchange;
        exchange.gate.has_come(1 - exchange.executor, epoch + 1)
    }

    /// Tells the other shard how far this one has come.
    fn say(&self) {
        self.exchange.leads[self.exchange.executor].say(Said {
            reach: self.shards[0].core.horizon().1,
            taken: self.taken,
        });
    }

    /// Waits until the other shard has come so far that this one has something to do, and returns its new bound;
    /// `None` when that is not to be, before a barrier.
    fn wait_for_more(&mut self, epoch: u64, limit: Ps) -> Option<Ps> {
        let exchange = self.exchange;
        let (own, other) = (
            &exchange.leads[exchange.executor],
            &exchange.leads[1 - exchange.executor],
        );
        let mut patience = exchange.gate.patience();
        loop {
            // In this order: what the other said before it stopped is its last word.
            let gave_up = other.stuck_with() == own.version() || self.other_waits(epoch);
            let (version, bound) = self.further(limit);
            let next = self.shards[0].core.horizon().0;
            if next < bound {
                own.set_stuck(0);
                return Some(bound);
            }
            if gave_up || next >= limit {
                return None;
            }
            own.set_stuck(version);
            if patience.wait().is_err() {
                return None;
            }
        }
    }

    /// Reads the other's words, with their version, and how far they let this shard go.
    fn further(&mut self, limit: Ps) -> (u64, Ps) {
        let exchange = self.exchange;
        let (version, said) = exchange.leads[1 - exchange.executor].read();
        // What it sent before it said so is here.
        let taken = self.taken;
        self.take_in();
        self.forget(said.taken);
        // A shard that has stopped at a fault has no more to say.
        if self.taken != taken && self.shards[0].core.fault_limit().is_none() {
            self.say();
        }
        let core = &self.shards[0].core;
        // The other's own doings, what it does not know yet, and its answers to what this shard may do now.
        let answers = core.horizon().1.saturating_add(core.lookahead_least());
        let reach = said.reach.min(earliest(&self.under_way).reach);
        (version, reach.min(answers).min(limit))
    }

    /// Drops what the other shard has taken, by its last word.
    fn forget_taken(&mut self) {
        let (_, said) = self.exchange.leads[1 - self.exchange.executor].read();
        self.forget(said.taken);
    }

    fn forget(&mut self, taken: u64) {
        let gone = taken - self.taken_by_other;
        self.under_way.drain(..gone as usize);
        self.taken_by_other = taken;
    }
}
