//! Histograms of durations: log-linear, mergeable, a shift and an increment for each record.

use serde::{Deserialize, Serialize};

use crate::time::Ps;

/// Histogram of durations in picoseconds: `2^SUB` linear buckets per power of two, so a relative error
/// under `2^-SUB`. Recording is a shift and an increment; buckets grow as they are needed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hist<const SUB: u32> {
    pub(super) counts: Vec<u32>,
    pub(super) count: u64,
    pub(super) sum_ps: u128,
    pub(super) max_ps: Ps,
}

/// For request-level figures: under 1% error.
pub type FineHist = Hist<7>;
/// For every actor of the machine: under 13% error, a few hundred bytes.
pub type ActorHist = Hist<3>;

impl<const SUB: u32> Hist<SUB> {
    /// Durations below this are one bucket: a nanosecond.
    pub(super) const UNIT_SHIFT: u32 = 10;

    #[inline]
    pub(super) fn bucket(ps: Ps) -> usize {
        let v = ps >> Self::UNIT_SHIFT;
        let top = 63 - (v | (1 << SUB)).leading_zeros();
        // 0 up to the first power of two past the linear buckets.
        let shift = top - SUB;
        ((u64::from(shift) << SUB) + (v >> shift)) as usize
    }

    /// Middle of a bucket.
    fn value(bucket: usize) -> Ps {
        let b = bucket as u64;
        let linear = 1u64 << SUB;
        let (low, width) = if b < linear {
            (b, 1)
        } else {
            let shift = (b >> SUB) - 1;
            ((linear + (b & (linear - 1))) << shift, 1u64 << shift)
        };
        (low << Self::UNIT_SHIFT) + ((width << Self::UNIT_SHIFT) >> 1)
    }

    #[inline]
    pub fn record(&mut self, ps: Ps) {
        self.record_n(ps, 1);
    }

    #[inline]
    pub fn record_n(&mut self, ps: Ps, n: u32) {
        if n == 0 {
            return;
        }
        let b = Self::bucket(ps);
        if b >= self.counts.len() {
            self.counts.resize(b + 1, 0);
        }
        self.counts[b] = self.counts[b].saturating_add(n);
        self.count += u64::from(n);
        self.sum_ps += u128::from(ps) * u128::from(n);
        self.max_ps = self.max_ps.max(ps);
    }

    pub fn merge(&mut self, other: &Self) {
        if other.counts.len() > self.counts.len() {
            self.counts.resize(other.counts.len(), 0);
        }
        for (a, b) in self.counts.iter_mut().zip(&other.counts) {
            *a = a.saturating_add(*b);
        }
        self.count += other.count;
        self.sum_ps += other.sum_ps;
        self.max_ps = self.max_ps.max(other.max_ps);
    }

    /// Adds a histogram of another resolution: each of its buckets at its middle.
    pub fn absorb<const OTHER: u32>(&mut self, other: &Hist<OTHER>) {
        let (sum, max) = (self.sum_ps + other.sum_ps, self.max_ps.max(other.max_ps));
        for (b, &n) in other.counts.iter().enumerate().filter(|(_, n)| **n > 0) {
            self.record_n(Hist::<OTHER>::value(b).min(other.max_ps), n);
        }
        (self.sum_ps, self.max_ps) = (sum, max);
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    /// The middle of each bucket that holds something, with how many.
    pub fn buckets(&self) -> impl Iterator<Item = (Ps, u64)> + '_ {
        let some = self.counts.iter().enumerate().filter(|(_, n)| **n > 0);
        some.map(|(b, &n)| (Self::value(b).min(self.max_ps), u64::from(n)))
    }

    /// As many in each bucket.
    pub fn same_buckets(&self, other: &Self) -> bool {
        self.counts == other.counts
    }

    pub fn sum_ps(&self) -> u128 {
        self.sum_ps
    }

    pub fn max_ps(&self) -> Ps {
        self.max_ps
    }

    pub fn mean_ps(&self) -> f64 {
        if self.count == 0 {
            0.0
        } else {
            self.sum_ps as f64 / self.count as f64
        }
    }

    /// The value below which a share `q` (0..=1) of the records lies; 0 when there are none.
    pub fn quantile_ps(&self, q: f64) -> Ps {
        let rank = ((q * self.count as f64).ceil() as u64).max(1);
        let mut seen = 0;
        for (b, &n) in self.counts.iter().enumerate() {
            seen += u64::from(n);
            if seen >= rank {
                return Self::value(b).min(self.max_ps);
            }
        }
        self.max_ps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_within_the_stated_error() {
        let mut h = FineHist::default();
        for us in 1..=10_000u64 {
            h.record(us * 1_000_000);
        }
        for q in [0.01, 0.5, 0.9, 0.99] {
            let want = q * 1e10;
            let got = h.quantile_ps(q) as f64;
            assert!((got - want).abs() / want < 0.01, "q {q}: {got} for {want}");
        }
        assert_eq!(h.max_ps(), 10_000_000_000);
    }

    #[test]
    fn merging_is_recording_in_one() {
        let (mut a, mut b, mut all) = (
            ActorHist::default(),
            ActorHist::default(),
            ActorHist::default(),
        );
        for i in 0..1000u64 {
            let v = i * i * 7919;
            if i % 3 == 0 {
                a.record(v)
            } else {
                b.record(v)
            }
            all.record(v);
        }
        a.merge(&b);
        assert_eq!(a, all);
    }
}
