//! One layer's expert plan over the ranks of a group: which slot holds which expert.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::deal::in_turn;
use super::{Placement, place, replicate};
use crate::config::Balance;

/// What a slot of a rank holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum SlotUse {
    Empty,
    Shared,
    Routed(u16),
}

/// Slots are numbered rank-major: `slot = rank * slots_per_rank + i`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    pub slots_per_rank: u32,
    pub uses: Vec<SlotUse>,
    /// Slots of expert `e`: `copies[first[e]..first[e + 1]]`.
    pub first: Vec<u32>,
    pub copies: Vec<u16>,
    /// By expert: the slot of its first copy.
    first_copy: Vec<u16>,
    /// Experts that have more copies.
    copied: Vec<u16>,
    /// Slots of `copies` in the order that perfect balance deals to.
    pub(super) in_turn: Vec<u16>,
    /// Slots that hold the shared expert; empty: every rank computes it for its own tokens.
    pub shared: Vec<u16>,
    /// While ranks are missing: experts that a rank holds beside those of its slots, with the slot that their tokens go to, in
    /// order.
    pub beside: Vec<(u16, SlotUse)>,
}

impl Plan {
    /// Slots each rank must have for `experts` routed experts, `redundant` copies and `shared` copies.
    pub fn slots_needed(ranks: u32, experts: u32, redundant: u32, shared: u32) -> u32 {
        (experts + redundant + shared).div_ceil(ranks)
    }

    /// A plan for expert loads `load` (any unit) over `ranks` ranks, `top_k` experts being chosen by a token.
    pub fn new(
        ranks: u32,
        load: &[f64],
        top_k: u32,
        redundant: u32,
        shared: u32,
        balance: Balance,
    ) -> Self {
        let slots_per_rank = Self::slots_needed(ranks, load.len() as u32, redundant, shared);
        Self::in_slots(
            ranks,
            slots_per_rank,
            load,
            top_k,
            redundant,
            shared,
            balance,
        )
    }

    /// The plan that EPLB makes for other loads, with as many copies in as many slots; ranks and slots are named so that as
    /// few weights as can be have to move.
    pub fn rebalanced(&self, load: &[f64], top_k: u32) -> Self {
        let redundant = self.copies.len() - self.experts();
        let plan = Self::in_slots(
            self.ranks(),
            self.slots_per_rank,
            load,
            top_k,
            redundant as u32,
            self.shared.len() as u32,
            Balance::Eplb,
        );
        plan.settled(self)
    }

    fn in_slots(
        ranks: u32,
        slots_per_rank: u32,
        load: &[f64],
        top_k: u32,
        redundant: u32,
        shared: u32,
        balance: Balance,
    ) -> Self {
        let experts = load.len();
        let total = (ranks * slots_per_rank) as usize;
        let copies_of = match balance {
            Balance::Eplb => replicate(load, redundant as usize),
            // Equal shares: copies of the first experts, as a plan without load knowledge has them.
            Balance::None | Balance::Perfect => {
                let mut c = vec![1u32; experts];
                for i in 0..redundant as usize {
                    c[i % experts] += 1;
                }
                c
            }
        };
        let sum: f64 = load.iter().sum();
        let top_share = if sum > 0.0 { 1.0 / sum } else { 0.0 };
        // Load in tokens per token of the group: a shared copy serves 1/shared of all tokens once.
        let mut items: Vec<(f64, u32)> = Vec::with_capacity(total);
        for _ in 0..shared {
            items.push((1.0 / f64::from(shared.max(1)), u32::MAX));
        }
        for (e, &n) in copies_of.iter().enumerate() {
            for _ in 0..n {
                items.push((
                    f64::from(top_k) * load[e] * top_share / f64::from(n),
                    e as u32,
                ));
            }
        }
        let rank_of: Vec<usize> = match balance {
            Balance::Eplb => place(&items, ranks as usize, slots_per_rank as usize),
            Balance::None | Balance::Perfect => spread(&items, ranks as usize),
        };
        let mut used = vec![0u32; ranks as usize];
        let mut uses = vec![SlotUse::Empty; total];
        let mut slots_of: Vec<Vec<u16>> = vec![Vec::new(); experts];
        let mut shared_slots = Vec::new();
        for (i, &(_, kind)) in items.iter().enumerate() {
            let r = rank_of[i];
            let slot = r * slots_per_rank as usize + used[r] as usize;
            used[r] += 1;
            if kind == u32::MAX {
                uses[slot] = SlotUse::Shared;
                shared_slots.push(slot as u16);
            } else {
                uses[slot] = SlotUse::Routed(kind as u16);
                slots_of[kind as usize].push(slot as u16);
            }
        }
        Self::from_slots(slots_per_rank, uses, slots_of, shared_slots)
    }

