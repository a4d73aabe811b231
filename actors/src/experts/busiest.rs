//! What the busiest rank of a group gets in a layer, as its plan and the popularity of experts let expect. Everybody waits
//! for it in combine, so a step's time is estimated by it.

use super::{ExpertLayers, Plan, Routing, SlotUse};
use crate::config::Balance;

/// Layers are put into so many classes by the load of their busiest rank, each with one layer that stands for all.
const CLASSES: usize = 8;

/// Layers that are alike.
#[derive(Clone, Debug)]
struct Class {
    layers: u32,
    /// Units for each slot of the busiest rank, per token of the group, those of routed and of shared experts.
    per_slot: Vec<f64>,
    /// The same of the rank that has most of routed experts alone: its units vary from draw to draw.
    routed_per_slot: Vec<f64>,
    /// Units of routed experts per token of the group, by rank, the largest first. Empty where nothing is drawn.
    routed: Vec<f64>,
}

/// The busiest ranks of all layers of a group.
#[derive(Clone, Debug)]
pub struct Busiest {
    classes: Vec<Class>,
}

impl Busiest {
    /// In `layers` MoE layers; each token goes to `shared_experts` beside the routed ones.
    pub fn new(experts: &ExpertLayers, balance: Balance, layers: u32, shared_experts: u32) -> Self {
        let alike = experts.plans.len().max(experts.routings.len()) == 1;
        let (count, each) = if alike {
            (1, layers)
        } else {
            (layers.max(1), 1)
        };
        let all = (0..count).map(|layer| experts.at(layer));
        Self::of_layers(all, each, balance, shared_experts)
    }

    /// By the plan and the routing of layers, each of which stands for `each`.
    pub fn of_layers<'a>(
        layers: impl Iterator<Item = (&'a Plan, &'a Routing)>,
        each: u32,
        balance: Balance,
        shared_experts: u32,
    ) -> Self {
        let mut all: Vec<Class> = layers
            .map(|(plan, routing)| class(plan, routing, balance, shared_experts))
            .collect();
        let load = |c: &Class| c.per_slot.iter().sum::<f64>();
        all.sort_by(|a, b| load(a).total_cmp(&load(b)));
        let classes = CLASSES.min(all.len());
        let of = |i: usize| i * all.len() / classes;
        let classes = (0..classes)
            .map(|i| {
                let (from, to) = (of(i), of(i + 1));
                let middle = (from + to - 1) / 2;
                Class {
                    layers: (to - from) as u32 * each,
                    ..all[middle].clone()
                }
            })
            .collect();
        Self { classes }
    }

    /// Units for each slot of the busiest rank when the ranks dispatch `tokens` tokens together, for each class of
    /// layers, with how many they are.
    pub fn units(&self, tokens: f64) -> impl Iterator<Item = (u32, Vec<u32>)> {
        self.classes
            .iter()
            .map(move |c| (c.layers, c.units(tokens)))
    }
}

impl Class {
    fn units(&self, tokens: f64) -> Vec<u32> {
        let whole = |per_slot: &[f64], factor: f64| -> Vec<u32> {
            let units = per_slot.iter().map(|u| u * tokens * factor);
            units.map(|u| u.ceil() as u32).collect()
        };
        let plain = whole(&self.per_slot, 1.0);
        let Some(most) = self.routed.first().map(|r| r * tokens).filter(|m| *m > 0.0) else {
            return plain;
        };
        // Counts vary by the root of their mean; of all ranks within that of the largest, some one draws most.
        let near = (most - most.sqrt()) / tokens;
        let k = self.routed.partition_point(|r| *r >= near);
        let drawn = whole(&self.routed_per_slot, 1.0 + largest_of(k) / most.sqrt());
        let sum = |units: &[u32]| units.iter().sum::<u32>();
        if sum(&drawn) > sum(&plain) {
            drawn
        } else {
            plain
        }
    }
}

/// Expected largest of `k` draws of a normal distribution, in standard deviations.
fn largest_of(k: usize) -> f64 {
    if k < 2 {
        return 0.0;
    }
    let ln = (k as f64).ln();
    let first = (2.0 * ln).sqrt();
    (first - (ln.ln() + (4.0 * std::f64::consts::PI).ln()) / (2.0 * first)).max(0.5)
}

