//! What a home remembers of a request that is in the machine, and how requests reach it.

use std::collections::VecDeque;

use crate::env::Env;
use crate::message::Msg;
use crate::request::{RequestSpec, try_of};
use crate::runtime::Actor;
use crate::time::Ps;

/// A request that is in the machine.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) spec: RequestSpec,
    pub(super) first_token_ps: Ps,
    pub(super) delivered: u32,
    pub(super) cached: u32,
    pub(super) prefill_start_ps: Ps,
    pub(super) retries: u32,
    /// Prefill groups that have not said their backlog, and the best that did.
    pub(super) backlog_awaited: Vec<Actor>,
    pub(super) backlog_best: Option<(u64, Actor)>,
    /// One of them, when they were asked, and rounds before in which none could take it.
    pub(super) backlog_asked: Actor,
    pub(super) backlog_asked_ps: Ps,
    pub(super) refused: u32,
    /// Who has it, as far as its home knows.
    pub(super) holder: Option<Actor>,
    /// Nobody waits for it any more: it ends when who holds it has let go.
    pub(super) cancelling: bool,
    /// Closed loop in the decode phase: the die that this stream of requests stays on.
    pub(super) die: Option<Actor>,
    /// Closed loop: the CPU that its client had turned to first.
    pub(super) origin: Option<Actor>,
    /// Since when somebody to take it is looked for.
    pub(super) seeking_ps: Ps,
    /// Something will have been heard by then, and how often its holder has been asked.
    pub(super) due_ps: Ps,
    pub(super) asked: u32,
    /// How often in a row its holder has said no more than that it has it.
    pub(super) waits: u32,
    /// What was lost when it was started again.
    pub(super) why: String,
}

impl Open {
    pub(super) fn new(spec: RequestSpec, die: Option<Actor>, now: Ps) -> Self {
        Self {
            spec,
            first_token_ps: 0,
            delivered: 0,
            cached: 0,
            prefill_start_ps: 0,
            retries: 0,
            backlog_awaited: Vec::new(),
            backlog_best: None,
            backlog_asked: 0,
            backlog_asked_ps: now,
            refused: 0,
            holder: None,
            cancelling: false,
            die,
            origin: None,
            seeking_ps: now,
            due_ps: Ps::MAX,
            asked: 0,
            waits: 0,
            why: String::new(),
        }
    }

    /// A prefill group has answered.
    pub(super) fn has_offer(&self) -> bool {
        self.backlog_best.is_some_and(|b| b.0 != u64::MAX)
    }

    /// Why it fails that nobody has taken: who had it before, and what was lost.
    pub(super) fn untaken(&self, by: &str, seconds: f64, lost: String) -> String {
        let why = match self.why.as_str() {
            "" => lost,
            why => format!("after {why}; {lost}"),
        };
        format!("no {by} took it for {seconds} s, {why}")
    }

    /// What parts call the present try.
    pub(super) fn name(&self) -> u64 {
        try_of(self.spec.id, self.retries as u8)
    }
}

/// How requests reach this home.
#[derive(Debug)]
pub enum Source {
    /// Each at its time.
    Open(VecDeque<RequestSpec>),
    /// So many streams, each putting in its next request when one has ended. In the decode phase each stream
    /// has a die of its own.
    Closed {
        requests: VecDeque<RequestSpec>,
        streams: Vec<Option<Actor>>,
    },
}

impl Source {
    /// What is put in now, each with the die that its stream stays on; the timer for the next arrival is set.
    pub(super) fn due(&mut self, env: &mut Env<'_, '_>) -> Vec<(RequestSpec, Option<Actor>)> {
        match self {
            Self::Open(queue) => {
                let due = queue.pop_front();
                if let (Some(_), Some(next)) = (&due, queue.front()) {
                    env.at(next.arrival_ps.max(env.now()), Msg::Arrival);
                }
                due.into_iter().map(|spec| (spec, None)).collect()
            }
            Self::Closed { requests, streams } => std::mem::take(streams)
                .into_iter()
                .map_while(|die| requests.pop_front().map(|spec| (spec, die)))
                .collect(),
        }
    }

    /// What a stream of a closed loop puts in next.
    pub(super) fn next(&mut self) -> Option<RequestSpec> {
        match self {
            Self::Open(_) => None,
            Self::Closed { requests, .. } => requests.pop_front(),
        }
    }
}
