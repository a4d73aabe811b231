//! What every die and CPU keeps of its own work, from the start of a run: how long it waited, worked and
//! exchanged, stage by stage. Links keep the same of themselves (`fabric::Direction`).

use crate::stats::ActorHist;
use crate::time::Ps;
use crate::trace::{Class, Stage};

/// Sum and count of one stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StageSum {
    pub sum_ps: u64,
    pub count: u64,
}

/// One die or CPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meter {
    pub queue: ActorHist,
    pub service: ActorHist,
    pub transfer: ActorHist,
    /// Of message-level steps and batches, by `Stage`; empty for parts that have none.
    pub stages: Vec<StageSum>,
    /// Time its cores worked in them (a stream that shares the die counts for its share), and their duration.
    pub busy_ps: Ps,
    pub stepped_ps: Ps,
    /// At the root of a group: time in which a step or batch of the group ran, simulated or drawn.
    pub group_busy_ps: Ps,
    /// Tokens that its experts computed, in message-level steps and batches.
    pub expert_tokens: u64,
    /// Messages and timers it handled.
    pub handled: u64,
}

impl Meter {
    /// A stage took `ps`, beside `streams - 1` others.
    #[inline]
    pub fn stage(&mut self, stage: Stage, ps: Ps, streams: u8) {
        match stage.class() {
            Class::Queue => self.queue.record(ps),
            Class::Transfer => self.transfer.record(ps),
            Class::Service => {
                self.service.record(ps);
                self.busy_ps += ps / Ps::from(streams.max(1));
            }
        }
        if self.stages.is_empty() {
            self.stages = vec![StageSum::default(); Stage::COUNT];
        }
        let s = &mut self.stages[stage as usize];
        s.sum_ps += ps;
        s.count += 1;
    }
}
