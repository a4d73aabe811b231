//! Time by stage of a layer. At step fidelity only some steps (or prefill batches) are simulated message by message, many of
//! them while the machine fills: each stands for the steps of its class, simulated or drawn.

use std::collections::BTreeMap;

use crate::die::Class;
use crate::meter::StageSum;
use crate::stats::StageTimes;
use crate::time::Ps;
use crate::trace::Stage;

/// A step of a decode group, or a batch of a prefill group: (group, number).
pub type StepId = (u16, u32);

/// Sum and count by stage.
type Stages = [StageSum; Stage::COUNT];

/// What one shard knows of the layers of decode, or of prefill.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    /// Of simulated steps, the latest last.
    stages: Vec<(StepId, Box<Stages>)>,
    /// The class of each simulated step, known to the shard of its group's root.
    classes: BTreeMap<StepId, Class>,
    /// Steps of each class: simulated, and all.
    steps: BTreeMap<Class, (u64, u64)>,
}

impl Layers {
    /// A die was for `ps` in a stage of a simulated step.
    #[inline]
    pub fn stage(&mut self, step: StepId, stage: Stage, ps: Ps) {
        let at = match self.stages.iter().rposition(|s| s.0 == step) {
            Some(i) => i,
            None => {
                self.stages.push((step, Box::default()));
                self.stages.len() - 1
            }
        };
        self.stages[at].1[stage as usize].add(ps);
    }

    /// A step has ended.
    pub fn ended(&mut self, step: StepId, class: Class, simulated: bool) {
        let steps = self.steps.entry(class).or_default();
        steps.1 += 1;
        if simulated {
            steps.0 += 1;
            self.classes.insert(step, class);
        }
    }

    /// Times of all shards together. A step of a class of which `n` were simulated out of `all` counts `all / n` times; one
    /// of no known class, once.
    pub fn times<'a>(shards: impl Iterator<Item = &'a Self> + Clone) -> StageTimes {
        let mut steps: BTreeMap<Class, (u64, u64)> = BTreeMap::new();
        let mut classes: BTreeMap<StepId, Class> = BTreeMap::new();
        for shard in shards.clone() {
            classes.extend(&shard.classes);
            for (class, &(simulated, all)) in &shard.steps {
                let sum = steps.entry(*class).or_default();
                *sum = (sum.0 + simulated, sum.1 + all);
            }
        }
        // Summed by class first: which shard a die is of must not show in the rounding.
        let mut sums: BTreeMap<Option<Class>, StageTimes> = BTreeMap::new();
        for (step, stages) in shards.flat_map(|s| &s.stages) {
            let of_class = sums.entry(classes.get(step).copied()).or_default();
            for (stage, s) in Stage::ALL.into_iter().zip(stages.iter()) {
                of_class.add(stage.name(), s.sum_ps, s.count);
            }
        }
        let mut times = StageTimes::default();
        for (class, of_class) in &sums {
            let (simulated, all) = class.map_or((1, 1), |class| steps[&class]);
            let weighted =
                |x: u64| (u128::from(x) * u128::from(all) / u128::from(simulated)) as u64;
            for (stage, &(sum_ps, count)) in &of_class.stages {
                times.add(stage, weighted(sum_ps), weighted(count));
            }
        }
        times
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::die::Condition;

    #[test]
    fn a_simulated_step_stands_for_all_of_its_class() {
        let class = |requests| {
            let c = Condition {
                requests,
                ..Condition::default()
            };
            c.class()
        };
        let (few, many) = (class(10), class(1_000));
        let (mut ranks, mut root) = (Layers::default(), Layers::default());
        // Two steps of the ramp, both simulated; a full one, simulated, and nine like it drawn.
        for (step, class, us) in [(1, few, 1), (2, few, 3), (3, many, 10)] {
            ranks.stage((0, step), Stage::Attention, us * 1_000_000);
            root.ended((0, step), class, true);
        }
        (4..13).for_each(|step| root.ended((0, step), many, false));
        let times = Layers::times([&ranks, &root].into_iter());
        assert_eq!(times.stages["attention"], (104 * 1_000_000, 12));
    }

    #[test]
    fn steps_of_no_known_class_count_once() {
        let mut ranks = Layers::default();
        ranks.stage((0, 7), Stage::Gate, 5);
        ranks.stage((0, 7), Stage::Gate, 7);
        assert_eq!(Layers::times([&ranks].into_iter()).stages["gate"], (12, 2));
    }
}
