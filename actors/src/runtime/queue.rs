//! The event queue of a shard: a wheel of small buckets for what is due soon, and a ladder ([`super::ladder`]) for the
//! rest and for crowds.
//!
//! ```text
//!      now                            4096 buckets on
//!  wheel | . 1 . . 2 . 1 1 . . 1 . . . 1 . |  ladder: everything later, and buckets that held a crowd
//! ```
//!
//! A bucket of the wheel is narrower than events are apart, so that most hold one key or none: taking the earliest
//! event is looking for the next bit, without sorting. Both halves are complete queues, and the earlier of their two
//! least keys is next: a bad width costs time, not order. Messages stay where they are in a slab, and nodes are
//! numbered by its slots.

use std::cmp::Ordering;

use super::Actor;
use super::ladder::Ladder;
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

impl Key {
    #[inline]
    pub fn new(time_ps: Ps, order: u64, to: Actor, slot: u32) -> Self {
        Self {
            time_ps,
            order,
            to,
            slot,
        }
    }

    #[inline]
    fn wide(&self) -> u128 {
        (u128::from(self.time_ps) << 64) | u128::from(self.order)
    }
}

impl Ord for Key {
    #[inline]
    fn cmp(&self, other: &Self) -> Ordering {
        let by_place = self.wide().cmp(&other.wide());
        by_place.then(self.to.cmp(&other.to))
    }
}

impl PartialOrd for Key {
    #[inline]
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }

    #[inline]
    fn lt(&self, other: &Self) -> bool {
        let (a, b) = (self.wide(), other.wide());
        a < b || (a == b && self.to < other.to)
    }
}

/// No key: after all others.
const NOTHING: Key = Key {
    time_ps: Ps::MAX,
    order: u64::MAX,
    to: u32::MAX,
    slot: u32::MAX,
};

/// Of the wheel: as many words of bits as a word has bits.
const BUCKETS: usize = 64 * WORDS;
const WORDS: usize = 64;
/// Buckets for the time between two events.
const PER_EVENT: u64 = 4;
/// A bucket with more keys than this goes to the ladder when it is reached.
const CROWD: u32 = 8;
/// The width is looked at after so many events, at first and later on.
const REVIEW_FIRST: u32 = 64;
const REVIEW_MOST: u32 = 4096;
/// End of a bucket's list.
const END: u32 = u32::MAX;

/// A key of the wheel, at the index that is its slot.
#[derive(Clone, Copy)]
struct Node {
    time_ps: Ps,
    order: u64,
    to: Actor,
    next: u32,
}

impl Node {
    #[inline]
    fn key(self, slot: u32) -> Key {
        Key::new(self.time_ps, self.order, self.to, slot)
    }
}

/// A priority queue of [`Key`]s. Times must be below `Ps::MAX`, and no two keys in it may have the same slot.
pub struct Queue {
    /// The least key, or `NOTHING`, and whether it lies in the ladder.
    head: Key,
    head_is_far: bool,
    /// A bucket spans `1 << shift` picoseconds.
    shift: u32,
    /// Bucket of the last key that was taken, counted from the beginning of time. The wheel holds keys of this bucket
    /// and the following `BUCKETS - 1`.
    now: u64,
    /// First of each bucket's list.
    first: Box<[u32; BUCKETS]>,
    /// Which buckets hold something, and which words of that may be other than 0.
    bits: [u64; WORDS],
    words: u64,
    nodes: Vec<Node>,
    far: Ladder,
    far_head: Key,
    /// Events until the width is looked at, out of how many, and when it was last looked at.
    review_in: u32,
    review_after: u32,
    reviewed_ps: Ps,
}

impl Default for Queue {
    fn default() -> Self {
        Self::new()
    }
}

impl Queue {
    pub fn new() -> Self {
        Self {
            head: NOTHING,
            head_is_far: true,
            shift: 0,
            now: 0,
            first: Box::new([END; BUCKETS]),
            bits: [0; WORDS],
            words: 0,
            nodes: Vec::new(),
            far: Ladder::default(),
            far_head: NOTHING,
            review_in: REVIEW_FIRST,
            review_after: REVIEW_FIRST,
            reviewed_ps: 0,
        }
    }

