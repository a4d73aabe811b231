//! A home while the machine switches to another model: requests for the one before go on until they end, those for the
//! other wait here until every group has begun to load it. Nobody stands above: homes say when they have drained,
//! groups say when they have switched, and whoever has missed that goes on at a time that all know.

use std::collections::BTreeSet;

use super::Home;
use super::open::Open;
use crate::env::Env;
use crate::message::Msg;
use crate::request::Outcome;
use crate::time::Ps;
use crate::weights::SwitchTimes;

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

fn times(env: &Env<'_, '_>) -> Option<SwitchTimes> {
    env.shared.weights.as_ref().and_then(|w| w.switch)
}

/// Whether a request is for the model before: what has arrived by a switch is, wherever it waits or is served.
fn is_old(open: &Open, switch: SwitchTimes) -> bool {
    open.spec.arrival_ps < switch.at_ps
}

impl Home {
    /// A request for the other model waits until that is there, and is put aside here. One for the model before that comes
    /// once its time is over fails.
    pub(super) fn waits_for_switch(&mut self, id: u64, env: &mut Env<'_, '_>) -> bool {
        let Some(switch) = times(env) else {
            return false;
        };
        let (old, now) = (is_old(&self.open[&id], switch), env.now());
        if old && now >= switch.drained_ps {
            self.switched_away(id, env);
            return true;
        }
        if old || self.switch.over || now >= switch.over_ps {
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
        let Some(switch) = times(env).filter(|s| env.now() >= s.at_ps) else {
            return;
        };
        if self.switch.drained || self.open.values().any(|o| is_old(o, switch)) {
            return;
        }
        self.switch.drained = true;
        let s = env.shared;
        for group in s.layout.prefill.iter().chain(&s.layout.decode) {
            env.control(s.die_actor(group.root()), Msg::Drained);
        }
    }

    /// What is left of the model before has had its time. Requests for the other one may long be under way.
    pub fn drain_over(&mut self, env: &mut Env<'_, '_>) {
        let Some(switch) = times(env) else { return };
        let old = self.open.iter().filter(|(_, o)| is_old(o, switch));
        for id in old.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.switched_away(id, env);
        }
        self.say_if_drained(env);
    }

    fn switched_away(&mut self, id: u64, env: &mut Env<'_, '_>) {
        let open = self.open.get_mut(&id).expect("it is open");
        let name = open.name();
        if let Some(holder) = open.holder.take() {
            env.control(holder, Msg::Release { request: name });
        }
        self.placer.drop_request(name);
        let drain_s = env.shared.serving.model_cache.drain_s;
        let why = format!(
            "its model was switched away {drain_s} s after the switch began (model_cache.drain_s)"
        );
        self.end(id, Outcome::Failed(why), env);
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
