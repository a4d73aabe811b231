//! Everything that actors say to each other. Small values; what is large or rare is boxed. All of it is
//! serde data, so that an actor may live in another process.

mod digest;

use serde::{Deserialize, Serialize};

use crate::beats::Beat;
use crate::die::{Condition, Members, Watch};
use crate::experts::{ExpertMsg, ExpertState};
use crate::fabric::Row;
use crate::fault::{Change, Strike};
use crate::request::{Prefix, RequestSpec, Resubmitted};
use crate::time::Ps;

/// A prompt on its way to a prefill group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prompt {
    pub request: u64,
    /// CPU that is the request's home.
    pub home: u32,
    pub prompt_tokens: u32,
    pub output_tokens: u32,
    pub prefix: Prefix,
    /// Tokens already delivered before a retry: they are part of the prompt now.
    pub delivered: u32,
}

/// A request that a decode die is asked to take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    pub request: u64,
    pub home: u32,
    /// Context tokens at the start of decode.
    pub context: u32,
    /// Tokens still to make, and how many the home has (or is about to have).
    pub left: u32,
    pub delivered: u32,
    /// KV is in place already (workloads of the decode phase).
    pub kv_in_place: bool,
    /// When the token before the next one was sent home; none has been: `None`.
    pub token_ps: Option<Ps>,
}

/// KV block keys asked of one owner, as (index in the prompt, key).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lookup {
    pub request: u64,
    pub keys: Vec<(u32, u64)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LookupReply {
    pub request: u64,
    /// Indices of the blocks that this owner holds.
    pub held: Vec<u32>,
}

/// Ask an owner to send blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadBlocks {
    pub request: u64,
    pub blocks: Vec<BlockRead>,
    pub plane: Plane,
}

/// One block of a prompt, and the die that reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockRead {
    pub key: u64,
    pub index: u32,
    pub reader: u32,
}

/// One microbatch of a prefill batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BatchPart {
    pub tokens: u64,
    pub attended_sum: f64,
    pub context_tokens: u64,
}

/// A batch for the ranks of a prefill group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BatchWork {
    /// A rank that is in an earlier one gives up what it is at.
    pub epoch: u32,
    pub batch: u64,
    /// How long it takes, where that is drawn and not simulated.
    pub drawn_ps: Option<Ps>,
    pub parts: Vec<BatchPart>,
    pub finishing: u32,
}

/// Bookkeeping of step fidelity, not traffic of the machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Learned {
    pub condition: Condition,
    pub ratio: f64,
}

/// A prompt whose KV is computed, to the die that looks after its transfer to decode.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Handoff {
    pub prompt: Prompt,
    pub cached_tokens: u32,
    /// When its first batch started.
    pub started_ps: Ps,
    /// Keys of new full blocks, to be written to their owners.
    pub new_blocks: Vec<u64>,
}

/// Which network a transfer crosses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Plane {
    Ub,
    Rdma,
    Vpc,
}

/// A large transfer whose first byte has reached the receiver's port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Inbound {
    pub bytes: u64,
    pub plane: Plane,
    /// The receiver reads it (it did not get it written into its memory).
    pub read: bool,
    /// Times it has been sent again.
    pub tries: u8,
    /// When the sender's last byte arrives if nothing waits.
    pub tail_ps: Ps,
    /// Delivered when the last byte is in.
    pub then: Msg,
}

/// A copy of `bytes` from the part that gets this message to another, to measure what the fabric gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copying {
    pub to: u32,
    pub bytes: u64,
    /// The receiver reads it; otherwise the sender writes it.
    pub read: bool,
}

/// A drawn step of ranks of a decode group that live on one node, as it is when it is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStep {
    /// It is for those who have taken this up.
    pub epoch: u32,
    pub step: u32,
    pub started_ps: Ps,
    /// Bit `i`: the rank `i` after the receiver's takes part.
    pub ranks: u32,
    pub experts: ExpertState,
}

