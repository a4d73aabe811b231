//! Launches: the CPU next to a die launches its steps and batches, each while the one before runs. One that is not
//! launched when it could begin waits. A launch takes longer on a CPU at reduced clock; on one that is well it is over in
//! less than the step before takes, so that nothing is done for it. What a CPU that crashed or hangs would launch, others of its
//! node do.

use supernode_topology::Machine;

use super::{Die, Part};
use crate::env::Env;
use crate::message::Msg;
use crate::runtime::Actor;
use crate::time::{Ps, ps_from_us};
use crate::world::Shared;

/// What a die remembers of its launches while its CPU is slow.
#[derive(Debug, Default)]
pub struct Launches {
    /// When the step or batch before began: this is when the next was begun to be launched.
    before_ps: Ps,
    /// One that has come is launched at this time.
    ready_ps: Option<Ps>,
    /// How long the last one that was simulated waited.
    waited_ps: Ps,
}

impl Launches {
    /// How long what has come waits; 0: it begins.
    fn wait_ps(&mut self, now: Ps, clock: f64, shared: &Shared) -> Ps {
        if self.ready_ps != Some(now) {
            self.waited_ps = 0;
            let o = &shared.cal.overhead;
            let layers = f64::from(shared.model.layers + shared.model.mtp_layers);
            let launched_ps = self.before_ps + ps_from_us(o.layer_launch_us * layers / clock);
            let gap_ps = ps_from_us(o.host_gap_us * (1.0 / clock - 1.0));
            let ready_ps = launched_ps.max(now + gap_ps);
            if ready_ps > now {
                self.ready_ps = Some(ready_ps);
                self.waited_ps = ready_ps - now;
                return self.waited_ps;
            }
        }
        self.ready_ps = None;
        self.before_ps = now;
        0
    }
}

/// The CPU that launches what a die does: those of a node share its dies evenly.
pub fn cpu_of(die: u32, machine: &Machine) -> u32 {
    let (dies, cpus) = (machine.dies_per_node(), machine.cpus_per_node());
    die / dies * cpus + die % dies * cpus / dies
}

/// What is left of the clock of the CPU that launches for a die, if not all.
pub fn clock(die: u32, env: &Env<'_, '_>) -> Option<f64> {
    let cpu = cpu_of(die, &env.shared.machine);
    env.fabric.hosts.clock(env.shared.cpu_actor(cpu))
}

impl Die {
    /// The message, unless it begins a step or batch that is not launched yet: then it comes again when it is. A drawn one
    /// takes as long as those that were simulated, with their waits.
    pub(super) fn launched(&mut self, from: Actor, msg: Msg, env: &mut Env<'_, '_>) -> Option<Msg> {
        let drawn = match &msg {
            Msg::StepStart { drawn_ps, .. } => drawn_ps.is_some(),
            Msg::Batch(work) => work.drawn_ps.is_some(),
            _ => return Some(msg),
        };
        let Some(clock) = clock(self.index, env) else {
            return Some(msg);
        };
        let now = env.now();
        if drawn {
            // It stands for one that waited as long.
            self.launches.before_ps = now + self.launches.waited_ps;
            return Some(msg);
        }
        let wait_ps = self.launches.wait_ps(now, clock, env.shared);
        if wait_ps == 0 {
            return Some(msg);
        }
        match &mut self.part {
            Part::Prefill(p) => p.launching(now + wait_ps),
            Part::Decode(d) => d.watch.launching_until_ps = now + wait_ps,
            Part::Idle => {}
        }
        let msg = Box::new(msg);
        env.after(wait_ps, Msg::Late { from, msg });
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_share_the_dies_of_their_node() {
        let machine = Machine::builtin("cloudmatrix384").unwrap();
        let of: Vec<u32> = (0..20).map(|die| cpu_of(die, &machine)).collect();
        assert_eq!(of[..16], [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]);
        assert_eq!(of[16..], [4; 4]);
    }
}
