//! What is measured in a run: cheap log-linear histograms, counters, and the sums a report is made of.
//! Everything here merges, and merging in any order gives the same result.

mod bulk;
mod hist;

use serde::{Deserialize, Serialize};

pub use bulk::{BulkHist, Notes};
pub use hist::{ActorHist, FineHist, Hist};

use crate::fault::Note;
use crate::request::RequestRecord;
use crate::time::Ps;

/// Messages by kind; activations are counted one by one, each on its way out and on its way back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageCounts {
    pub activation: u64,
    /// Die-to-die messages that carried them.
    pub activation_messages: u64,
    pub kv_block: u64,
    /// Transfers of weights, and of the counts and plans of EPLB.
    pub weight_block: u64,
    pub tokens: u64,
    pub control: u64,
}

/// HBM of a die of one pool: what is in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStats {
    pub pool: String,
    pub hbm_bytes: u64,
    pub experts_per_die: u32,
    pub attention_bytes: u64,
    pub dense_bytes: u64,
    pub experts_bytes: u64,
    pub head_bytes: u64,
    /// Windows that other ranks write tokens into.
    pub buffers_bytes: u64,
    /// Room for experts on the move.
    pub staging_bytes: u64,
    pub workspace_bytes: u64,
    /// What is left.
    pub kv_bytes: u64,
}

/// What EPLB did while the machine ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpertCounts {
    /// Plans made after the start that change something: dies begin to load weights for each.
    pub plans_made: u64,
    /// Those of them that came into force in all layers.
    pub plans: u64,
    /// Weights that dies loaded for plans that were made, those on their way when the last request ended among them.
    pub moved_bytes: u64,
}

/// Loads of one model's weights, die by die.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadTimes {
    /// Dies that have loaded it.
    pub dies: u64,
    /// From a die's first question to its last byte: sum and longest.
    pub sum_ps: Ps,
    pub max_ps: Ps,
    /// When the last of them had it all.
    pub ready_ps: Ps,
}

impl LoadTimes {
    pub fn add(&mut self, started_ps: Ps, ended_ps: Ps) {
        self.dies += 1;
        self.sum_ps += ended_ps - started_ps;
        self.max_ps = self.max_ps.max(ended_ps - started_ps);
        self.ready_ps = self.ready_ps.max(ended_ps);
    }

    pub fn merge(&mut self, other: &Self) {
        self.dies += other.dies;
        self.sum_ps += other.sum_ps;
        self.max_ps = self.max_ps.max(other.max_ps);
        self.ready_ps = self.ready_ps.max(other.ready_ps);
    }
}

/// How the weights of models came to the dies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightCounts {
    /// Of the model that the run starts with, and of the one it switches to.
    pub loads: [LoadTimes; crate::weights::MODELS],
    /// Bytes that dies read from the pool.
    pub pool_bytes: u64,
    /// Bytes that the pool fetched from object storage.
    pub object_store_bytes: u64,
    /// Weights in the pool's DRAM at the end.
    pub dram_bytes: u64,
    /// The run starts with a load; when it switches, if it does.
    pub loads_at_start: bool,
    pub switch_ps: Option<Ps>,
    /// Of one model.
    pub model_bytes: u64,
    /// Of each model in the pool.
    pub copies: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheCounts {
    pub lookup_blocks: u64,
    pub hit_blocks: u64,
    pub hit_tokens: u64,
    pub prompt_tokens: u64,
    pub read_bytes: u64,
    pub write_bytes: u64,
    pub ssd_read_bytes: u64,
    pub evicted_blocks: u64,
    pub deduplicated_blocks: u64,
    pub dram_bytes_peak: u64,
}

/// One pool (prefill or decode): tokens it made over the time it could.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolStats {
    pub npus: u32,
    /// Dies that the experts of one instance are spread over, and experts on the fullest of them.
    pub ep_degree: u32,
    pub experts_per_die: u32,
    /// Prompt tokens computed (prefill) or output tokens made (decode) inside `span_ps`.
    pub tokens: u64,
    /// Time over which `tokens` is a throughput: the steady part of a closed loop, or the whole run.
    pub span_ps: Ps,
    /// Batches (prefill) or steps (decode).
    pub steps: u64,
    /// Time spent in them in the whole run, summed over groups, and requests summed over them (for the mean batch).
    pub busy_ps: Ps,
    pub batch_sum: u64,
}

