//! Finding a decode die by asking: a few dies, picked at random, say how many slots are free; the best is
//! claimed. When none is free, twice as many are asked, and in the end the request waits where the queue is
//! shortest. Who does not answer in time is left alone for a while; while none serves anybody, the pauses between rounds
//! are doubled. A claim that nothing is heard of is asked after.

use std::collections::BTreeMap;

use super::members::Watch;
use crate::env::Env;
use crate::layout::mix;
use crate::message::{Claim, Msg};
use crate::runtime::Actor;
use crate::time::{Ps, ps_from_s};
use crate::trace::Mark;

/// Most dies asked in one round.
const CHOICES_MAX: u32 = 32;

#[derive(Debug)]
struct Ask {
    claim: Claim,
    choices: u32,
    /// Dies that have not answered, and one of those that were asked.
    awaited: Vec<Actor>,
    asked: Actor,
    /// Waiting requests, then free slots (more is better), then what tells equal dies apart, then the die.
    best: Option<(u32, std::cmp::Reverse<u32>, u64, Actor)>,
    /// When this round began, and rounds before it in which nobody could serve the request.
    asked_ps: Ps,
    refused: u32,
    due_ps: Ps,
    since_ps: Ps,
}

/// A claim that waits for its slot.
#[derive(Debug)]
struct Claimed {
    claim: Claim,
    die: Actor,
    due_ps: Ps,
    asked: u32,
}

/// Requests of one asker that are looking for a decode die.
#[derive(Debug, Default)]
pub struct Placer {
    asks: BTreeMap<u64, Ask>,
    claimed: BTreeMap<u64, Claimed>,
    suspects: BTreeMap<Actor, Ps>,
    timer_ps: Option<Ps>,
}

impl Placer {
    /// Starts asking for a place for `claim`.
    pub fn start(&mut self, claim: Claim, env: &mut Env<'_, '_>) {
        let choices = env.shared.serving.placement.decode_choices;
        let now = env.now();
        self.ask(claim, choices, 0, now, env);
    }

    fn ask(
        &mut self,
        claim: Claim,
        choices: u32,
        refused: u32,
        since_ps: Ps,
        env: &mut Env<'_, '_>,
    ) {
        let request = claim.request;
        let now = env.now();
        self.suspects.retain(|_, until| *until > now);
        let awaited = ask_round(request, choices, &self.suspects, env);
        let due_ps = now + ps_from_s(env.shared.serving.recovery.reply_ms * 1e-3);
        self.asks.insert(
            request,
            Ask {
                claim,
                choices,
                asked: awaited[0],
                awaited,
                best: None,
                asked_ps: now,
                refused,
                due_ps,
                since_ps,
            },
        );
        self.arm(due_ps, env);
    }

    fn arm(&mut self, due_ps: Ps, env: &mut Env<'_, '_>) {
        if self.timer_ps.is_none_or(|t| due_ps < t || t <= env.now()) {
            self.timer_ps = Some(due_ps);
            env.at(due_ps, Msg::Watch(Watch::Overdue));
        }
    }

    /// An answer; claims the best place when it was the last, and returns who was asked for it.
    pub fn reply(
        &mut self,
        from: Actor,
        request: u64,
        free: u32,
        waiting: u32,
        env: &mut Env<'_, '_>,
    ) -> Option<Actor> {
        let ask = self.asks.get_mut(&request)?;
        let i = ask.awaited.iter().position(|&d| d == from)?;
        ask.awaited.swap_remove(i);
        // Many may look for a queue at once: what is as good for all is not the same die for all.
        let tie = if free == 0 {
            mix(request ^ mix(u64::from(from)))
        } else {
            0
        };
        let this = (waiting, std::cmp::Reverse(free), tie, from);
        // A die that serves nobody now says that its queue is endless.
        if waiting != u32::MAX && ask.best.as_ref().is_none_or(|b| this < *b) {
            ask.best = Some(this);
        }
        if ask.awaited.is_empty() {
            self.decide(request, env)
        } else {
            None
        }
    }

    fn decide(&mut self, request: u64, env: &mut Env<'_, '_>) -> Option<Actor> {
        let now = env.now();
        let mut ask = self.asks.remove(&request)?;
        let since_ps = ask.since_ps;
        let Some((_, std::cmp::Reverse(free), _, die)) = ask.best else {
            let give_up_ps = since_ps + ps_from_s(env.shared.serving.recovery.give_up_s);
            let again_ps = ask.asked_ps + pause_ps(ask.refused, env);
            if give_up_ps <= now {
                let home = env.shared.cpu_actor(ask.claim.home);
                let asked = ask.asked;
                env.control(home, Msg::Unplaced { request, asked });
            } else if again_ps > now {
                // None of them serves anybody: others are asked after a pause.
                ask.due_ps = again_ps.min(give_up_ps);
                self.arm(ask.due_ps, env);
                self.asks.insert(request, ask);
            } else {
                let choices = (ask.choices * 2).min(CHOICES_MAX);
                self.ask(ask.claim, choices, ask.refused + 1, since_ps, env);
            }
            return None;
        };
        if free == 0 && ask.choices < CHOICES_MAX {
            self.ask(ask.claim, ask.choices * 2, 0, since_ps, env);
            return None;
        }
        env.mark(Mark::SlotFound, request, 0);
        env.control(die, Msg::SlotClaim(Box::new(ask.claim.clone())));
        if !ask.claim.kv_in_place {
            let due_ps = env.now() + quiet_ps(env);
            self.claimed.insert(
                request,
                Claimed {
                    claim: ask.claim,
                    die,
                    due_ps,
                    asked: 0,
                },
            );
            self.arm(due_ps, env);
        }
        Some(die)
    }

