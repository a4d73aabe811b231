//! How a decode rank deals with others that are gone. The root notices that a step is late and asks who is there;
//! those who do not answer are left out, and the step is given up and computed again by the others (`cut.rs`). If it is
//! the root that does not answer, the lowest living rank takes its place. Who comes back says so, and takes part from the
//! next step on (`rejoin.rs`).

use std::collections::BTreeSet;
use std::sync::Arc;

use super::DecodeRank;
use super::decode_root::DecodeRoot;
use super::members::{Members, Watch, lacking, repaired};
use super::rejoin::Loading;
use super::roll_call::{late_ps, ping_ps};
use crate::env::Env;
use crate::experts::Plan;
use crate::fabric::epoch_start;
use crate::fault::NoteKind;
use crate::layout::Role;
use crate::message::Msg;
use crate::runtime::Actor;
use crate::time::{PS_PER_MS, Ps};

/// What a rank knows of the others.
#[derive(Debug)]
pub struct Watching {
    pub members: Arc<Members>,
    /// It has been left out, or has just come back: it waits to be taken in.
    pub out: bool,
    /// Timers of a step that was set before this one mean nothing any more.
    pub steps_from_seq: u64,
    /// Ranks whose neighbours say that they are gone.
    pub(super) said_gone: BTreeSet<u16>,
    /// When the root was last heard of.
    pub(super) news_ps: Ps,
    pub(super) watching: bool,
    pub(super) asked: u32,
    /// Ranks that said that they are back.
    pub(super) hellos: BTreeSet<u16>,
    /// Ranks that were too few to hold every expert: without others it is not tried again.
    pub(super) tried: BTreeSet<u16>,
    pub(super) said_hello: u32,
    /// The latest epoch that any other rank spoke of.
    pub(super) epoch_seen: u32,
    /// A step that has come waits until then for its CPU.
    pub(super) launching_until_ps: Ps,
    /// Weights are on their way: what is said when they are here.
    pub(super) loading: Option<Loading>,
}

impl Watching {
    pub fn new(ranks: u32, now: Ps) -> Self {
        Self {
            members: Arc::new(Members::all(ranks)),
            out: false,
            steps_from_seq: 0,
            said_gone: BTreeSet::new(),
            news_ps: now,
            watching: false,
            asked: 0,
            hellos: BTreeSet::new(),
            tried: BTreeSet::new(),
            said_hello: 0,
            epoch_seen: 0,
            launching_until_ps: 0,
            loading: None,
        }
    }
}

impl DecodeRank {
    pub(super) fn actor_of(&self, rank: u16, env: &Env<'_, '_>) -> Actor {
        env.shared
            .die_actor(env.shared.layout.decode[self.group as usize].dies[rank as usize])
    }

    pub(super) fn root_actor(&self, env: &Env<'_, '_>) -> Actor {
        self.actor_of(self.watch.members.root, env)
    }

    pub(super) fn rank_of(&self, actor: Actor, env: &Env<'_, '_>) -> Option<u16> {
        match env.shared.layout.roles.get(actor as usize) {
            Some(Role::Decode { group, rank }) if *group == self.group => Some(*rank),
            _ => None,
        }
    }

    /// A step is for those who have taken up its epoch, and from the root of that.
    pub(super) fn takes_step(&self, epoch: u32, env: &Env<'_, '_>) -> bool {
        !self.watch.out && epoch == self.watch.members.epoch && env.from == self.root_actor(env)
    }

    /// Something a step needs has been lost with a life or a step that ended.
    pub(super) fn is_stale(&self, env: &Env<'_, '_>) -> bool {
        self.watch.out || env.ctx.event_seq() < self.watch.steps_from_seq
    }

    /// While weights are loaded, each die sees to it itself that they come; and a launch will be over.
    pub(super) fn progress(&self, now: Ps) -> u64 {
        let loading = self.watch.loading == Some(Loading::Member);
        let waits = loading || now < self.watch.launching_until_ps;
        let at = if waits { now / PS_PER_MS } else { 0 };
        at + (u64::from(self.step.number) << 32) + u64::from(self.phase)
    }

