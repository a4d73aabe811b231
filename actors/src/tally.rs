//! What one shard counts while it runs. Tallies of shards merge into the run's statistics.

mod layers;

use crate::fault::{Note, NoteKind};
use crate::request::{Delivered, Delivery, RequestRecord};
use crate::stats::{
    CacheCounts, ExpertCounts, FidelityStats, FineHist, IterationTokens, MessageCounts,
    WeightCounts,
};
use crate::steady::Steady;
use crate::time::Ps;
pub use layers::Layers;

/// A step or batch of a group that has ended.
#[derive(Clone, Copy, Debug)]
pub struct Stepped {
    pub group: u16,
    pub started_ps: Ps,
    pub ended_ps: Ps,
    pub requests: u32,
    pub tokens: u64,
}

/// Steps of the decode groups, or batches of the prefill groups.
#[derive(Clone, Debug, Default)]
pub struct PoolTally {
    pub steps: u64,
    /// Time spent in them and requests in them, summed over groups.
    pub busy_ps: Ps,
    pub batch_sum: u64,
    /// Output tokens made (decode) or prompt tokens computed (prefill).
    pub tokens: u64,
    pub steady: Steady,
}

impl PoolTally {
    fn add(&mut self, step: Stepped, full: bool) {
        let Stepped {
            group,
            started_ps,
            ended_ps,
            requests,
            tokens,
        } = step;
        self.tokens += tokens;
        self.steady.step(group, started_ps, ended_ps, tokens, full);
        self.steps += 1;
        self.busy_ps += ended_ps - started_ps;
        self.batch_sum += u64::from(requests);
    }
}

#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub messages: MessageCounts,
    pub records: Vec<RequestRecord>,
    pub offered: u64,
    pub ended: u64,
    /// For a live machine: what has reached homes since the last look.
    pub deliveries: Vec<Delivery>,
    pub itl: FineHist,
    pub cache: CacheCounts,
    pub experts: ExpertCounts,
    pub weights: WeightCounts,
    pub fidelity: FidelityStats,
    pub decode_layers: Layers,
    pub prefill_layers: Layers,
    pub iterations: IterationTokens,
    pub decode: PoolTally,
    pub prefill: PoolTally,
    /// Durations of copies that were asked for to measure the fabric.
    pub copies_ps: Vec<Ps>,
    /// What parts found out and did about faults.
    pub notes: Vec<Note>,
    /// Requests started again: when, for want of which part, which.
    pub retried: Vec<(Ps, u32, u64)>,
    /// Messages that faults kept from their receivers.
    pub lost_messages: u64,
    /// Folded into the digest at the end.
    pub hash: u64,
    /// Last event that mattered to a request.
    pub end_ps: Ps,
}

impl Tally {
    /// A decode step has ended: `full` if all the load was in it.
    pub fn decode_step(&mut self, step: Stepped, full: bool) {
        self.iterations.record(step.tokens);
        self.decode.add(step, full);
    }

    /// A prefill batch has ended, with its new tokens: `full` if it used up the token budget.
    pub fn prefill_batch(&mut self, batch: Stepped, full: bool) {
        self.iterations.record(batch.tokens);
        self.prefill.add(batch, full);
    }

    /// A part has found `part` to be gone, or back.
    pub fn note(&mut self, at_ps: Ps, part: u32, kind: NoteKind) {
        self.notes.push(Note { at_ps, part, kind });
    }

    /// Message hashes of phases, from any rank in any order.
    pub fn fold(&mut self, hash: u64) {
        self.hash = self.hash.wrapping_add(crate::layout::mix(hash));
    }

    pub fn ended(&mut self, record: RequestRecord) {
        self.end_ps = self.end_ps.max(record.end_ps);
        self.ended += 1;
        self.records.push(record);
    }

    /// As `ended`, on a live machine: the outside keeps the record.
    pub fn ended_live(&mut self, record: RequestRecord) {
        self.end_ps = self.end_ps.max(record.end_ps);
        self.ended += 1;
        self.deliveries.push(Delivery {
            request: record.id,
            at_ps: record.end_ps,
            what: Delivered::Ended(Box::new(record)),
        });
    }
}
