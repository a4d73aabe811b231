//! The experts of a decode rank: the plans it works by, what it counts, and the weights it loads for a new
//! plan while it serves by the old one.
//!
//! ```text
//! root                      rank                            die that holds an expert
//!  | ---- LoadAsk ---------> |                                |
//!  | <--- Load ------------- |                                |
//!  | (host makes the plan)   |                                |
//!  | ---- Plan ------------> | ---- WeightsAsk -------------> |   piece by piece,
//!  |                         | <--- Weights ----------------- |   a few layers at a time
//!  | <--- Loaded ----------- |                                |
//!  | ---- StepStart -------> |  these layers are in force now |
//! ```

use std::collections::VecDeque;
use std::sync::Arc;

use crate::env::Env;
use crate::experts::{ExpertMsg, ExpertState, NewPlan, Plan, Routing, SlotUse, of_layer};
use crate::message::{Msg, Plane};
use crate::runtime::Actor;
use crate::world::Shared;

/// An expert whose weights this rank still needs, and the rank that sends them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wanted {
    source: u32,
    bytes_left: u64,
}

#[derive(Debug)]
pub struct RankExperts {
    group: u16,
    rank: u32,
    /// The root of the group.
    root: Actor,
    slots: usize,
    /// In force, but for what `next` has in force.
    plans: Arc<Vec<Plan>>,
    routings: Arc<Vec<Routing>>,
    /// Number of the plan that they are of.
    number: u32,
    state: ExpertState,
    next: Option<Arc<NewPlan>>,
    wanted: VecDeque<Wanted>,
    /// First layer that is not being loaded yet.
    loading_to: usize,
    /// Tokens by `layer * slots + slot`, since the root last asked.
    units: Vec<u32>,
    /// Tokens by layer, over the run.
    served: Vec<u64>,
}

impl RankExperts {
    pub fn new(group: u16, rank: u16, shared: &Shared) -> Self {
        let experts = shared
            .decode_experts
            .as_ref()
            .expect("a decode group has experts");
        let layers = shared.model.moe_layers().max(1) as usize;
        let slots = experts.slots_per_rank as usize;
        Self {
            group,
            rank: u32::from(rank),
            root: shared.die_actor(shared.layout.decode[usize::from(group)].root()),
            slots,
            plans: Arc::clone(&experts.plans),
            routings: Arc::clone(&experts.routings),
            number: 0,
            state: ExpertState::default(),
            next: None,
            wanted: VecDeque::new(),
            loading_to: 0,
            units: vec![0; layers * slots],
            served: vec![0; layers],
        }
    }

    /// The next plan, if layers of it may be in force: one that has only just come is not what steps run under.
    fn coming(&self) -> Option<&NewPlan> {
        self.next
            .as_deref()
            .filter(|next| next.number == self.state.plan)
    }

    /// Plan and routing of a layer in the running step.
    pub fn at(&self, layer: u32) -> (&Plan, &Routing) {
        let last = self.served.len() as u32 - 1;
        let plans = match self.coming() {
            Some(next) if layer.min(last) < u32::from(self.state.layers) => &next.plans,
            _ => &self.plans,
        };
        (of_layer(plans, layer), of_layer(&self.routings, layer))
    }

    /// Tokens by layer that this rank's experts got.
    pub fn served(&self) -> &[u64] {
        &self.served
    }

    /// Plans of all layers as they are in force, with their number (0: those of the start).
    pub fn in_force(&self) -> (u32, Arc<Vec<Plan>>) {
        let new = usize::from(self.state.layers);
        match self.coming() {
            Some(next) if new > 0 => {
                let of = |layer: usize| {
                    let plans = if layer < new {
                        &next.plans
                    } else {
                        &self.plans
                    };
                    of_layer(plans, layer as u32).clone()
                };
                (
                    next.number,
                    Arc::new((0..next.plans.len()).map(of).collect()),
                )
            }
            _ => (self.number, Arc::clone(&self.plans)),
        }
    }

    /// The plans of the start are those whose weights it will have.
    pub fn forget_plans(&mut self, shared: &Shared) {
        let new = Self::new(self.group, self.rank as u16, shared);
        let served = std::mem::take(&mut self.served);
        *self = Self { served, ..new };
    }

    /// A new epoch of the group: these plans are in force, and nothing is under way.
    pub fn begin_epoch(&mut self, root: Actor, number: u32, plans: Arc<Vec<Plan>>) {
        self.root = root;
        self.number = number;
        self.state.plan = number;
        self.state.layers = if number > 0 { plans.len() as u16 } else { 0 };
        self.plans = plans;
        self.next = None;
        self.wanted.clear();
        self.loading_to = 0;
        self.units.fill(0);
    }

    /// Counts what a dispatch brought.
    pub fn count(&mut self, layer: u32, per_slot: &[u32]) {
        let layer = (layer as usize).min(self.served.len() - 1);
        let row = &mut self.units[layer * self.slots..(layer + 1) * self.slots];
        for (sum, n) in row.iter_mut().zip(per_slot) {
            *sum += n;
            self.served[layer] += u64::from(*n);
        }
    }

