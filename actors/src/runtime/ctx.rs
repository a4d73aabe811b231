//! What a model may do while it handles an event: look at the clock, send, schedule, draw random numbers, give up.

use super::fault::Fault;
use super::rng::Rng;
use super::shard::Core;
use super::{Actor, Model, queue};
use crate::time::Ps;

/// Handed to [`Model::handle`] and [`Model::absorb`].
pub struct Ctx<'a, M: Model> {
    pub(super) core: &'a mut Core<M>,
    pub(super) now: Ps,
    pub(super) me: Actor,
    /// Nothing caused here reaches another shard before this time.
    pub(super) promise: Ps,
    pub(super) absorbing: bool,
}

impl<M: Model> Ctx<'_, M> {
    /// Virtual time; while absorbing, the time at which the bulk was sent.
    #[inline]
    pub fn now(&self) -> Ps {
        self.now
    }

    /// The actor that handles the event; while absorbing, the one that sent the bulk.
    #[inline]
    pub fn me(&self) -> Actor {
        self.me
    }

    /// The place of the event being handled among those that its source has sent.
    #[inline]
    pub fn event_seq(&self) -> u64 {
        queue::sequence(self.core.current_order())
    }

    /// The same of what this actor sends next.
    #[inline]
    pub fn next_seq(&self) -> u64 {
        queue::sequence(self.core.actors[self.me as usize].next)
    }

    #[inline(always)]
    pub fn send_in(&mut self, delay: Ps, to: Actor, msg: M::Msg) {
        // A sum that wraps lies in the past and is refused as such.
        self.send_at(self.now.wrapping_add(delay), to, msg);
    }

    #[inline(always)]
    pub fn send_at(&mut self, time: Ps, to: Actor, msg: M::Msg) {
        assert!(
            !self.absorbing,
            "absorb may only schedule with an explicit key, not send"
        );
        let state = &mut self.core.actors[self.me as usize];
        let order = state.next;
        state.next += 1;
        self.core
            .post(self.now, self.me, self.promise, time, order, to, msg);
    }

    /// Sends with an explicit place in the order: among events of equal time and source, by `seq` (below 2^40).
    /// Sequence numbers used by [`Ctx::send_at`] count up from 0 for each actor; a key that occurs twice at one actor
    /// leaves the order open.
    #[inline]
    pub fn schedule(&mut self, time: Ps, src: Actor, seq: u64, to: Actor, msg: M::Msg) {
        if self.absorbing {
            assert!(
                self.core.owner.get(to as usize) == Some(&self.core.id),
                "absorb may only schedule events of its own shard, not of actor {to}"
            );
            if time < self.promise {
                let key = self.core.keep(time, queue::order(src, seq), to, msg);
                return self.core.early(self.me, self.now, self.promise, key);
            }
        }
        self.core.post(
            self.now,
            self.me,
            self.promise,
            time,
            queue::order(src, seq),
            to,
            msg,
        );
    }

    /// Sends a bulk to a shard: absorbed right after this event on the own one, with the next exchange on another.
    /// It may cause events from `now` + the lookahead of this event's class on.
    #[inline]
    pub fn bulk(&mut self, shard: usize, bulk: M::Bulk) {
        assert!(!self.absorbing, "absorb may only schedule, not send bulks");
        self.core.bulk(self.now, self.me, self.promise, shard, bulk);
    }

    #[inline]
    pub fn shard(&self) -> usize {
        usize::from(self.core.id)
    }

    #[inline]
    pub fn shards(&self) -> usize {
        self.core.outboxes.len()
    }

    #[inline]
    pub fn shard_of(&self, actor: Actor) -> usize {
        usize::from(self.core.owner[actor as usize])
    }

    /// The same for another actor of this shard: what is sent and drawn through it is that actor's.
    ///
    /// # Panics
    /// When that actor lives on another shard.
    #[inline]
    pub fn of(&mut self, actor: Actor) -> Ctx<'_, M> {
        self.assert_own(actor);
        Ctx {
            core: self.core,
            now: self.now,
            me: actor,
            promise: self.promise,
            absorbing: self.absorbing,
        }
    }

    #[inline]
    fn assert_own(&self, actor: Actor) {
        assert!(
            self.core.owner[actor as usize] == self.core.id,
            "actor {actor} belongs to another shard"
        );
    }

    /// The random stream of the actor that handles the event.
    #[inline]
    pub fn rng(&mut self) -> &mut Rng {
        self.rng_of(self.me)
    }

    /// The random stream of another actor of this shard.
    #[inline]
    pub fn rng_of(&mut self, actor: Actor) -> &mut Rng {
        assert!(
            !self.absorbing,
            "absorb must not draw random numbers: bulks come in any order"
        );
        self.assert_own(actor);
        &mut self.core.actors[actor as usize].rng
    }

    /// Ends the run with an error that names this actor and the time.
    #[cold]
    pub fn fail(&mut self, error: impl std::fmt::Display) {
        let text = error.to_string();
        self.core.raise(Fault::Failed {
            actor: self.me,
            time_ps: self.now,
            text,
        });
    }
}
