//! The far half of the event queue: a ladder of buckets over time, each sorted when it is reached.
//!
//! ```text
//! now                                                          far future
//!  | run + late |   finer rung   |     coarser rung      |      top      |
//!  | sorted     | buckets of keys, unsorted              | one unsorted  |
//! ```
//!
//! A key is written about twice, into a bucket and into the sorted run, whatever the number of pending events and
//! however their times are spread: a bucket that holds too many is split into a finer rung, unless all its keys are of
//! one instant. A key that falls into the span of the run is put in its place there when that is near one of its ends.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::queue::Key;
use crate::time::Ps;

/// Keys that a bucket should hold when it is reached.
const PER_BUCKET: usize = 4;
/// A bucket with more keys than this is split.
const SPLIT_ABOVE: usize = 64;
/// Late arrivals that a heap takes before they get a rung of their own.
const LATE_MAX: usize = 128;
const BUCKETS_MAX: usize = 4096;
/// So many keys of the run are looked at to find a late arrival's place.
const NEAR: usize = 16;
/// Up to so many keys, insertion is the fastest way to sort.
const INSERTION_MAX: usize = 20;

/// Least and largest time.
fn span(keys: &[Key]) -> (Ps, Ps) {
    let times = keys.iter().map(|k| k.time_ps);
    times.fold((Ps::MAX, 0), |(a, b), t| (a.min(t), b.max(t)))
}

