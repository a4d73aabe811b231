//! The patterns as NeXosim models. A model waits by scheduling an event for itself, then sends.

use std::time::{Duration, Instant};

use nexosim::model::{Context, Model, schedulable};
use nexosim::ports::{EventSource, Output};
use nexosim::simulation::{Mailbox, SimInit};
use nexosim::time::MonotonicTime;
use serde::{Deserialize, Serialize};

use super::pattern::{ACTORS, Pattern, Payload};

/// Latency of a message: 1.9 us and a little more per actor, so that times differ.
fn latency(me: u32) -> Duration {
    Duration::from_nanos(1_900 + 2 * u64::from(me))
}

#[derive(Serialize, Deserialize)]
struct Forwarder {
    me: u32,
    sum: u64,
    out: Output<Payload>,
}

#[Model]
impl Forwarder {
    fn input(&mut self, msg: Payload, cx: &Context<Self>) {
        self.sum = self.sum.wrapping_add(msg.values[0]);
        if msg.left > 0 {
            cx.schedule_event(
                latency(self.me),
                schedulable!(Self::forward),
                msg.next(self.me),
            )
            .expect("the latency is in the future");
        }
    }

    #[nexosim(schedulable)]
    async fn forward(&mut self, msg: Payload) {
        self.out.send(msg).await;
    }
}

#[derive(Serialize, Deserialize)]
struct Sink {
    sum: u64,
    answers: Vec<Output<Payload>>,
}

#[Model]
impl Sink {
    async fn input(&mut self, msg: Payload) {
        self.sum = self.sum.wrapping_add(msg.values[0]);
        self.answers[msg.from as usize].send(msg).await;
    }
}

#[derive(Serialize, Deserialize)]
struct Member {
    me: u32,
    sum: u64,
    heard: u32,
    others: Output<Payload>,
}

#[Model]
impl Member {
    fn start(&mut self, msg: Payload, cx: &Context<Self>) {
        cx.schedule_event(
            latency(self.me),
            schedulable!(Self::round),
            msg.next(self.me),
        )
        .expect("the latency is in the future");
    }

    async fn input(&mut self, msg: Payload, cx: &Context<Self>) {
        self.sum = self.sum.wrapping_add(msg.values[0]);
        self.heard += 1;
        if self.heard == ACTORS - 1 {
            self.heard = 0;
            if msg.left > 0 {
                self.start(msg, cx);
            }
        }
    }

    #[nexosim(schedulable)]
    async fn round(&mut self, msg: Payload) {
        self.others.send(msg).await;
    }
}

/// Deep enough that nobody waits for room.
const MAILBOX: usize = 2 * ACTORS as usize;

pub fn run(pattern: Pattern) -> Duration {
    let mut init = SimInit::with_num_threads(1);
    let sources = match pattern {
        Pattern::Ring => {
            let boxes: Vec<Mailbox<Forwarder>> = (0..ACTORS)
                .map(|_| Mailbox::with_capacity(MAILBOX))
                .collect();
            let sources: Vec<_> = boxes
                .iter()
                .map(|b| {
                    EventSource::new()
                        .connect(Forwarder::input, b)
                        .register(&mut init)
                })
                .collect();
            let models: Vec<_> = (0..ACTORS)
                .map(|me| {
                    let mut model = Forwarder {
                        me,
                        sum: 0,
                        out: Output::default(),
                    };
                    model.out.connect(
                        Forwarder::input,
                        &boxes[(me as usize + 1) % ACTORS as usize],
                    );
                    model
                })
                .collect();
            for (model, mailbox) in models.into_iter().zip(boxes) {
                init = init.add_model(model, mailbox, "peer");
            }
            sources
        }
        Pattern::FanIn => {
            let hub = Mailbox::with_capacity(MAILBOX);
            let boxes: Vec<Mailbox<Forwarder>> = (1..ACTORS)
                .map(|_| Mailbox::with_capacity(MAILBOX))
                .collect();
            let sources: Vec<_> = boxes
                .iter()
                .map(|b| {
                    EventSource::new()
                        .connect(Forwarder::input, b)
                        .register(&mut init)
                })
                .collect();
            let mut sink = Sink {
                sum: 0,
                answers: (0..ACTORS).map(|_| Output::default()).collect(),
            };
            for (me, mailbox) in (1..).zip(boxes) {
                sink.answers[me as usize].connect(Forwarder::input, &mailbox);
                let mut model = Forwarder {
                    me,
                    sum: 0,
                    out: Output::default(),
                };
                model.out.connect(Sink::input, &hub);
                init = init.add_model(model, mailbox, "source");
            }
            init = init.add_model(sink, hub, "sink");
            sources
        }
        Pattern::AllToAll => {
            let boxes: Vec<Mailbox<Member>> = (0..ACTORS)
                .map(|_| Mailbox::with_capacity(MAILBOX))
                .collect();
            let sources: Vec<_> = boxes
                .iter()
                .map(|b| {
                    EventSource::new()
                        .connect(Member::start, b)
                        .register(&mut init)
                })
                .collect();
            let models: Vec<_> = (0..ACTORS)
                .map(|me| {
                    let mut model = Member {
                        me,
                        sum: 0,
                        heard: 0,
                        others: Output::default(),
                    };
                    for (_, other) in boxes
                        .iter()
                        .enumerate()
                        .filter(|(to, _)| *to != me as usize)
                    {
                        model.others.connect(Member::input, other);
                    }
                    model
                })
                .collect();
            for (model, mailbox) in models.into_iter().zip(boxes) {
                init = init.add_model(model, mailbox, "member");
            }
            sources
        }
    };
    let mut simulation = init
        .init(MonotonicTime::EPOCH)
        .expect("the models fit together");
    let scheduler = simulation.scheduler();
    for (me, source) in (0..).zip(&sources) {
        scheduler
            .schedule_event(
                Duration::from_nanos(1),
                source,
                Payload::new(pattern.turns(), me),
            )
            .expect("it is in the future");
    }
    let started = Instant::now();
    simulation.run().expect("the run ends");
    started.elapsed()
}
