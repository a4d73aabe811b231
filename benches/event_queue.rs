//! The event queue against the plain alternatives: pop the earliest event, push it again later, with a fixed number
//! pending. Messages are 48 bytes, inline in the queue or in a slab beside it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use supernode_actors::runtime::Rng;
use supernode_actors::runtime::queue::{Key, Queue};
use supernode_actors::runtime::slab::Slab;

type Message = [u64; 6];

/// Time from an event to the one it causes.
#[derive(Clone, Copy)]
enum Delays {
    /// Exponential, mean 1 us.
    Exponential,
    /// One of three latencies, as links have them.
    Latencies,
    /// Mostly 1 ns, one in a hundred 1 ms.
    Skewed,
}

impl Delays {
    const ALL: [(&str, Self); 3] = [
        ("exponential", Self::Exponential),
        ("latencies", Self::Latencies),
        ("skewed", Self::Skewed),
    ];

    /// Drawn beforehand, so that drawing is not measured.
    fn draw(self) -> Vec<u64> {
        let mut rng = Rng::new(1, 1);
        let mut one = || match self {
            Self::Exponential => rng.exp(1e6) as u64,
            Self::Latencies => [200_000, 1_200_000, 1_900_000][rng.below(3) as usize],
            Self::Skewed => {
                if rng.chance(0.01) {
                    1_000_000_000
                } else {
                    1_000 + rng.below(1_000)
                }
            }
        };
        (0..65_536).map(|_| one()).collect()
    }
}

trait Events {
    const NAME: &str;
    fn new() -> Self;
    fn push(&mut self, time: u64, order: u64, message: Message);
    fn pop(&mut self) -> (u64, u64, Message);
}

#[derive(Default)]
struct HeapOfEvents(BinaryHeap<Reverse<(u64, u64, Message)>>);

impl Events for HeapOfEvents {
    const NAME: &str = "heap of events";
    fn new() -> Self {
        Self::default()
    }
    fn push(&mut self, time: u64, order: u64, message: Message) {
        self.0.push(Reverse((time, order, message)));
    }
    fn pop(&mut self) -> (u64, u64, Message) {
        self.0
            .pop()
            .map(|Reverse(e)| e)
            .expect("the number of pending events is constant")
    }
}

#[derive(Default)]
struct HeapOfKeys(BinaryHeap<Reverse<Key>>, Slab<Message>);

impl Events for HeapOfKeys {
    const NAME: &str = "heap of keys";
    fn new() -> Self {
        Self::default()
    }
    fn push(&mut self, time_ps: u64, order: u64, message: Message) {
        let slot = self.1.insert(message);
        self.0.push(Reverse(Key {
            time_ps,
            order,
            to: 0,
            slot,
        }));
    }
    fn pop(&mut self) -> (u64, u64, Message) {
        let Reverse(key) = self
            .0
            .pop()
            .expect("the number of pending events is constant");
        let message = *self.1.get_mut(key.slot);
        self.1.free(key.slot);
        (key.time_ps, key.order, message)
    }
}

struct Ladder(Queue, Slab<Message>);

impl Events for Ladder {
    const NAME: &str = "ladder";
    fn new() -> Self {
        Self(Queue::new(), Slab::default())
    }
    fn push(&mut self, time_ps: u64, order: u64, message: Message) {
        let slot = self.1.insert(message);
        self.0.push(Key {
            time_ps,
            order,
            to: 0,
            slot,
        });
    }
    fn pop(&mut self) -> (u64, u64, Message) {
        let key = self
            .0
            .pop()
            .expect("the number of pending events is constant");
        let message = *self.1.get_mut(key.slot);
        self.1.free(key.slot);
        (key.time_ps, key.order, message)
    }
}

fn hold<Q: Events>(c: &mut Criterion, name: &str, delays: &[u64], pending: usize) {
    let mut group = c.benchmark_group(format!("queue/{name}"));
    group.throughput(Throughput::Elements(1));
    let mut queue = Q::new();
    let mut i = 0;
    for order in 0..pending as u64 {
        queue.push(delays[order as usize % delays.len()], order, [order; 6]);
    }
    let mut step = || {
        let (time, order, mut message) = queue.pop();
        message[0] += 1;
        i = (i + 1) % delays.len();
        queue.push(time + delays[i], order, message);
        time
    };
    // Past the initial spread.
    (0..2 * pending).for_each(|_| {
        black_box(step());
    });
    group.bench_function(BenchmarkId::new(Q::NAME, pending), |b| b.iter(&mut step));
}

fn queues(c: &mut Criterion) {
    for (name, delays) in Delays::ALL {
        let delays = delays.draw();
        let quick = std::env::args().any(|a| a == "--quick" || a == "--test");
        let most = if quick { 1_000 } else { 1_000_000 };
        let sizes = [10, 1_000, 10_000, 100_000, 1_000_000];
        for pending in sizes.into_iter().filter(|&n| n <= most) {
            hold::<HeapOfEvents>(c, name, &delays, pending);
            hold::<HeapOfKeys>(c, name, &delays, pending);
            hold::<Ladder>(c, name, &delays, pending);
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10)
        .warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_millis(400));
    targets = queues
}
criterion_main!(benches);
