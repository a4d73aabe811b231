//! Collective phases as arrays give exactly what sending, queueing and serving every message by itself gives: times of
//! arrival, order of service, hashes and flags; number, sum and longest of waits. Two things differ: a lane's histogram
//! of times on the wire takes down the mean of each visit, as often as there were messages, and in that of waits the third of each four
//! stands for the four, where a visit has many messages.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use proptest::prelude::*;
use supernode_actors::fabric::{
    Board, BothReaches, Direction, PathCost, PhaseSend, Receipt, Row, Sender, Shape, SourceCosts,
    UnitCost, message_hash,
};
use supernode_actors::runtime::Rng;
use supernode_actors::stats::{ActorHist, BulkHist};
use supernode_actors::time::Ps;

/// A group and its traffic, drawn.
#[derive(Clone, Debug)]
struct Case {
    seed: u64,
    ranks: usize,
    ranks_per_node: usize,
    /// Nodes in turn, so that a node's ranks do not follow each other.
    scattered: bool,
    slots: usize,
    shards: usize,
    channels: u8,
    phases: u32,
    /// Starts of sources differ by up to this.
    jitter_ps: Ps,
    /// One message in so many has units.
    sparse: u64,
    units_max: u64,
    /// Transfers that want the lanes besides.
    foreign: usize,
}

fn cases() -> impl Strategy<Value = Case> {
    let traffic = (
        1..3u8,
        1..5u32,
        prop_oneof![
            Just(0u64),
            0..50_000u64,
            0..5_000_000u64,
            0..3_000_000_000_000u64
        ],
        1..6u64,
        prop_oneof![Just(1u64), 1..5u64, 10..40u64, 1..3_000u64],
        prop_oneof![Just(0), 0..12usize],
    );
    let group = (
        any::<u64>(),
        1..40usize,
        1..17usize,
        any::<bool>(),
        1..4usize,
        1..4usize,
    );
    (group, traffic).prop_map(|(g, t)| Case {
        seed: g.0,
        ranks: g.1,
        ranks_per_node: g.2,
        scattered: g.3,
        slots: g.4,
        shards: g.5,
        channels: t.0,
        phases: t.1,
        jitter_ps: t.2,
        sparse: t.3,
        units_max: t.4,
        foreign: t.5,
    })
}

const UNIT_BYTES: u32 = 7_680;
const LOOKAHEAD_PS: Ps = 12_000_000;

fn costs() -> (BothReaches, SourceCosts) {
    let reaches = BothReaches {
        inside: PathCost::new(137.0, 1.3, 512),
        between: PathCost::new(135.0, 2.1, 512),
    };
    let sio = PathCost::new(270.0, 0.5, 0);
    let cost = |p: PathCost| UnitCost {
        unit_ps: p.per_byte.ps(u64::from(UNIT_BYTES)),
        latency_ps: p.latency_ps,
    };
    let source = SourceCosts {
        issue_ps: 20_000,
        inside: cost(reaches.inside),
        between: cost(reaches.between),
        sio: cost(sio),
    };
    (reaches, source)
}

#[derive(Clone, Copy, Debug)]
struct Message {
    at_ps: Ps,
    channel: u8,
    phase: u32,
    source: usize,
    slot: usize,
    units: u64,
    direct: bool,
}

/// What happens, in order of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Post {
        channel: u8,
        phase: u32,
        source: usize,
    },
    Collect {
        channel: u8,
        phase: u32,
        rank: usize,
    },
    Foreign {
        rank: usize,
    },
}

/// The reference: one message at a time.
struct OneByOne {
    nodes: Vec<u32>,
    npus: Vec<u32>,
    slots: usize,
    reaches: BothReaches,
    costs: SourceCosts,
    up: Vec<Direction>,
    sio_free_ps: Vec<Ps>,
    down: Vec<Direction>,
    /// Waits at `down`, as lanes take them down.
    waits: Vec<ActorHist>,
    pending: Vec<Vec<Message>>,
    /// By rank, channel and parity.
    got: Vec<Vec<Receipt>>,
    units: Vec<Vec<Vec<u16>>>,
}

