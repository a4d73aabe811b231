//! What one source sends in a collective phase, laid out as a row of parcels: one for each message, with the time at
//! which its first byte reaches the receiver and its number of units. Arithmetic only; `phase.rs` does the rest.

use serde::{Deserialize, Serialize};

use super::shape::Shape;
use super::toll::Toll;
use crate::time::Ps;

/// One message of a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parcel {
    /// Arrival (low 48 bits of the time in ps), then `source * slots + slot`, then 1 if it comes from inside the node:
    /// sorted, parcels are in the order of service.
    pub key: u64,
    /// `rank * slots + slot` that it is for.
    pub to: u16,
    pub units: u16,
}

/// All that a source sends in a phase.
#[derive(Clone, Debug, Default)]
pub struct Row {
    /// Over the receivers' lanes, in the order in which they leave.
    pub parcels: Vec<Parcel>,
    /// To dies of the same package. They stay on the shard.
    pub direct: Vec<Parcel>,
    /// Receivers and units of a run, while it is laid out.
    picked: Vec<u32>,
}

impl Row {
    /// What is for ranks that live on `shard`, over their lanes.
    pub fn of_shard(&self, shape: &Shape, shard: usize) -> Vec<Parcel> {
        let mut some = Vec::with_capacity(self.parcels.len());
        let there = |p: &&Parcel| usize::from(shape.shard_of[usize::from(p.to)]) == shard;
        some.extend(self.parcels.iter().filter(there));
        some
    }
}

/// Low bits of a key: index of the message, and whether it comes from inside the node.
pub const INDEX_BITS: u32 = 16;
const UNITS_MAX: u64 = u16::MAX as u64;
/// Times in keys are told apart over this span: 281 s.
pub const TIME: u64 = u64::MAX >> INDEX_BITS;

