//! The root rank of a decode group: gathers what each rank holds, and starts the group's steps (the
//! metadata exchange that data-parallel decode has). It knows counts per rank, not requests.
//!
//! It also decides how a step is simulated: message by message, or drawn (see `calibrate`).

use crate::config::Microbatch;
use crate::env::Env;
use crate::experts::ExpertState;
use crate::layout::{Role, mix};
use crate::message::{Held, Msg, NodeStep};
use crate::runtime::Actor;
use crate::tally::Stepped;
use crate::time::Ps;
use crate::trace::{Place, What};
use crate::world::Shared;

use super::calibrate::{Calibrator, Condition, Verdict};
use super::cut::RootWatch;
use super::estimate::Estimator;
use super::members::Members;
use super::rebalance::Rebalancer;

/// What a rank has for the next step.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct OfRank {
    requests: u32,
    context_sum: u64,
}

/// What a rank says at the end of a step.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    pub requests: u32,
    pub context_sum: u64,
    /// Tokens made in the step.
    pub made: u32,
    pub duration_ps: Ps,
}

#[derive(Debug)]
pub struct DecodeRoot {
    group: u16,
    pub(super) held: Vec<OfRank>,
    pub(super) running: bool,
    pub(super) step: u32,
    awaited: u32,
    longest_ps: Ps,
    started_ps: Ps,
    batch: u32,
    made: u32,
    /// The running step's, and when it was found.
    condition: Option<(Condition, Ps)>,
    drawn_ps: Option<Ps>,
    /// What the running step takes by its operators alone.
    estimate_ps: Ps,
    estimator: Estimator,
    /// What `decode.microbatch = "auto"` goes by once load was counted: the yardstick above is the same for all steps.
    counted: Option<Estimator>,
    calibrator: Calibrator,
    pub experts: Rebalancer,
    /// What it knows of those who are late.
    pub(super) watch: RootWatch,
}

impl DecodeRoot {
    pub fn new(group: u16, shared: &Shared) -> Self {
        let ranks = shared.layout.decode[usize::from(group)].ranks();
        Self {
            group,
            held: vec![OfRank::default(); ranks as usize],
            running: false,
            step: 0,
            awaited: 0,
            longest_ps: 0,
            started_ps: 0,
            batch: 0,
            made: 0,
            condition: None,
            drawn_ps: None,
            estimate_ps: 0,
            estimator: Estimator::default(),
            counted: None,
            // Each decode group learns for itself: groups may differ in size and plans.
            calibrator: Calibrator::new(0, 1),
            experts: Rebalancer::new(group, shared),
            watch: RootWatch::default(),
        }
    }

    /// What a rank has for the next step.
    pub(super) fn hold(&mut self, rank: u16, requests: u32, context_sum: u64) {
        self.held[usize::from(rank)] = OfRank {
            requests,
            context_sum,
        };
    }

    pub(super) fn has_requests(&self) -> bool {
        self.held.iter().any(|h| h.requests > 0)
    }

    fn rank_of(&self, die: Actor, env: &Env<'_, '_>) -> usize {
        match env.shared.layout.roles[die as usize] {
            crate::layout::Role::Decode { rank, .. } => rank as usize,
            _ => unreachable!("decode ranks speak to their root"),
        }
    }

    /// A rank at rest has requests now.
    /// Returns whether a step is to start.
    pub fn wake(&mut self, env: &mut Env<'_, '_>) -> bool {
        // The waker is the message's sender; counts come with its next report.
        let from = env.from;
        let rank = self.rank_of(from, env);
        self.held[rank].requests = self.held[rank].requests.max(1);
        !self.waits()
    }

    /// Returns whether another step is to start.
    pub fn step_done(
        &mut self,
        from: Actor,
        step: u32,
        report: Report,
        env: &mut Env<'_, '_>,
    ) -> bool {
        if !self.running || step != self.step {
            return false;
        }
        let rank = self.rank_of(from, env) as u16;
        self.hold(rank, report.requests, report.context_sum);
        self.done(1, report.made, report.duration_ps, env)
    }