    pub fn len(&self) -> usize {
        let of_list = |bucket: usize| {
            let mut n = 0;
            let mut slot = self.first[bucket];
            while slot != END {
                n += 1;
                slot = self.nodes[slot as usize].next;
            }
            n
        };
        self.far.len() + (0..BUCKETS).map(of_list).sum::<usize>()
    }

    pub fn is_empty(&self) -> bool {
        self.head == NOTHING
    }

    #[inline(always)]
    pub fn push(&mut self, key: Key) {
        let bucket = key.time_ps >> self.shift;
        if bucket.wrapping_sub(self.now) >= BUCKETS as u64 || key.slot as usize >= self.nodes.len()
        {
            return self.push_far(key.time_ps, key.order, key.to, key.slot);
        }
        self.link(bucket, key);
        if key.time_ps <= self.head.time_ps {
            self.lead(key.time_ps, key.order, key.to, key.slot);
        }
    }

    /// A new key of the wheel that may be the least.
    #[inline(never)]
    fn lead(&mut self, time_ps: Ps, order: u64, to: Actor, slot: u32) {
        let key = Key::new(time_ps, order, to, slot);
        if key < self.head {
            self.head = key;
            self.head_is_far = false;
        }
    }

    #[inline(always)]
    fn link(&mut self, bucket: u64, key: Key) {
        let bucket = bucket as usize % BUCKETS;
        self.nodes[key.slot as usize] = Node {
            time_ps: key.time_ps,
            order: key.order,
            to: key.to,
            next: self.first[bucket],
        };
        self.first[bucket] = key.slot;
        self.bits[bucket / 64] |= 1 << (bucket % 64);
        self.words |= 1 << (bucket / 64);
    }

    #[inline(never)]
    fn push_far(&mut self, time_ps: Ps, order: u64, to: Actor, slot: u32) {
        let key = Key::new(time_ps, order, to, slot);
        let slot = slot as usize;
        if slot >= self.nodes.len() {
            let node = Node {
                time_ps: 0,
                order: 0,
                to: 0,
                next: END,
            };
            self.nodes.resize((slot + 1).next_power_of_two(), node);
        }
        self.far.push(key);
        if key < self.far_head {
            self.far_head = key;
        }
        if key < self.head {
            self.head = key;
            self.head_is_far = true;
        }
    }

    /// The least key, which stays in the queue.
    #[inline]
    pub fn peek(&self) -> Option<&Key> {
        (self.head.time_ps < Ps::MAX).then_some(&self.head)
    }

    /// The least key; its time is `Ps::MAX` when there is none.
    #[inline(always)]
    pub(super) fn head(&self) -> Key {
        self.head
    }

    /// Removes the least key.
    #[inline]
    pub fn pop(&mut self) -> Option<Key> {
        self.pop_before(Ps::MAX)
    }

    /// Removes the least key if its time is before `bound`.
    #[inline(always)]
    pub fn pop_before(&mut self, bound: Ps) -> Option<Key> {
        let key = self.head;
        if key.time_ps >= bound {
            return None;
        }
        self.drop_head();
        Some(key)
    }

    /// Removes the least key, of at least one, and finds the next.
    #[inline(always)]
    pub(super) fn drop_head(&mut self) {
        self.review_in -= 1;
        if self.review_in == 0 {
            self.review();
        }
        let (now, slot) = (self.head.time_ps >> self.shift, self.head.slot);
        self.now = now;
        let at = now as usize % BUCKETS;
        let mut word = self.bits[at / 64];
        if self.head_is_far {
            self.far.pop();
            self.far_head = self.far.peek().copied().unwrap_or(NOTHING);
        } else {
            let next = self.nodes[slot as usize].next;
            if self.first[at] == slot {
                self.first[at] = next;
                // Without a branch: what follows a key is not to be foretold.
                word &= !(u64::from(next == END) << (at % 64));
                self.bits[at / 64] = word;
            } else {
                self.unlink(at, slot, next);
            }
        }
        word &= u64::MAX << (at % 64);
        let mut bucket = at / 64 * 64 + word.trailing_zeros() as usize;
        if word == 0 {
            bucket = self.later_bucket(at / 64);
            if bucket == BUCKETS {
                self.head = self.far_head;
                self.head_is_far = true;
                return;
            }
        }
        let slot = self.first[bucket % BUCKETS];
        let node = self.nodes[slot as usize];
        if node.next != END || node.time_ps >= self.far_head.time_ps {
            return self.find_head(bucket % BUCKETS);
        }
        self.head_is_far = false;
        self.head = node.key(slot);
    }

