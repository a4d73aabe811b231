//! The stages of a layer, of decode and of prefill, by the names they have in reports and traces.

use serde::{Deserialize, Serialize};

/// What a die does in a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Class {
    /// It works.
    Service,
    /// It waits for a stream of its own.
    Queue,
    /// It exchanges with others: sending, waiting for the last flag, and putting together what came.
    Transfer,
}

/// A stage of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Stage {
    DenseLayers,
    Attention,
    WaitMoeStream,
    Gate,
    Dispatch,
    Experts,
    Combine,
    Head,
    Latents,
    Gather,
    Heads,
    Scatter,
    Output,
    DenseMlp,
    PrefillDispatch,
    PrefillExperts,
    PrefillCombine,
    WaitComputeStream,
}

impl Stage {
    pub const COUNT: usize = 18;
    pub const ALL: [Self; Self::COUNT] = [
        Self::DenseLayers,
        Self::Attention,
        Self::WaitMoeStream,
        Self::Gate,
        Self::Dispatch,
        Self::Experts,
        Self::Combine,
        Self::Head,
        Self::Latents,
        Self::Gather,
        Self::Heads,
        Self::Scatter,
        Self::Output,
        Self::DenseMlp,
        Self::PrefillDispatch,
        Self::PrefillExperts,
        Self::PrefillCombine,
        Self::WaitComputeStream,
    ];

    /// As reports call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::DenseLayers => "dense_layers",
            Self::Attention => "attention",
            Self::WaitMoeStream => "wait_moe_stream",
            Self::Gate => "gate",
            Self::Dispatch | Self::PrefillDispatch => "dispatch",
            Self::Experts | Self::PrefillExperts => "experts",
            Self::Combine | Self::PrefillCombine => "combine",
            Self::Head => "head",
            Self::Latents => "latents",
            Self::Gather => "gather",
            Self::Heads => "heads",
            Self::Scatter => "scatter",
            Self::Output => "output",
            Self::DenseMlp => "dense_mlp",
            Self::WaitComputeStream => "wait_compute_stream",
        }
    }

    /// Of decode; otherwise of prefill.
    pub fn is_decode(self) -> bool {
        self <= Self::Head
    }

    pub fn class(self) -> Class {
        match self {
            Self::WaitMoeStream | Self::WaitComputeStream => Class::Queue,
            Self::Dispatch
            | Self::Combine
            | Self::Gather
            | Self::Scatter
            | Self::PrefillDispatch
            | Self::PrefillCombine => Class::Transfer,
            _ => Class::Service,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_numbered_in_order() {
        for (i, s) in Stage::ALL.into_iter().enumerate() {
            assert_eq!(s as usize, i);
        }
        let named = |decode: bool, name: &str| {
            Stage::ALL
                .into_iter()
                .filter(|s| s.is_decode() == decode && s.name() == name)
                .count()
        };
        for s in Stage::ALL {
            assert_eq!(named(s.is_decode(), s.name()), 1, "{s:?}");
        }
    }
}
