//! What a machine's condition is at a time: which faults are in force. Steps of one condition are alike, and the machine's
//! own again once all that can pass has passed; how long it takes to settle depends on what has struck.

use std::sync::Arc;

use supernode_topology::ActorId;

use super::{Effect, Fault};
use crate::config::Recovery;
use crate::layout::mix;
use crate::time::{Ps, ps_from_s};

/// A fault strikes, or is over.
#[derive(Clone, Debug)]
struct Change {
    at_ps: Ps,
    /// Number of the fault.
    fault: u32,
    begins: bool,
    /// What it adds to the sum that names a condition.
    adds: u64,
    settles_ps: Ps,
    /// Parts whose cores or memory it slows, or slowed.
    slows: Arc<[ActorId]>,
    /// The sum from this change on.
    condition: u64,
}

/// All changes, in order of time.
#[derive(Debug, Default)]
pub struct Conditions {
    changes: Vec<Change>,
    longest_ps: Ps,
}

impl Conditions {
    /// Takes a fault in, from its start to its end.
    pub fn add(&mut self, number: u32, fault: &Fault, r: &Recovery) {
        let name = name(fault);
        let slows: Arc<[ActorId]> = match fault.effect {
            Effect::Throttle(_) | Effect::HbmSlow(_) => fault.parts.as_slice().into(),
            _ => Arc::default(),
        };
        let mut change = |at_ps, begins| {
            let settles_ps = settles_ps(fault.effect, begins, r);
            self.longest_ps = self.longest_ps.max(settles_ps);
            self.changes.push(Change {
                at_ps,
                fault: number,
                begins,
                adds: match (begins, passes(fault.effect)) {
                    (true, _) => name,
                    (false, true) => name.wrapping_neg(),
                    (false, false) => mix(name),
                },
                settles_ps,
                slows: Arc::clone(&slows),
                condition: 0,
            });
        };
        change(fault.start_ps, true);
        if let Some(end_ps) = fault.end_ps {
            change(end_ps, false);
        }
        self.sum_up();
    }

    /// A fault ends at another time than was known.
    pub fn end(&mut self, number: u32, fault: &Fault, r: &Recovery) {
        self.changes.retain(|c| c.fault != number);
        self.add(number, fault, r);
    }

    fn sum_up(&mut self) {
        self.changes.sort_by_key(|c| (c.at_ps, c.fault, c.begins));
        let mut sum = 0_u64;
        for c in &mut self.changes {
            sum = sum.wrapping_add(c.adds);
            c.condition = sum;
        }
    }

    /// Those up to `now`.
    fn until(&self, now: Ps) -> &[Change] {
        &self.changes[..self.changes.partition_point(|c| c.at_ps <= now)]
    }

    /// Names the faults in force: 0 while there are none, and again when those that leave nothing behind are over.
    pub fn at(&self, now: Ps) -> u64 {
        self.until(now).last().map_or(0, |c| c.condition)
    }

    /// Some fault has struck, or is known to come.
    pub fn any(&self) -> bool {
        !self.changes.is_empty()
    }

    /// Some fault has struck.
    pub fn any_by(&self, now: Ps) -> bool {
        !self.until(now).is_empty()
    }

    /// Parts whose cores or memory are slow: how long a step takes depends on whether they have work in it.
    pub fn slowed(&self, now: Ps) -> impl Iterator<Item = ActorId> {
        let until = self.until(now);
        let over = |fault: u32| until.iter().any(|c| c.fault == fault && !c.begins);
        let in_force = until
            .iter()
            .filter(move |c| c.begins && !c.slows.is_empty() && !over(c.fault));
        in_force.flat_map(|c| c.slows.iter().copied())
    }

    /// A fault has struck or ended lately: those concerned may not have found out, and steps are not like those to come.
    pub fn settles(&self, now: Ps) -> bool {
        !self.were_steady(now, now)
    }

    /// All had settled at `from`, and nothing changed after it until `to`: what was done in between is like what is to
    /// come.
    pub fn were_steady(&self, from: Ps, to: Ps) -> bool {
        let lately = |c: &&Change| c.at_ps + self.longest_ps >= from;
        let mut latest = self.until(to).iter().rev().take_while(lately);
        latest.all(|c| c.at_ps + c.settles_ps <= from)
    }
}

/// The same for faults that do the same to the same parts.
fn name(fault: &Fault) -> u64 {
    let (kind, value) = fault.effect.code();
    let what = mix(value ^ mix(kind << 8 | fault.ways as u64));
    let parts = fault.parts.iter();
    parts.fold(what, |name, part| mix(name ^ u64::from(part.0)))
}

/// It leaves nothing behind when it is over: nobody was given up on its account.
fn passes(effect: Effect) -> bool {
    match effect {
        Effect::Slow(_) | Effect::Delay(_) | Effect::Jitter(_) => true,
        Effect::Throttle(_) | Effect::HbmSlow(_) => true,
        Effect::Loss(_) | Effect::Flap { .. } | Effect::Down => false,
        Effect::Hang | Effect::Crash => false,
    }
}

