//! The actor runtime: virtual time, the event order, mailboxes, randomness per actor, and shards that advance in
//! conservative windows on actix arbiters. It knows nothing of LLM serving.
//!
//! A [`Model`] holds the state of all actors of one shard and handles one event at a time. Events are ordered by
//! (time, source actor, source's sequence number), a key that depends on nothing else: a run gives the same digest
//! on one shard or eight, whatever the threads do.

mod bounds;
pub mod codec;
mod ctx;
mod error;
mod exchange;
mod executor;
mod fault;
mod gate;
mod ladder;
mod lead;
mod pace;
mod panics;
mod profile;
pub mod queue;
mod rng;
mod shard;
mod simulation;
pub mod slab;
mod spread;

use std::fmt::Debug;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use ctx::Ctx;
pub use error::RuntimeError;
pub use profile::KindProfile;
pub use rng::Rng;
pub use simulation::{Ended, Flow, Simulation, SliceReport};

use crate::time::Ps;

/// An actor's number: dense, from 0, the same on all shards.
pub type Actor = u32;

/// The source of injected events. Sorts after all actors.
pub const OUTSIDE: Actor = u32::MAX;

/// The behaviour and state of the actors of one shard.
pub trait Model: Sized + Send + 'static {
    /// A small value of fixed size; big payloads go in boxes.
    type Msg: Serialize + DeserializeOwned + Clone + Debug + Send + 'static;
    /// Many messages in one batch, from one actor to actors of one shard.
    type Bulk: Serialize + DeserializeOwned + Send + 'static;

    /// One event. Time is `ctx.now()`.
    fn handle(&mut self, to: Actor, from: Actor, msg: Self::Msg, ctx: &mut Ctx<'_, Self>);

    /// A bulk has reached this shard, some time between being sent and the first event it may cause. The order in
    /// which bulks are absorbed must not matter. May only schedule, by [`Ctx::schedule`], events of this shard.
    fn absorb(&mut self, bulk: Self::Bulk, ctx: &mut Ctx<'_, Self>);

    /// The lookahead class of a message, an index into [`RuntimeConfig::lookahead`].
    fn class(msg: &Self::Msg) -> usize {
        let _ = msg;
        0
    }

    /// A cheap hash of the content, folded with time and source into the digest of the receiving actor.
    fn digest(msg: &Self::Msg) -> u64;

    /// The message on its way into [`Model::handle`]; what is left in `msg` is what a panic report shows. Messages
    /// with boxes may take them out instead of cloning.
    fn take(msg: &mut Self::Msg) -> Self::Msg {
        msg.clone()
    }

    /// The address of any actor of the machine, for error messages.
    fn address(&self, actor: Actor) -> String;

    /// The kind of an actor for the profile, an index into [`Model::kind_names`].
    fn kind(&self, actor: Actor) -> usize {
        let _ = actor;
        0
    }

    fn kind_names() -> &'static [&'static str] {
        &["actor"]
    }
}

/// How messages travel from shard to shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// As values.
    #[default]
    Memory,
    /// Encoded and decoded, as if the shards were processes.
    Bytes,
}

/// What the runtime is told besides the models.
#[derive(Clone, Debug)]
pub struct RuntimeConfig {
    pub seed: u64,
    /// At least 1; one model each.
    pub shards: usize,
    /// Threads that host the shards. `None`: up to one per core, and only while their windows hold enough work to
    /// be worth it. `Some(n)`: always n.
    pub executors: Option<usize>,
    /// The shard of each actor; its length is the number of actors.
    pub owner: Arc<[u16]>,
    /// Per class: the least time from handling an event of that class to the time of anything it sends to another
    /// shard, itself or through events it causes on its own shard. `Ps::MAX` if it never does.
    pub lookahead: Vec<Ps>,
    /// Messages that may wait for one actor. A safety net: the run ends with an error beyond it.
    pub mailbox_limit: u32,
    /// Measure wall time by actor kind.
    pub profile: bool,
    pub transport: Transport,
}

impl RuntimeConfig {
    /// All actors on one shard.
    pub fn single(seed: u64, actors: usize) -> Self {
        Self {
            seed,
            shards: 1,
            executors: None,
            owner: vec![0; actors].into(),
            lookahead: vec![1],
            mailbox_limit: u32::MAX,
            profile: false,
            transport: Transport::Memory,
        }
    }

    fn check(&self, models: usize) -> Result<(), RuntimeError> {
        let wrong = |text: String| Err(RuntimeError::Config(text));
        if self.shards == 0 || self.shards > usize::from(u16::MAX) {
            return wrong(format!(
                "shards = {}: it must be between 1 and {}",
                self.shards,
                u16::MAX
            ));
        }
        if models != self.shards {
            return wrong(format!(
                "{models} models for {} shards: there must be one each",
                self.shards
            ));
        }
        if self.executors == Some(0) {
            return wrong("executors = 0: it must be at least 1".into());
        }
        if self.owner.len() > queue::ACTORS_MAX as usize {
            return wrong(format!(
                "{} actors: at most {} are supported",
                self.owner.len(),
                queue::ACTORS_MAX
            ));
        }
        if let Some(actor) = self
            .owner
            .iter()
            .position(|&s| usize::from(s) >= self.shards)
        {
            return wrong(format!(
                "owner of actor {actor} = {}: it must be below shards = {}",
                self.owner[actor], self.shards
            ));
        }
        if self.lookahead.is_empty() {
            return wrong("lookahead is empty: it needs one time per message class".into());
        }
        if let Some(class) = self.lookahead.iter().position(|&l| l == 0)
            && self.shards > 1
        {
            return wrong(format!(
                "lookahead of class {class} = 0: several shards need at least 1 ps"
            ));
        }
        if self.mailbox_limit == 0 {
            return wrong("mailbox_limit = 0: it must be at least 1".into());
        }
        Ok(())
    }
}
