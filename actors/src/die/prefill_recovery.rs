//! How a prefill group deals with ranks that are gone. Its ranks share every layer, so it cannot go on without one:
//! the root, finding a batch late and a rank silent, sends its prompts back to their homes and takes no more until all
//! are there again. If all answer and the batch does not get on, messages were lost, and its prompts go back too.

use std::collections::BTreeSet;

use super::PrefillRank;
use super::calibrate::Calibrator;
use super::members::Watch;
use super::prefill_root::PrefillRoot;
use super::roll_call::{RollCall, ask_for_weights, late_ps, suspect_ps, tell_homes};
use crate::env::Env;
use crate::fabric::{epoch, epoch_start};
use crate::fault::NoteKind;
use crate::layout::Role;
use crate::message::{BatchWork, Msg};
use crate::runtime::Actor;
use crate::time::{PS_PER_MS, Ps};

/// What the root knows of those who are late.
#[derive(Debug, Default)]
pub struct GroupWatch {
    call: RollCall,
    /// Some rank is gone: no prompts until all are there.
    pub down: bool,
    asked_ps: Ps,
    gone: BTreeSet<u16>,
    /// The batch that is watched.
    batch: u64,
    /// Batches are of this.
    pub epoch: u32,
}

/// What any rank remembers of steps that were given up.
#[derive(Debug, Default)]
pub struct Life {
    /// It has no weights yet.
    loading: bool,
    /// Weights are on their way to all ranks of the group, and this one has not all of its own.
    lacking: bool,
    /// Timers of a batch that was set before this one mean nothing any more.
    pub(super) from_seq: u64,
    epoch: u32,
    /// A batch that has come waits until then for its CPU.
    launching_until_ps: Ps,
}

impl PrefillRank {
    fn die_of(&self, rank: u16, env: &Env<'_, '_>) -> Actor {
        env.shared
            .die_actor(env.shared.layout.prefill[usize::from(self.group)].dies[usize::from(rank)])
    }

    /// A timer of a batch that was given up.
    pub(super) fn is_stale(&self, env: &Env<'_, '_>) -> bool {
        self.work.is_none() || env.ctx.event_seq() < self.life.from_seq
    }

    /// Whether a batch is for this rank; what it is at is given up for it.
    pub(super) fn takes_batch(&mut self, work: &BatchWork, env: &mut Env<'_, '_>) -> bool {
        if self.life.loading || work.epoch < self.life.epoch {
            return false;
        }
        if work.epoch > self.life.epoch {
            // That the batch before was given up has not been heard here.
            self.reset(work.epoch, env);
        }
        if self.work.is_some() {
            self.life.from_seq = env.ctx.next_seq();
        }
        true
    }

    /// The collective with this number is not of the batch that runs.
    pub(super) fn is_old(&self, phase: u32) -> bool {
        self.work.is_none() || epoch(phase) != epoch(self.phases[0])
    }

    pub fn watch(&mut self, what: Watch, env: &mut Env<'_, '_>) {
        match what {
            Watch::Step => self.batch_late(env),
            Watch::StepAnswers => self.batch_answers(env),
            Watch::Weights => {
                if self.life.loading && env.shared.weights.is_none() {
                    ask_for_weights(env.shared.prefill_weight_bytes, env);
                }
            }
            Watch::Overdue => {
                self.placer.overdue(env);
                // What no die took for long has gone back to its home.
                let placer = &self.placer;
                self.handoffs.retain(|request, _| placer.has(*request));
                if let Some(root) = &mut self.root {
                    root.overdue(env);
                }
            }
            Watch::Root | Watch::RootAnswer | Watch::Blocks => {}
        }
    }

    /// A batch has begun.
    pub(super) fn arm(&mut self, env: &mut Env<'_, '_>) {
        let late = late_ps(env);
        let Some(root) = &mut self.root else { return };
        let batch = root.batches;
        if root.is_running() && std::mem::replace(&mut root.watch.batch, batch) != batch {
            root.watch.call.since_ps = root.batch_from_ps();
            root.watch.call.forget_progress();
        }
        if root.is_busy() && !root.watch.call.armed {
            root.watch.call.armed = true;
            env.after(late, Msg::Watch(Watch::Step));
        }
    }

