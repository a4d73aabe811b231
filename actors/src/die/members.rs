//! Who takes part in a decode group, and the words of those who look after that.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::experts::{NewPlan, Plan, Room, SlotUse, of_layer};

/// Ranks of a group that take part from an epoch on. Each epoch begins with a clean board: what was under way is
/// given up and done again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Members {
    pub epoch: u32,
    pub root: u16,
    /// In order.
    pub ranks: Vec<u16>,
    /// Expert plans that are in force; `None`: those of the start.
    pub plans: Option<Arc<NewPlan>>,
}

impl Members {
    pub fn all(ranks: u32) -> Self {
        Self {
            epoch: 0,
            root: 0,
            ranks: (0..ranks as u16).collect(),
            plans: None,
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
    /// A die: are blocks of its weights overdue?
    Blocks,
}

/// The plans of a group without some of its ranks: what is left of each layer's plan, with places for experts that have
/// no copy left. A rank holds up to `beside_max` beside those of its slots.
///
/// # Errors
/// The expert that has no place (`u32::MAX`: the shared one).
pub fn repaired(plans: &[Plan], members: &Members, beside_max: u32) -> Result<Arc<Vec<Plan>>, u32> {
    let alive = |rank: u32| members.has(rank as u16);
    let left = |(first, plan): (usize, &Plan)| {
        let first = first as u32;
        plan.repaired(&alive, Room { beside_max, first })
    };
    plans
        .iter()
        .enumerate()
        .map(left)
        .collect::<Result<_, _>>()
        .map(Arc::new)
}

/// Experts of `layers` layers, one layer each, that a rank lacks which has what `old` names for it, of those that `new`
/// does.
pub fn lacking(old: &[Plan], new: &[Plan], rank: u16, layers: u32) -> u64 {
    let lacked = |layer: u32| {
        let rank = u32::from(rank);
        let has: Vec<SlotUse> = of_layer(old, layer).weights_of(rank).collect();
        let wants = of_layer(new, layer).weights_of(rank);
        wants.filter(|w| !has.contains(w)).count() as u64
    };
    (0..layers).map(lacked).sum()
}
