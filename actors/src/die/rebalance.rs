//! EPLB as a process, at the root of a decode group: from time to time it gathers what each rank's experts got, has a
//! plan made from that, sends it to the ranks, and puts its layers in force as the weights arrive.

use std::sync::Arc;

use crate::config::Balance;
use crate::env::Env;
use crate::experts::{Busiest, ExpertMsg, ExpertState, NewPlan, Observed, Plan, SlotUse, of_layer};
use crate::message::{Msg, Plane};
use crate::runtime::Actor;
use crate::time::{Ps, ps_from_s};
use crate::world::Shared;

#[derive(Debug, Default)]
enum Stage {
    /// Nothing until the next plan is due.
    #[default]
    Rest,
    /// The step that runs is simulated, so that there is something to count.
    Sampling,
    /// Counts are on their way, summed by layer and expert.
    Counting { awaited: u32, loads: Vec<Vec<f64>> },
    /// The host makes a plan.
    Planning { loads: Vec<Vec<f64>> },
    /// Ranks load weights: so many have not said that they have them.
    Loading { next: Arc<NewPlan>, awaited: u32 },
}

/// The experts of a group, as its root sees them.
#[derive(Debug)]
pub struct Rebalancer {
    group: u16,
    ranks: u32,
    /// Time between plans; 0: never.
    interval_ps: Ps,
    due_ps: Ps,
    /// All ranks take part: without some, nothing is moved but what they held.
    whole: bool,
    /// Number of the counting that is under way: answers to an earlier one mean nothing.
    round: u32,
    state: ExpertState,
    plans: Arc<Vec<Plan>>,
    stage: Stage,
    observed: Observed,
    /// What is known of the busiest ranks has changed since it was last asked for.
    news: bool,
}

impl Rebalancer {
    pub fn new(group: u16, shared: &Shared) -> Self {
        let e = &shared.serving.experts;
        let experts = shared
            .decode_experts
            .as_ref()
            .expect("a decode group has experts");
        let interval_ps = match e.balance {
            Balance::Eplb => ps_from_s(e.eplb_interval_s),
            Balance::None | Balance::Perfect => 0,
        };
        Self {
            group,
            ranks: shared.layout.decode[usize::from(group)].ranks(),
            interval_ps,
            due_ps: interval_ps,
            whole: true,
            round: 0,
            state: ExpertState::default(),
            plans: Arc::clone(&experts.plans),
            stage: Stage::Rest,
            observed: Observed::default(),
            news: false,
        }
    }

    /// A new epoch: whatever was under way is given up, and these plans are in force.
    pub fn begin_epoch(&mut self, now: Ps, whole: bool, number: u32, plans: Arc<Vec<Plan>>) {
        self.stage = Stage::Rest;
        self.whole = whole;
        self.due_ps = now + self.interval_ps;
        self.state.plan = number;
        self.state.layers = if number > 0 { plans.len() as u16 } else { 0 };
        self.plans = plans;
        // Counted under others: the start is gone by again.
        self.observed = Observed::default();
        self.news = true;
    }

    /// If there is news of it since this was last asked: the busiest ranks, by what was counted and the plans in force, or
    /// `None` where nothing was counted.
    pub fn busiest_news(&mut self, shared: &Shared) -> Option<Option<Busiest>> {
        if !std::mem::take(&mut self.news) {
            return None;
        }
        let layers = shared.model.moe_layers().max(1);
        let (next, new) = match &self.stage {
            Stage::Loading { next, .. } => (&next.plans, usize::from(self.state.layers)),
            _ => (&self.plans, layers as usize),
        };
        let plan = |layer: u32| {
            let plans = if (layer as usize) < new {
                next
            } else {
                &self.plans
            };
            of_layer(plans, layer)
        };
        let plans: Vec<&Plan> = (0..layers).map(plan).collect();
        let start = shared.decode_experts.as_ref()?;
        let balance = (shared.serving.experts.balance, shared.model.shared_experts);
        Some(self.observed.busiest(&plans, new, start, balance))
    }

    /// What it waits for was lost.
    pub fn is_stuck(&self, now: Ps, patience_ps: Ps) -> bool {
        !matches!(self.stage, Stage::Rest) && now >= self.due_ps + patience_ps
    }

    /// A step is about to start: what it runs under, and whether it must be simulated for that.
    pub fn step(&mut self, env: &mut Env<'_, '_>) -> (ExpertState, bool) {
        let before = self.state;
        if let Some(drift) = &env.shared.drift {
            self.state.period = drift.period(env.now());
        }
        let mut simulate = false;
        if self.interval_ps > 0 && self.whole {
            match &self.stage {
                Stage::Rest if env.now() >= self.due_ps => {
                    self.due_ps = env.now() + self.interval_ps;
                    self.stage = Stage::Sampling;
                    simulate = true;
                }
                Stage::Sampling => {
                    let e = &env.shared.model;
                    let row = vec![0.0; e.routed_experts as usize];
                    self.stage = Stage::Counting {
                        awaited: self.ranks,
                        loads: vec![row; e.moe_layers().max(1) as usize],
                    };
                    self.round += 1;
                    let round = self.round;
                    self.to_all(&ExpertMsg::LoadAsk { round }, 0, env);
                }
                Stage::Loading { awaited: 0, .. } => self.advance(env),
                _ => {}
            }
        }
        (self.state, simulate || self.state != before)
    }

