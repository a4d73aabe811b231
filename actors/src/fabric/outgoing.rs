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

    /// Where paths cost what their reach costs, all ranks of other nodes between two pieces of the rank's own are one piece,
    /// and so are those of its node but for its package.
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
        let of = |ranks: Range<usize>| ranks.start * slots..ranks.end * slots;
        let own = of(rank..rank + 1);
        let (some, of_own) = (&units[own.clone()], &mut words[own.clone()]);
        let all = self.on_package(costs, false, some, pack, of_own);
        note_heavy::<U, P>(all, own, units, heavy);
        shape.in_sending_order(rank, |runs| {
            let mut ranks = runs[0].ranks.clone();
            if runs[0].node != node {
                let mut sums = Sums::default();
                for run in runs {
                    let of_run = Sums::of(&units[of(run.ranks.clone())]);
                    to_node(run.node, of_run.units, of_run.messages);
                    sums.add(&of_run);
                    ranks.end = run.ranks.end;
                }
                let piece = of(ranks);
                let (some, of_piece) = (&units[piece.clone()], &mut words[piece.clone()]);
                self.over_lanes(costs, costs.between, &sums, some, pack, of_piece);
                note_heavy::<U, P>(sums.all, piece, units, heavy);
                return;
            }
            while !ranks.is_empty() {
                let over_sio = shape.npu_of_rank[ranks.start] == npu;
                let mut rest = ranks.clone();
                let other = rest.find(|&r| (shape.npu_of_rank[r] == npu) != over_sio);
                let end = other.unwrap_or(ranks.end);
                let piece = of(ranks.start..end);
                let (some, of_piece) = (&units[piece.clone()], &mut words[piece.clone()]);
                let all = if over_sio {
                    self.on_package(costs, true, some, pack, of_piece)
                } else {
                    let sums = Sums::of(some);
                    self.over_lanes(costs, costs.inside, &sums, some, pack, of_piece);
                    sums.all
                };
                note_heavy::<U, P>(all, piece, units, heavy);
                ranks.start = end;
            }
        });
    }

    /// Sends messages, which are `sums` together, to ranks that are all reached over the lanes at the same cost.
    #[inline]
    fn over_lanes<U: Units, P: Pack>(
        &mut self,
        costs: &SourceCosts,
        cost: UnitCost,
        sums: &Sums,
        units: &[U],
        pack: P,
        words: &mut [P::Word],
    ) {
        check_units(sums.all);
        let free_ps = if !P::IN_WORDS {
            self.queue(costs, cost, units, pack, words)
        } else if sums.all <= P::UNITS_MAX {
            self.queue_in_words::<U, P, false>(costs, cost, sums, units, pack, words)
        } else {
            self.queue_in_words::<U, P, true>(costs, cost, sums, units, pack, words)
        };
        if sums.messages > 0 {
            self.lane_free_ps = free_ps;
        }
        self.lane_busy_ps += cost.unit_ps * sums.units;
        self.lane_units += sums.units;
        self.lane_messages += sums.messages;
        self.units += sums.units;
        self.messages += sums.messages;
    }

    /// Puts messages into the lanes' queue. Returns when the lanes are free again, if there are any.
    #[inline]
    fn queue<U: Units, P: Pack>(
        &mut self,
        costs: &SourceCosts,
        cost: UnitCost,
        units: &[U],
        pack: P,
        words: &mut [P::Word],
    ) -> Ps {
        let (mut cursor, mut free) = (self.cursor_ps, self.lane_free_ps);
        for (n, word) in units.iter().zip(words) {
            let n = n.get();
            cursor += costs.issue_ps * n;
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

    /// The same with times as words have them: a third less to do for each message. `HEAVY`: there are more units than words say.
    #[inline]
    fn queue_in_words<U: Units, P: Pack, const HEAVY: bool>(
        &mut self,
        costs: &SourceCosts,
        cost: UnitCost,
        sums: &Sums,
        units: &[U],
        pack: P,
        words: &mut [P::Word],
    ) -> Ps {
        let in_words = |ps: Ps| ps << P::UNITS_BITS;
        let (issue, unit) = (in_words(costs.issue_ps), in_words(cost.unit_ps));
        let first = pack.bits(self.cursor_ps + cost.latency_ps);
        // Nothing starts before the cursor anyway.
        let free_ps = self.lane_free_ps.max(self.cursor_ps);
        let (mut cursor, mut free) = (first, pack.bits(free_ps + cost.latency_ps));
        let word_of = |start: u64, n: u64| {
            let said = if HEAVY {
                n.min((1 << P::UNITS_BITS) - 1)
            } else {
                n
            };
            let sent = P::cut(start | said);
            if n == 0 { P::Word::default() } else { sent }
        };
        // Once the lanes lag behind by what the longest message takes to issue they do so to the end, as issuing
        // is not what takes longer: then one message follows the other.
        let lag = if unit >= issue {
            issue * sums.all
        } else {
            u64::MAX
        };
        let mut left = units.iter().map(|n| n.get()).zip(words);
        while free - cursor < lag {
            let Some((n, word)) = left.next() else {
                break;
            };
            cursor += issue * n;
            let start = cursor.max(free);
            free = start + unit * n;
            *word = word_of(start, n);
        }
        for (n, word) in left {
            *word = word_of(free, n);
            free += unit * n;
        }
        let at = self.cursor_ps;
        self.cursor_ps += costs.issue_ps * sums.units;
        at + ((free - first) >> P::UNITS_BITS)
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

/// Messages to some ranks: units and messages, and the bits of all their units, which no message has more of.
#[derive(Default)]
struct Sums {
    units: u64,
    messages: u64,
    all: u64,
}

impl Sums {
    #[inline]
    fn of<U: Units>(units: &[U]) -> Self {
        let (mut sum, mut messages, mut all) = (0u32, 0u32, 0u32);
        for n in units {
            let n = n.get() as u32;
            sum += n;
            messages += u32::from(n != 0);
            all |= n;
        }
        Self {
            units: sum.into(),
            messages: messages.into(),
            all: all.into(),
        }
    }

    fn add(&mut self, other: &Self) {
        self.units += other.units;
        self.messages += other.messages;
        self.all |= other.all;
    }
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
