//! What one source sends in a collective phase, laid out as a row of words: one for each (rank, slot), with the time at
//! which its first byte reaches the receiver and its number of units. Arithmetic only; `phase.rs` does the rest.

use std::ops::Range;

use super::row::{IntoCell, IntoClose, Pack, Row};
use super::shape::Shape;
use super::toll::Toll;
use crate::time::Ps;

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
    /// No message is longer on its way.
    fn latency_most_ps(&self) -> Ps {
        let costs = [self.inside, self.between, self.sio];
        costs.map(|c| c.latency_ps).into_iter().fold(0, Ps::max)
    }

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
    /// Sends `units` (rank-major) from `rank` to all ranks, its own first, then in rank order; `row` becomes what is
    /// posted of it. `to_node` is told how many units, in how many messages, went to each piece of another node.
    ///
    /// # Panics
    /// When a message has more than 65,535 units.
    pub fn lay_out<U: Units>(
        &mut self,
        shape: &Shape,
        rank: usize,
        costs: &SourceCosts,
        units: &[U],
        row: &mut Row,
        mut to_node: impl FnMut(u32, u64, u64),
    ) {
        let n = shape.ranks() * shape.slots;
        let path = (shape, rank, costs);
        row.from_ps = self.cursor_ps;
        row.heavy.clear();
        let mut told = false;
        if shape.slots == 1 {
            let (at_first, pack) = (*self, IntoClose::new(row.from_ps));
            row.close.resize(n, 0);
            let Row { close, heavy, .. } = row;
            self.lay(path, units, pack, close, heavy, &mut to_node);
            if pack.reaches(self.sent_ps() + costs.latency_most_ps()) {
                row.wide.clear();
                return;
            }
            *self = at_first;
            row.heavy.clear();
            told = true;
        }
        row.close.clear();
        row.wide.resize(n, 0);
        let Row { wide, heavy, .. } = row;
        self.lay(
            path,
            units,
            IntoCell,
            wide,
            heavy,
            |node, units, messages| {
                if !told {
                    to_node(node, units, messages);
                }
            },
        );
    }

    /// Where paths cost what their reach costs, all ranks between two pieces of the rank's own node are one loop without
    /// branches. Paths that cost something else belong into a loop of their own beside `queue`.
    fn lay<U: Units, P: Pack>(
        &mut self,
        (shape, rank, costs): (&Shape, usize, &SourceCosts),
        units: &[U],
        pack: P,
        words: &mut [P::Word],
        heavy: &mut Vec<(u16, u16)>,
        mut to_node: impl FnMut(u32, u64, u64),
    ) {
        let slots = shape.slots;
        let (node, npu) = (shape.node_of_rank[rank], shape.npu_of_rank[rank]);
        let of = |ranks: &Range<usize>| ranks.start * slots..ranks.end * slots;
        let own = of(&(rank..rank + 1));
        let (some, of_own) = (&units[own.clone()], &mut words[own.clone()]);
        let all = self.on_package(costs, false, some, pack, of_own);
        note_heavy::<U, P>(all, own, units, heavy);
        shape.in_sending_order(rank, |runs| {
            if runs[0].node != node {
                let (before, mut free_ps) = (self.lane_messages, self.lane_free_ps);
                for run in runs {
                    let of_run = of(&run.ranks);
                    let (some, words) = (&units[of_run.clone()], &mut words[of_run.clone()]);
                    let sent = self.sent(costs.between, some);
                    free_ps = if P::IN_WORDS && sent.all <= P::UNITS_MAX {
                        self.queue_in_words(free_ps, costs, sent.units, some, pack, words)
                    } else {
                        self.queue(free_ps, costs, costs.between, some, pack, words)
                    };
                    note_heavy::<U, P>(sent.all, of_run, units, heavy);
                    to_node(run.node, sent.units, sent.messages);
                }
                if self.lane_messages > before {
                    self.lane_free_ps = free_ps;
                }
                return;
            }
            for r in runs.iter().flat_map(|run| run.ranks.clone()) {
                let one = of(&(r..r + 1));
                let (some, words) = (&units[one.clone()], &mut words[one.clone()]);
                let all = if shape.npu_of_rank[r] == npu {
                    self.on_package(costs, true, some, pack, words)
                } else {
                    let free_ps = self.lane_free_ps;
                    let free_ps = self.queue(free_ps, costs, costs.inside, some, pack, words);
                    let sent = self.sent(costs.inside, some);
                    if sent.messages > 0 {
                        self.lane_free_ps = free_ps;
                    }
                    sent.all
                };
                note_heavy::<U, P>(all, one, units, heavy);
            }
        });
    }

    /// Puts messages to ranks that are all reached at the same cost into the lanes' queue, which are free at `free_ps`.
    /// Returns when the lanes are free again, if there are any.
    #[inline]
    fn queue<U: Units, P: Pack>(
        &mut self,
        free_ps: Ps,
        costs: &SourceCosts,
        cost: UnitCost,
        units: &[U],
        pack: P,
        words: &mut [P::Word],
    ) -> Ps {
        let (mut cursor, mut free, issue_ps) = (self.cursor_ps, free_ps, costs.issue_ps);
        for (n, word) in units.iter().zip(words) {
            let n = n.get();
            cursor += issue_ps * n;
            // Before the first message this lifts `free` to the cursor at most, where it cannot start earlier anyway; after
            // a message `free` is not before the cursor.
            let start = cursor.max(free);
            free = start + cost.unit_ps * n;
            let sent = pack.word(start + cost.latency_ps, n);
            *word = if n == 0 { P::Word::default() } else { sent };
        }
        self.cursor_ps = cursor;
        free
    }

    /// The same of `all` units together, with times as words have them, where words say all units: a third less to do for
    /// each message.
    #[inline]
    fn queue_in_words<U: Units, P: Pack>(
        &mut self,
        free_ps: Ps,
        costs: &SourceCosts,
        all: u64,
        units: &[U],
        pack: P,
        words: &mut [P::Word],
    ) -> Ps {
        let cost = costs.between;
        let (issue, unit) = (
            costs.issue_ps << P::UNITS_BITS,
            cost.unit_ps << P::UNITS_BITS,
        );
        let first = pack.bits(self.cursor_ps + cost.latency_ps);
        // Nothing starts before the cursor anyway.
        let free_ps = free_ps.max(self.cursor_ps);
        let (mut cursor, mut free) = (first, pack.bits(free_ps + cost.latency_ps));
        let word_of = |start: u64, n: u64| {
            let sent = P::cut(start | n);
            if n == 0 { P::Word::default() } else { sent }
        };
        let some = units.iter().map(|n| n.get()).zip(words);
        if cursor + issue * all <= free {
            // The lanes are busy until after the last unit is issued: one message after the other.
            for (n, word) in some {
                *word = word_of(free, n);
                free += unit * n;
            }
            cursor += issue * all;
        } else {
            for (n, word) in some {
                cursor += issue * n;
                let start = cursor.max(free);
                free = start + unit * n;
                *word = word_of(start, n);
            }
        }
        let at = self.cursor_ps;
        self.cursor_ps += (cursor - first) >> P::UNITS_BITS;
        at + ((free - first) >> P::UNITS_BITS)
    }

    /// Counts what was sent over the lanes.
    #[inline]
    fn sent<U: Units>(&mut self, cost: UnitCost, units: &[U]) -> Sums {
        let (mut sum, mut messages, mut all) = (0u32, 0u32, 0u32);
        for n in units {
            let n = n.get() as u32;
            sum += n;
            messages += u32::from(n != 0);
            all |= n;
        }
        check_units(all.into());
        let (units, messages) = (sum.into(), messages.into());
        self.lane_busy_ps += cost.unit_ps * units;
        self.lane_units += units;
        self.lane_messages += messages;
        self.units += units;
        self.messages += messages;
        Sums {
            units,
            messages,
            all: all.into(),
        }
    }

    /// Messages that stay on the package: to the rank itself, there when they are issued, or `over_sio` to the other
    /// die. Returns the bits of all their units.
    fn on_package<U: Units, P: Pack>(
        &mut self,
        costs: &SourceCosts,
        over_sio: bool,
        units: &[U],
        pack: P,
        words: &mut [P::Word],
    ) -> u64 {
        let mut all = 0;
        for (n, word) in units.iter().zip(words) {
            let n = n.get();
            self.cursor_ps += costs.issue_ps * n;
            let mut at_ps = self.cursor_ps;
            if over_sio {
                if n > 0 {
                    self.sio_free_ps = self.sio_free_ps.max(at_ps) + costs.sio.unit_ps * n;
                }
                self.sio_units += n;
                self.sio_messages += u64::from(n > 0);
                at_ps = self.sio_free_ps + costs.sio.latency_ps;
            }
            *word = self.one(n, at_ps, pack);
            all |= n;
        }
        all
    }

    fn one<P: Pack>(&mut self, n: u64, at_ps: Ps, pack: P) -> P::Word {
        check_units(n);
        self.units += n;
        self.messages += u64::from(n != 0);
        if n == 0 {
            P::Word::default()
        } else {
            pack.word(at_ps, n)
        }
    }

    /// When everything has left.
    pub fn sent_ps(&self) -> Ps {
        self.cursor_ps.max(self.lane_free_ps).max(self.sio_free_ps)
    }
}

/// Messages to some ranks: units and messages, and the bits of all their units.
struct Sums {
    units: u64,
    messages: u64,
    all: u64,
}

/// Says beside what does not fit words of this kind. `all`: the bits of all units of `places`.
#[inline]
fn note_heavy<U: Units, P: Pack>(
    all: u64,
    places: Range<usize>,
    units: &[U],
    heavy: &mut Vec<(u16, u16)>,
) {
    if all <= P::UNITS_MAX {
        return;
    }
    let of_place = units[places.clone()].iter().zip(places);
    for (n, place) in of_place.filter(|(n, _)| n.get() > P::UNITS_MAX) {
        heavy.push((place as u16, n.get() as u16));
    }
}

#[inline]
fn check_units(all: u64) {
    assert!(
        all <= IntoCell::UNITS_MAX,
        "a message of one phase carries more than {} units",
        IntoCell::UNITS_MAX
    );
}
