//! Sizes that the actors' compact numbers hold: instances, ranks and the tokens of one message are counted in 16
//! bits, because a decode step makes millions of such messages. What does not fit is refused at launch, with the key that is too large and what would be accepted.

use crate::config::Serving;
use crate::layout::Layout;
use crate::model::ModelSpec;

/// Instances of both pools are numbered together.
const INSTANCES_MAX: u32 = u16::MAX as u32;
/// Every rank keeps a count for each other one: memory grows with the square of them.
const RANKS_MAX: u32 = 4_096;
/// Tokens that a die sends to one expert slot in one message.
const TOKENS_MAX: u32 = u16::MAX as u32;

/// # Errors
/// Names the key whose value is too large, and what would be accepted.
pub fn check(
    layout: &Layout,
    serving: &Serving,
    model: &ModelSpec,
    dies_per_npu: u32,
) -> Result<(), String> {
    let instances = serving
        .prefill
        .instances
        .saturating_add(serving.decode.instances);
    if instances > INSTANCES_MAX {
        return Err(format!(
            "prefill.instances = {} and decode.instances = {}: at most {INSTANCES_MAX} together are supported",
            serving.prefill.instances, serving.decode.instances
        ));
    }
    for (key, groups) in [("prefill", &layout.prefill), ("decode", &layout.decode)] {
        let ranks = groups.first().map_or(0, |g| g.ranks());
        if ranks > RANKS_MAX {
            return Err(format!(
                "{key}.npus_per_instance = {}: at most {} are supported; use more instances",
                ranks / dies_per_npu,
                RANKS_MAX / dies_per_npu
            ));
        }
    }
    // A token goes to a routed expert once, and to a copy of each shared one.
    let per_die = u64::from(TOKENS_MAX / model.shared_experts.max(1));
    let per_npu = per_die * u64::from(dies_per_npu);
    let p = &serving.prefill;
    let (parts, how) = if p.microbatch {
        (2, "")
    } else {
        (1, " without microbatches")
    };
    if !layout.prefill.is_empty() && u64::from(p.batch_tokens_per_npu) > per_npu * parts {
        return Err(format!(
            "prefill.batch_tokens_per_npu = {}: at most {} are supported{how}",
            p.batch_tokens_per_npu,
            per_npu * parts
        ));
    }
    let d = &serving.decode;
    let requests = per_die / u64::from(1 + d.mtp_tokens) * u64::from(dies_per_npu);
    if !layout.decode.is_empty() && u64::from(d.max_batch_per_npu) > requests {
        return Err(format!(
            "decode.max_batch_per_npu = {}: at most {requests} are supported with decode.mtp_tokens = {}",
            d.max_batch_per_npu, d.mtp_tokens
        ));
    }
    Ok(())
}