    /// What a step that starts is run under.
    pub fn put_in_force(&mut self, state: ExpertState, env: &mut Env<'_, '_>) {
        if state == self.state {
            return;
        }
        if state.period != self.state.period
            && let Some(drift) = &env.shared.drift
        {
            self.routings = drift.routings(state.period);
        }
        let layers = usize::from(state.layers);
        let more = layers > usize::from(self.state.layers) || state.plan != self.state.plan;
        self.state = state;
        let Some(next) = self.next.clone().filter(|n| more && n.number == state.plan) else {
            return;
        };
        if layers == next.plans.len() {
            self.plans = Arc::clone(&next.plans);
            self.number = next.number;
            self.next = None;
            self.units.fill(0);
        } else if layers == self.loading_to {
            self.load_more(env);
        }
    }

    pub fn handle(&mut self, from: Actor, msg: ExpertMsg, env: &mut Env<'_, '_>) {
        match msg {
            ExpertMsg::LoadAsk { round } if from == self.root => {
                let per_slot = env.shared.serving.experts.eplb_load_bytes_per_slot;
                let bytes = self.units.len() as u64 * per_slot;
                let none = vec![0; self.units.len()];
                let units = std::mem::replace(&mut self.units, none);
                let load = Msg::Experts(Box::new(ExpertMsg::Load {
                    round,
                    rank: self.rank as u16,
                    units,
                }));
                env.transfer_other(from, bytes, Plane::Ub, false, load);
            }
            ExpertMsg::Plan { root, plan } if root == self.root => {
                self.next = Some(plan);
                self.loading_to = 0;
                self.load_more(env);
            }
            ExpertMsg::WeightsAsk { plan, bytes } => {
                let weights = Msg::Experts(Box::new(ExpertMsg::Weights { plan, bytes }));
                env.transfer_other(from, bytes, Plane::Ub, true, weights);
            }
            ExpertMsg::Weights { plan, bytes } => {
                env.tally.experts.moved_bytes += bytes;
                let wanted = self.next.as_ref().is_some_and(|n| n.number == plan);
                let Some(first) = self.wanted.front_mut().filter(|_| wanted) else {
                    return; // For a plan that was given up.
                };
                first.bytes_left -= bytes;
                if first.bytes_left == 0 {
                    self.wanted.pop_front();
                }
                self.ask_next(env);
            }
            ExpertMsg::LoadAsk { .. } | ExpertMsg::Plan { .. } => {} // Of a root that has been left out.
            ExpertMsg::Load { .. } | ExpertMsg::PlanMade { .. } | ExpertMsg::Loaded { .. } => {
                unreachable!("the root of a group takes {msg:?}")
            }
        }
    }

    /// Notes whose weights the next few layers need, and asks for the first of them.
    fn load_more(&mut self, env: &mut Env<'_, '_>) {
        let next = self.next.clone().expect("a new plan has come");
        let shared = env.shared;
        let layers = shared.serving.experts.eplb_layers_at_once as usize;
        let from = self.loading_to;
        self.loading_to = (from + layers).min(next.plans.len());
        let bytes = shared.expert_bytes();
        for layer in from..self.loading_to {
            let old = of_layer(&self.plans, layer as u32);
            for &what in next.plans[layer].uses_of(self.rank) {
                if let Some(source) = source(old, what, self.rank) {
                    self.wanted.push_back(Wanted {
                        source,
                        bytes_left: bytes as u64,
                    });
                }
            }
        }
        self.ask_next(env);
    }

    fn ask_next(&mut self, env: &mut Env<'_, '_>) {
        let Some(next) = &self.next else { return };
        let plan = next.number;
        if let Some(wanted) = self.wanted.front() {
            let chunk = (env.shared.serving.experts.eplb_chunk_mb * 1e6) as u64;
            let bytes = wanted.bytes_left.min(chunk);
            let group = &env.shared.layout.decode[usize::from(self.group)];
            let to = env.shared.die_actor(group.dies[wanted.source as usize]);
            let ask = ExpertMsg::WeightsAsk { plan, bytes };
            env.control(to, Msg::Experts(Box::new(ask)));
        } else {
            let layers = self.loading_to as u16;
            let msg = ExpertMsg::Loaded { plan, layers };
            env.control(self.root, Msg::Experts(Box::new(msg)));
        }
    }
}

/// The rank that a rank loads `what` from: one that holds it under the old plan, the choice spread over ranks. `None` if
/// it has it already or needs nothing.
fn source(old: &Plan, what: SlotUse, rank: u32) -> Option<u32> {
    let holders = match what {
        SlotUse::Empty => return None,
        SlotUse::Shared => &old.shared[..],
        SlotUse::Routed(e) => old.copies_of(usize::from(e)),
    };
    let rank_of = |slot: &u16| u32::from(*slot) / old.slots_per_rank;
    if holders.iter().any(|s| rank_of(s) == rank) {
        return None;
    }
    holders.get(rank as usize % holders.len()).map(rank_of)
}