    /// As `step_done`, of all ranks of a node.
    pub fn node_done(
        &mut self,
        step: u32,
        (made, duration_ps): (u32, Ps),
        held: &[Held],
        env: &mut Env<'_, '_>,
    ) -> bool {
        if !self.running || step != self.step {
            return false;
        }
        // Each would have come by itself.
        env.meter().handled += (held.len() as u64).saturating_sub(1);
        for h in held {
            self.hold(h.rank, h.requests, h.context_sum);
        }
        self.done(held.len() as u32, made, duration_ps, env)
    }

    /// So many ranks have done the step; whether another is to start.
    fn done(&mut self, ranks: u32, made: u32, duration_ps: Ps, env: &mut Env<'_, '_>) -> bool {
        self.longest_ps = self.longest_ps.max(duration_ps);
        self.made += made;
        self.awaited -= ranks;
        if self.awaited > 0 {
            return false;
        }
        let now = env.now();
        let groups = env.shared.layout.decode.len() as u64;
        let full = env
            .shared
            .concurrency
            .is_some_and(|c| u64::from(self.batch) * groups * 20 >= u64::from(c) * 19);
        let step = Stepped {
            group: self.group,
            started_ps: self.started_ps,
            ended_ps: now,
            requests: self.batch,
            tokens: u64::from(self.made),
        };
        env.tally.decode_step(step, full);
        env.meter().group_busy_ps += now.saturating_sub(self.started_ps);
        let place = Place {
            run: self.step,
            parts: 1,
            ..Place::default()
        };
        let (batch, drawn) = (u64::from(self.batch), u64::from(!self.calibrator.simulated));
        env.span(What::GroupStep, self.started_ps, now, place, batch, drawn);
        let (condition, found_ps) = self.condition.take().expect("a step has a condition");
        let steady = env.shared.conditions().were_steady(found_ps, now);
        self.calibrator.ended(
            (&condition, steady),
            self.estimate_ps,
            self.drawn_ps,
            self.longest_ps,
            &mut env.tally.fidelity,
        );
        if !env.shared.message_level() {
            let simulated = self.calibrator.simulated;
            let class = self.calibrator.class(&condition);
            let layers = &mut env.tally.decode_layers;
            layers.ended((self.group, self.step), class, simulated);
        }
        self.running = false;
        self.has_requests() || !self.watch.back.is_empty()
    }

    /// Names the faults in force, with how many requests those slow dies of the group hold that hold most, by powers of two:
    /// all wait for such a die the longer the more it has to do.
    fn faults(&self, env: &Env<'_, '_>) -> u64 {
        let conditions = env.shared.conditions();
        let held = conditions.slowed(env.now()).filter_map(|part| {
            match env.shared.layout.roles.get(part.0 as usize)? {
                Role::Decode { group, rank } if *group == self.group => {
                    Some(self.held[usize::from(*rank)].requests)
                }
                _ => None,
            }
        });
        let most = held.max().unwrap_or(0);
        conditions.at(env.now()) ^ (u64::from(u32::BITS - most.leading_zeros()) << 56)
    }

