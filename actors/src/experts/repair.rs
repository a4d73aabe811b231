//! What becomes of a layer's plan when ranks are gone: experts that have lost their last copy find a place on those that
//! are left.

use super::{Plan, SlotUse};

/// Where lost experts may go.
#[derive(Clone, Copy, Debug, Default)]
pub struct Room {
    /// Experts a rank may hold beside those of its slots: what its memory allows.
    pub beside_max: u32,
    /// The rank that is first to take one, so that not all layers begin with the same.
    pub first: u32,
}

/// What is left while places are found.
struct Repair<'a> {
    plan: &'a Plan,
    alive: &'a dyn Fn(u32) -> bool,
    room: Room,
    uses: Vec<SlotUse>,
    slots_of: Vec<Vec<u16>>,
    shared: Vec<u16>,
    /// Unused slots, the first of them last.
    empty: Vec<u16>,
    /// By rank: experts it holds, and those of them that are beside its slots.
    held: Vec<(u32, u32)>,
    beside: Vec<(u16, SlotUse)>,
}

impl Plan {
    /// The plan without the slots of ranks that `alive` excludes. An expert that loses its last copy takes an unused slot;
    /// else that of a redundant copy, of the expert that has most; else it goes beside what the rank that holds fewest
    /// has, as far as there is `room`; and else it takes the slot of one of several shared copies. The shared expert, which
    /// all tokens go to, then gets as many copies for those that are left as it had for all, as far as that goes.
    ///
    /// # Errors
    /// The expert for which there is no place (`u32::MAX`: the shared one).
    pub fn repaired(&self, alive: &dyn Fn(u32) -> bool, room: Room) -> Result<Self, u32> {
        let live = |slot: &u16| alive(u32::from(*slot) / self.slots_per_rank);
        let of = |slots: &[u16]| slots.iter().copied().filter(live).collect::<Vec<u16>>();
        let all = 0..self.uses.len() as u16;
        let unused = |slot: &u16| self.uses[usize::from(*slot)] == SlotUse::Empty;
        let mut repair = Repair {
            plan: self,
            alive,
            room,
            uses: self.uses.clone(),
            slots_of: (0..self.experts()).map(|e| of(self.copies_of(e))).collect(),
            shared: of(&self.shared),
            empty: all.rev().filter(live).filter(unused).collect(),
            held: (0..self.ranks())
                .map(|r| (self.held_by(r) as u32, 0))
                .collect(),
            beside: Vec::new(),
        };
        // All tokens go to the shared expert: it comes first.
        if repair.shared.is_empty() && !self.shared.is_empty() {
            let slot = repair.place(SlotUse::Shared).ok_or(u32::MAX)?;
            repair.shared.push(slot);
        }
        for e in 0..repair.slots_of.len() {
            if repair.slots_of[e].is_empty() {
                let slot = repair.place(SlotUse::Routed(e as u16)).ok_or(e as u32)?;
                repair.slots_of[e].push(slot);
            }
        }
        repair.share_out(self.shared.len());
        repair.beside.sort_unstable();
        let Repair {
            uses,
            slots_of,
            shared,
            beside,
            ..
        } = repair;
        let mut plan = Self::from_slots(self.slots_per_rank, uses, slots_of, shared);
        plan.beside = beside;
        Ok(plan)
    }

    /// What a rank holds beside the experts of its slots, each with the slot that its tokens go to.
    pub fn beside_of(&self, rank: u32) -> &[(u16, SlotUse)] {
        let before = |r: u32| {
            let of_earlier = |b: &(u16, SlotUse)| u32::from(b.0) < r * self.slots_per_rank;
            self.beside.partition_point(of_earlier)
        };
        &self.beside[before(rank)..before(rank + 1)]
    }