impl OneByOne {
    fn unit_ps(&self, a: usize, b: usize) -> (Ps, Ps) {
        let c = if self.nodes[a] == self.nodes[b] {
            self.costs.inside
        } else {
            self.costs.between
        };
        (c.unit_ps, c.latency_ps)
    }

    /// Sends a source's messages one after the other; returns when the last has left.
    fn send(&mut self, m: Message, start_ps: Ps, units: &[u32]) -> Ps {
        let n = self.nodes.len();
        let s = m.source;
        let mut cursor = start_ps;
        let mut sent = start_ps.max(self.up[s].free_ps).max(self.sio_free_ps[s]);
        for k in 0..n {
            let d = (s + k) % n;
            for slot in 0..self.slots {
                let units = u64::from(units[d * self.slots + slot]);
                if units == 0 {
                    continue;
                }
                cursor += self.costs.issue_ps * units;
                let direct = self.npus[s] == self.npus[d];
                let at_ps = if d == s {
                    cursor
                } else if direct {
                    self.sio_free_ps[s] =
                        self.sio_free_ps[s].max(cursor) + self.costs.sio.unit_ps * units;
                    sent = sent.max(self.sio_free_ps[s]);
                    self.sio_free_ps[s] + self.costs.sio.latency_ps
                } else {
                    let (unit_ps, latency_ps) = self.unit_ps(s, d);
                    let served =
                        self.up[s].serve(cursor, unit_ps * units, u64::from(UNIT_BYTES) * units);
                    sent = sent.max(served.end_ps);
                    served.start_ps + latency_ps
                };
                sent = sent.max(cursor);
                self.pending[d].push(Message {
                    at_ps,
                    slot,
                    units,
                    direct,
                    ..m
                });
            }
        }
        sent
    }

    /// Serves what has come to `d`, in order, and all of `whole`.
    fn serve(&mut self, d: usize, now_ps: Ps, whole: Option<(u8, u32)>) {
        let (mut due, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.pending[d])
            .into_iter()
            .partition(|m| m.at_ps <= now_ps || whole == Some((m.channel, m.phase)));
        self.pending[d] = later;
        due.sort_by_key(|m| {
            let tag = m.channel << 1 | (m.phase & 1) as u8;
            (m.at_ps, tag, m.source, m.slot)
        });
        let mut waits_ps = Vec::new();
        for m in due {
            let end_ps = if m.direct {
                m.at_ps
            } else {
                let ps = self.unit_ps(m.source, d).0 * m.units;
                let bytes = u64::from(UNIT_BYTES) * m.units;
                let served = self.down[d].serve(m.at_ps, ps, bytes);
                waits_ps.push(served.start_ps - m.at_ps);
                served.end_ps
            };
            let tag = usize::from(m.channel) << 1 | (m.phase & 1) as usize;
            self.got[d][tag].add(&Receipt {
                complete_ps: end_ps,
                hash: message_hash(end_ps, m.source * self.slots + m.slot, m.units),
                messages: 1,
                units: m.units,
            });
            self.units[d][tag][m.source * self.slots + m.slot] += m.units as u16;
        }
        let many = waits_ps.len() >= BulkHist::MANY;
        for four in waits_ps.chunks(4) {
            if many && four.len() == 4 {
                self.waits[d].record_n(four[2], 4);
            } else {
                four.iter().for_each(|&ps| self.waits[d].record(ps));
            }
        }
    }
}