    /// Takes a key that is not the first off the list of its bucket.
    #[inline(never)]
    fn unlink(&mut self, bucket: usize, slot: u32, next: u32) {
        let mut before = self.first[bucket] as usize;
        while self.nodes[before].next != slot {
            before = self.nodes[before].next as usize;
        }
        self.nodes[before].next = next;
    }

    /// The first bucket that holds something after this word of bits, once around; `BUCKETS` if there is none.
    #[inline(never)]
    fn later_bucket(&mut self, word: usize) -> usize {
        loop {
            // Counted from the next word, so that the one it started from comes last.
            let from = (word as u32 + 1) % 64;
            let turned = self.words.rotate_right(from);
            if turned == 0 {
                return BUCKETS;
            }
            let found = ((turned.trailing_zeros() + from) % 64) as usize;
            let bits = self.bits[found];
            if bits != 0 {
                return found * 64 + bits.trailing_zeros() as usize;
            }
            self.words &= !(1 << found);
        }
    }

    /// The least key is that of this bucket or of the ladder.
    #[inline(never)]
    fn find_head(&mut self, bucket: usize) {
        let least = self.least_of(bucket);
        // A crowd has just moved: then its least key is there.
        self.head_is_far = self.far_head <= least;
        self.head = if self.head_is_far {
            self.far_head
        } else {
            least
        };
    }

    /// The least key of a bucket. If they are many, they go to the ladder.
    fn least_of(&mut self, bucket: usize) -> Key {
        let mut slot = self.first[bucket];
        let mut least = NOTHING;
        let mut count = 0;
        while slot != END {
            let node = self.nodes[slot as usize];
            let key = node.key(slot);
            if key < least {
                least = key;
            }
            count += 1;
            slot = node.next;
        }
        if count > CROWD {
            self.send_far(bucket, count as usize);
        }
        least
    }

    /// Moves the keys of a bucket to the ladder, first those that came first.
    #[cold]
    #[inline(never)]
    fn send_far(&mut self, bucket: usize, count: usize) {
        let mut keys = Vec::with_capacity(count);
        self.drain(bucket, &mut keys);
        for &key in keys.iter().rev() {
            self.far.push(key);
        }
        self.far_head = *self.far.peek().unwrap_or(&NOTHING);
    }

    fn drain(&mut self, bucket: usize, keys: &mut Vec<Key>) {
        let mut slot = std::mem::replace(&mut self.first[bucket], END);
        while slot != END {
            let node = self.nodes[slot as usize];
            keys.push(node.key(slot));
            slot = node.next;
        }
        self.bits[bucket / 64] &= !(1 << (bucket % 64));
    }

