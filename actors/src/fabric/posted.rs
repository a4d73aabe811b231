//! One phase on a board: the rows that its sources have posted, and their flags.

use super::board::{Arrived, PhaseSend};
use super::paths::BothReaches;
use super::row::{Cell, Close, LINE_CELLS, LINE_CLOSE, Row, close_units, units_of, wide_of};
use super::serving::{CloseColumn, Column, Served, arrival_key};
use super::shape::Shape;
use crate::time::Ps;

/// One phase of a channel. The next but one takes its place.
#[derive(Clone, Debug)]
pub(super) struct Phase {
    pub number: u32,
    pub unit_bytes: u32,
    /// Serialisation of one unit, from inside the node and from another.
    pub inside_ps: Ps,
    pub between_ps: Ps,
    /// Pace of flags; each source's own where a fault slows some of them.
    flag_ps: Ps,
    flag_ps_of: Vec<Ps>,
    paces_differ: bool,
    /// No cell is earlier.
    pub from_ps: Ps,
    flags_from_ps: Vec<Ps>,
    /// Phase that each source's row belongs to.
    row_of: Vec<u32>,
    pub posted: u32,
    pub expected: u32,
    /// Local ranks that have not collected it; 0: the phase is over, or has not begun.
    pub awaited: u32,
    /// Sources that sent anything to this shard: in order, once all have posted.
    pub senders: Vec<u16>,
    /// Whether anything comes to each local rank: not 0.
    pub incoming: Vec<u64>,
    /// Something comes to every local rank.
    all_incoming: bool,
    /// Only the first slot of ranks gets anything.
    pub first_only: bool,
    /// Number of the last phase that each local rank collected.
    pub collected: Vec<u32>,
    rows: Rows,
}

/// Rows as they lie in memory: in blocks of columns, in each source by source.
#[derive(Clone, Debug)]
struct Rows {
    /// All are in `wide`; else all are in `close`.
    are_wide: bool,
    /// Ranks of a block of `wide`, and its cells of one source.
    per_block: usize,
    width: usize,
    /// Where ranks have one slot.
    close: Vec<[Close; LINE_CLOSE]>,
    /// Of `close`: when each source's row began, and by local rank what is said beside: source and units.
    from_ps: Vec<Ps>,
    /// The same as a key of the inbox, once all have posted.
    keys: Vec<u64>,
    heavy: Vec<Vec<(u16, u16)>>,
    any_heavy: bool,
    wide: Vec<Cell>,
}

impl Rows {
    fn new(shape: &Shape) -> Self {
        let (ranks, locals) = (shape.ranks(), shape.local.len());
        let per_block = (LINE_CELLS / shape.slots).max(1);
        let lines = if shape.slots == 1 {
            locals.div_ceil(LINE_CLOSE) * ranks
        } else {
            0
        };
        let mut rows = Self {
            are_wide: shape.slots > 1,
            per_block,
            width: per_block * shape.slots,
            close: vec![[0; LINE_CLOSE]; lines],
            from_ps: vec![0; ranks],
            keys: vec![0; ranks],
            heavy: vec![Vec::new(); locals],
            any_heavy: false,
            wide: Vec::new(),
        };
        if rows.are_wide {
            rows.make_room(shape);
        }
        rows
    }

    fn make_room(&mut self, shape: &Shape) {
        let blocks = shape.local.len().div_ceil(self.per_block);
        self.wide.resize(blocks * shape.ranks() * self.width, 0);
    }

    fn clear(&mut self, shape: &Shape) {
        self.are_wide = shape.slots > 1;
        if std::mem::take(&mut self.any_heavy) {
            self.heavy.iter_mut().for_each(Vec::clear);
        }
    }

    fn put_close(&mut self, shape: &Shape, source: usize, row: &Row) {
        self.from_ps[source] = row.from_ps;
        let of_block = shape.ranks();
        let (lines, rest) = row.close.as_chunks::<LINE_CLOSE>();
        let mut at = source;
        for line in lines {
            self.close[at] = *line;
            at += of_block;
        }
        if !rest.is_empty() {
            self.close[at][..rest.len()].copy_from_slice(rest);
        }
        for &(rank, units) in row.heavy.iter().filter(|(rank, _)| shape.is_local(*rank)) {
            self.heavy[shape.index(rank)].push((source as u16, units));
            self.any_heavy = true;
        }
    }

