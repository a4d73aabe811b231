//! What a shard records of its actors while they work: spans of operators, phases and transfers, marks of requests,
//! and counters, as plain values of a fixed size. A recorder that is off costs one branch. Nothing here changes what
//! an actor does, so a run's digest is the same with it. Who takes the records out, and what becomes of them, is not
//! known here.

mod merge;
mod observe;
mod stage;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::fault::Strike;
use crate::launch::Wanted;
use crate::layout::mix;
use crate::runtime::Actor;
use crate::time::Ps;

pub use merge::Merge;
pub use stage::{Class, Stage};

/// What is recorded, and of whom.
#[derive(Clone, Debug, Default)]
pub struct TraceSpec {
    /// Actors whose spans and counters are kept, one bit each; without it, of none.
    pub actors: Option<ActorSet>,
    /// Spans that overlap `[from_ps, until_ps)` are kept. Marks of requests are kept at any time.
    pub from_ps: Ps,
    pub until_ps: Ps,
    pub requests: Requests,
}

/// Requests that are followed: a share of them, told by id and salt alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// Of 2^32.
    share: u64,
    salt: u64,
}

impl Requests {
    /// `share` is 0 (none) to 1 (all); equal salts choose equal requests.
    pub fn share(share: f64, salt: u64) -> Self {
        Self {
            share: (share.clamp(0.0, 1.0) * (1u64 << 32) as f64).round() as u64,
            salt,
        }
    }

    #[inline]
    pub fn holds(self, request: u64) -> bool {
        mix(request ^ self.salt.rotate_left(17)) >> 32 < self.share
    }
}

/// A set of actors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActorSet(Arc<[u64]>);

impl ActorSet {
    pub fn new(actors: u32, members: impl IntoIterator<Item = Actor>) -> Self {
        let mut bits = vec![0u64; actors.div_ceil(64) as usize];
        for a in members {
            bits[(a / 64) as usize] |= 1 << (a % 64);
        }
        Self(bits.into())
    }

    #[inline]
    pub fn holds(&self, actor: Actor) -> bool {
        self.0
            .get((actor / 64) as usize)
            .is_some_and(|word| word >> (actor % 64) & 1 == 1)
    }
}

/// One thing that happened, on the track of `actor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// When it was recorded: the time of the event that was handled. Records of one actor are in this order.
    pub at_ps: Ps,
    pub start_ps: Ps,
    pub end_ps: Ps,
    pub actor: Actor,
    pub what: What,
    pub place: Place,
    /// What the two mean is said at `What`.
    pub a: u64,
    pub b: u64,
}

/// Where in its step or batch something happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Step of a decode group or batch of a prefill group.
    pub run: u32,
    /// Layer of the model, dense ones first, speculative ones last.
    pub layer: u16,
    /// Microbatch.
    pub part: u8,
    /// Microbatches that run side by side.
    pub parts: u8,
}

/// Kinds of record, with what `a` and `b` say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum What {
    /// A stage of a layer on a die. For `Experts`, `a` is the busiest expert and `b` its tokens, with those of all
    /// experts in the high half. For stages that collect, `a` is who was waited for, plus 1: the die whose flag came last
    /// or the own lane; and `b` is when it let go.
    Stage(Stage),
    /// A source's part in a collective phase, from its first message to its first flag: `a` bytes over the lanes,
    /// `b` what held it up ([`Limit`]).
    Send(Stage),
    /// A rank's decode step: `a` requests, `b` 1 if its duration was drawn.
    Step,
    /// A decode group's step, at its root: `a` requests, `b` 1 if drawn.
    GroupStep,
    /// A rank's prefill batch: `a` tokens of the batch.
    Batch,
    /// A prefill group's batch, at its root: `a` tokens, `b` 1 if drawn.
    GroupBatch,
    /// A large transfer out of a port: `a` bytes, `b` its number, the same at both ends.
    TransferOut,
    /// The same into a port.
    TransferIn,
    /// A phase's messages out of the lanes of a part (all of them together): `a` bytes, `b` messages.
    PhaseOut,
    /// And into them.
    PhaseIn,
    /// Bytes that crossed the L1-L2 links of a node, all of them together: `a` bytes, `b` 1 towards the L2 chips. On the
    /// first of these links.
    Uplinks,
    /// A request has come to the end of a stage: `a` request, `b` as the mark says.
    Mark(Mark),
    /// A count from now on: `a`.
    Counter(Counter),
    /// A fault strikes a part: `a` its number in the run, with the kind of its effect in the high half; `b` how much
    /// ([`Effect::code`](crate::fault::Effect::code)).
    Fault,
    /// And is over: `a` its number.
    FaultOver,
}

