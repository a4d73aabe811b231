//! What the dies of a decode group say to each other about their experts: counts to the root, plans back, and
//! weights from die to die.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Plan;
use crate::layout::mix;
use crate::runtime::Actor;

/// Which plan and popularity a step is run under, the same on all ranks of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpertState {
    /// Number of the newest plan, and how many of its layers are in force.
    pub plan: u32,
    pub layers: u16,
    /// Period of the tokens' popularity; it drifts whatever the machine does.
    pub period: u32,
}

impl ExpertState {
    pub fn digest(self) -> u64 {
        u64::from(self.plan).rotate_left(48)
            ^ (u64::from(self.layers) << 32)
            ^ u64::from(self.period)
    }
}

/// Plans of all MoE layers, made from observed load.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewPlan {
    pub number: u32,
    pub plans: Arc<Vec<Plan>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExpertMsg {
    /// To a rank: say what your experts got since you were last asked.
    LoadAsk { round: u32 },
    /// To the root: tokens that a rank's experts got, by `layer * slots + slot`.
    Load {
        round: u32,
        rank: u16,
        units: Vec<u32>,
    },
    /// Timer at the root: the host has made the plan.
    PlanMade { round: u32 },
    /// To a rank: load the weights that it names for you. It comes over the lanes, so it says itself whose it is.
    Plan { root: Actor, plan: Arc<NewPlan> },
    /// To a die that holds an expert: send so much of its weights, for this plan.
    WeightsAsk { plan: u32, bytes: u64 },
    /// Weights have arrived.
    Weights { plan: u32, bytes: u64 },
    /// To the root: the weights of the first `layers` layers are here.
    Loaded { plan: u32, layers: u16 },
}

impl ExpertMsg {
    pub fn digest(&self) -> u64 {
        let m = |kind: u64, x: u64| mix((kind << 60) ^ x);
        match self {
            Self::LoadAsk { .. } => m(1, 0),
            Self::Load { rank, units, .. } => {
                let sum = units.iter().fold(0, |a, u| mix(a ^ u64::from(*u)));
                m(2, sum ^ u64::from(*rank))
            }
            Self::PlanMade { .. } => m(3, 0),
            Self::Plan { plan, .. } => m(4, u64::from(plan.number)),
            Self::WeightsAsk { bytes, .. } => m(5, *bytes),
            Self::Weights { bytes, .. } => m(6, *bytes),
            Self::Loaded { plan, layers } => m(7, (u64::from(*plan) << 16) | u64::from(*layers)),
        }
    }
}
