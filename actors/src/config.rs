//! The serving configuration: what a scenario file says about how the machine serves. Defaults are the
//! evaluated layout of CloudMatrix-Infer (arXiv 2506.12708): 6 prefill instances of 16 NPUs, one decode
//! instance of 160, the cache in the DRAM of those 32 nodes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident : $ty:ty = $default:expr),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name { $($(#[$fdoc])* pub $field: $ty),+ }
        impl Default for $name {
            fn default() -> Self { Self { $($field: $default),+ } }
        }
    };
}

section! {
    /// Everything about serving that a scenario can set.
    Serving {
        prefill: Prefill = Prefill::default(),
        decode: Decode = Decode::default(),
        experts: Experts = Experts::default(),
        cache: Cache = Cache::default(),
        kv_transfer: KvTransfer = KvTransfer::default(),
        precision: Precision = Precision::default(),
        placement: Placement = Placement::default(),
        fidelity: FidelitySpec = FidelitySpec::default(),
    }
}

section! {
    /// Prefill instances: groups of NPUs that turn prompts into KV and a first token.
    Prefill {
        instances: u32 = 6,
        npus_per_instance: u32 = 16,
        /// Token budget of one batch, per NPU.
        batch_tokens_per_npu: u32 = 16_384,
        /// Two microbatches overlap cube, vector and SDMA engines.
        microbatch: bool = true,
        /// Redundant routed experts over the instance (EP32: one per die).
        redundant: u32 = 32,
        /// Copies of the shared expert over the instance (EP32: one per die).
        shared_replicas: u32 = 32,
    }
}

section! {
    /// Decode instances: groups of NPUs that generate tokens in synchronous steps.
    Decode {
        instances: u32 = 1,
        npus_per_instance: u32 = 160,
        /// Requests in the batch, per NPU (half of it per die).
        max_batch_per_npu: u32 = 96,
        /// Two microbatches on two streams; a step uses them only where they are expected to be faster ("auto"), or always, or never.
        microbatch: Microbatch = Microbatch::Auto,
        /// Speculative tokens per step from the multi-token-prediction layer.
        mtp_tokens: u32 = 1,
        /// Probability that a speculative token is accepted, given that those before it were.
        mtp_acceptance: f64 = 0.7,
    }
}

/// When decode splits a batch into two microbatches: `true`, `false` or `"auto"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "MicrobatchForm", into = "MicrobatchForm")]
#[schemars(with = "MicrobatchForm")]
pub enum Microbatch {
    On,
    Off,
    Auto,
}

/// How `Microbatch` is written.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
enum MicrobatchForm {
    Flag(bool),
    Word(String),
}

impl TryFrom<MicrobatchForm> for Microbatch {
    type Error = String;

    fn try_from(form: MicrobatchForm) -> Result<Self, String> {
        match form {
            MicrobatchForm::Flag(true) => Ok(Self::On),
            MicrobatchForm::Flag(false) => Ok(Self::Off),
            MicrobatchForm::Word(w) => match w.as_str() {
                "on" | "true" => Ok(Self::On),
                "off" | "false" => Ok(Self::Off),
                "auto" => Ok(Self::Auto),
                _ => Err(format!(
                    "microbatch = \"{w}\": true, false or \"auto\" is expected"
                )),
            },
        }
    }
}

impl From<Microbatch> for MicrobatchForm {
    fn from(m: Microbatch) -> Self {
        match m {
            Microbatch::On => Self::Flag(true),
            Microbatch::Off => Self::Flag(false),
            Microbatch::Auto => Self::Word("auto".into()),
        }
    }
}

section! {
    /// Experts of the decode instances, their copies, and how loaded they are.
    Experts {
        balance: Balance = Balance::Eplb,
        /// Redundant routed experts over a decode instance.
        redundant: u32 = 32,
        /// Copies of the shared expert over a decode instance.
        shared_replicas: u32 = 32,
        /// Skew of the routing: standard deviation of ln(load) over a layer's experts, which is lognormal (0 = all equal).
        skew: f64 = crate::experts::ExpertFigures::builtin().popularity.skew,
        /// File of per-expert loads (CSV: layer, expert, load), instead of `skew`.
        load_file: Option<String> = None,
        /// Seconds between EPLB plans made from observed load; 0 = only once, at the start.
        eplb_interval_s: f64 = 0.0,
    }
}

/// How expert load is balanced over dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Balance {
    /// Redundant slots hold copies of the first experts, whatever their load.
    None,
    /// Redundant slots hold copies of the most loaded experts (EPLB).
    Eplb,
    /// Tokens are dealt to expert slots in turn: the bound that balancing can reach.
    Perfect,
}

section! {
    /// The pooled KV cache in the CPUs' DRAM.
    Cache {
        enabled: bool = true,
        /// Tokens per KV block: a divisor or multiple of the workload's own blocks.
        block_tokens: u32 = 512,
        /// DRAM for KV blocks, per node.
        dram_gb_per_node: f64 = 1024.0,
        /// SSD tier behind it, per node; 0 = none.
        ssd_gb_per_node: f64 = 8192.0,
        /// Nodes whose DRAM makes up the pool (counted over all nodes of the layout, those of decode too).
        nodes: Option<u32> = None,
        plane: CachePlane = CachePlane::Ub,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CachePlane {
    Ub,
    Vpc,
}

section! {
    /// How KV moves from prefill to decode.
    KvTransfer {
        plane: KvPlane = KvPlane::Rdma,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum KvPlane {
    Rdma,
    Ub,
    Vpc,
}

section! {
    /// Number formats, with their effect on time and memory.
    Precision {
        weights: Number = Number::Int8,
        /// Activations on the wire from a die to its experts.
        dispatch: Number = Number::Int8,
        kv: Number = Number::Bf16,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Number {
    Int8,
    Bf16,
}

impl Number {
    pub fn bytes(self) -> f64 {
        match self {
            Number::Int8 => 1.0,
            Number::Bf16 => 2.0,
        }
    }
}

section! {
    /// Placing requests: how many are asked, and how long to wait before asking again.
    Placement {
        /// Prefill groups asked for their backlog (power of d choices).
        prefill_choices: u32 = 2,
        /// Decode dies asked for a slot and KV memory.
        decode_choices: u32 = 4,
        /// Pause before the same question is asked again when all refused, doubled up to 64 times.
        retry_us: f64 = 500.0,
        /// Prompts waiting at one prefill group before it refuses more.
        prefill_queue_requests: u32 = 1_000_000,
    }
}

/// How activations are simulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Fidelity {
    /// Every activation message is routed.
    Message,
    /// Most steps are drawn from message-level steps of the same run under the same conditions.
    Step,
}

section! {
    FidelitySpec {
        level: Fidelity = Fidelity::Step,
        /// Message-level steps per condition before steps are drawn.
        calibration_steps: u32 = 2,
        /// One drawn step in this many is run at message level too, to measure the error; 0 = never.
        recheck_every: u32 = 16_384,
    }
}
