//! A ratio that changes little by little with a step's condition, known at some conditions: a plane is laid through the
//! nearest of them. Those few that are far off it, because something else was on the lanes at the time, do not bend it.

/// Where a condition lies: coordinates in which steps one apart are about as alike as steps may be for a draw.
pub(super) type Place = [f64; 3];

/// What was found at a place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sample {
    pub at: Place,
    pub ratio: f64,
    /// The samples before it had told what it would be.
    pub foretold: bool,
}

/// The plane goes through so many of the nearest samples.
const NEIGHBOURS: usize = 8;
/// With fewer than this many there is no slope to be had, only a mean.
pub(super) const SLOPE_FROM: usize = 4;
/// Squared distance below which samples count about the same.
const SOFT: f64 = 0.05;
/// Spread of samples along an axis (squared) below which they say little of a slope along it.
const RIDGE: f64 = 0.01;
/// Times that the plane is laid anew, with less weight for samples that are off it by more than twice what is common, or
/// by more than `COMMON_LEAST` above that.
const PASSES: usize = 2;
const COMMON_LEAST: f64 = 0.002;
/// How far below the least and above the largest of the neighbours a value may come out.
const BEYOND: f64 = 0.05;

pub(super) fn distance2(a: &Place, b: &Place) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
}

/// A plane through the samples nearest to a place, weighted by how near they are.
#[derive(Clone, Debug)]
pub(super) struct Plane {
    /// At the place itself.
    pub ratio: f64,
    /// What its samples are off it, relative to it, with their squared distance.
    off: [(f64, f64); NEIGHBOURS],
    samples: usize,
}

/// A sample seen from the place in question.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    from: Place,
    ratio: f64,
    weight: f64,
}

/// Height at a place from there.
struct Fit {
    middle: Place,
    slope: Place,
    ratio: f64,
}

impl Fit {
    fn of(seen: &[Seen]) -> Self {
        let total: f64 = seen.iter().map(|s| s.weight).sum();
        let mean = |value: &dyn Fn(&Seen) -> f64| -> f64 {
            seen.iter().map(|s| s.weight * value(s)).sum::<f64>() / total
        };
        let ratio = mean(&|s| s.ratio);
        let middle: Place = std::array::from_fn(|a| mean(&|s| s.from[a]));
        let mut fit = Self {
            middle,
            slope: [0.0; 3],
            ratio,
        };
        if seen.len() >= SLOPE_FROM {
            let off = |s: &Seen, a: usize| s.from[a] - middle[a];
            let spread = std::array::from_fn(|a| {
                std::array::from_fn(|b| {
                    let ridge = if a == b { RIDGE } else { 0.0 };
                    ridge + mean(&|s| off(s, a) * off(s, b))
                })
            });
            let along = std::array::from_fn(|a| mean(&|s| off(s, a) * (s.ratio - ratio)));
            fit.slope = solve(spread, along);
        }
        fit
    }

    fn at(&self, from: &Place) -> f64 {
        let rise = |a: usize| self.slope[a] * (from[a] - self.middle[a]);
        self.ratio + (0..3).map(rise).sum::<f64>()
    }
}

impl Plane {
    /// # Panics
    /// Without samples.
    pub fn around(at: &Place, samples: &[Sample]) -> Self {
        let (nearest, n) = nearest(at, samples);
        let mut all = [Seen::default(); NEIGHBOURS];
        for (seen, &(d2, i)) in all.iter_mut().zip(&nearest[..n]) {
            let s = &samples[i];
            *seen = Seen {
                from: std::array::from_fn(|a| s.at[a] - at[a]),
                ratio: s.ratio,
                weight: 1.0 / (SOFT + d2),
            };
        }
        let seen = &mut all[..n];
        let mut fit = Fit::of(seen);
        for _ in 0..if n < 3 { 0 } else { PASSES } {
            let mut sizes = [0.0; NEIGHBOURS];
            for (size, s) in sizes.iter_mut().zip(seen.iter()) {
                *size = (s.ratio - fit.at(&s.from)).abs();
            }
            let mut sorted = sizes;
            sorted[..n].sort_unstable_by(f64::total_cmp);
            let common = 2.0 * (sorted[n / 2] + COMMON_LEAST);
            for ((s, &size), &(d2, _)) in seen.iter_mut().zip(&sizes).zip(&nearest) {
                let trust = (common / size).min(1.0);
                s.weight = trust * trust / (SOFT + d2);
            }
            fit = Fit::of(seen);
        }
        let mut off = [(0.0, 0.0); NEIGHBOURS];
        for ((off, s), &(d2, _)) in off.iter_mut().zip(seen.iter()).zip(&nearest) {
            let there = fit.at(&s.from);
            *off = ((s.ratio - there) / there, d2);
        }
        let ratios = || seen.iter().map(|s| s.ratio);
        let least = ratios().fold(f64::INFINITY, f64::min) * (1.0 - BEYOND);
        let most = ratios().fold(0.0, f64::max) * (1.0 + BEYOND);
        Self {
            ratio: fit.at(&[0.0; 3]).clamp(least, most),
            off,
            samples: n,
        }
    }

