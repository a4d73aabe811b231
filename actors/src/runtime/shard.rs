//! A shard: the models' half of the state and the runtime's half (queues, mailboxes, sequence numbers, random
//! streams, digests, outboxes). Plain data that is moved from thread to thread between slices.

use std::fmt::Debug;
use std::sync::Arc;

use super::ctx::Ctx;
use super::exchange::{BatchOf, Crossing, Outbox, Sent};
use super::fault::Fault;
use super::profile::Profile;
use super::queue::{self, Key, Queue};
use super::rng::{Rng, fold};
use super::slab::Slab;
use super::{Actor, Model, OUTSIDE, RuntimeConfig, RuntimeError, panics};
use crate::time::Ps;

/// What the runtime keeps for each actor: half a cache line.
pub(super) struct ActorState {
    digest: u64,
    pub rng: Rng,
    /// Place in the order of what it sends next, see [`queue::order`].
    pub next: u64,
    pending: u32,
    /// The shard it lives on.
    pub owner: u16,
}

/// The Debug form of a message, bounded, and safe against a Debug that panics.
fn show(value: &impl Debug) -> String {
    const CHARS_MAX: usize = 400;
    let full = panics::catch(|| format!("{value:?}"))
        .unwrap_or_else(|_| "a message that cannot be shown".into());
    if full.chars().count() <= CHARS_MAX {
        return full;
    }
    full.chars().take(CHARS_MAX).chain("...".chars()).collect()
}

/// The runtime's half of a shard.
pub(super) struct Core<M: Model> {
    pub id: u16,
    pub owner: Arc<[u16]>,
    lookahead: Arc<[Ps]>,
    lookahead_least: Ps,
    mailbox_limit: u32,
    /// One queue per class, so that the earliest event of each is at hand; a single one when there is no other shard
    /// that would have to know.
    queue: Queue,
    more_queues: Vec<Queue>,
    slab: Slab<M::Msg>,
    /// Of all actors of the machine, by id; only the own ones are ever touched.
    pub actors: Vec<ActorState>,
    pub outboxes: Vec<Outbox<M>>,
    /// Whether any outbox holds something.
    pub dirty: bool,
    own_bulks: Vec<Sent<M::Bulk>>,
    fault: Option<Box<(Key, Fault)>>,
    /// The event being handled.
    current: Key,
    /// The event that sent the bulk being absorbed.
    absorbing: Option<Key>,
    pub events: u64,
    pub profile: Option<Box<Profile>>,
}

impl<M: Model> Core<M> {
    pub fn new(id: u16, config: &RuntimeConfig, lookahead: &Arc<[Ps]>) -> Self {
        let actor = |a: usize| ActorState {
            digest: 0,
            rng: Rng::new(config.seed, a as u64),
            next: queue::order(a as Actor, 0),
            pending: 0,
            owner: config.owner[a],
        };
        let queues = if config.shards == 1 {
            1
        } else {
            lookahead.len()
        };
        Self {
            id,
            owner: config.owner.clone(),
            lookahead: lookahead.clone(),
            lookahead_least: lookahead.iter().copied().min().unwrap_or(Ps::MAX),
            mailbox_limit: config.mailbox_limit,
            queue: Queue::new(),
            more_queues: (1..queues).map(|_| Queue::new()).collect(),
            slab: Slab::default(),
            actors: (0..config.owner.len()).map(actor).collect(),
            outboxes: (0..config.shards).map(|_| Outbox::default()).collect(),
            dirty: false,
            own_bulks: Vec::new(),
            fault: None,
            current: Key {
                time_ps: 0,
                order: 0,
                to: OUTSIDE,
                slot: u32::MAX,
            },
            absorbing: None,
            events: 0,
            profile: config
                .profile
                .then(|| Box::new(Profile::new(M::kind_names().len()))),
        }
    }

    /// Time of the last event handled.
    pub fn now(&self) -> Ps {
        self.current.time_ps
    }

    /// Source and sequence number of the event being handled.
    #[inline]
    pub fn current_order(&self) -> u64 {
        self.current.order
    }

    pub fn pending(&self) -> usize {
        let more = self.more_queues.iter().map(Queue::len);
        self.queue.len() + more.sum::<usize>()
    }