    /// The plan of a placement map for one layer, with `shared` copies of the shared expert spread over its ranks.
    pub fn placed(p: &Placement, layer: usize, slots_per_rank: u32, shared: u32) -> Self {
        let ranks = p.ranks as usize;
        let mut uses = vec![SlotUse::Empty; ranks * slots_per_rank as usize];
        let mut used = vec![0; ranks];
        let mut put = |rank: usize, what: SlotUse| {
            let slot = rank * slots_per_rank as usize + used[rank];
            used[rank] += 1;
            uses[slot] = what;
            slot as u16
        };
        let shared = (0..shared as usize)
            .map(|i| put(i * ranks / shared as usize % ranks, SlotUse::Shared))
            .collect();
        let slots_of = p.holders[layer]
            .iter()
            .enumerate()
            .map(|(e, holders)| {
                let put = |&r: &u16| put(usize::from(r), SlotUse::Routed(e as u16));
                holders.iter().map(put).collect()
            })
            .collect();
        Self::from_slots(slots_per_rank, uses, slots_of, shared)
    }

    pub(super) fn from_slots(
        slots_per_rank: u32,
        uses: Vec<SlotUse>,
        slots_of: Vec<Vec<u16>>,
        mut shared: Vec<u16>,
    ) -> Self {
        let mut first = vec![0u32];
        let mut copies = Vec::new();
        for mut s in slots_of {
            s.sort_unstable();
            copies.extend(s);
            first.push(copies.len() as u32);
        }
        shared.sort_unstable();
        let several = |(_, two): &(usize, &[u32])| two[1] - two[0] > 1;
        let copied = first.windows(2).enumerate().filter(several);
        Self {
            slots_per_rank,
            uses,
            first_copy: first
                .windows(2)
                .map(|two| copies[two[0] as usize])
                .collect(),
            copied: copied.map(|(e, _)| e as u16).collect(),
            first,
            in_turn: in_turn(&copies, slots_per_rank),
            copies,
            shared,
            beside: Vec::new(),
        }
    }

    /// Adds what `rank` sends to experts to what it sends to slots: of several copies, each rank has its own.
    pub fn send_to_slots(&self, rank: u16, to_experts: &[u32], to_slots: &mut [u32]) {
        for (&slot, n) in self.first_copy.iter().zip(to_experts) {
            to_slots[usize::from(slot)] += n;
        }
        for e in self.copied.iter().map(|&e| usize::from(e)) {
            let copies = self.copies_of(e);
            to_slots[usize::from(copies[0])] -= to_experts[e];
            to_slots[usize::from(copies[(u32::from(rank) % copies.len() as u32) as usize])] +=
                to_experts[e];
        }
    }

    pub fn experts(&self) -> usize {
        self.first.len() - 1
    }

    pub fn ranks(&self) -> u32 {
        self.uses.len() as u32 / self.slots_per_rank
    }

