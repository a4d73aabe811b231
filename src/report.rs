//! What a run says: the figures of a report, computed once from what the machine measured, and rendered as a
//! table for people or as JSON for programs. The keys are stable; times carry their unit in the name.

mod faults;
mod latency;
mod load;
mod table;
mod weights;

use std::collections::BTreeMap;

use serde::Serialize;
use supernode_actors::launch::Ended;
use supernode_actors::request::Outcome;
use supernode_actors::stats::{LinkClassStats, MemoryStats, PoolStats, RunStats, StageTimes};
use supernode_actors::time::{ms_from_ps, s_from_ps, us_from_ps};

use crate::scenario::Slo;
use crate::workload::Source;
pub use faults::{FaultReport, of as faults_of};
pub use latency::Latency;
pub use load::{LoadReport, Overload, Rates};
pub use table::{bytes, count, grid, grid_with_text, number, percent};
pub use weights::{LoadReport as WeightLoadReport, ModelLoadReport};

/// What a report is computed from.
pub struct Inputs<'a> {
    pub stats: &'a RunStats,
    pub ended: Ended,
    pub seed: u64,
    pub machine: &'a str,
    pub model: &'a str,
    pub slo: &'a Slo,
    pub source: &'a Source,
    /// Arrival, prompt and output tokens of what the workload held, in order.
    pub offered: &'a [Offered],
    /// Closed loop: requests in the machine at any time.
    pub concurrency: Option<u32>,
    pub notes: &'a [String],
    pub faults: Vec<FaultReport>,
    pub prefill_instances: u32,
    pub decode_instances: u32,
    /// INT8 peak of one NPU, from the machine file.
    pub int8_tops_per_npu: f64,
    pub wall_s: f64,
}

/// What is kept of a request once the machine has taken it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offered {
    pub arrival_ps: u64,
    pub prompt_tokens: u32,
    pub output_tokens: u32,
}

