//! One layer's expert plan over the ranks of a group: which slot holds which expert.

use serde::{Deserialize, Serialize};

use super::{Placement, place, replicate};
use crate::config::Balance;

/// What a slot of a rank holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Slots that hold the shared expert; empty: every rank computes it for its own tokens.
    pub shared: Vec<u16>,
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
        let experts = load.len();
        let slots_per_rank = Self::slots_needed(ranks, experts as u32, redundant, shared);
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

    fn from_slots(
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
        Self {
            slots_per_rank,
            uses,
            first,
            copies,
            shared,
        }
    }

    /// The plan without the slots of ranks that `alive` excludes; `None` when an expert loses its last copy
    /// (its number is given).
    pub fn without(&self, alive: &dyn Fn(u32) -> bool) -> Result<Self, u32> {
        let live = |slot: &&u16| alive(u32::from(**slot) / self.slots_per_rank);
        let mut slots_of = Vec::new();
        for e in 0..self.experts() {
            let s: Vec<u16> = self.copies_of(e).iter().filter(live).copied().collect();
            if s.is_empty() {
                return Err(e as u32);
            }
            slots_of.push(s);
        }
        let shared: Vec<u16> = self.shared.iter().filter(live).copied().collect();
        if shared.is_empty() && !self.shared.is_empty() {
            return Err(u32::MAX);
        }
        Ok(Self::from_slots(
            self.slots_per_rank,
            self.uses.clone(),
            slots_of,
            shared,
        ))
    }

    pub fn experts(&self) -> usize {
        self.first.len() - 1
    }

    pub fn slots(&self) -> usize {
        self.uses.len()
    }

    pub fn copies_of(&self, expert: usize) -> &[u16] {
        &self.copies[self.first[expert] as usize..self.first[expert + 1] as usize]
    }

    /// Experts that a rank holds weights of.
    pub fn held_by(&self, rank: u32) -> usize {
        let s = (rank * self.slots_per_rank) as usize;
        self.uses[s..s + self.slots_per_rank as usize]
            .iter()
            .filter(|u| **u != SlotUse::Empty)
            .count()
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

    #[test]
    fn a_lost_rank_is_served_by_copies_or_named() {
        let p = Plan::new(320, &[1.0; 256], 8, 32, 32, Balance::Eplb);
        let two = (0..256).find(|&e| p.copies_of(e).len() == 2).unwrap();
        let lost = u32::from(p.copies_of(two)[0]);
        assert_eq!(p.without(&|r| r != lost).unwrap().copies_of(two).len(), 1);
        let one = (0..256).find(|&e| p.copies_of(e).len() == 1).unwrap();
        let lost = u32::from(p.copies_of(one)[0]);
        assert_eq!(p.without(&|r| r != lost), Err(one as u32));
    }
}
