//! One source's part in a collective phase: all its messages served by its lanes in one visit.

use crate::env::Env;
use crate::fabric::{Board, Fabric, PhaseSend};
use crate::layout::Layout;
use crate::message::{Bulk, Msg, Parcel};
use crate::runtime::Ctx;
use crate::time::Ps;
use crate::trace::{Limit, Place, Stage, What};
use crate::world::{Shared, World};

/// One source's part in a collective phase.
pub struct PhaseOut<'a> {
    pub board: u16,
    pub channel: u8,
    pub phase: u32,
    pub rank: u16,
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
    /// Units for each (rank, slot), rank-major.
    pub units: &'a dyn Units,
}

/// Units that a source sends to each (rank, slot).
pub trait Units {
    fn units(&self, rank: usize, slot: usize) -> u32;
}

/// Units by destination slot, rank-major.
pub struct BySlot<'a>(pub &'a [u32], pub usize);
impl Units for BySlot<'_> {
    #[inline]
    fn units(&self, rank: usize, slot: usize) -> u32 {
        self.0[rank * self.1 + slot]
    }
}

/// Units that go back where they came from: received by `slot * ranks + source`.
pub struct Returned<'a>(pub &'a [u16], pub usize);
impl Units for Returned<'_> {
    #[inline]
    fn units(&self, rank: usize, slot: usize) -> u32 {
        u32::from(self.0[slot * self.1 + rank])
    }
}

