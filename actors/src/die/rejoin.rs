//! How a decode rank that was lost or left out comes back: it loads weights if it has lost them, says that it is here
//! until it is taken in, and, if nobody is left to do that, begins the group anew with those who also wait.

use std::sync::Arc;

use super::DecodeRank;
use super::experts::RankExperts;
use super::members::Members;
use super::roll_call::{ask_for_weights, late_ps};
use crate::env::Env;
use crate::message::Msg;
use crate::runtime::Actor;

/// Weights that are on their way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Loading {
    All,
    /// As `All`, for a rank that takes part already.
    Member,
    /// So many experts of one layer each.
    Experts(u64),
}

impl DecodeRank {
    /// This rank is no member any more: it forgets what it had, and says that it is here.
    pub(super) fn left_out(&mut self, env: &mut Env<'_, '_>) {
        let loading = self.watch.loading == Some(Loading::Member);
        self.forget(env);
        if loading {
            return self.awaits_reload();
        }
        self.say_hello(env);
    }

    /// All requests and the step are gone; weights are still there.
    pub(super) fn forget(&mut self, env: &mut Env<'_, '_>) {
        let slowed = self.slowed.take();
        let experts = RankExperts::new(self.group, self.rank, env.shared);
        let experts = std::mem::replace(&mut self.experts, experts);
        let members = Arc::clone(&self.watch.members);
        let mut new = Self::new(self.group, self.rank, env.shared);
        new.slowed = slowed;
        new.shrunk = self.shrunk.take();
        new.kv_tokens_max = self.kv_tokens_max;
        new.experts = experts;
        new.root = None;
        new.phase = self.phase;
        new.watch.members = members;
        new.watch.out = true;
        new.watch.epoch_seen = self.watch.epoch_seen;
        new.watch.news_ps = env.now();
        new.watch.watching = self.watch.watching;
        new.watch.steps_from_seq = env.ctx.next_seq();
        *self = new;
    }

    /// All that it had in memory is gone.
    pub(super) fn crashed(&mut self, env: &mut Env<'_, '_>) {
        self.forget(env);
        self.experts.forget_plans(env.shared);
        self.shrink(None, env);
    }

    /// It hung, and goes on: perhaps the others went on without it.
    pub(super) fn resumed(&mut self, env: &mut Env<'_, '_>) {
        if env.now() - self.watch.news_ps >= late_ps(env) {
            // Whatever step it was in has been given up by now, or will be.
            self.watch.steps_from_seq = env.ctx.next_seq();
            self.step.moe_busy = None;
            self.step.parts.clear();
        }
        let ranks = &self.watch.members.ranks;
        let other = ranks.iter().find(|&&r| r != self.rank).copied();
        let whom = if self.watch.members.root == self.rank {
            other
        } else {
            Some(self.watch.members.root)
        };
        if let Some(whom) = whom {
            let to = self.actor_of(whom, env);
            env.control(to, Msg::Ping { round: 0 });
        }
        self.watch_root(env);
    }

    /// After a restart: the weights are loaded first.
    pub(super) fn restart(&mut self, env: &mut Env<'_, '_>) {
        self.watch.watching = false;
        self.load(Loading::All, env);
    }

    fn say_hello(&mut self, env: &mut Env<'_, '_>) {
        self.watch.out = true;
        self.watch.said_hello += 1;
        self.watch.news_ps = env.now();
        let epoch = self.watch.members.epoch.max(self.watch.epoch_seen);
        let ranks = env.shared.layout.decode[self.group as usize].ranks() as u16;
        for rank in (0..ranks).filter(|&r| r != self.rank) {
            let to = self.actor_of(rank, env);
            env.control(to, Msg::Hello { epoch });
        }
        if ranks == 1 {
            return self.found_anew(env);
        }
        self.watch_root(env);
    }

