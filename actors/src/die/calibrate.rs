//! Step fidelity: steps (or batches) are drawn from those of the same run that were simulated message by
//! message under the same condition. What is drawn is the ratio of the simulated duration to the operators'
//! own estimate, so a condition is a class of similar steps, not one exact batch.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::FidelitySpec;
use crate::runtime::Rng;
use crate::stats::FidelityStats;
use crate::time::Ps;

/// What a step's duration depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    pub microbatch: bool,
    /// Requests in the group, and on the fullest rank.
    pub requests: u32,
    pub requests_max: u32,
    /// Context tokens on the rank that has most.
    pub context_max: u64,
    /// Faults in force: steps before and after one are not alike.
    pub epoch: u32,
    /// Expert plan and popularity that it ran under.
    pub experts: u32,
}

/// Conditions that share their draws: batch and context within a factor.
pub type Class = (bool, u32, u32, u32, u32, u32);

/// A draw comes from a step whose batch (of the group, and of its fullest rank) differs by this factor at most.
const NEAR: f64 = 1.15;

/// Draws after which the next one is checked at message level: early ones tell soon how far off draws are, later
/// ones come every `recheck_every`.
const EARLY_CHECKS: [u64; 3] = [100, 1_000, 5_000];

impl Condition {
    pub fn class(&self) -> Class {
        // Powers of two of the total batch and of the fullest rank's, powers of four of its context per request.
        let log2 = |x: u64| 64 - x.leading_zeros();
        let per_request = self.context_max / u64::from(self.requests_max.max(1));
        (
            self.microbatch,
            log2(u64::from(self.requests)),
            log2(u64::from(self.requests_max)),
            log2(per_request) / 2,
            self.epoch,
            self.experts,
        )
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// Run it message by message.
    Simulate,
    /// Its duration is this times the estimate.
    Draw(f64),
    /// Run it message by message and compare with this draw.
    Check(f64),
}

/// A step that was simulated.
#[derive(Clone, Copy, Debug)]
struct Sample {
    requests: u32,
    requests_max: u32,
    ratio: f64,
}

impl Sample {
    /// Whether a step under `c` is about like this one.
    fn is_near(&self, c: &Condition) -> bool {
        let near = |a: u32, b: u32| {
            let (a, b) = (f64::from(a.max(1)), f64::from(b.max(1)));
            a.max(b) <= NEAR * a.min(b)
        };
        near(self.requests, c.requests) && near(self.requests_max, c.requests_max)
    }
}

#[derive(Debug, Default)]
pub struct Calibrator {
    samples: BTreeMap<Class, Vec<Sample>>,
    drawn: u64,
    replaced: usize,
    /// The step that is running is simulated, not drawn.
    pub simulated: bool,
}

/// Samples kept per class; later ones replace earlier ones in turn.
const KEPT: usize = 64;

impl Calibrator {
    pub fn decide(&mut self, c: &Condition, spec: &FidelitySpec, rng: &mut Rng) -> Verdict {
        let Some(samples) = self.samples.get(&c.class()) else {
            return Verdict::Simulate;
        };
        if samples.len() < spec.calibration_steps.max(1) as usize {
            return Verdict::Simulate;
        }
        let near = samples.iter().filter(|s| s.is_near(c));
        let n = near.clone().count();
        if n == 0 && samples.len() < KEPT {
            return Verdict::Simulate;
        }
        let ratio = if n > 0 {
            let drawn = rng.below(n as u64) as usize;
            near.clone().nth(drawn).expect("there are n of them").ratio
        } else {
            samples[rng.below(samples.len() as u64) as usize].ratio
        };
        self.drawn += 1;
        let every = u64::from(spec.recheck_every);
        if every > 0 && (self.drawn.is_multiple_of(every) || EARLY_CHECKS.contains(&self.drawn)) {
            Verdict::Check(ratio)
        } else {
            Verdict::Draw(ratio)
        }
    }

    /// What a simulated step under this condition took, by the estimate: of this group, or of one that is alike.
    pub fn learn(&mut self, c: &Condition, ratio: f64) {
        let samples = self.samples.entry(c.class()).or_default();
        let sample = Sample {
            requests: c.requests,
            requests_max: c.requests_max,
            ratio,
        };
        if samples.len() < KEPT {
            samples.push(sample);
        } else {
            self.replaced += 1;
            samples[self.replaced % KEPT] = sample;
        }
    }

    /// A step has ended after `duration_ps`; `drawn_ps` is the draw that was used or is checked.
    pub fn ended(
        &mut self,
        c: &Condition,
        estimate_ps: Ps,
        drawn_ps: Option<Ps>,
        duration_ps: Ps,
        stats: &mut FidelityStats,
    ) {
        if !self.simulated {
            stats.step_steps += 1;
            return;
        }
        stats.message_steps += 1;
        let ratio = duration_ps as f64 / estimate_ps.max(1) as f64;
        self.learn(c, ratio);
        if let Some(drawn) = drawn_ps {
            stats.rechecked_steps += 1;
            stats.drawn_ps += drawn;
            stats.simulated_ps += duration_ps;
            stats.abs_error_ps += drawn.abs_diff(duration_ps);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(requests: u32) -> Condition {
        Condition {
            requests,
            requests_max: 10,
            ..Condition::default()
        }
    }

    #[test]
    fn steps_are_drawn_from_those_with_about_the_same_batch() {
        let spec = FidelitySpec {
            calibration_steps: 2,
            ..FidelitySpec::default()
        };
        let (mut c, mut rng) = (Calibrator::default(), Rng::new(1, 1));
        // All in one class: 512 to 1,023 requests.
        c.learn(&condition(520), 1.0);
        c.learn(&condition(540), 1.1);
        for _ in 0..20 {
            let drawn = c.decide(&condition(560), &spec, &mut rng);
            assert!(matches!(drawn, Verdict::Draw(r) if r == 1.0 || r == 1.1));
        }
        assert_eq!(
            c.decide(&condition(1_000), &spec, &mut rng),
            Verdict::Simulate
        );
        c.learn(&condition(1_000), 2.0);
        assert_eq!(
            c.decide(&condition(960), &spec, &mut rng),
            Verdict::Draw(2.0)
        );
    }
}