/// What a send phase was held up by last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub enum Limit {
    /// The vector cores that issue the writes.
    Cores = 0,
    /// The own UB lanes.
    Lanes = 1,
    /// The link to the other die of the NPU.
    Sio = 2,
}

/// Where a request has come to; the name is that of the stage that ends here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Mark {
    /// At its home: prompt tokens, output tokens in the high half.
    Arrived,
    /// Backlogs are known and the prompt is sent.
    Asked,
    AtPrefill,
    LookedUp,
    /// Blocks that came.
    BlocksRead,
    Batched,
    Computed,
    HandedOff,
    /// The first token is home (beside the way of the KV).
    FirstToken,
    SlotFound,
    SlotGranted,
    GrantHeard,
    KvMoved,
    Joined,
    /// Tokens made in a step; the step in the high half.
    Stepped,
    /// Tokens that reached the home (beside the next step).
    TokensHome,
    /// Lost, and put in again by its home.
    Retried,
    /// 1 if complete.
    Ended,
}

impl Mark {
    pub const ALL: [Self; 18] = [
        Self::Arrived,
        Self::Asked,
        Self::AtPrefill,
        Self::LookedUp,
        Self::BlocksRead,
        Self::Batched,
        Self::Computed,
        Self::HandedOff,
        Self::FirstToken,
        Self::SlotFound,
        Self::SlotGranted,
        Self::GrantHeard,
        Self::KvMoved,
        Self::Joined,
        Self::Stepped,
        Self::TokensHome,
        Self::Retried,
        Self::Ended,
    ];

    /// The stage of a request that ends with this mark.
    pub fn stage(self) -> &'static str {
        match self {
            Self::Arrived => "request",
            Self::Asked => "ask_backlogs",
            Self::AtPrefill => "prompt_sent",
            Self::LookedUp => "cache_lookup",
            Self::BlocksRead => "block_reads",
            Self::Batched => "batch_wait",
            Self::Computed => "prefill",
            Self::HandedOff => "handoff",
            Self::FirstToken => "first_token_home",
            Self::SlotFound => "slot_search",
            Self::SlotGranted => "slot_wait",
            Self::GrantHeard => "slot_grant",
            Self::KvMoved => "kv_transfer",
            Self::Joined => "join_wait",
            Self::Stepped => "decode_step",
            Self::TokensHome => "tokens_home",
            Self::Retried => "lost",
            Self::Ended => "last_token_home",
        }
    }

    /// A branch: the request's way to its end does not go through it.
    pub fn beside(self) -> bool {
        matches!(self, Self::FirstToken | Self::TokensHome)
    }
}

/// What is counted over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Counter {
    /// Requests in the decode slots of a die.
    BatchSize,
    /// Tokens of KV memory spoken for on a decode die.
    KvTokens,
    /// Claims that wait for a slot of a decode die.
    QueueDepth,
    /// Prompts that wait at the root of a prefill group.
    PromptQueue,
}

/// A shard's recorder.
#[derive(Debug, Default)]
pub struct Recorder {
    on: bool,
    spec: TraceSpec,
    records: Vec<Record>,
    lost: u64,
}

impl Recorder {
    /// Records of one shard between two drains: 120 MB. Far more than a slice of wall time can make.
    const RECORDS_MAX: usize = 2_000_000;

    /// From now on this is recorded; `None`: nothing.
    pub fn set(&mut self, spec: Option<TraceSpec>) {
        self.on = spec.is_some();
        self.spec = spec.unwrap_or_default();
    }

    /// From now on only what is still wanted is recorded.
    pub fn narrow(&mut self, wanted: Wanted) {
        match wanted {
            Wanted::All => {}
            Wanted::Requests => self.spec.actors = None,
            Wanted::Nothing => self.set(None),
        }
    }

    #[inline]
    pub fn is_on(&self) -> bool {
        self.on
    }

    /// Whether spans of this actor are wanted now; what it takes to make one may be left out otherwise.
    #[inline]
    pub fn wants(&self, actor: Actor) -> bool {
        self.on && self.spec.actors.as_ref().is_some_and(|a| a.holds(actor))
    }

