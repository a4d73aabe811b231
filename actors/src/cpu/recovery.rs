//! What a home does about requests that it hears nothing of, and what clients do about a CPU that does not answer.

use std::collections::BTreeSet;

use super::Home;
use super::home::mark_arrived;
use super::open::{Open, Source};
use crate::die::{Watch, pause_ps};
use crate::env::Env;
use crate::fault::NoteKind;
use crate::layout::Role;
use crate::message::Msg;
use crate::request::{ID, Outcome, RequestRecord, RequestSpec, Resubmitted};
use crate::runtime::Actor;
use crate::time::{Ps, ps_from_s};
use crate::trace::Mark;

impl Home {
    /// Something is to be heard of a request by a time.
    pub(super) fn arm(&mut self, id: u64, due_ps: Ps, env: &mut Env<'_, '_>) {
        self.dues.set(due_ps, id);
        self.wake(due_ps, env);
    }

    fn wake(&mut self, due_ps: Ps, env: &mut Env<'_, '_>) {
        if self.timer_ps.is_none_or(|t| due_ps < t || t <= env.now()) {
            self.timer_ps = Some(due_ps);
            env.at(due_ps, Msg::Watch(Watch::Overdue));
        }
    }

    /// Timer: looks after requests that something should have been heard of.
    pub fn overdue(&mut self, env: &mut Env<'_, '_>) {
        for (request, die) in self.placer.overdue(env) {
            self.claimed(request, die, env);
        }
        let now = env.now();
        if self.timer_ps.is_none_or(|t| t > now) {
            return;
        }
        self.timer_ps = None;
        for id in self.dues.late(now, &self.open) {
            self.look_after(id, env);
            if let Some(open) = self.open.get(&id) {
                self.dues.set(open.due_ps, id);
            }
        }
        if let Some(due_ps) = self.dues.next(&self.open) {
            self.wake(due_ps.max(now + 1), env);
        }
    }

    fn look_after(&mut self, id: u64, env: &mut Env<'_, '_>) {
        let r = &env.shared.serving.recovery;
        let now = env.now();
        let (ping_ps, suspect_ps) = (ps_from_s(r.ping_ms * 1e-3), ps_from_s(r.suspect_ms * 1e-3));
        let (tries, give_up_ps) = (r.ping_tries, ps_from_s(r.give_up_s));
        let Some(open) = self.open.get_mut(&id) else {
            return;
        };
        let Some(holder) = open.holder else {
            // Nobody has it yet.
            for silent in std::mem::take(&mut open.backlog_awaited) {
                self.suspects.insert(silent, now + suspect_ps);
                note_silent(&mut self.silent, silent, env);
            }
            if open.seeking_ps + give_up_ps <= now {
                let what = if env.shared.phase == crate::launch::Phase::Decode {
                    "decode die"
                } else {
                    "prefill group"
                };
                let name = open.name();
                let asked = self.placer.asked(name).unwrap_or(open.backlog_asked);
                let why = open.untaken(what, r.give_up_s, lost(&self.gone, asked, env));
                self.placer.drop_request(name);
                return self.end(id, Outcome::Failed(why), env);
            }
            if env.shared.phase == crate::launch::Phase::Decode {
                open.due_ps = now + ps_from_s(r.quiet_ms * 1e-3);
            } else if !self.send_prompt_if_any(id, env) {
                self.ask_prefill_again(id, env);
            }
            return;
        };
        if open.asked >= tries {
            self.suspects.insert(holder, now + suspect_ps);
            note_silent(&mut self.silent, holder, env);
            let why = format!("{} did not answer", address(holder, env));
            return self.retry(id, why, holder, env);
        }
        open.asked += 1;
        open.due_ps = now + ping_ps;
        let request = open.name();
        env.control(holder, Msg::Ask { request });
    }

