//! One shard's part of the machine: its dies, CPUs and links, and the services they share (sending,
//! counting). An actor sees only its own state, its messages and these services; none holds a view of the whole.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use supernode_topology::{ActorId, Machine, Part};

use crate::compute::{Calibration, DecodeTimes, PrefillTimes};
use crate::config::{Fidelity, Serving};
use crate::cpu::Cpu;
use crate::die::Die;
use crate::experts::{Plan, Routing};
use crate::fabric::{Arrived, Board, Link, Paths, PerByte, PhaseSend};
use crate::launch::Phase;
use crate::layout::{Layout, Role};
use crate::message::{Bulk, Inbound, Msg, Parcel, Plane};
use crate::model::ModelSpec;
use crate::runtime::{Actor, Ctx, Model};
use crate::tally::Tally;
use crate::time::Ps;

/// What every actor knows from the start: the machine's plan and the parts' costs. Never changes in a run.
#[derive(Debug)]
pub struct Shared {
    pub machine: Arc<Machine>,
    pub model: ModelSpec,
    pub serving: Serving,
    pub cal: Calibration,
    pub layout: Layout,
    pub paths: Paths,
    pub decode_times: DecodeTimes,
    pub prefill_times: Option<PrefillTimes>,
    pub decode_experts: Option<ExpertLayers>,
    pub prefill_experts: Option<ExpertLayers>,
    /// Tokens of KV that a decode die has memory for.
    pub decode_kv_tokens: u64,
    /// Bytes of one KV block in the cache, and of one token's KV.
    pub block_bytes: u64,
    pub kv_bytes_per_token: f64,
    pub phase: Phase,
    /// Closed loop: requests in the machine at any time.
    pub concurrency: Option<u32>,
    /// Tokens are sent home step by step, not at the end.
    pub stream_tokens: bool,
    pub shards: u32,
    pub progress: Counters,
    /// Smallest time from starting a dispatch or combine to its first byte at another die.
    pub phase_lookahead_ps: Ps,
    pub control_lookahead_ps: Ps,
}

/// Counted by all homes, for progress bars only: nothing in the machine reads them.
#[derive(Debug, Default)]
pub struct Counters {
    pub offered: AtomicU64,
    pub ended: AtomicU64,
}

/// Expert plans and popularity by MoE layer (one entry serves all layers that are alike).
#[derive(Clone, Debug)]
pub struct ExpertLayers {
    pub plans: Vec<Plan>,
    pub routings: Vec<Routing>,
    /// Index into both, by MoE layer; layers past the end (multi-token prediction) use the last.
    pub of_layer: Vec<u16>,
    pub slots_per_rank: u32,
}

impl ExpertLayers {
    pub fn at(&self, layer: u32) -> (&Plan, &Routing) {
        let i = *self
            .of_layer
            .get(layer as usize)
            .unwrap_or_else(|| self.of_layer.last().expect("a model has MoE layers"));
        (&self.plans[i as usize], &self.routings[i as usize])
    }
}

impl Shared {
    pub fn node_of_die(&self, die: u32) -> u32 {
        die / self.machine.dies_per_node()
    }

    pub fn die_actor(&self, die: u32) -> Actor {
        self.machine.die(die).0
    }

    pub fn cpu_actor(&self, cpu: u32) -> Actor {
        self.machine.cpu(cpu).0
    }

    /// Index of a die from its actor id: dies come first.
    pub fn die_index(&self, actor: Actor) -> u32 {
        debug_assert!(actor < self.machine.die_count());
        actor
    }

    pub fn cpu_index(&self, actor: Actor) -> u32 {
        actor - self.machine.die_count()
    }

    pub fn is_die(&self, actor: Actor) -> bool {
        actor < self.machine.die_count()
    }

    fn node_of(&self, actor: Actor) -> u32 {
        self.machine.node_of(ActorId(actor))
    }

    pub fn message_level(&self) -> bool {
        self.serving.fidelity.level == Fidelity::Message
    }
}

/// The links of this shard's nodes and the boards of its groups.
#[derive(Debug)]
pub struct Fabric {
    /// By link actor id, counted from the first link. All 7 lanes of a part carry equal shares of each message, so
    /// lane 0 stands for all seven.
    links: Vec<Link>,
    first_link: u32,
    /// Prefill groups' boards, then decode groups'.
    pub boards: Vec<Board>,
    /// Bytes that left and entered each node over its L1-L2 links.
    pub node_up_bytes: Vec<u64>,
    pub node_down_bytes: Vec<u64>,
    /// Reused between phases.
    out: Vec<Vec<Parcel>>,
    arrived: Vec<Arrived>,
}

impl Fabric {
    pub fn new(machine: &Machine, boards: Vec<Board>, shards: u32) -> Self {
        let first_link = machine.die_count() + machine.cpu_count();
        Self {
            links: vec![Link::default(); (machine.actor_count() - first_link) as usize],
            first_link,
            boards,
            node_up_bytes: vec![0; machine.node_count() as usize],
            node_down_bytes: vec![0; machine.node_count() as usize],
            out: vec![Vec::new(); shards as usize],
            arrived: Vec::new(),
        }
    }

