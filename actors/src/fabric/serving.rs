//! One rank's arrivals on their way through its lanes: a queue served in order of arrival, message by message, as arrays.

use std::ops::Range;

use super::link::Direction;
use super::row::{COUNT_BITS, Cell, Close, LINE_CELLS, LINE_CLOSE, after, units_of};
use super::shape::Shape;
use super::sorting::Keys;
use crate::time::Ps;

/// What a rank got in one phase.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Receipt {
    /// When the last byte was in.
    pub complete_ps: Ps,
    /// A sum over hashes of every message: source, slot, units and time of its last byte.
    pub hash: u64,
    pub messages: u32,
    pub units: u64,
}

impl Receipt {
    pub fn add(&mut self, other: &Self) {
        self.complete_ps = self.complete_ps.max(other.complete_ps);
        self.hash = self.hash.wrapping_add(other.hash);
        self.messages += other.messages;
        self.units += other.units;
    }
}

/// What distinguishes a message besides its times: who sent it to which slot, and how much. An odd factor spreads it
/// over the word.
#[inline]
fn mark(index: u64, units: u64) -> u64 {
    (index << 16 | units).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// One message's part in [`Receipt::hash`]: half of the word times the other half, which no sum over messages undoes
/// when two of them swap their times. `index` is `source * slots + slot`.
#[inline]
pub fn message_hash(end_ps: Ps, index: usize, units: u64) -> u64 {
    hash(end_ps, mark(index as u64, units))
}

#[inline]
fn hash(end_ps: Ps, mark: u64) -> u64 {
    let x = end_ps.wrapping_add(mark);
    u64::from(x as u32) * u64::from((x >> 32) as u32 ^ mark as u32 | 1)
}

/// Puts `word` where there is room for it, as there always is: without a way out for when there is none, loops that
/// write where their data tells them take a third less time.
#[inline(always)]
pub(super) fn put(words: &mut [u64], at: usize, word: u64) {
    debug_assert!(at < words.len());
    if let Some(place) = words.get_mut(at) {
        *place = word;
    }
}

/// Low bits of a key: the message's index, and whether it comes from inside the node.
const INDEX_BITS: u32 = COUNT_BITS;

/// Sorted, keys are the order of service.
#[inline]
pub(super) fn arrival_key(after_ps: Ps, index: usize, near: bool) -> u64 {
    after_ps << INDEX_BITS | (index as u64) << 1 | u64::from(near)
}

/// Arrivals at one rank that wait to be served, as arrays; the buffers are kept.
#[derive(Clone, Debug, Default)]
pub struct Inbox {
    pub base_ps: Ps,
    /// Arrival after `base_ps`, then index, then reach: sorted, they are the order of service.
    pub(super) keys: Keys,
    pub(super) len: usize,
    pub(super) busy_ps: Ps,
    pub(super) bytes: u64,
}

/// Which of a rank's cells are taken.
#[derive(Clone, Copy, Debug)]
pub struct Taking {
    pub unit_bytes: u32,
    pub inside_ps: Ps,
    pub between_ps: Ps,
    /// All that have come by then; `None`: all.
    pub by_ps: Option<Ps>,
    /// Index of the rank's first cell, where several phases are served together.
    pub first_index: usize,
    /// Only the first slot of each rank gets anything.
    pub first_only: bool,
}

/// A phase that is served: what its messages carry, and how long a unit takes.
#[derive(Clone, Copy, Debug)]
pub struct Served<'a> {
    /// By `source * slots + slot`.
    pub units: &'a [u16],
    /// From another node, and from inside.
    pub unit_ps: [Ps; 2],
}

/// Columns of a board: the cells of one rank, source by source.
#[derive(Clone, Copy)]
pub struct Column<'a> {
    pub rows: &'a [Cell],
    pub stride: usize,
    pub first: usize,
    /// Sources that sent anything to this shard, in order; `None`: all did.
    pub sources: Option<&'a [u16]>,
}

