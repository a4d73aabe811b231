//! The event queue of a shard: a ladder of buckets over time, each sorted when it is reached.
//!
//! ```text
//! now                                                          far future
//!  | run + late |   finer rung   |     coarser rung      |      top      |
//!  | sorted     | buckets of keys, unsorted              | one unsorted  |
//! ```
//!
//! A key is written about twice, into a bucket and into the sorted run, whatever the number of pending events and
//! however their times are spread: a bucket that holds too many is split into a finer rung. Keys are 24 bytes;
//! messages stay where they are in a slab.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use super::Actor;
use crate::time::Ps;

/// An event's place in the order, the actor it goes to, and where its message lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    pub time_ps: Ps,
    /// Source actor and its sequence number, see [`order`].
    pub order: u64,
    pub to: Actor,
    pub slot: u32,
}

pub const SEQ_BITS: u32 = 40;
/// Actor ids must be below this.
pub const ACTORS_MAX: u32 = (1 << (64 - SEQ_BITS)) - 1;

/// Source and sequence number as one number that sorts by source first.
#[inline]
pub fn order(src: Actor, seq: u64) -> u64 {
    (u64::from(src) << SEQ_BITS) | (seq & ((1 << SEQ_BITS) - 1))
}

/// The sequence number of [`order`].
#[inline]
pub fn sequence(order: u64) -> u64 {
    order & ((1 << SEQ_BITS) - 1)
}

/// The source of [`order`]; `OUTSIDE` sorts after all actors.
#[inline]
pub fn source(order: u64) -> Actor {
    let src = (order >> SEQ_BITS) as u32;
    if src == ACTORS_MAX {
        super::OUTSIDE
    } else {
        src
    }
}

impl Ord for Key {
    #[inline]
    fn cmp(&self, other: &Self) -> Ordering {
        let wide = |k: &Self| (u128::from(k.time_ps) << 64) | u128::from(k.order);
        wide(self).cmp(&wide(other)).then(self.to.cmp(&other.to))
    }
}

impl PartialOrd for Key {
    #[inline]
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Keys that a bucket should hold when it is reached.
const PER_BUCKET: usize = 8;
/// A bucket with more keys than this is split.
const SPLIT_ABOVE: usize = 64;
/// Late arrivals that a heap takes before they get a rung of their own.
const LATE_MAX: usize = 128;
const BUCKETS_MAX: usize = 4096;

#[derive(Default)]
struct Rung {
    /// Time at which bucket 0 starts.
    start: Ps,
    /// A bucket spans `1 << shift` picoseconds.
    shift: u32,
    /// The next bucket to be reached, and the time at which it starts: earlier keys belong to finer rungs.
    next: usize,
    from: Ps,
    /// Keys in all buckets.
    count: usize,
    buckets: Vec<Vec<Key>>,
}

impl Rung {
    /// Covers `[start, end)` for `n` keys.
    fn cover(&mut self, start: Ps, end: Ps, n: usize) {
        let wanted = (n / PER_BUCKET).next_power_of_two().clamp(8, BUCKETS_MAX) as u64;
        let width = ((end - start) / wanted + 1).next_power_of_two();
        self.start = start;
        self.from = start;
        self.shift = width.trailing_zeros();
        self.next = 0;
        self.count = 0;
        let used = ((end - 1 - start) >> self.shift) as usize + 1;
        if self.buckets.len() < used {
            self.buckets.resize_with(used, Vec::new);
        }
    }