    /// Once this shard has stopped at a fault: the time after which nothing matters any more. The other shards go on
    /// until then, because an earlier fault may be waiting there.
    pub fn fault_limit(&self) -> Option<Ps> {
        self.fault.as_ref().map(|f| f.0.time_ps.saturating_add(1))
    }

    pub fn take_fault(&mut self) -> Option<(Key, Fault)> {
        self.fault.take().map(|f| *f)
    }

    /// The digest of one actor's history; 0 if it never received anything.
    pub fn digest_of(&self, actor: usize) -> u64 {
        self.actors[actor].digest
    }

    /// Stops this shard. Of several faults the first in the order of events counts.
    #[cold]
    pub fn raise(&mut self, fault: Fault) {
        let key = self.absorbing.unwrap_or(self.current);
        if self.fault.as_ref().is_none_or(|f| key < f.0) {
            self.fault = Some(Box::new((key, fault)));
        }
    }

    /// Sends one event, to this shard or another, and holds the sender to its promise.
    #[inline(always)]
    #[expect(
        clippy::too_many_arguments,
        reason = "the fields of one event and of its cause"
    )]
    pub fn post(
        &mut self,
        now: Ps,
        me: Actor,
        promise: Ps,
        time: Ps,
        order: u64,
        to: Actor,
        msg: M::Msg,
    ) {
        // The message is written once, into its slot, and looked at there if something is wrong.
        let class = M::class(&msg);
        let slot = self.slab.insert(msg);
        if time < now || time == Ps::MAX {
            return self.past(me, now, Key::new(time, order, to, slot));
        }
        let Some(state) = self.actors.get_mut(to as usize) else {
            return self.unknown(me, now, Key::new(time, order, to, slot));
        };
        let reach = time.saturating_add(self.lookahead[class]);
        if state.owner != self.id {
            let key = Key::new(time, order, to, slot);
            return self.send_off(me, now, promise, reach, key);
        }
        if reach < promise {
            return self.early(me, now, promise, Key::new(time, order, to, slot));
        }
        if state.pending >= self.mailbox_limit {
            return self.overflow(Key::new(time, order, to, slot));
        }
        state.pending += 1;
        if class == 0 || self.more_queues.is_empty() {
            self.queue.push(Key::new(time, order, to, slot));
        } else {
            self.push_more(class, Key::new(time, order, to, slot));
        }
    }

    #[inline(never)]
    fn push_more(&mut self, class: usize, key: Key) {
        self.more_queues[class - 1].push(key);
    }

    /// Puts a message into its slot.
    #[inline(always)]
    pub fn keep(&mut self, time_ps: Ps, order: u64, to: Actor, msg: M::Msg) -> Key {
        let slot = self.slab.insert(msg);
        Key::new(time_ps, order, to, slot)
    }

    /// Into the outbox for another shard.
    #[inline(never)]
    fn send_off(&mut self, me: Actor, now: Ps, promise: Ps, reach: Ps, key: Key) {
        if key.time_ps < promise {
            return self.early(me, now, promise, key);
        }
        self.dirty = true;
        let owner = self.actors[key.to as usize].owner;
        let outbox = &mut self.outboxes[usize::from(owner)];
        outbox.next_ps = outbox.next_ps.min(key.time_ps);
        outbox.reach_ps = outbox.reach_ps.min(reach);
        outbox.batch.events.push(Crossing {
            time_ps: key.time_ps,
            order: key.order,
            to: key.to,
            msg: M::take(self.slab.get_mut(key.slot)),
        });
        self.slab.free(key.slot);
    }

    /// An event from another shard.
    #[inline]
    fn enqueue(&mut self, event: Crossing<M::Msg>) {
        let class = M::class(&event.msg);
        let key = self.keep(event.time_ps, event.order, event.to, event.msg);
        if key.time_ps < self.now() {
            // No bound lets a shard so far: a bug of the runtime, which no run may get over.
            return self.past(queue::source(key.order), self.now(), key);
        }
        let state = &mut self.actors[key.to as usize];
        if state.pending >= self.mailbox_limit {
            return self.overflow(key);
        }
        state.pending += 1;
        if class == 0 {
            self.queue.push(key);
        } else {
            self.push_more(class, key);
        }
    }

    /// What a message that goes nowhere looked like.
    fn discard(&mut self, slot: u32) -> String {
        self.slab.free(slot);
        show(self.slab.get_mut(slot))
    }

    #[cold]
    #[inline(never)]
    pub fn early(&mut self, from: Actor, now: Ps, promise: Ps, key: Key) {
        let message = self.discard(key.slot);
        self.raise(Fault::Lookahead {
            from,
            to: key.to,
            message,
            time_ps: now,
            promised_ps: promise,
            arrival_ps: key.time_ps,
        });
    }

    #[cold]
    #[inline(never)]
    fn past(&mut self, from: Actor, now: Ps, key: Key) {
        let message = self.discard(key.slot);
        self.raise(Fault::Past {
            from,
            to: key.to,
            message,
            time_ps: now,
            arrival_ps: key.time_ps,
        });
    }

    #[cold]
    #[inline(never)]
    fn unknown(&mut self, from: Actor, now: Ps, key: Key) {
        let message = self.discard(key.slot);
        self.raise(Fault::UnknownActor {
            from,
            to: key.to,
            message,
            actors: self.actors.len(),
            time_ps: now,
        });
    }

    #[cold]
    #[inline(never)]
    fn overflow(&mut self, key: Key) {
        let message = self.discard(key.slot);
        let (limit, time_ps) = (self.mailbox_limit, self.now());
        self.raise(Fault::Mailbox {
            actor: key.to,
            from: queue::source(key.order),
            message,
            limit,
            time_ps,
        });
    }

    #[inline]
    pub fn bulk(&mut self, now: Ps, me: Actor, promise: Ps, shard: usize, bulk: M::Bulk) {
        let sent = Sent {
            time_ps: now,
            order: self.current.order,
            from: me,
            promise_ps: promise,
            bulk,
        };
        if shard == usize::from(self.id) {
            self.own_bulks.push(sent);
        } else {
            self.dirty = true;
            let outbox = &mut self.outboxes[shard];
            outbox.next_ps = outbox.next_ps.min(promise);
            outbox.reach_ps = outbox
                .reach_ps
                .min(promise.saturating_add(self.lookahead_least));
            outbox.batch.bulks.push(sent);
        }
    }

    /// Time of the earliest event, and the earliest time at which this shard can send to another.
    #[inline]
    pub fn horizon(&self) -> (Ps, Ps) {
        let (mut next, mut reach) = (Ps::MAX, Ps::MAX);
        if self.fault.is_some() {
            return (next, reach);
        }
        let lookahead = if self.more_queues.is_empty() {
            self.lookahead_least
        } else {
            self.lookahead[0]
        };
        let first = (&self.queue, lookahead);
        let more = self.more_queues.iter();
        let more = more.zip(self.lookahead.iter().copied().skip(1));
        for (queue, lookahead) in std::iter::once(first).chain(more) {
            if let Some(key) = queue.peek() {
                next = next.min(key.time_ps);
                reach = reach.min(key.time_ps.saturating_add(lookahead));
            }
        }
        (next, reach)
    }

    /// The least time after which a message from another shard can be answered.
    pub fn lookahead_least(&self) -> Ps {
        self.lookahead_least
    }

    /// Makes the earliest event the current one if it is before `bound`.
    #[inline(always)]
    fn advance(&mut self, bound: Ps) -> bool {
        if !self.more_queues.is_empty() {
            return self.advance_among_several(bound);
        }
        if self.queue.head().time_ps >= bound {
            return false;
        }
        self.current = self.queue.head();
        self.queue.drop_head();
        true
    }

    #[inline(never)]
    fn advance_among_several(&mut self, bound: Ps) -> bool {
        let mut least = &mut self.queue;
        for queue in &mut self.more_queues {
            if queue.head() < least.head() {
                least = queue;
            }
        }
        let Some(key) = least.pop_before(bound) else {
            return false;
        };
        self.current = key;
        true
    }
}