/// The same where ranks have one slot and rows are close.
#[derive(Clone, Copy)]
pub struct CloseColumn<'a> {
    /// By source.
    pub lines: &'a [[Close; LINE_CLOSE]],
    pub column: usize,
    /// When each source's row began.
    pub from_ps: &'a [Ps],
    /// Key of a message from each source that would arrive then; times count from when the phase began.
    pub keys: &'a [u64],
    /// Source and units of messages that their words do not say.
    pub heavy: &'a [(u16, u16)],
    pub sources: Option<&'a [u16]>,
}

impl<'a> Column<'a> {
    /// The cells of sources, where ranks have one slot: a line each.
    fn lines(&self, sources: Range<usize>) -> &'a [[Cell; LINE_CELLS]] {
        debug_assert_eq!(self.stride, LINE_CELLS);
        &self.rows.as_chunks().0[sources]
    }
}

impl Inbox {
    /// Begins with nothing; times count from `base_ps`.
    pub fn open(&mut self, base_ps: Ps) {
        self.base_ps = base_ps;
        self.len = 0;
        self.busy_ps = 0;
        self.bytes = 0;
    }

    /// Takes one rank's cells of a phase, in the order in which they arrive if all sources began together. Units by
    /// `source * slots + slot` go to `units`. Returns what came without crossing the lanes, and the sums of all.
    pub fn gather(
        &mut self,
        shape: &Shape,
        rank: u16,
        column: Column<'_>,
        t: &Taking,
        units: &mut [u16],
    ) -> Receipt {
        let me = rank as usize;
        let room = self.len + shape.ranks() * shape.slots;
        self.keys.make_room(room);
        let (node, npu) = (shape.node_of_rank[me], shape.npu_of_rank[me]);
        let (before, mut lane_units) = (self.len, 0);
        let mut got = Receipt::default();
        let mut one = |s: usize, inbox: &mut Self, units: &mut [u16]| {
            if shape.npu_of_rank[s] == npu {
                let receipt = inbox.direct(shape.slots, s, column, t, units);
                got.add(&receipt);
                return 0;
            }
            let near = shape.node_of_rank[s] == node;
            let sum = inbox.run(shape.slots, s..s + 1, column, t, u64::from(near), units);
            inbox.busy_ps += if near { t.inside_ps } else { t.between_ps } * sum;
            sum
        };
        if let Some(sources) = column.sources {
            units.fill(0);
            if shape.slots == 1 && t.by_ps.is_none() {
                lane_units = self.some(shape, me, sources, column, t, units, &mut got);
                self.bytes += lane_units * u64::from(t.unit_bytes);
                got.units += lane_units;
                got.messages += (self.len - before) as u32;
                return got;
            }
            let (below, above) = sources.split_at(sources.partition_point(|&s| s <= rank));
            for &s in below.iter().rev().chain(above.iter().rev()) {
                lane_units += one(usize::from(s), self, units);
            }
            self.bytes += lane_units * u64::from(t.unit_bytes);
            got.units += lane_units;
            got.messages += (self.len - before) as u32;
            return got;
        }
        if t.first_only && shape.slots > 1 {
            units.fill(0);
        }
        lane_units += one(me, self, units);
        shape.in_arrival_order(me, |ranks, from| {
            if from != node {
                let sum = self.run(shape.slots, ranks, column, t, 0, units);
                self.busy_ps += t.between_ps * sum;
                lane_units += sum;
                return;
            }
            for s in ranks.rev() {
                lane_units += one(s, self, units);
            }
        });
        self.bytes += lane_units * u64::from(t.unit_bytes);
        got.units += lane_units;
        got.messages += (self.len - before) as u32;
        got
    }

