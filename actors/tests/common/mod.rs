//! A small machine for tests of the runtime: nodes of four actors that send to each other at random, singly and in
//! bulk. Nodes are never split over shards, so what happens depends on the seed alone.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use supernode_actors::runtime::{
    Actor, Ctx, Ended, Flow, Model, RuntimeConfig, RuntimeError, Simulation,
};
use supernode_actors::time::Ps;

pub const PER_NODE: u32 = 4;
/// Least time between nodes, by class.
pub const LOOKAHEAD: [Ps; 2] = [1_000, 50_000];
/// Explicit sequence numbers start here, out of the way of the counted ones.
const BULK_SEQ: u64 = 1 << 39;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Msg {
    /// Goes on until its hops are used up.
    Hop { hops: u32, value: u64 },
    /// Class 1: is answered late.
    Slow { hops: u32 },
    /// Sends a bulk to every node.
    Fan { hops: u32 },
    /// A payload in a box.
    Blocks(Box<[u64]>),
    /// What goes wrong, when it is handled.
    Break(Break),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Break {
    Panic,
    PanicInAbsorb,
    Fail,
    /// Sends to another node without delay.
    Early,
    /// Causes a class-0 event on its own node that comes too early for the promise of class 1.
    EarlyThroughOwnNode,
    /// Schedules out of a bulk at once.
    EarlyBulk,
    Past,
    Unknown,
    Flood,
}

#[derive(Serialize, Deserialize)]
pub struct Bulk {
    node: u32,
    src: Actor,
    at: Ps,
    hops: u32,
    seq: u64,
    broken: Option<Break>,
}

/// State that depends on what was received in which order, and on what was drawn.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub received: u64,
    pub bulks: u64,
    pub history: u64,
    bulk_seq: u64,
}

pub struct Nodes {
    pub nodes: u32,
    pub actors: Vec<State>,
}

impl Nodes {
    fn delay(&self, from: Actor, to: Actor, draw: u64, class: usize) -> Ps {
        // Few distinct values, so that many events share a time.
        if from / PER_NODE == to / PER_NODE {
            LOOKAHEAD[class] - LOOKAHEAD[0] + (draw % 4) * 100
        } else {
            LOOKAHEAD[class] + (draw % 4) * 500
        }
    }

    fn all(&self) -> u64 {
        u64::from(self.nodes * PER_NODE)
    }
}

impl Model for Nodes {
    type Msg = Msg;
    type Bulk = Bulk;

    fn handle(&mut self, to: Actor, from: Actor, msg: Msg, ctx: &mut Ctx<'_, Self>) {
        assert_eq!(to, ctx.me());
        assert_eq!(ctx.shard_of(to), ctx.shard());
        let draw = ctx.rng().next_u64();
        let all = self.all();
        let state = &mut self.actors[to as usize];
        state.received += 1;
        state.history = state
            .history
            .wrapping_mul(31)
            .wrapping_add(draw ^ ctx.now() ^ u64::from(from) ^ Nodes::digest(&msg));
        let next = (draw % all) as Actor;
        match msg {
            Msg::Hop { hops: 0, .. }
            | Msg::Slow { hops: 0 }
            | Msg::Fan { hops: 0 }
            | Msg::Blocks(_) => {}
            Msg::Hop { hops, value } => {
                let hops = hops - 1;
                let delay = self.delay(to, next, draw >> 20, 0);
                let msg = match draw >> 60 {
                    0 | 1 => Msg::Slow { hops },
                    2 => Msg::Fan { hops },
                    3 => Msg::Blocks(vec![value; 3].into()),
                    _ => Msg::Hop {
                        hops,
                        value: value ^ draw,
                    },
                };
                ctx.send_in(delay, next, msg);
                if (draw >> 50).is_multiple_of(4) {
                    let other = (draw >> 40) % all;
                    let delay = self.delay(to, other as Actor, draw >> 30, 0);
                    ctx.send_in(
                        delay,
                        other as Actor,
                        Msg::Hop {
                            hops: hops / 2,
                            value,
                        },
                    );
                }
            }
            Msg::Slow { hops } => {
                let delay = self.delay(to, next, draw >> 20, 1);
                ctx.send_at(
                    ctx.now() + delay,
                    next,
                    Msg::Hop {
                        hops: hops - 1,
                        value: 1,
                    },
                );
            }
            Msg::Fan { hops } => {
                for node in 0..self.nodes {
                    let state = &mut self.actors[to as usize];
                    let bulk = Bulk {
                        node,
                        src: to,
                        at: ctx.now() + LOOKAHEAD[0] + (draw % 3) * 700,
                        hops: hops.min(2) - 1,
                        seq: BULK_SEQ + state.bulk_seq,
                        broken: None,
                    };
                    state.bulk_seq += u64::from(PER_NODE);
                    ctx.bulk(ctx.shard_of(node * PER_NODE), bulk);
                }
            }
            Msg::Break(what) => self.break_it(to, what, ctx),
        }
    }

