//! How the root of a decode group goes on without some of its ranks. It notices that a step is late and asks who is
//! there. Those who do not answer are left out, and the step is given up and computed again by the others; if all answer
//! and none gets on, messages were lost, and the step is done again. Each time a new epoch begins, with a clean board.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::DecodeRank;
use super::decode_root::DecodeRoot;
use super::members::{Members, Watch};
use super::roll_call::{RollCall, late_ps, tell_homes};
use crate::env::Env;
use crate::experts::NewPlan;
use crate::fabric::epoch;
use crate::fault::NoteKind;
use crate::message::Msg;
use crate::runtime::Actor;

/// What the root knows of those who are late.
#[derive(Debug, Default)]
pub struct RootWatch {
    pub(super) call: RollCall,
    /// Ranks that have not yet taken up the new epoch.
    pub joining: BTreeSet<u16>,
    /// Ranks that came back, to be taken in with the next epoch.
    pub back: BTreeSet<u16>,
    /// Dies that were left out, until the group is at work again.
    cut: Vec<Actor>,
}

impl DecodeRoot {
    /// Ranks have something to do that the root waits for.
    pub(super) fn waits(&self) -> bool {
        self.running || !self.watch.joining.is_empty()
    }
}

impl DecodeRank {
    /// The root has something under way that all have to answer.
    pub(super) fn arm(&mut self, env: &mut Env<'_, '_>) {
        let late = late_ps(env);
        let Some(root) = &mut self.root else { return };
        root.watch.call.since_ps = env.ctx.now();
        if !root.watch.call.armed && root.waits() {
            root.watch.call.armed = true;
            env.after(late, Msg::Watch(Watch::Step));
        }
    }

    pub(super) fn step_late(&mut self, env: &mut Env<'_, '_>) {
        let late = late_ps(env);
        let now = env.now();
        let Some(root) = &mut self.root else { return };
        root.watch.call.armed = false;
        if !root.waits() && !root.watch.call.told {
            return;
        }
        let due = root.watch.call.since_ps + late;
        if due > now && !root.watch.call.told {
            root.watch.call.armed = true;
            return env.after(due - now, Msg::Watch(Watch::Step));
        }
        self.call_the_roll(env);
    }

    fn call_the_roll(&mut self, env: &mut Env<'_, '_>) {
        let root = self.root.as_mut().expect("a root calls the roll");
        root.watch.call.armed = true;
        root.watch.call.begin();
        self.ask_missing(env);
    }

    /// A neighbour of a rank says that it is gone: the root asks its ranks; if it is the root, the lowest rank of which
    /// nobody has said so asks it.
    pub fn said_gone(&mut self, die: Actor, env: &mut Env<'_, '_>) {
        let members = Arc::clone(&self.watch.members);
        let Some(rank) = self.rank_of(die, env).filter(|r| members.has(*r)) else {
            return;
        };
        if self.watch.out {
            return;
        }
        if let Some(root) = &mut self.root {
            root.watch.call.told = true;
            if !root.watch.call.armed {
                self.call_the_roll(env);
            }
            return;
        }
        self.watch.said_gone.insert(rank);
        let said = &self.watch.said_gone;
        let first = members.ranks.iter().find(|r| !said.contains(r));
        if said.contains(&members.root) && first == Some(&self.rank) && self.watch.asked == 0 {
            self.watch.asked = 1;
            self.ask_root(env);
        }
    }

    fn missing(&self) -> Vec<u16> {
        let ranks = self.watch.members.ranks.iter().copied();
        let call = self.root.as_ref().map(|r| &r.watch.call);
        call.map_or(Vec::new(), |c| c.missing(ranks, self.rank))
    }

    fn ask_missing(&mut self, env: &mut Env<'_, '_>) {
        let missing = self.missing();
        let dies: Vec<Actor> = missing.iter().map(|&r| self.actor_of(r, env)).collect();
        if let Some(root) = &self.root {
            root.watch.call.ask(dies, env);
        }
    }

