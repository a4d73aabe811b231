//! Where the messages of collective phases (dispatch, combine, gathers) meet, for the ranks of one group that
//! live on one shard. A source posts all its messages of a phase at once, as a row of cells; each rank's lanes serve
//! its column when the last flag of the phase is in, in order of arrival. The result is the one that sending
//! and serving each message by itself gives: `tests/phase_reference.rs` compares the two.
//!
//! ```text
//!              rank 0   rank 1   rank 2  ...      a cell: arrival and units, 8 bytes
//! source 0   | slots  | slots  | slots  |         posting a row:    one copy
//! source 1   | slots  | slots  | slots  |         serving a column: gather, sort, queue
//! ```
//! In memory the board is cut into blocks of columns, one cache line wide: a row is written line by line, and a column is
//! read from lines that follow each other.

use super::link::Direction;
use super::outgoing::{COUNT_BITS, Cell, LINE_CELLS, units_of};
use super::paths::BothReaches;
use super::serving::{Column, Inbox, Receipt, Served, Taking};
use super::shape::Shape;
use crate::time::Ps;

/// What a phase's source says beside its cells.
#[derive(Clone, Copy, Debug)]
pub struct PhaseSend {
    pub channel: u8,
    pub phase: u32,
    pub source: u16,
    /// Ranks that take part.
    pub expected: u16,
    pub unit_bytes: u32,
    /// Nothing of it arrives before this.
    pub from_ps: Ps,
    pub flags_from_ps: Ps,
    pub flag_ps: Ps,
}

/// Index of a phase among those that may be open: channel and parity.
fn tag(channel: u8, phase: u32) -> usize {
    usize::from(channel) << 1 | (phase & 1) as usize
}

/// A phase in which every source has posted: the rank's flags are all in at `at_ps`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrived {
    pub rank: u16,
    pub at_ps: Ps,
}

/// One phase of a channel. The next but one takes its place.
#[derive(Clone, Debug)]
struct Phase {
    number: u32,
    unit_bytes: u32,
    /// Serialisation of one unit, from inside the node and from another.
    inside_ps: Ps,
    between_ps: Ps,
    /// Pace of flags; each source's own where a fault slows some of them.
    flag_ps: Ps,
    flag_ps_of: Vec<Ps>,
    paces_differ: bool,
    /// No cell is earlier.
    from_ps: Ps,
    flags_from_ps: Vec<Ps>,
    /// Phase that each source's row belongs to.
    row_of: Vec<u32>,
    posted: u32,
    expected: u32,
    /// Local ranks that have not collected it; 0: the phase is over, or has not begun.
    awaited: u32,
    /// Sources that sent anything to this shard: in order, once all have posted.
    senders: Vec<u16>,
    /// Whether anything comes to each local rank: not 0.
    incoming: Vec<u64>,
    /// Something comes to every local rank.
    all_incoming: bool,
    /// Only the first slot of ranks gets anything.
    first_only: bool,
    /// Number of the last phase that each local rank collected.
    collected: Vec<u32>,
    /// Block by block, in each source by source.
    cells: Vec<Cell>,
}