    /// The slot has been granted by `die`; false if it was not claimed there, or no more.
    pub fn granted(&mut self, request: u64, die: Actor) -> bool {
        let here = self.claimed.get(&request).is_some_and(|c| c.die == die);
        here && self.claimed.remove(&request).is_some()
    }

    /// The die that a claim waits at says whether it has it.
    pub fn answer(&mut self, request: u64, held: bool, env: &mut Env<'_, '_>) {
        let Some(c) = self.claimed.get_mut(&request) else {
            return;
        };
        if held {
            c.asked = 0;
            c.due_ps = env.now() + quiet_ps(env);
        } else {
            let c = self.claimed.remove(&request).expect("it was just there");
            self.start(c.claim, env);
        }
    }

    /// Timer: looks for answers that did not come. Returns requests that were claimed without them, with the die of each.
    pub fn overdue(&mut self, env: &mut Env<'_, '_>) -> Vec<(u64, Actor)> {
        let now = env.now();
        let mut claimed = Vec::new();
        if self.timer_ps.is_none_or(|t| t > now) {
            return claimed;
        }
        self.timer_ps = None;
        let r = &env.shared.serving.recovery;
        let (suspect_ps, ping_ps, tries) = (
            ps_from_s(r.suspect_ms * 1e-3),
            ps_from_s(r.ping_ms * 1e-3),
            r.ping_tries,
        );
        let late: Vec<u64> = self
            .asks
            .iter()
            .filter(|(_, a)| a.due_ps <= now)
            .map(|(r, _)| *r)
            .collect();
        for request in late {
            for die in std::mem::take(&mut self.asks.get_mut(&request).expect("listed").awaited) {
                self.suspects.insert(die, now + suspect_ps);
            }
            claimed.extend(self.decide(request, env).map(|die| (request, die)));
        }
        let mut lost = Vec::new();
        for (request, c) in self.claimed.iter_mut().filter(|(_, c)| c.due_ps <= now) {
            if c.asked >= tries {
                lost.push(*request);
                continue;
            }
            c.asked += 1;
            c.due_ps = now + ping_ps;
            let request = *request;
            env.control(c.die, Msg::Ask { request });
        }
        for request in lost {
            let c = self.claimed.remove(&request).expect("listed");
            self.suspects.insert(c.die, now + suspect_ps);
            self.start(c.claim, env);
        }
        let asks = self.asks.values().map(|a| a.due_ps);
        let next = asks.chain(self.claimed.values().map(|c| c.due_ps)).min();
        if let Some(due) = next {
            self.arm(due.max(now + 1), env);
        }
        claimed
    }

    /// Stops looking; false if it is not, or no longer, looking for this request. Answers still to come are ignored.
    pub fn cancel(&mut self, request: u64) -> bool {
        self.asks.remove(&request).is_some()
    }

    /// Forgets a request in whatever state; the die it was claimed at, if so.
    pub fn drop_request(&mut self, request: u64) -> Option<Actor> {
        self.asks.remove(&request);
        self.claimed.remove(&request).map(|c| c.die)
    }

    /// One of the dies that were asked last to take a request.
    pub fn asked(&self, request: u64) -> Option<Actor> {
        self.asks.get(&request).map(|ask| ask.asked)
    }

    /// It is looking for this request's place.
    pub fn has(&self, request: u64) -> bool {
        self.asks.contains_key(&request) || self.claimed.contains_key(&request)
    }

    pub fn is_empty(&self) -> bool {
        self.asks.is_empty() && self.claimed.is_empty()
    }
}

fn quiet_ps(env: &Env<'_, '_>) -> Ps {
    ps_from_s(env.shared.serving.recovery.quiet_ms * 1e-3)
}

/// How long a request that nobody can serve is let be after the round of questions before it is offered again: as long as
/// answers are waited for, and twice as long after each round in vain, up to as long as a silent part is left alone.
pub fn pause_ps(refused: u32, env: &Env<'_, '_>) -> Ps {
    let r = &env.shared.serving.recovery;
    let [first_ps, most_ps] = [r.reply_ms, r.suspect_ms].map(|ms| ps_from_s(ms * 1e-3));
    let doubled_ps = first_ps.saturating_mul(1 << refused.min(32));
    doubled_ps.min(most_ps).max(first_ps)
}

/// Asks `choices` decode dies, picked at random over all decode groups; those that did not answer lately are passed
/// over as long as there are others.
fn ask_round(
    request: u64,
    choices: u32,
    suspects: &BTreeMap<Actor, Ps>,
    env: &mut Env<'_, '_>,
) -> Vec<Actor> {
    let groups = &env.shared.layout.decode;
    let dies: u64 = groups.iter().map(|g| u64::from(g.ranks())).sum();
    let choices = u64::from(choices).clamp(1, dies);
    // Distinct dies: a random start and a random odd-looking stride that never meets itself within a round.
    let start = env.ctx.rng().below(dies);
    let stride = 1 + env.ctx.rng().below((dies / choices).max(1));
    let die_at = |mut n: u64| {
        for g in groups {
            if n < u64::from(g.ranks()) {
                return g.dies[n as usize];
            }
            n -= u64::from(g.ranks());
        }
        groups[0].dies[0]
    };
    let mut asked = Vec::new();
    for i in 0..choices {
        let first = (start + i * stride) % dies;
        let to = (0..dies)
            .map(|k| env.shared.die_actor(die_at((first + k) % dies)))
            .find(|d| !suspects.contains_key(d) && !asked.contains(d))
            .unwrap_or_else(|| env.shared.die_actor(die_at(first)));
        if !asked.contains(&to) {
            asked.push(to);
            env.control(to, Msg::SlotAsk { request });
        }
    }
    asked
}