/// What a rank has for the next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    pub rank: u16,
    pub requests: u32,
    pub context_sum: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Msg {
    /// What is left of a message that was handed to its actor.
    Taken,

    // ---- to a home CPU
    /// Timer: the next of this home's requests is due.
    Arrival,
    BacklogReply {
        request: u64,
        tokens: u64,
    },
    /// The first token of a request, from prefill; `cached` prompt tokens came from the cache.
    FirstToken {
        request: u64,
        cached: u32,
        /// Tokens that its home has from earlier tries.
        delivered: u32,
        /// When its first batch started.
        started_ps: Ps,
    },
    /// `count` tokens after the `from`th; the last ones if `last`.
    Tokens {
        request: u64,
        from: u32,
        count: u32,
        last: bool,
    },
    /// A request from outside a launched machine.
    Submit(Box<RequestSpec>),
    /// Who held a request that was cancelled has given back what it held.
    Cancelled {
        request: u64,
    },

    // ---- to the home of a request, and from there to whoever holds it
    /// Nobody waits for the request any more.
    Cancel {
        request: u64,
    },

    // ---- to a CPU that owns KV blocks
    Lookup(Box<Lookup>),
    ReadBlocks(Box<ReadBlocks>),
    WriteBlock {
        key: u64,
        bytes: u64,
    },
    /// Timer: blocks have come from the SSD tier.
    SsdLoaded(Box<ReadBlocks>),

    // ---- to the root die of a prefill group
    BacklogAsk {
        request: u64,
    },
    Prompt(Box<Prompt>),
    LookupReply(Box<LookupReply>),
    /// Cached blocks of a request have arrived.
    Blocks {
        request: u64,
        blocks: u32,
    },
    /// A block was evicted after it was looked up.
    BlockGone {
        request: u64,
        index: u32,
    },
    BatchEnd {
        batch: u64,
    },
    BatchDone {
        batch: u64,
    },
    /// Step fidelity: what a batch took at another group that is alike, by the operators' estimate.
    Learned(Box<Learned>),

    // ---- to any die of a prefill group
    Batch(Box<BatchWork>),
    Handoff(Box<Handoff>),
    /// Timers of the engines: the cube cores, or the send side of a collective, are done.
    Computed {
        part: u8,
    },
    /// Timer: everything of a collective is in.
    Collected {
        channel: u8,
        phase: u32,
    },
    /// Timer: the last byte of a gather or scatter is in.
    Landed {
        part: u8,
    },

    // ---- placement of decode (to the asker, or to a decode die)
    SlotAsk {
        request: u64,
    },
    SlotReply {
        request: u64,
        free: u32,
        waiting: u32,
    },
    SlotClaim(Box<Claim>),
    SlotGrant {
        request: u64,
    },
    /// The KV of a granted request has arrived.
    Kv {
        request: u64,
    },

    // ---- decode steps
    /// A rank has requests and its group is at rest (to the root).
    Wake {
        group: u16,
    },
    StepStart {
        /// It is for those who have taken this up.
        epoch: u32,
        step: u32,
        microbatch: bool,
        drawn_ps: Option<Ps>,
        experts: ExpertState,
    },
    /// Between the dies of a decode group: what their experts got, plans, weights.
    Experts(Box<ExpertMsg>),
    AttentionDone {
        part: u8,
    },
    ExpertsDone,
    LayerDone,
    SegmentDone,
    StepEnd,
    StepDone {
        step: u32,
        requests: u32,
        context_sum: u64,
        made: u32,
        duration_ps: Ps,
    },
    /// A drawn step is over on a node (to the first of its ranks, for all of them): the start and the end of each.
    NodeStep(NodeStep),
    /// The `StepDone` of each rank of a node.
    NodeDone {
        step: u32,
        made: u32,
        duration_ps: Ps,
        held: Box<[Held]>,
    },

    // ---- who is there
    /// Timer: something that was to have happened by now is looked at.
    Watch(Watch),
    /// Is anybody there? The round that the answer is for; 0: none in particular.
    Ping {
        round: u32,
    },
    Pong {
        round: u32,
        epoch: u32,
        /// A number that grows as the rank gets on.
        progress: u64,
    },
    /// Who takes part in a decode group from now on.
    Members(Box<Members>),
    /// This rank has taken that up, with what it holds.
    Joined {
        epoch: u32,
        requests: u32,
        context_sum: u64,
    },
    /// A batch of prefill was given up.
    Reset {
        epoch: u32,
    },
    /// A rank is back, and knows of this epoch.
    Hello {
        epoch: u32,
    },
    /// Between neighbours, whoever they are.
    Beat(Beat),
    /// A die does not answer (to homes, which may have requests there, and to those of its group, who ask it themselves), or
    /// a CPU (to roots of prefill groups, who may look for blocks there).
    Gone {
        die: u32,
    },
    /// Weights, please (to a CPU, for the die that asks).
    LoadAsk {
        bytes: u64,
    },
    Loaded,

    // ---- weights of a model, block by block
    /// Load this model's weights (to a die).
    LoadModel {
        model: u8,
    },
    /// So much of a block, please (to the CPU that owns it).
    WeightAsk {
        key: u64,
        bytes: u64,
    },
    /// It has to be fetched first (to the die that asked).
    WeightsComing {
        key: u64,
    },
    /// What was asked for of a block is here.
    WeightBlock {
        key: u64,
    },
    /// A rank of a prefill group has all its weights (to the root).
    WeightsIn,
    /// A block, please (to object storage).
    StoreAsk {
        key: u64,
        bytes: u64,
    },
    /// The first byte of it is at the VPC port (to the CPU that asked), the last one follows at `tail_ps`.
    StoreBlock {
        key: u64,
        bytes: u64,
        tail_ps: Ps,
    },
    /// Timer: the last byte of it is in.
    StoreIn {
        key: u64,
    },
    /// From now on requests are for another model (to homes).
    SwitchModel,
    /// What is left of the model before has had its time (to homes).
    DrainOver,
    /// Whoever lives has switched by now (to homes and dies).
    SwitchOver,
    /// No request of the model before is left here (to rank 0 of each group).
    Drained,
    /// This group loads the other model (to homes).
    Switched,
    /// Do you have this request?
    Ask {
        request: u64,
    },
    Answer {
        request: u64,
        held: bool,
    },
    /// A decode die has a slot for it (to its home).
    Placed {
        request: u64,
    },
    /// A prefill group that cannot work gives it back (to its home).
    Refused {
        request: u64,
    },
    /// No decode die has taken it for a long time (to its home); one of those that were asked last.
    Unplaced {
        request: u64,
        asked: crate::runtime::Actor,
    },
    /// Its home has started it again elsewhere.
    Release {
        request: u64,
    },
    /// Tokens from the `first`th on did not reach its home.
    Resend {
        request: u64,
        first: u32,
    },

    // ---- clients, who live outside the machine
    /// Timer: the clients of a CPU that does not answer turn to another.
    ClientsLeave,
    /// A client puts its request in again, at this CPU.
    Resubmit(Box<Resubmitted>),
    /// A request of a closed loop has ended at another CPU: its client puts in the next.
    StreamFree {
        die: Option<u32>,
    },

    // ---- any part
    /// A fault strikes the part that gets this, or is over.
    Fault(Strike),
    /// What a strike did to the part itself.
    Changed(Change),
    Inbound(Box<Inbound>),
    /// Timer: no acknowledgement has come from `to` for what was sent.
    Unacked {
        to: u32,
        inbound: Box<Inbound>,
    },
    /// A small message that its receiver's own links have held up.
    Late {
        from: u32,
        msg: Box<Msg>,
    },
    Copy(Copying),
    /// The last byte of a copy is in.
    Copied {
        started_ps: Ps,
    },
}

impl Msg {
    /// What clients do at the CPU that they have turned to; it happens whether that CPU lives or not.
    pub fn is_of_clients(&self) -> bool {
        matches!(
            self,
            Msg::Arrival
                | Msg::Submit(_)
                | Msg::ClientsLeave
                | Msg::Resubmit(_)
                | Msg::StreamFree { .. }
        )
    }

    /// Not traffic of the machine: it gets through whatever the machine's state.
    pub fn is_of_simulation(&self) -> bool {
        matches!(
            self,
            Msg::Fault(_) | Msg::Unacked { .. } | Msg::Learned(_) | Msg::Copy(_)
        )
    }
}

/// Many activation messages of one source at once: one phase of dispatch, combine or another collective,
/// for the ranks that live on one shard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bulk {
    pub board: u16,
    pub channel: u8,
    pub phase: u32,
    pub source: u16,
    /// Ranks that take part.
    pub expected: u16,
    pub unit_bytes: u32,
    /// Nothing of it arrives before this.
    pub from_ps: Ps,
    /// When the source's first flag leaves, and the pace of flags.
    pub flags_from_ps: Ps,
    pub flag_ps: Ps,
    /// Arrival and units for each slot of each of those ranks.
    pub row: Row,
}
