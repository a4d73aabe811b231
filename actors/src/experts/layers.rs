//! The expert plans and the routing of all MoE layers of a group, as they are at the start.

use std::sync::Arc;

use super::{ExpertTables, Plan, Routing, popularity};
use crate::config::Experts;
use crate::fabric::Board;
use crate::model::ModelSpec;
use crate::runtime::Rng;

/// Expert plans and routing by MoE layer; one entry serves all layers where they are alike.
#[derive(Clone, Debug)]
pub struct ExpertLayers {
    pub plans: Arc<Vec<Plan>>,
    pub routings: Arc<Vec<Routing>>,
    pub slots_per_rank: u32,
    /// The same without redundant experts.
    pub slots_without_redundant: u32,
}

/// The experts of one kind of group.
#[derive(Clone, Copy, Debug)]
pub struct ExpertSetup<'a> {
    /// Sections of the scenario that the instances' size and the copies of experts are keys of.
    pub keys: (&'a str, &'a str),
    pub model: &'a ModelSpec,
    pub experts: &'a Experts,
    pub tables: &'a ExpertTables,
    /// Dies of the group.
    pub ranks: u32,
    /// Redundant copies of routed experts over the group.
    pub redundant: u32,
    /// Copies of the shared expert over the group; 0: every rank has its own.
    pub shared_replicas: u32,
    pub seed: u64,
}

/// The entry of a layer; layers past the end (multi-token prediction) use the last.
pub fn of_layer<T>(entries: &[T], layer: u32) -> &T {
    entries
        .get(layer as usize)
        .unwrap_or_else(|| entries.last().expect("a model has MoE layers"))
}

impl ExpertLayers {
    /// Experts on the fullest rank of any layer.
    pub fn most_on_a_rank(&self) -> u32 {
        self.plans
            .iter()
            .map(Plan::most_on_a_rank)
            .max()
            .unwrap_or(0)
    }

    pub fn at(&self, layer: u32) -> (&Plan, &Routing) {
        (
            of_layer(&self.plans, layer),
            of_layer(&self.routings, layer),
        )
    }

    /// # Errors
    /// When a die would hold more experts than are supported.
    pub fn new(setup: ExpertSetup<'_>) -> Result<Self, String> {
        let ExpertSetup {
            model,
            experts: e,
            tables,
            ranks,
            redundant,
            ..
        } = setup;
        let shared = match (model.shared_experts, setup.shared_replicas) {
            (0, _) => 0,
            (_, 0) => ranks,
            (_, n) => n,
        };
        let (pool, copies) = setup.keys;
        let sum = format!(
            "{copies}.redundant = {redundant} and {copies}.shared_replicas = {}: {} routed experts and these copies over the \
             {ranks} dies of {pool}.npus_per_instance",
            setup.shared_replicas, model.routed_experts
        );
        let placement = tables.placement.as_ref().filter(|p| p.ranks == ranks);
        let slots_per_rank = match placement {
            Some(p) => p.experts_per_rank_max() + shared.div_ceil(ranks),
            None => Plan::slots_needed(ranks, model.routed_experts, redundant, shared),
        };
        if slots_per_rank > u32::from(u8::MAX) {
            return Err(format!(
                "{sum} are {slots_per_rank} experts a die, at most 255 are supported: raise {pool}.npus_per_instance, or \
                 lower {copies}.redundant or {copies}.shared_replicas"
            ));
        }
        // Two channels at most, with two phases open in each.
        let slots_max = Board::CELLS_MAX as u32 / 4;
        if ranks * slots_per_rank > slots_max {
            return Err(format!(
                "{sum} are {} expert slots, at most {slots_max} in an instance are supported: lower {copies}.redundant, \
                 {copies}.shared_replicas or {pool}.npus_per_instance",
                ranks * slots_per_rank,
            ));
        }
        let loads = start_loads(model, e, tables, setup.seed);
        let routings: Vec<Routing> = loads.iter().map(|l| Routing::new(l, model.top_k)).collect();
        let plan_of = |layer: usize| {
            if let Some(p) = placement {
                return Plan::placed(p, layer, slots_per_rank, shared);
            }
            let known = observed(
                &loads[layer],
                &routings[layer],
                e.plan_tokens,
                setup.seed,
                layer,
            );
            Plan::new(ranks, &known, model.top_k, redundant, shared, e.balance)
        };
        // A placement map has a plan for each layer, however alike the loads are.
        let layers = placement.map_or(loads.len(), |p| p.holders.len());
        let plans = (0..layers)
            .map(|l| {
                if l < loads.len() {
                    plan_of(l)
                } else {
                    Plan::placed(placement.expect("it has layers"), l, slots_per_rank, shared)
                }
            })
            .collect();
        Ok(Self {
            plans: Arc::new(plans),
            routings: Arc::new(routings),
            slots_per_rank,
            slots_without_redundant: match placement {
                Some(_) => slots_per_rank,
                None => Plan::slots_needed(ranks, model.routed_experts, 0, shared),
            },
        })
    }
}

/// Streams of the draws, so that none depends on another.
const LOADS: u64 = 0x6578_7065_7274_7300;
const OBSERVED: u64 = 0x6f62_7365_7276_6564;

/// Expert loads by MoE layer at the start: those of the file, or drawn. A single entry when all layers are alike.
pub fn start_loads(
    model: &ModelSpec,
    e: &Experts,
    tables: &ExpertTables,
    seed: u64,
) -> Vec<Vec<f64>> {
    if let Some(load) = &tables.load {
        return load.clone();
    }
    let layers = if e.skew == 0.0 {
        1
    } else {
        model.moe_layers().max(1)
    };
    (0..layers)
        .map(|layer| {
            let mut rng = Rng::new(seed ^ LOADS, u64::from(layer));
            popularity(model.routed_experts, e.skew, &mut rng)
        })
        .collect()
}

/// What is known of a layer's load when a plan is made: the choices of `tokens` tokens, or all (0).
fn observed(load: &[f64], routing: &Routing, tokens: u32, seed: u64, layer: usize) -> Vec<f64> {
    if tokens == 0 {
        return load.to_vec();
    }
    let mut counts = vec![0; load.len()];
    let mut rng = Rng::new(seed ^ OBSERVED, layer as u64);
    routing.draw(tokens, &mut rng, &mut counts);
    counts.into_iter().map(f64::from).collect()
}