fn sort(keys: &mut [Key]) {
    if keys.len() > INSERTION_MAX {
        keys.sort_unstable();
        return;
    }
    for i in 1..keys.len() {
        let key = keys[i];
        let mut place = i;
        while place > 0 && key < keys[place - 1] {
            keys[place] = keys[place - 1];
            place -= 1;
        }
        keys[place] = key;
    }
}

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
    /// Covers `[start, end)` for `n` keys, none of them later than `most`.
    fn cover(&mut self, start: Ps, most: Ps, end: Ps, n: usize) {
        let wanted = (n / PER_BUCKET).next_power_of_two().clamp(8, BUCKETS_MAX) as u64;
        let fine = (most - start) / wanted + 1;
        let coarse = (end - start) / BUCKETS_MAX as u64 + 1;
        let width = fine.max(coarse).next_power_of_two();
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
pub(super) struct Ladder {
    /// The bucket that was reached, in order; `run[at..]` is left of it.
    run: Vec<Key>,
    at: usize,
    /// What was pushed into the midst of the run.
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
}

impl Default for Ladder {
    fn default() -> Self {
        Self {
            run: Vec::new(),
            at: 0,
            late: BinaryHeap::new(),
            late_max: LATE_MAX,
            limit: 0,
            rungs: Vec::new(),
            depth: 0,
            top: Vec::new(),
            top_start: 0,
        }
    }
}

impl Ladder {
    pub fn len(&self) -> usize {
        let on_rungs: usize = self.rungs[..self.depth].iter().map(|r| r.count).sum();
        self.run.len() - self.at + self.late.len() + on_rungs + self.top.len()
    }

    #[inline]
    pub fn push(&mut self, key: Key) {
        if key.time_ps >= self.top_start {
            self.top.push(key);
            return;
        }
        for rung in &mut self.rungs[..self.depth] {
            if key.time_ps >= rung.from {
                rung.push(key);
                return;
            }
        }
        self.push_into_run(key);
    }

    /// Into the span of the run: in its place if that is near, else into the heap.
    #[inline(never)]
    fn push_into_run(&mut self, key: Key) {
        let left = &mut self.run[self.at..];
        if left.last().is_none_or(|last| *last < key) {
            if self.at == self.run.len() {
                self.run.clear();
                self.at = 0;
            } else if self.run.len() == self.run.capacity() && 2 * self.at > self.run.len() {
                self.run.drain(..self.at);
                self.at = 0;
            }
            self.run.push(key);
            return;
        }
        if let Some(place) = left.iter().take(NEAR).position(|k| key < *k) {
            if self.at > 0 {
                self.run.copy_within(self.at..self.at + place, self.at - 1);
                self.at -= 1;
                self.run[self.at + place] = key;
                return;
            }
            if self.run.len() <= SPLIT_ABOVE {
                self.run.insert(place, key);
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
        if self.late.is_empty() && self.at < self.run.len() {
            return self.run.get(self.at);
        }
        self.peek_late()
    }

    /// Removes the least key.
    #[inline]
    pub fn pop(&mut self) -> Option<Key> {
        self.pop_before(Ps::MAX)
    }

    /// Removes the least key if its time is before `bound`.
    #[inline]
    pub fn pop_before(&mut self, bound: Ps) -> Option<Key> {
        if self.late.is_empty()
            && let Some(key) = self.run.get(self.at)
        {
            if key.time_ps >= bound {
                return None;
            }
            self.at += 1;
            return Some(*key);
        }
        self.pop_late(bound)
    }

    /// The run is empty or not all there is before its end.
    #[inline(never)]
    fn peek_late(&mut self) -> Option<&Key> {
        if self.at == self.run.len() && !self.advance() {
            return None;
        }
        let first = self.run.get(self.at);
        match self.late.peek() {
            Some(Reverse(late)) if first.is_none_or(|f| late < f) => Some(late),
            _ => first,
        }
    }

    #[inline(never)]
    fn pop_late(&mut self, bound: Ps) -> Option<Key> {
        let key = *self.peek_late()?;
        if key.time_ps >= bound {
            return None;
        }
        if self.run.get(self.at) == Some(&key) {
            self.at += 1;
        } else {
            self.late.pop();
        }
        Some(key)
    }

    /// Fills the run, of which nothing is left: with what came late, or from the next bucket. False when nothing is
    /// left anywhere.
    fn advance(&mut self) -> bool {
        self.run.clear();
        self.at = 0;
        self.late_max = LATE_MAX;
        if !self.late.is_empty() {
            self.run.extend(self.late.drain().map(|Reverse(key)| key));
            sort(&mut self.run);
            return true;
        }
        loop {
            let Some(finest) = self.depth.checked_sub(1) else {
                return self.advance_to_top();
            };
            let rung = &mut self.rungs[finest];
            if rung.count == 0 {
                self.depth -= 1;
                continue;
            }
            let left = &rung.buckets[rung.next..];
            let reached = rung.next + left.iter().take_while(|b| b.is_empty()).count();
            rung.next = reached + 1;
            let start = rung.start + ((reached as Ps) << rung.shift);
            let end = start.saturating_add(1 << rung.shift);
            rung.from = end;
            let bucket = &mut rung.buckets[reached];
            rung.count -= bucket.len();
            self.limit = end;
            std::mem::swap(&mut self.run, bucket);
            if self.run.len() > SPLIT_ABOVE {
                let (least, most) = span(&self.run);
                if least < most {
                    self.split(least, most);
                    continue;
                }
            }
            sort(&mut self.run);
            return true;
        }
    }

    /// As `advance`, when everything that is left is in the top.
    fn advance_to_top(&mut self) -> bool {
        std::mem::swap(&mut self.run, &mut self.top);
        if self.run.is_empty() {
            (self.limit, self.top_start) = (0, 0);
            return false;
        }
        let (least, most) = span(&self.run);
        (self.limit, self.top_start) = (most + 1, most + 1);
        if self.run.len() > SPLIT_ABOVE && least < most {
            self.split(least, most);
            return self.advance();
        }
        sort(&mut self.run);
        true
    }

    /// Moves the run, which lies between `least` and `most`, to a new finest rung that ends at `limit`.
    fn split(&mut self, least: Ps, most: Ps) {
        let mut keys = std::mem::take(&mut self.run);
        self.spread(&mut keys, least, most);
        self.run = keys;
    }

    /// Moves `keys`, from `least` to `most`, to a new finest rung that ends at `limit`.
    fn spread(&mut self, keys: &mut Vec<Key>, least: Ps, most: Ps) {
        if self.rungs.len() == self.depth {
            self.rungs.push(Rung::default());
        }
        let rung = &mut self.rungs[self.depth];
        rung.cover(least, most, self.limit, keys.len());
        for key in keys.drain(..) {
            rung.push(key);
        }
        self.depth += 1;
        self.limit = least;
    }

    /// Many keys fell into the span of the run: those after the run get a rung.
    #[cold]
    #[inline(never)]
    fn spread_late(&mut self) {
        let after_run = self.run[self.at..].last().map(|last| last.time_ps + 1);
        let start = after_run
            .unwrap_or_else(|| self.late.peek().map_or(self.limit, |Reverse(k)| k.time_ps));
        if start < self.limit {
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
                let (_, most) = span(&moved);
                self.spread(&mut moved, start, most);
            }
        }
        self.late_max = (2 * self.late.len()).max(LATE_MAX);
    }
}
