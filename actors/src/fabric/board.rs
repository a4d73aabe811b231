//! Where the messages of collective phases (dispatch, combine, gathers) meet, for the ranks of one group that
//! live on one shard. A source posts all its messages of a phase at once, as a row of words; each rank's lanes serve
//! its column when the last flag of the phase is in, in order of arrival. The result is the one that sending
//! and serving each message by itself gives: `tests/phase_reference.rs` compares the two.
//!
//! ```text
//!              rank 0   rank 1   rank 2  ...      a word: arrival and units, 4 bytes (8 where ranks have several slots)
//! source 0   | slots  | slots  | slots  |         posting a row:    one copy
//! source 1   | slots  | slots  | slots  |         serving a column: gather, sort, queue
//! ```
//! In memory the board is cut into blocks of columns, one cache line wide: a row is written line by line, and a column is
//! read from lines that follow each other (`posted.rs`).

use super::link::Direction;
use super::paths::BothReaches;
use super::posted::{Phase, last_flags, lost_of_row};
use super::row::{COUNT_BITS, Row};
use super::serving::{Inbox, Receipt, Served, Taking};
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

/// The boards of one group on one shard.
#[derive(Clone, Debug)]
pub struct Board {
    shape: Shape,
    cost: BothReaches,
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
        let phase = Phase::new(&shape);
        Self {
            cost,
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

    /// Takes what one source posts for the local ranks. When it is the last
    /// source of the phase, says when each local rank's last flag arrives. The order of posts does not matter.
    ///
    /// # Panics
    /// When a rank is two phases ahead of another: a bug in who waits for whom.
    pub fn post(&mut self, send: &PhaseSend, row: &Row, arrived: &mut Vec<Arrived>) {
        let shape = &self.shape;
        if shape.local.is_empty() {
            return;
        }
        let p = &mut self.phases[tag(send.channel, send.phase)];
        if epoch(send.phase) < epoch(p.number) {
            // Sent before its source heard that the step had been given up.
            let lost = lost_of_row(shape, send.source as usize, row);
            self.lost_bytes += lost * u64::from(send.unit_bytes);
            return;
        }
        if epoch(send.phase) > epoch(p.number) {
            self.lost_bytes += p.unserved_bytes(shape);
        }
        if p.number != send.phase || p.posted == 0 {
            assert!(
                epoch(send.phase) > 0
                    || p.awaited == 0 && (p.posted == 0 || p.posted == p.expected),
                "a rank ran two phases ahead of another"
            );
            p.begin(shape, &self.cost, send);
        }
        p.take(shape, send, row);
        if p.posted == p.expected {
            p.end();
            last_flags(shape, p, &self.cost, arrived);
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
        for &t in &due {
            self.phases[t].widen(&self.shape);
        }
        let base = due.iter().map(|&t| self.phases[t].from_ps).min();
        self.inbox.open(base.unwrap_or(0));
        let cells = self.shape.ranks() * self.shape.slots;
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
            let some = taken.iter().enumerate().filter(|(_, n)| **n > 0);
            some.clone().for_each(|(i, n)| early.units[i] += n);
            let places = some.map(|(i, _)| i);
            self.phases[t].take_off(&self.shape, index, places);
        }
        of_whole
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
        if !p.is_wide() {
            let column = p.close_column(&self.shape, index);
            let unit_ps = [p.between_ps, p.inside_ps];
            let reach = (p.unit_bytes, unit_ps);
            return self
                .inbox
                .gather_close(&self.shape, rank, column, reach, units);
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
        let column = p.column(&self.shape, index, sources);
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

    /// Bytes that were sent to ranks of this board and never served.
    pub fn lost_bytes(&self) -> u64 {
        let unserved = self.phases.iter().map(|p| p.unserved_bytes(&self.shape));
        self.lost_bytes + unserved.sum::<u64>()
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