    /// What the slots of a rank hold.
    pub fn uses_of(&self, rank: u32) -> &[SlotUse] {
        let s = (rank * self.slots_per_rank) as usize;
        &self.uses[s..s + self.slots_per_rank as usize]
    }

    /// Expert tokens that each rank gets for one token of the group, for expert loads in any unit.
    pub fn rank_loads(&self, load: &[f64], top_k: u32) -> Vec<f64> {
        let sum: f64 = load.iter().sum();
        let of_slot = |what: &SlotUse| match *what {
            SlotUse::Empty => 0.0,
            SlotUse::Shared => 1.0 / self.shared.len() as f64,
            SlotUse::Routed(_) if sum == 0.0 => 0.0,
            SlotUse::Routed(e) => {
                let e = usize::from(e);
                f64::from(top_k) * load[e] / sum / self.copies_of(e).len() as f64
            }
        };
        self.uses
            .chunks(self.slots_per_rank as usize)
            .map(|rank| rank.iter().map(of_slot).sum())
            .collect()
    }

    /// The same plan with its ranks, and the slots of each, in the order that has most in common with `old`: the heaviest
    /// overlaps of ranks are matched first; where that keeps less than the ranks' own names do, the names stay.
    fn settled(self, old: &Self) -> Self {
        let ranks = self.ranks() as usize;
        let overlap = self.overlap(old);
        let mut pairs: Vec<_> = overlap.iter().map(|(&pair, &n)| (pair, n)).collect();
        pairs.sort_by_key(|&(pair, n)| (std::cmp::Reverse(n), pair));
        let (mut place, mut taken) = (vec![None; ranks], vec![false; ranks]);
        let mut kept = 0;
        for ((new, old), n) in pairs {
            if place[new].is_none() && !taken[old] {
                place[new] = Some(old);
                taken[old] = true;
                kept += n;
            }
        }
        let kept_by_name: u32 = (0..ranks).filter_map(|r| overlap.get(&(r, r))).sum();
        if kept < kept_by_name {
            place = (0..ranks).map(Some).collect();
            taken = vec![true; ranks];
        }
        let mut free = (0..ranks)
            .filter(|r| !taken[*r])
            .collect::<Vec<_>>()
            .into_iter();
        let mut uses = vec![SlotUse::Empty; self.uses.len()];
        for (new, place) in place.into_iter().enumerate() {
            let rank = place
                .or_else(|| free.next())
                .expect("as many places as ranks");
            let first = rank * self.slots_per_rank as usize;
            let held = &old.uses[first..first + self.slots_per_rank as usize];
            let mut rest = self.uses_of(new as u32).to_vec();
            rest.retain(|u| *u != SlotUse::Empty);
            let mut slots = vec![SlotUse::Empty; held.len()];
            for (slot, what) in slots.iter_mut().zip(held) {
                if let Some(i) = rest.iter().position(|r| r == what) {
                    *slot = rest.swap_remove(i);
                }
            }
            rest.sort_unstable();
            let empty = slots.iter_mut().filter(|s| **s == SlotUse::Empty);
            for (slot, what) in empty.zip(rest) {
                *slot = what;
            }
            uses[first..first + held.len()].copy_from_slice(&slots);
        }
        let mut slots_of = vec![Vec::new(); self.experts()];
        let mut shared = Vec::new();
        for (slot, what) in uses.iter().enumerate() {
            match *what {
                SlotUse::Empty => {}
                SlotUse::Shared => shared.push(slot as u16),
                SlotUse::Routed(e) => slots_of[usize::from(e)].push(slot as u16),
            }
        }
        Self::from_slots(self.slots_per_rank, uses, slots_of, shared)
    }