    /// Sets the width of buckets to what events are apart by now.
    #[cold]
    #[inline(never)]
    fn review(&mut self) {
        let now_ps = self.head.time_ps;
        let apart_ps = (now_ps - self.reviewed_ps) / u64::from(self.review_after);
        self.reviewed_ps = now_ps;
        self.review_after = (2 * self.review_after).min(REVIEW_MOST);
        self.review_in = self.review_after;
        let shift = (apart_ps / PER_EVENT).max(1).ilog2();
        if shift.abs_diff(self.shift) < 2 {
            return;
        }
        let mut keys = Vec::new();
        for bucket in 0..BUCKETS {
            self.drain(bucket, &mut keys);
        }
        self.shift = shift;
        self.now = now_ps >> shift;
        for key in keys {
            let bucket = key.time_ps >> shift;
            if bucket - self.now < BUCKETS as u64 {
                self.link(bucket, key);
            } else {
                self.push_far(key.time_ps, key.order, key.to, key.slot);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use proptest::prelude::*;

    /// What the queue and its far half have in common.
    trait Keys: Default {
        fn push(&mut self, key: Key);
        fn peek(&mut self) -> Option<Key>;
        fn pop(&mut self) -> Option<Key>;
        fn len(&self) -> usize;
    }

    macro_rules! keys {
        ($what:ty) => {
            impl Keys for $what {
                fn push(&mut self, key: Key) {
                    <$what>::push(self, key);
                }
                fn peek(&mut self) -> Option<Key> {
                    <$what>::peek(self).copied()
                }
                fn pop(&mut self) -> Option<Key> {
                    <$what>::pop(self)
                }
                fn len(&self) -> usize {
                    <$what>::len(self)
                }
            }
        };
    }
    keys!(Queue);
    keys!(Ladder);

    /// The plain reference: an ordered set.
    fn same_as_reference<Q: Keys>(steps: &[(u64, u64, u8)]) -> Result<(), TestCaseError> {
        let mut queue = Q::default();
        let mut reference = BTreeSet::new();
        let (mut now, mut slot) = (0u64, 0u32);
        let place = |k: Key| (k.time_ps, k.order, k.to, k.slot);
        let check =
            |queue: &mut Q, reference: &mut BTreeSet<(u64, u64, u32, u32)>, now: &mut u64| {
                let want = reference.pop_first();
                prop_assert_eq!(queue.peek().map(place), want);
                prop_assert_eq!(queue.pop().map(place), want);
                *now = want.map_or(*now, |w| w.0);
                Ok(())
            };
        for &(delay, src, pops) in steps {
            let key = Key::new(now + delay, order(src as u32, u64::from(slot)), 7, slot);
            slot += 1;
            queue.push(key);
            reference.insert(place(key));
            if slot.is_multiple_of(61) {
                prop_assert_eq!(queue.len(), reference.len());
            }
            // Looking ahead must not keep anything from coming in before what was seen.
            prop_assert_eq!(queue.peek().map(place), reference.first().copied());
            for _ in 0..pops {
                check(&mut queue, &mut reference, &mut now)?;
            }
        }
        while !reference.is_empty() {
            check(&mut queue, &mut reference, &mut now)?;
        }
        prop_assert!(queue.pop().is_none() && queue.len() == 0);
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
            same_as_reference::<Queue>(&steps)?;
            same_as_reference::<Ladder>(&steps)?;
        }

        #[test]
        fn keys_leave_in_order_while_many_are_pending(
            steps in prop::collection::vec((delay(), 0..1000u64, 0..2u8), 3000..6000)
        ) {
            same_as_reference::<Queue>(&steps)?;
            same_as_reference::<Ladder>(&steps)?;
        }

        #[test]
        fn keys_leave_in_order_at_a_steady_pace(
            delays in prop::collection::vec(0..1_000_000u64, 2000..12_000), pending in 1..1500usize
        ) {
            let step = |(i, delay): (usize, u64)| (delay, i as u64 % 320, u8::from(i >= pending));
            let steps: Vec<_> = delays.into_iter().enumerate().map(step).collect();
            same_as_reference::<Queue>(&steps)?;
        }
    }

    #[test]
    fn a_crowd_at_one_instant_leaves_by_source_and_sequence() {
        for pops in [0, 1] {
            let steps: Vec<_> = (0..5000).map(|i| (0, (i * 7919) % 320, pops)).collect();
            same_as_reference::<Queue>(&steps).unwrap();
            same_as_reference::<Ladder>(&steps).unwrap();
        }
    }

    #[test]
    fn slots_are_used_again() {
        let mut queue = Queue::new();
        for slot in 0..4 {
            queue.push(Key::new(u64::from(slot) * 100, order(slot, 0), 0, slot));
        }
        let mut last = 0;
        for n in 1..100_000u64 {
            let key = queue.pop().unwrap();
            assert!(key.time_ps >= last);
            last = key.time_ps;
            queue.push(Key::new(
                last + 1 + n * 7919 % 10_000,
                order(key.slot, n),
                0,
                key.slot,
            ));
        }
        assert_eq!(queue.len(), 4);
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
