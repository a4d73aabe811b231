//! How a decode group goes on without some of its ranks. The root notices that a step is late and asks who is there;
//! those who do not answer are left out, and the step is given up and computed again by the others. If all answer and
//! none gets on, messages were lost: the step is done again. If it is the root that does not answer, the lowest living
//! rank takes its place. Who comes back says so, and takes part from the next step on.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::DecodeRank;
use super::decode_root::DecodeRoot;
use super::members::{Members, Watch, repaired};
use crate::env::Env;
use crate::fabric::{epoch, epoch_start};
use crate::fault::NoteKind;
use crate::layout::Role;
use crate::message::Msg;
use crate::runtime::Actor;
use crate::time::{PS_PER_MS, Ps, ps_from_s};

/// What a rank knows of the others.
#[derive(Debug)]
pub struct Watching {
    pub members: Arc<Members>,
    /// It has been left out, or has just come back: it waits to be taken in.
    pub out: bool,
    /// Timers of a step that was set before this one mean nothing any more.
    pub steps_from_seq: u64,
    /// When the root was last heard of.
    news_ps: Ps,
    watching: bool,
    asked: u32,
    /// Ranks that said that they are back.
    hellos: BTreeSet<u16>,
    /// Ranks that were too few to hold every expert: without others it is not tried again.
    tried: BTreeSet<u16>,
    said_hello: u32,
    /// The latest epoch that any other rank spoke of.
    epoch_seen: u32,
    /// Weights are on their way: what is said when they are here.
    loading: Option<Loading>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Loading {
    All,
    Experts,
}

/// What the root knows of those who are late.
#[derive(Debug, Default)]
pub struct RootWatch {
    armed: bool,
    since_ps: Ps,
    round: u32,
    answered: BTreeSet<u16>,
    progress: u64,
    progress_before: Option<u64>,
    tries: u32,
    /// Ranks that have not yet taken up the new epoch.
    pub joining: BTreeSet<u16>,
    /// Ranks that came back, to be taken in with the next epoch.
    pub back: BTreeSet<u16>,
    /// Dies that were left out, until the group is at work again.
    cut: Vec<Actor>,
}

impl Watching {
    pub fn new(ranks: u32, now: Ps) -> Self {
        Self {
            members: Arc::new(Members::all(ranks)),
            out: false,
            steps_from_seq: 0,
            news_ps: now,
            watching: false,
            asked: 0,
            hellos: BTreeSet::new(),
            tried: BTreeSet::new(),
            said_hello: 0,
            epoch_seen: 0,
            loading: None,
        }
    }
}

fn late_ps(env: &Env<'_, '_>) -> Ps {
    ps_from_s(env.shared.serving.recovery.step_late_ms * 1e-3)
}

fn ping_ps(env: &Env<'_, '_>) -> Ps {
    ps_from_s(env.shared.serving.recovery.ping_ms * 1e-3)
}

impl DecodeRank {
    pub(super) fn actor_of(&self, rank: u16, env: &Env<'_, '_>) -> Actor {
        env.shared
            .die_actor(env.shared.layout.decode[self.group as usize].dies[rank as usize])
    }

    pub(super) fn root_actor(&self, env: &Env<'_, '_>) -> Actor {
        self.actor_of(self.watch.members.root, env)
    }

    fn rank_of(&self, actor: Actor, env: &Env<'_, '_>) -> Option<u16> {
        match env.shared.layout.roles.get(actor as usize) {
            Some(Role::Decode { group, rank }) if *group == self.group => Some(*rank),
            _ => None,
        }
    }

    /// Something a step needs has been lost with a life or a step that ended.
    pub(super) fn is_stale(&self, env: &Env<'_, '_>) -> bool {
        self.watch.out || env.ctx.event_seq() < self.watch.steps_from_seq
    }

