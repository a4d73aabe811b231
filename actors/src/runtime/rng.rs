//! Random numbers: one small stream per actor, derived from (seed, actor id), so that what an actor draws
//! depends on nothing but its own history.

use serde::{Deserialize, Serialize};

/// A wyrand generator: 8 bytes of state, about a nanosecond per draw.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rng {
    state: u64,
}

/// Multiplies to 128 bits and folds the halves: the mixing step of wyhash.
#[inline]
pub(super) fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ ((product >> 64) as u64)
}

/// Scrambles all bits of `x` (the finaliser of splitmix64).
#[inline]
fn scramble(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Rng {
    /// The stream number `stream` of a seed.
    pub fn new(seed: u64, stream: u64) -> Self {
        let seed = scramble(seed.wrapping_add(0x9e37_79b9_7f4a_7c15));
        Self {
            state: scramble(seed ^ scramble(stream.wrapping_add(0x2545_f491_4f6c_dd1d))),
        }
    }

    #[inline]
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0xa076_1d64_78bd_642f);
        fold(self.state, self.state ^ 0xe703_7ed1_a0b4_28db)
    }

    /// Uniform in `0..n`, without bias. `n` must be at least 1.
    #[inline]
    pub fn below(&mut self, n: u64) -> u64 {
        assert!(n > 0, "below(0) has no possible result");
        let mut product = u128::from(self.next_u64()) * u128::from(n);
        if (product as u64) < n {
            let rejected_below = n.wrapping_neg() % n;
            while (product as u64) < rejected_below {
                product = u128::from(self.next_u64()) * u128::from(n);
            }
        }
        (product >> 64) as u64
    }

    /// Uniform in `[0, 1)`, a multiple of 2^-53.
    #[inline]
    pub fn f64(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// True with probability `p`.
    #[inline]
    pub fn chance(&mut self, p: f64) -> bool {
        self.f64() < p
    }

    /// Exponential with the given mean.
    #[inline]
    pub fn exp(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.f64()).ln()
    }

    /// Normal with the given mean and standard deviation (Box-Muller, one of the pair).
    pub fn normal(&mut self, mean: f64, deviation: f64) -> f64 {
        let radius = (-2.0 * (1.0 - self.f64()).ln()).sqrt();
        mean + deviation * radius * (std::f64::consts::TAU * self.f64()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_of_neighbouring_actors_and_seeds_differ() {
        let mut seen: Vec<u64> = (0..100)
            .flat_map(|seed| (0..100).map(move |actor| Rng::new(seed, actor).next_u64()))
            .collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 10_000);
    }

    #[test]
    fn every_residue_is_equally_likely() {
        let mut rng = Rng::new(1, 2);
        let mut counts = [0u32; 7];
        for _ in 0..70_000 {
            counts[rng.below(7) as usize] += 1;
        }
        // Binomial, 10,000 expected, standard deviation 93: five of them.
        assert!(
            counts.iter().all(|&n| n.abs_diff(10_000) < 465),
            "{counts:?}"
        );
    }

    #[test]
    fn the_distributions_have_their_moments() {
        let mut rng = Rng::new(3, 4);
        let n = 100_000;
        let (mut exp, mut normal, mut square, mut uniform) = (0.0, 0.0, 0.0, 0.0);
        for _ in 0..n {
            exp += rng.exp(5.0);
            let x = rng.normal(2.0, 3.0);
            normal += x;
            square += (x - 2.0) * (x - 2.0);
            uniform += rng.f64();
        }
        let n = f64::from(n);
        assert!((exp / n - 5.0).abs() < 0.08, "{}", exp / n);
        assert!((normal / n - 2.0).abs() < 0.05, "{}", normal / n);
        assert!((square / n - 9.0).abs() < 0.25, "{}", square / n);
        assert!((uniform / n - 0.5).abs() < 0.005, "{}", uniform / n);
    }
}
