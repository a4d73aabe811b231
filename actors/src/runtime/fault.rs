//! Why a shard stopped: told in ids where it happens, in addresses where the run ends.

use std::fmt::Debug;

use super::{Actor, Model, OUTSIDE, RuntimeError, panics};
use crate::time::Ps;

/// Why a shard stopped, before actors have been given their addresses.
#[derive(Debug)]
pub(super) enum Fault {
    Panicked {
        actor: Actor,
        message: String,
        time_ps: Ps,
        text: String,
    },
    Lookahead {
        from: Actor,
        to: Actor,
        message: String,
        time_ps: Ps,
        promised_ps: Ps,
        arrival_ps: Ps,
    },
    Past {
        from: Actor,
        to: Actor,
        message: String,
        time_ps: Ps,
        arrival_ps: Ps,
    },
    Mailbox {
        actor: Actor,
        from: Actor,
        message: String,
        limit: u32,
        time_ps: Ps,
    },
    UnknownActor {
        from: Actor,
        to: Actor,
        message: String,
        actors: usize,
        time_ps: Ps,
    },
    Failed {
        actor: Actor,
        time_ps: Ps,
        text: String,
    },
    Codec(super::codec::CodecError),
}

impl Fault {
    pub fn named<M: Model>(self, model: &M) -> RuntimeError {
        let name = |actor: Actor| {
            if actor == OUTSIDE {
                return "the outside".to_string();
            }
            panics::catch(|| model.address(actor)).unwrap_or_else(|_| format!("actor {actor}"))
        };
        match self {
            Self::Panicked {
                actor,
                message,
                time_ps,
                text,
            } => RuntimeError::Panicked {
                actor: name(actor),
                message,
                time_ps,
                text,
            },
            Self::Lookahead {
                from,
                to,
                message,
                time_ps,
                promised_ps,
                arrival_ps,
            } => RuntimeError::Lookahead {
                from: name(from),
                to: name(to),
                message,
                time_ps,
                promised_ps,
                arrival_ps,
            },
            Self::Past {
                from,
                to,
                message,
                time_ps,
                arrival_ps,
            } => RuntimeError::Past {
                from: name(from),
                to: name(to),
                message,
                time_ps,
                arrival_ps,
            },
            Self::Mailbox {
                actor,
                from,
                message,
                limit,
                time_ps,
            } => RuntimeError::Mailbox {
                actor: name(actor),
                from: name(from),
                message,
                limit,
                time_ps,
            },
            Self::UnknownActor {
                from,
                to,
                message,
                actors,
                time_ps,
            } => RuntimeError::UnknownActor {
                from: name(from),
                to,
                message,
                actors,
                time_ps,
            },
            Self::Failed {
                actor,
                time_ps,
                text,
            } => RuntimeError::Failed {
                actor: name(actor),
                time_ps,
                text,
            },
            Self::Codec(e) => RuntimeError::Codec(e),
        }
    }
}
