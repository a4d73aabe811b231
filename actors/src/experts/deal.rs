//! The balance that no plan can beat: tokens are dealt to copies in turn, not drawn.

use super::Plan;

/// What one rank deals out, as far as it knows.
#[derive(Clone, Copy, Debug)]
pub struct Hand {
    /// Its place among the `ranks` that take part.
    pub place: u32,
    pub ranks: u32,
    pub tokens: u32,
    pub top_k: u32,
    /// The copy that the deal begins with, the same on all ranks.
    pub first: u64,
}

/// Slots of copies in the order they are dealt to: the first copies of all ranks, then the second ones. So those that get
/// one more than others are spread over the ranks.
pub(super) fn in_turn(copies: &[u16], slots_per_rank: u32) -> Vec<u16> {
    let mut slots = copies.to_vec();
    slots.sort_unstable_by_key(|&s| {
        let (rank, i) = (u32::from(s) / slots_per_rank, u32::from(s) % slots_per_rank);
        (i, rank)
    });
    slots
}

impl Plan {
    /// Adds the units that a rank's tokens make to what it sends to slots. If all ranks have as many tokens, all copies get
    /// the same from all together, within one; else a token that a rank has less than others is missing at `top_k` copies,
    /// elsewhere for each rank and token.
    ///
    /// Ranks know their own tokens only. The first tokens of all ranks lie beside each other in the row of copies, then the
    /// second ones, where the first ended; from token to token a rank goes to the next place of these, so that it comes
    /// to other copies. Whole rounds come first.
    pub fn deal(&self, hand: Hand, to_slots: &mut [u32]) {
        let row = &self.in_turn;
        let n = row.len() as u64;
        let (top_k, ranks) = (u64::from(hand.top_k), u64::from(hand.ranks));
        let units = u64::from(hand.tokens) * top_k;
        let rounds = (units / n) as u32;
        if rounds > 0 {
            row.iter()
                .for_each(|&slot| to_slots[usize::from(slot)] += rounds);
        }
        let (mut left, mut begin, mut seat) = (units % n, hand.first, u64::from(hand.place));
        while left > 0 {
            let now = left.min(top_k);
            let at = ((begin + seat * now) % n) as usize;
            let slots = row[at..].iter().chain(row).take(now as usize);
            slots.for_each(|&slot| to_slots[usize::from(slot)] += 1);
            begin += ranks * now;
            seat = (seat + 1) % ranks;
            left -= now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Balance;
    use proptest::prelude::*;

    /// What all slots get from all ranks, rank `r` having `tokens(r)` tokens.
    fn dealt(plan: &Plan, first: u64, tokens: impl Fn(u32) -> u32) -> Vec<u32> {
        let mut sums = vec![0; plan.slots()];
        for place in 0..plan.ranks() {
            let hand = Hand {
                place,
                ranks: plan.ranks(),
                tokens: tokens(place),
                top_k: 8,
                first,
            };
            plan.deal(hand, &mut sums);
        }
        sums
    }

    /// Least and most of some figures.
    fn range(of: impl Iterator<Item = u32>) -> (u32, u32) {
        of.fold((u32::MAX, 0), |(a, b), n| (a.min(n), b.max(n)))
    }

    fn routed(plan: &Plan, sums: &[u32]) -> (u32, u32) {
        range(plan.copies.iter().map(|s| sums[usize::from(*s)]))
    }

    fn of_ranks(plan: &Plan, sums: &[u32]) -> (u32, u32) {
        range(
            sums.chunks(plan.slots_per_rank as usize)
                .map(|slots| slots.iter().sum()),
        )
    }

    fn perfect(ranks: u32, redundant: u32, shared: u32) -> Plan {
        Plan::new(ranks, &[1.0; 256], 8, redundant, shared, Balance::Perfect)
    }

    #[test]
    fn dies_of_any_group_get_the_same_from_the_first_token_on() {
        for (ranks, redundant) in [(8, 0), (16, 0), (32, 0), (64, 0), (32, 32), (320, 64)] {
            let plan = perfect(ranks, redundant, 0);
            for tokens in 1..100 {
                let (least, most) = of_ranks(&plan, &dealt(&plan, u64::from(tokens), |_| tokens));
                assert!(most - least <= 1, "EP{ranks}: {least} to {most}");
            }
        }
    }

    #[test]
    fn tokens_that_some_lack_are_missing_all_over() {
        // Every other rank, the first half, and a pattern that repeats nowhere have one token less than 24.
        let less: [fn(u32) -> bool; 3] =
            [|r| r % 2 == 0, |r| r < 16, |r| (r * r / 3 + r / 5) % 2 == 0];
        for plan in [perfect(16, 0, 0), perfect(32, 0, 0), perfect(32, 32, 32)] {
            for less in less {
                let sums = dealt(&plan, 0, |r| 24 - u32::from(less(r)));
                let (least, most) = routed(&plan, &sums);
                assert!(most - least <= 2, "{least} to {most}");
            }
        }
    }

    proptest! {
        #[test]
        fn all_copies_get_the_same_within_one(
            ranks in 1u32..330,
            redundant in 0u32..70,
            shared in 0u32..40,
            tokens in 0u32..300,
            first in any::<u16>(),
        ) {
            let plan = perfect(ranks, redundant, shared);
            let sums = dealt(&plan, first.into(), |_| tokens);
            let (least, most) = routed(&plan, &sums);
            prop_assert!(most - least <= 1, "{least} to {most}");
            prop_assert_eq!(sums.iter().sum::<u32>(), ranks * tokens * 8);
            // And one rank's tokens, which choose distinct experts, go to a copy once each at most.
            let mut one = vec![0; plan.slots()];
            plan.deal(Hand { place: ranks / 2, ranks, tokens, top_k: 8, first: 0 }, &mut one);
            prop_assert!(one.iter().all(|n| *n <= tokens));
        }
    }
}