    /// No prefill group could take a request: others are asked, after a pause that is doubled each time.
    fn ask_prefill_again(&mut self, id: u64, env: &mut Env<'_, '_>) {
        let give_up_ps = ps_from_s(env.shared.serving.recovery.give_up_s);
        let open = self.open.get_mut(&id).expect("it is looked after");
        let again_ps = open.backlog_asked_ps + pause_ps(open.refused, env);
        if again_ps > env.now() {
            open.due_ps = again_ps.min(open.seeking_ps + give_up_ps);
            return;
        }
        open.refused += 1;
        self.ask_prefill(id, env);
    }

    /// Sends the prompt if any group has answered that can take it.
    fn send_prompt_if_any(&mut self, id: u64, env: &mut Env<'_, '_>) -> bool {
        self.open.get(&id).is_some_and(Open::has_offer) && self.send_prompt(id, env)
    }

    /// Who was asked whether it has a request says so. It is asked again later each time.
    pub fn answer(&mut self, from: Actor, request: u64, held: bool, env: &mut Env<'_, '_>) {
        let now = env.now();
        let r = &env.shared.serving.recovery;
        let [quiet_ps, most_ps] = [r.quiet_ms, r.quiet_max_ms].map(|ms| ps_from_s(ms * 1e-3));
        let Some(open) = self.current(request).filter(|o| o.holder == Some(from)) else {
            return;
        };
        if held {
            open.asked = 0;
            let longer_ps = quiet_ps
                .saturating_mul(1 << open.waits.min(32))
                .min(most_ps);
            let due_ps = now + longer_ps.max(quiet_ps);
            open.waits += 1;
            open.due_ps = due_ps;
            self.dues.set(due_ps, request & ID);
        } else {
            let why = format!("{} lost it", address(from, env));
            self.retry(request & ID, why, from, env);
        }
    }

    /// A die is gone, with all that it had.
    pub fn gone(&mut self, die: Actor, env: &mut Env<'_, '_>) {
        self.gone.insert(die);
        let lost: Vec<u64> = self
            .open
            .iter()
            .filter(|(_, o)| o.holder == Some(die))
            .map(|(id, _)| *id)
            .collect();
        for id in lost {
            let why = format!("{} was lost", address(die, env));
            self.retry(id, why, die, env);
        }
    }

    /// A prefill group gives a request back.
    pub fn refused(&mut self, from: Actor, request: u64, env: &mut Env<'_, '_>) {
        if self.current(request).is_some() {
            let suspect_ps = ps_from_s(env.shared.serving.recovery.suspect_ms * 1e-3);
            self.suspects.insert(from, env.now() + suspect_ps);
            let why = format!("the group of {} lost a die", address(from, env));
            self.retry(request & ID, why, from, env);
        }
    }

    /// No decode die takes a request; `asked` is one of those that were asked last.
    pub fn unplaced(&mut self, request: u64, asked: Actor, env: &mut Env<'_, '_>) {
        let from = env.from;
        // A home that looks for a slot itself has nothing to let go of.
        if from != env.ctx.me() {
            env.control(from, Msg::Release { request });
        }
        let give_up_s = env.shared.serving.recovery.give_up_s;
        let lost = lost(&self.gone, asked, env);
        let Some(open) = self.current(request) else {
            return;
        };
        let why = open.untaken("decode die", give_up_s, lost);
        self.end(request & ID, Outcome::Failed(why), env);
    }

    /// Starts a request again: what it has delivered is part of its prompt now.
    pub(super) fn retry(&mut self, id: u64, why: String, cause: Actor, env: &mut Env<'_, '_>) {
        let most = env.shared.serving.recovery.retries_max.min(RETRIES_MAX);
        let now = env.now();
        let Some(open) = self.open.get_mut(&id) else {
            return;
        };
        if open.cancelling {
            return self.end(id, Outcome::Cancelled, env);
        }
        env.tally.retried.push((now, cause, id));
        let request = open.name();
        if let Some(holder) = open.holder.take() {
            env.control(holder, Msg::Release { request });
        }
        self.placer.drop_request(request);
        if open.retries >= most {
            let why = format!("given up after {most} retries: {why}");
            return self.end(id, Outcome::Failed(why), env);
        }
        let give_up_s = env.shared.serving.recovery.give_up_s;
        if open.seeking_ps + ps_from_s(give_up_s) <= now && open.retries > 0 {
            let why = format!("given up after {give_up_s} s without a token: {why}");
            return self.end(id, Outcome::Failed(why), env);
        }
        open.retries += 1;
        open.why = why;
        env.mark(Mark::Retried, id, 0);
        self.seek(id, env);
    }

