//! What is measured in a run: cheap log-linear histograms, counters, and the sums a report is made of.
//! Everything here merges, and merging in any order gives the same result.

use serde::{Deserialize, Serialize};

use crate::fault::Note;
use crate::request::RequestRecord;
use crate::time::Ps;

/// Histogram of durations in picoseconds: `2^SUB` linear buckets per power of two, so a relative error
/// under `2^-SUB`. Recording is a shift and an increment; buckets grow as they are needed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hist<const SUB: u32> {
    counts: Vec<u32>,
    count: u64,
    sum_ps: u128,
    max_ps: Ps,
}

/// For request-level figures: under 1% error.
pub type FineHist = Hist<7>;
/// For every actor of the machine: under 13% error, a few hundred bytes.
pub type ActorHist = Hist<3>;

impl<const SUB: u32> Hist<SUB> {
    /// Durations below this are one bucket: a nanosecond.
    const UNIT_SHIFT: u32 = 10;

    #[inline]
    fn bucket(ps: Ps) -> usize {
        let v = ps >> Self::UNIT_SHIFT;
        let top = 63 - (v | (1 << SUB)).leading_zeros();
        // 0 up to the first power of two past the linear buckets.
        let shift = top - SUB;
        ((u64::from(shift) << SUB) + (v >> shift)) as usize
    }

    /// Middle of a bucket.
    fn value(bucket: usize) -> Ps {
        let b = bucket as u64;
        let linear = 1u64 << SUB;
        let (low, width) = if b < linear {
            (b, 1)
        } else {
            let shift = (b >> SUB) - 1;
            ((linear + (b & (linear - 1))) << shift, 1u64 << shift)
        };
        (low << Self::UNIT_SHIFT) + ((width << Self::UNIT_SHIFT) >> 1)
    }

    #[inline]
    pub fn record(&mut self, ps: Ps) {
        self.record_n(ps, 1);
    }

    #[inline]
    pub fn record_n(&mut self, ps: Ps, n: u32) {
        let b = Self::bucket(ps);
        if b >= self.counts.len() {
            self.counts.resize(b + 1, 0);
        }
        self.counts[b] = self.counts[b].saturating_add(n);
        self.count += u64::from(n);
        self.sum_ps += u128::from(ps) * u128::from(n);
        self.max_ps = self.max_ps.max(ps);
    }

    /// Records many durations, each below 2^48 ps (281 s), in one go: two sets of buckets in turn, so that an increment
    /// need not wait for the one before it.
    pub fn record_all(&mut self, all_ps: &[Ps]) {
        // Up to 8 s where there are eight buckets to a power of two.
        const BUCKETS: usize = 256;
        let mut most = 0;
        let mut sum_ps = 0u128;
        for part in all_ps.chunks(1 << 16) {
            let mut sum = 0u64;
            for &ps in part {
                most = most.max(ps);
                sum += ps;
            }
            sum_ps += u128::from(sum);
        }
        let used = Self::bucket(most) + 1;
        if used > BUCKETS || most >> 48 != 0 || all_ps.is_empty() {
            all_ps.iter().for_each(|&ps| self.record(ps));
            return;
        }
        if used > self.counts.len() {
            self.counts.resize(used, 0);
        }
        let mut turns = [[0u32; BUCKETS]; 2];
        let pairs = all_ps.chunks_exact(2);
        for &ps in pairs.remainder() {
            turns[0][Self::bucket(ps) % BUCKETS] += 1;
        }
        for pair in pairs {
            turns[0][Self::bucket(pair[0]) % BUCKETS] += 1;
            turns[1][Self::bucket(pair[1]) % BUCKETS] += 1;
        }
        let [even, odd] = &turns;
        for ((count, a), b) in self.counts[..used].iter_mut().zip(even).zip(odd) {
            *count = count.saturating_add(a + b);
        }
        self.count += all_ps.len() as u64;
        self.sum_ps += sum_ps;
        self.max_ps = self.max_ps.max(most);
    }

    pub fn merge(&mut self, other: &Self) {
        if other.counts.len() > self.counts.len() {
            self.counts.resize(other.counts.len(), 0);
        }
        for (a, b) in self.counts.iter_mut().zip(&other.counts) {
            *a = a.saturating_add(*b);
        }
        self.count += other.count;
        self.sum_ps += other.sum_ps;
        self.max_ps = self.max_ps.max(other.max_ps);
    }

    /// Adds a histogram of another resolution: each of its buckets at its middle.
    pub fn absorb<const OTHER: u32>(&mut self, other: &Hist<OTHER>) {
        let (sum, max) = (self.sum_ps + other.sum_ps, self.max_ps.max(other.max_ps));
        for (b, &n) in other.counts.iter().enumerate().filter(|(_, n)| **n > 0) {
            self.record_n(Hist::<OTHER>::value(b).min(other.max_ps), n);
        }
        (self.sum_ps, self.max_ps) = (sum, max);
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    /// The middle of each bucket that holds something, with how many.
    pub fn buckets(&self) -> impl Iterator<Item = (Ps, u64)> + '_ {
        let some = self.counts.iter().enumerate().filter(|(_, n)| **n > 0);
        some.map(|(b, &n)| (Self::value(b).min(self.max_ps), u64::from(n)))
    }

    pub fn sum_ps(&self) -> u128 {
        self.sum_ps
    }

    pub fn max_ps(&self) -> Ps {
        self.max_ps
    }

    pub fn mean_ps(&self) -> f64 {
        if self.count == 0 {
            0.0
        } else {
            self.sum_ps as f64 / self.count as f64
        }
    }

    /// The value below which a share `q` (0..=1) of the records lies; 0 when there are none.
    pub fn quantile_ps(&self, q: f64) -> Ps {
        let rank = ((q * self.count as f64).ceil() as u64).max(1);
        let mut seen = 0;
        for (b, &n) in self.counts.iter().enumerate() {
            seen += u64::from(n);
            if seen >= rank {
                return Self::value(b).min(self.max_ps);
            }
        }
        self.max_ps
    }
}

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
    /// Plans that were put in force after the start.
    pub plans: u64,
    /// Weights that dies loaded for them.
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

    #[test]
    fn a_quantile_is_within_the_stated_error() {
        let mut h = FineHist::default();
        for us in 1..=10_000u64 {
            h.record(us * 1_000_000);
        }
        for q in [0.01, 0.5, 0.9, 0.99] {
            let want = q * 1e10;
            let got = h.quantile_ps(q) as f64;
            assert!((got - want).abs() / want < 0.01, "q {q}: {got} for {want}");
        }
        assert_eq!(h.max_ps(), 10_000_000_000);
    }

    #[test]
    fn merging_is_recording_in_one() {
        let (mut a, mut b, mut all) = (
            ActorHist::default(),
            ActorHist::default(),
            ActorHist::default(),
        );
        for i in 0..1000u64 {
            let v = i * i * 7919;
            if i % 3 == 0 {
                a.record(v)
            } else {
                b.record(v)
            }
            all.record(v);
        }
        a.merge(&b);
        assert_eq!(a, all);
    }
}