    pub(super) fn hello_again(&mut self, env: &mut Env<'_, '_>) {
        if self.watch.loading.is_some() {
            self.watch.news_ps = env.now();
            return self.watch_root(env);
        }
        let lower = self
            .watch
            .hellos
            .iter()
            .next()
            .is_some_and(|&r| r < self.rank);
        if self.watch.said_hello >= env.shared.serving.recovery.ping_tries && !lower {
            return self.found_anew(env);
        }
        self.watch.hellos.clear();
        self.say_hello(env);
    }

    /// Nobody is left to take this rank in: it begins the group anew, with those who also wait.
    fn found_anew(&mut self, env: &mut Env<'_, '_>) {
        let mut ranks = self.watch.hellos.clone();
        ranks.insert(self.rank);
        self.watch.members = Arc::new(Members {
            epoch: self.watch.members.epoch,
            root: self.rank,
            ranks: ranks.into_iter().collect(),
            plans: self.watch.members.plans.clone(),
        });
        self.take_over(&[], env);
    }

    /// A rank has come back, without what it had.
    pub fn hello(&mut self, from: Actor, epoch: u32, env: &mut Env<'_, '_>) {
        let Some(rank) = self.rank_of(from, env) else {
            return;
        };
        self.watch.epoch_seen = self.watch.epoch_seen.max(epoch);
        self.watch.hellos.insert(rank);
        if self.watch.out {
            if !self.watch.tried.is_empty() && !self.watch.tried.contains(&rank) {
                self.watch.tried.clear();
                self.watch.said_hello = 0;
                self.watch.news_ps = env.now();
                self.watch_root(env);
            }
            return;
        }
        let members = Arc::clone(&self.watch.members);
        if rank == members.root && self.root.is_none() {
            // The root has lost what it knew: the next one takes its place at once.
            let next = members.ranks.iter().find(|&&r| r != rank);
            if next == Some(&self.rank) {
                self.take_over(&[rank], env);
            }
            return;
        }
        let was_member = members.has(rank);
        let Some(root) = &mut self.root else {
            return;
        };
        root.watch.back.insert(rank);
        if was_member {
            // It was gone and nobody had noticed yet.
            self.cut(&[rank], env);
        } else if !root.running && root.watch.joining.is_empty() {
            self.cut(&[], env);
        }
    }

    // ---- weights

    /// Weights are on their way to this rank and, as it is told, to all others: no step starts before all have them.
    pub fn lacks_weights(&mut self, env: &mut Env<'_, '_>) {
        if self.watch.out {
            return self.awaits_reload();
        }
        self.watch.loading = Some(Loading::Member);
        let members = Arc::clone(&self.watch.members);
        if let Some(root) = &mut self.root {
            root.watch.joining = members.ranks.iter().copied().collect();
            self.arm(env);
        }
    }

    /// This rank takes part again when it has its weights.
    pub fn awaits_reload(&mut self) {
        self.watch.watching = false;
        self.watch.loading = Some(Loading::All);
    }

    /// All weights of this die are here.
    pub fn has_weights(&mut self, env: &mut Env<'_, '_>) {
        if !matches!(self.watch.loading, Some(Loading::Experts(_))) {
            self.loaded(env);
        }
    }

    pub(super) fn load(&mut self, what: Loading, env: &mut Env<'_, '_>) {
        self.watch.loading = Some(what);
        let s = env.shared;
        let bytes = match what {
            Loading::All | Loading::Member => s.decode_weight_bytes,
            Loading::Experts(n) => (s.expert_bytes() * n as f64) as u64,
        };
        ask_for_weights(bytes, env);
    }

    pub fn loaded(&mut self, env: &mut Env<'_, '_>) {
        match self.watch.loading.take() {
            Some(Loading::All) => self.say_hello(env),
            Some(Loading::Experts(_) | Loading::Member) => self.joined(env),
            None => {}
        }
    }

    pub(super) fn weights_late(&mut self, env: &mut Env<'_, '_>) {
        // Where blocks are loaded, each is looked after by itself.
        if let Some(what) = self.watch.loading
            && (env.shared.weights.is_none() || matches!(what, Loading::Experts(_)))
        {
            self.load(what, env);
        }
    }
}
