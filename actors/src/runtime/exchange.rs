//! What shards send to each other: events and bulks, in batches that can be bytes.

use serde::{Deserialize, Serialize};

use super::fault::Fault;
use super::shard::Shard;
use super::{Actor, Model, Transport, codec};
use crate::time::Ps;

/// An event on its way to another shard.
#[derive(Serialize, Deserialize)]
pub(super) struct Crossing<G> {
    pub time_ps: Ps,
    pub order: u64,
    pub to: Actor,
    pub msg: G,
}

/// A bulk on its way, with who sent it when, and what that event promised.
#[derive(Serialize, Deserialize)]
pub(super) struct Sent<B> {
    /// The event that sent it: its time, its place in the order, and the actor that handled it.
    pub time_ps: Ps,
    pub order: u64,
    pub from: Actor,
    pub promise_ps: Ps,
    pub bulk: B,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Batch<G, B> {
    pub events: Vec<Crossing<G>>,
    pub bulks: Vec<Sent<B>>,
}

impl<G, B> Default for Batch<G, B> {
    fn default() -> Self {
        Self {
            events: Vec::new(),
            bulks: Vec::new(),
        }
    }
}

pub(super) type BatchOf<M> = Batch<<M as Model>::Msg, <M as Model>::Bulk>;

impl<G, B> Batch<G, B> {
    pub fn is_empty(&self) -> bool {
        self.events.is_empty() && self.bulks.is_empty()
    }
}

/// What goes to one other shard with the next exchange.
pub(super) struct Outbox<M: Model> {
    pub batch: BatchOf<M>,
    /// The earliest event in the batch, or that its bulks may cause.
    pub next_ps: Ps,
    /// The earliest time at which the batch can make its receiver send to another shard.
    pub reach_ps: Ps,
}

impl<M: Model> Default for Outbox<M> {
    fn default() -> Self {
        Self {
            batch: Batch::default(),
            next_ps: Ps::MAX,
            reach_ps: Ps::MAX,
        }
    }
}

/// A batch in the form in which it travels.
pub(super) enum Payload<M: Model> {
    Values(BatchOf<M>),
    Bytes(Vec<u8>),
}

impl<M: Model> Payload<M> {
    /// # Errors
    /// When a message cannot be encoded.
    pub fn pack(batch: BatchOf<M>, transport: Transport) -> Result<Self, Fault> {
        match transport {
            Transport::Memory => Ok(Self::Values(batch)),
            Transport::Bytes => codec::encode(&batch).map(Self::Bytes).map_err(Fault::Codec),
        }
    }

    /// Delivers it to its shard, which stops if it is not what was packed.
    pub fn unpack(self, shard: &mut Shard<M>) {
        match self {
            Self::Values(mut batch) => shard.deliver(&mut batch),
            Self::Bytes(bytes) => match codec::decode::<BatchOf<M>>(&bytes) {
                Ok(mut batch) => shard.deliver(&mut batch),
                Err(e) => shard.raise(Fault::Codec(e)),
            },
        }
    }
}
