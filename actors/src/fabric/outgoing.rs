//! What one source sends in a collective phase, laid out as a row of cells: one for each (rank, slot), with the time at
//! which its first byte reaches the receiver and its number of units. Arithmetic only; `phase.rs` does the rest.

use std::ops::Range;

use super::shape::Shape;
use super::toll::Toll;
use crate::time::Ps;

/// Arrival (low 48 bits of the time in ps) and number of units of one message; 0 when there is none.
pub type Cell = u64;

/// Cells of a cache line.
pub const LINE_CELLS: usize = 8;

pub const COUNT_BITS: u32 = 16;
const COUNT: u64 = (1 << COUNT_BITS) - 1;
/// Times in cells are told apart over this span: 281 s.
pub const TIME: u64 = u64::MAX >> COUNT_BITS;

#[inline]
pub fn cell(at_ps: Ps, units: u64) -> Cell {
    (at_ps << COUNT_BITS) | units
}

#[inline]
pub fn units_of(cell: Cell) -> u64 {
    cell & COUNT
}

/// Time of a cell after `base_ps`.
#[inline]
pub fn after(base_ps: Ps, cell: Cell) -> Ps {
    (cell >> COUNT_BITS).wrapping_sub(base_ps) & TIME
}

/// What one unit costs on a path: serialisation, and latency of the first byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnitCost {
    pub unit_ps: Ps,
    pub latency_ps: Ps,
}

/// Costs that all messages of a source have in common.
#[derive(Clone, Copy, Debug, Default)]
pub struct SourceCosts {
    /// Time the vector cores need to issue one unit.
    pub issue_ps: Ps,
    pub inside: UnitCost,
    pub between: UnitCost,
    pub sio: UnitCost,
}

impl SourceCosts {
    /// With what the links on the source's side add. Without a die-to-die link, its messages take the lanes.
    pub fn under(mut self, toll: &Toll, sio: &Toll) -> Self {
        if sio.lost {
            self.sio = self.inside;
        }
        for cost in [&mut self.inside, &mut self.between] {
            cost.unit_ps = toll.ps(cost.unit_ps);
            cost.latency_ps += toll.extra_ps;
        }
        let through = if sio.lost { toll } else { sio };
        self.sio.unit_ps = through.ps(self.sio.unit_ps);
        self.sio.latency_ps += through.extra_ps;
        self
    }
}

/// A source's engines while it sends: when they are free, and what they carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sender {
    pub cursor_ps: Ps,
    pub lane_free_ps: Ps,
    pub sio_free_ps: Ps,
    pub lane_busy_ps: Ps,
    pub lane_units: u64,
    pub lane_messages: u64,
    pub sio_units: u64,
    pub sio_messages: u64,
    pub units: u64,
    pub messages: u64,
}

/// Units as they lie in memory: rank-major, one for each slot.
pub trait Units: Copy {
    fn get(self) -> u64;
}

impl Units for u16 {
    #[inline]
    fn get(self) -> u64 {
        u64::from(self)
    }
}

impl Units for u32 {
    #[inline]
    fn get(self) -> u64 {
        u64::from(self)
    }
}

impl Sender {
    /// Sends `units` (rank-major) from `rank` to all ranks, its own first, then in rank order; fills `cells` likewise.
    /// `to_node` is told how many units, in how many messages, went to each piece of another node.
    ///
    /// Where paths cost what their reach costs, all ranks between two pieces of the rank's own node are one loop without
    /// branches. Paths that cost something else belong into a loop of their own beside `queue`.
    ///
    /// # Panics
    /// When a message has more than 65,535 units.
    pub fn lay_out<U: Units>(
        &mut self,
        shape: &Shape,
        rank: usize,
        costs: &SourceCosts,
        units: &[U],
        cells: &mut [Cell],
        mut to_node: impl FnMut(u32, u64, u64),
    ) {
        let slots = shape.slots;
        let (node, npu) = (shape.node_of_rank[rank], shape.npu_of_rank[rank]);
        self.in_place(
            costs,
            &units[rank * slots..(rank + 1) * slots],
            &mut cells[rank * slots..(rank + 1) * slots],
        );
        shape.in_sending_order(rank, |runs| {
            let of = |ranks: &Range<usize>| ranks.start * slots..ranks.end * slots;
            let ranks = match runs {
                [first, .., last] => first.ranks.start..last.ranks.end,
                [one] => one.ranks.clone(),
                [] => return,
            };
            if runs[0].node != node {
                let all = of(&ranks);
                let before = self.lane_messages;
                let free_ps = self.queue(
                    costs.issue_ps,
                    costs.between,
                    &units[all.clone()],
                    &mut cells[all],
                );
                for run in runs {
                    let (sent, messages) = self.sent(costs.between, &units[of(&run.ranks)]);
                    to_node(run.node, sent, messages);
                }
                if self.lane_messages > before {
                    self.lane_free_ps = free_ps;
                }
                return;
            }
            for r in ranks {
                let one = of(&(r..r + 1));
                let (units, cells) = (&units[one.clone()], &mut cells[one]);
                if shape.npu_of_rank[r] == npu {
                    self.over_sio(costs, units, cells);
                } else {
                    let free_ps = self.queue(costs.issue_ps, costs.inside, units, cells);
                    if self.sent(costs.inside, units).1 > 0 {
                        self.lane_free_ps = free_ps;
                    }
                }
            }
        });
    }

