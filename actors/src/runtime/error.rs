//! Why a run ended with an error. Every message names the actor, what it was doing, and the virtual time.

use crate::time::{PS_PER_US, Ps};

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuntimeError {
    #[error("runtime configuration: {0}")]
    Config(String),

    #[error("{actor} panicked at {} while it handled {message}: {text}", at(*time_ps))]
    Panicked {
        actor: String,
        message: String,
        time_ps: Ps,
        text: String,
    },

    #[error(
        "{from} promised at {} to cause nothing on other shards before {}, then sent {message} to {to} for {}: \
         the lookahead of its class is too large",
        at(*time_ps), at(*promised_ps), at(*arrival_ps)
    )]
    Lookahead {
        from: String,
        to: String,
        message: String,
        time_ps: Ps,
        promised_ps: Ps,
        arrival_ps: Ps,
    },

    #[error("{from} sent {message} to {to} at {} for an arrival at {}, which is past or beyond the end of time",
        at(*time_ps), at(*arrival_ps))]
    Past {
        from: String,
        to: String,
        message: String,
        time_ps: Ps,
        arrival_ps: Ps,
    },

    #[error("the mailbox of {actor} is full at {}: {limit} messages wait, and {message} from {from} is one more",
        at(*time_ps))]
    Mailbox {
        actor: String,
        from: String,
        message: String,
        limit: u32,
        time_ps: Ps,
    },

    #[error("{from} sent {message} to actor {to} at {}, but there are only {actors} actors", at(*time_ps))]
    UnknownActor {
        from: String,
        to: u32,
        message: String,
        actors: usize,
        time_ps: Ps,
    },

    #[error("{actor} failed at {}: {text}", at(*time_ps))]
    Failed {
        actor: String,
        time_ps: Ps,
        text: String,
    },

    #[error("executor {0} died and took its shards with it")]
    ExecutorLost(usize),

    #[error("between shards: {0}")]
    Codec(#[from] super::codec::CodecError),
}

/// Virtual time for people.
fn at(time_ps: Ps) -> String {
    format!("{}.{:06} us", time_ps / PS_PER_US, time_ps % PS_PER_US)
}
