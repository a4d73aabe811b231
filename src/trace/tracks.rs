//! The tracks of a trace, as the UI groups them: node, NPU, die, and its streams; links and CPUs beside; one track
//! for each request.

use super::events::counter;
use supernode_actors::trace::{Counter, What};
use supernode_topology::{ActorId, Machine, Part};

/// Lines of one actor: spans on one never overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stream {
    Steps,
    GroupSteps,
    Attention,
    Moe,
    Waits,
    Prefill0,
    Prefill1,
    Wire0,
    Wire1,
    TransfersOut,
    TransfersIn,
    PhasesOut0,
    PhasesOut1,
    PhasesIn0,
    PhasesIn1,
    Faults,
}

pub const STREAMS: usize = 16;

impl Stream {
    /// The line that a kind of span goes to; `part` is its microbatch.
    pub fn of(what: What, part: u8) -> Self {
        use supernode_actors::trace::Stage as S;
        let second = part > 0;
        let either = |a, b| if second { b } else { a };
        match what {
            What::Stage(S::DenseLayers | S::Attention | S::Head) => Self::Attention,
            What::Stage(S::WaitMoeStream) => Self::Waits,
            What::Stage(s) if s.is_decode() => Self::Moe,
            What::Stage(_) => either(Self::Prefill0, Self::Prefill1),
            What::Send(_) => either(Self::Wire0, Self::Wire1),
            What::Step | What::Batch => Self::Steps,
            What::GroupStep | What::GroupBatch => Self::GroupSteps,
            What::TransferOut => Self::TransfersOut,
            What::TransferIn => Self::TransfersIn,
            What::PhaseOut => either(Self::PhasesOut0, Self::PhasesOut1),
            What::PhaseIn => either(Self::PhasesIn0, Self::PhasesIn1),
            What::Fault | What::FaultOver | What::Mark(_) | What::Counter(_) | What::Uplinks => {
                Self::Faults
            }
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Steps => "steps",
            Self::GroupSteps => "group steps",
            Self::Attention => "attention stream",
            Self::Moe => "MoE stream",
            Self::Waits => "waits for the MoE stream",
            Self::Prefill0 => "microbatch 0",
            Self::Prefill1 => "microbatch 1",
            Self::Wire0 => "sends",
            Self::Wire1 => "sends, microbatch 1",
            Self::TransfersOut => "transfers out",
            Self::TransfersIn => "transfers in",
            Self::PhasesOut0 => "messages out",
            Self::PhasesOut1 => "messages out, microbatch 1",
            Self::PhasesIn0 => "messages in",
            Self::PhasesIn1 => "messages in, microbatch 1",
            Self::Faults => "faults",
        }
    }
}

/// The address of an actor's tracks: one lane stands for all lanes of its part, which carry equal shares, and one L1-L2
/// link for all of its node.
pub fn shown_address(machine: &Machine, actor: u32) -> String {
    let address = machine.address(ActorId(actor));
    match machine.part(ActorId(actor)) {
        Part::DieLane { .. } | Part::CpuLane { .. } => {
            let stem = address.trim_end_matches(|c: char| c.is_ascii_digit());
            format!("{stem}{{0..{}}}", machine.planes() - 1)
        }
        Part::Uplink { node, .. } => format!("node{node}/l1.*/up*"),
        _ => address,
    }
}

/// The actor whose tracks show what `actor` carries: its own, or those of the first of links that carry equal shares.
pub fn stands_for(machine: &Machine, actor: ActorId) -> ActorId {
    match machine.part(actor) {
        Part::DieLane { die, .. } => machine.die_lane(die, 0),
        Part::CpuLane { cpu, .. } => machine.cpu_lane(cpu, 0),
        Part::Uplink { node, .. } => machine.uplink(node, 0, 0),
        _ => actor,
    }
}

/// Name of a line, below its actor.
pub fn stream_name(stream: Stream) -> &'static str {
    stream.name()
}

/// What a counter's track shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Counted {
    /// What its actor counts.
    Of(Counter),
    /// What a link carried, as a mean over a short time.
    Bandwidth { out: bool },
}

impl Counted {
    /// Name of the track, and what it counts.
    pub fn name(self) -> (&'static str, &'static str) {
        match self {
            Self::Of(c) => counter(c),
            Self::Bandwidth { out: true } => ("bandwidth out", "MB/s"),
            Self::Bandwidth { out: false } => ("bandwidth in", "MB/s"),
        }
    }
}
