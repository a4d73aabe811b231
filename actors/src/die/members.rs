//! Who takes part in a decode group, and the words of those who look after that.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::experts::{NewPlan, Plan, SlotUse, of_layer};

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

/// The plans of a group without some of its ranks: what is left of each layer's plan, with experts that have no copy
/// left in the place of redundant copies of others.
///
/// # Errors
/// The expert that has no place (`u32::MAX`: the shared one).
pub fn repaired(plans: &[Plan], members: &Members) -> Result<Arc<Vec<Plan>>, u32> {
    let alive = |rank: u32| members.has(rank as u16);
    let of_layer = |plan: &Plan| plan.repaired(&alive);
    plans
        .iter()
        .map(of_layer)
        .collect::<Result<_, _>>()
        .map(Arc::new)
}

/// Whether a rank that has what `old` names for it lacks anything that `new` does.
pub fn lacks(old: &[Plan], new: &[Plan], rank: u16) -> bool {
    (0..old.len().max(new.len()) as u32).any(|layer| {
        let has = of_layer(old, layer).uses_of(u32::from(rank));
        let wants = of_layer(new, layer).uses_of(u32::from(rank));
        wants
            .iter()
            .any(|w| *w != SlotUse::Empty && !has.contains(w))
    })
}