    /// The root has said something.
    pub(super) fn heard(&mut self, env: &mut Env<'_, '_>) {
        self.watch.news_ps = env.now();
        self.watch_root(env);
    }

    // ---- a rank's own watch over its root

    fn patience_ps(&self, env: &Env<'_, '_>) -> Ps {
        // The lowest living rank is first to find that the root is gone.
        let place = self.watch.members.place(self.rank);
        2 * late_ps(env) + Ps::from(place) * 10 * PS_PER_MS
    }

    /// From now on this rank waits for something that its root has to do.
    pub(super) fn watch_root(&mut self, env: &mut Env<'_, '_>) {
        if !self.watch.watching {
            self.watch.watching = true;
            let ps = self.patience_ps(env);
            env.after(ps, Msg::Watch(Watch::Root));
        }
    }

    fn waits(&self) -> bool {
        self.watch.out
            || self.step.running
            || !(self.active.is_empty() && self.joining.is_empty() && self.granted.is_empty())
    }

    pub fn watch(&mut self, what: Watch, env: &mut Env<'_, '_>) {
        match what {
            Watch::Step => self.step_late(env),
            Watch::StepAnswers => self.step_answers(env),
            Watch::Root => self.root_silent(env),
            Watch::RootAnswer => self.root_answer(env),
            Watch::Weights => self.weights_late(env),
            Watch::Blocks => {}
            Watch::Overdue => {
                self.placer.overdue(env);
            }
        }
    }

    fn root_silent(&mut self, env: &mut Env<'_, '_>) {
        let now = env.now();
        self.watch.watching = false;
        self.drop_stale_grants(env);
        if !self.waits() || self.watch.out && !self.watch.tried.is_empty() {
            return;
        }
        let patience = self.patience_ps(env);
        let due = self.watch.news_ps + patience;
        if due > now {
            self.watch.watching = true;
            return env.after(due - now, Msg::Watch(Watch::Root));
        }
        if self.watch.out {
            return self.hello_again(env);
        }
        if self.root.is_some() {
            return self.watch_root(env);
        }
        self.watch.asked = 1;
        self.ask_root(env);
    }

    pub(super) fn ask_root(&mut self, env: &mut Env<'_, '_>) {
        let (root, wait) = (self.root_actor(env), ping_ps(env));
        env.control(root, Msg::Ping { round: 0 });
        env.after(wait, Msg::Watch(Watch::RootAnswer));
    }

    fn root_answer(&mut self, env: &mut Env<'_, '_>) {
        if self.watch.asked == 0 || self.watch.out || self.root.is_some() {
            return;
        }
        if self.watch.asked < env.shared.serving.recovery.ping_tries {
            self.watch.asked += 1;
            return self.ask_root(env);
        }
        self.watch.asked = 0;
        let gone = self.watch.members.root;
        self.take_over(&[gone], env);
    }

    /// This rank becomes the root; `gone` are left out.
    pub(super) fn take_over(&mut self, gone: &[u16], env: &mut Env<'_, '_>) {
        let mut root = Box::new(DecodeRoot::new(self.group, env.shared));
        root.step = self.step.number + 1_000;
        self.root = Some(root);
        self.watch.out = false;
        let gone: Vec<u16> = gone.iter().copied().filter(|&r| r != self.rank).collect();
        self.cut(&gone, env);
    }

    pub fn ping(&mut self, from: Actor, round: u32, env: &mut Env<'_, '_>) {
        // Who has lost what it had is no member: it does not answer as one, and says so to who takes it for the root.
        let epoch = match (self.watch.out, round) {
            (true, 0) => u32::MAX,
            (true, _) => return,
            (false, _) => self.watch.members.epoch,
        };
        let progress = self.progress(env.now());
        env.control(
            from,
            Msg::Pong {
                round,
                epoch,
                progress,
            },
        );
    }

