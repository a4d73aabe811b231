//! One source's part in a collective phase: all its messages served by its lanes in one visit.

use crate::env::Env;
use crate::fabric::outgoing::{Sender, SourceCosts, UnitCost};
use crate::fabric::{Crossing, Fabric, PathCost, PhaseSend, Receipt, Row, Toll};
use crate::fault::NoteKind;
use crate::layout::{Group, Layout};
use crate::message::{Bulk, Msg};
use crate::runtime::{Actor, Ctx};
use crate::time::Ps;
use crate::trace::{Limit, Place, Stage, What};
use crate::world::{Shared, World};
use supernode_topology::ActorId;

/// One source's part in a collective phase.
pub struct PhaseOut<'a> {
    pub board: u16,
    pub channel: u8,
    pub phase: u32,
    pub rank: u16,
    /// Ranks that take part.
    pub expected: u16,
    /// When the first message can leave.
    pub start_ps: Ps,
    pub unit_bytes: u32,
    /// Time the vector cores need to issue one unit, and one flag.
    pub issue_ps: Ps,
    pub flag_ps: Ps,
    pub barrier_ps: Ps,
    /// What it is part of.
    pub stage: Stage,
    pub place: Place,
    pub units: Sent<'a>,
}

/// What goes to whom.
#[derive(Clone, Copy)]
pub enum Sent<'a> {
    /// Units for each slot of each rank, by `rank * slots + slot`.
    BySlot(&'a [u32]),
    /// What each source's slots sent, back to it: received by `source * slots + slot`.
    Returned(&'a [u16]),
    /// One unit to every rank.
    ToEach,
}

impl Env<'_, '_> {
    /// Posts this rank's messages of a collective phase; returns when its own part (messages and flags) is sent.
    pub fn send_phase(&mut self, p: &PhaseOut<'_>) -> Ps {
        let shared = self.shared;
        let group = group(&shared.layout, p.board);
        let machine = &shared.machine;
        let ranks = group.dies.len();
        let die = group.dies[p.rank as usize];
        let node = group.node_of_rank[p.rank as usize];
        let bytes = u64::from(p.unit_bytes);
        let unit_cost = |path: &PathCost| UnitCost {
            unit_ps: path.per_byte.ps(bytes),
            latency_ps: path.latency_ps,
        };
        let (toll, sio_toll) = self.phase_tolls(p, group, die);
        let costs = SourceCosts {
            issue_ps: p.issue_ps,
            inside: unit_cost(&shared.paths.npu_npu_write.inside),
            between: unit_cost(&shared.paths.npu_npu_write.between),
            sio: unit_cost(&shared.paths.sio),
        }
        .under(&toll, &sio_toll);
        let (lane_id, sio_id) = (
            machine.die_lane(die, 0),
            machine.sio(machine.npu_of_die(die)),
        );
        let sio_up = die.is_multiple_of(2);
        let mut sender = Sender {
            cursor_ps: p.start_ps,
            lane_free_ps: self.fabric.link(lane_id).up.free_ps,
            sio_free_ps: {
                let sio = self.fabric.link(sio_id);
                if sio_up { &sio.up } else { &sio.down }.free_ps
            },
            ..Sender::default()
        };
        let mut row = std::mem::take(&mut self.fabric.row);
        let mut crossing_units = 0;
        {
            let fabric = &mut *self.fabric;
            let shape = fabric.boards[p.board as usize].shape();
            let borders = &mut fabric.borders;
            let to_node = |to: u32, units: u64, messages: u64| {
                crossing_units += units;
                borders[to as usize].down.add(units * bytes, messages);
                borders[node as usize].up.add(units * bytes, messages);
            };
            let rank = p.rank as usize;
            let silent = match p.units {
                Sent::BySlot(units) => units.iter().all(|n| *n == 0),
                Sent::Returned(units) => units.iter().all(|n| *n == 0),
                Sent::ToEach => false,
            };
            match p.units {
                _ if silent => row.clear(),
                Sent::BySlot(units) => {
                    sender.lay_out(shape, rank, &costs, units, &mut row, to_node);
                }
                Sent::Returned(units) => {
                    sender.lay_out(shape, rank, &costs, units, &mut row, to_node);
                }
                Sent::ToEach => {
                    let mut one = vec![0u16; ranks * shape.slots];
                    one.iter_mut().step_by(shape.slots).for_each(|n| *n = 1);
                    sender.lay_out(shape, rank, &costs, &one, &mut row, to_node);
                }
            }
        }
        let up = &mut self.fabric.link(lane_id).up;
        up.free_ps = sender.lane_free_ps;
        up.busy_ps += sender.lane_busy_ps;
        up.bytes += sender.lane_units * bytes;
        up.messages += sender.lane_messages;
        up.passed(sender.lane_busy_ps, sender.lane_messages);
        let sio = self.fabric.link(sio_id);
        let sio_dir = if sio_up { &mut sio.up } else { &mut sio.down };
        sio_dir.free_ps = sender.sio_free_ps;
        sio_dir.bytes += sender.sio_units * bytes;
        sio_dir.busy_ps += costs.sio.unit_ps * sender.sio_units;
        sio_dir.messages += sender.sio_messages;
        sio_dir.passed(costs.sio.unit_ps * sender.sio_units, sender.sio_messages);
        self.tally.messages.activation += sender.units;
        self.tally.messages.activation_messages += sender.messages;
        // Data first, then a barrier of the vector cores, then the flags.
        let flags_from_ps = sender.sent_ps() + p.barrier_ps + toll.extra_ps;
        if self.trace.is_on() {
            self.trace_sending(p, &sender, toll.extra_ps, lane_id.0);
            let crossing = crossing_units * bytes;
            self.across_uplinks(true, p.start_ps, sender.lane_free_ps, |_| crossing);
        }
        if toll.lost {
            // No lane lets anything out: neither messages nor flags.
            let up = &mut self.fabric.link(lane_id).up;
            up.lost_bytes += sender.lane_units * bytes;
            self.fabric.row = row;
            return flags_from_ps + p.flag_ps * ranks as Ps;
        }
        let send = PhaseSend {
            channel: p.channel,
            phase: p.phase,
            source: p.rank,
            expected: p.expected,
            unit_bytes: p.unit_bytes,
            from_ps: p.start_ps,
            flags_from_ps,
            flag_ps: p.flag_ps,
        };
        self.spread(p.board, &send, &row);
        self.fabric.row = row;
        flags_from_ps + p.flag_ps * ranks as Ps
    }

    /// What the source's side adds to a phase, over its lanes and over the die-to-die link.
    fn phase_tolls(&mut self, p: &PhaseOut<'_>, group: &Group, die: u32) -> (Toll, Toll) {
        if self.fabric.health.is_clear() {
            return (Toll::NONE, Toll::NONE);
        }
        let units: u64 = match p.units {
            Sent::BySlot(units) => units.iter().map(|&n| u64::from(n)).sum(),
            Sent::Returned(units) => units.iter().map(|&n| u64::from(n)).sum(),
            Sent::ToEach => u64::from(group.ranks()),
        };
        let machine = &self.shared.machine;
        let bytes = units * u64::from(p.unit_bytes);
        let crossing = Crossing {
            part: machine.die(die),
            out: true,
            remote: group.nodes.len() > 1,
            bytes,
        };
        let now = self.now();
        let rng = self.ctx.rng();
        let mut toll = self.fabric.health.toll(machine, crossing, now, rng);
        let sio = machine.sio(machine.npu_of_die(die));
        let out = die.is_multiple_of(2);
        let rng = self.ctx.rng();
        let sio_toll = self.fabric.health.port_toll(sio, out, bytes, now, rng);
        self.note_toll(&toll);
        if sio_toll.lost
            && let Some(waits_ps) = self.fabric.health.finds_lost(sio, out)
        {
            // What it has sent its neighbour goes over the lanes then, as all that follows.
            toll.extra_ps += waits_ps;
            self.tally.note(now, crossing.part.0, NoteKind::PortLost);
        }
        let lane = machine.die_lane(die, 0);
        self.fabric.link(lane).up.resent_bytes += toll.resent_bytes;
        (toll, sio_toll)
    }

    /// `extra_ps`: what bad lanes hold the flags back.
    #[cold]
    fn trace_sending(&mut self, p: &PhaseOut<'_>, sender: &Sender, extra_ps: Ps, lane: Actor) {
        let sent = sender.sent_ps();
        let limit = if extra_ps > 0 {
            Limit::Lanes
        } else if sent == sender.cursor_ps {
            Limit::Cores
        } else if sent == sender.lane_free_ps {
            Limit::Lanes
        } else {
            Limit::Sio
        };
        let bytes = sender.lane_units * u64::from(p.unit_bytes);
        let until_ps = sent + p.barrier_ps + extra_ps;
        let what = What::Send(p.stage);
        self.span(what, p.start_ps, until_ps, p.place, bytes, limit as u64);
        if sender.lane_busy_ps > 0 {
            self.span_of(
                lane,
                What::PhaseOut,
                p.start_ps,
                sender.lane_free_ps,
                p.place,
                bytes,
                sender.messages,
            );
        }
    }

    /// Posts a row on the boards of all shards that hold ranks of the group.
    fn spread(&mut self, board: u16, send: &PhaseSend, row: &Row) {
        let shape = self.fabric.boards[board as usize].shape();
        let here = self.ctx.shard();
        if let [only] = shape.of_shard[here].as_slice()
            && only.len() == shape.ranks()
        {
            return post(self.ctx, self.fabric, self.shared, board, send, row);
        }
        for shard in 0..shape.of_shard.len() {
            let mut part = self.fabric.empty_row();
            let shape = self.fabric.boards[board as usize].shape();
            if shape.of_shard[shard].is_empty() && shard != here {
                self.fabric.keep_row(part);
                continue;
            }
            row.of_shard(shape, shard, &mut part);
            if shard == here {
                post(self.ctx, self.fabric, self.shared, board, send, &part);
                self.fabric.keep_row(part);
            } else {
                self.ctx.bulk(
                    shard,
                    Bulk {
                        board,
                        channel: send.channel,
                        phase: send.phase,
                        source: send.source,
                        expected: send.expected,
                        unit_bytes: send.unit_bytes,
                        from_ps: send.from_ps,
                        flags_from_ps: send.flags_from_ps,
                        flag_ps: send.flag_ps,
                        row: part,
                    },
                );
            }
        }
    }

    /// All of a phase is in: this die's lanes serve it, and `units` gets its units by `source * slots + slot`.
    pub fn collect(
        &mut self,
        board: u16,
        rank: u16,
        channel: u8,
        phase: u32,
        place: Place,
        units: &mut [u16],
    ) -> Receipt {
        let now = self.now();
        let lane = self.shared.machine.die_lane(self.ctx.me(), 0);
        let fabric = &mut *self.fabric;
        let lanes = &mut fabric.links[(lane.0 - fabric.first_link) as usize].down;
        let (free_ps, busy_ps, bytes) = (lanes.free_ps, lanes.busy_ps, lanes.bytes);
        let nodes = group(&self.shared.layout, board).nodes.len();
        let posted = &mut fabric.boards[board as usize];
        let from_ps = posted.began_ps(channel, phase);
        let mut receipt = posted.collect(rank, channel, phase, now, lanes, units);
        if self.trace.is_on() {
            let (end_ps, bytes) = (lanes.free_ps, lanes.bytes - bytes);
            let start_ps = free_ps.max(from_ps);
            let messages = u64::from(receipt.messages);
            self.across_uplinks(false, start_ps, end_ps.max(start_ps), |env| {
                env.fabric.boards[board as usize].bytes_from_afar(rank, channel, phase, units)
            });
            if end_ps > start_ps {
                self.span_of(
                    lane.0,
                    What::PhaseIn,
                    start_ps,
                    end_ps,
                    place,
                    bytes,
                    messages,
                );
            }
        }
        if !self.fabric.health.is_clear() {
            let fabric = &mut *self.fabric;
            let lanes = &mut fabric.links[(lane.0 - fabric.first_link) as usize].down;
            let (busy_ps, bytes) = (lanes.busy_ps - busy_ps, lanes.bytes - bytes);
            let crossing = Crossing {
                part: ActorId(self.ctx.me()),
                out: false,
                remote: nodes > 1,
                bytes,
            };
            let machine = &self.shared.machine;
            let toll = fabric.health.toll(machine, crossing, now, self.ctx.rng());
            // Its own side is slower: what it served took so much longer, and so does what comes after.
            let longer_ps = toll.ps(busy_ps) - busy_ps;
            lanes.free_ps += longer_ps;
            lanes.busy_ps += longer_ps;
            lanes.resent_bytes += toll.resent_bytes;
            receipt.complete_ps += longer_ps + toll.extra_ps;
            self.note_toll(&toll);
        }
        self.tally.fold(receipt.hash);
        receipt
    }
}

/// The group whose board has this number: prefill groups, then decode groups.
fn group(layout: &Layout, board: u16) -> &Group {
    let board = board as usize;
    match board.checked_sub(layout.prefill.len()) {
        None => &layout.prefill[board],
        Some(decode) => &layout.decode[decode],
    }
}

/// Posts to a board of this shard, and sets the timers of ranks whose last flag is now known.
pub fn post(
    ctx: &mut Ctx<'_, World>,
    fabric: &mut Fabric,
    shared: &Shared,
    board: u16,
    send: &PhaseSend,
    row: &Row,
) {
    let mut arrived = std::mem::take(&mut fabric.arrived);
    fabric.boards[board as usize].post(send, row, &mut arrived);
    let dies = &group(&shared.layout, board).dies;
    for a in arrived.drain(..) {
        let die = dies[a.rank as usize];
        // The lane is the source, and the phase its sequence number: the event's place in the order does not
        // depend on which shard heard of it when.
        let lane = shared.machine.die_lane(die, 0).0;
        let seq = (u64::from(send.phase) << 2) | u64::from(send.channel);
        ctx.schedule(
            a.at_ps,
            lane,
            seq,
            die,
            Msg::Collected {
                channel: send.channel,
                phase: send.phase,
            },
        );
    }
    fabric.arrived = arrived;
}