    fn progress(&self) -> u64 {
        (u64::from(self.step.number) << 32) + u64::from(self.phase)
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

    fn ask_root(&mut self, env: &mut Env<'_, '_>) {
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
    fn take_over(&mut self, gone: &[u16], env: &mut Env<'_, '_>) {
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
        let progress = self.progress();
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
        if let Some(root) = &mut self.root
            && round == root.watch.round
            && round > 0
            && root.watch.answered.insert(rank)
        {
            root.watch.progress += progress;
        }
    }

    /// This rank is no member any more: it forgets what it had, and says that it is here.
    fn left_out(&mut self, env: &mut Env<'_, '_>) {
        self.forget(env);
        self.say_hello(env);
    }

    /// All requests and the step are gone.
    pub(super) fn forget(&mut self, env: &mut Env<'_, '_>) {
        let slowed = self.slowed.take();
        let members = Arc::clone(&self.watch.members);
        let mut new = Self::new(self.group, self.rank, env.shared);
        new.slowed = slowed;
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

    /// It hung, and goes on: perhaps the others went on without it.
    pub(super) fn resumed(&mut self, env: &mut Env<'_, '_>) {
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

    fn hello_again(&mut self, env: &mut Env<'_, '_>) {
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

    // ---- the root's watch over the ranks

    /// The root has something under way that all have to answer.
    pub(super) fn arm(&mut self, env: &mut Env<'_, '_>) {
        let late = late_ps(env);
        let Some(root) = &mut self.root else { return };
        root.watch.since_ps = env.ctx.now();
        if !root.watch.armed && (root.running || !root.watch.joining.is_empty()) {
            root.watch.armed = true;
            env.after(late, Msg::Watch(Watch::Step));
        }
    }

    fn step_late(&mut self, env: &mut Env<'_, '_>) {
        let late = late_ps(env);
        let now = env.now();
        let Some(root) = &mut self.root else { return };
        root.watch.armed = false;
        if !root.running && root.watch.joining.is_empty() {
            return;
        }
        let due = root.watch.since_ps + late;
        if due > now {
            root.watch.armed = true;
            return env.after(due - now, Msg::Watch(Watch::Step));
        }
        root.watch.armed = true;
        root.watch.round += 1;
        root.watch.answered.clear();
        root.watch.progress = 0;
        root.watch.tries = 1;
        self.ask_missing(env);
    }

    fn missing(&self) -> Vec<u16> {
        let answered = self.root.as_ref().map(|r| &r.watch.answered);
        self.watch
            .members
            .ranks
            .iter()
            .copied()
            .filter(|r| *r != self.rank && !answered.is_some_and(|a| a.contains(r)))
            .collect()
    }

    fn ask_missing(&mut self, env: &mut Env<'_, '_>) {
        let round = self.root.as_ref().map_or(0, |r| r.watch.round);
        for rank in self.missing() {
            let to = self.actor_of(rank, env);
            env.control(to, Msg::Ping { round });
        }
        let wait = ping_ps(env);
        env.after(wait, Msg::Watch(Watch::StepAnswers));
    }

    fn step_answers(&mut self, env: &mut Env<'_, '_>) {
        let missing = self.missing();
        let own = self.progress();
        let tries = env.shared.serving.recovery.ping_tries;
        let Some(root) = &mut self.root else { return };
        root.watch.armed = false;
        if !root.running && root.watch.joining.is_empty() {
            return;
        }
        if !missing.is_empty() {
            if root.watch.tries < tries {
                root.watch.armed = true;
                root.watch.tries += 1;
                return self.ask_missing(env);
            }
            return self.cut(&missing, env);
        }
        // All are there. If none has got on since it was last looked, what they wait for was lost.
        let progress = root.watch.progress + own;
        if root.watch.progress_before.replace(progress) == Some(progress) {
            return self.cut(&[], env);
        }
        self.arm(env);
    }

    /// A new epoch without `gone`, with those who came back.
    fn cut(&mut self, gone: &[u16], env: &mut Env<'_, '_>) {
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
        let root = self.root.as_mut().expect("it is the root");
        let members = Arc::new(Members {
            epoch: next,
            root: self.rank,
            ranks: ranks.into_iter().collect(),
        });
        let open = root.running || !root.watch.joining.is_empty();
        root.running = false;
        root.watch.joining = members.ranks.iter().copied().collect();
        root.watch.progress_before = None;
        root.watch.since_ps = now;
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
            // Homes have requests there.
            for &cpu in &env.shared.layout.homes {
                env.control(env.shared.cpu_actor(cpu), Msg::Gone { die });
            }
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
        let experts = env.shared.decode_experts.as_ref();
        let whole = members.count() as u32 == env.shared.layout.decode[self.group as usize].ranks();
        let mut load = 0;
        match experts.map(|e| repaired(e, &members)) {
            Some(Ok(r)) if !whole => {
                load = r.loads.get(&self.rank).copied().unwrap_or(0);
                self.shrunk = Some(r.layers);
            }
            Some(Err(_)) => {
                // Too few are left to hold every expert: nobody can be served here until others are back.
                let (now, me) = (env.now(), env.ctx.me());
                env.tally.note(now, me, NoteKind::ExpertLost);
                self.forget(env);
                // It says so again when others come back.
                self.watch.tried = members.ranks.iter().copied().collect();
                self.watch.members = Arc::new(members);
                return;
            }
            _ => self.shrunk = None,
        }
        let now = env.now();
        self.watch.news_ps = now;
        self.watch.out = false;
        self.watch.said_hello = 0;
        self.watch.asked = 0;
        self.watch.hellos.clear();
        self.watch.steps_from_seq = env.ctx.next_seq();
        self.phase = epoch_start(members.epoch);
        env.fabric.boards[self.board as usize].begin_epoch(self.rank, members.epoch);
        self.step.running = false;
        self.step.parts.clear();
        self.step.attention_busy = false;
        self.step.moe_busy = None;
        self.watch.members = Arc::new(members);
        if load > 0 {
            self.load(Loading::Experts, env);
        } else {
            self.joined(env);
        }
        self.watch_root(env);
    }

    fn joined(&mut self, env: &mut Env<'_, '_>) {
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
        let Some(root) = &mut self.root else { return };
        if !root.watch.back.is_empty() {
            return self.cut(&[], env);
        }
        root.start(&members, env);
        self.arm(env);
    }

    // ---- weights

    /// Asks a CPU for weights: the model cache is spread over all of them.
    fn load(&mut self, what: Loading, env: &mut Env<'_, '_>) {
        self.watch.loading = Some(what);
        let s = env.shared;
        let bytes = match what {
            Loading::All => s.decode_weight_bytes,
            Loading::Experts => {
                let params = s.model.expert_params() * s.serving.precision.weights.bytes();
                let layers = f64::from(s.model.moe_layers() + s.model.mtp_layers);
                (params * layers) as u64
            }
        };
        let cpus = s.machine.cpu_count();
        let cpu = env.ctx.rng().below(u64::from(cpus)) as u32;
        let to = s.cpu_actor(cpu);
        env.control(to, Msg::LoadAsk { bytes });
        // Twice the time it takes, and then another CPU is asked.
        let ps = s.paths.npu_cpu_read.between.per_byte.ps(bytes);
        env.after(4 * ps + late_ps(env), Msg::Watch(Watch::Weights));
    }

    pub fn loaded(&mut self, env: &mut Env<'_, '_>) {
        match self.watch.loading.take() {
            Some(Loading::All) => self.say_hello(env),
            Some(Loading::Experts) => self.joined(env),
            None => {}
        }
    }

    fn weights_late(&mut self, env: &mut Env<'_, '_>) {
        if let Some(what) = self.watch.loading {
            self.load(what, env);
        }
    }
}