    /// What the plane's samples are off it, relative to it, with their squared distance from the place.
    pub fn off(&self) -> &[(f64, f64)] {
        &self.off[..self.samples]
    }
}

/// The nearest samples, with their squared distances, and how many there are.
fn nearest(at: &Place, samples: &[Sample]) -> ([(f64, usize); NEIGHBOURS], usize) {
    let mut nearest = [(f64::INFINITY, 0); NEIGHBOURS];
    let mut n = 0;
    for (i, s) in samples.iter().enumerate() {
        let d2 = distance2(at, &s.at);
        if n == NEIGHBOURS && d2 >= nearest[n - 1].0 {
            continue;
        }
        n = (n + 1).min(NEIGHBOURS);
        let mut j = n - 1;
        while j > 0 && nearest[j - 1].0 > d2 {
            nearest[j] = nearest[j - 1];
            j -= 1;
        }
        nearest[j] = (d2, i);
    }
    (nearest, n)
}

/// Three equations whose matrix is symmetric and positive.
fn solve(mut m: [[f64; 3]; 3], mut b: [f64; 3]) -> [f64; 3] {
    for i in 0..3 {
        let pivot = m[i];
        for j in i + 1..3 {
            let factor = m[j][i] / pivot[i];
            for (of_row, of_pivot) in m[j].iter_mut().zip(pivot) {
                *of_row -= factor * of_pivot;
            }
            b[j] -= factor * b[i];
        }
    }
    let mut x = [0.0; 3];
    for i in (0..3).rev() {
        let known: f64 = (i + 1..3).map(|k| m[i][k] * x[k]).sum();
        x[i] = (b[i] - known) / m[i][i];
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plane_is_found_again() {
        let ratio = |at: &Place| 0.9 + 0.05 * at[0] - 0.02 * at[2];
        let samples: Vec<Sample> = (0..12)
            .map(|i| {
                let i = f64::from(i);
                let at = [5.0 + (i * 1.3).sin(), 0.0, 4.0 + (i * 0.7).cos()];
                Sample {
                    at,
                    ratio: ratio(&at),
                    foretold: false,
                }
            })
            .collect();
        let at = [5.1, 0.0, 4.2];
        let plane = Plane::around(&at, &samples);
        assert!((plane.ratio - ratio(&at)).abs() < 0.001, "{plane:?}");
        assert_eq!(plane.off().len(), NEIGHBOURS);
        assert!(plane.off().iter().all(|o| o.0.abs() < 0.005));
        // One that something else held up does not bend it.
        let mut samples = samples;
        samples.sort_by(|a, b| distance2(&at, &a.at).total_cmp(&distance2(&at, &b.at)));
        samples[3].ratio *= 1.3;
        let plane = Plane::around(&at, &samples);
        assert!((plane.ratio - ratio(&at)).abs() < 0.01, "{plane:?}");
        assert!(plane.off().iter().any(|o| o.0 > 0.2));
    }

    #[test]
    fn samples_at_one_place_give_their_mean() {
        let sample = |ratio| Sample {
            at: [1.0, 2.0, 3.0],
            ratio,
            foretold: false,
        };
        let samples: Vec<Sample> = (0..6).map(|i| sample(1.0 + f64::from(i))).collect();
        let plane = Plane::around(&[1.0, 2.0, 3.2], &samples);
        assert!((plane.ratio - 3.5).abs() < 1e-9);
    }

    #[test]
    fn far_from_all_samples_it_stays_near_their_values() {
        let sample = |x: f64| Sample {
            at: [x, 0.0, 0.0],
            ratio: 1.0 + x,
            foretold: false,
        };
        let samples: Vec<Sample> = (0..5).map(|i| sample(f64::from(i) * 0.1)).collect();
        let plane = Plane::around(&[10.0, 0.0, 0.0], &samples);
        assert!(plane.ratio <= 1.4 * 1.06, "{}", plane.ratio);
    }
}