    /// All that a rank has weights of.
    pub fn weights_of(&self, rank: u32) -> impl Iterator<Item = SlotUse> + '_ {
        let in_slots = self.uses_of(rank).iter().copied();
        let beside = self.beside_of(rank).iter().map(|b| b.1);
        in_slots.filter(|u| *u != SlotUse::Empty).chain(beside)
    }

    /// The experts of a rank with the units of each, of what its slots got: those of a slot that stands for several are
    /// taken to be as `unit` lets expect of each.
    pub fn by_expert(
        &self,
        rank: u32,
        per_slot: &[u32],
        unit: &dyn Fn(SlotUse) -> f64,
    ) -> (Vec<SlotUse>, Vec<u32>) {
        let mut uses = self.uses_of(rank).to_vec();
        let mut units = per_slot.to_vec();
        let beside = self.beside_of(rank);
        for (i, n) in per_slot.iter().enumerate() {
            let slot = (rank * self.slots_per_rank) as usize + i;
            let others = beside.iter().filter(|b| usize::from(b.0) == slot);
            let sum: f64 = unit(uses[i]) + others.clone().map(|b| unit(b.1)).sum::<f64>();
            for (_, what) in others {
                let part = if sum > 0.0 { unit(*what) / sum } else { 0.0 };
                let of_this = ((f64::from(*n) * part) as u32).min(units[i]);
                units[i] -= of_this;
                uses.push(*what);
                units.push(of_this);
            }
        }
        (uses, units)
    }
}