    /// All ranks have the weights of some more layers: from this step on they are in force.
    fn advance(&mut self, env: &mut Env<'_, '_>) {
        let Stage::Loading { next, awaited } = &mut self.stage else {
            unreachable!("only loaded layers are put in force")
        };
        let step = env.shared.serving.experts.eplb_layers_at_once as usize;
        let layers = usize::from(self.state.layers) + step;
        self.state.layers = layers.min(next.plans.len()) as u16;
        *awaited = self.ranks;
        self.news = true;
        if usize::from(self.state.layers) == next.plans.len() {
            self.plans = Arc::clone(&next.plans);
            self.stage = Stage::Rest;
            env.tally.experts.plans += 1;
        }
    }

    pub fn handle(&mut self, msg: ExpertMsg, env: &mut Env<'_, '_>) {
        let now_round = self.round;
        match (msg, &mut self.stage) {
            (ExpertMsg::Load { round, rank, units }, Stage::Counting { awaited, loads })
                if round == now_round =>
            {
                let slots = self.plans[0].slots_per_rank as usize;
                for (layer, row) in units.chunks(slots).enumerate() {
                    let uses = of_layer(&self.plans, layer as u32).uses_of(u32::from(rank));
                    for (what, &n) in uses.iter().zip(row) {
                        if let SlotUse::Routed(e) = what {
                            loads[layer][usize::from(*e)] += f64::from(n);
                        }
                    }
                }
                *awaited -= 1;
                if *awaited == 0 {
                    let loads = std::mem::take(loads);
                    self.observed.counted(&loads, env.shared.model.top_k);
                    self.news = true;
                    self.stage = Stage::Planning { loads };
                    let clock = super::launch::clock(env.ctx.me(), env).unwrap_or(1.0);
                    let plan_ms = env.shared.serving.experts.eplb_plan_ms;
                    let ps = ps_from_s(plan_ms / clock * 1e-3);
                    let made = ExpertMsg::PlanMade { round };
                    env.after(ps, Msg::Experts(Box::new(made)));
                }
            }
            (ExpertMsg::PlanMade { round }, Stage::Planning { loads }) if round == now_round => {
                let loads = std::mem::take(loads);
                self.distribute(&loads, env);
            }
            (ExpertMsg::Loaded { plan, .. }, Stage::Loading { next, awaited })
                if plan == next.number =>
            {
                *awaited -= 1;
            }
            _ => {} // Of a plan that was given up.
        }
    }

    /// Makes the plan, and sends it to the ranks if it changes anything.
    fn distribute(&mut self, loads: &[Vec<f64>], env: &mut Env<'_, '_>) {
        let figures = &env.shared.serving.experts;
        let top_k = env.shared.model.top_k;
        let mut changed = false;
        let plans: Vec<Plan> = loads
            .iter()
            .enumerate()
            .map(|(layer, load)| {
                let old = of_layer(&self.plans, layer as u32);
                let new = old.rebalanced(load, top_k);
                let worst = |p: &Plan| p.rank_loads(load, top_k).into_iter().fold(0.0, f64::max);
                if worst(&new) * (1.0 + figures.eplb_gain_min) < worst(old) {
                    changed = true;
                    self.observed.planned(layer);
                    new
                } else {
                    old.clone()
                }
            })
            .collect();
        if !changed {
            self.stage = Stage::Rest;
            return;
        }
        env.tally.experts.plans_made += 1;
        let slots: usize = plans.iter().map(Plan::slots).sum();
        self.state.plan += 1;
        self.state.layers = 0;
        let next = Arc::new(NewPlan {
            number: self.state.plan,
            plans: Arc::new(plans),
        });
        self.stage = Stage::Loading {
            next: Arc::clone(&next),
            awaited: self.ranks,
        };
        let bytes = slots as u64 * figures.eplb_plan_bytes_per_slot;
        let root = env.ctx.me();
        self.to_all(&ExpertMsg::Plan { root, plan: next }, bytes, env);
    }

    /// Sends the same to every rank: a small message, or `bytes` over its lanes.
    fn to_all(&self, msg: &ExpertMsg, bytes: u64, env: &mut Env<'_, '_>) {
        for &die in &env.shared.layout.decode[usize::from(self.group)].dies {
            let to: Actor = env.shared.die_actor(die);
            let msg = Msg::Experts(Box::new(msg.clone()));
            if bytes == 0 {
                env.control(to, msg);
            } else {
                env.transfer_other(to, bytes, Plane::Ub, false, msg);
            }
        }
    }
}
