//! Step fidelity: steps (or batches) are drawn from those of the same run that were simulated message by
//! message under about the same condition. What is drawn is the ratio of the simulated duration to the operators'
//! own estimate. It changes little by little with batch and context, so a plane through the nearest simulated steps says
//! what it is between them. How far one of those around is off its own plane is what a single step differs by.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::FidelitySpec;
use crate::runtime::Rng;
use crate::stats::FidelityStats;
use crate::time::Ps;

use super::surface::{Place, Plane, SLOPE_FROM, Sample, distance2};

/// What a step's duration depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    pub microbatch: bool,
    /// Requests in the group, and on the fullest rank.
    pub requests: u32,
    pub requests_max: u32,
    /// Context tokens on the rank that has most.
    pub context_max: u64,
    /// Names the faults in force and the ranks of the group: steps under others are not alike.
    pub faults: u64,
    /// Expert plan and popularity that it ran under.
    pub experts: u32,
}

/// Conditions whose stage times are taken together: batch and context within a factor.
pub type Class = (bool, u32, u32, u32, u64, u32);

/// Conditions that share their draws: microbatches, faults, experts.
type Key = (bool, u64, u32);

/// A draw needs simulated steps whose batch (of the group, and of its fullest rank) and context per request differ by
/// these factors at most, or by less in each when they differ in several.
const NEAR: [f64; 3] = [2.0, 1.5, 4.0];

/// A simulated step that was not too close to those before it (squared, in units of `NEAR`), and that the plane through them had
/// told to within this share, speaks for the plane: as far as `REACH2` from it, squared, steps may be drawn without others.
const FORETOLD: f64 = 0.005;
const FORETOLD_FROM2: f64 = 0.25;
const REACH2: f64 = 2.0;

/// Where those near enough are off their plane by more than this share, twice as many are asked for.
const AGREE: f64 = 0.02;

/// What single steps differ by is taken from simulated ones that are less than this many times `NEAR` away, squared.
const AROUND2: f64 = 9.0;

/// Contexts per request below this are alike: attention to them costs next to nothing.
const CONTEXT_MIN: u64 = 64;

/// The first draw that is checked at message level; then each power of eight, which tells soon how far off draws are, and
/// each multiple of `recheck_every`.
const FIRST_CHECK: u64 = 64;

impl Condition {
    pub fn class(&self) -> Class {
        // Powers of two of the total batch and of the fullest rank's, powers of four of its context per request.
        let log2 = |x: u64| 64 - x.leading_zeros();
        (
            self.microbatch,
            log2(u64::from(self.requests)),
            log2(u64::from(self.requests_max)),
            log2(self.context_per_request()) / 2,
            self.faults,
            self.experts,
        )
    }

    /// Of the rank that has most.
    fn context_per_request(&self) -> u64 {
        self.context_max / u64::from(self.requests_max.max(1))
    }

    fn key(&self) -> Key {
        (self.microbatch, self.faults, self.experts)
    }

