//! Running a launched machine, recording it, and measuring single transfers.

use std::sync::atomic::Ordering;
use std::time::Duration;

use supernode_topology::ActorId;

use super::{Ended, Flow, Progress, Recorded, RunError, Supernode, Wanted};
use crate::message::{Copying, Msg};
use crate::runtime::{self, KindProfile, RuntimeError};
use crate::time::Ps;
use crate::trace::{Merge, TraceSpec};
use crate::world::World;

impl Supernode {
    /// Runs until nothing is left to do or the observer says stop; then checks the conservation laws
    /// (when it ended quietly).
    ///
    /// # Errors
    /// A bug: an actor panicked, or an invariant does not hold.
    pub fn run(&mut self, observe: &mut dyn FnMut(&Progress) -> Flow) -> Result<Ended, RunError> {
        self.run_recorded(observe, &mut |_| Wanted::All)
    }

    /// From now on this is recorded; `None`: nothing. To change it while a machine runs, stop it, and let it go on.
    pub fn record(&mut self, spec: Option<TraceSpec>) {
        for world in self.sim.models_mut() {
            world.trace.set(spec.clone());
        }
    }

    /// Runs end at this time, as if stopped just then: what has happened by then does not depend on the computer.
    pub fn stop_at(&mut self, at_ps: Ps) {
        self.until_ps = Some(at_ps);
    }

    /// Measures the wall time of each kind of actor from now on.
    pub fn measure_profile(&mut self) {
        self.sim.measure_profile();
    }

    /// Events and wall time by kind of actor; empty unless it was measured.
    pub fn profile(&self) -> Vec<KindProfile> {
        self.sim.profile()
    }

    /// As [`Supernode::run`]; `take` gets what is recorded as the run goes, in an order that depends on nothing but the
    /// scenario, and says what is still wanted.
    ///
    /// # Errors
    /// As [`Supernode::run`].
    pub fn run_recorded(
        &mut self,
        observe: &mut dyn FnMut(&Progress) -> Flow,
        take: &mut dyn FnMut(Recorded) -> Wanted,
    ) -> Result<Ended, RunError> {
        let merge = &mut self.merge;
        let total = self.total;
        let counters = &self.shared.progress;
        let ended = self
            .sim
            .run_with(
                self.until_ps,
                Duration::from_millis(100),
                &mut |s| {
                    let p = Progress {
                        now_ps: s.now_ps,
                        events: s.events,
                        offered: counters.offered.load(Ordering::Relaxed),
                        ended: counters.ended.load(Ordering::Relaxed),
                        total,
                    };
                    match observe(&p) {
                        Flow::Continue => runtime::Flow::Continue,
                        Flow::Stop => runtime::Flow::Stop,
                    }
                },
                &mut |worlds, next_ps| {
                    hand_over(merge, worlds, next_ps, take);
                },
            )
            .map_err(|e: RuntimeError| RunError::Broken(e.to_string()))?;
        match ended {
            runtime::Ended::Stopped | runtime::Ended::Until => Ok(Ended::Stopped),
            runtime::Ended::Finished => {
                self.check().map_err(RunError::Broken)?;
                Ok(Ended::Quiet)
            }
        }
    }

    /// Gives `take` what was recorded since the last time and is final; it says what is still wanted. Between runs.
    pub fn hand_over(&mut self, take: &mut dyn FnMut(Recorded) -> Wanted) {
        let next_ps = self.sim.next_event_ps().unwrap_or(Ps::MAX);
        hand_over(&mut self.merge, self.sim.models_mut(), next_ps, take);
    }

    /// What was recorded and not handed out yet, once a run was stopped.
    pub fn rest(&mut self) -> Recorded {
        Recorded {
            records: self.merge.take(Ps::MAX),
            lost: std::mem::take(&mut self.merge.lost),
        }
    }

    /// Copies `bytes` between the memories of two parts through the actors on the way, on a machine with nothing else
    /// to do: die `a` reads them from `b`, or writes them to `b`. Returns how long that took, from the request to
    /// the last byte.
    ///
    /// # Errors
    /// When `a` is not a die or `b` neither die nor CPU (the measured table has no such transfer), or the run broke.
    pub fn copy(&mut self, a: ActorId, b: ActorId, bytes: u64, read: bool) -> Result<Ps, RunError> {
        let machine = &self.shared.machine;
        if machine.as_die(a).is_none() || machine.is_link(b) || a == b {
            return Err(RunError::Broken(format!(
                "{} to {}: a copy goes from a die to another die or a CPU",
                machine.address(a),
                machine.address(b)
            )));
        }
        let (holder, receiver) = if read { (b, a) } else { (a, b) };
        let copying = Copying {
            to: receiver.0,
            bytes,
            read,
        };
        self.sim
            .inject(self.sim.now(), holder.0, Msg::Copy(copying));
        self.run(&mut |_| Flow::Continue)?;
        self.sim
            .models_mut()
            .iter_mut()
            .find_map(|w| w.tally.copies_ps.pop())
            .ok_or_else(|| RunError::Broken("the copy never arrived".into()))
    }
}

/// Collects what the shards recorded, gives `take` what comes before `next_ps`, and has no more recorded than it wants.
fn hand_over(
    merge: &mut Merge,
    worlds: &mut [World],
    next_ps: Ps,
    take: &mut dyn FnMut(Recorded) -> Wanted,
) {
    for world in worlds.iter_mut() {
        let lost = world.trace.drain(merge.inbox());
        merge.lost += lost;
    }
    let records = merge.take(next_ps);
    let lost = std::mem::take(&mut merge.lost);
    if !records.is_empty() || lost > 0 {
        let wanted = take(Recorded { records, lost });
        for world in worlds {
            world.trace.narrow(wanted);
        }
    }
}