    // ---- clients

    /// This CPU has lost what it knew; what its clients know remains.
    pub fn forget(&mut self) {
        self.placer = crate::die::Placer::default();
        self.suspects.clear();
        self.gone.clear();
        self.silent.clear();
        self.timer_ps = None;
        self.forget_switch();
    }

    /// It is back: its clients, whose connections broke, put their requests in again.
    pub fn reconnect(&mut self, env: &mut Env<'_, '_>) {
        let me = env.ctx.me();
        let me_address = address(me, env);
        for id in self.open.keys().copied().collect::<Vec<_>>() {
            self.retry(id, format!("{me_address} restarted"), me, env);
        }
    }

    /// The clients of this CPU, which does not answer, turn to the next.
    pub fn leave(&mut self, env: &mut Env<'_, '_>) {
        let me = env.ctx.me();
        let now = env.now();
        let why = format!("{} did not answer", address(me, env));
        let closed = matches!(self.source, Source::Closed { .. });
        // Without requests here nothing waits: new ones come to other CPUs from now on.
        let found = match self.open.is_empty() {
            true => NoteKind::Recovered,
            false => NoteKind::Noticed,
        };
        env.tally.note(now, me, found);
        for (id, o) in std::mem::take(&mut self.open) {
            env.tally.retried.push((now, me, id));
            let r = Resubmitted {
                spec: o.spec,
                first_token_ps: o.first_token_ps,
                delivered: o.delivered,
                cached: o.cached,
                retries: o.retries + 1,
                cancelling: o.cancelling,
                hops: 0,
                left: me,
                origin: o.origin.or(closed.then_some(me)),
                die: o.die,
                why: why.clone(),
            };
            self.pass_on(r, 0, env);
        }
        self.forget();
    }

    /// A client turns to another CPU after `wait_ps`.
    fn pass_on(&mut self, mut r: Resubmitted, wait_ps: Ps, env: &mut Env<'_, '_>) {
        let homes = &env.shared.layout.homes;
        r.hops += 1;
        if r.hops as usize >= homes.len().max(2) {
            let now = env.now();
            env.mark(Mark::Ended, r.spec.id, 0);
            env.ended(RequestRecord {
                id: r.spec.id,
                home: self.cpu,
                arrival_ps: r.spec.arrival_ps,
                prefill_start_ps: 0,
                first_token_ps: r.first_token_ps,
                end_ps: now,
                prompt_tokens: r.spec.prompt_tokens,
                cached_tokens: r.cached,
                output_tokens: r.delivered,
                retries: r.retries,
                outcome: Outcome::Failed(format!(
                    "no CPU answered, {} and all others being lost",
                    address(r.left, env)
                )),
            });
            if let Some(origin) = r.origin {
                env.control(origin, Msg::StreamFree { die: r.die });
            }
            return;
        }
        let place = homes.iter().position(|&c| c == self.cpu).unwrap_or(0);
        let next = homes[(place + stride(homes.len())) % homes.len()];
        let next = env.shared.cpu_actor(next);
        env.control_after(wait_ps, next, Msg::Resubmit(Box::new(r)));
    }

