//! A workload played against a live machine from inside, over and over, each time with KV blocks of its own.

use std::collections::VecDeque;

use supernode_actors::launch::Load;
use supernode_actors::request::{Prefix, RequestSpec};
use supernode_actors::time::Ps;

/// Block ids of different laps differ in these bits.
const LAP_SHIFT: u32 = 40;

#[derive(Debug)]
pub struct Player {
    all: Vec<RequestSpec>,
    left: VecDeque<usize>,
    lap: u64,
    /// When this lap began, and how long an open one lasts.
    from_ps: Ps,
    span_ps: Ps,
    /// Closed loop: requests that are missing in the machine.
    concurrency: Option<u32>,
    missing: u32,
}

impl Player {
    pub fn new(load: Load, from_ps: Ps) -> Self {
        let last = load.requests.last().map_or(0, |r| r.arrival_ps);
        let gap = last / (load.requests.len().max(2) as u64 - 1);
        Self {
            left: (0..load.requests.len()).collect(),
            span_ps: (last + gap).max(1),
            all: load.requests,
            lap: 0,
            from_ps,
            concurrency: load.concurrency,
            missing: load.concurrency.unwrap_or(0),
        }
    }

    /// When the next request is due; `now` for one that is missing in a closed loop.
    pub fn next_ps(&self, now: Ps) -> Option<Ps> {
        if self.concurrency.is_some() {
            return (self.missing > 0 && !self.all.is_empty()).then_some(now);
        }
        let next = *self.left.front()?;
        Some(self.from_ps + self.all[next].arrival_ps)
    }

    /// Takes the next request.
    pub fn take(&mut self) -> Option<RequestSpec> {
        let spec = self.left.pop_front().map(|i| self.lapped(&self.all[i]))?;
        self.missing = self.missing.saturating_sub(1);
        if self.left.is_empty() {
            self.lap += 1;
            self.from_ps += self.span_ps;
            self.left = (0..self.all.len()).collect();
        }
        Some(spec)
    }

    /// One of the requests has ended.
    pub fn ended(&mut self) {
        self.missing += u32::from(self.concurrency.is_some());
    }

    fn lapped(&self, spec: &RequestSpec) -> RequestSpec {
        let mut spec = spec.clone();
        if let Prefix::Blocks { ids, .. } = &mut spec.prefix {
            ids.iter_mut().for_each(|id| *id ^= self.lap << LAP_SHIFT);
        }
        spec
    }
}