    fn put_wide(&mut self, shape: &Shape, source: usize, cells: &[Cell]) {
        let of_block = shape.ranks() * self.width;
        let mut at = source * self.width;
        let (lines, rest) = if self.width == LINE_CELLS {
            cells.as_chunks::<LINE_CELLS>()
        } else {
            (&[][..], cells)
        };
        for line in lines {
            self.wide[at..at + LINE_CELLS].copy_from_slice(line);
            at += of_block;
        }
        for part in rest.chunks(self.width) {
            self.wide[at..at + part.len()].copy_from_slice(part);
            at += of_block;
        }
    }

    /// Where a local rank's block of `wide` begins, and its cells in each source's part of it.
    fn place(&self, shape: &Shape, index: usize) -> (usize, usize) {
        let block = index / self.per_block * shape.ranks() * self.width;
        (block, index % self.per_block * shape.slots)
    }

    fn close_column(&self, ranks: usize, index: usize) -> (&[[Close; LINE_CLOSE]], usize) {
        let first = index / LINE_CLOSE * ranks;
        (&self.close[first..first + ranks], index % LINE_CLOSE)
    }

    /// Units of a message in `close`.
    fn units_at(&self, close: Close, source: usize, index: usize) -> u64 {
        let beside = |(s, _): &&(u16, u16)| usize::from(*s) == source;
        let heavy = self.heavy[index].iter().find(beside);
        u64::from(heavy.map_or(close_units(close), |(_, units)| *units))
    }

    /// From now on, until it is cleared, all rows are wide: those of `senders` have been posted.
    fn widen(&mut self, shape: &Shape, senders: &[u16]) {
        if self.are_wide {
            return;
        }
        self.are_wide = true;
        self.make_room(shape);
        for index in 0..shape.local.len() {
            let (block, first) = self.place(shape, index);
            for s in senders.iter().map(|s| usize::from(*s)) {
                let (lines, column) = self.close_column(shape.ranks(), index);
                let close = lines[s][column];
                let units = self.units_at(close, s, index);
                self.wide[block + s * self.width + first] = wide_of(self.from_ps[s], close, units);
            }
        }
    }
}

impl Phase {
    /// That has not begun, of the local ranks of `shape`.
    pub fn new(shape: &Shape) -> Self {
        let (ranks, locals) = (shape.ranks(), shape.local.len());
        Self {
            number: 0,
            unit_bytes: 0,
            inside_ps: 0,
            between_ps: 0,
            flag_ps: 0,
            flag_ps_of: vec![0; ranks],
            paces_differ: false,
            from_ps: Ps::MAX,
            flags_from_ps: vec![0; ranks],
            row_of: vec![0; ranks],
            posted: 0,
            expected: 0,
            awaited: 0,
            senders: Vec::new(),
            incoming: vec![0; locals],
            all_incoming: false,
            first_only: true,
            collected: vec![0; locals],
            rows: Rows::new(shape),
        }
    }

    /// The first source posts.
    pub fn begin(&mut self, shape: &Shape, cost: &BothReaches, send: &PhaseSend) {
        self.expected = u32::from(send.expected);
        self.number = send.phase;
        self.posted = 0;
        self.awaited = shape.local.len() as u32;
        self.from_ps = Ps::MAX;
        self.unit_bytes = send.unit_bytes;
        self.inside_ps = cost.inside.per_byte.ps(u64::from(send.unit_bytes));
        self.between_ps = cost.between.per_byte.ps(u64::from(send.unit_bytes));
        self.flag_ps = send.flag_ps;
        self.paces_differ = false;
        self.senders.clear();
        self.incoming.fill(0);
        self.all_incoming = false;
        self.first_only = true;
        self.rows.clear(shape);
    }

    /// Takes what one source posts.
    pub fn take(&mut self, shape: &Shape, send: &PhaseSend, row: &Row) {
        let source = send.source as usize;
        self.from_ps = self.from_ps.min(send.from_ps);
        self.flags_from_ps[source] = send.flags_from_ps;
        self.flag_ps_of[source] = send.flag_ps;
        self.paces_differ |= send.flag_ps != self.flag_ps;
        self.row_of[source] = send.phase;
        self.posted += 1;
        if row.is_empty() {
            return;
        }
        if !row.wide.is_empty() {
            self.widen(shape);
        }
        self.senders.push(send.source);
        if !self.rows.are_wide {
            self.note_incoming(&row.close);
            self.rows.put_close(shape, source, row);
            return;
        }
        let cells = row.cells(shape);
        if shape.slots == 1 {
            self.note_incoming(&cells);
        } else {
            self.note_slots(shape.slots, &cells);
        }
        self.rows.put_wide(shape, source, &cells);
    }

