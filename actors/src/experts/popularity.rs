//! How popular each expert of a layer is: drawn from a law that was fitted to production placement maps.

use std::sync::LazyLock;

use serde::Deserialize;

use crate::runtime::Rng;

/// Figures of expert load, from `specs/experts.toml`: defaults of `experts.skew`, `drift_*` and `eplb_*` in scenarios.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpertFigures {
    pub popularity: PopularityFigures,
    pub drift: DriftFigures,
    pub rebalance: RebalanceFigures,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PopularityFigures {
    /// Standard deviation of ln(load) over the experts of a layer: the default.
    pub skew: f64,
    /// The same, as fitted to each production map: the least and the most skewed.
    pub skew_of_maps: [f64; 2],
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriftFigures {
    /// Correlation of ln(load) from one period to the next.
    pub correlation: f64,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RebalanceFigures {
    /// Time the host takes to make a plan.
    pub plan_ms: f64,
    /// Layers whose new weights a die holds beside the old ones.
    pub layers_at_once: u32,
    /// Size of the pieces that weights cross the lanes in.
    pub chunk_mb: f64,
    /// Share by which the busiest die of a layer must gain from a new plan.
    pub gain_min: f64,
    pub plan_bytes_per_slot: u64,
    pub load_bytes_per_slot: u64,
}

impl ExpertFigures {
    /// The figures that ship with Supernode.
    pub fn builtin() -> &'static Self {
        static FIGURES: LazyLock<ExpertFigures> = LazyLock::new(|| {
            toml::from_str(include_str!("../../specs/experts.toml"))
                .expect("the built-in file of expert figures is checked by a test")
        });
        &FIGURES
    }
}

/// Loads (any unit) of `experts` experts of one layer, lognormal: `skew` is the standard deviation of their
/// logarithms, 0 makes all equal.
pub fn popularity(experts: u32, skew: f64, rng: &mut Rng) -> Vec<f64> {
    (0..experts)
        .map(|_| {
            if skew == 0.0 {
                1.0
            } else {
                (skew * rng.normal(0.0, 1.0)).exp()
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experts::replicate;

    /// Experts by number of copies (1, 2, 3, …) in the more skewed map that `specs/experts.toml` names: 58 layers of
    /// 256 experts, 64 redundant copies a layer.
    const COPIES_IN_PRODUCTION: [u32; 12] = [12_507, 1_555, 509, 131, 65, 40, 21, 7, 8, 4, 0, 1];
    const LAYERS: u32 = 58;

    /// Share of experts with 1, 2, 3, … copies when EPLB gives away `extra` a layer, over many layers.
    fn copies(skew: f64, extra: usize) -> [f64; 16] {
        let layers = 20 * LAYERS;
        let mut share = [0.0; 16];
        for layer in 0..layers {
            let load = popularity(256, skew, &mut Rng::new(4, u64::from(layer)));
            for n in replicate(&load, extra) {
                share[(n as usize - 1).min(15)] += 1.0 / f64::from(layers * 256);
            }
        }
        share
    }

    /// Log-likelihood of the production histogram; a cell that no sampled expert fell in counts as a 20th of one.
    fn likelihood(share: &[f64; 16]) -> f64 {
        let floor = 0.05 / f64::from(LAYERS * 256);
        let cells = COPIES_IN_PRODUCTION.iter().zip(share);
        cells.map(|(&n, s)| f64::from(n) * s.max(floor).ln()).sum()
    }

    #[test]
    fn the_larger_skew_gives_experts_the_copies_they_have_in_production() {
        let [_, skew] = ExpertFigures::builtin().popularity.skew_of_maps;
        let share = copies(skew, 64);
        let all: u32 = COPIES_IN_PRODUCTION.iter().sum();
        assert_eq!(all, LAYERS * 256);
        let real = |n: &[u32]| f64::from(n.iter().sum::<u32>()) / f64::from(all);
        // Experts with one, two, three or four, and more copies: within a percentage point of the map's.
        for cells in [0..1, 1..2, 2..4, 4..12] {
            let ours: f64 = share[cells.clone()].iter().sum();
            let real = real(&COPIES_IN_PRODUCTION[cells.clone()]);
            assert!(
                (ours - real).abs() < 0.01,
                "{cells:?}: {ours} against {real}"
            );
        }
        // The tail, where the hot experts are: within half of it either way.
        let tail = share[7..].iter().sum::<f64>() / real(&COPIES_IN_PRODUCTION[7..]);
        assert!(
            (0.5..2.0).contains(&tail),
            "eight copies and more: {tail} times as often"
        );
    }

    #[test]
    fn the_larger_skew_is_the_most_likely_one() {
        let [_, skew] = ExpertFigures::builtin().popularity.skew_of_maps;
        let at = likelihood(&copies(skew, 64));
        for off in [-0.1, 0.1] {
            let there = likelihood(&copies(skew + off, 64));
            assert!(there < at, "{}: {there} against {at}", skew + off);
        }
    }

    /// The less skewed map has ten layers of 256 experts with 32 copies to give away, and no expert with three.
    #[test]
    fn the_smaller_skew_is_about_the_largest_that_leaves_no_expert_three_copies() {
        let [skew, _] = ExpertFigures::builtin().popularity.skew_of_maps;
        let in_ten_layers = |skew: f64| 10.0 * 256.0 * copies(skew, 32)[2..].iter().sum::<f64>();
        assert!(in_ten_layers(skew) < 0.7, "{}", in_ten_layers(skew));
        assert!(in_ten_layers(skew + 0.1) > 3.0);
    }

    #[test]
    fn the_default_skew_lies_between_those_of_the_maps() {
        let p = &ExpertFigures::builtin().popularity;
        let [low, high] = p.skew_of_maps;
        assert!((p.skew - (low * high).sqrt()).abs() < 0.005);
    }

    #[test]
    fn no_skew_is_all_equal() {
        let load = popularity(64, 0.0, &mut Rng::new(1, 1));
        assert!(load.iter().all(|l| *l == 1.0));
    }
}