    fn batch_late(&mut self, env: &mut Env<'_, '_>) {
        let (late, now) = (late_ps(env), env.now());
        let Some(root) = &mut self.root else { return };
        root.watch.call.armed = false;
        let told = root.watch.call.told;
        if !root.is_busy() && !told {
            return;
        }
        // Where parts fail, ranks are asked now and then whether they are there; else only when the batch is late.
        let due = if env.shared.has_faults() {
            root.watch.call.since_ps + late
        } else {
            root.late_ps() + late
        };
        if due > now && !told {
            root.watch.call.armed = true;
            return env.after(due - now, Msg::Watch(Watch::Step));
        }
        root.watch.call.armed = true;
        self.ask_all(env);
    }

    /// A neighbour of a rank says that it is gone: all are asked. Of a CPU: its blocks are not looked for.
    pub fn said_gone(&mut self, part: Actor, env: &mut Env<'_, '_>) {
        let suspect_ps = suspect_ps(env);
        let Some(root) = &mut self.root else { return };
        let Some(role) = env.shared.layout.roles.get(part as usize) else {
            root.suspects.insert(part, env.ctx.now() + suspect_ps);
            return;
        };
        let known = |rank: &u16| self.life.loading || root.watch.gone.contains(rank);
        let Role::Prefill { rank, .. } = role else {
            return;
        };
        if known(rank) {
            return;
        }
        root.watch.call.told = true;
        if !root.watch.call.armed {
            root.watch.call.armed = true;
            self.ask_all(env);
        }
    }

    fn ask_all(&mut self, env: &mut Env<'_, '_>) {
        let Some(root) = &mut self.root else { return };
        root.watch.call.begin();
        root.watch.asked_ps = env.ctx.now();
        self.ask_missing(env);
    }

    fn missing(&self) -> Vec<u16> {
        let call = self.root.as_ref().map(|r| &r.watch.call);
        call.map_or(Vec::new(), |c| c.missing(0..self.ranks as u16, self.rank))
    }

    fn ask_missing(&mut self, env: &mut Env<'_, '_>) {
        let missing = self.missing();
        let dies: Vec<Actor> = missing.iter().map(|&r| self.die_of(r, env)).collect();
        if let Some(root) = &self.root {
            root.watch.call.ask(dies, env);
        }
    }

    fn progress(&self, now: Ps) -> u64 {
        let waits = now < self.life.launching_until_ps;
        let at = if waits { now / PS_PER_MS } else { 0 };
        at + u64::from(self.phases[0]) + u64::from(self.phases[1])
    }

    /// A batch that has come is launched at this time.
    pub(super) fn launching(&mut self, until_ps: Ps) {
        self.life.launching_until_ps = until_ps;
    }

    pub fn ping(&mut self, from: Actor, round: u32, env: &mut Env<'_, '_>) {
        if self.life.loading {
            return;
        }
        let progress = self.progress(env.now());
        let epoch = u32::from(self.life.lacking);
        env.control(
            from,
            Msg::Pong {
                round,
                epoch,
                progress,
            },
        );
    }

    /// A rank is there; `lacking`: without all of its weights.
    pub fn pong(
        &mut self,
        from: Actor,
        round: u32,
        (progress, lacking): (u64, bool),
        env: &mut Env<'_, '_>,
    ) {
        let Role::Prefill { group, rank } = env.shared.layout.roles[from as usize] else {
            return;
        };
        let Some(root) = &mut self.root else { return };
        let new = group == self.group && root.watch.call.answer(rank, round, progress);
        // A root that has lost what it knew, or has not heard, learns who lacks weights.
        if new && lacking {
            root.lacking.insert(rank);
        } else if new {
            self.weights_in(from, env);
        }
        let Some(root) = &mut self.root else { return };
        if new && root.watch.down && self.missing().is_empty() {
            self.begin_again(env);
        }
    }

