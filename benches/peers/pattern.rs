//! What the runtimes are compared on: a 40-byte message, and who sends it to whom.

use serde::{Deserialize, Serialize};

/// Dies of the decode instance.
pub const ACTORS: u32 = 320;

/// What travels.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Payload {
    /// Hops or rounds that are left.
    pub left: u32,
    pub from: u32,
    pub values: [u64; 4],
}

impl Payload {
    pub fn new(left: u32, from: u32) -> Self {
        Self {
            left,
            from,
            values: [1, 2, 3, u64::from(from)],
        }
    }

    /// The same payload one hop on.
    pub fn next(self, from: u32) -> Self {
        let [a, b, c, d] = self.values;
        Self {
            left: self.left - 1,
            from,
            values: [b, c, d, a.wrapping_add(1)],
        }
    }
}

/// Who sends to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// One message per actor goes round and round.
    Ring,
    /// All send to actor 0, which answers each.
    FanIn,
    /// Each sends to each other one, and goes on when it has heard from all.
    AllToAll,
}

impl Pattern {
    pub const ALL: [Self; 3] = [Self::Ring, Self::FanIn, Self::AllToAll];

    pub fn name(self) -> &'static str {
        match self {
            Self::Ring => "ring of 320",
            Self::FanIn => "fan-in 320 to 1",
            Self::AllToAll => "all-to-all of 320",
        }
    }

    /// Hops (ring), answers (fan-in) or rounds (all-to-all).
    pub fn turns(self) -> u32 {
        match self {
            Self::Ring => 1_000,
            Self::FanIn => 500,
            Self::AllToAll => 3,
        }
    }

    pub fn messages(self) -> u64 {
        let (actors, turns) = (u64::from(ACTORS), u64::from(self.turns()));
        match self {
            Self::Ring => actors * turns,
            Self::FanIn => (actors - 1) * turns * 2,
            Self::AllToAll => actors * (actors - 1) * turns,
        }
    }
}
