//! Who takes part in a decode group, and the words of those who look after that.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::experts::ExpertLayers;

/// Ranks of a group that take part from an epoch on. Each epoch begins with a clean board: what was under way is
/// given up and done again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Members {
    pub epoch: u32,
    pub root: u16,
    /// In order.
    pub ranks: Vec<u16>,
}

impl Members {
    pub fn all(ranks: u32) -> Self {
        Self {
            epoch: 0,
            root: 0,
            ranks: (0..ranks as u16).collect(),
        }
    }

    pub fn has(&self, rank: u16) -> bool {
        self.ranks.binary_search(&rank).is_ok()
    }

    pub fn count(&self) -> u16 {
        self.ranks.len() as u16
    }

    /// Place of a rank among them.
    pub fn place(&self, rank: u16) -> u32 {
        self.ranks.partition_point(|&r| r < rank) as u32
    }
}

/// Timers of those who watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Watch {
    /// The root: is the step late?
    Step,
    /// The root: who has answered?
    StepAnswers,
    /// A rank: has the root said anything?
    Root,
    /// A rank: has the root answered?
    RootAnswer,
    /// A rank: are the weights here?
    Weights,
    /// A home or placer: is anything overdue?
    Overdue,
}

/// The plans of a group without some of its ranks: what is left of each layer's plan, with experts that have no copy
/// left in the place of redundant copies of others.
pub fn repaired(layers: &ExpertLayers, members: &Members) -> Result<Repaired, u32> {
    let alive = |rank: u32| members.has(rank as u16);
    let mut loads = std::collections::BTreeMap::new();
    let mut plans = Vec::with_capacity(layers.plans.len());
    for plan in layers.plans.iter() {
        let (plan, moved) = plan.repaired(&alive)?;
        for slot in moved {
            *loads
                .entry((u32::from(slot) / layers.slots_per_rank) as u16)
                .or_insert(0) += 1;
        }
        plans.push(plan);
    }
    Ok(Repaired {
        layers: Arc::new(ExpertLayers {
            plans: Arc::new(plans),
            ..layers.clone()
        }),
        loads,
    })
}

/// Plans for the ranks that are left, and how many experts (over the plans) each has to load for them.
#[derive(Clone, Debug)]
pub struct Repaired {
    pub layers: Arc<ExpertLayers>,
    pub loads: std::collections::BTreeMap<u16, u32>,
}