    /// A client turns to this CPU, which is not there (`stopped`), or is.
    pub fn resubmitted(&mut self, r: Resubmitted, stopped: bool, env: &mut Env<'_, '_>) {
        if stopped {
            let wait_ps = ps_from_s(env.shared.serving.recovery.client_ms * 1e-3);
            self.pass_on(r, wait_ps, env);
        } else {
            // Who came to the CPU that is gone is served here.
            env.tally.note(env.ctx.now(), r.left, NoteKind::Recovered);
            self.take_in(r, env);
        }
    }

    /// A client's first try, at a CPU that is not there.
    pub fn submit_elsewhere(
        &mut self,
        mut spec: RequestSpec,
        die: Option<Actor>,
        env: &mut Env<'_, '_>,
    ) {
        let closed = matches!(self.source, Source::Closed { .. });
        if closed {
            spec.arrival_ps = env.now();
        }
        env.offered();
        let me = env.ctx.me();
        mark_arrived(&spec, env);
        let r = Resubmitted {
            spec,
            first_token_ps: 0,
            delivered: 0,
            cached: 0,
            retries: 0,
            cancelling: false,
            hops: 0,
            left: me,
            origin: closed.then_some(me),
            die,
            why: String::new(),
        };
        let wait_ps = ps_from_s(env.shared.serving.recovery.client_ms * 1e-3);
        self.pass_on(r, wait_ps, env);
    }

    /// As `arrival`, at a CPU that is not there.
    pub fn arrival_elsewhere(&mut self, env: &mut Env<'_, '_>) {
        for (spec, die) in self.source.due(env) {
            self.submit_elsewhere(spec, die, env);
        }
    }

    /// A stream's request has ended elsewhere.
    pub fn stream_free(&mut self, die: Option<Actor>, stopped: bool, env: &mut Env<'_, '_>) {
        if !stopped {
            self.next_of_stream(die, env);
        } else if let Some(next) = self.source.next() {
            self.submit_elsewhere(next, die, env);
        }
    }
}

/// Tries are told apart by eight bits.
const RETRIES_MAX: u32 = 250;

/// How far from a CPU that does not answer the one is that its clients turn to: many are lost beside each other, so it is
/// not the next. Whoever goes on so comes to all `homes`.
fn stride(homes: usize) -> usize {
    let common = |mut a: usize, mut b: usize| {
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    // The golden ratio: later steps fall between earlier ones.
    let from = homes * 618 / 1_000;
    (from..).find(|s| common(homes, *s) == 1).unwrap_or(1)
}

/// A part does not answer. Of decode dies their group says so, of the root of a prefill group only who asks it can.
fn note_silent(silent: &mut BTreeSet<Actor>, part: Actor, env: &mut Env<'_, '_>) {
    let prefill = env.shared.layout.roles.get(part as usize);
    if matches!(prefill, Some(Role::Prefill { .. })) && silent.insert(part) {
        let now = env.now();
        env.tally.note(now, part, NoteKind::Noticed);
    }
}

/// What is known to be lost, in words; else that `asked` was in vain.
fn lost(gone: &BTreeSet<Actor>, asked: Actor, env: &Env<'_, '_>) -> String {
    let Some(first) = gone.first() else {
        return format!("{} having been asked last", address(asked, env));
    };
    let others = match gone.len() - 1 {
        0 => String::new(),
        1 => " and another die".into(),
        n => format!(" and {n} other dies"),
    };
    format!("{}{others} being lost", address(*first, env))
}

fn address(part: Actor, env: &Env<'_, '_>) -> String {
    env.shared
        .machine
        .address(supernode_topology::ActorId(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_come_to_all_cpus_and_soon_past_those_that_are_lost_together() {
        for homes in 1..200 {
            let step = stride(homes);
            let mut seen: Vec<usize> = (0..homes).map(|k| k * step % homes).collect();
            if homes >= 8 {
                // Half of them are lost, from the first on.
                let tries = seen.iter().position(|c| *c >= homes.div_ceil(2)).unwrap();
                assert!(tries <= 2, "{homes}: {tries}");
            }
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..homes), "{homes}");
        }
    }
}
