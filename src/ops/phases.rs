//! Operators that need many dies, measured by letting a small part of the model run on the machine at message level:
//! a few layers, one full batch.

use std::sync::Arc;

use supernode_actors::compute::Calibration;
use supernode_actors::config::{Balance, Fidelity, Microbatch, Number, Serving};
use supernode_actors::experts::ExpertTables;
use supernode_actors::launch::{Flow, Launch, LaunchError, Load, Phase, RunError, Supernode};
use supernode_actors::model::ModelSpec;
use supernode_actors::request::{Prefix, RequestSpec};
use supernode_actors::stats::{RunStats, StageTimes};
use supernode_topology::Machine;

use super::Row;
use crate::error::{Error, Result};
use crate::scenario::{Length, Scenario};

/// Layers that are run: enough to be past the first.
const LAYERS: u32 = 6;
/// Long enough for all requests to be in place before the first step begins.
const SETTLE_US: f64 = 10_000.0;

/// Dispatch and combine with 128 tokens a rank, hidden 7,168, top-8 (arXiv 2506.12708): (EP, us, us).
const PUBLISHED: [(u32, f64, f64); 4] = [
    (8, 116.0, 118.0),
    (32, 133.0, 146.0),
    (128, 152.0, 150.0),
    (256, 152.0, 149.0),
];
const PUBLISHED_TOKENS: u32 = 128;

/// The published degrees of expert parallelism.
pub fn published_degrees() -> Vec<u32> {
    PUBLISHED.iter().map(|p| p.0).collect()
}

/// What measurements start from.
pub struct Bench {
    pub machine: Arc<Machine>,
    pub model: ModelSpec,
    pub calibration: Calibration,
    pub serving: Serving,
    /// Tokens of context in decode, and of a prompt in prefill.
    pub prompt_tokens: u32,
    seed: u64,
}

impl Bench {
    pub fn new(scenario: &Scenario) -> Result<Self> {
        let (machine, model, calibration) = super::parts(scenario)?;
        let prompt_tokens = match &scenario.workload.prompt_tokens {
            Length::Fixed(n) => *n,
            Length::Drawn(d) => d.mean.unwrap_or(4_096.0) as u32,
        };
        let mut serving = scenario.serving();
        serving.fidelity.level = Fidelity::Message;
        serving.cache.enabled = false;
        Ok(Self {
            machine,
            model,
            calibration,
            serving,
            prompt_tokens,
            seed: scenario.seed,
        })
    }

    /// The first layers of the model, `moe` of them with experts.
    fn cut(&self, dense: u32, moe: u32) -> ModelSpec {
        let mut model = self.model.clone();
        model.dense_layers = dense.min(model.dense_layers);
        model.layers = model.dense_layers + moe;
        model
    }

    fn run(&self, model: ModelSpec, serving: Serving, load: Load) -> Result<RunStats> {
        let mut calibration = self.calibration.clone();
        calibration.overhead.host_gap_us = SETTLE_US;
        let mut supernode = Supernode::launch(Launch {
            machine: Arc::clone(&self.machine),
            model,
            serving,
            calibration,
            seed: self.seed,
            shards: 1,
            load,
            experts: ExpertTables::default(),
        })
        .map_err(|LaunchError::Config(why)| Error::user(why))?;
        supernode
            .run(&mut |_| Flow::Continue)
            .map_err(|RunError::Broken(why)| Error::failed(format!("the run failed: {why}")))?;
        Ok(supernode.stats())
    }

    /// `requests` on every die of the decode instances, for one step.
    fn one_step(&self, model: ModelSpec, serving: Serving, requests: u32) -> Result<RunStats> {
        let dies = serving.decode.instances
            * serving.decode.npus_per_instance
            * self.machine.dies_per_npu();
        let n = dies * requests;
        let load = Load {
            phase: Phase::Decode,
            requests: equal_requests(u64::from(n), self.prompt_tokens),
            concurrency: Some(n),
        };
        self.run(model, serving, load)
    }

