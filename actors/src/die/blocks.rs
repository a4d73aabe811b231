//! KV blocks of prompts: their keys in the pooled cache, and the plane that they take.

use crate::config::CachePlane;
use crate::layout::mix;
use crate::message::{Plane, Prompt};
use crate::request::Prefix;
use crate::world::Shared;

/// Keys of a prompt's full KV blocks: equal keys mean equal content and equal prefix.
pub fn block_keys(prompt: &Prompt, model: u8, shared: &Shared) -> Vec<u64> {
    let keys = keys_of_first_model(prompt, shared);
    if model == 0 {
        return keys;
    }
    // KV of one model is of no use to another.
    let other = |key: u64| mix(key ^ u64::from(model)) & !WARM;
    keys.into_iter().map(other).collect()
}

fn keys_of_first_model(prompt: &Prompt, shared: &Shared) -> Vec<u64> {
    if !shared.serving.cache.enabled {
        return Vec::new();
    }
    let block = shared.serving.cache.block_tokens;
    let full = prompt.prompt_tokens / block;
    let own = |i: u32| {
        mix(mix((prompt.request & crate::request::ID) ^ 0x5eed_0000_0000_0000) ^ u64::from(i))
    };
    match &prompt.prefix {
        Prefix::Unique => (0..full).map(|i| own(i) & !WARM).collect(),
        Prefix::Cached { tokens } => (0..full)
            .map(|i| {
                if (i + 1) * block <= *tokens {
                    own(i) | WARM
                } else {
                    own(i) & !WARM
                }
            })
            .collect(),
        Prefix::Blocks { block_tokens, ids } => (0..full)
            .map(|i| {
                // The block that covers this one's last token: being prefix-chained, it stands for all before.
                let last = (u64::from(i + 1) * u64::from(block) - 1) / u64::from(*block_tokens);
                match ids.get(last as usize) {
                    Some(&id) => mix(mix(id) ^ (u64::from(i) << 40)) & !WARM,
                    None => own(i) & !WARM,
                }
            })
            .collect(),
    }
}

/// Keys with this bit are in the cache from the start (`workload.reuse_share`).
pub const WARM: u64 = 1 << 63;

/// Which plane cached blocks take.
pub fn cache_plane(plane: CachePlane) -> Plane {
    match plane {
        CachePlane::Ub => Plane::Ub,
        CachePlane::Vpc => Plane::Vpc,
    }
}