    pub(super) fn start(&mut self, members: &Members, env: &mut Env<'_, '_>) {
        let shared = env.shared;
        let d = &shared.serving.decode;
        let (experts, must_simulate) = self.experts.step(env);
        let mut c = Condition {
            experts: mix(experts.digest()) as u32,
            ..Condition::default()
        };
        for h in &self.held {
            c.requests += h.requests;
            c.requests_max = c.requests_max.max(h.requests);
            c.context_max = c.context_max.max(h.context_sum);
        }
        self.batch = c.requests;
        c.faults = self.faults(env) ^ (u64::from(members.epoch) << 32);
        if let Some(news) = self.experts.busiest_news(shared) {
            self.counted = news.map(Estimator::by);
        }
        let estimate = |by: &mut Estimator, microbatch| {
            let c = Condition { microbatch, ..c };
            (by.step_ps(&c, shared), microbatch)
        };
        c.microbatch = match d.microbatch {
            Microbatch::On => true,
            Microbatch::Off => false,
            // Without, where both take the same.
            Microbatch::Auto => {
                let by = self.counted.as_mut().unwrap_or(&mut self.estimator);
                estimate(by, false).min(estimate(by, true)).1
            }
        };
        self.estimate_ps = self.estimator.step_ps(&c, shared);
        self.step += 1;
        self.running = true;
        self.longest_ps = 0;
        self.made = 0;
        let settling = shared.conditions().settles(env.now());
        let verdict = if shared.message_level() || must_simulate || settling {
            Verdict::Simulate
        } else {
            self.calibrator
                .decide(&c, &shared.serving.fidelity, env.ctx.rng())
        };
        let estimate = self.estimate_ps;
        let (to_all, drawn_ps) = match verdict {
            Verdict::Simulate => (true, None),
            Verdict::Draw(ratio) => (false, Some(scaled(estimate, ratio))),
            // Simulated, to see how far the draw would have been off.
            Verdict::Check(ratio) => {
                self.drawn_ps = Some(scaled(estimate, ratio));
                (true, None)
            }
        };
        if !matches!(verdict, Verdict::Check(_)) {
            self.drawn_ps = drawn_ps;
        }
        self.calibrator.simulated = drawn_ps.is_none();
        self.condition = Some((c, env.now()));
        let gap = shared.decode_times.host_gap_ps();
        self.started_ps = env.now() + gap;
        self.awaited = 0;
        if let Some(ps) = drawn_ps
            && !shared.has_faults()
        {
            return self.draw_on_nodes(members, (self.started_ps, ps), experts, env);
        }
        let dies = &shared.layout.decode[self.group as usize].dies;
        // A drawn step stands for messages between all: where parts may be gone, all have their part in it.
        let to_all = to_all || shared.conditions().any_by(env.now());
        for &rank in &members.ranks {
            let (rank, die) = (usize::from(rank), dies[usize::from(rank)]);
            if to_all || self.held[rank].requests > 0 {
                self.awaited += 1;
                let msg = Msg::StepStart {
                    epoch: members.epoch,
                    step: self.step,
                    microbatch: c.microbatch,
                    drawn_ps,
                    experts,
                };
                env.control_after(gap, shared.die_actor(die), msg);
            }
        }
    }
}

impl DecodeRoot {
    /// A drawn step goes to each node with requests in one message, which comes when the step is over there: nothing happens
    /// on a die before. `times`: when it starts here, and how long it lasts.
    fn draw_on_nodes(
        &mut self,
        members: &Members,
        (start_ps, drawn_ps): (Ps, Ps),
        experts: ExpertState,
        env: &mut Env<'_, '_>,
    ) {
        let shared = env.shared;
        let me = env.ctx.me();
        let group = &shared.layout.decode[usize::from(self.group)];
        let held = &self.held;
        let mut ranks = members.ranks.iter().copied();
        let mut ranks = ranks
            .by_ref()
            .filter(|&r| held[usize::from(r)].requests > 0);
        let mut next = ranks.next();
        while let Some(first) = next {
            let mut on_node = 0u32;
            let node = |r: u16| group.node_of_rank[usize::from(r)];
            while let Some(rank) = next.filter(|&r| node(r) == node(first) && r - first < 32) {
                on_node |= 1 << (rank - first);
                next = ranks.next();
            }
            let to = shared.die_actor(group.dies[usize::from(first)]);
            let started_ps = start_ps + env.control_latency_ps(me, to);
            let step = NodeStep {
                epoch: members.epoch,
                step: self.step,
                started_ps,
                ranks: on_node,
                experts,
            };
            self.awaited += on_node.count_ones();
            env.ctx
                .send_at(started_ps + drawn_ps, to, Msg::NodeStep(step));
        }
        env.tally.messages.control += u64::from(self.awaited);
    }
}

fn scaled(estimate: Ps, ratio: f64) -> Ps {
    (estimate as f64 * ratio).round() as Ps
}
