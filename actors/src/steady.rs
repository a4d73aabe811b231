//! The steady part of a closed loop: what a group makes from its first full step to the end of its last one, with
//! all that lies between them (gaps, steps that were not full), so that a throughput over it is one that lasts.

use std::collections::BTreeMap;

use crate::time::Ps;

/// One group's steady part so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Window {
    from_ps: Ps,
    until_ps: Ps,
    tokens: u64,
    /// Made since `until_ps`: they count once another full step follows.
    pending: u64,
}

/// Steady parts by group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Steady(BTreeMap<u16, Window>);

impl Steady {
    /// A step (or batch) of a group has ended; steps of a group come in order. `full`: all the load was in it.
    pub fn step(&mut self, group: u16, started_ps: Ps, ended_ps: Ps, tokens: u64, full: bool) {
        if !full && !self.0.contains_key(&group) {
            return;
        }
        let w = self.0.entry(group).or_insert(Window {
            from_ps: started_ps,
            ..Window::default()
        });
        w.pending += tokens;
        if full {
            w.tokens += std::mem::take(&mut w.pending);
            w.until_ps = ended_ps;
        }
    }

    /// Tokens of all steady parts, and the sum of their lengths.
    pub fn total(&self) -> (u64, Ps) {
        self.0.values().fold((0, 0), |(tokens, ps), w| {
            (tokens + w.tokens, ps + (w.until_ps - w.from_ps))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filling_and_draining_do_not_count_and_what_lies_between_does() {
        let mut s = Steady::default();
        s.step(0, 0, 10, 5, false);
        s.step(0, 10, 20, 100, true);
        // A gap, a step that was not full, and a full one.
        s.step(0, 25, 30, 40, false);
        s.step(0, 30, 40, 100, true);
        s.step(0, 40, 50, 70, false);
        s.step(0, 50, 60, 3, false);
        assert_eq!(s.total(), (240, 30));
        s.step(3, 5, 25, 60, true);
        s.step(4, 5, 25, 60, false);
        assert_eq!(s.total(), (300, 50));
    }
}