fn compare(case: &Case) -> Result<(), TestCaseError> {
    let n = case.ranks;
    let nodes_count = n.div_ceil(case.ranks_per_node) as u32;
    let nodes: Vec<u32> = (0..n)
        .map(|r| {
            if case.scattered {
                r as u32 / 2 % nodes_count
            } else {
                (r / case.ranks_per_node) as u32
            }
        })
        .collect();
    // Two dies a package, where both are on one node.
    let npus: Vec<u32> = (0..n)
        .map(|r| {
            let other = r ^ 1;
            if other < n && nodes[other] == nodes[r] {
                r as u32 / 2
            } else {
                1_000 + r as u32
            }
        })
        .collect();
    let shard_of: Vec<usize> = nodes.iter().map(|&x| x as usize % case.shards).collect();
    let (reaches, costs) = costs();
    let mut boards: Vec<Board> = (0..case.shards)
        .map(|shard| {
            let shape = Shape::new(nodes.clone(), npus.clone(), &shard_of, shard, case.slots);
            Board::new(shape, u32::from(case.channels), reaches)
        })
        .collect();
    let mut senders = vec![(0u64, 0u64); n];
    let mut lanes = vec![Direction::default(); n];
    let mut plain = OneByOne {
        up: vec![Direction::default(); n],
        sio_free_ps: vec![0; n],
        down: lanes.clone(),
        waits: vec![ActorHist::default(); lanes.len()],
        pending: vec![Vec::new(); n],
        got: vec![vec![Receipt::default(); 4]; n],
        units: vec![vec![vec![0; n * case.slots]; 4]; n],
        nodes,
        npus,
        slots: case.slots,
        reaches,
        costs,
    };
    let mut rng = Rng::new(case.seed, 0);
    let mut events = BinaryHeap::new();
    for channel in 0..case.channels {
        for source in 0..n {
            let at = rng.below(case.jitter_ps + 1);
            events.push(Reverse((
                at,
                Event::Post {
                    channel,
                    phase: 1,
                    source,
                },
            )));
        }
    }
    for _ in 0..case.foreign {
        let (at, rank) = (
            rng.below(2 * case.jitter_ps + 100_000_000),
            rng.below(n as u64),
        );
        events.push(Reverse((
            at,
            Event::Foreign {
                rank: rank as usize,
            },
        )));
    }
    // By channel and parity: when each rank's last flag is in, one flag at a time.
    let mut flags = vec![vec![0; n]; 4];
    while let Some(Reverse((now, event))) = events.pop() {
        match event {
            Event::Post {
                channel,
                phase,
                source,
            } => {
                let start_ps = now + LOOKAHEAD_PS + rng.below(case.jitter_ps / 2 + 1);
                let (flag_ps, barrier_ps) = (85_000, 3_000_000);
                let silent = rng.below(case.sparse) > 1;
                let units: Vec<u32> = (0..n * case.slots)
                    .map(|_| {
                        if silent || rng.below(case.sparse) > 0 {
                            0
                        } else {
                            // Skewed: mostly few.
                            (rng.below(case.units_max) * rng.below(case.units_max) / case.units_max
                                + 1) as u32
                        }
                    })
                    .collect();
                let mut sender = Sender {
                    cursor_ps: start_ps,
                    lane_free_ps: senders[source].0,
                    sio_free_ps: senders[source].1,
                    ..Sender::default()
                };
                let mut row = Row::default();
                let shape = boards[0].shape();
                sender.lay_out(shape, source, &costs, &units, &mut row, |_, _, _| ());
                if silent {
                    row.clear();
                }
                senders[source] = (sender.lane_free_ps, sender.sio_free_ps);
                let busy = plain.up[source].busy_ps;
                let message = Message {
                    at_ps: 0,
                    channel,
                    phase,
                    source,
                    slot: 0,
                    units: 0,
                    direct: false,
                };
                let sent = plain.send(message, start_ps, &units);
                prop_assert_eq!(sender.sent_ps(), sent);
                prop_assert_eq!(sender.lane_free_ps, plain.up[source].free_ps);
                prop_assert_eq!(sender.lane_busy_ps, plain.up[source].busy_ps - busy);
                let tag = usize::from(channel) << 1 | (phase & 1) as usize;
                for k in 1..=n {
                    let d = (source + k) % n;
                    let from = sent + barrier_ps + k as Ps * flag_ps;
                    let latency = if k == n {
                        0
                    } else {
                        plain
                            .reaches
                            .at(plain.nodes[source] == plain.nodes[d])
                            .latency_ps
                    };
                    flags[tag][d] = flags[tag][d].max(from + latency);
                }
                let send = PhaseSend {
                    channel,
                    phase,
                    source: source as u16,
                    expected: n as u16,
                    unit_bytes: UNIT_BYTES,
                    from_ps: start_ps,
                    flags_from_ps: sent + barrier_ps,
                    flag_ps,
                };
                for (shard, board) in boards.iter_mut().enumerate() {
                    let mut part = Row::default();
                    row.of_shard(board.shape(), shard, &mut part);
                    let mut arrived = Vec::new();
                    board.post(&send, &part, &mut arrived);
                    for a in arrived {
                        let rank = usize::from(a.rank);
                        prop_assert_eq!(a.at_ps, flags[tag][rank], "last flag of rank {}", rank);
                        flags[tag][rank] = 0;
                        events.push(Reverse((
                            a.at_ps,
                            Event::Collect {
                                channel,
                                phase,
                                rank,
                            },
                        )));
                    }
                }
            }
            Event::Collect {
                channel,
                phase,
                rank,
            } => {
                plain.serve(rank, now, Some((channel, phase)));
                let tag = usize::from(channel) << 1 | (phase & 1) as usize;
                let mut units = vec![7; n * case.slots];
                let got = boards[shard_of[rank]].collect(
                    rank as u16,
                    channel,
                    phase,
                    now,
                    &mut lanes[rank],
                    &mut units,
                );
                prop_assert_eq!(got, std::mem::take(&mut plain.got[rank][tag]));
                prop_assert_eq!(&units, &plain.units[rank][tag]);
                plain.units[rank][tag].fill(0);
                if phase < case.phases {
                    let at = now + rng.below(case.jitter_ps + 1);
                    let next = Event::Post {
                        channel,
                        phase: phase + 1,
                        source: rank,
                    };
                    events.push(Reverse((at, next)));
                }
            }
            Event::Foreign { rank } => {
                plain.serve(rank, now, None);
                boards[shard_of[rank]].serve(rank as u16, now, &mut lanes[rank]);
                lanes[rank].serve(now, 30_000_000, 4_000_000);
                let served = plain.down[rank].serve(now, 30_000_000, 4_000_000);
                plain.waits[rank].record(served.start_ps - now);
            }
        }
        // Everything that the lanes know of themselves is the same at all times.
        if let Event::Collect { rank, .. } | Event::Foreign { rank } = event {
            let known = |d: &Direction| {
                let sums = [d.free_ps, d.busy_ps, d.bytes, d.messages, d.lost_bytes];
                let queue = d.queue();
                let waits = (queue.count(), queue.sum_ps(), queue.max_ps());
                (sums, waits, d.service().count())
            };
            prop_assert_eq!(known(&lanes[rank]), known(&plain.down[rank]));
            let taken_down = lanes[rank].queue();
            prop_assert!(taken_down.same_buckets(&plain.waits[rank]));
        }
    }
    prop_assert!(boards.iter().all(Board::is_clear));
    prop_assert!(plain.pending.iter().all(Vec::is_empty));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn phases_as_arrays_are_phases_message_by_message(case in cases()) {
        compare(&case)?;
    }
}

#[test]
fn a_group_of_the_size_of_the_decode_instance_is_no_exception() {
    for (slots, jitter_ps) in [(1, 3_000_000), (2, 0)] {
        compare(&Case {
            seed: 7,
            ranks: 320,
            ranks_per_node: 16,
            scattered: false,
            slots,
            shards: 2,
            channels: 1,
            phases: 2,
            jitter_ps,
            sparse: 1,
            units_max: 3,
            foreign: 5,
        })
        .unwrap();
    }
}