    fn batch_answers(&mut self, env: &mut Env<'_, '_>) {
        let missing = self.missing();
        let own = self.progress(env.now());
        let tries = env.shared.serving.recovery.ping_tries;
        let now = env.now();
        let Some(root) = &mut self.root else { return };
        root.watch.call.armed = false;
        if !missing.is_empty() {
            let asks = root.watch.down || root.is_busy() || root.watch.call.told;
            if asks && root.watch.call.once_more(tries) {
                root.watch.call.armed = !root.watch.down;
                return self.ask_missing(env);
            }
            if asks {
                self.go_down(&missing, env);
            }
            return;
        }
        root.watch.call.told = false;
        if root.watch.down || !root.is_busy() {
            return;
        }
        // While weights are loaded, each die sees to it itself that they come.
        let late = root.is_running() && root.late_ps() + late_ps(env) <= now;
        if late && !root.watch.call.got_on(own) {
            let me = env.ctx.me();
            env.tally.note(now, me, NoteKind::RolledBack);
            root.refuse_all(env);
            return self.begin_again(env);
        }
        root.watch.call.since_ps = now;
        root.watch.call.armed = true;
        env.after(late_ps(env), Msg::Watch(Watch::Step));
    }

    /// Some ranks are gone: all prompts go back, and no new ones are taken.
    fn go_down(&mut self, gone: &[u16], env: &mut Env<'_, '_>) {
        let now = env.now();
        for &rank in gone {
            let die = self.die_of(rank, env);
            let root = self.root.as_mut().expect("a root finds ranks gone");
            root.lacking.remove(&rank);
            if root.watch.gone.insert(rank) {
                env.tally.note(now, die, NoteKind::Noticed);
                tell_homes(die, env);
            }
        }
        let root = self.root.as_mut().expect("a root finds ranks gone");
        root.watch.down = true;
        root.watch.call.told = false;
        root.refuse_all(env);
        self.give_up(env);
    }

    /// All ranks that can be reached give up what they are at.
    fn give_up(&mut self, env: &mut Env<'_, '_>) {
        let at = self.life.epoch.max(epoch(self.phases[0]));
        let next = at.max(epoch(self.phases[1])) + 1;
        for rank in (0..self.ranks as u16).filter(|&r| r != self.rank) {
            let to = self.die_of(rank, env);
            env.control(to, Msg::Reset { epoch: next });
        }
        if let Some(root) = &mut self.root {
            root.watch.epoch = next;
        }
        self.reset(next, env);
    }

    /// All are there: from here on with a clean board.
    fn begin_again(&mut self, env: &mut Env<'_, '_>) {
        let now = env.now();
        let me = self.die_of(self.rank, env);
        let root = self.root.as_mut().expect("a root begins again");
        root.watch.down = false;
        let gone = std::mem::take(&mut root.watch.gone);
        for rank in gone {
            let die = self.die_of(rank, env);
            env.tally.note(now, die, NoteKind::Recovered);
        }
        env.tally.note(now, me, NoteKind::Recovered);
        self.give_up(env);
    }

    /// The batch that runs is given up.
    pub fn reset(&mut self, epoch: u32, env: &mut Env<'_, '_>) {
        self.work = None;
        self.life.epoch = epoch;
        self.life.from_seq = env.ctx.next_seq();
        self.phases = [epoch_start(epoch); 2];
        env.fabric.boards[usize::from(self.group)].begin_epoch(self.rank, epoch);
    }

    /// A rank is back: is everyone there now?
    pub fn hello(&mut self, from: Actor, env: &mut Env<'_, '_>) {
        self.weights_in(from, env);
        let Some(root) = &mut self.root else { return };
        if !root.watch.down {
            // Nobody had noticed that it was gone; what ran has lost a rank.
            root.watch.down = true;
            root.refuse_all(env);
            self.give_up(env);
        }
        self.ask_all(env);
    }

