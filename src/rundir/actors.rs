//! `actors.csv` and `stages.csv`: what each actor counted.

use std::io::Write;

use serde::{Deserialize, Serialize};
use supernode_actors::figures::ActorFigures;
use supernode_actors::trace::Stage;
use supernode_topology::{ActorId, Machine, Part};

use super::lines;

/// One actor or direction of a link; or several that are alike, when `count` is above 1.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ActorRow {
    pub address: String,
    /// die, cpu, die_lane, cpu_lane, uplink, sio, rdma or vpc.
    pub kind: String,
    /// "up" or "down" for links, "prefill", "decode" or nothing for dies and CPUs.
    pub side: String,
    pub first: u32,
    pub count: u32,
    /// Of each of them.
    pub messages: u64,
    pub bytes: u64,
    pub lost_bytes: u64,
    pub busy_ps: u64,
    pub expert_tokens: u64,
}

/// A die's time in one stage, in message-level steps and batches.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StageRow {
    pub address: String,
    pub pool: String,
    pub stage: String,
    pub sum_ps: u64,
    pub count: u64,
}

pub fn write(
    out: &mut impl Write,
    machine: &Machine,
    figures: &[ActorFigures],
) -> std::io::Result<()> {
    let row = |f: &ActorFigures| ActorRow {
        address: address(machine, f),
        kind: kind(machine, ActorId(f.first)).into(),
        side: f.side.into(),
        first: f.first,
        count: f.count,
        messages: f.messages,
        bytes: f.bytes,
        lost_bytes: f.lost_bytes,
        busy_ps: f.busy_ps,
        expert_tokens: f.expert_tokens,
    };
    lines::write(out, figures.iter().map(row))
}

pub fn write_stages(
    out: &mut impl Write,
    machine: &Machine,
    figures: &[ActorFigures],
) -> std::io::Result<()> {
    let rows = figures.iter().flat_map(|f| {
        let stages = Stage::ALL.into_iter().zip(&f.stages);
        let some = stages.filter(|(_, s)| s.count > 0);
        some.map(|(stage, s)| StageRow {
            address: address(machine, f),
            pool: if stage.is_decode() {
                "decode"
            } else {
                "prefill"
            }
            .into(),
            stage: stage.name().into(),
            sum_ps: s.sum_ps,
            count: s.count,
        })
    });
    lines::write(out, rows)
}

pub fn kind(machine: &Machine, id: ActorId) -> &'static str {
    match machine.part(id) {
        Part::Die { .. } => "die",
        Part::Cpu { .. } => "cpu",
        Part::DieLane { .. } => "die_lane",
        Part::CpuLane { .. } => "cpu_lane",
        Part::Uplink { .. } => "uplink",
        Part::Sio { .. } => "sio",
        Part::Rdma { .. } => "rdma",
        Part::Vpc { .. } => "vpc",
    }
}

/// An address that selects all of these actors.
pub fn address(machine: &Machine, f: &ActorFigures) -> String {
    let first = machine.address(ActorId(f.first));
    match machine.part(ActorId(f.first)) {
        Part::DieLane { .. } | Part::CpuLane { .. } if f.count > 1 => {
            let stem = first.trim_end_matches(|c: char| c.is_ascii_digit());
            format!("{stem}{{0..{}}}", f.count - 1)
        }
        Part::Uplink { node, .. } if f.count > 1 => format!("node{node}/l1.*/up*"),
        _ => first,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_many_selects_them_all() {
        let m = Machine::builtin("mini4").unwrap();
        let per_node = m.planes() * m.l2_chips_per_plane();
        for (first, count) in [
            (m.die_lane(9, 0), m.planes()),
            (m.cpu_lane(3, 0), m.planes()),
            (m.uplink(2, 0, 0), per_node),
            (m.rdma(5), 1),
            (m.die(4), 1),
        ] {
            let f = ActorFigures {
                first: first.0,
                count,
                ..ActorFigures::default()
            };
            let want: Vec<_> = (first.0..first.0 + count).map(ActorId).collect();
            assert_eq!(m.select(&address(&m, &f)).unwrap(), want);
        }
    }
}