    pub fn link(&mut self, id: ActorId) -> &mut Link {
        &mut self.links[(id.0 - self.first_link) as usize]
    }

    pub fn peek(&self, id: ActorId) -> &Link {
        &self.links[(id.0 - self.first_link) as usize]
    }
}

/// What an actor can do while it handles a message.
pub struct Env<'a, 'c> {
    pub ctx: &'a mut Ctx<'c, World>,
    pub fabric: &'a mut Fabric,
    pub tally: &'a mut Tally,
    pub shared: &'a Shared,
    /// Who sent the message that is being handled.
    pub from: Actor,
}

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
    pub fn now(&self) -> Ps {
        self.ctx.now()
    }

    /// A timer for the actor itself.
    pub fn after(&mut self, delay_ps: Ps, msg: Msg) {
        let me = self.ctx.me();
        self.ctx.send_in(delay_ps, me, msg);
    }

    pub fn at(&mut self, time_ps: Ps, msg: Msg) {
        let me = self.ctx.me();
        self.ctx.send_at(time_ps, me, msg);
    }

    /// Latency of a small message between two parts.
    pub fn control_latency_ps(&self, from: Actor, to: Actor) -> Ps {
        let s = self.shared;
        let same = s.node_of(from) == s.node_of(to);
        let cost = if s.is_die(from) && s.is_die(to) {
            s.paths.npu_npu_write.at(same)
        } else {
            s.paths.npu_cpu_write.at(same)
        };
        cost.latency_ps + cost.per_byte.ps(u64::from(s.cal.wire.control_bytes))
    }

    /// Sends a small message over the UB plane. It shares no queue with large transfers (a virtual lane of its own).
    pub fn control(&mut self, to: Actor, msg: Msg) {
        self.control_after(0, to, msg);
    }

    pub fn control_after(&mut self, delay_ps: Ps, to: Actor, msg: Msg) {
        let me = self.ctx.me();
        let latency_ps = if to == me {
            0
        } else {
            self.control_latency_ps(me, to)
        };
        match msg {
            Msg::FirstToken { .. } | Msg::Tokens { .. } => self.tally.messages.tokens += 1,
            _ => self.tally.messages.control += 1,
        }
        self.ctx.send_in(delay_ps + latency_ps, to, msg);
    }

    /// Cost of a large transfer between two parts. A CPU sends to a die because the die reads from it.
    fn transfer_cost(&self, from: Actor, to: Actor, plane: Plane) -> crate::fabric::PathCost {
        let s = self.shared;
        let same = s.node_of(from) == s.node_of(to);
        match plane {
            Plane::Rdma => s.paths.rdma,
            Plane::Vpc => s.paths.vpc,
            Plane::Ub => match (s.is_die(from), s.is_die(to)) {
                (true, true) => s.paths.npu_npu_write.at(same),
                (false, true) => s.paths.npu_cpu_read.at(same),
                _ => s.paths.npu_cpu_write.at(same),
            },
        }
    }

    /// The port of a part on a plane.
    fn port(&self, actor: Actor, plane: Plane) -> ActorId {
        let m = &self.shared.machine;
        match plane {
            Plane::Vpc => m.vpc(self.shared.node_of(actor)),
            Plane::Rdma => m.rdma(self.shared.die_index(actor)),
            Plane::Ub if self.shared.is_die(actor) => m.die_lane(actor, 0),
            Plane::Ub => m.cpu_lane(self.shared.cpu_index(actor), 0),
        }
    }

    /// Sends `bytes` from the actor itself; `then` is delivered to `to` when the last byte is in.
    pub fn transfer(&mut self, to: Actor, bytes: u64, plane: Plane, then: Msg) {
        let me = self.ctx.me();
        let cost = self.transfer_cost(me, to, plane);
        let ps = cost.per_byte.ps(bytes);
        let now = self.now();
        self.tally.messages.kv_block += 1;
        if plane == Plane::Ub {
            let (a, b) = (self.shared.node_of(me), self.shared.node_of(to));
            if a != b {
                self.fabric.node_up_bytes[a as usize] += bytes;
            }
        }
        let port = self.port(me, plane);
        let served = self.fabric.link(port).up.serve(now, ps, bytes);
        let head_ps = served.start_ps + cost.latency_ps;
        let inbound = Inbound {
            bytes,
            plane,
            tail_ps: served.end_ps + cost.latency_ps,
            then,
        };
        self.ctx
            .send_at(head_ps, to, Msg::Inbound(Box::new(inbound)));
    }

    /// A transfer's first byte is here: its port serves it, and what it carries is delivered after the last.
    pub fn inbound(&mut self, from: Actor, inbound: Inbound) {
        let me = self.ctx.me();
        let Inbound {
            bytes,
            plane,
            tail_ps,
            then,
        } = inbound;
        let cost = self.transfer_cost(from, me, plane);
        if plane == Plane::Ub {
            let (a, b) = (self.shared.node_of(from), self.shared.node_of(me));
            if a != b {
                self.fabric.node_down_bytes[b as usize] += bytes;
            }
            self.serve_board_until_now(me);
        }
        let port = self.port(me, plane);
        let now = self.now();
        let served = self
            .fabric
            .link(port)
            .down
            .serve(now, cost.per_byte.ps(bytes), bytes);
        self.ctx.send_at(served.end_ps.max(tail_ps), me, then);
    }

    /// Activations that reached this die's lanes before now are ahead of what arrives now.
    fn serve_board_until_now(&mut self, me: Actor) {
        if !self.shared.is_die(me) {
            return;
        }
        if let Some((board, rank)) = self.board_of(me) {
            self.serve_board(board, rank);
        }
    }

    fn board_of(&self, die: Actor) -> Option<(u16, u16)> {
        match self.shared.layout.roles[die as usize] {
            Role::Idle => None,
            Role::Prefill { group, rank } => Some((group, rank)),
            Role::Decode { group, rank } => {
                Some((self.shared.layout.prefill.len() as u16 + group, rank))
            }
        }
    }

    /// Lets this die's lanes serve all that its board has posted for it up to now.
    pub fn serve_board(&mut self, board: u16, rank: u16) {
        let now = self.now();
        let me = self.ctx.me();
        let lane = self.shared.machine.die_lane(me, 0);
        let fabric = &mut *self.fabric;
        let direction = &mut fabric.links[(lane.0 - fabric.first_link) as usize].down;
        fabric.boards[board as usize].serve(rank, now, direction);
    }

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
fn post(
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

/// One shard's actors.
pub struct World {
    pub shared: Arc<Shared>,
    pub dies: Vec<Option<Box<Die>>>,
    pub cpus: Vec<Option<Box<Cpu>>>,
    pub fabric: Fabric,
    pub tally: Tally,
}

impl Model for World {
    type Msg = Msg;
    type Bulk = Bulk;

    fn handle(&mut self, to: Actor, from: Actor, msg: Msg, ctx: &mut Ctx<'_, Self>) {
        let shared = Arc::clone(&self.shared);
        let mut env = Env {
            ctx,
            fabric: &mut self.fabric,
            tally: &mut self.tally,
            shared: &shared,
            from,
        };
        let msg = match msg {
            Msg::Inbound(inbound) => return env.inbound(from, *inbound),
            other => other,
        };
        if shared.is_die(to) {
            let mut die = self.dies[to as usize]
                .take()
                .expect("a die gets messages on its own shard only");
            die.handle(from, msg, &mut env);
            self.dies[to as usize] = Some(die);
        } else {
            let i = shared.cpu_index(to) as usize;
            let mut cpu = self.cpus[i]
                .take()
                .expect("a CPU gets messages on its own shard only");
            cpu.handle(from, msg, &mut env);
            self.cpus[i] = Some(cpu);
        }
    }

    fn absorb(&mut self, bulk: Bulk, ctx: &mut Ctx<'_, Self>) {
        let send = PhaseSend {
            channel: bulk.channel,
            phase: bulk.phase,
            source: bulk.source,
            unit_bytes: bulk.unit_bytes,
            flags_from_ps: bulk.flags_from_ps,
            flag_ps: bulk.flag_ps,
        };
        post(
            ctx,
            &mut self.fabric,
            &self.shared,
            bulk.board,
            &send,
            &bulk.parcels,
        );
    }

    fn class(msg: &Msg) -> usize {
        match msg {
            Msg::AttentionDone { .. }
            | Msg::Collected { .. }
            | Msg::ExpertsDone
            | Msg::LayerDone
            | Msg::Landed { .. }
            | Msg::Computed { .. } => PHASE_CLASS,
            _ => CONTROL_CLASS,
        }
    }

    fn digest(msg: &Msg) -> u64 {
        msg.digest()
    }

    /// Boxes are handed over, small values copied.
    fn take(msg: &mut Msg) -> Msg {
        std::mem::replace(msg, Msg::Taken)
    }

    fn address(&self, actor: Actor) -> String {
        self.shared.machine.address(ActorId(actor))
    }

    fn kind(&self, actor: Actor) -> usize {
        match self.shared.machine.part(ActorId(actor)) {
            Part::Die { .. } => 0,
            Part::Cpu { .. } => 1,
            _ => 2,
        }
    }

    fn kind_names() -> &'static [&'static str] {
        &["die", "cpu", "link"]
    }
}

/// Lookahead classes: events that can send small messages at once, and events that can only start a phase.
pub const CONTROL_CLASS: usize = 0;
pub const PHASE_CLASS: usize = 1;

/// Picoseconds per unit of a message of `bytes`.
pub fn unit_ps(per_byte: PerByte, bytes: u32) -> Ps {
    per_byte.ps(u64::from(bytes))
}
