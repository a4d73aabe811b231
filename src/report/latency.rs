//! Latencies of requests: exact percentiles from the records of all that completed.

use serde::Serialize;
use supernode_actors::request::{Outcome, RequestRecord};
use supernode_actors::stats::FineHist;
use supernode_actors::time::ms_from_ps;

use crate::scenario::Slo;

/// A distribution in milliseconds; all 0 when nothing was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Latency {
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub max: f64,
}

impl Latency {
    /// Nearest-rank percentiles.
    fn exact(mut ps: Vec<u64>) -> Self {
        if ps.is_empty() {
            return Self::default();
        }
        ps.sort_unstable();
        let sum: u128 = ps.iter().map(|p| u128::from(*p)).sum();
        let at = |percent: usize| ms_from_ps(ps[(ps.len() * percent).div_ceil(100).max(1) - 1]);
        Self {
            mean: sum as f64 / ps.len() as f64 / 1e9,
            p50: at(50),
            p90: at(90),
            p99: at(99),
            max: at(100),
        }
    }

    pub fn of_hist(hist: &FineHist) -> Self {
        let at = |q| ms_from_ps(hist.quantile_ps(q));
        if hist.count() == 0 {
            return Self::default();
        }
        Self {
            mean: hist.mean_ps() / 1e9,
            p50: at(0.50),
            p90: at(0.90),
            p99: at(0.99),
            max: ms_from_ps(hist.max_ps()),
        }
    }
}

pub struct Latencies {
    pub ttft_ms: Latency,
    pub tpot_ms: Latency,
    pub e2e_ms: Latency,
}

pub fn of_records(records: &[RequestRecord]) -> Latencies {
    let completed = || records.iter().filter(|r| r.outcome == Outcome::Completed);
    Latencies {
        ttft_ms: Latency::exact(completed().map(RequestRecord::ttft_ps).collect()),
        tpot_ms: Latency::exact(completed().filter_map(RequestRecord::tpot_ps).collect()),
        e2e_ms: Latency::exact(completed().map(RequestRecord::e2e_ps).collect()),
    }
}

/// Whether a request completed within both objectives; one of a single token has only the first.
pub fn meets(record: &RequestRecord, slo: &Slo) -> bool {
    record.outcome == Outcome::Completed
        && ms_from_ps(record.ttft_ps()) <= slo.ttft_ms
        && record
            .tpot_ps()
            .is_none_or(|tpot| ms_from_ps(tpot) <= slo.tpot_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_rank() {
        let l = Latency::exact((1..=1_000).map(|ms| ms * 1_000_000_000).collect());
        assert_eq!(
            (l.mean, l.p50, l.p90, l.p99, l.max),
            (500.5, 500.0, 900.0, 990.0, 1_000.0)
        );
        let one = Latency::exact(vec![3_000_000_000]);
        assert_eq!((one.p50, one.p99, one.max), (3.0, 3.0, 3.0));
    }
}