    /// Only those sources that sent anything to this shard, from the last before the rank's own to the first after it,
    /// where ranks have one slot. Returns units that cross the lanes.
    #[expect(clippy::too_many_arguments, reason = "the parts of one gather")]
    fn some(
        &mut self,
        shape: &Shape,
        me: usize,
        sources: &[u16],
        column: Column<'_>,
        t: &Taking,
        units: &mut [u16],
        got: &mut Receipt,
    ) -> u64 {
        let (node, npu) = (shape.node_of_rank[me], shape.npu_of_rank[me]);
        let base_ps = self.base_ps;
        let lines = column.lines(0..shape.ranks());
        let mut of_reach = [0, 0];
        let (below, above) = sources.split_at(sources.partition_point(|&s| usize::from(s) <= me));
        for &s in below.iter().rev().chain(above.iter().rev()) {
            let s = usize::from(s);
            if shape.npu_of_rank[s] == npu {
                got.add(&self.direct(1, s, column, t, units));
                continue;
            }
            let c = lines[s][column.first % LINE_CELLS];
            let near = u64::from(shape.node_of_rank[s] == node);
            units[s] = c as u16;
            let index = (t.first_index + s) as u64;
            self.keys.slots()[self.len] = (after(base_ps, c) << INDEX_BITS) | index << 1 | near;
            self.len += usize::from(c != 0);
            of_reach[near as usize] += units_of(c);
        }
        let [far, near] = of_reach;
        self.busy_ps += t.between_ps * far + t.inside_ps * near;
        far + near
    }

    /// Sources that reach the rank's lanes at the same cost, from the last to the first. Returns their units.
    #[inline]
    fn run(
        &mut self,
        slots: usize,
        sources: Range<usize>,
        column: Column<'_>,
        t: &Taking,
        near: u64,
        units: &mut [u16],
    ) -> u64 {
        let base_ps = self.base_ps;
        let keys = self.keys.slots();
        let (mut j, mut sum) = (self.len, 0);
        let key = |after_ps: Ps, index: usize| {
            (after_ps << INDEX_BITS) | ((t.first_index + index) as u64) << 1 | near
        };
        if slots == 1 && t.by_ps.is_none() {
            let rows = column.lines(sources.clone());
            let units = &mut units[sources.clone()];
            for ((row, u), s) in rows.iter().zip(units.iter_mut()).zip(sources).rev() {
                let c = row[column.first % LINE_CELLS];
                *u = c as u16;
                put(keys, j, key(after(base_ps, c), s));
                j += usize::from(c != 0);
            }
            self.len = j;
            // Several at a time, so not in the loop above.
            return units.iter().map(|&u| u64::from(u)).sum();
        }
        if t.first_only && t.by_ps.is_none() {
            for s in sources.rev() {
                let c = column.rows[s * column.stride + column.first];
                units[s * slots] = c as u16;
                put(keys, j, key(after(base_ps, c), s * slots));
                j += usize::from(c != 0);
                sum += units_of(c);
            }
            self.len = j;
            return sum;
        }
        let span_ps = t.by_ps.map_or(u64::MAX, |by| by.saturating_sub(base_ps));
        for s in sources.rev() {
            let units = &mut units[s * slots..(s + 1) * slots];
            let row = &column.rows[s * column.stride + column.first..][..slots];
            for (slot, (&c, u)) in row.iter().zip(units).enumerate() {
                let after_ps = after(base_ps, c);
                let due = (c != 0) & (after_ps <= span_ps);
                let n = if due { units_of(c) } else { 0 };
                *u = n as u16;
                put(keys, j, key(after_ps, s * slots + slot));
                j += usize::from(due);
                sum += n;
            }
        }
        self.len = j;
        sum
    }

