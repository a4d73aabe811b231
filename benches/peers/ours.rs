//! The patterns as a model of the actor runtime: every message has its own time of arrival.

use std::hint::black_box;
use std::time::{Duration, Instant};

use supernode_actors::runtime::{
    Actor, Ctx, Ended, Flow, Model, OUTSIDE, RuntimeConfig, Simulation,
};
use supernode_actors::time::Ps;

use super::pattern::{ACTORS, Pattern, Payload};

/// Least latency of a message, as between NPUs of two nodes.
const LATENCY_PS: Ps = 1_900_000;

struct Peer {
    pattern: Pattern,
    heard: Vec<u32>,
    sum: u64,
}

impl Peer {
    fn round(me: Actor, payload: Payload, ctx: &mut Ctx<'_, Self>) {
        let next = payload.next(me);
        for to in (0..ACTORS).filter(|&to| to != me) {
            // Messages leave one after the other, nanoseconds apart.
            ctx.send_in(LATENCY_PS + Ps::from(to) * 2_000, to, next);
        }
    }
}

impl Model for Peer {
    type Msg = Payload;
    type Bulk = ();

    #[inline(always)]
    fn handle(&mut self, me: Actor, from: Actor, msg: Payload, ctx: &mut Ctx<'_, Self>) {
        self.sum = self.sum.wrapping_add(msg.values[0]);
        match self.pattern {
            Pattern::Ring => {
                if msg.left > 0 {
                    ctx.send_in(
                        LATENCY_PS + Ps::from(me) * 2_000,
                        (me + 1) % ACTORS,
                        msg.next(me),
                    );
                }
            }
            Pattern::FanIn if me == 0 => {
                if from != OUTSIDE {
                    ctx.send_in(LATENCY_PS, from, msg);
                }
            }
            Pattern::FanIn => {
                if msg.left > 0 {
                    ctx.send_in(LATENCY_PS + Ps::from(me) * 2_000, 0, msg.next(me));
                }
            }
            Pattern::AllToAll => {
                if from == OUTSIDE {
                    Self::round(me, msg, ctx);
                    return;
                }
                let heard = &mut self.heard[me as usize];
                *heard += 1;
                if *heard == ACTORS - 1 {
                    *heard = 0;
                    if msg.left > 0 {
                        Self::round(me, msg, ctx);
                    }
                }
            }
        }
    }

    fn absorb(&mut self, (): (), _: &mut Ctx<'_, Self>) {}

    #[inline]
    fn digest(msg: &Payload) -> u64 {
        msg.values[0] ^ u64::from(msg.left)
    }

    fn address(&self, actor: Actor) -> String {
        format!("actor{actor}")
    }
}

pub fn run(pattern: Pattern, shards: usize) -> Duration {
    let config = RuntimeConfig {
        shards,
        owner: (0..ACTORS)
            .map(|a| (a as usize * shards / ACTORS as usize) as u16)
            .collect(),
        lookahead: vec![LATENCY_PS],
        ..RuntimeConfig::single(1, ACTORS as usize)
    };
    let peer = || Peer {
        pattern,
        heard: vec![0; ACTORS as usize],
        sum: 0,
    };
    let mut simulation = Simulation::new(config, (0..shards).map(|_| peer()).collect())
        .expect("the configuration is sound");
    for actor in 0..ACTORS {
        simulation.inject(0, actor, Payload::new(pattern.turns(), actor));
    }
    let started = Instant::now();
    let ended = simulation.run(None, Duration::from_secs(1), &mut |_| Flow::Continue);
    let took = started.elapsed();
    assert_eq!(ended, Ok(Ended::Finished));
    assert_eq!(
        simulation.events(),
        pattern.messages() + u64::from(ACTORS),
        "every message arrives once"
    );
    black_box(simulation.models()[0].sum);
    took
}
