//! Finding a decode die by asking: a few dies, picked at random, say how many slots are free; the best is
//! claimed. When none is free, twice as many are asked, and in the end the request waits where the queue is
//! shortest.

use std::collections::BTreeMap;

use crate::env::Env;
use crate::message::{Claim, Msg};
use crate::runtime::Actor;
use crate::trace::Mark;

/// Most dies asked in one round.
const CHOICES_MAX: u32 = 32;

#[derive(Debug)]
struct Ask {
    claim: Claim,
    choices: u32,
    awaited: u32,
    /// Waiting requests, then free slots (more is better), then the die.
    best: Option<(u32, std::cmp::Reverse<u32>, Actor)>,
}

/// Requests of one asker that are looking for a decode die.
#[derive(Debug, Default)]
pub struct Placer {
    asks: BTreeMap<u64, Ask>,
}

impl Placer {
    /// Starts asking for a place for `claim`.
    pub fn start(&mut self, claim: Claim, env: &mut Env<'_, '_>) {
        let choices = env.shared.serving.placement.decode_choices;
        let request = claim.request;
        let mut ask = Ask {
            claim,
            choices,
            awaited: 0,
            best: None,
        };
        ask_round(request, &mut ask, env);
        self.asks.insert(request, ask);
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
        ask.awaited -= 1;
        let this = (waiting, std::cmp::Reverse(free), from);
        if ask.best.as_ref().is_none_or(|b| this < *b) {
            ask.best = Some(this);
        }
        if ask.awaited > 0 {
            return None;
        }
        let (_, std::cmp::Reverse(free), die) = ask.best.expect("an answer has come");
        if free == 0 && ask.choices < CHOICES_MAX {
            ask.choices *= 2;
            ask_round(request, ask, env);
            return None;
        }
        let ask = self.asks.remove(&request).expect("it was just there");
        env.mark(Mark::SlotFound, request, 0);
        env.control(die, Msg::SlotClaim(Box::new(ask.claim)));
        Some(die)
    }

    /// Stops looking; false if it is not, or no longer, looking for this request. Answers still to come are ignored.
    pub fn cancel(&mut self, request: u64) -> bool {
        self.asks.remove(&request).is_some()
    }

    pub fn is_empty(&self) -> bool {
        self.asks.is_empty()
    }
}

/// Asks `choices` decode dies, picked at random over all decode groups.
fn ask_round(request: u64, ask: &mut Ask, env: &mut Env<'_, '_>) {
    let groups = &env.shared.layout.decode;
    let dies: u64 = groups.iter().map(|g| u64::from(g.ranks())).sum();
    let choices = u64::from(ask.choices).clamp(1, dies);
    ask.awaited = choices as u32;
    // Distinct dies: a random start and a random odd-looking stride that never meets itself within a round.
    let start = env.ctx.rng().below(dies);
    let stride = 1 + env.ctx.rng().below((dies / choices).max(1));
    for i in 0..choices {
        let mut n = (start + i * stride) % dies;
        let mut die = 0;
        for g in groups {
            if n < u64::from(g.ranks()) {
                die = g.dies[n as usize];
                break;
            }
            n -= u64::from(g.ranks());
        }
        let to = env.shared.die_actor(die);
        env.control(to, Msg::SlotAsk { request });
    }
}
