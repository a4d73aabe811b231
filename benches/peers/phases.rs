//! All-to-all as the machine does it: one visit of the lanes per source and round, one per receiver, through the same
//! senders, boards and runtime as the phases of dispatch and combine. Every message has its own source, destination,
//! units and arrival, waits for its turn on the receiver's lanes, and enters the digest.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use supernode_actors::fabric::{
    Arrived, Board, BothReaches, Direction, PathCost, PhaseSend, Row, Sender, Shape, SourceCosts,
    UnitCost,
};
use supernode_actors::runtime::{
    Actor, Ctx, Ended, Flow, Model, OUTSIDE, Rng, RuntimeConfig, Simulation,
};
use supernode_actors::time::Ps;

/// Dies of a node, and bytes of a token on its way to an expert.
const PER_NODE: u32 = 16;
const UNIT_BYTES: u64 = 7_680;
/// From the decision to send to the first byte: start of the operator, and the way.
const STARTUP_PS: Ps = 10_000_000;
const LATENCY_PS: Ps = 2_000_000;

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Msg {
    Round(u32),
    Collected(u32),
}

/// What a source sends to the ranks of another shard.
#[derive(Serialize, Deserialize)]
struct Posted {
    round: u32,
    source: u16,
    from_ps: Ps,
    flags_from_ps: Ps,
    row: Row,
}

struct Ranks {
    rounds: u32,
    board: Board,
    costs: SourceCosts,
    up_free_ps: Vec<(Ps, Ps)>,
    down: Vec<Direction>,
    units: Vec<u16>,
    row: Row,
    /// Rows that came from another shard go back as rows for it, as in the machine.
    spare: Vec<Row>,
    received: Vec<u16>,
    messages: u64,
    digest: u64,
}

impl Ranks {
    fn post(&mut self, send: &PhaseSend, row: &Row, ctx: &mut Ctx<'_, Self>) {
        let mut arrived: Vec<Arrived> = Vec::new();
        self.board.post(send, row, &mut arrived);
        for a in arrived {
            let rank = Actor::from(a.rank);
            let seq = (1 << 39) | u64::from(send.phase);
            ctx.schedule(a.at_ps, rank, seq, rank, Msg::Collected(send.phase));
        }
    }

    fn round(&mut self, me: Actor, round: u32, ctx: &mut Ctx<'_, Self>) {
        let rank = me as usize;
        let start_ps = ctx.now() + STARTUP_PS;
        // One or two units for each: about what 48 tokens send to 320 experts.
        let bits = ctx.rng().next_u64();
        for (i, u) in self.units.iter_mut().enumerate() {
            *u = 1 + (bits >> (i % 64) & 1) as u16;
        }
        let (lane_free_ps, sio_free_ps) = self.up_free_ps[rank];
        let mut sender = Sender {
            cursor_ps: start_ps,
            lane_free_ps,
            sio_free_ps,
            ..Sender::default()
        };
        let mut row = std::mem::take(&mut self.row);
        sender.lay_out(
            self.board.shape(),
            rank,
            &self.costs,
            &self.units,
            &mut row,
            |_, _, _| (),
        );
        self.up_free_ps[rank] = (sender.lane_free_ps, sender.sio_free_ps);
        self.messages += sender.messages;
        let send = PhaseSend {
            channel: 0,
            phase: round,
            source: me as u16,
            expected: self.board.shape().ranks() as u16,
            unit_bytes: UNIT_BYTES as u32,
            from_ps: start_ps,
            flags_from_ps: sender.sent_ps(),
            flag_ps: 50_000,
        };
        if ctx.shards() == 1 {
            self.post(&send, &row, ctx);
        } else {
            for shard in 0..ctx.shards() {
                let mut part = self.spare.pop().unwrap_or_default();
                row.of_shard(self.board.shape(), shard, &mut part);
                if shard == ctx.shard() {
                    self.post(&send, &part, ctx);
                    self.spare.push(part);
                } else {
                    let posted = Posted {
                        round,
                        source: me as u16,
                        from_ps: send.from_ps,
                        flags_from_ps: send.flags_from_ps,
                        row: part,
                    };
                    ctx.bulk(shard, posted);
                }
            }
        }
        self.row = row;
    }
}

impl Model for Ranks {
    type Msg = Msg;
    type Bulk = Posted;