/// The same for every other rank.
pub struct ToEach(pub u16);
impl Units for ToEach {
    #[inline]
    fn units(&self, _rank: usize, slot: usize) -> u32 {
        u32::from(slot == 0)
    }
}
impl Env<'_, '_> {
    /// Posts this rank's messages of a collective phase; returns when its own part (messages and flags) is sent.
    pub fn send_phase(&mut self, p: &PhaseOut<'_>) -> Ps {
        let shared = self.shared;
        let groups = &shared.layout.prefill;
        let group = if (p.board as usize) < groups.len() {
            &groups[p.board as usize]
        } else {
            &shared.layout.decode[p.board as usize - groups.len()]
        };
        let machine = &shared.machine;
        let ranks = group.dies.len();
        let die = group.dies[p.rank as usize];
        let node = group.node_of_rank[p.rank as usize];
        let npu = machine.npu_of_die(die);
        let cost = shared.paths.npu_npu_write;
        let (inside, between) = (
            (
                cost.inside.per_byte.ps(u64::from(p.unit_bytes)),
                cost.inside.latency_ps,
            ),
            (
                cost.between.per_byte.ps(u64::from(p.unit_bytes)),
                cost.between.latency_ps,
            ),
        );
        let sio_unit_ps = shared.paths.sio.per_byte.ps(u64::from(p.unit_bytes));
        let slots = self.fabric.boards[p.board as usize].slots_per_rank() as usize;
        let tag = PhaseSend {
            channel: p.channel,
            phase: p.phase,
            source: p.rank,
            unit_bytes: p.unit_bytes,
            flags_from_ps: 0,
            flag_ps: p.flag_ps,
        }
        .tag();
        let lane_id = machine.die_lane(die, 0);
        let sio_id = machine.sio(npu);
        let sio_up = die % 2 == 0;
        let mut cursor = p.start_ps;
        let mut lane_free = self.fabric.link(lane_id).up.free_ps;
        let mut sio_free = {
            let sio = self.fabric.link(sio_id);
            if sio_up {
                sio.up.free_ps
            } else {
                sio.down.free_ps
            }
        };
        let mut out = std::mem::take(&mut self.fabric.out);
        let (
            mut lane_bytes,
            mut lane_busy,
            mut sio_bytes,
            mut remote_units,
            mut units,
            mut messages,
        ) = (0u64, 0, 0u64, 0u64, 0u64, 0u64);
        let own_shard = self.ctx.shard();
        for k in 0..ranks {
            let rank = if p.rank as usize + k >= ranks {
                p.rank as usize + k - ranks
            } else {
                p.rank as usize + k
            };
            let to_node = group.node_of_rank[rank];
            let shard = Layout::shard_of_node(to_node, shared.shards) as usize;
            for slot in 0..slots {
                let n = p.units.units(rank, slot);
                if n == 0 {
                    continue;
                }
                units += u64::from(n);
                messages += 1;
                cursor += p.issue_ps * Ps::from(n);
                let (at_ps, source) = if k == 0 {
                    (cursor, Board::direct(p.rank))
                } else if machine.npu_of_die(group.dies[rank]) == npu {
                    sio_free = sio_free.max(cursor) + sio_unit_ps * Ps::from(n);
                    sio_bytes += u64::from(n) * u64::from(p.unit_bytes);
                    (
                        sio_free + shared.paths.sio.latency_ps,
                        Board::direct(p.rank),
                    )
                } else {
                    let (unit_ps, latency_ps) = if to_node == node { inside } else { between };
                    let ps = unit_ps * Ps::from(n);
                    let start = cursor.max(lane_free);
                    lane_free = start + ps;
                    lane_busy += ps;
                    lane_bytes += u64::from(n) * u64::from(p.unit_bytes);
                    if to_node != node {
                        remote_units += u64::from(n);
                        self.fabric.node_down_bytes[to_node as usize] +=
                            u64::from(n) * u64::from(p.unit_bytes);
                    }
                    (start + latency_ps, p.rank)
                };
                out[shard].push(Parcel {
                    at_ps,
                    rank: rank as u16,
                    source,
                    count: n as u16,
                    slot: slot as u8,
                    tag,
                });
            }
        }
        let link = self.fabric.link(lane_id);
        link.up.free_ps = lane_free;
        link.up.busy_ps += lane_busy;
        link.up.bytes += lane_bytes;
        link.up.messages += messages;
        let sio = self.fabric.link(sio_id);
        let sio_dir = if sio_up { &mut sio.up } else { &mut sio.down };
        sio_dir.free_ps = sio_free;
        sio_dir.bytes += sio_bytes;
        sio_dir.busy_ps += shared.paths.sio.per_byte.ps(sio_bytes);
        self.fabric.node_up_bytes[node as usize] += remote_units * u64::from(p.unit_bytes);
        self.tally.messages.activation += units;
        self.tally.messages.activation_messages += messages;
        // Data first, then a barrier of the vector cores, then the flags.
        let sent = cursor.max(lane_free).max(sio_free);
        let flags_from_ps = sent + p.barrier_ps;
        if self.trace.is_on() {
            let limit = if sent == cursor {
                Limit::Cores
            } else if sent == lane_free {
                Limit::Lanes
            } else {
                Limit::Sio
            };
            let what = What::Send(p.stage);
            let (start_ps, bytes) = (p.start_ps, lane_bytes);
            self.span(what, start_ps, flags_from_ps, p.place, bytes, limit as u64);
            if lane_busy > 0 {
                let what = What::PhaseOut;
                self.span_of(
                    lane_id.0, what, start_ps, lane_free, p.place, bytes, messages,
                );
            }
        }
        let send = PhaseSend {
            channel: p.channel,
            phase: p.phase,
            source: p.rank,
            unit_bytes: p.unit_bytes,
            flags_from_ps,
            flag_ps: p.flag_ps,
        };
        for (shard, parcels) in out.iter_mut().enumerate() {
            if shard == own_shard {
                self.post(p.board, &send, parcels);
                parcels.clear();
            } else if shard < shared.shards as usize {
                let bulk = Bulk {
                    board: p.board,
                    channel: p.channel,
                    phase: p.phase,
                    source: p.rank,
                    unit_bytes: p.unit_bytes,
                    flags_from_ps,
                    flag_ps: p.flag_ps,
                    parcels: std::mem::take(parcels),
                };
                self.ctx.bulk(shard, bulk);
            }
        }
        self.fabric.out = out;
        flags_from_ps + p.flag_ps * ranks as Ps
    }

    fn post(&mut self, board: u16, send: &PhaseSend, parcels: &[Parcel]) {
        post(self.ctx, self.fabric, self.shared, board, send, parcels);
    }
}

/// Posts to a board of this shard, and sets the timers of ranks whose last flag is now known.
pub fn post(
    ctx: &mut Ctx<'_, World>,
    fabric: &mut Fabric,
    shared: &Shared,
    board: u16,
    send: &PhaseSend,
    parcels: &[Parcel],
) {
    let mut arrived = std::mem::take(&mut fabric.arrived);
    fabric.boards[board as usize].post(send, parcels, &mut arrived);
    let prefills = shared.layout.prefill.len();
    let dies = if (board as usize) < prefills {
        &shared.layout.prefill[board as usize].dies
    } else {
        &shared.layout.decode[board as usize - prefills].dies
    };
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