    /// Somebody wants to put a prompt in, and the group is down: is everyone there now?
    pub(super) fn look_again(&mut self, env: &mut Env<'_, '_>) {
        let pause = suspect_ps(env);
        let now = env.now();
        let again = |r: &PrefillRoot| r.watch.down && r.watch.asked_ps + pause <= now;
        if !self.life.loading && self.root.as_deref().is_some_and(again) {
            self.ask_all(env);
        }
    }

    /// Everything in its memory is gone.
    pub(super) fn forget(&mut self, env: &mut Env<'_, '_>) {
        let slowed = self.slowed.take();
        let phases = self.phases;
        let epoch = self.life.epoch;
        let mut new = Self::new(self.group, self.rank, env.shared);
        new.slowed = slowed;
        new.phases = phases;
        new.life.epoch = epoch;
        new.life.loading = true;
        new.life.from_seq = env.ctx.next_seq();
        if let Some(root) = &mut new.root {
            root.watch.down = true;
            root.watch.epoch = epoch;
        }
        *self = new;
    }

    /// After a restart: the weights are loaded first.
    pub(super) fn restart(&mut self, env: &mut Env<'_, '_>) {
        ask_for_weights(env.shared.prefill_weight_bytes, env);
    }

    /// It hung, and goes on: perhaps the others have given it up.
    pub(super) fn resumed(&mut self, env: &mut Env<'_, '_>) {
        if self.root.is_none() && !self.life.loading {
            // Others wait for it, and begin again when they hear that it is here.
            self.work = None;
            self.life.from_seq = env.ctx.next_seq();
            self.say_hello(env);
        }
    }

    fn say_hello(&mut self, env: &mut Env<'_, '_>) {
        let root = self.die_of(0, env);
        env.control(root, Msg::Hello { epoch: 0 });
    }

    pub fn loaded(&mut self, env: &mut Env<'_, '_>) {
        if !std::mem::take(&mut self.life.loading) {
            return;
        }
        if self.root.is_none() {
            self.say_hello(env);
        } else if self.ranks == 1 {
            self.begin_again(env);
        } else {
            self.ask_all(env);
        }
    }

    /// Weights are on their way to this rank and, as it is told, to all others: no batch starts before all have them.
    pub fn lacks_weights(&mut self, model: u8, env: &mut Env<'_, '_>) {
        self.life.lacking = !self.life.loading;
        let ranks = 0..self.ranks as u16;
        if let Some(root) = &mut self.root {
            root.model = model;
            root.lacking = ranks.collect();
            root.watch.call.since_ps = env.now();
        }
        self.arm(env);
    }

    /// All weights of this die are here.
    pub fn has_weights(&mut self, env: &mut Env<'_, '_>) {
        if std::mem::take(&mut self.life.lacking) {
            let root = self.die_of(0, env);
            env.control(root, Msg::WeightsIn);
        }
        self.loaded(env);
    }

    /// A rank has its weights; when all have, batches start.
    pub fn weights_in(&mut self, from: Actor, env: &mut Env<'_, '_>) {
        let Role::Prefill { rank, .. } = env.shared.layout.roles[from as usize] else {
            return;
        };
        let Some(root) = &mut self.root else { return };
        if root.lacking.remove(&rank) && root.lacking.is_empty() && !root.is_running() {
            root.start(env);
        }
    }

    /// Whether a request is here.
    pub fn has(&self, request: u64) -> bool {
        self.handoffs.contains_key(&request) || self.root.as_ref().is_some_and(|r| r.has(request))
    }

    /// A decode die says whether it has what was claimed there.
    pub fn answer(&mut self, request: u64, held: bool, env: &mut Env<'_, '_>) {
        self.placer.answer(request, held, env);
    }

    /// Its home has started a request again elsewhere.
    pub fn release(&mut self, request: u64, env: &mut Env<'_, '_>) {
        if self.handoffs.remove(&request).is_some() {
            if let Some(die) = self.placer.drop_request(request) {
                env.control(die, Msg::Release { request });
            }
            return;
        }
        if let Some(root) = &mut self.root {
            root.release(request);
        }
    }
}

