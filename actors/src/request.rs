//! What a client asks of the machine, and what is remembered of it afterwards.

use serde::{Deserialize, Serialize};

use crate::time::Ps;

/// One request as it reaches the machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RequestSpec {
    /// Unique in the run, and the order of arrival.
    pub id: u64,
    pub arrival_ps: Ps,
    pub prompt_tokens: u32,
    /// Tokens to generate, at least 1.
    pub output_tokens: u32,
    pub prefix: Prefix,
}

/// What is known of a prompt's content: enough to tell which KV blocks it shares with others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Prefix {
    /// Shares nothing with any other prompt.
    Unique,
    /// Prefix-chained block ids, one per `block_tokens` tokens, the last possibly partial:
    /// equal ids mean equal content and equal prefix.
    Blocks { block_tokens: u32, ids: Box<[u64]> },
    /// The first `tokens` tokens are in the cache when the request arrives (`workload.reuse_share`).
    Cached { tokens: u32 },
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    Completed,
    /// The reason names what was lost or refused.
    Failed(String),
    /// Who asked for it went away.
    Cancelled,
}

/// What a live machine hands to the outside: tokens as they reach a request's home, and its end.
#[derive(Clone, Debug, PartialEq)]
pub struct Delivery {
    pub request: u64,
    pub at_ps: Ps,
    pub what: Delivered,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Delivered {
    /// So many more tokens, made by this actor.
    Tokens {
        count: u32,
        by: crate::runtime::Actor,
    },
    Ended(Box<RequestRecord>),
}

/// What its home CPU remembers of a request once it has ended. Times are virtual.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RequestRecord {
    pub id: u64,
    /// CPU index of its home.
    pub home: u32,
    pub arrival_ps: Ps,
    /// When its first prefill batch started (0 if none did).
    pub prefill_start_ps: Ps,
    /// When the first token reached the home (0 if none did).
    pub first_token_ps: Ps,
    /// When the last token reached the home, or when the request failed.
    pub end_ps: Ps,
    pub prompt_tokens: u32,
    pub cached_tokens: u32,
    /// Tokens delivered.
    pub output_tokens: u32,
    pub retries: u32,
    pub outcome: Outcome,
}

impl RequestRecord {
    pub fn ttft_ps(&self) -> Ps {
        self.first_token_ps.saturating_sub(self.arrival_ps)
    }

    /// Mean time per output token after the first, `None` for a single token.
    pub fn tpot_ps(&self) -> Option<Ps> {
        (self.output_tokens > 1)
            .then(|| (self.end_ps - self.first_token_ps) / u64::from(self.output_tokens - 1))
    }

    pub fn e2e_ps(&self) -> Ps {
        self.end_ps.saturating_sub(self.arrival_ps)
    }
}

/// A request as its parts know it: its number, with how often it was started again in the bits above. What an earlier
/// try has left behind is told apart by that.
pub const ID: u64 = (1 << 56) - 1;

/// The name of the `attempt`th try of request `id`.
pub fn try_of(id: u64, attempt: u8) -> u64 {
    id | (u64::from(attempt) << 56)
}

/// What a client knows of its request when it turns to another CPU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Resubmitted {
    pub spec: RequestSpec,
    pub first_token_ps: Ps,
    pub delivered: u32,
    pub cached: u32,
    pub retries: u32,
    pub cancelling: bool,
    /// CPUs that did not answer so far, and the first of them.
    pub hops: u32,
    pub left: u32,
    /// Closed loop: the CPU whose client it is, and the die that its stream stays on.
    pub origin: Option<u32>,
    pub die: Option<u32>,
    /// What was lost.
    pub why: String,
}