impl Phase {
    fn served<'a>(&self, units: &'a [u16]) -> Served<'a> {
        Served {
            units,
            unit_ps: [self.between_ps, self.inside_ps],
        }
    }

    /// Remembers which ranks a row of cells brings something, and to which of their slots.
    fn note_incoming(&mut self, slots: usize, cells: &[Cell]) {
        if slots == 1 {
            if self.all_incoming {
                return;
            }
            if self.senders.len().is_power_of_two() {
                self.all_incoming = self.incoming.iter().all(|any| *any != 0);
            }
            for (any, &c) in self.incoming.iter_mut().zip(cells) {
                *any |= c;
            }
            return;
        }
        let mut others = 0;
        for (any, of_rank) in self.incoming.iter_mut().zip(cells.chunks_exact(slots)) {
            let rest = of_rank[1..].iter().fold(0, |all, &c| all | c);
            others |= rest;
            *any |= of_rank[0] | rest;
        }
        self.first_only &= others == 0;
    }

    /// Whether a source has posted.
    fn has(&self, source: usize) -> bool {
        self.row_of[source] == self.number
    }

    /// When the flag of source `s` reaches rank `d`; 0 if it has not posted.
    fn flag_at(&self, shape: &Shape, cost: &BothReaches, s: usize, d: usize) -> Ps {
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

/// The boards of one group on one shard.
#[derive(Clone, Debug)]
pub struct Board {
    shape: Shape,
    cost: BothReaches,
    /// Ranks of a block, and its cells of one source.
    per_block: usize,
    width: usize,
    phases: Vec<Phase>,
    inbox: Inbox,
    /// By local rank, then phase: what was served before the phase was collected.
    early: Vec<Vec<Option<Early>>>,
    /// Phases of earlier epochs mean nothing to a local rank any more.
    epoch_of: Vec<u32>,
    /// Bytes that reached this board and were never served, because their step had been given up.
    lost_bytes: u64,
}

/// Served before its phase was collected, because something else wanted the lanes.
#[derive(Clone, Debug)]
struct Early {
    receipt: Receipt,
    units: Vec<u16>,
}

impl Board {
    /// Cells of a rank over all open phases are numbered with so many bits.
    pub const CELLS_MAX: usize = 1 << (COUNT_BITS - 1);

    /// # Panics
    /// When a rank has more than `CELLS_MAX` cells.
    pub fn new(shape: Shape, channels: u32, cost: BothReaches) -> Self {
        let ranks = shape.ranks();
        let phases = 2 * channels as usize;
        assert!(ranks * shape.slots * phases <= Self::CELLS_MAX);
        let locals = shape.local.len();
        let per_block = (LINE_CELLS / shape.slots).max(1);
        let width = per_block * shape.slots;
        let cells = locals.div_ceil(per_block) * ranks * width;
        let phase = Phase {
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
            cells: vec![0; cells],
        };
        Self {
            cost,
            per_block,
            width,
            epoch_of: vec![0; locals],
            lost_bytes: 0,
            phases: vec![phase; phases],
            inbox: Inbox::default(),
            early: vec![vec![None; phases]; locals],
            shape,
        }
    }

    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Takes what one source posts: a cell for each slot of each local rank, in their order, or none at all when it
    /// sends nothing to any of them. When it is the last
    /// source of the phase, says when each local rank's last flag arrives. The order of posts does not matter.
    ///
    /// # Panics
    /// When a rank is two phases ahead of another: a bug in who waits for whom.
    pub fn post(&mut self, send: &PhaseSend, cells: &[Cell], arrived: &mut Vec<Arrived>) {
        if self.shape.local.is_empty() {
            return;
        }
        let t = tag(send.channel, send.phase);
        if epoch(send.phase) < epoch(self.phases[t].number) {
            // Sent before its source heard that the step had been given up.
            let slots = self.shape.slots;
            if !cells.is_empty() {
                let lost = lost_units(&self.shape, send.source as usize, |i| {
                    &cells[i * slots..(i + 1) * slots]
                });
                self.lost_bytes += lost * u64::from(send.unit_bytes);
            }
            return;
        }
        if epoch(send.phase) > epoch(self.phases[t].number) {
            self.lost_bytes += self.unserved_bytes(t);
        }
        let p = &mut self.phases[t];
        if p.number != send.phase || p.posted == 0 {
            assert!(
                epoch(send.phase) > 0
                    || p.awaited == 0 && (p.posted == 0 || p.posted == p.expected),
                "a rank ran two phases ahead of another"
            );
            p.expected = u32::from(send.expected);
            p.number = send.phase;
            p.posted = 0;
            p.awaited = self.shape.local.len() as u32;
            p.from_ps = Ps::MAX;
            p.unit_bytes = send.unit_bytes;
            p.inside_ps = self.cost.inside.per_byte.ps(u64::from(send.unit_bytes));
            p.between_ps = self.cost.between.per_byte.ps(u64::from(send.unit_bytes));
            p.flag_ps = send.flag_ps;
            p.paces_differ = false;
            p.senders.clear();
            p.incoming.fill(0);
            p.all_incoming = false;
            p.first_only = true;
        }
        let source = send.source as usize;
        p.from_ps = p.from_ps.min(send.from_ps);
        p.flags_from_ps[source] = send.flags_from_ps;
        p.flag_ps_of[source] = send.flag_ps;
        p.paces_differ |= send.flag_ps != p.flag_ps;
        p.row_of[source] = send.phase;
        p.posted += 1;
        if !cells.is_empty() {
            p.senders.push(send.source);
            p.note_incoming(self.shape.slots, cells);
        }
        let of_block = self.shape.ranks() * self.width;
        let mut at = source * self.width;
        let (lines, rest) = if self.width == LINE_CELLS {
            cells.as_chunks::<LINE_CELLS>()
        } else {
            (&[][..], cells)
        };
        for line in lines {
            p.cells[at..at + LINE_CELLS].copy_from_slice(line);
            at += of_block;
        }
        for part in rest.chunks(self.width) {
            p.cells[at..at + part.len()].copy_from_slice(part);
            at += of_block;
        }
        if p.posted == p.expected {
            p.senders.sort_unstable();
            let p = &self.phases[t];
            last_flags(&self.shape, p, &self.cost, arrived);
        }
    }

    /// Nothing of a phase was on its way before this.
    pub fn began_ps(&self, channel: u8, phase: u32) -> Ps {
        self.phases[tag(channel, phase)].from_ps
    }

    /// The source whose flag was the last to reach `rank`. To be asked before anything of the phase after the next is
    /// posted: at the latest when the rank has collected this one.
    pub fn last_flag_from(&self, channel: u8, phase: u32, rank: u16) -> u16 {
        let p = &self.phases[tag(channel, phase)];
        let d = rank as usize;
        (0..self.shape.ranks())
            .max_by_key(|&s| p.flag_at(&self.shape, &self.cost, s, d))
            .unwrap_or(d) as u16
    }

    /// Of the units of a phase that `rank` got, by `source * slots + slot`: the bytes that came from other nodes.
    pub fn bytes_from_afar(&self, rank: u16, channel: u8, phase: u32, units: &[u16]) -> u64 {
        let node_of = &self.shape.node_of_rank;
        let home = node_of[rank as usize];
        let of_sources = units.chunks_exact(self.shape.slots).zip(node_of);
        let afar = of_sources.filter(|(_, node)| **node != home);
        let units: u64 = afar.flat_map(|(u, _)| u).map(|&u| u64::from(u)).sum();
        units * u64::from(self.phases[tag(channel, phase)].unit_bytes)
    }

    /// Lets `rank`'s lanes serve all that has reached them by `now_ps`.
    pub fn serve(&mut self, rank: u16, now_ps: Ps, lanes: &mut Direction) {
        self.serve_phases(rank, now_ps, None, lanes, &mut []);
    }

    /// All of a phase is in: `rank`'s lanes serve it, with what else has reached them by `now_ps`. Units by
    /// `source * slots + slot` go to `units`.
    pub fn collect(
        &mut self,
        rank: u16,
        channel: u8,
        phase: u32,
        now_ps: Ps,
        lanes: &mut Direction,
        units: &mut [u16],
    ) -> Receipt {
        let tag = tag(channel, phase);
        let index = self.shape.index(rank);
        let earlier = self.early[index][tag].take();
        let mut got = self.serve_phases(rank, now_ps, Some(tag), lanes, units);
        if let Some(early) = earlier {
            got.add(&early.receipt);
            units.iter_mut().zip(early.units).for_each(|(u, n)| *u += n);
        }
        let p = &mut self.phases[tag];
        debug_assert_eq!(p.number, phase);
        p.collected[index] = phase;
        p.awaited = p.awaited.saturating_sub(1);
        got
    }

    /// Serves all of phase `whole`, and what has come of others by `now_ps`.
    fn serve_phases(
        &mut self,
        rank: u16,
        now_ps: Ps,
        whole: Option<usize>,
        lanes: &mut Direction,
        units: &mut [u16],
    ) -> Receipt {
        let index = self.shape.index(rank);
        let begun = |t: usize| {
            let p = &self.phases[t];
            p.awaited > 0
                && p.collected[index] != p.number
                && p.from_ps <= now_ps
                && epoch(p.number) >= self.epoch_of[index]
        };
        let mut due: Vec<usize> = Vec::new();
        due.extend((0..self.phases.len()).filter(|&t| Some(t) != whole && begun(t)));
        if due.is_empty() {
            let Some(whole) = whole else {
                return Receipt::default();
            };
            // Mostly: one phase, all of it.
            self.inbox.open(self.phases[whole].from_ps);
            let mut got = [self.gather(rank, whole, None, 0, units)];
            let served = self.phases[whole].served(units);
            self.inbox.serve::<false>(lanes, &[served], &mut got);
            let [got] = got;
            return got;
        }
        due.extend(whole);
        due.sort_unstable();
        let base = due.iter().map(|&t| self.phases[t].from_ps).min();
        self.inbox.open(base.unwrap_or(0));
        let (slots, cells) = (self.shape.slots, self.shape.ranks() * self.shape.slots);
        let mut taken = vec![0u16; due.len() * cells];
        let mut got = Vec::with_capacity(due.len());
        for (i, (&t, taken)) in due.iter().zip(taken.chunks_exact_mut(cells)).enumerate() {
            let by_ps = (Some(t) != whole).then_some(now_ps);
            got.push(self.gather(rank, t, by_ps, i * cells, taken));
        }
        let served: Vec<Served<'_>> = due
            .iter()
            .zip(taken.chunks_exact(cells))
            .map(|(&t, taken)| self.phases[t].served(taken))
            .collect();
        self.inbox.serve::<true>(lanes, &served, &mut got);
        let (block, first) = self.place(index);
        let mut of_whole = Receipt::default();
        for ((&t, taken), got) in due.iter().zip(taken.chunks_exact(cells)).zip(got) {
            if Some(t) == whole {
                units.copy_from_slice(taken);
                of_whole = got;
                continue;
            }
            if got.messages == 0 {
                continue;
            }
            // What has been served is taken off the board.
            let early = self.early[index][t].get_or_insert_with(|| Early {
                receipt: Receipt::default(),
                units: vec![0; cells],
            });
            early.receipt.add(&got);
            let on_board = &mut self.phases[t].cells[block..];
            for (i, n) in taken.iter().enumerate().filter(|(_, n)| **n > 0) {
                early.units[i] += n;
                on_board[i / slots * self.width + first + i % slots] = 0;
            }
        }
        of_whole
    }

    /// Where a local rank's block begins, and its cells in each source's part of it.
    fn place(&self, index: usize) -> (usize, usize) {
        let block = index / self.per_block * self.shape.ranks() * self.width;
        (block, index % self.per_block * self.shape.slots)
    }

    /// Puts `rank`'s cells of a phase into the inbox: all, or those that have come by `by_ps`.
    fn gather(
        &mut self,
        rank: u16,
        t: usize,
        by_ps: Option<Ps>,
        first_index: usize,
        units: &mut [u16],
    ) -> Receipt {
        let p = &self.phases[t];
        let index = self.shape.index(rank);
        if p.incoming[index] == 0 {
            units.fill(0);
            return Receipt::default();
        }
        let mut sources = p.senders.as_slice();
        let sorted: Vec<u16>;
        if p.posted < p.expected {
            // Asked before all have posted.
            let mut some = p.senders.clone();
            some.sort_unstable();
            sorted = some;
            sources = &sorted;
        }
        let (block, first) = self.place(index);
        let column = Column {
            rows: &p.cells[block..block + self.shape.ranks() * self.width],
            stride: self.width,
            first,
            sources: (sources.len() < self.shape.ranks()).then_some(sources),
        };
        let taking = Taking {
            unit_bytes: p.unit_bytes,
            inside_ps: p.inside_ps,
            between_ps: p.between_ps,
            by_ps,
            first_index,
            first_only: p.first_only,
        };
        self.inbox.gather(&self.shape, rank, column, &taking, units)
    }

    /// A rank gives up what has been posted for it in phases before `epoch`.
    pub fn begin_epoch(&mut self, rank: u16, epoch: u32) {
        let index = self.shape.index(rank);
        self.epoch_of[index] = self.epoch_of[index].max(epoch);
        self.early[index].fill(None);
    }

    /// Bytes of an open phase that crossed lanes to a local rank and were not served.
    fn unserved_bytes(&self, t: usize) -> u64 {
        let p = &self.phases[t];
        let waits: Vec<bool> = p.collected.iter().map(|&c| c != p.number).collect();
        if !waits.contains(&true) || p.posted == 0 {
            return 0;
        }
        let units: u64 = (0..self.shape.ranks())
            // The row of a source that sent nothing here is of an earlier phase.
            .filter(|&s| p.has(s) && p.senders.contains(&(s as u16)))
            .map(|s| {
                lost_units(&self.shape, s, |i| {
                    let (block, first) = self.place(i);
                    let cells = &p.cells[block + s * self.width + first..][..self.shape.slots];
                    if waits[i] { cells } else { &[] }
                })
            })
            .sum();
        units * u64::from(p.unit_bytes)
    }

    /// Bytes that were sent to ranks of this board and never served.
    pub fn lost_bytes(&self) -> u64 {
        self.lost_bytes
            + (0..self.phases.len())
                .map(|t| self.unserved_bytes(t))
                .sum::<u64>()
    }

    /// Nothing is left on the board: true at the end of every quiet run in which no step was given up.
    pub fn is_clear(&self) -> bool {
        self.phases
            .iter()
            .all(|p| p.awaited == 0 || epoch(p.number) > 0)
            && self.early.iter().flatten().all(Option::is_none)
    }
}

/// Phases are numbered through in each epoch of a group; a new epoch begins with a step that was given up, or with
/// other members.
const EPOCH_BITS: u32 = 22;

pub fn epoch(phase: u32) -> u32 {
    phase >> EPOCH_BITS
}

/// The number before the first phase of an epoch.
pub fn epoch_start(epoch: u32) -> u32 {
    epoch << EPOCH_BITS
}

/// Units of one source that crossed lanes to local ranks, whose cells are given by index.
fn lost_units<'a>(shape: &Shape, s: usize, cells: impl Fn(usize) -> &'a [Cell]) -> u64 {
    let npu = shape.npu_of_rank[s];
    shape
        .local
        .iter()
        .enumerate()
        .filter(|(_, d)| shape.npu_of_rank[usize::from(**d)] != npu)
        .flat_map(|(i, _)| cells(i))
        .map(|&c| units_of(c))
        .sum()
}

/// When the last of all ranks' flags reaches each local rank: flags leave a source one after the other, in rank
/// order from its own rank on, its own last. The flag of source s reaches rank d at
/// `from[s] + ((d - s) mod n) * flag + latency`, so over the sources up to d, and over those after it, only the largest
/// of `from[s] - s * flag` matters.
fn last_flags(shape: &Shape, p: &Phase, cost: &BothReaches, arrived: &mut Vec<Arrived>) {
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