    /// Puts messages to ranks that are all reached at the same cost into the lanes' queue. Returns when the lanes are free
    /// again, if there are any.
    #[inline]
    fn queue<U: Units>(
        &mut self,
        issue_ps: Ps,
        cost: UnitCost,
        units: &[U],
        cells: &mut [Cell],
    ) -> Ps {
        let (mut cursor, mut free) = (self.cursor_ps, self.lane_free_ps);
        for (n, c) in units.iter().zip(cells) {
            let n = n.get();
            cursor += issue_ps * n;
            // Before the first message this lifts `free` to the cursor at most, where it cannot start earlier anyway; after
            // a message `free` is not before the cursor.
            let start = cursor.max(free);
            free = start + cost.unit_ps * n;
            let sent = cell(start + cost.latency_ps, n);
            *c = if n == 0 { 0 } else { sent };
        }
        self.cursor_ps = cursor;
        free
    }

    /// Counts what was sent over the lanes. Returns units and messages.
    #[inline]
    fn sent<U: Units>(&mut self, cost: UnitCost, units: &[U]) -> (u64, u64) {
        let (mut sum, mut messages, mut all) = (0u32, 0u32, 0u32);
        for n in units {
            let n = n.get() as u32;
            sum += n;
            messages += u32::from(n != 0);
            all |= n;
        }
        check_units(all.into());
        let (sum, messages) = (sum.into(), messages.into());
        self.lane_busy_ps += cost.unit_ps * sum;
        self.lane_units += sum;
        self.lane_messages += messages;
        self.units += sum;
        self.messages += messages;
        (sum, messages)
    }

    /// Messages of the rank to itself: there when they are issued.
    fn in_place<U: Units>(&mut self, costs: &SourceCosts, units: &[U], cells: &mut [Cell]) {
        for (n, c) in units.iter().zip(cells) {
            let n = n.get();
            self.cursor_ps += costs.issue_ps * n;
            self.one(n, self.cursor_ps, c);
        }
    }

    /// Messages to the other die of the package.
    fn over_sio<U: Units>(&mut self, costs: &SourceCosts, units: &[U], cells: &mut [Cell]) {
        for (n, c) in units.iter().zip(cells) {
            let n = n.get();
            self.cursor_ps += costs.issue_ps * n;
            if n > 0 {
                self.sio_free_ps = self.sio_free_ps.max(self.cursor_ps) + costs.sio.unit_ps * n;
            }
            self.sio_units += n;
            self.sio_messages += u64::from(n > 0);
            self.one(n, self.sio_free_ps + costs.sio.latency_ps, c);
        }
    }

    fn one(&mut self, n: u64, at_ps: Ps, c: &mut Cell) {
        check_units(n);
        *c = if n == 0 { 0 } else { cell(at_ps, n) };
        self.units += n;
        self.messages += u64::from(n != 0);
    }

    /// When everything has left.
    pub fn sent_ps(&self) -> Ps {
        self.cursor_ps.max(self.lane_free_ps).max(self.sio_free_ps)
    }
}

#[inline]
fn check_units(all: u64) {
    assert!(
        all <= COUNT,
        "a message of one phase carries more than {COUNT} units"
    );
}
