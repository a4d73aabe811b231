//! A machine that stays up: requests are put in and cancelled from outside, at any window boundary, and what the
//! machine makes of them is handed out there. Wall clocks, sockets and text are not known here.

use std::time::{Duration, Instant};

use crate::cpu::Store;
use crate::die::Part as DiePart;
use crate::launch::{RunError, Supernode};
use crate::message::Msg;
use crate::request::{Delivery, RequestSpec};
use crate::runtime::{self, Actor};
use crate::time::Ps;

/// Where the requests of a live machine are, and what they hold.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Occupancy {
    /// Prompts that wait in prefill groups, and those in batches that run.
    pub prefill_waiting: u64,
    pub prefill_running: u64,
    /// Tokens of prompts that are not computed yet.
    pub backlog_tokens: u64,
    /// Requests that wait for a decode slot, slots that are taken, slots.
    pub decode_waiting: u64,
    pub slots_used: u64,
    pub slots: u64,
    /// Tokens of KV that decode dies hold, and that they have memory for.
    pub kv_tokens: u64,
    pub kv_tokens_max: u64,
}

/// How loaded one die is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DieLoad {
    /// Decode: share of its slots. Prefill: 1 while its group has a batch.
    pub busy: f64,
    /// Decode: share of its KV memory. Prefill: its group's backlog, in batches.
    pub memory: f64,
}

impl Supernode {
    /// Puts a request in at `at_ps`, or now if that has passed; it lands on the CPU that its id is dealt to.
    /// Returns the time of arrival and the home. Ids must be 0, 1, 2, … as in a batch run.
    pub fn submit(&mut self, at_ps: Ps, mut spec: RequestSpec) -> (Ps, u32) {
        spec.arrival_ps = at_ps.max(self.sim.now());
        let homes = &self.shared.layout.homes;
        let home = homes[(spec.id % homes.len() as u64) as usize];
        let (at, to) = (spec.arrival_ps, self.shared.cpu_actor(home));
        self.sim.inject(at, to, Msg::Submit(Box::new(spec)));
        (at, home)
    }

    /// Tells a request's home that nobody waits for it any more. It ends as cancelled once its memory is free, or as
    /// it would have if it is about to end.
    pub fn cancel(&mut self, request: u64) {
        let homes = &self.shared.layout.homes;
        let home = homes[(request % homes.len() as u64) as usize];
        let (at, to) = (self.sim.now(), self.shared.cpu_actor(home));
        self.sim.inject(at, to, Msg::Cancel { request });
    }

    /// Handles everything before `until_ps`, or as much of it as there is wall time for; virtual time passes up to it
    /// even if nothing happens (`Ps::MAX`: only as far as something does). Returns the time reached.
    ///
    /// # Errors
    /// A bug: an actor panicked.
    pub fn run_until(&mut self, until_ps: Ps, wall_most: Duration) -> Result<Ps, RunError> {
        let started = Instant::now();
        let slice = (wall_most / 4).max(Duration::from_micros(500));
        let ended = self
            .sim
            .run((until_ps < Ps::MAX).then_some(until_ps), slice, &mut |_| {
                if started.elapsed() >= wall_most {
                    runtime::Flow::Stop
                } else {
                    runtime::Flow::Continue
                }
            })
            .map_err(|e| RunError::Broken(e.to_string()))?;
        if ended != runtime::Ended::Stopped && until_ps < Ps::MAX {
            self.sim.advance_to(until_ps);
        }
        Ok(self.sim.now())
    }

    /// What reached homes since the last call, each request's in order, appended to `into`.
    pub fn take_deliveries(&mut self, into: &mut Vec<Delivery>) {
        for world in self.sim.models_mut() {
            into.append(&mut world.tally.deliveries);
        }
    }

    /// Virtual time that has been reached.
    pub fn now(&self) -> Ps {
        self.sim.now()
    }

    /// When something happens next, if nothing comes from outside.
    pub fn next_event_ps(&mut self) -> Option<Ps> {
        self.sim.next_event_ps()
    }

    /// Events handled so far.
    pub fn events(&self) -> u64 {
        self.sim.events()
    }

    pub fn occupancy(&self) -> Occupancy {
        let mut o = Occupancy::default();
        let dies = self.sim.models().iter().flat_map(|w| &w.dies);
        for die in dies.flatten() {
            match &die.part {
                DiePart::Idle => {}
                DiePart::Prefill(p) => {
                    if let Some(root) = &p.root {
                        let (waiting, running) = root.prompts();
                        o.prefill_waiting += waiting as u64;
                        o.prefill_running += u64::from(running);
                        o.backlog_tokens += root.backlog();
                    }
                }
                DiePart::Decode(d) => {
                    let (used, slots, kv, kv_max) = d.occupancy();
                    o.slots_used += u64::from(used);
                    o.slots += u64::from(slots);
                    o.kv_tokens += kv;
                    o.kv_tokens_max += kv_max;
                    o.decode_waiting += d.waiting() as u64;
                }
            }
        }
        o
    }

    /// The load of each die of the machine, by index.
    pub fn die_loads(&self) -> Vec<DieLoad> {
        let shared = &self.shared;
        let mut loads = vec![DieLoad::default(); shared.machine.die_count() as usize];
        let p = &shared.serving.prefill;
        let batch = f64::from(p.batch_tokens_per_npu) * f64::from(p.npus_per_instance);
        let dies = self.sim.models().iter().flat_map(|w| &w.dies);
        for die in dies.flatten() {
            match &die.part {
                DiePart::Idle => {}
                DiePart::Prefill(rank) => {
                    let Some(root) = &rank.root else { continue };
                    let load = DieLoad {
                        busy: f64::from(u8::from(root.prompts().1 > 0)),
                        memory: root.backlog() as f64 / batch,
                    };
                    let group = shared
                        .layout
                        .prefill
                        .iter()
                        .find(|g| g.root() == die.index)
                        .expect("a root has a group");
                    for &d in &group.dies {
                        loads[d as usize] = load;
                    }
                }
                DiePart::Decode(d) => {
                    let (used, slots, kv, kv_max) = d.occupancy();
                    loads[die.index as usize] = DieLoad {
                        busy: f64::from(used) / f64::from(slots.max(1)),
                        memory: kv as f64 / kv_max.max(1) as f64,
                    };
                }
            }
        }
        loads
    }

    /// Bytes a link has carried up and down, and the time it was busy, in ps, so far.
    pub fn link_use(&self, link: Actor) -> (u64, u64, Ps, Ps) {
        let mut sum = (0, 0, 0, 0);
        for w in self.sim.models() {
            let l = w.fabric.peek(supernode_topology::ActorId(link));
            sum.0 += l.up.bytes;
            sum.1 += l.down.bytes;
            sum.2 += l.up.busy_ps;
            sum.3 += l.down.busy_ps;
        }
        sum
    }

    /// Forgets every block of the pooled KV cache.
    pub fn forget_cache(&mut self) {
        let shared = std::sync::Arc::clone(&self.shared);
        for world in self.sim.models_mut() {
            for cpu in world.cpus.iter_mut().flatten() {
                cpu.store = Store::new(cpu.index, &shared);
            }
        }
    }

    /// Requests put in so far, and those that have ended.
    pub fn counts(&self) -> (u64, u64) {
        let worlds = self.sim.models().iter();
        worlds.fold((0, 0), |(offered, ended), w| {
            (offered + w.tally.offered, ended + w.tally.ended)
        })
    }
}
