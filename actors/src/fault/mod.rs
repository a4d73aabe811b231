//! Faults: the words for what can be wrong with a part, and how a fault reaches the part it hits. A fault is injected
//! as a message to each part when it strikes and when it is over; nobody else is told. What follows (late flags,
//! missing acknowledgements, retries) is the machine's own.

mod body;
mod conditions;
mod gate;

pub use body::{Body, Change};
pub use conditions::Conditions;
pub use gate::Verdict;

use serde::{Deserialize, Serialize};
use supernode_topology::ActorId;

use crate::time::Ps;

/// What is wrong with a part. The first six are for links, the others for dies and CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Effect {
    /// So much of the bandwidth is left, above 0 and below 1.
    Slow(f64),
    /// Every message takes so much longer.
    Delay(Ps),
    /// Every message takes longer by up to this, drawn for each.
    Jitter(Ps),
    /// A packet is lost with this probability, and sent again.
    Loss(f64),
    /// Up for `up` (0..1) of each period, then down for the rest of it.
    Flap { period_ps: Ps, up: f64 },
    /// Nothing passes.
    Down,
    /// So much of the cores' clock is left, above 0 and below 1.
    Throttle(f64),
    /// So much of the memory's bandwidth is left, above 0 and below 1.
    HbmSlow(f64),
    /// It does nothing until it is over, then goes on where it was.
    Hang,
    /// It loses all it had in memory; when it is over it starts from nothing.
    Crash,
}

impl Effect {
    pub fn word(&self) -> &'static str {
        match self {
            Self::Slow(_) => "slow",
            Self::Delay(_) => "delay",
            Self::Jitter(_) => "jitter",
            Self::Loss(_) => "loss",
            Self::Flap { .. } => "flap",
            Self::Down => "down",
            Self::Throttle(_) => "throttle",
            Self::HbmSlow(_) => "hbm_slow",
            Self::Hang => "hang",
            Self::Crash => "crash",
        }
    }

    /// Number of its kind, and how much of it: the bits of a share or probability, or a time in picoseconds.
    pub fn code(&self) -> (u64, u64) {
        match *self {
            Self::Slow(f) => (0, f.to_bits()),
            Self::Delay(ps) => (1, ps),
            Self::Jitter(ps) => (2, ps),
            Self::Loss(p) => (3, p.to_bits()),
            Self::Flap { period_ps, up } => (4, period_ps ^ up.to_bits()),
            Self::Down => (5, 0),
            Self::Throttle(f) => (6, f.to_bits()),
            Self::HbmSlow(f) => (7, f.to_bits()),
            Self::Hang => (8, 0),
            Self::Crash => (9, 0),
        }
    }

    /// It is said of links; otherwise of dies and CPUs.
    pub fn is_of_links(&self) -> bool {
        matches!(
            self,
            Self::Slow(_)
                | Self::Delay(_)
                | Self::Jitter(_)
                | Self::Loss(_)
                | Self::Flap { .. }
                | Self::Down
        )
    }
}

/// Directions of a link that a fault is in: out of its die, CPU or node, into it, or both. For a die-to-die link,
/// out is from die 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ways {
    #[default]
    Both,
    Out,
    In,
}

impl Ways {
    pub fn out(self) -> bool {
        self != Self::In
    }

    pub fn inbound(self) -> bool {
        self != Self::Out
    }
}

/// One fault of a plan, its parts found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fault {
    /// As a person would say it.
    pub text: String,
    pub start_ps: Ps,
    /// `None`: until the end of the run.
    pub end_ps: Option<Ps>,
    pub effect: Effect,
    pub ways: Ways,
    /// Parts that it hits, in order of ids: links, or dies and CPUs.
    pub parts: Vec<ActorId>,
}

/// What a part is sent when a fault strikes it, and when that is over.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Strike {
    /// Number of the fault in its run.
    pub fault: u32,
    pub effect: Effect,
    pub ways: Ways,
    pub begins: bool,
}

impl Strike {
    /// For the event digest.
    pub fn digest(&self) -> u64 {
        let (kind, value) = self.effect.code();
        let flags = u64::from(self.begins) | (u64::from(self.ways as u8) << 1) | (kind << 8);
        crate::layout::mix(value ^ crate::layout::mix(flags ^ (u64::from(self.fault) << 32)))
    }
}

/// Something that a part found out, or did, about a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    pub at_ps: Ps,
    /// The part that is concerned.
    pub part: u32,
    pub kind: NoteKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NoteKind {
    /// Others found that it does not answer.
    Noticed,
    /// The work it was part of goes on, without it or with it again.
    Recovered,
    /// A step or batch was given up and done again.
    RolledBack,
    /// It found a lane or chip of its own to be bad, and sends over others; or good again.
    LaneWorse,
    LaneBetter,
    /// No acknowledgement came for what went to or from it over RDMA, VPC or the die-to-die link: it goes over UB.
    PortLost,
    /// A group has too few ranks left to hold every expert.
    ExpertLost,
}
