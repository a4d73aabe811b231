//! One rank's arrivals on their way through its lanes: a queue served in order of arrival, message by message, as arrays.

use super::columns::Waiting;
use super::link::Direction;
use super::outgoing::{INDEX_BITS, after};
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
    (x & 0xffff_ffff).wrapping_mul((x ^ mark.rotate_left(32)) >> 32 | 1)
}

/// Arrivals at one rank that wait to be served, as arrays; the buffers are kept.
#[derive(Clone, Debug, Default)]
pub struct Inbox {
    pub base_ps: Ps,
    /// Arrival after `base_ps`, then index, then reach: sorted, they are the order of service.
    keys: Vec<u64>,
    bytes: u64,
    sorter: Sorter,
    waits_ps: Vec<Ps>,
}

/// Which of what waits for a rank is taken.
#[derive(Clone, Copy, Debug)]
pub struct Taking {
    pub unit_bytes: u32,
    /// All that have come by then; `None`: all.
    pub by_ps: Option<Ps>,
    /// Index of the rank's first message, where several phases are served together.
    pub first_index: usize,
}

/// A phase that is served: what its messages carry, and how long a unit takes.
#[derive(Clone, Copy, Debug)]
pub struct Served<'a> {
    /// By `source * slots + slot`.
    pub units: &'a [u16],
    /// From another node, and from inside.
    pub unit_ps: [Ps; 2],
}

impl Inbox {
    /// Begins with nothing; times count from `base_ps`.
    pub fn open(&mut self, base_ps: Ps) {
        self.base_ps = base_ps;
        self.keys.clear();
        self.bytes = 0;
    }

    /// Takes messages of a phase that cross the lanes. `units` is told how many units each index brings. Returns
    /// the sums.
    pub fn take(&mut self, waiting: Waiting<'_>, t: &Taking, units: &mut [u16]) -> Receipt {
        let base_ps = self.base_ps;
        let shift = (base_ps << INDEX_BITS).wrapping_sub((t.first_index as u64) << 1);
        let mut sum = 0;
        let mut one = |key: u64, n: u16| {
            units[usize::from(key as u16 >> 1)] = n;
            sum += u64::from(n);
            key.wrapping_sub(shift)
        };
        let before = self.keys.len();
        match t.by_ps {
            None => {
                let (keys, units) = waiting.take_all();
                let all = keys.iter().zip(units);
                self.keys.extend(all.map(|(&key, &n)| one(key, n)));
            }
            Some(by_ps) => {
                let span_ps = by_ps.saturating_sub(base_ps);
                let keys = &mut self.keys;
                waiting.take_if(|key, n| {
                    let due = after(base_ps, key) <= span_ps;
                    if due {
                        keys.push(one(key, n));
                    }
                    due
                });
            }
        }
        self.bytes += sum * u64::from(t.unit_bytes);
        Receipt {
            messages: (self.keys.len() - before) as u32,
            units: sum,
            ..Receipt::default()
        }
    }

    /// Takes messages of a phase from dies of the same package: their keys say when the last byte is in.
    pub fn take_direct(&self, waiting: Waiting<'_>, t: &Taking, units: &mut [u16]) -> Receipt {
        let mut got = Receipt::default();
        waiting.take_if(|key, n| {
            let at_ps = self.base_ps + after(self.base_ps, key);
            if t.by_ps.is_some_and(|by| at_ps > by) {
                return false;
            }
            let index = usize::from(key as u16 >> 1);
            units[index] = n;
            got.add(&Receipt {
                complete_ps: at_ps,
                hash: message_hash(at_ps, index, u64::from(n)),
                messages: 1,
                units: u64::from(n),
            });
            true
        });
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
        if self.keys.is_empty() {
            return;
        }
        let keys = self.keys.as_mut_slice();
        self.sorter.sort(keys);
        self.waits_ps.resize(keys.len(), 0);
        let cells = phases[0].units.len();
        let (base_ps, mut free_ps) = (self.base_ps, lanes.free_ps);
        let (mut sum, mut busy_ps) = (0u64, 0);
        for (&key, wait_ps) in keys.iter().zip(&mut self.waits_ps) {
            let index = usize::from(key as u16 >> 1);
            let (phase, index) = if MANY {
                (index / cells, index % cells)
            } else {
                (0, index)
            };
            let Served { units, unit_ps } = phases[phase];
            let n = u64::from(units[index]);
            let at_ps = base_ps + (key >> INDEX_BITS);
            let start_ps = at_ps.max(free_ps);
            let ps = unit_ps[(key & 1) as usize] * n;
            free_ps = start_ps + ps;
            busy_ps += ps;
            *wait_ps = start_ps - at_ps;
            let h = hash(free_ps, mark(index as u64, n));
            if MANY {
                let got = &mut got[phase];
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
        lanes.served(free_ps, busy_ps, self.bytes, &self.waits_ps);
    }
}
