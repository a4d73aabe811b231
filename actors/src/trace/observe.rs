//! How actors say what they do: one call says it to the report, to the actor's own meter, and to the trace.

use super::{Counter, Mark, Place, Record, Stage, What};
use crate::env::Env;
use crate::experts::SlotUse;
use crate::layout::Role;
use crate::meter::Meter;
use crate::request::ID;
use crate::runtime::Actor;
use crate::time::Ps;

impl Env<'_, '_> {
    /// The meter of the actor that handles the message.
    pub fn meter(&mut self) -> &mut Meter {
        let me = self.ctx.me();
        &mut self.meters[me as usize]
    }

    /// This die's stage of a layer lasts from `start_ps` to `end_ps`; `a` and `b` as `What::Stage` has them.
    #[inline]
    pub fn stage(&mut self, stage: Stage, start_ps: Ps, end_ps: Ps, place: Place, a: u64, b: u64) {
        let ps = end_ps - start_ps;
        let layers = if stage.is_decode() {
            &mut self.tally.decode_layers
        } else {
            &mut self.tally.prefill_layers
        };
        let step = match self.shared.layout.roles[self.ctx.me() as usize] {
            // All steps are simulated, so none stands for others.
            _ if self.shared.message_level() => (0, 0),
            Role::Idle => (0, 0),
            Role::Prefill { group, .. } | Role::Decode { group, .. } => (group, place.run),
        };
        layers.stage(step, stage, ps);
        self.meter().stage(stage, ps, place.parts);
        self.span(What::Stage(stage), start_ps, end_ps, place, a, b);
    }

    /// A span on the track of the actor that handles the message.
    #[inline]
    pub fn span(&mut self, what: What, start_ps: Ps, end_ps: Ps, place: Place, a: u64, b: u64) {
        let me = self.ctx.me();
        self.span_of(me, what, start_ps, end_ps, place, a, b);
    }

    /// A span on the track of another actor of the same node: one of its links.
    #[inline]
    #[expect(clippy::too_many_arguments, reason = "the fields of one record")]
    pub fn span_of(
        &mut self,
        actor: Actor,
        what: What,
        start_ps: Ps,
        end_ps: Ps,
        place: Place,
        a: u64,
        b: u64,
    ) {
        if self.trace.is_on() {
            self.trace.span(Record {
                at_ps: self.ctx.now(),
                start_ps,
                end_ps,
                actor,
                what,
                place,
                a,
                b,
            });
        }
    }

    /// Bytes to (`out`) or from another node, on the L1-L2 links of this actor's; counted only if somebody asks.
    pub fn across_uplinks(
        &mut self,
        out: bool,
        start_ps: Ps,
        end_ps: Ps,
        bytes: impl FnOnce(&Self) -> u64,
    ) {
        let shared = self.shared;
        let first = shared.machine.uplink(shared.node_of(self.ctx.me()), 0, 0).0;
        if !self.trace.wants(first) {
            return;
        }
        let bytes = bytes(self);
        if bytes > 0 {
            let (what, place) = (What::Uplinks, Place::default());
            self.span_of(first, what, start_ps, end_ps, place, bytes, out.into());
        }
    }

    /// A request has come to `mark`, at this actor.
    #[inline]
    pub fn mark(&mut self, mark: Mark, request: u64, b: u64) {
        self.mark_at(self.ctx.now(), mark, request, b);
    }

    /// The same, at an earlier time that nobody has looked at yet.
    #[inline]
    pub fn mark_at(&mut self, at_ps: Ps, mark: Mark, request: u64, b: u64) {
        let (now, me) = (self.ctx.now(), self.ctx.me());
        self.trace.mark(now, at_ps, me, mark, request & ID, b);
    }

    /// A count of this actor's from now on.
    #[inline]
    pub fn counter(&mut self, counter: Counter, value: u64) {
        self.counter_from(self.ctx.now(), counter, value);
    }

    /// A count of this actor's from an earlier time on that nobody has looked at yet.
    #[inline]
    pub fn counter_from(&mut self, from_ps: Ps, counter: Counter, value: u64) {
        let place = Place::default();
        self.span(What::Counter(counter), from_ps, from_ps, place, value, 0);
    }
}

impl Env<'_, '_> {
    /// Who this rank waited for in a phase that was complete at `complete_ps`: the die whose flag came last, or the own
    /// lanes if data was queueing there after the last flag; plus 1, and when the wait was over. (0, 0) when nobody
    /// asks.
    pub fn waited_for(
        &self,
        board: u16,
        rank: u16,
        channel: u8,
        phase: u32,
        complete_ps: Ps,
    ) -> (u64, u64) {
        let me = self.ctx.me();
        if !self.trace.wants(me) {
            return (0, 0);
        }
        let shared = self.shared;
        if complete_ps > self.ctx.now() {
            let lane = shared.machine.die_lane(shared.die_index(me), 0);
            return (u64::from(lane.0) + 1, complete_ps);
        }
        let source = self.fabric.boards[board as usize].last_flag_from(channel, phase, rank);
        let die = shared.layout.group_of_board(board).dies[source as usize];
        (u64::from(shared.die_actor(die)) + 1, complete_ps)
    }

    /// The expert that got most tokens of those that `uses` says are in the slots of this rank, with `per_slot` tokens by
    /// slot; and those tokens, with the tokens of all slots in the high half. A shared expert is one past the routed
    /// ones. (0, 0) when nobody asks.
    pub fn busiest_expert(&self, uses: &[SlotUse], per_slot: &[u32]) -> (u64, u64) {
        if !self.trace.wants(self.ctx.me()) {
            return (0, 0);
        }
        let slots = uses.iter().zip(per_slot);
        let most = slots.max_by_key(|(what, n)| (**n, std::cmp::Reverse(**what)));
        let Some((what, &most)) = most else {
            return (0, 0);
        };
        let expert = match *what {
            SlotUse::Routed(e) => u64::from(e),
            SlotUse::Shared | SlotUse::Empty => u64::from(self.shared.model.routed_experts),
        };
        let all: u32 = per_slot.iter().sum();
        (expert, (u64::from(all) << 32) | u64::from(most))
    }
}
