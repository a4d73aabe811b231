//! One rank's arrivals on their way through its lanes: a queue served in order of arrival, message by message, as arrays.

use std::ops::Range;

use super::link::Direction;
use super::outgoing::{COUNT_BITS, Cell, after, units_of};
use super::shape::Shape;
use super::sorting::Sorter;
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

/// What distinguishes a message besides its times. Odd factors spread it over both halves of the word.
#[inline]
fn mark(source: usize, slot: usize, units: u64) -> u64 {
    ((source as u64) << 24 | (slot as u64) << 16 | units).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// One message's part in [`Receipt::hash`]: half of the word times the other half, which no sum over messages undoes
/// when two of them swap their times.
#[inline]
pub fn message_hash(end_ps: Ps, source: usize, slot: usize, units: u64) -> u64 {
    hash(end_ps, mark(source, slot, units))
}

#[inline]
fn hash(end_ps: Ps, mark: u64) -> u64 {
    let x = end_ps.wrapping_add(mark);
    (x & 0xffff_ffff).wrapping_mul((x ^ mark.rotate_left(32)) >> 32 | 1)
}

/// Arrivals at one rank that wait to be served, as arrays; the buffers are kept.
#[derive(Clone, Debug, Default)]
pub struct Inbox {
    pub base_ps: Ps,
    /// Arrival after `base_ps` above, index into the arrays below: sorted, they are the order of service.
    keys: Vec<u64>,
    work_ps: Vec<Ps>,
    marks: Vec<u64>,
    /// Phase of each, where there are several.
    tags: Vec<u8>,
    len: usize,
    busy_ps: Ps,
    bytes: u64,
    sorter: Sorter,
    waits_ps: Vec<Ps>,
}

/// Which of a rank's cells are taken.
#[derive(Clone, Copy, Debug)]
pub struct Taking {
    pub unit_bytes: u32,
    pub inside_ps: Ps,
    pub between_ps: Ps,
    /// All that have come by then; `None`: all.
    pub by_ps: Option<Ps>,
}

/// Columns of a board: the cells of one rank, source by source.
#[derive(Clone, Copy)]
pub struct Column<'a> {
    pub rows: &'a [Cell],
    pub stride: usize,
    pub first: usize,
    /// Sources that have not posted; empty: none.
    pub missing: &'a [bool],
}

impl Inbox {
    /// Begins with nothing; times count from `base_ps`.
    pub fn open(&mut self, base_ps: Ps) {
        self.base_ps = base_ps;
        self.len = 0;
        self.tags.clear();
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
        if self.keys.len() < room {
            self.keys.resize(room, 0);
            self.work_ps.resize(room, 0);
            self.marks.resize(room, 0);
        }
        let (node, npu) = (shape.node_of_rank[me], shape.npu_of_rank[me]);
        let mut got = self.direct(shape.slots, me, column, t, units);
        let before = self.len;
        let mut lane_units = 0;
        shape.in_arrival_order(me, |ranks, from| {
            if from != node {
                lane_units += self.run(shape.slots, ranks, column, t.between_ps, t.by_ps, units);
                return;
            }
            for s in ranks.rev() {
                if shape.npu_of_rank[s] == npu {
                    let receipt = self.direct(shape.slots, s, column, t, units);
                    got.add(&receipt);
                } else {
                    lane_units +=
                        self.run(shape.slots, s..s + 1, column, t.inside_ps, t.by_ps, units);
                }
            }
        });
        self.bytes += lane_units * u64::from(t.unit_bytes);
        got.units += lane_units;
        got.messages += (self.len - before) as u32;
        got
    }

    /// Says that all that was gathered since the last call belongs to phase `tag`.
    pub fn tag(&mut self, tag: usize) {
        self.tags.resize(self.len, tag as u8);
    }

