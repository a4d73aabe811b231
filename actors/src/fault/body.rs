//! What faults do to a die or CPU itself: how fast it is, and whether it is there at all. Several faults may hold at
//! once; what remains when one is over is what the others leave.

use serde::{Deserialize, Serialize};

use super::{Effect, Strike};
use crate::message::Msg;
use crate::runtime::Actor;
use crate::time::Ps;

/// The state of a die or CPU as faults leave it.
#[derive(Clone, Debug, Default)]
pub struct Body {
    strikes: Vec<Strike>,
    /// Since when it does nothing.
    stopped_ps: Option<Ps>,
    /// Messages that wait while it hangs, with their senders.
    held: Vec<(Actor, Msg)>,
    /// Timers that it set before this one are of an earlier life.
    alive_from_seq: u64,
}

/// What a strike changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// Its speed only, if anything.
    Pace,
    /// It does nothing, and has lost nothing.
    Hung,
    /// It does nothing, and has lost all it had.
    Crashed,
    /// It is back, as it was.
    Resumed,
    /// It is back, with nothing in its memory.
    Restarted,
}

impl Body {
    /// Takes a strike, or the end of one.
    pub fn strike(&mut self, strike: Strike, now: Ps) -> Change {
        let was = (self.is_stopped(), self.is_crashed());
        if strike.begins {
            self.strikes.push(strike);
        } else {
            self.strikes.retain(|s| s.fault != strike.fault);
        }
        match (was, (self.is_stopped(), self.is_crashed())) {
            ((false, _), (true, lost)) => {
                self.stopped_ps = Some(now);
                if lost { Change::Crashed } else { Change::Hung }
            }
            ((true, false), (true, true)) => Change::Crashed,
            ((true, crashed), (false, _)) => {
                self.stopped_ps = None;
                if crashed {
                    Change::Restarted
                } else {
                    Change::Resumed
                }
            }
            _ => Change::Pace,
        }
    }

    /// A life ends, or a new one begins: what was set or waits from before is forgotten.
    pub fn begin_anew(&mut self, next_seq: u64) {
        self.held.clear();
        self.alive_from_seq = next_seq;
    }

    /// A timer of an earlier life.
    pub fn is_stale(&self, seq: u64) -> bool {
        seq < self.alive_from_seq
    }

    pub fn hold(&mut self, from: Actor, msg: Msg) {
        self.held.push((from, msg));
    }

    pub fn take_held(&mut self) -> Vec<(Actor, Msg)> {
        std::mem::take(&mut self.held)
    }

    /// Since when it does nothing, if so.
    pub fn stopped_ps(&self) -> Option<Ps> {
        self.stopped_ps
    }

    /// Hung or crashed: it handles nothing.
    pub fn is_stopped(&self) -> bool {
        self.strikes
            .iter()
            .any(|s| matches!(s.effect, Effect::Hang | Effect::Crash))
    }

    pub fn is_crashed(&self) -> bool {
        self.strikes.iter().any(|s| s.effect == Effect::Crash)
    }

    /// Shares of clock and memory bandwidth that are left; `None` when all is.
    pub fn pace(&self) -> Option<(f64, f64)> {
        let mut pace = (1.0, 1.0);
        for s in &self.strikes {
            match s.effect {
                Effect::Throttle(f) => pace.0 *= f,
                Effect::HbmSlow(f) => pace.1 *= f,
                _ => {}
            }
        }
        (pace != (1.0, 1.0)).then_some(pace)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Ways;
    use super::*;

    fn strike(fault: u32, effect: Effect, begins: bool) -> Strike {
        Strike {
            fault,
            effect,
            ways: Ways::Both,
            begins,
        }
    }

    #[test]
    fn faults_that_overlap_leave_what_the_others_leave() {
        let mut body = Body::default();
        body.strike(strike(0, Effect::Throttle(0.5), true), 0);
        body.strike(strike(1, Effect::Throttle(0.5), true), 1);
        body.strike(strike(2, Effect::HbmSlow(0.25), true), 2);
        assert_eq!(body.pace(), Some((0.25, 0.25)));
        body.strike(strike(0, Effect::Throttle(0.5), false), 3);
        assert_eq!(body.pace(), Some((0.5, 0.25)));
        body.strike(strike(1, Effect::Throttle(0.5), false), 4);
        body.strike(strike(2, Effect::HbmSlow(0.25), false), 5);
        assert_eq!(body.pace(), None);
    }

    #[test]
    fn a_hang_is_resumed_and_a_crash_restarted() {
        let mut body = Body::default();
        let hang = |b| strike(0, Effect::Hang, b);
        let crash = |b| strike(1, Effect::Crash, b);
        assert_eq!(body.strike(hang(true), 0), Change::Hung);
        assert_eq!(body.strike(hang(false), 1), Change::Resumed);
        assert_eq!(body.strike(crash(true), 2), Change::Crashed);
        assert_eq!(body.strike(crash(false), 3), Change::Restarted);
    }
}