/// A shard on its way through an executor.
pub(super) struct Shard<M: Model> {
    pub model: M,
    pub core: Core<M>,
}

impl<M: Model> Shard<M> {
    /// Handles events before `bound`, at most `budget` of them, in order. Returns how many. Stops at a fault.
    #[inline]
    pub fn run(&mut self, bound: Ps, budget: u64) -> u64 {
        if self.core.fault.is_some() {
            return 0;
        }
        let before = self.core.events;
        let result = panics::catch(|| {
            if self.core.profile.is_some() {
                self.window::<true>(bound, budget);
            } else {
                self.window::<false>(bound, budget);
            }
        });
        if let Err(text) = result {
            self.panicked(text);
        }
        self.core.events - before
    }

    fn window<const PROFILE: bool>(&mut self, bound: Ps, budget: u64) {
        let Self { model, core } = self;

        for _ in 0..budget {
            if !core.advance(bound) {
                return;
            }
            let key = core.current;
            core.events += 1;
            let start = if PROFILE {
                core.profile.as_ref().map_or(0, |p| p.clock.raw())
            } else {
                0
            };
            let (now, me, from) = (key.time_ps, key.to, queue::source(key.order));
            let state = &mut core.actors[me as usize];
            let msg = core.slab.get_mut(key.slot);
            state.pending -= 1;
            state.digest = fold(
                state.digest ^ now.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x2d35_8dcc_aa6c_78a5,
                M::digest(msg).wrapping_add(u64::from(from) << 32) ^ 0x8bb8_4b93_962e_acc9,
            );
            let promise = now.saturating_add(core.lookahead[M::class(msg)]);
            let msg = M::take(msg);
            let mut ctx = Ctx {
                core,
                now,
                me,
                promise,
                absorbing: false,
            };
            model.handle(me, from, msg, &mut ctx);
            core.slab.free(key.slot);
            while let Some(sent) = core.own_bulks.pop() {
                absorb(model, core, sent);
            }
            if PROFILE {
                let kind = model.kind(me);
                if let Some(p) = core.profile.as_mut() {
                    p.record(kind, start);
                }
            }
            if core.fault.is_some() {
                return;
            }
        }
    }

