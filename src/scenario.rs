//! Scenario files: what is launched, how it serves, and what arrives. A scenario is TOML; every key has a
//! default, any key can be set on the command line, and a wrong one is answered with its place, its value and
//! what would be accepted. A file may build on another (`base`). What the serving sections mean is said in
//! `supernode_actors::config`.

mod base;
mod check;
mod keys;
mod length;
mod load;
mod places;
mod ranges;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use supernode_actors::compute::Operators;
use supernode_actors::config::{
    Cache, Decode, Experts, FidelitySpec, KvTransfer, ModelCache, Placement, Precision, Prefill,
    Recovery, Serving,
};
use supernode_actors::launch::Phase;

pub use keys::{known_keys, schema};
pub use length::{Distribution, Drawn, Length};
pub use load::{Loader, duration_s, looks_like_path, speed_factor};
pub use places::Places;
pub use ranges::{REQUESTS_MAX, SPAN_S_MAX};

/// A whole scenario, every key in place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Scenario {
    /// Seed of every random draw: equal scenarios with equal seeds give equal runs.
    pub seed: u64,
    /// Built-in machine ("cloudmatrix384", …) or the path of a machine file.
    pub machine: String,
    /// Built-in model ("deepseek-r1") or the path of a model file.
    pub model: String,
    pub prefill: Prefill,
    pub decode: Decode,
    pub experts: Experts,
    pub cache: Cache,
    pub model_cache: ModelCache,
    pub kv_transfer: KvTransfer,
    pub precision: Precision,
    pub placement: Placement,
    pub recovery: Recovery,
    pub fidelity: FidelitySpec,
    /// Efficiencies and overheads of operators: `file` names another file than the built-in one, and single values
    /// are set over it, such as `operators.dispatch.startup_us`.
    pub operators: Operators,
    pub slo: Slo,
    pub workload: WorkloadSpec,
    /// For messages.
    #[serde(skip)]
    pub places: Places,
}

impl Default for Scenario {
    fn default() -> Self {
        let serving = Serving::default();
        Self {
            seed: 1,
            machine: "cloudmatrix384".into(),
            model: "deepseek-r1".into(),
            prefill: serving.prefill,
            decode: serving.decode,
            experts: serving.experts,
            cache: serving.cache,
            model_cache: serving.model_cache,
            kv_transfer: serving.kv_transfer,
            precision: serving.precision,
            placement: serving.placement,
            recovery: serving.recovery,
            fidelity: serving.fidelity,
            operators: Operators::default(),
            slo: Slo::default(),
            workload: WorkloadSpec::default(),
            places: Places::default(),
        }
    }
}

impl Scenario {
    /// The sections that the machine itself reads.
    pub fn serving(&self) -> Serving {
        Serving {
            prefill: self.prefill.clone(),
            decode: self.decode.clone(),
            experts: self.experts.clone(),
            cache: self.cache.clone(),
            model_cache: self.model_cache.clone(),
            kv_transfer: self.kv_transfer.clone(),
            precision: self.precision.clone(),
            placement: self.placement.clone(),
            recovery: self.recovery.clone(),
            fidelity: self.fidelity.clone(),
        }
    }

    /// NPUs of all prefill instances.
    pub fn prefill_npus(&self) -> u32 {
        self.prefill
            .instances
            .saturating_mul(self.prefill.npus_per_instance)
    }

    /// NPUs of all decode instances.
    pub fn decode_npus(&self) -> u32 {
        self.decode
            .instances
            .saturating_mul(self.decode.npus_per_instance)
    }
}

/// What a request must meet to count as goodput.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Slo {
    /// Time to the first token.
    pub ttft_ms: f64,
    /// Mean time per output token after the first.
    pub tpot_ms: f64,
}

impl Default for Slo {
    fn default() -> Self {
        Self {
            ttft_ms: 2_000.0,
            tpot_ms: 50.0,
        }
    }
}

/// What arrives, and when.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WorkloadSpec {
    /// "trace": requests and arrival times from `file`. "open": arrivals drawn at `rate_per_s`, whatever the
    /// machine manages. "closed": `concurrency_per_npu` requests in the machine at any time.
    pub kind: Kind,
    /// Workload file, plain or gzip (or a ServeGen directory). Without one, "trace" plays the workload that
    /// ships with Supernode. With kind "open" or "closed" the file gives the lengths and prefixes only.
    pub file: Option<String>,
    /// Format of `file`; "auto" looks at it.
    pub format: Format,
    /// Arrivals come so many times as fast.
    pub speed: f64,
    /// Phase-shifted copies that are superposed, each with KV blocks of its own.
    pub copies: u32,
    /// Seconds of the trace that are skipped at its start.
    pub start_s: f64,
    /// Arrival times that a trace rounds to a coarse grid: "auto" spreads them inside their bucket, "off" plays
    /// them as they are.
    pub spread: Spread,
    /// At most so many requests; for "closed" how many there are (default: 4 for each place in the machine).
    pub requests: Option<u64>,
    /// Requests that arrive in the first so many seconds (virtual, after `speed`).
    pub duration_s: Option<f64>,
    /// Mean arrival rate of kind "open".
    pub rate_per_s: Option<f64>,
    /// Coefficient of variation of the times between arrivals of kind "open": 1 is Poisson, others are gamma.
    pub cv: f64,
    /// Prompt length: a number, or a table such as { dist = "lognormal", mean = 4096, cv = 1.0 }.
    pub prompt_tokens: Length,
    /// Tokens to generate: a number or a table, as `prompt_tokens`.
    pub output_tokens: Length,
    /// Requests in the machine, for each NPU of the pool that `phase` exercises, of kind "closed".
    pub concurrency_per_npu: Option<f64>,
    /// Share of each synthetic prompt's tokens that is in the cache when it arrives.
    pub reuse_share: f64,
    /// "both": prompt to last token. "prefill": requests end with their first token. "decode": requests arrive
    /// with their KV in place.
    pub phase: PhaseSpec,
}

impl Default for WorkloadSpec {
    fn default() -> Self {
        Self {
            kind: Kind::Trace,
            file: None,
            format: Format::Auto,
            speed: 1.0,
            copies: 1,
            start_s: 0.0,
            spread: Spread::Auto,
            requests: None,
            duration_s: None,
            rate_per_s: None,
            cv: 1.0,
            prompt_tokens: Length::Fixed(4_096),
            output_tokens: Length::Fixed(256),
            concurrency_per_npu: None,
            reuse_share: 0.0,
            phase: PhaseSpec::Both,
        }
    }
}

/// Where arrivals come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Trace,
    Open,
    Closed,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Open => "open",
            Self::Closed => "closed",
        }
    }
}

/// Formats of workload files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    Auto,
    Mooncake,
    Azure,
    BurstGpt,
    ServeGen,
}

impl Format {
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Mooncake => "mooncake",
            Self::Azure => "azure",
            Self::BurstGpt => "burstgpt",
            Self::ServeGen => "servegen",
        }
    }
}

/// What to do with arrival times that a trace rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Spread {
    Auto,
    Off,
}

/// Which part of serving is exercised: [`Phase`] as a scenario spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PhaseSpec {
    Both,
    Prefill,
    Decode,
}

impl PhaseSpec {
    pub fn name(self) -> &'static str {
        match self {
            Self::Both => "both",
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }
}

impl From<PhaseSpec> for Phase {
    fn from(phase: PhaseSpec) -> Self {
        match phase {
            PhaseSpec::Both => Self::Both,
            PhaseSpec::Prefill => Self::Prefill,
            PhaseSpec::Decode => Self::Decode,
        }
    }
}
