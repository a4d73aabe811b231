//! A home while the machine switches to another model: requests for the one before go on until they end, those for the
//! other wait here until every group has begun to load it. Nobody stands above: homes say when they have drained,
//! groups say when they have switched, and whoever has missed that goes on at a time that all know.

use std::collections::BTreeSet;

use super::Home;
use crate::env::Env;
use crate::message::Msg;
use crate::request::Outcome;
use crate::time::Ps;

#[derive(Debug, Default)]
pub(super) struct Switching {
    /// Requests for the other model that wait.
    held: BTreeSet<u64>,
    /// It has said that none of the model before is left.
    drained: bool,
    /// Groups that have switched.
    groups: usize,
    over: bool,
}

impl Home {
    /// A request for the other model waits until that is there, and is put aside here.
    pub(super) fn waits_for_switch(&mut self, id: u64, env: &Env<'_, '_>) -> bool {
        let plan = env.shared.weights.as_ref();
        let Some(switch) = plan.and_then(|w| w.switch).filter(|_| !self.switch.over) else {
            return false;
        };
        let arrival_ps = self.open.get(&id).map_or(0, |o| o.spec.arrival_ps);
        if arrival_ps < switch.at_ps || env.now() >= switch.over_ps {
            return false;
        }
        self.switch.held.insert(id);
        if let Some(open) = self.open.get_mut(&id) {
            open.due_ps = Ps::MAX;
        }
        true
    }

    /// This CPU has lost what it knew.
    pub(super) fn forget_switch(&mut self) {
        self.switch.held.clear();
    }

    /// From now on requests are for another model.
    pub fn switch(&mut self, env: &mut Env<'_, '_>) {
        self.say_if_drained(env);
    }

    /// A request has ended.
    pub(super) fn left(&mut self, id: u64, env: &mut Env<'_, '_>) {
        if env.shared.weights.is_some() {
            self.switch.held.remove(&id);
            self.say_if_drained(env);
        }
    }

    fn say_if_drained(&mut self, env: &mut Env<'_, '_>) {
        let plan = env.shared.weights.as_ref();
        let switch = plan.and_then(|w| w.switch);
        let due = switch.is_some_and(|s| env.now() >= s.at_ps);
        let old = self.open.len() - self.switch.held.len();
        if !due || self.switch.drained || old > 0 {
            return;
        }
        self.switch.drained = true;
        let s = env.shared;
        for group in s.layout.prefill.iter().chain(&s.layout.decode) {
            env.control(s.die_actor(group.root()), Msg::Drained);
        }
    }

    /// What is left of the model before has had its time.
    pub fn drain_over(&mut self, env: &mut Env<'_, '_>) {
        let old: Vec<u64> = self
            .open
            .keys()
            .copied()
            .filter(|id| !self.switch.held.contains(id))
            .collect();
        let drain_s = env.shared.serving.model_cache.drain_s;
        for id in old {
            let open = self.open.get_mut(&id).expect("listed");
            let name = open.name();
            if let Some(holder) = open.holder.take() {
                env.control(holder, Msg::Release { request: name });
            }
            self.placer.drop_request(name);
            let why = format!(
                "its model was switched away {drain_s} s after the switch began (model_cache.drain_s)"
            );
            self.end(id, Outcome::Failed(why), env);
        }
        self.say_if_drained(env);
    }

    /// A group loads the other model. When all do, what has waited goes to them.
    pub fn group_switched(&mut self, env: &mut Env<'_, '_>) {
        self.switch.groups += 1;
        let layout = &env.shared.layout;
        if self.switch.groups >= layout.prefill.len() + layout.decode.len() {
            self.switch_over(env);
        }
    }

    /// Whoever lives has switched by now.
    pub fn switch_over(&mut self, env: &mut Env<'_, '_>) {
        self.switch.over = true;
        let now = env.now();
        for id in std::mem::take(&mut self.switch.held) {
            if let Some(open) = self.open.get_mut(&id) {
                open.seeking_ps = now;
                self.seek(id, env);
            }
        }
    }
}