/// A run in figures.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Of the event history, 16 hexadecimal digits: equal digests mean equal runs.
    pub digest: String,
    pub seed: u64,
    pub machine: String,
    pub model: String,
    /// The run was stopped before its workload had ended.
    pub partial: bool,
    pub virtual_s: f64,
    /// Time on the wall clock; the only figure that differs between equal runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wall_s: Option<f64>,
    pub events: u64,
    pub messages: Messages,
    pub requests: Requests,
    pub goodput: Goodput,
    pub prefill: PrefillReport,
    pub decode: DecodeReport,
    pub ttft_ms: Latency,
    pub tpot_ms: Latency,
    pub itl_ms: Latency,
    pub e2e_ms: Latency,
    pub cache: CacheReport,
    /// Mean per layer and microbatch, of decode and prefill, by stage.
    pub layer_us: LayerReport,
    pub links: BTreeMap<String, LinkReport>,
    pub experts: ExpertsReport,
    /// Where a load of weights is simulated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_load: Option<ModelLoadReport>,
    /// HBM of a die of each pool: what is in it, and what is left for KV.
    pub memory: BTreeMap<String, MemoryReport>,
    /// Faults of the scenario: what, when it struck, was noticed and recovered from.
    pub faults: Vec<FaultReport>,
    pub fidelity: FidelityReport,
    pub slo: Slo,
    pub workload: LoadReport,
    pub notes: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Messages {
    pub activation: u64,
    /// Die-to-die messages that carried the activations.
    pub activation_messages: u64,
    pub kv_block: u64,
    /// Transfers of weights, and of what EPLB counts and plans.
    pub weight_block: u64,
    pub tokens: u64,
    pub control: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Requests {
    pub offered: u64,
    pub completed: u64,
    pub failed: u64,
    /// Given up by who asked for them, on a live machine.
    pub cancelled: u64,
    /// Reason to count, of those that failed.
    pub failures: BTreeMap<String, u64>,
}

/// Requests that met both objectives (a single token: the first one's).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Goodput {
    pub requests_per_s: f64,
    /// Of all that ended and were not cancelled.
    pub share: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PrefillReport {
    pub tokens_per_s_per_npu: f64,
    pub npus: u32,
    pub tokens_per_s_per_tflops: f64,
    pub tokens: u64,
    pub batches: u64,
    pub requests_per_batch: f64,
    /// Of the whole run, mean over the instances.
    pub busy_share: f64,
    /// Dies that the experts of one instance are spread over, and experts on the fullest of them.
    pub ep_degree: u32,
    pub experts_per_die: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DecodeReport {
    pub tokens_per_s_per_npu: f64,
    pub npus: u32,
    /// Mean requests in a step of an instance, for each of its NPUs.
    pub batch_per_npu: f64,
    pub tokens_per_s_per_tflops: f64,
    pub tokens: u64,
    pub steps: u64,
    pub step_ms: f64,
    /// Dies that the experts of one instance are spread over, and experts on the fullest of them.
    pub ep_degree: u32,
    pub experts_per_die: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CacheReport {
    pub lookup_blocks: u64,
    pub hit_blocks: u64,
    pub hit_share: f64,
    pub hit_tokens_share: f64,
    pub read_bytes: u64,
    pub write_bytes: u64,
    pub ssd_read_bytes: u64,
    pub evicted_blocks: u64,
    pub deduplicated_blocks: u64,
    pub dram_bytes_peak: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerReport {
    pub decode: BTreeMap<String, f64>,
    pub prefill: BTreeMap<String, f64>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LinkReport {
    pub links: u32,
    pub bytes: u64,
    pub messages: u64,
    pub lost_bytes: u64,
    /// Over all links of the class, both directions, and the whole run.
    pub utilisation_mean: f64,
    /// Of the busiest link and direction.
    pub utilisation_max: f64,
    pub queue_us_p99: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExpertsReport {
    /// Tokens of the busiest die over the mean, in one layer, averaged over layers.
    pub load_max_over_mean: f64,
    /// EPLB plans made after the start that change something.
    pub plans_made: u64,
    /// Those of them that came into force, in all layers, before the run ended.
    pub plans: u64,
    /// Weights that dies loaded for plans that were made, those on their way when the last request ended among them.
    pub moved_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MemoryReport {
    pub hbm_bytes: u64,
    pub experts_per_die: u32,
    pub attention_bytes: u64,
    pub dense_bytes: u64,
    pub experts_bytes: u64,
    pub head_bytes: u64,
    pub buffers_bytes: u64,
    pub staging_bytes: u64,
    pub workspace_bytes: u64,
    pub kv_bytes: u64,
}

fn memory(m: &MemoryStats) -> MemoryReport {
    MemoryReport {
        hbm_bytes: m.hbm_bytes,
        experts_per_die: m.experts_per_die,
        attention_bytes: m.attention_bytes,
        dense_bytes: m.dense_bytes,
        experts_bytes: m.experts_bytes,
        head_bytes: m.head_bytes,
        buffers_bytes: m.buffers_bytes,
        staging_bytes: m.staging_bytes,
        workspace_bytes: m.workspace_bytes,
        kv_bytes: m.kv_bytes,
    }
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FidelityReport {
    pub message_steps: u64,
    pub step_steps: u64,
    pub rechecked_steps: u64,
    /// Drawn over simulated time of the steps that were run both ways, less 1; none were: null.
    pub error: Option<f64>,
    /// The same, step by step, without sign.
    pub error_abs: Option<f64>,
}

impl Report {
    pub fn new(inputs: &Inputs) -> Self {
        let s = inputs.stats;
        let virtual_s = s_from_ps(s.end_ps);
        let completed = s
            .records
            .iter()
            .filter(|r| r.outcome == Outcome::Completed)
            .count() as u64;
        let mut failures = BTreeMap::new();
        for record in &s.records {
            if let Outcome::Failed(why) = &record.outcome {
                *failures.entry(why.clone()).or_default() += 1;
            }
        }
        let ended = s.records.len() as u64;
        let cancelled = s
            .records
            .iter()
            .filter(|r| r.outcome == Outcome::Cancelled)
            .count() as u64;
        let good = s
            .records
            .iter()
            .filter(|r| latency::meets(r, inputs.slo))
            .count() as f64;
        let latencies = latency::of_records(&s.records);
        Self {
            digest: format!("{:016x}", s.digest),
            seed: inputs.seed,
            machine: inputs.machine.to_string(),
            model: inputs.model.to_string(),
            partial: inputs.ended == Ended::Stopped,
            virtual_s,
            wall_s: Some(inputs.wall_s),
            events: s.events,
            messages: Messages {
                activation: s.messages.activation,
                activation_messages: s.messages.activation_messages,
                kv_block: s.messages.kv_block,
                weight_block: s.messages.weight_block,
                tokens: s.messages.tokens,
                control: s.messages.control,
            },
            requests: Requests {
                offered: s.offered,
                completed,
                failed: ended - completed - cancelled,
                cancelled,
                failures,
            },
            goodput: Goodput {
                requests_per_s: ratio(good, virtual_s),
                share: ratio(good, (ended - cancelled) as f64),
            },
            prefill: prefill(
                &s.prefill,
                s.end_ps as f64 * f64::from(inputs.prefill_instances),
                inputs.int8_tops_per_npu,
            ),
            decode: decode(&s.decode, inputs.decode_instances, inputs.int8_tops_per_npu),
            ttft_ms: latencies.ttft_ms,
            tpot_ms: latencies.tpot_ms,
            itl_ms: Latency::of_hist(&s.itl),
            e2e_ms: latencies.e2e_ms,
            cache: CacheReport {
                lookup_blocks: s.cache.lookup_blocks,
                hit_blocks: s.cache.hit_blocks,
                hit_share: ratio(s.cache.hit_blocks as f64, s.cache.lookup_blocks as f64),
                hit_tokens_share: ratio(s.cache.hit_tokens as f64, s.cache.prompt_tokens as f64),
                read_bytes: s.cache.read_bytes,
                write_bytes: s.cache.write_bytes,
                ssd_read_bytes: s.cache.ssd_read_bytes,
                evicted_blocks: s.cache.evicted_blocks,
                deduplicated_blocks: s.cache.deduplicated_blocks,
                dram_bytes_peak: s.cache.dram_bytes_peak,
            },
            layer_us: LayerReport {
                decode: stages(&s.decode_layer),
                prefill: stages(&s.prefill_layer),
            },
            links: s
                .links
                .iter()
                .map(|l| (l.class.clone(), link(l, s.end_ps)))
                .collect(),
            experts: ExpertsReport {
                load_max_over_mean: finite(s.expert_load_max_over_mean),
                plans_made: s.experts.plans_made,
                plans: s.experts.plans,
                moved_bytes: s.experts.moved_bytes,
            },
            model_load: weights::of(s),
            memory: s
                .memory
                .iter()
                .map(|m| (m.pool.clone(), memory(m)))
                .collect(),
            faults: inputs.faults.clone(),
            fidelity: FidelityReport {
                message_steps: s.fidelity.message_steps,
                step_steps: s.fidelity.step_steps,
                rechecked_steps: s.fidelity.rechecked_steps,
                error: over(
                    s.fidelity.drawn_ps as f64 - s.fidelity.simulated_ps as f64,
                    s.fidelity.simulated_ps as f64,
                ),
                error_abs: over(
                    s.fidelity.abs_error_ps as f64,
                    s.fidelity.simulated_ps as f64,
                ),
            },
            slo: inputs.slo.clone(),
            workload: load::of(inputs),
            notes: inputs.notes.to_vec(),
        }
    }

    /// The report without wall-clock figures: equal for equal scenarios, seeds and fidelities, whatever the
    /// shards and the computer.
    pub fn stable(&self) -> Self {
        Self {
            wall_s: None,
            ..self.clone()
        }
    }

    /// Indented JSON that ends with a line end.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self)
            .expect("a report holds only finite numbers and strings");
        text.push('\n');
        text
    }

    /// The table for people.
    pub fn to_table(&self) -> String {
        let mut text = table::render(self);
        text.push_str(&faults::lines(&self.faults));
        text
    }
}

/// `whole_ps`: the run's length, once for each instance.
fn prefill(p: &PoolStats, whole_ps: f64, tops: f64) -> PrefillReport {
    let per_npu = tokens_per_s_per_npu(p);
    PrefillReport {
        tokens_per_s_per_npu: per_npu,
        npus: p.npus,
        tokens_per_s_per_tflops: ratio(per_npu, tops),
        tokens: p.tokens,
        batches: p.steps,
        requests_per_batch: ratio(p.batch_sum as f64, p.steps as f64),
        busy_share: ratio(p.busy_ps as f64, whole_ps),
        ep_degree: p.ep_degree,
        experts_per_die: p.experts_per_die,
    }
}

fn decode(p: &PoolStats, instances: u32, tops: f64) -> DecodeReport {
    let per_npu = tokens_per_s_per_npu(p);
    DecodeReport {
        tokens_per_s_per_npu: per_npu,
        npus: p.npus,
        batch_per_npu: ratio(
            p.batch_sum as f64 * f64::from(instances),
            p.steps as f64 * f64::from(p.npus),
        ),
        tokens_per_s_per_tflops: ratio(per_npu, tops),
        tokens: p.tokens,
        steps: p.steps,
        step_ms: ratio(ms_from_ps(p.busy_ps), p.steps as f64),
        ep_degree: p.ep_degree,
        experts_per_die: p.experts_per_die,
    }
}

fn tokens_per_s_per_npu(p: &PoolStats) -> f64 {
    ratio(p.tokens as f64, s_from_ps(p.span_ps) * f64::from(p.npus))
}

fn stages(times: &StageTimes) -> BTreeMap<String, f64> {
    times
        .stages
        .iter()
        .map(|(stage, (sum_ps, n))| (stage.clone(), ratio(us_from_ps(*sum_ps), *n as f64)))
        .collect()
}

fn link(l: &LinkClassStats, end_ps: u64) -> LinkReport {
    LinkReport {
        links: l.links,
        bytes: l.bytes,
        messages: l.messages,
        lost_bytes: l.lost_bytes,
        utilisation_mean: ratio(
            l.busy_ps_sum as f64,
            2.0 * f64::from(l.links) * end_ps as f64,
        ),
        utilisation_max: ratio(l.busy_ps_max as f64, end_ps as f64),
        queue_us_p99: us_from_ps(l.queue.quantile_ps(0.99)),
    }
}

/// 0 where there is nothing to divide by: a report has no NaN.
fn ratio(a: f64, b: f64) -> f64 {
    over(a, b).unwrap_or(0.0)
}

fn over(a: f64, b: f64) -> Option<f64> {
    (b != 0.0).then(|| a / b).filter(|x| x.is_finite())
}

fn finite(x: f64) -> f64 {
    if x.is_finite() { x } else { 0.0 }
}