    /// Remembers which ranks a row brings something, where ranks have one slot.
    fn note_incoming<W: Copy + Into<u64>>(&mut self, words: &[W]) {
        if self.all_incoming {
            return;
        }
        if self.senders.len().is_power_of_two() {
            self.all_incoming = self.incoming.iter().all(|any| *any != 0);
        }
        for (any, &word) in self.incoming.iter_mut().zip(words) {
            *any |= word.into();
        }
    }

    /// Remembers which ranks a row of cells brings something, and to which of their slots.
    fn note_slots(&mut self, slots: usize, cells: &[Cell]) {
        let mut others = 0;
        for (any, of_rank) in self.incoming.iter_mut().zip(cells.chunks_exact(slots)) {
            let rest = of_rank[1..].iter().fold(0, |all, &c| all | c);
            others |= rest;
            *any |= of_rank[0] | rest;
        }
        self.first_only &= others == 0;
    }

    /// All sources have posted.
    pub fn end(&mut self) {
        self.senders.sort_unstable();
        let of_row = self.rows.from_ps.iter().enumerate();
        for ((s, from_ps), key) in of_row.zip(&mut self.rows.keys) {
            // The row of a source that sent nothing here is of an earlier phase, and is not looked at.
            *key = arrival_key(from_ps.wrapping_sub(self.from_ps), s, false);
        }
    }

    /// Makes all rows wide, those to come as well.
    pub fn widen(&mut self, shape: &Shape) {
        self.rows.widen(shape, &self.senders);
    }

    pub fn is_wide(&self) -> bool {
        self.rows.are_wide
    }

    /// What has come for a local rank in rows that are not wide.
    pub fn close_column(&self, shape: &Shape, index: usize) -> CloseColumn<'_> {
        let (lines, column) = self.rows.close_column(shape.ranks(), index);
        CloseColumn {
            lines,
            column,
            from_ps: &self.rows.from_ps,
            keys: &self.rows.keys,
            heavy: &self.rows.heavy[index],
            sources: (self.senders.len() < shape.ranks()).then_some(&self.senders),
        }
    }

    /// What has come for a local rank in wide rows: of `sources`, in order.
    pub fn column<'a>(&'a self, shape: &Shape, index: usize, sources: &'a [u16]) -> Column<'a> {
        let (block, first) = self.rows.place(shape, index);
        Column {
            rows: &self.rows.wide[block..block + shape.ranks() * self.rows.width],
            stride: self.rows.width,
            first,
            sources: (sources.len() < shape.ranks()).then_some(sources),
        }
    }

    /// Takes cells of a local rank off wide rows: those at `source * slots + slot`.
    pub fn take_off(&mut self, shape: &Shape, index: usize, places: impl Iterator<Item = usize>) {
        let (block, first) = self.rows.place(shape, index);
        let (slots, width) = (shape.slots, self.rows.width);
        for i in places {
            self.rows.wide[block + i / slots * width + first + i % slots] = 0;
        }
    }

    pub fn served<'a>(&self, units: &'a [u16]) -> Served<'a> {
        Served {
            units,
            unit_ps: [self.between_ps, self.inside_ps],
        }
    }

    /// Whether a source has posted.
    fn has(&self, source: usize) -> bool {
        self.row_of[source] == self.number
    }

    /// Bytes that crossed lanes to a local rank and were not served.
    pub fn unserved_bytes(&self, shape: &Shape) -> u64 {
        let waits: Vec<bool> = self.collected.iter().map(|&c| c != self.number).collect();
        if !waits.contains(&true) || self.posted == 0 {
            return 0;
        }
        let units: u64 = (0..shape.ranks())
            // The row of a source that sent nothing here is of an earlier phase.
            .filter(|&s| self.has(s) && self.senders.contains(&(s as u16)))
            .map(|s| {
                lost_units(shape, s, |i| {
                    if waits[i] {
                        self.units_of(shape, s, i)
                    } else {
                        0
                    }
                })
            })
            .sum();
        units * u64::from(self.unit_bytes)
    }

    /// Units on the board from a source to a local rank.
    fn units_of(&self, shape: &Shape, source: usize, index: usize) -> u64 {
        if self.rows.are_wide {
            let (block, first) = self.rows.place(shape, index);
            let cells = &self.rows.wide[block + source * self.rows.width + first..];
            return cells[..shape.slots].iter().map(|&c| units_of(c)).sum();
        }
        let (lines, column) = self.rows.close_column(shape.ranks(), index);
        self.rows.units_at(lines[source][column], source, index)
    }

    /// When the flag of source `s` reaches rank `d`; 0 if it has not posted.
    pub fn flag_at(&self, shape: &Shape, cost: &BothReaches, s: usize, d: usize) -> Ps {
        let (n, from_ps) = (shape.ranks(), self.flags_from_ps[s]);
        if !self.has(s) {
            return 0;
        }
        let flag_ps = if self.paces_differ {
            self.flag_ps_of[s]
        } else {
            self.flag_ps
        };
        if s == d {
            return from_ps + n as Ps * flag_ps;
        }
        let place = if d > s { d - s } else { d + n - s };
        let same_node = shape.node_of_rank[s] == shape.node_of_rank[d];
        from_ps + place as Ps * flag_ps + cost.at(same_node).latency_ps
    }
}