impl Repair<'_> {
    /// Finds a place for an expert that has none.
    fn place(&mut self, what: SlotUse) -> Option<u16> {
        self.place_free(what).or_else(|| {
            let several = self.shared.len() > 1;
            let slot = several.then(|| self.shared.pop()).flatten()?;
            self.uses[usize::from(slot)] = what;
            Some(slot)
        })
    }

    /// The same, where that takes nothing from the shared expert.
    fn place_free(&mut self, what: SlotUse) -> Option<u16> {
        let Some(slot) = self.unused().or_else(|| self.redundant()) else {
            return self.place_beside(what);
        };
        self.uses[usize::from(slot)] = what;
        Some(slot)
    }

    /// Copies of the shared expert for those that are left, of which there were `copies` for all ranks.
    fn share_out(&mut self, copies: usize) {
        let ranks = self.held.len();
        let living = (0..ranks as u32).filter(|&r| (self.alive)(r)).count();
        while self.shared.len() < copies * living / ranks.max(1) {
            let Some(slot) = self.place_free(SlotUse::Shared) else {
                return;
            };
            self.shared.push(slot);
        }
    }

    fn unused(&mut self) -> Option<u16> {
        let slot = self.empty.pop()?;
        self.held[usize::from(slot) / self.plan.slots_per_rank as usize].0 += 1;
        Some(slot)
    }

    /// The slot of a redundant copy, of the expert that has most (the first of those).
    fn redundant(&mut self) -> Option<u16> {
        let copies = |e: &usize| (self.slots_of[*e].len(), usize::MAX - e);
        let most = (0..self.slots_of.len()).max_by_key(copies)?;
        let slots = &mut self.slots_of[most];
        (slots.len() > 1).then(|| slots.pop()).flatten()
    }

    /// Beside what the rank that holds fewest has.
    fn place_beside(&mut self, what: SlotUse) -> Option<u16> {
        let ranks = self.held.len() as u32;
        let turn = |r: &u32| (r + ranks - self.room.first % ranks) % ranks;
        let free = |r: &u32| (self.alive)(*r) && self.held[*r as usize].1 < self.room.beside_max;
        let fewest = |r: &u32| (self.held[*r as usize].0, turn(r));
        let rank = (0..ranks).filter(free).min_by_key(fewest)?;
        let held = &mut self.held[rank as usize];
        *held = (held.0 + 1, held.1 + 1);
        let slot = (rank * self.plan.slots_per_rank) as u16;
        self.beside.push((slot, what));
        Some(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Balance;
    use proptest::prelude::*;

    fn plan(ranks: u32, experts: usize, redundant: u32, shared: u32) -> Plan {
        Plan::new(
            ranks,
            &vec![1.0; experts],
            8,
            redundant,
            shared,
            Balance::Eplb,
        )
    }

    fn room(beside_max: u32) -> Room {
        Room {
            beside_max,
            first: 3,
        }
    }

    #[test]
    fn a_lost_expert_takes_a_redundant_copy_s_slot() {
        let p = plan(320, 256, 32, 32);
        let one = (0..256).find(|&e| p.copies_of(e).len() == 1).unwrap();
        let lost = u32::from(p.copies_of(one)[0]);
        let left = p.repaired(&|r| r != lost, room(0)).unwrap();
        let slot = left.copies_of(one)[0];
        assert!(
            matches!(p.uses[usize::from(slot)], SlotUse::Routed(e) if p.copies_of(e.into()).len() > 1)
        );
        assert_eq!(left.copies.len(), p.copies.len() - 1);
        assert!(left.beside.is_empty() && left.shared == p.shared);
        // The shared expert, too, goes where others have more than they need.
        let lost = |r: u32| p.shared.contains(&(r as u16));
        let left = p.repaired(&|r| !lost(r), room(0)).unwrap();
        assert_eq!((left.copies.len(), left.shared.len()), (288 - 28, 28));
    }

    #[test]
    fn half_of_a_group_holds_all_experts_if_its_memory_does() {
        let p = plan(320, 256, 32, 32);
        let half = |r: u32| r.is_multiple_of(2);
        // 160 slots are left for 257 experts.
        assert!(p.repaired(&half, room(0)).is_err());
        let left = p.repaired(&half, room(1)).unwrap();
        assert_eq!((left.copies.len(), left.shared.len()), (256, 16));
        assert_eq!(left.beside.len(), 256 + 16 - 160);
        assert!((0..320).all(|r| left.beside_of(r).len() <= 1));
        // An unused slot comes before all else.
        let p = plan(4, 9, 0, 0);
        assert_eq!(p.slots_per_rank, 3);
        let left = p.repaired(&|r| r != 1, room(1)).unwrap();
        assert_eq!(left.beside.len(), 0);
    }

    #[test]
    fn units_of_a_slot_are_divided_as_expected_of_its_experts() {
        let mut p = plan(4, 8, 0, 0);
        let own = p.uses_of(1)[0];
        p.beside = vec![(2, SlotUse::Routed(7))];
        let unit = |what| if what == own { 1.0 } else { 2.0 };
        let (uses, units) = p.by_expert(1, &[30, 5], &unit);
        assert_eq!(uses, [own, p.uses_of(1)[1], SlotUse::Routed(7)]);
        assert_eq!(units, [10, 5, 20]);
        assert_eq!(p.by_expert(0, &[3, 4], &unit).1, [3, 4]);
    }

    proptest! {
        #[test]
        fn all_experts_are_where_somebody_lives_or_there_is_no_room(
            ranks in 1u32..24,
            experts in 4usize..48,
            redundant in 0u32..24,
            shared in 0u32..8,
            beside_max in 0u32..4,
            gone in any::<u32>(),
        ) {
            let p = plan(ranks, experts, redundant, shared);
            let alive = |r: u32| gone & (1 << r) == 0;
            let living = (0..ranks).filter(|&r| alive(r)).count() as u32;
            let needed = experts as u32 + u32::from(shared > 0);
            let room = room(beside_max);
            let Ok(left) = p.repaired(&alive, room) else {
                prop_assert!(living * (p.slots_per_rank + beside_max) < needed);
                return Ok(());
            };
            prop_assert!(living * (p.slots_per_rank + beside_max) >= needed);
            let holds = |slot: &u16, what: SlotUse| {
                let rank = u32::from(*slot) / p.slots_per_rank;
                alive(rank) && left.weights_of(rank).any(|w| w == what)
            };
            for e in 0..experts {
                let copies = left.copies_of(e);
                prop_assert!(!copies.is_empty());
                prop_assert!(copies.iter().all(|s| holds(s, SlotUse::Routed(e as u16))));
            }
            prop_assert_eq!(left.shared.is_empty(), shared == 0);
            prop_assert!(left.shared.iter().all(|s| holds(s, SlotUse::Shared)));
            for r in 0..ranks {
                prop_assert!(left.beside_of(r).len() <= beside_max as usize);
            }
            let slots = left.copies.len() + left.shared.len() - left.beside.len();
            prop_assert!(slots <= (living * p.slots_per_rank) as usize);
        }
    }
}