/// Time of a key after `base_ps`.
#[inline]
pub fn after(base_ps: Ps, key: u64) -> Ps {
    (key >> INDEX_BITS).wrapping_sub(base_ps) & TIME
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
    /// Sends `units` (rank-major) from `rank` to all ranks, its own first, then in rank order; fills `row` likewise.
    /// `to_node` is told how many units, in how many messages, went to each piece of another node.
    ///
    /// Where paths cost what their reach costs, all other nodes are one loop without branches. Paths that
    /// cost something else belong into a loop of their own beside `run`.
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
        let slots = shape.slots;
        let (node, npu) = (shape.node_of_rank[rank], shape.npu_of_rank[rank]);
        let from = Source {
            shape,
            first: rank * slots,
        };
        row.parcels.clear();
        row.direct.clear();
        row.picked.resize(units.len() + 8, 0);
        self.in_place(costs, from, units, &mut row.direct);
        let mut far = 0;
        shape.in_sending_order(rank, |ranks, to| {
            let span = |ranks: &std::ops::Range<usize>| ranks.start * slots..ranks.end * slots;
            if to != node {
                let before = far;
                let sent = self.pick(units, span(&ranks), &mut row.picked, &mut far);
                self.lane_busy_ps += costs.between.unit_ps * sent;
                to_node(to, sent, (far - before) as u64);
                return;
            }
            // What goes to other nodes leaves between the rank's neighbours after it and those before it.
            self.run(
                costs.issue_ps,
                costs.between,
                from,
                0,
                &row.picked[..far],
                &mut row.parcels,
            );
            far = 0;
            let mut next = ranks.start;
            let package = ranks.clone().filter(|&r| shape.npu_of_rank[r] == npu);
            for mate in package.map(Some).chain([None]) {
                let until = mate.unwrap_or(ranks.end);
                let mut near = 0;
                let sent = self.pick(units, span(&(next..until)), &mut row.picked, &mut near);
                self.lane_busy_ps += costs.inside.unit_ps * sent;
                self.run(
                    costs.issue_ps,
                    costs.inside,
                    from,
                    1,
                    &row.picked[..near],
                    &mut row.parcels,
                );
                if let Some(mate) = mate {
                    self.over_sio(costs, from, units, mate, &mut row.direct);
                    next = mate + 1;
                }
            }
        });
        self.run(
            costs.issue_ps,
            costs.between,
            from,
            0,
            &row.picked[..far],
            &mut row.parcels,
        );
    }

    /// Puts what there is for a span of receivers behind the first `len` of `picked`. Returns its units.
    #[inline]
    fn pick<U: Units>(
        &mut self,
        units: &[U],
        span: std::ops::Range<usize>,
        picked: &mut [u32],
        len: &mut usize,
    ) -> u64 {
        const TOGETHER: usize = 8;
        let (mut j, mut sum, mut all) = (*len, 0, 0);
        let mut tag = (span.start as u32) << 16;
        let (chunks, rest) = units[span].as_chunks::<TOGETHER>();
        for chunk in chunks {
            // No branch: nobody could foretell it.
            let (out, mut k) = (&mut picked[j..j + TOGETHER], 0);
            for n in chunk.map(U::get) {
                out[k % TOGETHER] = tag | n as u32;
                k += usize::from(n != 0);
                tag += 1 << 16;
                sum += n;
                all |= n;
            }
            j += k;
        }
        for n in rest.iter().map(|n| n.get()) {
            picked[j] = tag | n as u32;
            j += usize::from(n != 0);
            tag += 1 << 16;
            sum += n;
            all |= n;
        }
        check_units(all);
        let messages = (j - *len) as u64;
        *len = j;
        self.lane_units += sum;
        self.lane_messages += messages;
        self.units += sum;
        self.messages += messages;
        sum
    }

    /// Messages to ranks that are all reached at the same cost.
    #[inline]
    fn run(
        &mut self,
        issue_ps: Ps,
        cost: UnitCost,
        from: Source<'_>,
        near: u64,
        picked: &[u32],
        parcels: &mut Vec<Parcel>,
    ) {
        let (mut cursor, mut free) = (self.cursor_ps, self.lane_free_ps);
        parcels.extend(picked.iter().map(|&p| {
            let (to, units) = ((p >> 16) as u16, p as u16);
            let n = u64::from(units);
            cursor += issue_ps * n;
            let start = cursor.max(free);
            free = start + cost.unit_ps * n;
            let key = from.key(start + cost.latency_ps, to) | near;
            Parcel { key, to, units }
        }));
        (self.cursor_ps, self.lane_free_ps) = (cursor, free);
    }

    /// Messages of the rank to itself: there when they are issued.
    fn in_place<U: Units>(
        &mut self,
        costs: &SourceCosts,
        from: Source<'_>,
        units: &[U],
        direct: &mut Vec<Parcel>,
    ) {
        let own = from.first..from.first + from.shape.slots;
        for (to, n) in own.clone().zip(&units[own]) {
            let n = n.get();
            self.cursor_ps += costs.issue_ps * n;
            self.one(n, self.cursor_ps, from, to, direct);
        }
    }

    /// Messages to the other die of the package.
    fn over_sio<U: Units>(
        &mut self,
        costs: &SourceCosts,
        from: Source<'_>,
        units: &[U],
        mate: usize,
        direct: &mut Vec<Parcel>,
    ) {
        let slots = from.shape.slots;
        let theirs = mate * slots..(mate + 1) * slots;
        for (to, n) in theirs.clone().zip(&units[theirs]) {
            let n = n.get();
            self.cursor_ps += costs.issue_ps * n;
            if n > 0 {
                self.sio_free_ps = self.sio_free_ps.max(self.cursor_ps) + costs.sio.unit_ps * n;
            }
            self.sio_units += n;
            self.sio_messages += u64::from(n > 0);
            self.one(n, self.sio_free_ps + costs.sio.latency_ps, from, to, direct);
        }
    }

    fn one(&mut self, n: u64, at_ps: Ps, from: Source<'_>, to: usize, direct: &mut Vec<Parcel>) {
        check_units(n);
        if n > 0 {
            direct.push(Parcel {
                key: from.key(at_ps, to as u16),
                to: to as u16,
                units: n as u16,
            });
            self.units += n;
            self.messages += 1;
        }
    }

    /// When everything has left.
    pub fn sent_ps(&self) -> Ps {
        self.cursor_ps.max(self.lane_free_ps).max(self.sio_free_ps)
    }
}

/// A source among the ranks of its group.
#[derive(Clone, Copy)]
struct Source<'a> {
    shape: &'a Shape,
    /// Its number times slots.
    first: usize,
}

impl Source<'_> {
    #[inline]
    fn key(self, at_ps: Ps, to: u16) -> u64 {
        let slot = if self.shape.slots == 1 {
            0
        } else {
            self.shape.slot_of[usize::from(to)]
        };
        at_ps << INDEX_BITS | ((self.first as u64) + u64::from(slot)) << 1
    }
}

#[inline]
fn check_units(all: u64) {
    assert!(
        all <= UNITS_MAX,
        "a message of one phase carries more than {UNITS_MAX} units"
    );
}