impl PrefillRoot {
    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Something is under way that all ranks have to answer for.
    fn is_busy(&self) -> bool {
        self.is_running() || !self.lacking.is_empty()
    }

    fn batch_from_ps(&self) -> Ps {
        self.running.as_ref().map_or(0, |r| r.started_ps)
    }

    /// From when on what is under way takes longer than it should. A batch may well take longer than a step of decode: that
    /// is when it is past twice what it was expected to take.
    fn late_ps(&self) -> Ps {
        let batch_ps = self.batch_from_ps() + 2 * self.expected_ps();
        self.watch.call.since_ps.max(batch_ps)
    }

    /// By the operators' estimate, or as drawn.
    fn expected_ps(&self) -> Ps {
        self.running
            .as_ref()
            .map_or(0, |r| r.drawn_ps.unwrap_or(r.estimate_ps))
    }

    fn has(&self, request: u64) -> bool {
        let mut finished = self.running.iter().flat_map(|r| &r.finished);
        self.fetching.contains_key(&request)
            || self.queue.has(request)
            || finished.any(|j| j.prompt.request == request)
    }

    /// Its home has started a request again elsewhere: not worth computing any more. What is being fetched or computed
    /// is dropped when that is over.
    fn release(&mut self, request: u64) {
        if let Some(job) = self.queue.remove(request) {
            self.backlog -= u64::from(job.left());
            return;
        }
        let fetching = self.fetching.get_mut(&request).map(|f| &mut f.job);
        let finished = self.running.iter_mut().flat_map(|r| &mut r.finished);
        for job in fetching.into_iter().chain(finished) {
            if job.prompt.request == request {
                job.released = true;
            }
        }
    }

    /// All prompts go back to their homes.
    fn refuse_all(&mut self, env: &mut Env<'_, '_>) {
        let fetching = std::mem::take(&mut self.fetching)
            .into_values()
            .map(|f| f.job);
        let running = self.running.take().map(|r| r.finished).unwrap_or_default();
        let queued = self.queue.take();
        for job in fetching.chain(running).chain(queued) {
            let request = job.prompt.request;
            let home = env.shared.cpu_actor(job.prompt.home);
            if job.cancelled {
                env.control(home, Msg::Cancelled { request });
            } else if !job.released {
                env.control(home, Msg::Refused { request });
            }
        }
        self.backlog = 0;
        let groups = env.shared.layout.prefill.len();
        self.calibrator = Calibrator::new(self.group, groups);
    }

    /// Timer: owners of blocks that did not answer are passed over, and what they have is computed.
    pub fn overdue(&mut self, env: &mut Env<'_, '_>) {
        let now = env.now();
        if self.timer_ps.is_none_or(|t| t > now) {
            return;
        }
        self.timer_ps = None;
        let late: Vec<u64> = self
            .fetching
            .iter()
            .filter(|(_, f)| f.due_ps <= now)
            .map(|(r, _)| *r)
            .collect();
        let suspect_ps = suspect_ps(env);
        for request in late {
            let f = self.fetching.remove(&request).expect("listed");
            for &owner in &f.silent {
                if self.suspects.insert(owner, now + suspect_ps).is_none() {
                    env.tally.note(now, owner, NoteKind::Noticed);
                }
            }
            let mut job = f.job;
            job.cached_blocks = 0;
            self.enqueue(job, env);
        }
        if let Some(due) = self.fetching.values().map(|f| f.due_ps).min() {
            self.arm_overdue(due.max(now + 1), env);
        }
    }

    pub(super) fn arm_overdue(&mut self, due_ps: Ps, env: &mut Env<'_, '_>) {
        if self.timer_ps.is_none_or(|t| due_ps < t || t <= env.now()) {
            self.timer_ps = Some(due_ps);
            env.at(due_ps, Msg::Watch(Watch::Overdue));
        }
    }
}