/// Units of one source that crossed lanes to local ranks, given by index.
pub(super) fn lost_units(shape: &Shape, s: usize, units: impl Fn(usize) -> u64) -> u64 {
    let npu = shape.npu_of_rank[s];
    shape
        .local
        .iter()
        .enumerate()
        .filter(|(_, d)| shape.npu_of_rank[usize::from(**d)] != npu)
        .map(|(i, _)| units(i))
        .sum()
}

/// Units of a row that was posted too late, which crossed lanes.
pub(super) fn lost_of_row(shape: &Shape, source: usize, row: &Row) -> u64 {
    if row.is_empty() {
        return 0;
    }
    let (cells, slots) = (row.cells(shape), shape.slots);
    lost_units(shape, source, |i| {
        let of_rank = &cells[i * slots..(i + 1) * slots];
        of_rank.iter().map(|&c| units_of(c)).sum()
    })
}

/// When the last of all ranks' flags reaches each local rank: flags leave a source one after the other, in rank
/// order from its own rank on, its own last. The flag of source s reaches rank d at
/// `from[s] + ((d - s) mod n) * flag + latency`, so over the sources up to d, and over those after it, only the largest
/// of `from[s] - s * flag` matters.
pub(super) fn last_flags(shape: &Shape, p: &Phase, cost: &BothReaches, arrived: &mut Vec<Arrived>) {
    let n = shape.ranks();
    let between = cost.between.latency_ps;
    if !shape.runs_are_nodes || p.paces_differ {
        for &rank in &shape.local {
            let flags = (0..n).map(|s| p.flag_at(shape, cost, s, rank as usize));
            let at_ps = flags.max().unwrap_or(0);
            arrived.push(Arrived { rank, at_ps });
        }
        return;
    }
    // Largest `from[s] + (n - s) * flag` of each run, then of all runs before and after each.
    let lead = |s: usize| {
        if p.has(s) {
            p.flags_from_ps[s] + (n - s) as Ps * p.flag_ps
        } else {
            0
        }
    };
    let of_run: Vec<Ps> = shape
        .runs
        .iter()
        .map(|r| r.ranks.clone().map(lead).max().unwrap_or(0))
        .collect();
    let (mut before, mut local) = (0, shape.local.iter().peekable());
    for (i, run) in shape.runs.iter().enumerate() {
        let later = of_run[i + 1..].iter().copied().max().unwrap_or(0);
        while let Some(&rank) = local.next_if(|r| run.ranks.contains(&usize::from(**r))) {
            let d = rank as usize;
            let near = run.ranks.clone().map(|s| p.flag_at(shape, cost, s, d));
            let mut last = near.max().unwrap_or(0);
            let shift = d as Ps * p.flag_ps;
            if before > 0 {
                last = last.max(before + shift - n as Ps * p.flag_ps + between);
            }
            if later > 0 {
                last = last.max(later + shift + between);
            }
            arrived.push(Arrived { rank, at_ps: last });
        }
        before = before.max(of_run[i]);
    }
}
