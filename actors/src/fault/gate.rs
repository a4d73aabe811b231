//! What faults keep from its receiver: messages to a part that has crashed or is cut off are lost, those to one that
//! hangs wait, and timers of a life that has ended mean nothing to the next.

use supernode_topology::ActorId;

use crate::env::Env;
use crate::message::{Inbound, Msg, Plane};
use crate::runtime::{Actor, OUTSIDE};
use crate::world::{World, env_of};

use super::{Body, Change, NoteKind, Strike};

/// Whether a message is to be handled now.
pub enum Verdict {
    /// With its sender.
    Handle(Actor, Msg),
    /// It is gone, or waits.
    Not,
}

impl World {
    fn body(&mut self, part: Actor) -> &mut Body {
        if self.shared.is_die(part) {
            let die = self.dies[part as usize].as_mut();
            &mut die.expect("a die gets messages on its own shard only").body
        } else {
            let i = self.shared.cpu_index(part) as usize;
            let cpu = self.cpus[i].as_mut();
            &mut cpu.expect("a CPU gets messages on its own shard only").body
        }
    }

    /// Looks at a message before its receiver does. Called once any fault has struck on this shard.
    pub(crate) fn gate(
        &mut self,
        to: Actor,
        from: Actor,
        msg: Msg,
        ctx: &mut crate::runtime::Ctx<'_, Self>,
    ) -> Verdict {
        let shared = std::sync::Arc::clone(&self.shared);
        let now = ctx.now();
        let machine = &shared.machine;
        if to == shared.object_store() {
            return Verdict::Handle(from, msg);
        }
        if to >= machine.die_count() + machine.cpu_count() {
            if let Msg::Fault(strike) = msg {
                self.fabric.health.strike(ActorId(to), strike, now, machine);
            }
            return Verdict::Not;
        }
        let own = from == to;
        if own && self.body(to).is_stale(ctx.event_seq()) && !msg.is_of_clients() {
            return Verdict::Not;
        }
        if matches!(msg, Msg::Fault(_)) || msg.is_of_clients() {
            return Verdict::Handle(from, msg);
        }
        let mut env = env_of!(self, ctx, &shared, from);
        let (from, msg) = match msg {
            Msg::Late { from, msg } => (from, *msg),
            // Flags of a phase that is complete: none comes through where no lane does.
            Msg::Collected { .. } if env.is_cut_off() => {
                env.tally.lost_messages += 1;
                return Verdict::Not;
            }
            msg if !own && from != OUTSIDE && is_small(&msg) => {
                let toll = env.small_toll(false, from, false);
                if toll.lost {
                    env.tally.lost_messages += 1;
                    return Verdict::Not;
                }
                if toll.extra_ps > 0 {
                    let msg = Box::new(msg);
                    env.after(toll.extra_ps, Msg::Late { from, msg });
                    return Verdict::Not;
                }
                (from, msg)
            }
            msg => (from, msg),
        };
        let body = self.body(to);
        let (crashed, stopped) = (body.is_crashed(), body.is_stopped());
        if stopped && !crashed && !matches!(msg, Msg::Inbound(_)) {
            body.hold(from, msg);
            return Verdict::Not;
        }
        if !crashed {
            // Memory is written whatever the cores do.
            return Verdict::Handle(from, msg);
        }
        let mut env = env_of!(self, ctx, &shared, from);
        match msg {
            Msg::Inbound(inbound) => env.lost_inbound(from, *inbound, false),
            Msg::StoreBlock { bytes, .. } => {
                let port = env.port(env.ctx.me(), Plane::Vpc);
                env.fabric.link(port).down.lost_bytes += bytes;
            }
            _ => env.tally.lost_messages += 1,
        }
        Verdict::Not
    }

    /// A fault strikes a die or CPU, or is over.
    pub(crate) fn strike(
        &mut self,
        part: Actor,
        strike: Strike,
        ctx: &mut crate::runtime::Ctx<'_, Self>,
    ) -> Change {
        let (now, next_seq) = (ctx.now(), ctx.next_seq());
        let body = self.body(part);
        let change = body.strike(strike, now);
        if let Change::Crashed | Change::Restarted = change {
            body.begin_anew(next_seq);
        }
        change
    }

    /// What waited for a part that hangs no more, in order.
    pub(crate) fn held(&mut self, part: Actor) -> Vec<(Actor, Msg)> {
        self.body(part).take_held()
    }
}

/// It came over UB lanes, by itself: not as part of a phase, nor as a large transfer.
fn is_small(msg: &Msg) -> bool {
    !matches!(
        msg,
        Msg::Inbound(_) | Msg::StoreBlock { .. } | Msg::Collected { .. }
    ) && !msg.is_of_simulation()
}

impl Env<'_, '_> {
    /// No lane lets anything in.
    fn is_cut_off(&mut self) -> bool {
        let (me, now) = (ActorId(self.ctx.me()), self.now());
        let machine = &self.shared.machine;
        self.fabric.health.is_cut_off(machine, me, false, now)
    }

    /// A transfer did not reach this part. Its sender, hearing no acknowledgement, sends it again (`again`) unless
    /// there is nobody to send it to.
    pub fn lost_inbound(&mut self, from: Actor, inbound: Inbound, again: bool) {
        let me = self.ctx.me();
        let port = self.port(me, inbound.plane);
        self.fabric.link(port).down.lost_bytes += inbound.bytes;
        if again {
            let (wait_ps, to) = (self.resend_after_ps(inbound.tries), me);
            self.bookkeeping_after(
                wait_ps,
                from,
                Msg::Unacked {
                    to,
                    inbound: Box::new(inbound),
                },
            );
        }
    }

    /// No acknowledgement came for what this part sent: it sends it again, over UB if another plane failed.
    pub fn unacked(&mut self, to: Actor, inbound: Inbound) {
        if inbound.tries >= TRIES_MAX {
            self.tally.lost_messages += 1;
            return;
        }
        if inbound.plane != Plane::Ub {
            // Which end's port it was cannot be told.
            let (now, me) = (self.now(), self.ctx.me());
            for end in [me, to] {
                self.tally.note(now, end, NoteKind::PortLost);
            }
        }
        self.transfer_try(
            to,
            inbound.bytes,
            Plane::Ub,
            inbound.read,
            inbound.tries + 1,
            inbound.then,
        );
    }

    /// How long the `tries`th try is waited for: doubled each time.
    pub(crate) fn resend_after_ps(&self, tries: u8) -> u64 {
        let first = self.shared.serving.recovery.lane_ack_us;
        crate::time::ps_from_us(first) << tries.min(TRIES_MAX)
    }
}

/// A transfer is sent at most this often again: some 400 ms in all with the default time-out.
const TRIES_MAX: u8 = 12;
