//! What every die and CPU keeps of its own work, from the start of a run: how long it waited, worked and
//! exchanged, stage by stage. Links keep the same of themselves (`fabric::Direction`).

use crate::stats::{ActorHist, Notes};
use crate::time::Ps;
use crate::trace::{Class, Stage};

/// Sum and count of one stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StageSum {
    pub sum_ps: u64,
    pub count: u64,
}

impl StageSum {
    #[inline]
    pub fn add(&mut self, ps: Ps) {
        self.sum_ps += ps;
        self.count += 1;
    }
}

/// One die or CPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Meter {
    /// Messages and timers it handled.
    pub handled: u64,
    /// Stages that are not in what follows yet: four cache lines with what comes before.
    recent: Notes<30>,
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
}

impl Meter {
    /// A stage took `ps`, beside `streams - 1` others.
    #[inline]
    pub fn stage(&mut self, stage: Stage, ps: Ps, streams: u8) {
        if ps >> (u64::BITS - Note::BITS) != 0 {
            return self.count(stage, ps, streams);
        }
        if let Some(recent) = self.recent.push(Note::pack(stage, ps, streams)) {
            self.count_all(&recent);
        }
    }

    #[inline(never)]
    fn count_all(&mut self, notes: &[u64]) {
        for &note in notes {
            let (stage, ps, streams) = Note::unpack(note);
            self.count(stage, ps, streams);
        }
    }

    fn count(&mut self, stage: Stage, ps: Ps, streams: u8) {
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
        self.stages[stage as usize].add(ps);
    }

    /// With everything in it.
    pub fn counted(&self) -> Self {
        let mut all = self.clone();
        all.recent.clear();
        all.count_all(self.recent.waiting());
        all
    }
}

/// A stage in a word: its time, then its number, then the streams that share the die.
struct Note;

impl Note {
    /// That are not of the time.
    const BITS: u32 = 16;

    #[inline]
    fn pack(stage: Stage, ps: Ps, streams: u8) -> u64 {
        ps << Self::BITS | (stage as u64) << 8 | u64::from(streams)
    }

    fn unpack(note: u64) -> (Stage, Ps, u8) {
        let stage = Stage::ALL[usize::from((note >> 8) as u8)];
        (stage, note >> Self::BITS, note as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_counted_as_they_were_noted() {
        let (mut meter, mut at_once) = (Meter::default(), Meter::default());
        for (i, stage) in Stage::ALL.into_iter().cycle().take(100).enumerate() {
            let (ps, streams) = (1 << (i % 60), (i % 3) as u8);
            meter.stage(stage, ps, streams);
            at_once.count(stage, ps, streams);
            assert_eq!(meter.counted(), at_once);
        }
    }
}