    fn handle(&mut self, me: Actor, _: Actor, msg: Msg, ctx: &mut Ctx<'_, Self>) {
        match msg {
            Msg::Round(round) => self.round(me, round, ctx),
            Msg::Collected(round) => {
                let lanes = &mut self.down[me as usize];
                let got =
                    self.board
                        .collect(me as u16, 0, round, ctx.now(), lanes, &mut self.received);
                self.digest = self.digest.wrapping_add(got.hash);
                if round < self.rounds {
                    // What the experts take differs a little.
                    let work_ps = ctx.rng().below(2_000_000);
                    ctx.send_at(
                        got.complete_ps.max(ctx.now()) + work_ps,
                        me,
                        Msg::Round(round + 1),
                    );
                }
            }
        }
    }

    fn absorb(&mut self, posted: Posted, ctx: &mut Ctx<'_, Self>) {
        let send = PhaseSend {
            channel: 0,
            phase: posted.round,
            source: posted.source,
            expected: self.board.shape().ranks() as u16,
            unit_bytes: UNIT_BYTES as u32,
            from_ps: posted.from_ps,
            flags_from_ps: posted.flags_from_ps,
            flag_ps: 50_000,
        };
        self.post(&send, &posted.row, ctx);
        self.spare.push(posted.row);
    }

    fn digest(msg: &Msg) -> u64 {
        match msg {
            Msg::Round(r) | Msg::Collected(r) => u64::from(*r),
        }
    }

    fn address(&self, actor: Actor) -> String {
        format!("die{actor}")
    }
}

/// Time, messages and digest of `rounds` rounds among `ranks` dies.
pub fn run(ranks: u32, rounds: u32, shards: usize) -> (Duration, u64, u64) {
    let n = ranks as usize;
    let nodes: Vec<u32> = (0..ranks).map(|r| r / PER_NODE).collect();
    let npus: Vec<u32> = (0..ranks).map(|r| r / 2).collect();
    let owner: Vec<usize> = nodes.iter().map(|&x| x as usize % shards).collect();
    let reach = BothReaches {
        inside: PathCost::new(137.0, 1.3, 512),
        between: PathCost::new(135.0, 2.1, 512),
    };
    let unit_cost = |p: PathCost| UnitCost {
        unit_ps: p.per_byte.ps(UNIT_BYTES),
        latency_ps: p.latency_ps,
    };
    let costs = SourceCosts {
        issue_ps: 20_000,
        inside: unit_cost(reach.inside),
        between: unit_cost(reach.between),
        sio: unit_cost(PathCost::new(270.0, 0.5, 0)),
    };
    let models = (0..shards)
        .map(|shard| Ranks {
            rounds,
            board: Board::new(
                Shape::new(nodes.clone(), npus.clone(), &owner, shard, 1),
                1,
                reach,
            ),
            costs,
            up_free_ps: vec![(0, 0); n],
            down: vec![Direction::default(); n],
            units: vec![0; n],
            row: Row::default(),
            spare: Vec::new(),
            received: vec![0; n],
            messages: 0,
            digest: 0,
        })
        .collect();
    let config = RuntimeConfig {
        shards,
        owner: owner.iter().map(|&s| s as u16).collect(),
        lookahead: vec![STARTUP_PS + LATENCY_PS],
        ..RuntimeConfig::single(1, n)
    };
    let mut simulation = Simulation::new(config, models).expect("the configuration is sound");
    let mut rng = Rng::new(1, u64::from(OUTSIDE));
    for actor in 0..ranks {
        simulation.inject(rng.below(2_000_000), actor, Msg::Round(1));
    }
    let started = Instant::now();
    let ended = simulation.run(None, Duration::from_secs(1), &mut |_| Flow::Continue);
    let took = started.elapsed();
    assert_eq!(ended, Ok(Ended::Finished));
    let messages = simulation.models().iter().map(|m| m.messages).sum();
    assert_eq!(
        messages,
        u64::from(ranks) * u64::from(ranks) * u64::from(rounds)
    );
    assert!(simulation.models().iter().all(|m| m.board.is_clear()));
    let digest = simulation
        .models()
        .iter()
        .fold(simulation.digest(), |d, m| d.wrapping_add(m.digest));
    (took, messages, digest)
}
