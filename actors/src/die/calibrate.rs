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
type Class = (bool, u32, u32, u32, u32, u32);

/// Draws after which the next one is checked at message level: early ones tell soon how far off draws are, later
/// ones come every `recheck_every`.
const EARLY_CHECKS: [u64; 3] = [100, 1_000, 5_000];

impl Condition {
    fn class(&self) -> Class {
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

#[derive(Debug, Default)]
pub struct Calibrator {
    ratios: BTreeMap<Class, Vec<f64>>,
    drawn: u64,
    replaced: usize,
    /// The step that is running is simulated, not drawn.
    pub simulated: bool,
}

/// Ratios kept per class; later ones replace earlier ones in turn.
const KEPT: usize = 64;

impl Calibrator {
    pub fn decide(&mut self, c: &Condition, spec: &FidelitySpec, rng: &mut Rng) -> Verdict {
        let Some(ratios) = self.ratios.get(&c.class()) else {
            return Verdict::Simulate;
        };
        if ratios.len() < spec.calibration_steps.max(1) as usize {
            return Verdict::Simulate;
        }
        let ratio = ratios[rng.below(ratios.len() as u64) as usize];
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
        let ratios = self.ratios.entry(c.class()).or_default();
        if ratios.len() < KEPT {
            ratios.push(ratio);
        } else {
            self.replaced += 1;
            ratios[self.replaced % KEPT] = ratio;
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