    /// What a source on the same package sends: its cells say when the last byte is in.
    fn direct(
        &mut self,
        slots: usize,
        s: usize,
        column: Column<'_>,
        t: &Taking,
        units: &mut [u16],
    ) -> Receipt {
        let mut got = Receipt::default();
        let units = &mut units[s * slots..(s + 1) * slots];
        units.fill(0);
        let row = &column.rows[s * column.stride + column.first..][..slots];
        for (slot, (&c, u)) in row.iter().zip(units).enumerate() {
            let at_ps = self.base_ps + after(self.base_ps, c);
            if c == 0 || t.by_ps.is_some_and(|by| at_ps > by) {
                continue;
            }
            let n = units_of(c);
            *u = n as u16;
            got.add(&Receipt {
                complete_ps: at_ps,
                hash: message_hash(at_ps, s * slots + slot, n),
                messages: 1,
                units: n,
            });
        }
        got
    }

    /// Serves all that was gathered; what the lanes did is added to `got`, phase by phase. `phases` are as many, each
    /// with `1 << 15` over their number indices at most.
    pub fn serve<const MANY: bool>(
        &mut self,
        lanes: &mut Direction,
        phases: &[Served<'_>],
        got: &mut [Receipt],
    ) {
        if self.len == 0 {
            return;
        }
        let (keys, waits_ps) = self.keys.sort(self.len);
        let waits_ps = &mut waits_ps[..keys.len()];
        let cells = phases[0].units.len();
        let (base_ps, mut free_ps) = (self.base_ps, lanes.free_ps);
        if MANY {
            for (&key, wait_ps) in keys.iter().zip(&mut *waits_ps) {
                let index = index_of(key);
                let (phase, index) = (index / cells, index % cells);
                let served = serve_one(key, index, base_ps, free_ps, &phases[phase]);
                free_ps = served.free_ps;
                *wait_ps = served.wait_ps;
                let got = &mut got[phase];
                got.hash = got.hash.wrapping_add(served.hash);
                got.complete_ps = got.complete_ps.max(free_ps);
            }
        } else {
            let sum;
            (free_ps, sum) = serve_keys(keys, base_ps, free_ps, phases[0], waits_ps);
            got[0].hash = got[0].hash.wrapping_add(sum);
            got[0].complete_ps = got[0].complete_ps.max(free_ps);
        }
        lanes.served(free_ps, self.busy_ps, self.bytes, waits_ps);
    }
}

/// `source * slots + slot` of a key's message, with those of other phases before it.
#[inline(always)]
fn index_of(key: u64) -> usize {
    usize::from(key as u16 >> 1)
}

/// How a message fared at the lanes.
struct AtLanes {
    wait_ps: Ps,
    /// When it was through.
    free_ps: Ps,
    hash: u64,
}

/// One phase, with the registers to itself: serves all, and says how long each waited. Returns when the lanes are free, and the sum
/// of hashes.
#[inline(never)]
fn serve_keys(
    keys: &[u64],
    base_ps: Ps,
    mut free_ps: Ps,
    phase: Served<'_>,
    waits_ps: &mut [Ps],
) -> (Ps, u64) {
    let mut sum = 0u64;
    for (&key, wait_ps) in keys.iter().zip(waits_ps) {
        let served = serve_one(key, index_of(key), base_ps, free_ps, &phase);
        free_ps = served.free_ps;
        *wait_ps = served.wait_ps;
        sum = sum.wrapping_add(served.hash);
    }
    (free_ps, sum)
}

#[inline(always)]
fn serve_one(key: u64, index: usize, base_ps: Ps, free_ps: Ps, phase: &Served<'_>) -> AtLanes {
    let n = u64::from(phase.units[index]);
    let at_ps = base_ps + (key >> INDEX_BITS);
    let start_ps = at_ps.max(free_ps);
    let [between_ps, inside_ps] = phase.unit_ps;
    let unit_ps = if key & 1 == 0 { between_ps } else { inside_ps };
    let end_ps = start_ps + unit_ps * n;
    AtLanes {
        wait_ps: start_ps - at_ps,
        free_ps: end_ps,
        hash: hash(end_ps, mark(index as u64, n)),
    }
}
