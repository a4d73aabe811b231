//! What links carry over time: bytes of spans dealt out over short stretches of virtual time, so that a counter can show
//! megabytes a second. A stretch is closed when nothing that began in it is expected any more.

use std::collections::{BTreeMap, VecDeque};

use supernode_actors::time::{PS_PER_MS, PS_PER_US, Ps};

/// A stretch: short enough to tell the phases of a layer apart.
pub const STRETCH_PS: Ps = 500 * PS_PER_US;
/// A phase that began so long ago has been served. What comes later still counts for the oldest open stretch.
const LATE_PS: Ps = 20 * PS_PER_MS;
/// Stretches of one link that may be open, 32 s: what is queued for later counts for the last of them.
const OPEN_MAX: usize = 1 << 16;

/// Time of a change and the value from then on.
pub type Change = (Ps, u64);

#[derive(Debug, Default)]
pub struct Bandwidth {
    /// By link and direction (out of its part: true).
    links: BTreeMap<(u32, bool), Link>,
}

#[derive(Debug, Default)]
struct Link {
    /// Stretches with smaller numbers are closed.
    closed: u64,
    /// Number of the first stretch that is kept, and bytes from there on.
    first: u64,
    bytes: VecDeque<u64>,
    shown: u64,
}

impl Bandwidth {
    /// A link carried `bytes` in a span that was recorded at `now`. Returns what its counter showed in the stretches that
    /// are closed by that.
    pub fn carried(
        &mut self,
        link: u32,
        out: bool,
        now: Ps,
        (start_ps, end_ps): (Ps, Ps),
        bytes: u64,
    ) -> Vec<Change> {
        let link = self.links.entry((link, out)).or_default();
        let mut changes = Vec::new();
        link.close(now.saturating_sub(LATE_PS) / STRETCH_PS, &mut changes);
        link.add(start_ps, end_ps, bytes);
        changes
    }

    /// What is left: link, direction, time and value.
    pub fn finish(&mut self) -> Vec<(u32, bool, Ps, u64)> {
        let mut all = Vec::new();
        for (&(actor, out), link) in &mut self.links {
            let mut changes = Vec::new();
            link.close(u64::MAX, &mut changes);
            all.extend(changes.into_iter().map(|(at, v)| (actor, out, at, v)));
        }
        all
    }
}

impl Link {
    fn add(&mut self, start_ps: Ps, end_ps: Ps, bytes: u64) {
        let (from, until) = (
            start_ps / STRETCH_PS,
            end_ps.max(start_ps + 1).div_ceil(STRETCH_PS),
        );
        let first = from.max(self.closed);
        if self.bytes.is_empty() {
            self.first = first;
        }
        while first < self.first {
            self.bytes.push_front(0);
            self.first -= 1;
        }
        let took_ps = u128::from(end_ps.saturating_sub(start_ps).max(1));
        let mut dealt = 0;
        for stretch in from..until {
            let passed_ps = ((stretch + 1) * STRETCH_PS)
                .min(end_ps)
                .saturating_sub(start_ps);
            let by_then = match stretch + 1 == until {
                true => bytes,
                false => (u128::from(bytes) * u128::from(passed_ps) / took_ps) as u64,
            };
            let at = (stretch.saturating_sub(self.first) as usize).min(OPEN_MAX - 1);
            if at >= self.bytes.len() {
                self.bytes.resize(at + 1, 0);
            }
            self.bytes[at] += by_then - dealt;
            dealt = by_then;
        }
    }

    /// Closes all stretches before the one with number `before`.
    fn close(&mut self, before: u64, changes: &mut Vec<Change>) {
        while self.first < before
            && let Some(bytes) = self.bytes.pop_front()
        {
            let mb_per_s = bytes * 1_000_000 / STRETCH_PS;
            if mb_per_s != self.shown {
                changes.push((self.first * STRETCH_PS, mb_per_s));
                self.shown = mb_per_s;
            }
            self.first += 1;
        }
        if self.bytes.is_empty() && self.shown > 0 {
            changes.push((self.first * STRETCH_PS, 0));
            self.shown = 0;
        }
        self.closed = self.closed.max(before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes below the curve.
    fn area(changes: &[Change]) -> u64 {
        let ends = changes.iter().skip(1);
        let pieces = changes.iter().zip(ends);
        let mb_us = pieces.map(|((from, v), (to, _))| (to - from) / PS_PER_US * v);
        assert!(changes.last().is_none_or(|(_, v)| *v == 0));
        mb_us.sum()
    }

    #[test]
    fn all_bytes_are_below_the_curve_and_none_is_shown_twice() {
        let ms = PS_PER_MS;
        let mut b = Bandwidth::default();
        let mut changes = Vec::new();
        // A phase over two stretches and a bit, two that were recorded late, one after a long silence, one of no time.
        let spans = [
            (1, (ms / 8, ms * 3 / 4), 5_000_000),
            (2, (ms, 2 * ms), 4_000_000),
            (3, (ms / 2, ms), 500),
            (50, (ms * 3 / 2, 2 * ms), 1_000_000),
            (300, (300 * ms, 301 * ms), 8_000_000),
            (301, (301 * ms, 301 * ms), 500),
        ];
        for (now_ms, span, bytes) in spans {
            changes.extend(b.carried(7, true, now_ms * ms, span, bytes));
        }
        let rest = b.finish();
        assert!(rest.iter().all(|(link, out, ..)| *link == 7 && *out));
        changes.extend(rest.iter().map(|(_, _, at, v)| (*at, *v)));
        assert!(changes.is_sorted_by_key(|c| c.0));
        assert!(changes.windows(2).all(|w| w[0].1 != w[1].1));
        assert_eq!(area(&changes), 18_001_000);
        assert_eq!(changes[0], (0, 6_000));
        assert!(b.finish().is_empty());
    }

    #[test]
    fn a_queue_of_hours_takes_bounded_memory() {
        let mut b = Bandwidth::default();
        let hour = 3_600 * 1_000 * PS_PER_MS;
        b.carried(0, false, 0, (hour, hour + 1), 9);
        b.carried(0, false, 1, (2 * hour, 2 * hour + 1), 9);
        assert!(b.links[&(0, false)].bytes.len() <= OPEN_MAX);
    }
}