    /// Whether a request is followed.
    #[inline]
    pub fn follows(&self, request: u64) -> bool {
        self.on && self.spec.requests.holds(request)
    }

    /// Keeps a span or counter if it is wanted.
    #[inline]
    pub fn span(&mut self, record: Record) {
        if self.on {
            self.filtered(record);
        }
    }

    #[inline(never)]
    fn filtered(&mut self, r: Record) {
        let s = &self.spec;
        if self.wants(r.actor) && r.end_ps >= s.from_ps && r.start_ps < s.until_ps {
            self.push(r);
        }
    }

    /// Keeps a mark of a request that is followed: it came to it at `at_ps`, which is now or earlier.
    #[inline]
    pub fn mark(&mut self, now: Ps, at_ps: Ps, actor: Actor, mark: Mark, request: u64, b: u64) {
        if self.follows(request) {
            self.push(Record {
                at_ps: now,
                start_ps: at_ps,
                end_ps: at_ps,
                actor,
                what: What::Mark(mark),
                place: Place::default(),
                a: request,
                b,
            });
        }
    }

    /// Keeps a fault's beginning or end on a part whose spans are wanted: whether it is in force in the window is known
    /// only when it is over, so both are kept whatever the window is.
    pub fn fault(&mut self, now: Ps, part: Actor, strike: &Strike) {
        if !self.wants(part) {
            return;
        }
        let (kind, how_much) = strike.effect.code();
        let (what, kind, how_much) = match strike.begins {
            true => (What::Fault, kind, how_much),
            false => (What::FaultOver, 0, 0),
        };
        self.push(Record {
            at_ps: now,
            start_ps: now,
            end_ps: now,
            actor: part,
            what,
            place: Place::default(),
            a: u64::from(strike.fault) | kind << 32,
            b: how_much,
        });
    }

    fn push(&mut self, r: Record) {
        if self.records.len() < Self::RECORDS_MAX {
            self.records.push(r);
        } else {
            self.lost += 1;
        }
    }

    /// Takes what was recorded since the last drain, and how many records did not fit.
    pub fn drain(&mut self, into: &mut Vec<Record>) -> u64 {
        into.append(&mut self.records);
        std::mem::take(&mut self.lost)
    }
}

/// A transfer's number: both ends can work it out, so messages need not carry it.
pub fn transfer_number(from: Actor, to: Actor, tail_ps: Ps) -> u64 {
    mix(mix((u64::from(from) << 32) | u64::from(to)) ^ tail_ps) >> 16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_requests_is_about_that_share_and_the_same_every_time() {
        let one_percent = Requests::share(0.01, 7);
        let n = (0..100_000).filter(|&r| one_percent.holds(r)).count();
        assert!((900..1_100).contains(&n), "{n}");
        assert!((0..1_000).all(|r| Requests::share(1.0, 7).holds(r)));
        assert!(!(0..1_000).any(|r| Requests::default().holds(r)));
        // A larger share holds all of a smaller one.
        let ten = Requests::share(0.1, 7);
        assert!((0..10_000).all(|r| !one_percent.holds(r) || ten.holds(r)));
    }

    #[test]
    fn only_wanted_actors_in_the_window_are_recorded() {
        let mut r = Recorder::default();
        let record = |actor, start_ps, end_ps| Record {
            at_ps: start_ps,
            start_ps,
            end_ps,
            actor,
            what: What::Step,
            place: Place::default(),
            a: 0,
            b: 0,
        };
        r.span(record(3, 0, 10));
        r.set(Some(TraceSpec {
            actors: Some(ActorSet::new(100, [3, 70])),
            from_ps: 10,
            until_ps: 20,
            requests: Requests::default(),
        }));
        for (actor, start, end) in [
            (3, 0, 9),
            (3, 5, 12),
            (4, 12, 13),
            (70, 19, 30),
            (70, 20, 30),
        ] {
            r.span(record(actor, start, end));
        }
        r.mark(15, 15, 3, Mark::Arrived, 1, 0);
        let mut got = Vec::new();
        assert_eq!(r.drain(&mut got), 0);
        let got: Vec<_> = got.iter().map(|r| (r.actor, r.start_ps)).collect();
        assert_eq!(got, [(3, 5), (70, 19)]);
    }
}
