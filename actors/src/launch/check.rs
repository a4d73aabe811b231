//! What must hold when nothing is left to do.

use super::Supernode;
use crate::assemble;
use crate::die::Part as DiePart;

impl Supernode {
    /// What must hold when nothing is left to do: each request ended once, all memory and slots are back,
    /// and every byte that left a port reached one.
    ///
    /// # Errors
    /// Names the actor and what it still holds.
    pub fn check(&self) -> Result<(), String> {
        let machine = &self.shared.machine;
        let mut ended = 0;
        let mut offered = 0;
        for world in self.sim.models() {
            offered += world.tally.offered;
            ended += world.tally.ended;
            for die in world.dies.iter().flatten() {
                // What hangs keeps what it has.
                if die.body.is_stopped() {
                    continue;
                }
                let checked = match &die.part {
                    DiePart::Idle => Ok(()),
                    DiePart::Prefill(p) => p.check_idle(),
                    DiePart::Decode(d) => d.check_idle(),
                };
                checked.map_err(|e| format!("{}: {e}", machine.address(machine.die(die.index))))?;
            }
            for cpu in world.cpus.iter().flatten() {
                cpu.home
                    .check_idle()
                    .map_err(|e| format!("{}: {e}", machine.address(machine.cpu(cpu.index))))?;
            }
            // Where steps may have been given up, what was sent for them is accounted for in bytes.
            let faultless = self.faults.is_empty();
            if faultless && world.fabric.boards.iter().any(|b| !b.is_clear()) {
                return Err("activations were sent and never served".into());
            }
        }
        if ended != offered {
            return Err(format!("{offered} requests were put in, {ended} ended"));
        }
        assemble::check_bytes(self.sim.models(), machine)
    }
}
