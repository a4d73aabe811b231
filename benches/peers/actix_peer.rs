//! The patterns as actix actors, spread over one or two arbiters.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use actix::{Actor, Addr, Context, Handler, Message};

use super::pattern::{ACTORS, Pattern, Payload};

impl Message for Payload {
    type Result = ();
}

/// Tells an actor who the others are.
#[derive(Clone, Message)]
#[rtype(result = "()")]
struct Meet(Vec<Addr<Peer>>, mpsc::Sender<()>);

/// Starts an actor.
#[derive(Message)]
#[rtype(result = "()")]
struct Start(Payload);

struct Peer {
    me: u32,
    pattern: Pattern,
    others: Vec<Addr<Peer>>,
    heard: u32,
    sum: u64,
    done: Option<mpsc::Sender<()>>,
}

impl Actor for Peer {
    type Context = Context<Self>;
}

impl Peer {
    fn round(&self, payload: Payload) {
        let next = payload.next(self.me);
        for (_, other) in self
            .others
            .iter()
            .enumerate()
            .filter(|(to, _)| *to != self.me as usize)
        {
            other.do_send(next);
        }
    }

    fn finish(&mut self) {
        if let Some(done) = self.done.take() {
            done.send(()).expect("the bench waits");
        }
    }
}

impl Handler<Meet> for Peer {
    type Result = ();
    fn handle(&mut self, Meet(others, done): Meet, _: &mut Self::Context) {
        self.others = others;
        done.send(()).expect("the bench waits");
        self.done = Some(done);
    }
}

impl Handler<Start> for Peer {
    type Result = ();
    fn handle(&mut self, Start(payload): Start, _: &mut Self::Context) {
        match self.pattern {
            Pattern::Ring => {
                self.others[(self.me as usize + 1) % ACTORS as usize].do_send(payload.next(self.me))
            }
            Pattern::FanIn if self.me == 0 => self.finish(),
            Pattern::FanIn => self.others[0].do_send(payload.next(self.me)),
            Pattern::AllToAll => self.round(payload),
        }
    }
}

impl Handler<Payload> for Peer {
    type Result = ();
    fn handle(&mut self, msg: Payload, _: &mut Self::Context) {
        self.sum = self.sum.wrapping_add(msg.values[0]);
        match self.pattern {
            Pattern::Ring if msg.left == 0 => self.finish(),
            Pattern::Ring => {
                self.others[(self.me as usize + 1) % ACTORS as usize].do_send(msg.next(self.me))
            }
            Pattern::FanIn if self.me == 0 => self.others[msg.from as usize].do_send(msg),
            Pattern::FanIn if msg.left == 0 => self.finish(),
            Pattern::FanIn => self.others[0].do_send(msg.next(self.me)),
            Pattern::AllToAll => {
                self.heard += 1;
                // The others may be a round ahead: what counts is how many messages came, and the last round.
                if self.heard.is_multiple_of(ACTORS - 1) {
                    let rounds = self.heard / (ACTORS - 1);
                    if rounds == self.pattern.turns() {
                        self.finish();
                    } else {
                        self.round(Payload {
                            left: self.pattern.turns() - rounds,
                            ..msg
                        });
                    }
                }
            }
        }
    }
}

pub fn run(pattern: Pattern, arbiters: usize) -> Duration {
    actix_rt::System::new().block_on(async move {
        let arbiters: Vec<_> = (0..arbiters).map(|_| actix_rt::Arbiter::new()).collect();
        let peers: Vec<_> = (0..ACTORS)
            .map(|me| {
                let arbiter = me as usize * arbiters.len() / ACTORS as usize;
                Peer::start_in_arbiter(&arbiters[arbiter].handle(), move |_| Peer {
                    me,
                    pattern,
                    others: Vec::new(),
                    heard: 0,
                    sum: 0,
                    done: None,
                })
            })
            .collect();
        let (done, waiting) = mpsc::channel();
        let everyone = || (0..ACTORS).for_each(|_| waiting.recv().expect("all actors live"));
        peers
            .iter()
            .for_each(|peer| peer.do_send(Meet(peers.clone(), done.clone())));
        everyone();
        let started = Instant::now();
        for (me, peer) in (0..).zip(&peers) {
            peer.do_send(Start(Payload::new(pattern.turns(), me)));
        }
        everyone();
        let took = started.elapsed();
        for arbiter in arbiters {
            arbiter.stop();
            arbiter.join().expect("the arbiter ends");
        }
        took
    })
}
