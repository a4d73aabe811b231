//! Object storage behind the machine: the one place that all blocks of weights come from. It serves them in turn, with
//! the bandwidth that the whole machine has to it, into the VPC ports of those who ask.

use crate::fabric::PerByte;
use crate::message::Msg;
use crate::runtime::{Actor, Ctx};
use crate::time::Ps;
use crate::world::World;

#[derive(Debug)]
pub struct ObjectStore {
    per_byte: PerByte,
    latency_ps: Ps,
    /// When everything asked for so far has left.
    free_ps: Ps,
    pub sent_bytes: u64,
}

impl ObjectStore {
    pub fn new(per_byte: PerByte, latency_ps: Ps) -> Self {
        Self {
            per_byte,
            latency_ps,
            free_ps: 0,
            sent_bytes: 0,
        }
    }

    pub fn handle(&mut self, from: Actor, msg: &Msg, ctx: &mut Ctx<'_, World>) {
        let Msg::StoreAsk { key, bytes } = *msg else {
            unreachable!("object storage does not take {msg:?}")
        };
        let start_ps = self.free_ps.max(ctx.now());
        self.free_ps = start_ps + self.per_byte.ps(bytes);
        self.sent_bytes += bytes;
        let tail_ps = self.free_ps + self.latency_ps;
        let block = Msg::StoreBlock {
            key,
            bytes,
            tail_ps,
        };
        ctx.send_at(start_ps + self.latency_ps, from, block);
    }
}