/// How long steps are unlike those to come after a fault strikes, or is over.
fn settles_ps(effect: Effect, begins: bool, r: &Recovery) -> Ps {
    let ms = match effect {
        // Cores and memory are slower, or as fast as ever, from the next operator on.
        Effect::Throttle(_) | Effect::HbmSlow(_) => 0.0,
        // Each side of a lane finds out from its first messages on: that it is bad soon, that it is good when it is
        // tried again.
        Effect::Slow(_) | Effect::Delay(_) | Effect::Jitter(_) if begins => r.lane_reweigh_ms,
        Effect::Slow(_) | Effect::Delay(_) | Effect::Jitter(_) => r.lane_probe_ms,
        // Somebody may be given up.
        _ => r.step_late_ms + r.ping_ms + r.reply_ms,
    };
    ps_from_s(MARGIN * ms * 1e-3)
}

/// Those concerned do not all find out at the same time.
const MARGIN: f64 = 1.5;

#[cfg(test)]
mod tests {
    use super::super::Ways;
    use super::*;
    use crate::time::PS_PER_MS;

    fn fault(effect: Effect, part: u32, (from_ms, to_ms): (Ps, Ps)) -> Fault {
        Fault {
            text: String::new(),
            start_ps: from_ms * PS_PER_MS,
            end_ps: Some(to_ms * PS_PER_MS),
            effect,
            ways: Ways::Both,
            parts: vec![ActorId(part)],
        }
    }

    fn of(faults: &[Fault]) -> Conditions {
        let mut all = Conditions::default();
        for (i, fault) in faults.iter().enumerate() {
            all.add(i as u32, fault, &Recovery::default());
        }
        all
    }

    #[test]
    fn a_condition_comes_again_with_the_faults_in_force() {
        let slow = |span| fault(Effect::Slow(0.3), 7, span);
        let all = of(&[
            slow((10, 100)),
            fault(Effect::Throttle(0.5), 2, (50, 60)),
            slow((200, 300)),
        ]);
        let at = |ms| all.at(ms * PS_PER_MS);
        assert_eq!((at(0), at(9), at(100), at(150), at(300)), (0, 0, 0, 0, 0));
        assert_ne!(at(10), 0);
        assert!(at(50) != at(10) && at(50) != 0);
        assert_eq!(
            (at(60), at(200)),
            (at(10), at(10)),
            "the same on the same part"
        );
        let other = of(&[fault(Effect::Slow(0.4), 7, (10, 100))]);
        assert_ne!(other.at(20 * PS_PER_MS), at(20));
    }

    #[test]
    fn what_was_given_up_may_not_be_as_before() {
        let all = of(&[fault(Effect::Crash, 2, (50, 60))]);
        let at = |ms| all.at(ms * PS_PER_MS);
        assert_eq!(at(49), 0);
        assert!(at(50) != 0 && at(60) != 0 && at(50) != at(60));
    }

    #[test]
    fn an_end_that_comes_early_takes_the_place_of_the_one_that_was_known() {
        let r = Recovery::default();
        let mut slow = fault(Effect::Slow(0.3), 7, (10, 100));
        let mut all = of(std::slice::from_ref(&slow));
        slow.end_ps = Some(40 * PS_PER_MS);
        all.end(0, &slow, &r);
        assert_ne!(all.at(39 * PS_PER_MS), 0);
        assert_eq!(all.at(40 * PS_PER_MS), 0);
        assert_eq!(all.at(100 * PS_PER_MS), 0);
    }

    #[test]
    fn cores_need_no_time_to_settle_and_lanes_less_than_the_lost() {
        let settles =
            |effect, ms: Ps| of(&[fault(effect, 1, (1_000, 9_000))]).settles(ms * PS_PER_MS);
        assert!(!settles(Effect::Throttle(0.5), 1_000));
        let slow = Effect::Slow(0.5);
        assert!(!settles(slow, 999) && settles(slow, 1_000) && !settles(slow, 1_010));
        assert!(settles(slow, 9_100), "its end is found out later");
        assert!(settles(Effect::Crash, 1_010) && !settles(Effect::Crash, 1_500));
    }

    #[test]
    fn slow_parts_are_those_of_faults_in_force() {
        let all = of(&[
            fault(Effect::Throttle(0.5), 1, (10, 20)),
            fault(Effect::HbmSlow(0.5), 4, (15, 40)),
            fault(Effect::Slow(0.5), 900, (0, 40)),
        ]);
        let slowed = |ms: Ps| {
            let parts = all.slowed(ms * PS_PER_MS).map(|p| p.0);
            parts.collect::<Vec<_>>()
        };
        assert!(slowed(9).is_empty());
        assert_eq!(slowed(12), [1]);
        assert_eq!(slowed(16), [1, 4]);
        assert_eq!(slowed(20), [4]);
        assert!(slowed(40).is_empty());
    }

    #[test]
    fn what_a_change_falls_into_was_not_steady() {
        let all = of(&[fault(Effect::Throttle(0.5), 1, (1_000, 9_000))]);
        let steady = |from: Ps, to: Ps| all.were_steady(from * PS_PER_MS, to * PS_PER_MS);
        assert!(steady(0, 999) && steady(1_000, 1_100) && steady(8_000, 8_999));
        assert!(!steady(990, 1_000) && !steady(8_990, 9_010) && !steady(0, 10_000));
    }
}