    /// Weights that a rank of this plan (first of the pair) and a rank of `old` (second) both hold; pairs without any are left out.
    fn overlap(&self, old: &Self) -> BTreeMap<(usize, usize), u32> {
        let on_ranks = |plan: &Self, slots: &[u16]| {
            let mut on: BTreeMap<usize, u32> = BTreeMap::new();
            for slot in slots {
                *on.entry(usize::from(*slot) / plan.slots_per_rank as usize)
                    .or_default() += 1;
            }
            on
        };
        let mut overlap: BTreeMap<(usize, usize), u32> = BTreeMap::new();
        let kinds = (0..self.experts())
            .map(|e| (self.copies_of(e), old.copies_of(e)))
            .chain([(&self.shared[..], &old.shared[..])]);
        for (new, held) in kinds {
            let held = on_ranks(old, held);
            for (n, copies) in on_ranks(self, new) {
                for (&o, &there) in &held {
                    *overlap.entry((n, o)).or_default() += copies.min(there);
                }
            }
        }
        overlap
    }

    pub fn slots(&self) -> usize {
        self.uses.len()
    }

    pub fn copies_of(&self, expert: usize) -> &[u16] {
        &self.copies[self.first[expert] as usize..self.first[expert + 1] as usize]
    }

    /// Experts that a rank holds weights of.
    pub fn held_by(&self, rank: u32) -> usize {
        self.weights_of(rank).count()
    }

    /// Experts on the fullest rank.
    pub fn most_on_a_rank(&self) -> u32 {
        let ranks = self.uses.len() as u32 / self.slots_per_rank;
        (0..ranks).map(|r| self.held_by(r)).max().unwrap_or(0) as u32
    }
}

