//! The serving configuration: what a scenario file says about how the machine serves. Defaults are the
//! evaluated layout of CloudMatrix-Infer (arXiv 2506.12708): 6 prefill instances of 16 NPUs, one decode
//! instance of 160, the cache in the DRAM of those 32 nodes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::experts::ExpertFigures;

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
        model_cache: ModelCache = ModelCache::default(),
        kv_transfer: KvTransfer = KvTransfer::default(),
        precision: Precision = Precision::default(),
        placement: Placement = Placement::default(),
        recovery: Recovery = Recovery::default(),
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
        /// Copies of the shared expert over the instance (EP32: one per die); 0 = one on every die, for its own tokens.
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
        /// Copies of the shared expert over a decode instance; 0 = one on every die, for its own tokens.
        shared_replicas: u32 = 32,
        /// Skew of the routing: standard deviation of ln(load) over a layer's experts, which is lognormal (0 = all equal).
        skew: f64 = ExpertFigures::builtin().popularity.skew,
        /// File of per-expert loads, instead of `skew`: CSV (MoE layer, expert, load), or a placement map (.npy, .npy.gz)
        /// whose copies stand for the load.
        load_file: Option<String> = None,
        /// Placement map (.npy, .npy.gz, shape [rank, layer, expert] of 0 and 1), instead of `balance` and `redundant`, for
        /// instances with as many dies as it has ranks.
        placement_file: Option<String> = None,
        /// Tokens whose choices of experts are known when the plan of the start is made; 0 = the true load is.
        plan_tokens: u32 = 0,
        /// Seconds between EPLB plans made from observed load, in decode: 0 or at least 0.01; 0 = only once, at the start.
        eplb_interval_s: f64 = 0.0,
        /// Time that a root's host takes to make a plan for all layers.
        eplb_plan_ms: f64 = ExpertFigures::builtin().rebalance.plan_ms,
        /// Layers whose new weights a die holds beside the old ones while it loads them.
        eplb_layers_at_once: u32 = ExpertFigures::builtin().rebalance.layers_at_once,
        /// Weights of a new plan cross a lane in pieces of so many MB.
        eplb_chunk_mb: f64 = ExpertFigures::builtin().rebalance.chunk_mb,
        /// A layer keeps its plan unless its busiest die would have at least this share less to do.
        eplb_gain_min: f64 = ExpertFigures::builtin().rebalance.gain_min,
        /// Bytes of a plan on the wire, for each expert slot.
        eplb_plan_bytes_per_slot: u64 = ExpertFigures::builtin().rebalance.plan_bytes_per_slot,
        /// Bytes of what a die has counted on the wire, for each of its expert slots.
        eplb_load_bytes_per_slot: u64 = ExpertFigures::builtin().rebalance.load_bytes_per_slot,
        /// Seconds after which the load of decode's experts has drifted a bit further: 0 or at least 0.01; 0 = it stays as it is.
        drift_s: f64 = 0.0,
        /// Correlation of ln(load) with that before a drift: 1 = nothing drifts, 0 = load is drawn anew.
        drift_correlation: f64 = ExpertFigures::builtin().drift.correlation,
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
    /// The model's weights: where they are when the run starts, and how they reach the dies. The pool keeps them as
    /// blocks, beside those of KV; dies read them over the plane of the cache.
    ModelCache {
        /// "resident": in the dies' HBM, loading is not simulated. "warm": in the DRAM of the pool. "cold": in object
        /// storage only. Requests wait until the weights are there.
        start: WeightStart = WeightStart::Resident,
        /// "shared": the pool holds the weights once, for all instances. "instance": every instance keeps and fetches its own, in the
        /// DRAM of its own nodes.
        copies: WeightCopies = WeightCopies::Shared,
        /// Bytes of one block, in MB (assumed: large enough that latency does not count, small enough to spread over all CPUs).
        block_mb: u32 = 32,
        /// Blocks that a die has asked for at any time (assumed: enough to keep its lanes busy while others are served before it).
        reads_at_once: u32 = 4,
        /// From object storage, for the whole machine; none: as the machine file says.
        object_store_gb_per_s: Option<f64> = None,
        /// When all instances turn to another model of the same shape; requests that arrive from then on are for that one.
        switch_at_s: Option<f64> = None,
        /// Where the other model's weights are: "warm" or "cold".
        switch_from: WeightStart = WeightStart::Warm,
        /// Requests of the model before have so long to end (assumed: most do); what is left then fails.
        drain_s: f64 = 30.0,
    }
}

