//! What a decode step takes by its operators alone.

use super::calibrate::Condition;
use super::decode::{combine_bytes, dispatch_bytes};
use crate::compute::{MicrobatchLoad, Share};
use crate::time::{Ps, ps_from_s, ps_from_us};
use crate::world::Shared;

/// A step's duration from the operators alone: those of the fullest rank in attention, and in the MoE part those of the
/// rank with the busiest experts, for which all wait. It is the yardstick that simulated steps are divided by, so that a
/// draw fits steps of about the same condition, and what `decode.microbatch = "auto"` goes by.
pub(super) fn estimate_ps(c: &Condition, shared: &Shared) -> Ps {
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
    let layers = |part: MicrobatchLoad| {
        let attention_share = if c.microbatch {
            times.attention_share
        } else {
            Share::WHOLE
        };
        let attention_ps = times.attention_ps(part, attention_share);
        let each = f64::from(part.tokens) / f64::from(part.requests.max(1));
        let tokens = f64::from(c.requests) * each / f64::from(parts);
        let busiest = shared
            .decode_busiest
            .iter()
            .flat_map(move |b| b.units(tokens));
        busiest.map(move |(layers, units)| {
            let moe_ps = moe_ps(part.tokens, &units, c.microbatch, shared);
            let layer_ps = if c.microbatch {
                2 * attention_ps.max(moe_ps)
            } else {
                attention_ps + moe_ps
            };
            (layers, layer_ps)
        })
    };
    let all = |part| layers(part).map(|(n, ps)| Ps::from(n) * ps).sum::<Ps>();
    let one_layer = |part| all(part) / Ps::from(shared.model.moe_layers().max(1));
    let mut total = times.dense_layers_ps(whole) + all(part) + times.head_ps(whole.tokens);
    if drafts > 0 {
        total += one_layer(part) + times.mtp_join_ps(whole.tokens);
        let again = one_layer(part.one_token_each()) + times.mtp_join_ps(whole.requests);
        total += Ps::from(drafts - 1) * again;
        total += Ps::from(drafts) * times.head_ps(whole.requests);
    }
    total
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
