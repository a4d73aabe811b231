//! Faults put into a launched machine, and taken out of it.

use super::Supernode;
use crate::fault::{Fault, Strike};
use crate::message::Msg;
use crate::time::Ps;

impl Supernode {
    /// Injects a fault: each of its parts is told when it strikes (at once, if that time has passed) and when it is
    /// over. Returns its number, for [`Supernode::clear`]. To be called between runs, or from no other place.
    pub fn inject(&mut self, mut fault: Fault) -> u32 {
        let number = self.faults.len() as u32;
        let now = self.sim.now();
        fault.start_ps = fault.start_ps.max(now);
        fault.end_ps = fault.end_ps.map(|end| end.max(fault.start_ps + 1));
        {
            let strikes = &mut self.shared.strikes_ps.write().expect("no reader panics");
            strikes.push(fault.start_ps);
            strikes.extend(fault.end_ps);
            strikes.sort_unstable();
        }
        self.strike(number, &fault, true, fault.start_ps);
        if let Some(end_ps) = fault.end_ps {
            self.strike(number, &fault, false, end_ps);
        }
        self.faults.push(fault);
        number
    }

    /// Ends a fault now that has no end yet, or a later one; whether there is such a fault.
    pub fn clear(&mut self, number: u32) -> bool {
        let now = self.sim.now();
        let Some(mut fault) = self.faults.get(number as usize).cloned() else {
            return false;
        };
        if fault.end_ps.is_some_and(|end| end <= now) {
            return false;
        }
        let at = now.max(fault.start_ps + 1);
        fault.end_ps = Some(at);
        {
            let strikes = &mut self.shared.strikes_ps.write().expect("no reader panics");
            strikes.push(at);
            strikes.sort_unstable();
        }
        self.strike(number, &fault, false, at);
        self.faults[number as usize] = fault;
        true
    }

    /// All faults injected so far, by number.
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }

    fn strike(&mut self, number: u32, fault: &Fault, begins: bool, at_ps: Ps) {
        for part in &fault.parts {
            let strike = Strike {
                fault: number,
                effect: fault.effect,
                ways: fault.ways,
                begins,
            };
            self.sim.inject(at_ps, part.0, Msg::Fault(strike));
        }
    }
}