    fn absorb(&mut self, bulk: Bulk, ctx: &mut Ctx<'_, Self>) {
        assert!(
            bulk.broken != Some(Break::PanicInAbsorb),
            "told to panic in absorb"
        );
        for i in 0..PER_NODE {
            let to = bulk.node * PER_NODE + i;
            // A sum does not care about order.
            self.actors[to as usize].bulks += u64::from(bulk.src) + 1;
            let at = if bulk.broken == Some(Break::EarlyBulk) {
                ctx.now()
            } else {
                bulk.at
            };
            ctx.schedule(
                at,
                bulk.src,
                bulk.seq + u64::from(i),
                to,
                Msg::Hop {
                    hops: bulk.hops,
                    value: 3,
                },
            );
        }
    }

    fn class(msg: &Msg) -> usize {
        usize::from(matches!(
            msg,
            Msg::Slow { .. } | Msg::Break(Break::EarlyThroughOwnNode)
        ))
    }

    fn digest(msg: &Msg) -> u64 {
        match msg {
            Msg::Hop { hops, value } => (u64::from(*hops) << 32) ^ value,
            Msg::Slow { hops } => 1 << 60 | u64::from(*hops),
            Msg::Fan { hops } => 2 << 60 | u64::from(*hops),
            Msg::Blocks(b) => 3 << 60 | b.len() as u64,
            Msg::Break(b) => 4 << 60 | *b as u64,
        }
    }

    fn address(&self, actor: Actor) -> String {
        format!("node{}/actor{}", actor / PER_NODE, actor % PER_NODE)
    }

    fn kind(&self, actor: Actor) -> usize {
        usize::from(actor.is_multiple_of(PER_NODE))
    }

    fn kind_names() -> &'static [&'static str] {
        &["follower", "leader"]
    }
}

impl Nodes {
    fn break_it(&mut self, me: Actor, what: Break, ctx: &mut Ctx<'_, Self>) {
        let other_node = (me + PER_NODE) % (self.nodes * PER_NODE);
        let hop = Msg::Hop { hops: 0, value: 9 };
        match what {
            Break::Panic => panic!("told to panic"),
            Break::Fail => ctx.fail("out of luck"),
            Break::Early => ctx.send_in(LOOKAHEAD[0] - 1, other_node, hop),
            Break::EarlyThroughOwnNode => ctx.send_in(LOOKAHEAD[1] - LOOKAHEAD[0] - 1, me, hop),
            Break::Past => ctx.send_at(ctx.now() - 1, me, hop),
            Break::Unknown => ctx.send_in(1_000_000, 4_000_000, hop),
            Break::Flood => (0..2_000).for_each(|_| ctx.send_in(5_000, me, hop.clone())),
            Break::PanicInAbsorb | Break::EarlyBulk => {
                let node = other_node / PER_NODE;
                let at = ctx.now() + LOOKAHEAD[0];
                let bulk = Bulk {
                    node,
                    src: me,
                    at,
                    hops: 0,
                    seq: BULK_SEQ,
                    broken: Some(what),
                };
                ctx.bulk(ctx.shard_of(other_node), bulk);
            }
        }
    }
}

pub fn config(seed: u64, nodes: u32, shards: usize) -> RuntimeConfig {
    let actors = nodes * PER_NODE;
    RuntimeConfig {
        shards,
        owner: (0..actors)
            .map(|a| ((a / PER_NODE) as usize % shards) as u16)
            .collect(),
        lookahead: LOOKAHEAD.to_vec(),
        mailbox_limit: 1_000,
        ..RuntimeConfig::single(seed, actors as usize)
    }
}

pub fn simulation(config: RuntimeConfig) -> Simulation<Nodes> {
    let actors = config.owner.len();
    let models = (0..config.shards)
        .map(|_| Nodes {
            nodes: actors as u32 / PER_NODE,
            actors: vec![State::default(); actors],
        })
        .collect();
    Simulation::new(config, models).unwrap()
}

pub fn finish(sim: &mut Simulation<Nodes>) -> Result<Ended, RuntimeError> {
    sim.run(None, Duration::from_millis(50), &mut |_| Flow::Continue)
}

#[allow(dead_code, reason = "not every test file asks")]
/// The states of all actors, each from the shard that owns it.
pub fn states(sim: &Simulation<Nodes>, config: &RuntimeConfig) -> Vec<State> {
    (0..config.owner.len())
        .map(|a| sim.models()[usize::from(config.owner[a])].actors[a].clone())
        .collect()
}