    /// Where it lies among the conditions of its key: one apart is as far as `NEAR` allows.
    fn place(&self) -> Place {
        let of = [
            f64::from(self.requests.max(1)),
            f64::from(self.requests_max.max(1)),
            self.context_per_request().max(CONTEXT_MIN) as f64,
        ];
        std::array::from_fn(|i| of[i].ln() / NEAR[i].ln())
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

/// Simulated steps of one key.
#[derive(Debug, Default)]
struct Known {
    samples: Vec<Sample>,
    /// What each is off the plane around it, relative to it.
    off: Vec<f64>,
    /// The class of each.
    classes: Vec<Class>,
    replaced: usize,
}

/// Samples kept per key; later ones replace earlier ones in turn.
const KEPT: usize = 256;

impl Known {
    fn learn(&mut self, c: &Condition, ratio: f64) {
        let at = c.place();
        let told = || (ratio / Plane::around(&at, &self.samples).ratio - 1.0).abs();
        let close = self
            .samples
            .iter()
            .any(|s| distance2(&at, &s.at) < FORETOLD_FROM2);
        let foretold = !close && self.samples.len() >= SLOPE_FROM && told() < FORETOLD;
        let sample = Sample {
            at,
            ratio,
            foretold,
        };
        if self.samples.len() < KEPT {
            self.samples.push(sample);
            self.classes.push(c.class());
        } else {
            self.replaced = (self.replaced + 1) % KEPT;
            self.samples[self.replaced] = sample;
            self.classes[self.replaced] = c.class();
        }
        let planes = self
            .samples
            .iter()
            .map(|s| (s, Plane::around(&s.at, &self.samples)));
        let off = planes.map(|(s, plane)| s.ratio / plane.ratio - 1.0);
        self.off = off.collect();
    }

    /// What one of the steps around a place is off its plane, drawn at random.
    fn draw_off(&self, at: &Place, rng: &mut Rng) -> f64 {
        let around = |s: &&(&Sample, &f64)| distance2(at, &s.0.at) < AROUND2;
        let all = || self.samples.iter().zip(&self.off);
        let n = all().filter(|s| around(&s)).count();
        if n == 0 {
            return 0.0;
        }
        let drawn = rng.below(n as u64) as usize;
        *all()
            .filter(|s| around(&s))
            .nth(drawn)
            .expect("there are n of them")
            .1
    }

    /// Samples that are near a place, the nearest of all, and whether one that was foretold speaks for the plane there.
    fn near(&self, at: &Place) -> (usize, usize, bool) {
        let (mut near, mut nearest, mut told) = (0, (f64::INFINITY, 0), false);
        for (i, s) in self.samples.iter().enumerate() {
            let d2 = distance2(at, &s.at);
            near += usize::from(d2 <= 1.0);
            told |= s.foretold && d2 <= REACH2;
            if d2 < nearest.0 {
                nearest = (d2, i);
            }
        }
        (near, nearest.1, told)
    }
}

/// Learns and draws for one group, and checks draws for all groups that tell each other what they learn.
#[derive(Debug)]
pub struct Calibrator {
    known: BTreeMap<Key, Known>,
    /// Number of the next draw among those of all groups, if all draw as often; each counts those that are its own.
    next_draw: u64,
    groups: u64,
    /// The step that is running is simulated, not drawn.
    pub simulated: bool,
    /// Class of the simulated step that is most like the one that was drawn last.
    like: Class,
}

impl Calibrator {
    /// For the group `index` of `groups`.
    pub fn new(index: u16, groups: usize) -> Self {
        Self {
            known: BTreeMap::new(),
            next_draw: 1 + u64::from(index),
            groups: groups as u64,
            simulated: false,
            like: Class::default(),
        }
    }

    /// Whether the next draw is to be checked.
    fn checks(&self, every: u64) -> bool {
        let n = self.next_draw;
        let early = n >= FIRST_CHECK && n.is_power_of_two() && n.trailing_zeros().is_multiple_of(3);
        every > 0 && (early || n.is_multiple_of(every))
    }

    pub fn decide(&mut self, c: &Condition, spec: &FidelitySpec, rng: &mut Rng) -> Verdict {
        let Some(known) = self.known.get(&c.key()) else {
            return Verdict::Simulate;
        };
        let at = c.place();
        let (near, nearest, told) = known.near(&at);
        let enough = spec.calibration_steps.max(1) as usize;
        let may_learn = known.samples.len() < KEPT;
        if may_learn && near < enough && !told {
            return Verdict::Simulate;
        }
        let plane = Plane::around(&at, &known.samples);
        let disagree = |&(off, d2): &(f64, f64)| d2 <= 1.0 && off.abs() > AGREE;
        if may_learn && near < 2 * enough && plane.off().iter().any(disagree) {
            return Verdict::Simulate;
        }
        let ratio = plane.ratio * (1.0 + known.draw_off(&at, rng));
        self.like = known.classes[nearest];
        let checks = self.checks(u64::from(spec.recheck_every));
        self.next_draw += self.groups;
        if checks {
            Verdict::Check(ratio)
        } else {
            Verdict::Draw(ratio)
        }
    }

    /// The class of a step that ran under `c`: where it was drawn, that of the simulated step most like it.
    pub fn class(&self, c: &Condition) -> Class {
        if self.simulated { c.class() } else { self.like }
    }

    /// What a simulated step under this condition took, by the estimate: of this group, or of one that is alike.
    pub fn learn(&mut self, c: &Condition, ratio: f64) {
        self.known.entry(c.key()).or_default().learn(c, ratio);
    }

    /// A step has ended after `duration_ps`; `drawn_ps` is the draw that was used or is checked. What it took, by the
    /// estimate, is given if something is learnt of it: it was simulated, under a condition that was `steady`.
    pub fn ended(
        &mut self,
        (c, steady): (&Condition, bool),
        estimate_ps: Ps,
        drawn_ps: Option<Ps>,
        duration_ps: Ps,
        stats: &mut FidelityStats,
    ) -> Option<f64> {
        if !self.simulated {
            stats.step_steps += 1;
            return None;
        }
        stats.message_steps += 1;
        let ratio = duration_ps as f64 / estimate_ps.max(1) as f64;
        tracing::debug!(?c, ratio, drawn_ps, duration_ps, "simulated");
        if !steady {
            return None;
        }
        self.learn(c, ratio);
        if let Some(drawn) = drawn_ps {
            stats.rechecked_steps += 1;
            stats.drawn_ps += drawn;
            stats.simulated_ps += duration_ps;
            stats.abs_error_ps += drawn.abs_diff(duration_ps);
        }
        Some(ratio)
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

    /// Draws of a step of so many requests; `None`: it is to be simulated.
    fn draws(c: &mut Calibrator, requests: u32) -> Vec<f64> {
        let spec = FidelitySpec {
            calibration_steps: 2,
            recheck_every: 0,
            ..FidelitySpec::default()
        };
        let mut rng = Rng::new(1, 1);
        let decided = (0..50).map(|_| c.decide(&condition(requests), &spec, &mut rng));
        let ratio = |v| match v {
            Verdict::Draw(ratio) => Some(ratio),
            _ => None,
        };
        decided.filter_map(ratio).collect()
    }

    #[test]
    fn groups_that_learn_together_share_the_checks() {
        let spec = FidelitySpec::default();
        let mut checks = 0;
        for group in 0..6 {
            let mut c = Calibrator::new(group, 6);
            (0..4).for_each(|_| c.learn(&condition(500), 1.0));
            let mut rng = Rng::new(1, u64::from(group));
            let decided = (0..2_800).map(|_| c.decide(&condition(500), &spec, &mut rng));
            checks += decided.filter(|v| matches!(v, Verdict::Check(_))).count();
        }
        // 64, 512, 4,096 and 16,384 of 16,800.
        assert_eq!(checks, 4);
    }

    #[test]
    fn steps_are_drawn_from_those_with_about_the_same_batch() {
        let mut c = Calibrator::new(0, 1);
        assert!(draws(&mut c, 560).is_empty());
        c.learn(&condition(520), 1.0);
        assert!(
            draws(&mut c, 560).is_empty(),
            "one step tells nothing of how they vary"
        );
        c.learn(&condition(540), 1.01);
        let few = draws(&mut c, 560);
        assert_eq!(few.len(), 50);
        // Around the mean of the two, and as far from it as they are.
        assert!(few.iter().all(|r| (0.995..1.015).contains(r)), "{few:?}");
        assert!(few.iter().any(|r| *r > 1.006) && few.iter().any(|r| *r < 1.004));
        assert!(draws(&mut c, 1_200).is_empty(), "more than twice the batch");
        let other = Condition {
            faults: 1,
            ..condition(530)
        };
        let spec = FidelitySpec::default();
        let verdict = c.decide(&other, &spec, &mut Rng::new(1, 1));
        assert_eq!(verdict, Verdict::Simulate, "a fault has struck since");
    }

    #[test]
    fn where_simulated_steps_disagree_there_must_be_more() {
        let mut c = Calibrator::new(0, 1);
        for (requests, ratio) in [(520, 1.0), (540, 1.1), (530, 1.0)] {
            c.learn(&condition(requests), ratio);
            assert!(draws(&mut c, 535).is_empty());
        }
        c.learn(&condition(540), 1.0);
        let drawn = draws(&mut c, 535);
        // One of four was held up by something else, and so are some of the draws.
        let held_up = drawn.iter().filter(|r| **r > 1.05).count();
        assert!((3..25).contains(&held_up), "{drawn:?}");
    }

    #[test]
    fn between_simulated_batches_a_step_takes_what_lies_between() {
        let mut c = Calibrator::new(0, 1);
        for requests in [100, 110, 200, 220, 400, 440] {
            c.learn(
                &condition(requests),
                0.8 + 0.05 * f64::from(requests).log2(),
            );
        }
        for requests in [105, 150, 300] {
            let want = 0.8 + 0.05 * f64::from(requests).log2();
            let drawn = draws(&mut c, requests);
            let mean = drawn.iter().sum::<f64>() / drawn.len() as f64;
            assert!((mean / want - 1.0).abs() < 0.005, "{mean} for {want}");
        }
    }
}