    /// Dispatch and combine of `tokens` on each of `ep` dies, alone on the machine, load perfectly balanced.
    pub fn dispatch_and_combine(&self, ep: u32, tokens: u32) -> Result<[Row; 2]> {
        let per_npu = self.machine.dies_per_npu();
        if ep == 0 || !ep.is_multiple_of(per_npu) || ep > self.machine.die_count() {
            return Err(Error::user(format!(
                "--ep {ep}: a multiple of {per_npu} up to the machine's {} dies is expected",
                self.machine.die_count()
            )));
        }
        let mut model = self.cut(0, LAYERS);
        model.shared_experts = 0;
        let mut serving = self.serving.clone();
        let d = &mut serving.decode;
        d.instances = 1;
        d.npus_per_instance = ep / per_npu;
        d.max_batch_per_npu = tokens * per_npu;
        d.microbatch = Microbatch::Off;
        d.mtp_tokens = 0;
        let e = &mut serving.experts;
        e.balance = Balance::Perfect;
        e.skew = 0.0;
        e.shared_replicas = 0;
        e.redundant = model.routed_experts.div_ceil(ep) * ep - model.routed_experts;
        let stages = self.one_step(model, serving, tokens)?.decode_layer;
        let published = PUBLISHED
            .iter()
            .find(|p| p.0 == ep && tokens == PUBLISHED_TOKENS);
        // Measured with INT8 activations; results go back in BF16 in either case.
        let int8 = self.serving.precision.dispatch == Number::Int8;
        let published_dispatch = published.map(|p| p.1).filter(|_| int8);
        let row = |stage: &str, published| {
            let name = format!("{stage}, EP {ep}, {tokens} tokens a rank");
            Row::new("ep", name, "us", mean_us(&stages, stage)).published(published)
        };
        Ok([
            row("dispatch", published_dispatch),
            row("combine", published.map(|p| p.2)),
        ])
    }

    /// One MoE layer of decode with the batch, layout and switches of the scenario.
    pub fn decode_layer(&self) -> Result<Vec<Row>> {
        let mut serving = self.serving.clone();
        serving.decode.instances = 1;
        let requests = (serving.decode.max_batch_per_npu / self.machine.dies_per_npu()).max(1);
        // Drafts make a layer's batch larger; their own layer is one more of the same.
        let mut model = self.cut(0, LAYERS);
        model.mtp_layers = 0;
        let stages = self.one_step(model, serving, requests)?.decode_layer;
        Ok(layer_rows(
            "decode_layer",
            &stages,
            &["dense_layers", "head"],
        ))
    }

    /// One MoE layer of a full prefill batch with the layout and switches of the scenario.
    pub fn prefill_layer(&self) -> Result<Vec<Row>> {
        let mut serving = self.serving.clone();
        let p = &mut serving.prefill;
        p.instances = 1;
        let budget = u64::from(p.batch_tokens_per_npu) * u64::from(p.npus_per_instance);
        let prompts = (budget / u64::from(self.prompt_tokens)).max(1);
        // The first batch takes what has come so far; what two runs differ by are full batches.
        let stages = |batches: u64| -> Result<StageTimes> {
            let load = Load {
                phase: Phase::Prefill,
                requests: equal_requests(1 + batches * prompts, self.prompt_tokens),
                concurrency: None,
            };
            Ok(self
                .run(self.cut(0, LAYERS), serving.clone(), load)?
                .prefill_layer)
        };
        let (one, three): (StageTimes, StageTimes) = (stages(1)?, stages(3)?);
        let mut full = StageTimes::default();
        for (stage, (sum, n)) in &three.stages {
            let (s, m) = one.stages.get(stage).copied().unwrap_or_default();
            full.add(stage, sum.saturating_sub(s), n.saturating_sub(m));
        }
        Ok(layer_rows("prefill_layer", &full, &["dense_mlp"]))
    }
}

/// Requests with their KV in place, or prompts, that end after one step or batch.
fn equal_requests(n: u64, prompt_tokens: u32) -> Vec<RequestSpec> {
    (0..n)
        .map(|id| RequestSpec {
            id,
            arrival_ps: 0,
            prompt_tokens,
            output_tokens: 1,
            prefix: Prefix::Unique,
        })
        .collect()
}

fn mean_us(stages: &StageTimes, stage: &str) -> f64 {
    let (sum, n) = stages.stages.get(stage).copied().unwrap_or_default();
    sum as f64 * 1e-6 / n.max(1) as f64
}

fn layer_rows(section: &'static str, stages: &StageTimes, without: &[&str]) -> Vec<Row> {
    stages
        .stages
        .keys()
        .filter(|s| !without.contains(&s.as_str()))
        .map(|s| {
            let name = format!("{s}, a microbatch").replace('_', " ");
            Row::new(section, name, "us", mean_us(stages, s))
        })
        .collect()
}
