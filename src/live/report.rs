//! The report of a live machine: that of a batch run, over what has ended so far.

use supernode_actors::launch::Ended;
use supernode_actors::stats::RunStats;

use super::driver::Finished;
use crate::report::{Inputs, Offered, Report};
use crate::scenario::Scenario;
use crate::workload::Source;

/// What a report needs to know beside the figures.
pub struct Context {
    pub scenario: Scenario,
    pub source: Source,
    pub concurrency: Option<u32>,
    pub notes: Vec<String>,
    pub int8_tops_per_npu: f64,
}

impl Context {
    pub fn report(
        &self,
        stats: &RunStats,
        offered: &[Offered],
        dropped: u64,
        partial: bool,
        wall_s: f64,
    ) -> Report {
        let mut notes = self.notes.clone();
        if dropped > 0 {
            notes.push(format!(
                "latencies are of the last {} requests; {dropped} ended before them",
                stats.records.len()
            ));
        }
        Report::new(&Inputs {
            stats,
            ended: if partial {
                Ended::Stopped
            } else {
                Ended::Quiet
            },
            seed: self.scenario.seed,
            machine: &self.scenario.machine,
            model: &self.scenario.model,
            slo: &self.scenario.slo,
            source: &self.source,
            offered,
            concurrency: self.concurrency,
            notes: &notes,
            faults: Vec::new(),
            prefill_instances: self.scenario.prefill.instances,
            decode_instances: self.scenario.decode.instances,
            int8_tops_per_npu: self.int8_tops_per_npu,
            wall_s,
        })
    }

    pub fn of(&self, finished: &Finished, wall_s: f64) -> Report {
        self.report(
            &finished.stats,
            &finished.offered,
            finished.dropped_records,
            !finished.quiet,
            wall_s,
        )
    }
}