    #[inline]
    fn push(&mut self, key: Key) {
        let bucket = ((key.time_ps - self.start) >> self.shift) as usize;
        self.buckets[bucket].push(key);
        self.count += 1;
    }
}

/// A priority queue of [`Key`]s. Times must be below `Ps::MAX`.
#[derive(Default)]
pub struct Queue {
    /// The bucket that was reached, latest first, so that it is popped from the end.
    run: Vec<Key>,
    /// What was pushed into the span of the run since it was sorted.
    late: BinaryHeap<Reverse<Key>>,
    late_max: usize,
    /// `run` and `late` hold all keys before this time, and nothing else.
    limit: Ps,
    /// Coarsest first; `rungs[..depth]` are in use, the others keep their memory.
    rungs: Vec<Rung>,
    depth: usize,
    /// Keys at or after `top_start`, in no order.
    top: Vec<Key>,
    top_start: Ps,
    top_least: Ps,
    top_most: Ps,
    len: usize,
}

impl Queue {
    pub fn new() -> Self {
        Self {
            late_max: LATE_MAX,
            top_least: Ps::MAX,
            ..Self::default()
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[inline]
    pub fn push(&mut self, key: Key) {
        self.len += 1;
        if key.time_ps >= self.top_start {
            self.top_least = self.top_least.min(key.time_ps);
            self.top_most = self.top_most.max(key.time_ps);
            self.top.push(key);
            return;
        }
        for rung in &mut self.rungs[..self.depth] {
            if key.time_ps >= rung.from {
                rung.push(key);
                return;
            }
        }
        self.late.push(Reverse(key));
        if self.late.len() > self.late_max {
            self.spread_late();
        }
    }

    /// The least key, which stays in the queue.
    #[inline]
    pub fn peek(&mut self) -> Option<&Key> {
        if self.run.is_empty() && self.late.is_empty() && !self.advance() {
            return None;
        }
        match (self.run.last(), self.late.peek()) {
            (Some(a), Some(Reverse(b))) => Some(if a <= b { a } else { b }),
            (Some(a), None) => Some(a),
            (None, b) => b.map(|Reverse(b)| b),
        }
    }

    /// Removes the least key.
    #[inline]
    pub fn pop(&mut self) -> Option<Key> {
        if self.run.is_empty() && self.late.is_empty() && !self.advance() {
            return None;
        }
        self.len -= 1;
        match (self.run.last(), self.late.peek()) {
            (Some(a), Some(Reverse(b))) if b < a => self.late.pop().map(|Reverse(b)| b),
            (Some(_), _) => self.run.pop(),
            (None, _) => self.late.pop().map(|Reverse(b)| b),
        }
    }

    /// Fills the empty run from the next bucket. False when nothing is left.
    #[cold]
    #[inline(never)]
    fn advance(&mut self) -> bool {
        self.late_max = LATE_MAX;
        if self.len == 0 {
            self.depth = 0;
            self.limit = 0;
            self.top_start = 0;
            return false;
        }
        loop {
            if self.depth == 0 {
                // Everything that is left is in the top.
                let end = self.top_most + 1;
                let start = std::mem::replace(&mut self.top_least, Ps::MAX);
                self.top_most = 0;
                self.top_start = end;
                if self.top.len() <= SPLIT_ABOVE {
                    std::mem::swap(&mut self.run, &mut self.top);
                    self.limit = end;
                    self.run.sort_unstable_by(|a, b| b.cmp(a));
                    return true;
                }
                let mut keys = std::mem::take(&mut self.top);
                self.spread(&mut keys, start, end);
                self.top = keys;
                continue;
            }
            let rung = &mut self.rungs[self.depth - 1];
            if rung.count == 0 {
                self.depth -= 1;
                continue;
            }
            let mut reached = rung.next;
            while rung.buckets[reached].is_empty() {
                reached += 1;
            }
            rung.next = reached + 1;
            let start = rung.start + ((reached as Ps) << rung.shift);
            rung.from = start.saturating_add(1 << rung.shift);
            let end = rung.from;
            let n = rung.buckets[reached].len();
            rung.count -= n;
            if n > SPLIT_ABOVE && rung.shift > 0 {
                let mut keys = std::mem::take(&mut rung.buckets[reached]);
                self.spread(&mut keys, start, end);
                self.rungs[self.depth - 2].buckets[reached] = keys;
                continue;
            }
            std::mem::swap(&mut self.run, &mut rung.buckets[reached]);
            self.limit = end;
            self.run.sort_unstable_by(|a, b| b.cmp(a));
            return true;
        }
    }

    /// Moves `keys`, all in `[start, end)`, to a new finest rung.
    fn spread(&mut self, keys: &mut Vec<Key>, start: Ps, end: Ps) {
        if self.rungs.len() == self.depth {
            self.rungs.push(Rung::default());
        }
        let rung = &mut self.rungs[self.depth];
        rung.cover(start, end, keys.len());
        for key in keys.drain(..) {
            rung.push(key);
        }
        self.depth += 1;
        self.limit = start;
    }

    /// Many keys fell into the span of the run: those after the run get a rung.
    #[cold]
    #[inline(never)]
    fn spread_late(&mut self) {
        let after_run = self.run.first().map(|last| last.time_ps + 1);
        let start = after_run
            .unwrap_or_else(|| self.late.peek().map_or(self.limit, |Reverse(k)| k.time_ps));
        if start < self.limit {
            let end = self.limit;
            let mut keys = std::mem::take(&mut self.late).into_vec();
            let mut moved = Vec::with_capacity(keys.len());
            keys.retain(|Reverse(k)| {
                let later = k.time_ps >= start;
                if later {
                    moved.push(*k);
                }
                !later
            });
            self.late = BinaryHeap::from(keys);
            if !moved.is_empty() {
                self.spread(&mut moved, start, end);
            }
        }
        self.late_max = (2 * self.late.len()).max(LATE_MAX);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use proptest::prelude::*;

    /// The plain reference: an ordered set.
    fn same_as_reference(steps: &[(u64, u64, u8)]) -> Result<(), TestCaseError> {
        let mut queue = Queue::new();
        let mut reference = BTreeSet::new();
        let (mut now, mut slot) = (0u64, 0u32);
        let check =
            |queue: &mut Queue, reference: &mut BTreeSet<(u64, u64, u32, u32)>, now: &mut u64| {
                let want = reference.pop_first();
                let seen = queue.peek().copied();
                let got = queue.pop();
                prop_assert_eq!(seen, got);
                prop_assert_eq!(got.map(|k| (k.time_ps, k.order, k.to, k.slot)), want);
                *now = want.map_or(*now, |w| w.0);
                Ok(())
            };
        for &(delay, src, pops) in steps {
            let key = Key {
                time_ps: now + delay,
                order: order(src as u32, u64::from(slot)),
                to: 7,
                slot,
            };
            slot += 1;
            queue.push(key);
            reference.insert((key.time_ps, key.order, key.to, key.slot));
            prop_assert_eq!(queue.len(), reference.len());
            for _ in 0..pops {
                check(&mut queue, &mut reference, &mut now)?;
            }
        }
        while !reference.is_empty() {
            check(&mut queue, &mut reference, &mut now)?;
        }
        prop_assert!(queue.pop().is_none() && queue.is_empty());
        Ok(())
    }

    /// Delays from none to days, so that rungs of every width come into play.
    fn delay() -> impl Strategy<Value = u64> {
        prop_oneof![
            4 => Just(0u64),
            4 => Just(1_000u64),
            8 => 0..100u64,
            8 => 0..10_000_000u64,
            2 => 0..1_000_000_000_000u64,
            1 => 0..(1u64 << 57),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn keys_leave_in_order(steps in prop::collection::vec((delay(), 0..5u64, 0..3u8), 1..3000)) {
            same_as_reference(&steps)?;
        }

        #[test]
        fn keys_leave_in_order_while_many_are_pending(
            steps in prop::collection::vec((delay(), 0..1000u64, 0..2u8), 3000..6000)
        ) {
            same_as_reference(&steps)?;
        }
    }

    #[test]
    fn a_crowd_at_one_instant_leaves_by_source_and_sequence() {
        let steps: Vec<_> = (0..5000).map(|i| (0, (i * 7919) % 320, 0)).collect();
        same_as_reference(&steps).unwrap();
    }

    #[test]
    fn a_source_survives_packing() {
        for src in [0, 1, ACTORS_MAX - 1] {
            assert_eq!(source(order(src, u64::MAX)), src);
        }
        assert_eq!(
            source(order(super::super::OUTSIDE, 3)),
            super::super::OUTSIDE
        );
    }
}