/// Units that a copy of an expert gets per token of the group; the shared expert stands for `shared_experts`.
pub fn unit_of(
    what: SlotUse,
    plan: &Plan,
    routing: &Routing,
    balance: Balance,
    shared_experts: u32,
) -> f64 {
    match what {
        SlotUse::Empty => 0.0,
        SlotUse::Shared => f64::from(shared_experts) / plan.shared.len().max(1) as f64,
        SlotUse::Routed(_) if balance == Balance::Perfect => {
            routing.include().iter().sum::<f64>() / plan.copies.len() as f64
        }
        SlotUse::Routed(e) => {
            let e = usize::from(e);
            routing.include()[e] / plan.copies_of(e).len() as f64
        }
    }
}

fn class(plan: &Plan, routing: &Routing, balance: Balance, shared_experts: u32) -> Class {
    let slots = plan.slots_per_rank as usize;
    let unit = |what: SlotUse| unit_of(what, plan, routing, balance, shared_experts);
    let ranks = plan.uses.chunks(slots);
    let is_routed = |slot: &SlotUse| matches!(slot, SlotUse::Routed(_));
    let sums = |routed_only: bool| -> Vec<f64> {
        let of_rank = |uses: &[SlotUse]| {
            let some = uses.iter().filter(|u| !routed_only || is_routed(u));
            some.map(|u| unit(*u)).sum()
        };
        ranks.clone().map(of_rank).collect()
    };
    let per_slot = |rank: usize| -> Vec<f64> {
        let uses = &plan.uses[rank * slots..(rank + 1) * slots];
        uses.iter().map(|u| unit(*u)).collect()
    };
    let most = |sums: &[f64]| {
        let largest = |a: usize, b: usize| if sums[b] > sums[a] { b } else { a };
        (0..sums.len()).reduce(largest).unwrap_or(0)
    };
    let (all, mut routed) = (sums(false), sums(true));
    let (busiest, busiest_routed) = (most(&all), most(&routed));
    routed.sort_by(|a, b| b.total_cmp(a));
    if balance == Balance::Perfect {
        routed.clear();
    }
    Class {
        layers: 1,
        per_slot: per_slot(busiest),
        routed_per_slot: per_slot(busiest_routed),
        routed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Rng;
    use std::sync::Arc;

    const RANKS: u32 = 320;

    fn layers(load: &[f64], balance: Balance) -> ExpertLayers {
        ExpertLayers {
            plans: Arc::new(vec![Plan::new(RANKS, load, 8, 32, 32, balance)]),
            routings: Arc::new(vec![Routing::new(load, 8)]),
            slots_per_rank: 1,
            slots_without_redundant: 1,
        }
    }

    fn busiest(load: &[f64], balance: Balance, tokens: f64) -> u32 {
        let b = Busiest::new(&layers(load, balance), balance, 58, 1);
        let mut all = b.units(tokens);
        let (layers, units) = all.next().unwrap();
        assert_eq!((layers, all.count()), (58, 0));
        units.iter().sum()
    }

    #[test]
    fn the_busiest_of_a_perfect_plan_holds_the_shared_expert() {
        assert_eq!(busiest(&[1.0; 256], Balance::Perfect, 15_360.0), 480);
    }

    #[test]
    fn what_is_expected_is_what_draws_give() {
        for skew in [0.0, 0.57, 1.07] {
            let load = crate::experts::popularity(256, skew, &mut Rng::new(3, 3));
            let layers = layers(&load, Balance::Eplb);
            let (plan, routing) = layers.at(0);
            let mut rng = Rng::new(5, 5);
            let (draws, tokens) = (20, 48u32);
            let mut mean = 0.0;
            for _ in 0..draws {
                let mut slots = vec![0u32; RANKS as usize];
                for rank in 0..RANKS as usize {
                    let mut counts = vec![0; 256];
                    routing.draw(tokens, &mut rng, &mut counts);
                    for (e, c) in counts.iter().enumerate() {
                        let copies = plan.copies_of(e);
                        slots[usize::from(copies[rank % copies.len()])] += c;
                    }
                    slots[usize::from(plan.shared[rank % plan.shared.len()])] += tokens;
                }
                mean += f64::from(*slots.iter().max().unwrap()) / f64::from(draws);
            }
            let want = f64::from(busiest(&load, Balance::Eplb, f64::from(RANKS * tokens)));
            assert!(
                (want / mean - 1.0).abs() < 0.05,
                "skew {skew}: {want} expected, {mean} drawn"
            );
        }
    }
}