/// Kinds dealt over ranks in turn, the shared copies spread evenly between the others.
fn spread(items: &[(f64, u32)], ranks: usize) -> Vec<usize> {
    let shared = items.iter().filter(|i| i.1 == u32::MAX).count();
    let mut rank_of = vec![usize::MAX; items.len()];
    let mut used = vec![0usize; ranks];
    for (i, rank) in rank_of.iter_mut().enumerate().take(shared) {
        *rank = i * ranks / shared % ranks;
        used[*rank] += 1;
    }
    let per_rank = items.len().div_ceil(ranks);
    let mut r = 0;
    for rank in rank_of.iter_mut().skip(shared) {
        while used[r % ranks] >= per_rank {
            r += 1;
        }
        *rank = r % ranks;
        used[r % ranks] += 1;
        r += 1;
    }
    rank_of
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ep320_has_one_expert_a_die() {
        for balance in [Balance::None, Balance::Eplb, Balance::Perfect] {
            let p = Plan::new(320, &[1.0; 256], 8, 32, 32, balance);
            assert_eq!(
                (p.slots_per_rank, p.slots(), p.shared.len(), p.copies.len()),
                (1, 320, 32, 288)
            );
            assert!((0..320).all(|r| p.held_by(r) == 1));
            assert!((0..256).all(|e| !p.copies_of(e).is_empty()));
        }
    }

    #[test]
    fn ep32_has_ten_experts_a_die() {
        let p = Plan::new(32, &[1.0; 256], 8, 32, 32, Balance::Eplb);
        assert_eq!(p.slots_per_rank, 10);
        assert!((0..32).all(|r| p.held_by(r) == 10));
    }

    use crate::experts::popularity;
    use crate::runtime::Rng;
    use proptest::prelude::*;

    /// Every expert has a copy, every copy a slot of its own, and slots and lists of copies say the same.
    fn check(p: &Plan, ranks: u32, experts: usize, redundant: u32, shared: u32) {
        assert_eq!((p.ranks(), p.experts()), (ranks, experts));
        assert_eq!(p.copies.len(), experts + redundant as usize);
        assert_eq!(p.shared.len(), shared as usize);
        for e in 0..experts {
            assert!(!p.copies_of(e).is_empty(), "expert {e} has no copy");
            for &slot in p.copies_of(e) {
                assert_eq!(p.uses[usize::from(slot)], SlotUse::Routed(e as u16));
            }
        }
        let shared = p.shared.iter().map(|s| p.uses[usize::from(*s)]);
        assert!(shared.clone().all(|u| u == SlotUse::Shared));
        let used = p.uses.iter().filter(|u| **u != SlotUse::Empty).count();
        assert_eq!(used, p.copies.len() + p.shared.len());
    }

    fn worst(p: &Plan, load: &[f64]) -> f64 {
        p.rank_loads(load, 8).into_iter().fold(0.0, f64::max)
    }

    #[test]
    fn eplb_is_no_worse_than_spreading_at_the_sizes_of_a_model() {
        for ranks in [8, 16, 32, 64, 128, 256, 288, 320] {
            for (redundant, shared) in [(0, 0), (32, 0), (32, 32), (64, 8)] {
                for seed in 0..8u32 {
                    let skew = 0.3 * f64::from(seed);
                    let load = popularity(256, skew, &mut Rng::new(seed.into(), 1));
                    let make = |balance| {
                        let p = Plan::new(ranks, &load, 8, redundant, shared, balance);
                        worst(&p, &load)
                    };
                    let (eplb, none) = (make(Balance::Eplb), make(Balance::None));
                    assert!(
                        eplb <= none * 1.000_001,
                        "EP{ranks}, {redundant} redundant, {shared} shared, skew {skew}: {eplb} against {none}"
                    );
                }
            }
        }
    }

    proptest! {
        #[test]
        fn plans_are_whole_and_eplb_is_near_the_best(
            ranks in 1u32..40,
            experts in 4usize..64,
            redundant in 0u32..40,
            shared in 0u32..8,
            skew in 0.0..2.0f64,
            seed in any::<u64>(),
        ) {
            let load = popularity(experts as u32, skew, &mut Rng::new(seed, 1));
            let make = |balance| Plan::new(ranks, &load, 8, redundant, shared, balance);
            let (eplb, none) = (make(Balance::Eplb), make(Balance::None));
            check(&eplb, ranks, experts, redundant, shared);
            check(&none, ranks, experts, redundant, shared);
            // A rank filled last held no more than the mean, and got no more than the heaviest copy: neither can any other plan
            // with as many copies be below. Where experts are as many as in a model, EPLB is no worse than spreading.
            let (ours, theirs) = (worst(&eplb, &load), worst(&none, &load));
            prop_assert!(ours <= theirs * 2.0, "{ours} against {theirs}");
            let sum: f64 = eplb.rank_loads(&load, 8).iter().sum();
            prop_assert!((sum - 8.0 - f64::from(u8::from(shared > 0))).abs() < 1e-9);
        }

        #[test]
        fn a_rebalanced_plan_is_as_good_as_a_new_one_and_moves_less(
            ranks in 1u32..40,
            experts in 4usize..64,
            redundant in 0u32..40,
            shared in 0u32..8,
            seed in any::<u64>(),
        ) {
            let load = |n| popularity(experts as u32, 1.0, &mut Rng::new(seed, n));
            let old = Plan::new(ranks, &load(1), 8, redundant, shared, Balance::Eplb);
            let now = load(2);
            let fresh = Plan::new(ranks, &now, 8, redundant, shared, Balance::Eplb);
            let next = old.rebalanced(&now, 8);
            check(&next, ranks, experts, redundant, shared);
            prop_assert!((worst(&next, &now) - worst(&fresh, &now)).abs() < 1e-9);
            // Weights that a slot has to be given; a slot that is emptied costs nothing.
            let moved = |p: &Plan| {
                let given = |(a, b): &(&SlotUse, &SlotUse)| a != b && **a != SlotUse::Empty;
                p.uses.iter().zip(&old.uses).filter(given).count()
            };
            prop_assert!(moved(&next) <= moved(&fresh), "{} {}", moved(&next), moved(&fresh));
            // The same load again moves nothing.
            prop_assert_eq!(moved(&old.rebalanced(&load(1), 8)), 0);
        }
    }
}
