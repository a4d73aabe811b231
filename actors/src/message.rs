//! Everything that actors say to each other. Small values; what is large or rare is boxed. All of it is
//! serde data, so that an actor may live in another process.

use serde::{Deserialize, Serialize};

use crate::die::{Condition, Members, Watch};
use crate::experts::{ExpertMsg, ExpertState};
use crate::fabric::Cell;
use crate::fault::{Change, Strike};
use crate::layout::mix;
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
    /// A die does not answer (to homes, which may have requests there).
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
    /// No decode die has taken it for a long time (to its home).
    Unplaced {
        request: u64,
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

    /// A hash of the content, for the event digest.
    pub fn digest(&self) -> u64 {
        let m = |kind: u64, a: u64, b: u64| mix(kind ^ mix(a ^ mix(b)));
        match self {
            Msg::Taken => m(0, 0, 0),
            Msg::Arrival => m(1, 0, 0),
            Msg::BacklogReply { request, tokens } => m(3, *request, *tokens),
            Msg::FirstToken {
                request, cached, ..
            } => m(4, *request, u64::from(*cached)),
            Msg::Tokens {
                request,
                from,
                count,
                last,
            } => m(
                5,
                *request,
                (u64::from(*from) << 32) | (u64::from(*count) << 1) | u64::from(*last),
            ),
            Msg::Lookup(l) => m(7, l.request, l.keys.iter().fold(0, |a, k| mix(a ^ k.1))),
            Msg::ReadBlocks(r) | Msg::SsdLoaded(r) => {
                m(8, r.request, r.blocks.iter().fold(0, |a, b| mix(a ^ b.key)))
            }
            Msg::WriteBlock { key, bytes } => m(9, *key, *bytes),
            Msg::BacklogAsk { request } => m(10, *request, 0),
            Msg::Prompt(p) => m(11, p.request, u64::from(p.prompt_tokens)),
            Msg::LookupReply(l) => m(
                12,
                l.request,
                l.held.iter().fold(0, |a, k| mix(a ^ u64::from(*k))),
            ),
            Msg::Blocks { request, blocks } => m(13, *request, u64::from(*blocks)),
            Msg::BlockGone { request, index } => m(35, *request, u64::from(*index)),
            Msg::BatchEnd { batch } => m(14, *batch, 0),
            Msg::BatchDone { batch } => m(15, *batch, 0),
            Msg::Learned(l) => m(38, l.ratio.to_bits(), u64::from(l.condition.requests)),
            Msg::Batch(w) => m(
                16,
                w.batch,
                w.parts
                    .iter()
                    .fold(u64::from(w.epoch) ^ w.drawn_ps.unwrap_or(0), |a, p| {
                        mix(a ^ p.tokens)
                    }),
            ),
            Msg::Handoff(h) => m(17, h.prompt.request, u64::from(h.cached_tokens)),
            Msg::Computed { part } => m(18, u64::from(*part), 0),
            Msg::Collected { channel, phase } => m(19, u64::from(*channel), u64::from(*phase)),
            Msg::Landed { part } => m(34, u64::from(*part), 0),
            Msg::SlotAsk { request } => m(20, *request, 0),
            Msg::SlotReply {
                request,
                free,
                waiting,
            } => m(21, *request, (u64::from(*free) << 32) | u64::from(*waiting)),
            Msg::SlotClaim(c) => m(22, c.request, u64::from(c.context)),
            Msg::SlotGrant { request } => m(23, *request, 0),
            Msg::Kv { request } => m(24, *request, 0),
            Msg::Wake { group } => m(25, u64::from(*group), 0),
            Msg::StepStart {
                epoch,
                step,
                microbatch,
                drawn_ps,
                experts,
            } => m(
                26,
                (u64::from(*step) << 1) | u64::from(*microbatch) | (u64::from(*epoch) << 40),
                drawn_ps.unwrap_or(0) ^ experts.digest().rotate_left(7),
            ),
            Msg::Experts(e) => m(46, e.digest(), 0),
            Msg::AttentionDone { part } => m(27, u64::from(*part), 0),
            Msg::ExpertsDone => m(28, 0, 0),
            Msg::LayerDone => m(29, 0, 0),
            Msg::SegmentDone => m(30, 0, 0),
            Msg::StepEnd => m(31, 0, 0),
            Msg::StepDone {
                step,
                requests,
                context_sum,
                made,
                duration_ps,
            } => m(
                32,
                (u64::from(*step) << 32) | u64::from(*requests),
                u64::from(*made) ^ context_sum ^ duration_ps.rotate_left(32),
            ),
            Msg::Changed(c) => m(41, *c as u64, 0),
            Msg::Fault(s) => m(39, s.digest(), 0),
            Msg::Copy(c) => m(36, c.bytes, (u64::from(c.to) << 1) | u64::from(c.read)),
            Msg::Copied { started_ps } => m(37, *started_ps, 0),
            Msg::Watch(w) => m(50, *w as u64, 0),
            Msg::Ping { round } => m(51, u64::from(*round), 0),
            Msg::Pong {
                round,
                epoch,
                progress,
            } => m(52, (u64::from(*round) << 32) | u64::from(*epoch), *progress),
            Msg::Members(g) => m(
                53,
                (u64::from(g.epoch) << 32) | u64::from(g.root),
                g.ranks.iter().fold(0, |a, r| mix(a ^ u64::from(*r))),
            ),
            Msg::Joined {
                epoch,
                requests,
                context_sum,
            } => m(
                54,
                (u64::from(*epoch) << 32) | u64::from(*requests),
                *context_sum,
            ),
            Msg::Reset { epoch } => m(55, u64::from(*epoch), 0),
            Msg::Hello { epoch } => m(56, u64::from(*epoch), 0),
            Msg::Gone { die } => m(57, u64::from(*die), 0),
            Msg::LoadModel { model } => m(91, u64::from(*model), 0),
            Msg::WeightAsk { key, bytes } => m(92, *key, *bytes),
            Msg::WeightsComing { key } => m(93, *key, 0),
            Msg::WeightBlock { key } => m(94, *key, 0),
            Msg::WeightsIn => m(95, 0, 0),
            Msg::StoreAsk { key, bytes } => m(96, *key, *bytes),
            Msg::StoreBlock {
                key,
                bytes,
                tail_ps,
            } => m(97, *key, bytes ^ tail_ps.rotate_left(32)),
            Msg::StoreIn { key } => m(98, *key, 0),
            Msg::SwitchModel => m(99, 0, 0),
            Msg::DrainOver => m(100, 0, 0),
            Msg::SwitchOver => m(101, 0, 0),
            Msg::Drained => m(102, 0, 0),
            Msg::Switched => m(103, 0, 0),
            Msg::LoadAsk { bytes } => m(58, *bytes, 0),
            Msg::Loaded => m(59, 0, 0),
            Msg::Ask { request } => m(60, *request, 0),
            Msg::Answer { request, held } => m(61, *request, u64::from(*held)),
            Msg::Placed { request } => m(62, *request, 0),
            Msg::Refused { request } => m(63, *request, 0),
            Msg::Unplaced { request } => m(68, *request, 0),
            Msg::Release { request } => m(64, *request, 0),
            Msg::Resend { request, first } => m(71, *request, u64::from(*first)),
            Msg::ClientsLeave => m(65, 0, 0),
            Msg::Resubmit(r) => m(66, r.spec.id, u64::from(r.delivered)),
            Msg::StreamFree { die } => m(67, u64::from(die.unwrap_or(u32::MAX)), 0),
            Msg::Unacked { to, inbound } => m(40, u64::from(*to), inbound.then.digest()),
            Msg::Late { from, msg } => m(72, u64::from(*from), msg.digest()),
            Msg::Submit(s) => m(
                60,
                s.id,
                (u64::from(s.prompt_tokens) << 32) | u64::from(s.output_tokens),
            ),
            Msg::Cancel { request } => m(69, *request, 0),
            Msg::Cancelled { request } => m(70, *request, 0),
            Msg::Inbound(i) => m(33, i.bytes ^ i.tail_ps.rotate_left(32), i.then.digest()),
        }
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
    pub cells: Vec<Cell>,
}
