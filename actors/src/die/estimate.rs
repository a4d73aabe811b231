//! What a decode step takes by its operators alone.

use std::collections::HashMap;

use super::calibrate::Condition;
use super::decode::{combine_bytes, dispatch_bytes};
use crate::compute::{MicrobatchLoad, Share};
use crate::experts::Busiest;
use crate::time::{Ps, ps_from_s, ps_from_us};
use crate::world::Shared;

/// What the MoE part of a layer depends on: microbatches, requests of the group, requests and tokens of the fullest rank.
type MoeKey = (bool, u32, u32, u32);

/// Estimates of steps. What the MoE part of a layer takes is remembered, since batches mostly stay as they are from
/// step to step.
#[derive(Debug, Default)]
pub(super) struct Estimator {
    /// The busiest ranks; `None`: those by the plans and the load of the start.
    busiest: Option<Busiest>,
    /// By class of layers: how many, and what one takes.
    moe: HashMap<MoeKey, Vec<(u32, Ps)>>,
}

/// Batches of some thousand sizes, with and without microbatches, of all tokens and of one each.
const KEPT: usize = 1 << 14;

impl Estimator {
    /// Estimates that go by these busiest ranks.
    pub fn by(busiest: Busiest) -> Self {
        Self {
            busiest: Some(busiest),
            moe: HashMap::new(),
        }
    }

    /// A step's duration from the operators alone: those of the fullest rank in attention, and in the MoE part those of
    /// the rank with the busiest experts, for which all wait. It is the yardstick that simulated steps are divided by, so
    /// that a draw fits steps of about the same condition, and what `decode.microbatch = "auto"` goes by.
    pub fn step_ps(&mut self, c: &Condition, shared: &Shared) -> Ps {
        let times = &shared.decode_times;
        let drafts = shared.serving.decode.mtp_tokens;
        let parts = if c.microbatch { 2 } else { 1 };
        let load = |parts: u32| {
            let requests = c.requests_max.div_ceil(parts);
            MicrobatchLoad {
                requests,
                tokens: requests * (1 + drafts),
                context_sum: c.context_max / u64::from(parts),
            }
        };
        let (whole, part) = (load(1), load(parts));
        let layers_ps = self.layers_ps(c, part, shared);
        let mut total = times.dense_layers_ps(whole) + layers_ps + times.head_ps(whole.tokens);
        if drafts > 0 {
            let layers = Ps::from(shared.model.moe_layers().max(1));
            total += layers_ps / layers + times.mtp_join_ps(whole.tokens);
            let again_ps = self.layers_ps(c, part.one_token_each(), shared) / layers;
            total += Ps::from(drafts - 1) * (again_ps + times.mtp_join_ps(whole.requests));
            total += Ps::from(drafts) * times.head_ps(whole.requests);
        }
        total
    }

    /// All MoE layers, the fullest rank with `part` in a microbatch.
    fn layers_ps(&mut self, c: &Condition, part: MicrobatchLoad, shared: &Shared) -> Ps {
        let times = &shared.decode_times;
        let attention_share = if c.microbatch {
            times.attention_share
        } else {
            Share::WHOLE
        };
        let attention_ps = times.attention_ps(part, attention_share);
        let layer_ps = |moe_ps: Ps| {
            if c.microbatch {
                2 * attention_ps.max(moe_ps)
            } else {
                attention_ps + moe_ps
            }
        };
        let classes = self.moe(c, part, shared).iter();
        classes
            .map(|&(n, moe_ps)| Ps::from(n) * layer_ps(moe_ps))
            .sum()
    }

    /// The MoE part of a layer, for each class of layers with how many they are.
    fn moe(&mut self, c: &Condition, part: MicrobatchLoad, shared: &Shared) -> &[(u32, Ps)] {
        let key = (c.microbatch, c.requests, part.requests, part.tokens);
        if self.moe.len() >= KEPT {
            self.moe.clear();
        }
        let busiest = self.busiest.as_ref().or(shared.decode_busiest.as_ref());
        self.moe
            .entry(key)
            .or_insert_with(|| moe_of_classes(c, part, busiest, shared))
    }
}

/// What the MoE part of a layer takes, for each class of layers with how many they are.
fn moe_of_classes(
    c: &Condition,
    part: MicrobatchLoad,
    busiest: Option<&Busiest>,
    shared: &Shared,
) -> Vec<(u32, Ps)> {
    let parts = if c.microbatch { 2.0 } else { 1.0 };
    let each = f64::from(part.tokens) / f64::from(part.requests.max(1));
    let tokens = f64::from(c.requests) * each / parts;
    busiest
        .into_iter()
        .flat_map(|b| b.units(tokens))
        .map(|(layers, units)| (layers, moe_ps(part.tokens, &units, c.microbatch, shared)))
        .collect()
}

/// Gate, dispatch, experts and combine of a microbatch of `tokens` tokens on each die, the busiest of which gets `units`
/// for its expert slots.
fn moe_ps(tokens: u32, units: &[u32], microbatch: bool, shared: &Shared) -> Ps {
    let times = &shared.decode_times;
    let share = if microbatch {
        times.moe_share
    } else {
        Share::WHOLE
    };
    let (d, c) = (&shared.cal.dispatch, &shared.cal.combine);
    let ranks = f64::from(shared.layout.decode[0].ranks());
    let sent = u64::from(tokens * (shared.model.top_k + shared.model.shared_experts));
    let received = units.iter().map(|&u| u64::from(u)).sum::<u64>();
    let path = &shared.paths.npu_npu_write.between;
    // What a die sends is on its lanes as long as what the busiest gets is on those.
    let wire = |bytes: u32| path.per_byte.ps(sent.max(received) * u64::from(bytes));
    let moved = received as f64 * f64::from(dispatch_bytes(shared)) * d.assemble_passes;
    let summed = sent as f64 * f64::from(combine_bytes(shared)) * c.sum_passes;
    let fixed_us = d.startup_us
        + d.barrier_us
        + d.assemble_us
        + c.startup_us
        + c.barrier_us
        + c.sum_us
        + d.token_us * f64::from(tokens) / share.vector
        + (d.flag_ns + c.flag_ns) * 1e-3 * ranks;
    times.gate_ps(tokens, share)
        + ps_from_us(fixed_us)
        + 2 * path.latency_ps
        + wire(dispatch_bytes(shared))
        + wire(combine_bytes(shared))
        + ps_from_s(times.roof.vector_s(moved + summed, share))
        + times.experts_ps(units, share)
}