/// Where a model's weights are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WeightStart {
    Resident,
    Warm,
    Cold,
}

/// How many copies of a model's weights the DRAM holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WeightCopies {
    Shared,
    Instance,
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
    /// Placing requests: how many are asked.
    Placement {
        /// Prefill groups asked for their backlog (power of d choices).
        prefill_choices: u32 = 2,
        /// Decode dies asked for a slot and KV memory.
        decode_choices: u32 = 4,
    }
}

section! {
    /// How long it takes to notice that something is wrong, and what is done then. HCCL's published answer to a failed
    /// collective is to hold for 5 s and try once more: 100 decode steps, too long for tokens due every 50 ms. These
    /// are assumed, each with its reason.
    Recovery {
        /// A packet without acknowledgement for so long is sent again, over other lanes (assumed: some 25 round trips of 2 us).
        lane_ack_us: f64 = 50.0,
        /// A sender spreads anew over its lanes after so long a look at their acknowledgements (assumed: a few layers of decode).
        lane_reweigh_ms: f64 = 5.0,
        /// A lane that was given up is tried again after so long (assumed: soon, but seldom enough to cost nothing).
        lane_probe_ms: f64 = 100.0,
        /// A lane that loses more of its packets than this is given up (assumed: a loss costs a time-out, so few are too many).
        lane_loss_max: f64 = 0.001,
        /// A lane that is later than the others by more than this is given up (assumed: about the latency itself).
        lane_delay_max_us: f64 = 2.0,
        /// Bytes that are lost and sent again as one (assumed: 4 KiB, as RDMA fabrics use).
        packet_bytes: u32 = 4096,
        /// Nothing heard for so long: the other is asked whether it is there (assumed: 25 steps of decode would be missed by a second; 250 ms are several steps, and above the slowest healthy one).
        step_late_ms: f64 = 250.0,
        /// Whether it is there is asked so often (assumed: one question or answer may be lost, and one be late).
        ping_tries: u32 = 3,
        /// Each answer to that is waited for so long (assumed: a control message takes 4 us there and back; a busy host may take a millisecond).
        ping_ms: f64 = 2.0,
        /// Each die and CPU sends its neighbour a beat so often, in runs with faults (assumed: an idle part is missed about as soon as a busy one, by `step_late_ms`; 960 parts say 19,200 small messages a second so, 20 each).
        beat_ms: f64 = 100.0,
        /// A neighbour that has missed so many beats in a row is gone (assumed: one may be lost and one late).
        beats_missed: u32 = 3,
        /// An answer to a question (backlog, slots, cached blocks) is waited for this long (assumed: a thousand round trips, and the SSD tier's queue).
        reply_ms: f64 = 20.0,
        /// A request that its home has heard nothing of for so long is asked after (assumed: above a prefill batch and the wait for one).
        quiet_ms: f64 = 1000.0,
        /// As long as its holder says only that it has it, it is asked after half as often each time, down to once in so long (assumed: a quarter of `give_up_s`; where requests queue for minutes, questions would be most of the traffic).
        quiet_max_ms: f64 = 16_000.0,
        /// Clients of a CPU that does not answer turn to another after so long (assumed: one TCP retransmission time-out).
        client_ms: f64 = 1000.0,
        /// A part that did not answer is left alone for so long (assumed: long enough not to run into it again and again). A request that nobody can serve now is offered again after `reply_ms`, after twice as long each time, and at last after this.
        suspect_ms: f64 = 1000.0,
        /// Where so many decode dies are gone that experts lose their last copy and no redundant copy can make room, those that are left load them beside their own, into at most this share of their memory for KV (assumed: half, the rest being for requests; 0: the group waits until dies are back).
        kv_for_experts: f64 = 0.5,
        /// A request is started again so many times before it is given up.
        retries_max: u32 = 16,
        /// A request that found no part to serve it is given up after so long (assumed: clients wait about as long).
        give_up_s: f64 = 60.0,
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