    pub(super) fn step_answers(&mut self, env: &mut Env<'_, '_>) {
        let missing = self.missing();
        let own = self.progress(env.now());
        let tries = env.shared.serving.recovery.ping_tries;
        let Some(root) = &mut self.root else { return };
        root.watch.call.armed = false;
        let told = root.watch.call.told;
        if !root.waits() && !told {
            return;
        }
        if !missing.is_empty() {
            if root.watch.call.once_more(tries) {
                root.watch.call.armed = true;
                return self.ask_missing(env);
            }
            return self.cut(&missing, env);
        }
        root.watch.call.told = false;
        // All are there. If none has got on since it was last looked, what they wait for was lost.
        if root.waits() && !told && !root.watch.call.got_on(own) {
            return self.cut(&[], env);
        }
        self.arm(env);
    }

    /// A new epoch without `gone`, with those who came back.
    pub(super) fn cut(&mut self, gone: &[u16], env: &mut Env<'_, '_>) {
        let now = env.now();
        let old = Arc::clone(&self.watch.members);
        let root = self.root.as_mut().expect("a root changes the members");
        let back = std::mem::take(&mut root.watch.back);
        let mut ranks: BTreeSet<u16> = old.ranks.iter().copied().collect();
        for r in gone {
            ranks.remove(r);
        }
        ranks.extend(&back);
        ranks.insert(self.rank);
        let next = old.epoch.max(epoch(self.phase)).max(self.watch.epoch_seen) + 2;
        let ranks: Vec<u16> = ranks.into_iter().collect();
        let whole = ranks.len() == self.root.as_ref().map_or(0, |r| r.held.len());
        let (number, plans) = self.experts.in_force();
        // What is in force may be of two plans: it has a number of its own.
        let number = if number > 0 { next << 8 } else { 0 };
        let in_force = (number > 0).then(|| {
            let plans = Arc::clone(&plans);
            Arc::new(NewPlan { number, plans })
        });
        let members = Arc::new(Members {
            epoch: next,
            root: self.rank,
            ranks,
            plans: in_force,
        });
        let root = self.root.as_mut().expect("it is the root");
        root.experts.begin_epoch(now, whole, number, plans);
        let open = root.waits();
        root.running = false;
        root.watch.joining = members.ranks.iter().copied().collect();
        root.watch.call.forget_progress();
        root.watch.call.told = false;
        root.watch.call.since_ps = now;
        let group = &env.shared.layout.decode[self.group as usize];
        let mut cut: Vec<Actor> = Vec::new();
        for &r in gone {
            let die = env.shared.die_actor(group.dies[r as usize]);
            root.held[r as usize] = Default::default();
            cut.push(die);
        }
        root.watch.cut.extend(&cut);
        for r in &back {
            let die = env.shared.die_actor(group.dies[*r as usize]);
            if !root.watch.cut.contains(&die) {
                root.watch.cut.push(die);
            }
        }
        for &die in &cut {
            env.tally.note(now, die, NoteKind::Noticed);
            tell_homes(die, env);
        }
        if gone.is_empty() && back.is_empty() && open {
            let me = env.ctx.me();
            env.tally.note(now, me, NoteKind::RolledBack);
        }
        for &rank in &members.ranks {
            let to = self.actor_of(rank, env);
            env.control(to, Msg::Members(Box::new((*members).clone())));
        }
        self.arm(env);
    }

    /// A rank has taken up the epoch; when all have, the group goes on.
    pub fn rank_joined(
        &mut self,
        from: Actor,
        epoch: u32,
        requests: u32,
        context_sum: u64,
        env: &mut Env<'_, '_>,
    ) {
        let Some(rank) = self.rank_of(from, env) else {
            return;
        };
        let current = self.watch.members.epoch;
        let Some(root) = &mut self.root else { return };
        if epoch != current || !root.watch.joining.remove(&rank) {
            return;
        }
        root.hold(rank, requests, context_sum);
        if root.watch.joining.is_empty() {
            let now = env.now();
            for die in std::mem::take(&mut root.watch.cut) {
                env.tally.note(now, die, NoteKind::Recovered);
            }
            if root.has_requests() {
                self.start_step(env);
            }
        }
    }

    pub(super) fn start_step(&mut self, env: &mut Env<'_, '_>) {
        let members = Arc::clone(&self.watch.members);
        let patience_ps = crate::time::ps_from_s(env.shared.serving.recovery.give_up_s);
        let Some(root) = &mut self.root else { return };
        if root.waits() {
            return; // It goes on when those who join have joined.
        }
        let stuck = root.experts.is_stuck(env.ctx.now(), patience_ps);
        if !root.watch.back.is_empty() || stuck {
            return self.cut(&[], env);
        }
        root.start(&members, env);
        self.arm(env);
    }
}