/// Time in each stage of a layer, summed over layers, microbatches and dies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageTimes {
    /// Stage name to (sum of ps, count): a mean per layer and microbatch. Kept sorted by name.
    pub stages: std::collections::BTreeMap<String, (u64, u64)>,
}

impl StageTimes {
    pub fn add(&mut self, stage: &str, sum_ps: u64, count: u64) {
        if count == 0 {
            return;
        }
        let e = self.stages.entry(stage.to_string()).or_default();
        e.0 += sum_ps;
        e.1 += count;
    }

    pub fn merge(&mut self, other: &Self) {
        for (k, v) in &other.stages {
            self.add(k, v.0, v.1);
        }
    }
}

/// A class of links (die_lane, cpu_lane, uplink, sio, rdma, vpc), summed over its members; one entry per class.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LinkClassStats {
    pub class: String,
    pub links: u32,
    pub bytes: u64,
    pub messages: u64,
    /// Busy time summed over links and both directions, and of the busiest link and direction.
    pub busy_ps_sum: u128,
    pub busy_ps_max: Ps,
    pub lost_bytes: u64,
    pub queue: FineHist,
}

/// How steps were simulated.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FidelityStats {
    pub message_steps: u64,
    pub step_steps: u64,
    /// Steps drawn that were run at message level as well, with the sums of their drawn and simulated durations
    /// and of the absolute differences.
    pub rechecked_steps: u64,
    pub drawn_ps: u64,
    pub simulated_ps: u64,
    pub abs_error_ps: u64,
}

/// All that a run measured, over all shards.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunStats {
    pub digest: u64,
    pub events: u64,
    /// Virtual time of the last event that mattered to a request.
    pub end_ps: Ps,
    /// Requests that the workload offered to the machine so far.
    pub offered: u64,
    pub messages: MessageCounts,
    /// Ended requests, by id.
    pub records: Vec<RequestRecord>,
    /// Gaps between tokens as the home saw them.
    pub itl: FineHist,
    pub cache: CacheCounts,
    pub prefill: PoolStats,
    pub decode: PoolStats,
    pub prefill_layer: StageTimes,
    pub decode_layer: StageTimes,
    pub links: Vec<LinkClassStats>,
    pub experts: ExpertCounts,
    /// Where a load of weights is simulated.
    pub weights: Option<WeightCounts>,
    pub memory: Vec<MemoryStats>,
    /// Tokens of the busiest die of a group over the mean, in one layer, averaged over layers (message-level steps).
    pub expert_load_max_over_mean: f64,
    pub fidelity: FidelityStats,
    pub iterations: IterationTokens,
    /// What parts found out about faults, in order of time.
    pub notes: Vec<Note>,
    /// Requests started again: when, for want of which part, which.
    pub retried: Vec<(Ps, u32, u64)>,
    /// Small messages that faults kept from their receivers.
    pub lost_messages: u64,
}

/// How many tokens decode steps and prefill batches had, by powers of two.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IterationTokens {
    /// By the least power of two that is not less.
    by_power: [u64; 32],
    pub sum: u64,
}

impl IterationTokens {
    #[inline]
    pub fn record(&mut self, tokens: u64) {
        let power = tokens.max(1).next_power_of_two().trailing_zeros() as usize;
        self.by_power[power.min(31)] += 1;
        self.sum += tokens;
    }

    pub fn merge(&mut self, other: &Self) {
        for (a, b) in self.by_power.iter_mut().zip(&other.by_power) {
            *a += b;
        }
        self.sum += other.sum;
    }

    /// Steps and batches of at most `2^power` tokens; of any number from 31 on.
    pub fn up_to(&self, power: usize) -> u64 {
        self.by_power.iter().take(power + 1).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iterations_are_counted_up_to_powers_of_two() {
        let mut i = IterationTokens::default();
        for tokens in [0, 1, 2, 8, 9, 16, 20_000, u64::from(u32::MAX)] {
            i.record(tokens);
        }
        assert_eq!([0, 1, 3, 4, 14, 31].map(|p| i.up_to(p)), [2, 3, 4, 6, 6, 8]);
        let mut twice = i.clone();
        twice.merge(&i);
        assert_eq!((twice.up_to(4), twice.sum), (12, 2 * i.sum));
    }
}
