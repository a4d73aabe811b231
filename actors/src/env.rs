//! What an actor can do while it handles a message: send small messages and large transfers, set timers, count.

use supernode_topology::ActorId;

use crate::fabric::{Crossing, Fabric, Found, Served, Toll};
use crate::fault::NoteKind;
use crate::layout::Role;
use crate::message::{Copying, Inbound, Msg, Plane};
use crate::meter::Meter;
use crate::runtime::{Actor, Ctx};
use crate::tally::Tally;
use crate::time::Ps;
use crate::trace::{Place, Recorder, What, transfer_number};
use crate::world::{Shared, World};

/// What an actor can do while it handles a message.
pub struct Env<'a, 'c> {
    pub ctx: &'a mut Ctx<'c, World>,
    pub fabric: &'a mut Fabric,
    pub tally: &'a mut Tally,
    pub meters: &'a mut [Meter],
    pub trace: &'a mut Recorder,
    pub shared: &'a Shared,
    /// Who sent the message that is being handled.
    pub from: Actor,
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
        let mut latency_ps = 0;
        if to != me {
            let toll = self.small_toll(true, to, msg.is_of_clients());
            if toll.lost {
                self.tally.lost_messages += 1;
                return;
            }
            latency_ps = self.control_latency_ps(me, to) + toll.extra_ps;
        }
        match msg {
            Msg::FirstToken { .. } | Msg::Tokens { .. } => self.tally.messages.tokens += 1,
            _ => self.tally.messages.control += 1,
        }
        self.ctx.send_in(delay_ps + latency_ps, to, msg);
    }

    /// What the links on this actor's side add to a small message to or from `other`; clients have lines of their own.
    pub(crate) fn small_toll(&mut self, out: bool, other: Actor, of_clients: bool) -> Toll {
        if self.fabric.health.is_clear() || of_clients {
            return Toll::NONE;
        }
        let (me, now, s) = (self.ctx.me(), self.now(), self.shared);
        let crossing = Crossing {
            part: ActorId(me),
            out,
            remote: s.node_of(me) != s.node_of(other),
            bytes: u64::from(s.cal.wire.control_bytes),
        };
        let health = &mut self.fabric.health;
        let toll = health.small_toll(&s.machine, crossing, now, self.ctx.rng());
        self.note_toll(&toll);
        toll
    }

    /// A small message of the simulation itself: it takes the time of one, and is not counted.
    pub fn bookkeeping(&mut self, to: Actor, msg: Msg) {
        self.bookkeeping_after(0, to, msg);
    }

    pub fn bookkeeping_after(&mut self, delay_ps: Ps, to: Actor, msg: Msg) {
        let latency_ps = self.control_latency_ps(self.ctx.me(), to);
        self.ctx.send_in(delay_ps + latency_ps, to, msg);
    }

    /// Cost of a large transfer between two parts. A CPU sends to a die because the die reads from it.
    fn transfer_cost(
        &self,
        from: Actor,
        to: Actor,
        plane: Plane,
        read: bool,
    ) -> crate::fabric::PathCost {
        let s = self.shared;
        let same = s.node_of(from) == s.node_of(to);
        match plane {
            Plane::Rdma => s.paths.rdma,
            Plane::Vpc => s.paths.vpc,
            Plane::Ub => match (s.is_die(from), s.is_die(to)) {
                (true, true) if read => s.paths.npu_npu_read.at(same),
                (true, true) => s.paths.npu_npu_write.at(same),
                (false, true) => s.paths.npu_cpu_read.at(same),
                _ => s.paths.npu_cpu_write.at(same),
            },
        }
    }

    /// The port of a part on a plane.
    pub(crate) fn port(&self, actor: Actor, plane: Plane) -> ActorId {
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
        let read = !self.shared.is_die(self.ctx.me());
        self.tally.messages.kv_block += 1;
        self.transfer_try(to, bytes, plane, read, 0, then);
    }

    /// As `transfer`, of what is not KV: weights, and what EPLB counts and plans. `read`: the receiver reads it.
    pub fn transfer_other(&mut self, to: Actor, bytes: u64, plane: Plane, read: bool, then: Msg) {
        self.tally.messages.weight_block += 1;
        self.transfer_try(to, bytes, plane, read, 0, then);
    }

    /// Sends the actor's own bytes because another part asked for a copy.
    pub fn copy(&mut self, c: Copying) {
        let then = Msg::Copied {
            started_ps: self.now(),
        };
        self.tally.messages.kv_block += 1;
        self.transfer_try(c.to, c.bytes, Plane::Ub, c.read, 0, then);
    }

    /// What the links on this actor's side, out of it or into it, add to a message to or from `other`.
    pub fn toll(&mut self, out: bool, other: Actor, bytes: u64, plane: Plane) -> Toll {
        if self.fabric.health.is_clear() {
            return Toll::NONE;
        }
        let (me, now, s) = (self.ctx.me(), self.now(), self.shared);
        let port = self.port(me, plane);
        let health = &mut self.fabric.health;
        let toll = if plane == Plane::Ub {
            let crossing = Crossing {
                part: ActorId(me),
                out,
                remote: s.node_of(me) != s.node_of(other),
                bytes,
            };
            health.toll(&s.machine, crossing, now, self.ctx.rng())
        } else {
            health.port_toll(port, out, bytes, now, self.ctx.rng())
        };
        self.note_toll(&toll);
        let link = self.fabric.link(port);
        let way = if out { &mut link.up } else { &mut link.down };
        way.resent_bytes += toll.resent_bytes;
        toll
    }

    /// Remembers what this part found out about its lanes.
    pub(crate) fn note_toll(&mut self, toll: &Toll) {
        let kind = match toll.found {
            None => return,
            Some(Found::Worse) => NoteKind::LaneWorse,
            Some(Found::Better) => NoteKind::LaneBetter,
        };
        let (now, me) = (self.now(), self.ctx.me());
        self.tally.note(now, me, kind);
    }

    /// One try of a transfer.
    pub(crate) fn transfer_try(
        &mut self,
        to: Actor,
        bytes: u64,
        plane: Plane,
        read: bool,
        tries: u8,
        then: Msg,
    ) {
        let me = self.ctx.me();
        let cost = self.transfer_cost(me, to, plane, read);
        let toll = self.toll(true, to, bytes, plane);
        let ps = toll.ps(cost.per_byte.ps(bytes));
        let now = self.now();
        if plane == Plane::Ub {
            let (a, b) = (self.shared.node_of(me), self.shared.node_of(to));
            if a != b {
                self.fabric.borders[a as usize].up.add(bytes, 1);
            }
        }
        let port = self.port(me, plane);
        let served = self.fabric.link(port).up.serve(now, ps, bytes);
        let read_ps = self.through_memory(bytes, served);
        let head_ps = served.start_ps + cost.latency_ps + toll.extra_ps;
        let tail_ps = read_ps + cost.latency_ps + toll.extra_ps;
        self.meter().transfer.record(tail_ps - now);
        if self.trace.is_on() {
            let number = transfer_number(me, to, tail_ps);
            let (start_ps, end_ps) = (served.start_ps, served.end_ps);
            let place = Place::default();
            self.span_of(
                port.0,
                What::TransferOut,
                start_ps,
                end_ps,
                place,
                bytes,
                number,
            );
            if plane == Plane::Ub && self.shared.node_of(me) != self.shared.node_of(to) {
                self.across_uplinks(true, start_ps, end_ps, |_| bytes);
            }
        }
        let inbound = Inbound {
            bytes,
            plane,
            read,
            tries,
            tail_ps,
            then,
        };
        if toll.lost {
            self.fabric.link(port).up.lost_bytes += bytes;
            let wait_ps = self.resend_after_ps(tries);
            let inbound = Box::new(inbound);
            return self.after(wait_ps, Msg::Unacked { to, inbound });
        }
        self.ctx
            .send_at(head_ps, to, Msg::Inbound(Box::new(inbound)));
    }

    /// A transfer's first byte is here: its port serves it, and what it carries is delivered after the last.
    pub fn inbound(&mut self, from: Actor, inbound: Inbound) {
        let me = self.ctx.me();
        let toll = self.toll(false, from, inbound.bytes, inbound.plane);
        if toll.lost {
            return self.lost_inbound(from, inbound, true);
        }
        let Inbound {
            bytes,
            plane,
            read,
            tail_ps,
            then,
            ..
        } = inbound;
        let cost = self.transfer_cost(from, me, plane, read);
        if plane == Plane::Ub {
            let (a, b) = (self.shared.node_of(from), self.shared.node_of(me));
            if a != b {
                self.fabric.borders[b as usize].down.add(bytes, 1);
            }
            self.serve_board_until_now(me);
        }
        let port = self.port(me, plane);
        let now = self.now();
        let served =
            self.fabric
                .link(port)
                .down
                .serve(now, toll.ps(cost.per_byte.ps(bytes)), bytes);
        if self.trace.is_on() {
            let number = transfer_number(from, me, tail_ps);
            let (start_ps, end_ps) = (served.start_ps, served.end_ps);
            let place = Place::default();
            self.span_of(
                port.0,
                What::TransferIn,
                start_ps,
                end_ps,
                place,
                bytes,
                number,
            );
            if plane == Plane::Ub && self.shared.node_of(from) != self.shared.node_of(me) {
                self.across_uplinks(false, start_ps, end_ps, |_| bytes);
            }
        }
        let written_ps = self.through_memory(bytes, served);
        let end_ps = written_ps.max(tail_ps) + toll.extra_ps;
        self.ctx.send_at(end_ps, me, then);
    }

    /// When the last byte of what this part's port serves is read from its memory, or written to it. HBM is never in the way
    /// of a port.
    fn through_memory(&mut self, bytes: u64, port: Served) -> Ps {
        let (me, now) = (self.ctx.me(), self.now());
        if self.shared.is_die(me) {
            return port.end_ps;
        }
        self.fabric.hosts.through_memory(me, now, bytes, port)
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
}