    #[cold]
    fn panicked(&mut self, text: String) {
        let core = &mut self.core;
        let fault = match core.absorbing {
            Some(Key {
                to: actor, time_ps, ..
            }) => Fault::Panicked {
                actor,
                message: "a bulk it sent".into(),
                time_ps,
                text,
            },
            None => {
                let Key {
                    to: actor,
                    time_ps,
                    slot,
                    ..
                } = core.current;
                let message = if slot == u32::MAX {
                    "nothing".into()
                } else {
                    show(core.slab.get_mut(slot))
                };
                Fault::Panicked {
                    actor,
                    message,
                    time_ps,
                    text,
                }
            }
        };
        core.raise(fault);
        core.absorbing = None;
    }

    /// Takes in what another shard sent. Leaves the batch empty.
    pub fn deliver(&mut self, batch: &mut BatchOf<M>) {
        for event in batch.events.drain(..) {
            self.core.enqueue(event);
        }
        if batch.bulks.is_empty() {
            return;
        }
        let Self { model, core } = self;
        let result = panics::catch(|| {
            for sent in batch.bulks.drain(..) {
                absorb(model, core, sent);
            }
        });
        if let Err(text) = result {
            self.panicked(text);
        }
    }

    pub fn raise(&mut self, fault: Fault) {
        self.core.raise(fault);
    }

    /// The error that stopped this shard, with its place in the event order.
    pub fn take_error(&mut self) -> Option<(Key, RuntimeError)> {
        self.core
            .take_fault()
            .map(|(key, fault)| (key, fault.named(&self.model)))
    }
}

#[inline]
fn absorb<M: Model>(model: &mut M, core: &mut Core<M>, sent: Sent<M::Bulk>) {
    let Sent {
        time_ps,
        order,
        from,
        promise_ps,
        bulk,
    } = sent;
    core.absorbing = Some(Key {
        time_ps,
        order,
        to: from,
        slot: u32::MAX,
    });
    let mut ctx = Ctx {
        core,
        now: time_ps,
        me: from,
        promise: promise_ps,
        absorbing: true,
    };
    model.absorb(bulk, &mut ctx);
    core.absorbing = None;
}
