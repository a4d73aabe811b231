//! Seeded random draws for workloads: one small generator (xoshiro256++, public domain by Blackman and Vigna)
//! and the distributions that arrivals and lengths need. Kept here so that a seed gives the same workload
//! whatever happens to other crates.

use std::f64::consts::TAU;

/// A stream of random numbers, told apart by seed and stream number.
#[derive(Clone, Debug)]
pub struct Draw {
    state: [u64; 4],
}

/// SplitMix64: spreads seeds that are close together.
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Draw {
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut at_seed = seed;
        let mut at = split_mix(&mut at_seed) ^ stream;
        // Twice through, so that neighbouring streams share no state word.
        let mut at = split_mix(&mut at) ^ stream.rotate_left(32);
        Self {
            state: std::array::from_fn(|_| split_mix(&mut at)),
        }
    }

    pub fn bits(&mut self) -> u64 {
        let s = &mut self.state;
        let out = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        out
    }

    /// In [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// In (0, 1].
    fn positive_unit(&mut self) -> f64 {
        1.0 - self.unit()
    }

    /// A whole number in `0..n`; 0 for an empty range.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(n)) >> 64) as u64
    }

    pub fn exponential(&mut self, mean: f64) -> f64 {
        -mean * self.positive_unit().ln()
    }

    pub fn normal(&mut self) -> f64 {
        (-2.0 * self.positive_unit().ln()).sqrt() * (TAU * self.unit()).cos()
    }

    /// Log-normal with this mean and coefficient of variation.
    pub fn lognormal(&mut self, mean: f64, cv: f64) -> f64 {
        let variance = (1.0 + cv * cv).ln();
        (mean.ln() - variance / 2.0 + variance.sqrt() * self.normal()).exp()
    }

    pub fn weibull(&mut self, shape: f64, scale: f64) -> f64 {
        scale * (-self.positive_unit().ln()).powf(1.0 / shape)
    }

    /// Gamma by Marsaglia and Tsang (2000), with their boost for shapes below 1.
    pub fn gamma(&mut self, shape: f64, scale: f64) -> f64 {
        if shape < 1.0 {
            let boost = self.positive_unit().powf(1.0 / shape);
            return boost * self.gamma(shape + 1.0, scale);
        }
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            if v > 0.0 && self.positive_unit().ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return d * v * scale;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mean and coefficient of variation of many draws.
    fn moments(mut draw: impl FnMut() -> f64) -> (f64, f64) {
        let n = 200_000;
        let all: Vec<f64> = (0..n).map(|_| draw()).collect();
        let mean = all.iter().sum::<f64>() / n as f64;
        let var = all.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
        (mean, var.sqrt() / mean)
    }

    fn near(got: (f64, f64), mean: f64, cv: f64) {
        assert!(
            (got.0 / mean - 1.0).abs() < 0.02 && (got.1 / cv - 1.0).abs() < 0.03,
            "{got:?} for {mean}, {cv}"
        );
    }

    #[test]
    fn draws_have_the_mean_and_spread_of_their_law() {
        let mut d = Draw::new(7, 0);
        near(moments(|| d.exponential(3.0)), 3.0, 1.0);
        near(moments(|| d.gamma(4.0, 0.5)), 2.0, 0.5);
        // Shape 1/cv^2 gives the coefficient of variation cv.
        near(moments(|| d.gamma(0.25, 8.0)), 2.0, 2.0);
        near(moments(|| d.lognormal(4_096.0, 1.0)), 4_096.0, 1.0);
        // Weibull with shape 2: mean scale * sqrt(pi) / 2, cv sqrt(4 / pi - 1).
        let pi = std::f64::consts::PI;
        near(
            moments(|| d.weibull(2.0, 1.0)),
            pi.sqrt() / 2.0,
            (4.0 / pi - 1.0).sqrt(),
        );
        near(moments(|| 1.0 + d.normal()), 1.0, 1.0);
    }

    #[test]
    fn streams_and_seeds_differ_and_repeat() {
        let first = |seed, stream| Draw::new(seed, stream).bits();
        assert_eq!(first(1, 2), first(1, 2));
        let mut all: Vec<u64> = (0..100)
            .flat_map(|s| (0..100).map(move |t| first(s, t)))
            .collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 10_000);
    }
}
