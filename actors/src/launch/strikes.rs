//! Faults put into a launched machine, and taken out of it.

use super::Supernode;
use crate::beats::{self, Beat, Span};
use crate::config::Recovery;
use crate::fault::{Conditions, Effect, Fault, Strike};
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
        self.change(|conditions, recovery| conditions.add(number, &fault, recovery));
        for at_ps in std::iter::once(fault.start_ps).chain(fault.end_ps) {
            self.expect_beats(fault.effect, at_ps);
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
        self.change(|conditions, recovery| conditions.end(number, &fault, recovery));
        self.expect_beats(fault.effect, at);
        self.strike(number, &fault, false, at);
        self.faults[number as usize] = fault;
        true
    }

    fn change(&self, how: impl FnOnce(&mut Conditions, &Recovery)) {
        let conditions = &mut self.shared.conditions.write().expect("no reader panics");
        how(conditions, &self.shared.serving.recovery);
    }

    /// All faults injected so far, by number.
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }

    /// Has neighbours send beats from when a fault strikes or ends.
    fn expect_beats(&mut self, effect: Effect, at_ps: Ps) {
        if let Some(span) = Span::after(at_ps, effect, &self.shared) {
            self.send_beats(span);
        }
    }

    fn send_beats(&mut self, span: Span) {
        let (now, period_ps) = (self.sim.now(), beats::period_ps(&self.shared));
        let mut spans = self.shared.beats.write().expect("no reader panics");
        let sent = spans
            .iter()
            .any(|s| s.reaches(span.from_ps, now, period_ps));
        Span::add(&mut spans, span);
        drop(spans);
        if !sent {
            let machine = &self.shared.machine;
            for part in 0..machine.die_count() + machine.cpu_count() {
                let first_ps = beats::first_beat_ps(part, span.from_ps, &self.shared);
                self.sim.inject(first_ps, part, Msg::Beat(Beat::Due));
            }
        }
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