    pub fn pong(
        &mut self,
        from: Actor,
        round: u32,
        epoch: u32,
        progress: u64,
        env: &mut Env<'_, '_>,
    ) {
        if epoch > self.watch.members.epoch && !self.watch.out {
            // They went on without this rank.
            return self.left_out(env);
        }
        let Some(rank) = self.rank_of(from, env) else {
            return;
        };
        if rank == self.watch.members.root {
            self.watch.news_ps = env.now();
            if std::mem::take(&mut self.watch.asked) > 0 {
                self.watch_root(env);
                if !self.step.running && !self.joining.is_empty() {
                    env.control(from, Msg::Wake { group: self.group });
                }
            }
        }
        if let Some(root) = &mut self.root {
            root.watch.call.answer(rank, round, progress);
        }
    }

    /// The root says who takes part from now on.
    pub fn members(&mut self, from: Actor, members: Members, env: &mut Env<'_, '_>) {
        if members.epoch <= self.watch.members.epoch && !self.watch.out
            || members.epoch < self.watch.members.epoch
            || self.watch.loading == Some(Loading::All)
            || self.rank_of(from, env) != Some(members.root)
        {
            return;
        }
        if members.root != self.rank {
            self.root = None;
        }
        let (number, plans) = match &members.plans {
            Some(p) => (p.number, Arc::clone(&p.plans)),
            None => (0, self.plans_at_start(env)),
        };
        let whole = u32::from(members.count()) == self.ranks(env);
        let had = self.plans_held();
        let beside_max = env.shared.experts_beside_max;
        if whole {
            self.shrink(None, env);
        } else if let Ok(left) = repaired(&plans, &members, beside_max) {
            self.shrink(Some(left), env);
        } else {
            // Too few are left to hold every expert: nobody can be served here until others are back.
            let (now, me) = (env.now(), env.ctx.me());
            env.tally.note(now, me, NoteKind::ExpertLost);
            self.forget(env);
            // It says so again when others come back.
            self.watch.tried = members.ranks.iter().copied().collect();
            self.watch.members = Arc::new(members);
            return;
        }
        let root = self.actor_of(members.root, env);
        self.experts.begin_epoch(root, number, plans);
        let layers = env.shared.model.moe_layers() + env.shared.model.mtp_layers;
        let lacking = lacking(&had, &self.plans_held(), self.rank, layers);
        let now = env.now();
        self.watch.news_ps = now;
        self.watch.out = false;
        self.watch.said_hello = 0;
        self.watch.asked = 0;
        self.watch.hellos.clear();
        self.watch.said_gone.clear();
        self.watch.steps_from_seq = env.ctx.next_seq();
        self.phase = epoch_start(members.epoch);
        env.fabric.boards[self.board as usize].begin_epoch(self.rank, members.epoch);
        self.step.running = false;
        self.step.parts.clear();
        self.step.attention_busy = false;
        self.step.moe_busy = None;
        self.watch.members = Arc::new(members);
        if self.watch.loading == Some(Loading::Member) {
            // It says so when its weights are here.
        } else if lacking > 0 {
            self.load(Loading::Experts(lacking), env);
        } else {
            self.joined(env);
        }
        self.watch_root(env);
    }

    fn ranks(&self, env: &Env<'_, '_>) -> u32 {
        env.shared.layout.decode[usize::from(self.group)].ranks()
    }

    fn plans_at_start(&self, env: &Env<'_, '_>) -> Arc<Vec<Plan>> {
        let experts = env.shared.decode_experts.as_ref();
        Arc::clone(&experts.expect("a decode group has experts").plans)
    }

    /// The plans by which this rank has weights.
    fn plans_held(&self) -> Arc<Vec<Plan>> {
        match &self.shrunk {
            Some(shrunk) => Arc::clone(shrunk),
            None => self.experts.in_force().1,
        }
    }

    pub(super) fn joined(&mut self, env: &mut Env<'_, '_>) {
        let (requests, context_sum) = self.holds();
        let root = self.root_actor(env);
        let epoch = self.watch.members.epoch;
        env.control(
            root,
            Msg::Joined {
                epoch,
                requests,
                context_sum,
            },
        );
    }
}
