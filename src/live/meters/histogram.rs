//! A histogram as Prometheus has them, with the buckets of vLLM and SGLang.

/// Upper bounds, without the infinite one.
pub type Bounds = &'static [f64];

/// vLLM's buckets of `time_to_first_token_seconds`.
pub const TTFT: Bounds = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
/// vLLM's of `inter_token_latency_seconds` and `request_time_per_output_token_seconds`.
pub const ITL: Bounds = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
];
/// SGLang's of the same: finer where a supernode works.
pub const ITL_FINE: Bounds = &[
    0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.025, 0.03, 0.035, 0.04, 0.06, 0.08, 0.1, 0.2,
    0.4, 0.6, 0.8, 1.0, 2.0, 4.0, 6.0, 8.0,
];
/// vLLM's of `e2e_request_latency_seconds` and of the stages of a request.
pub const E2E: Bounds = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
];
/// vLLM's 1-2-5 series of tokens, up to the context of the largest models.
pub const TOKENS: Bounds = &[
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5,
];

#[derive(Clone, Debug)]
pub struct Histogram {
    bounds: Bounds,
    /// By bucket, the last above all bounds; not cumulative.
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            counts: vec![0; bounds.len() + 1],
            sum: 0.0,
        }
    }

    pub fn record(&mut self, value: f64) {
        self.record_n(value, 1);
    }

    pub fn record_n(&mut self, value: f64, n: u64) {
        let bucket = self.bounds.partition_point(|&b| b < value);
        self.counts[bucket] += n;
        self.sum += value * n as f64;
    }

    pub fn sum(&self) -> f64 {
        self.sum
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// (upper bound, values up to it), the last bound infinite.
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        let mut sum = 0;
        bounds.zip(&self.counts).map(move |(bound, n)| {
            sum += n;
            (bound, sum)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_on_a_bound_is_within_it() {
        let mut h = Histogram::new(ITL);
        h.record(0.01);
        h.record_n(0.02, 3);
        h.record(100.0);
        let seen: Vec<_> = h.cumulative().collect();
        assert_eq!(&seen[..2], &[(0.01, 1), (0.025, 4)]);
        assert_eq!(seen.last(), Some(&(f64::INFINITY, 5)));
        assert_eq!(h.count(), 5);
    }
}
