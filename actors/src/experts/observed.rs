//! What the root of a decode group has counted of expert load, and what that says of the plans in force.

use super::{Busiest, ExpertLayers, Plan, Routing, of_layer};
use crate::config::Balance;

/// The last two counts, and which plans were made from the last. A plan fits what it was made from, sampling noise and
/// all, but serves what comes after. So each is judged by the newest counts that it was not made from: load has drifted
/// since about as much as it had before.
#[derive(Debug, Default)]
pub struct Observed {
    /// By MoE layer.
    newest: Option<Vec<Routing>>,
    before: Option<Vec<Routing>>,
    /// Layers that have a plan made from the newest.
    planned: Vec<bool>,
}

impl Observed {
    /// Tokens by MoE layer and expert, counted since the last time; a token goes to `top_k` experts.
    pub fn counted(&mut self, loads: &[Vec<f64>], top_k: u32) {
        let routings = loads.iter().map(|load| Routing::new(load, top_k));
        self.before = self.newest.replace(routings.collect());
        self.planned = vec![false; loads.len()];
    }

    /// A plan for a layer was made from the newest counts.
    pub fn planned(&mut self, layer: usize) {
        self.planned[layer] = true;
    }

    /// The busiest ranks of a group under `plans`, the first `new` layers of which are the newest; `None` before anything
    /// was counted. What the load was before that is taken from the start.
    pub fn busiest(
        &self,
        plans: &[&Plan],
        new: usize,
        start: &ExpertLayers,
        (balance, shared_experts): (Balance, u32),
    ) -> Option<Busiest> {
        let newest = self.newest.as_ref()?;
        let routing = |layer: usize| match &self.before {
            _ if !(self.planned[layer] && layer < new) => &newest[layer],
            Some(before) => &before[layer],
            None => of_layer(&start.routings, layer as u32),
        };
        let layers = plans.iter().enumerate();
        let layers = layers.map(|(layer, plan)| (*plan, routing(layer)));
        Some(Busiest::of_layers(layers, 1, balance, shared_experts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    const RANKS: u32 = 16;

    /// Sixteen experts on as many ranks and eight more copies, `hot` of them loaded five times as much as the others.
    fn load(hot: std::ops::Range<usize>) -> Vec<f64> {
        let of = |e| if hot.contains(&e) { 5.0 } else { 1.0 };
        (0..16).map(of).collect()
    }

    fn plan(load: &[f64]) -> Plan {
        Plan::new(RANKS, load, 2, 16, 0, Balance::Eplb)
    }

    #[test]
    fn a_plan_is_judged_by_counts_that_it_was_not_made_from() {
        let (first, then) = (load(0..4), load(8..12));
        let start = ExpertLayers {
            plans: Arc::new(vec![plan(&first)]),
            routings: Arc::new(vec![Routing::new(&first, 2)]),
            slots_per_rank: 2,
            slots_without_redundant: 2,
        };
        let mut observed = Observed::default();
        let units = |observed: &Observed, plan: &Plan, new: usize| {
            let busiest = observed.busiest(&[plan], new, &start, (Balance::Eplb, 0))?;
            let (_, units) = busiest.units(1_000.0).next()?;
            Some(units.iter().sum::<u32>())
        };
        let (old, new) = (&start.plans[0], plan(&then));
        assert_eq!(units(&observed, old, 1), None);
        // Load as the plan of the start expects it, and then other load.
        observed.counted(&[first], 2);
        let fits = units(&observed, old, 1).unwrap();
        observed.counted(std::slice::from_ref(&then), 2);
        let stale = units(&observed, old, 1).unwrap();
        assert!(f64::from(stale) > 1.4 * f64::from(fits), "{stale} {fits}");
        // The plan that is made from that serves what comes: as far from it as this was from what was before.
        observed.planned(0);
        assert_eq!(units(&observed, old, 0), Some(stale));
        let fresh = units(&observed, &new, 1).unwrap();
        assert!(f64::from(fresh) > 1.4 * f64::from(fits), "{fresh} {fits}");
        // Load that has stayed: it fits, as counts after it show.
        observed.counted(&[then], 2);
        let stayed = units(&observed, &new, 1).unwrap();
        assert!(f64::from(stayed) < 1.1 * f64::from(fits), "{stayed} {fits}");
    }
}