    /// Sources that reach the rank's lanes at the same cost, from the last to the first. Returns their units.
    #[inline]
    fn run(
        &mut self,
        slots: usize,
        sources: Range<usize>,
        column: Column<'_>,
        unit_ps: Ps,
        by_ps: Option<Ps>,
        units: &mut [u16],
    ) -> u64 {
        let base_ps = self.base_ps;
        let span_ps = by_ps.map_or(u64::MAX, |by| by.saturating_sub(base_ps));
        let (keys, work, marks) = (
            self.keys.as_mut_slice(),
            self.work_ps.as_mut_slice(),
            self.marks.as_mut_slice(),
        );
        let work = &mut work[..keys.len()];
        let marks = &mut marks[..keys.len()];
        let (mut j, mut sum) = (self.len, 0);
        if slots == 1 && column.missing.is_empty() && by_ps.is_none() {
            let rows = &column.rows[sources.start * column.stride..sources.end * column.stride];
            let rows = rows.chunks_exact(column.stride).rev();
            for ((row, u), s) in rows
                .zip(units[sources.clone()].iter_mut().rev())
                .zip(sources.rev())
            {
                let c = row[column.first];
                let n = units_of(c);
                *u = n as u16;
                keys[j] = (after(base_ps, c) << COUNT_BITS) | j as u64;
                work[j] = unit_ps * n;
                marks[j] = mark(s, 0, n);
                j += usize::from(c != 0);
                sum += n;
            }
            self.len = j;
            self.busy_ps += unit_ps * sum;
            return sum;
        }
        for s in sources.rev() {
            let units = &mut units[s * slots..(s + 1) * slots];
            if !column.missing.is_empty() && column.missing[s] {
                units.fill(0);
                continue;
            }
            let row = &column.rows[s * column.stride + column.first..][..slots];
            for (slot, (&c, u)) in row.iter().zip(units).enumerate() {
                let after_ps = after(base_ps, c);
                let due = (c != 0) & (after_ps <= span_ps);
                let n = if due { units_of(c) } else { 0 };
                *u = n as u16;
                keys[j] = (after_ps << COUNT_BITS) | j as u64;
                work[j] = unit_ps * n;
                marks[j] = mark(s, slot, n);
                j += usize::from(due);
                sum += n;
            }
        }
        self.len = j;
        self.busy_ps += unit_ps * sum;
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
        if !column.missing.is_empty() && column.missing[s] {
            return got;
        }
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
                hash: message_hash(at_ps, s, slot, n),
                messages: 1,
                units: n,
            });
        }
        got
    }

    /// Serves all that was gathered; what the lanes did is added to `got`, by tag if there are `MANY`.
    pub fn serve<const MANY: bool>(&mut self, lanes: &mut Direction, got: &mut [Receipt]) {
        if self.len == 0 {
            return;
        }
        let keys = &mut self.keys[..self.len];
        self.sorter.sort(keys);
        self.waits_ps.resize(self.len, 0);
        let (work, marks) = (&self.work_ps[..], &self.marks[..self.work_ps.len()]);
        let (base_ps, mut free_ps, mut sum) = (self.base_ps, lanes.free_ps, 0u64);
        for (&key, wait_ps) in keys.iter().zip(&mut self.waits_ps) {
            let j = usize::from(key as u16);
            let at_ps = base_ps + (key >> COUNT_BITS);
            let start_ps = at_ps.max(free_ps);
            free_ps = start_ps + work[j];
            *wait_ps = start_ps - at_ps;
            let h = hash(free_ps, marks[j]);
            if MANY {
                let got = &mut got[usize::from(self.tags[j])];
                got.hash = got.hash.wrapping_add(h);
                got.complete_ps = got.complete_ps.max(free_ps);
            } else {
                sum = sum.wrapping_add(h);
            }
        }
        if !MANY {
            got[0].hash = got[0].hash.wrapping_add(sum);
            got[0].complete_ps = got[0].complete_ps.max(free_ps);
        }
        lanes.served(free_ps, self.busy_ps, self.bytes, &self.waits_ps);
    }
}
