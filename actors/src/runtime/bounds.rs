//! How far shards may go.

use super::Model;
use super::shard::Shard;
use crate::time::Ps;

/// How far each shard may go, given how early the shards can send: up to the others' earliest message, and up to
/// the answer to its own.
pub(super) struct Bounds {
    first: Ps,
    first_shard: usize,
    second: Ps,
}

impl Bounds {
    pub fn of(reaches: impl Iterator<Item = (usize, Ps)>) -> Self {
        let mut bounds = Self {
            first: Ps::MAX,
            first_shard: usize::MAX,
            second: Ps::MAX,
        };
        for (shard, reach) in reaches {
            if reach < bounds.first || bounds.first_shard == usize::MAX {
                bounds.second = bounds.first;
                (bounds.first, bounds.first_shard) = (reach, shard);
            } else {
                bounds.second = bounds.second.min(reach);
            }
        }
        bounds
    }

    pub fn bound(&self, shard: usize, lookahead_least: Ps) -> Ps {
        if shard == self.first_shard {
            self.second.min(self.first.saturating_add(lookahead_least))
        } else {
            self.first
        }
    }
}

/// Where these shards end: at `until`, or at the first fault among them.
#[inline]
pub(super) fn limit<M: Model>(shards: &[Shard<M>], until: Ps) -> Ps {
    shards
        .iter()
        .filter_map(|s| s.core.fault_limit())
        .fold(until, Ps::min)
}
