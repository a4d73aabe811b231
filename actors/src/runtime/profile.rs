//! Wall time by kind of actor, measured on demand.

/// What one kind of actor cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KindProfile {
    pub kind: &'static str,
    pub events: u64,
    /// Wall time spent in `handle`, and in absorbing its bulks on the own shard.
    pub wall_ns: u64,
}

pub(super) struct Profile {
    pub clock: quanta::Clock,
    /// Events and raw clock ticks by kind.
    pub kinds: Vec<(u64, u64)>,
}

impl Profile {
    pub fn new(kinds: usize) -> Self {
        Self {
            clock: quanta::Clock::new(),
            kinds: vec![(0, 0); kinds],
        }
    }

    /// Adds what was measured since `start` (raw).
    #[inline]
    pub fn record(&mut self, kind: usize, start: u64) {
        let ticks = self.clock.raw().saturating_sub(start);
        if let Some(entry) = self.kinds.get_mut(kind) {
            entry.0 += 1;
            entry.1 += ticks;
        }
    }
}
