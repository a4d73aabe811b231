//! What the faults of a run did: when each struck, was noticed and recovered from, which requests it touched, and
//! goodput before, during and after.

use std::collections::BTreeMap;

use serde::Serialize;
use supernode_actors::fault::{Fault, Note, NoteKind};
use supernode_actors::request::{Outcome, RequestRecord};
use supernode_actors::stats::RunStats;
use supernode_actors::time::{PS_PER_S, Ps, s_from_ps};
use supernode_topology::{ActorId, Machine, Part};

use super::latency;
use crate::scenario::Slo;

/// One fault.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FaultReport {
    pub fault: String,
    /// Parts hit.
    pub parts: u64,
    pub injected_s: f64,
    pub ended_s: Option<f64>,
    /// When the first part found out (null: nobody did), and when the work of all that were found to be gone went on,
    /// without them or with them again (null: some of it did not). Lanes: when the first sender had spread anew.
    pub noticed_s: Option<f64>,
    pub recovered_s: Option<f64>,
    /// When too few dies of a decode group were left to hold every expert: it serves nobody until dies are back (null: enough
    /// were).
    pub experts_lost_s: Option<f64>,
    pub requests: Touched,
    pub goodput: AroundFault,
    /// From the strike until goodput is at 95% of before again (over a second); null: not within the run.
    pub back_to_95_s: Option<f64>,
}

/// Requests that were in the machine while it held.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Touched {
    pub touched: u64,
    /// Started again because a part that it hit was gone.
    pub retried: u64,
    /// Of those retried, the ones that failed.
    pub failed: u64,
}

/// Requests per second within both objectives, by when they ended.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AroundFault {
    pub before_per_s: Option<f64>,
    pub during_per_s: Option<f64>,
    pub after_per_s: Option<f64>,
}

/// Goodput before and after is taken over as long as this, where the run has it.
const WINDOW_PS: Ps = 10 * PS_PER_S;

pub fn of(faults: &[Fault], machine: &Machine, s: &RunStats, slo: &Slo) -> Vec<FaultReport> {
    let mut good: Vec<Ps> = s
        .records
        .iter()
        .filter(|r| latency::meets(r, slo))
        .map(|r| r.end_ps)
        .collect();
    good.sort_unstable();
    faults.iter().map(|f| one(f, machine, s, &good)).collect()
}

/// The dies or CPU that a part belongs to, if it is one or a link of theirs.
fn owners(machine: &Machine, part: ActorId) -> Vec<ActorId> {
    match machine.part(part) {
        Part::Die { .. } | Part::Cpu { .. } => vec![part],
        Part::DieLane { die, .. } | Part::Rdma { die } => vec![machine.die(die)],
        Part::Sio { npu } => {
            let dies = machine.dies_per_npu();
            (npu * dies..(npu + 1) * dies)
                .map(|d| machine.die(d))
                .collect()
        }
        Part::CpuLane { cpu, .. } => vec![machine.cpu(cpu)],
        _ => Vec::new(),
    }
}

fn one(f: &Fault, machine: &Machine, s: &RunStats, good: &[Ps]) -> FaultReport {
    let owners: std::collections::BTreeSet<ActorId> =
        f.parts.iter().flat_map(|p| owners(machine, *p)).collect();
    let nodes: std::collections::BTreeSet<u32> = f
        .parts
        .iter()
        .filter(|p| matches!(machine.part(**p), Part::Uplink { .. } | Part::Vpc { .. }))
        .map(|p| machine.node_of(*p))
        .collect();
    let concerns = |part: u32| {
        let id = ActorId(part);
        owners.contains(&id) || nodes.contains(&machine.node_of(id))
    };
    let of_port = |p: &ActorId| {
        matches!(
            machine.part(*p),
            Part::Rdma { .. } | Part::Vpc { .. } | Part::Sio { .. }
        )
    };
    let ports = f.parts.iter().any(of_port);
    let until_ps = f.end_ps.unwrap_or(s.end_ps).min(s.end_ps);
    let notes: Vec<_> = s
        .notes
        .iter()
        .filter(|n| n.at_ps >= f.start_ps && concerns(n.part))
        .collect();
    let noticed_ps = notes
        .iter()
        .find(|n| {
            let lanes = f.effect.is_of_links();
            match n.kind {
                NoteKind::Noticed => true,
                NoteKind::LaneWorse => lanes,
                NoteKind::PortLost => ports,
                _ => false,
            }
        })
        .map(|n| n.at_ps);
    // A sender that finds a lane bad spreads anew at once; parts behind lanes may be gone as others are.
    let recovered_ps = if notes.iter().any(|n| n.kind == NoteKind::Noticed) {
        at_work_again_ps(&notes)
    } else {
        noticed_ps
    };
    // It is the group's living ranks that say so, of those that the fault took.
    let gone = notes.iter().any(|n| n.kind == NoteKind::Noticed);
    let last_ps = recovered_ps.unwrap_or(Ps::MAX);
    let experts_lost_ps = s
        .notes
        .iter()
        .find(|n| n.kind == NoteKind::ExpertLost && (f.start_ps..=last_ps).contains(&n.at_ps))
        .map(|n| n.at_ps)
        .filter(|_| gone);
    let of = |r: &&RequestRecord| r.arrival_ps <= until_ps && r.end_ps >= f.start_ps;
    let retried: std::collections::BTreeSet<u64> = s
        .retried
        .iter()
        .filter(|(at, part, _)| *at >= f.start_ps && concerns(*part))
        .map(|(_, _, id)| *id)
        .collect();
    let failed = s
        .records
        .iter()
        .filter(|r| retried.contains(&r.id) && matches!(r.outcome, Outcome::Failed(_)))
        .count() as u64;
    let within =
        |from: Ps, to: Ps| good.partition_point(|&t| t < to) - good.partition_point(|&t| t < from);
    let rate =
        |from: Ps, to: Ps| (to > from).then(|| within(from, to) as f64 / s_from_ps(to - from));
    let before = rate(f.start_ps.saturating_sub(WINDOW_PS), f.start_ps);
    let after_ps = recovered_ps.unwrap_or(until_ps).max(until_ps.min(s.end_ps));
    let back_to_95_s = before.filter(|b| *b > 0.0).and_then(|b| {
        let mut at = f.start_ps;
        while at + PS_PER_S <= s.end_ps {
            if within(at, at + PS_PER_S) as f64 >= 0.95 * b {
                return Some(s_from_ps(at - f.start_ps));
            }
            at += PS_PER_S / 10;
        }
        None
    });
    FaultReport {
        fault: f.text.clone(),
        parts: f.parts.len() as u64,
        injected_s: s_from_ps(f.start_ps),
        ended_s: f.end_ps.map(s_from_ps),
        noticed_s: noticed_ps.map(s_from_ps),
        recovered_s: recovered_ps.map(s_from_ps),
        experts_lost_s: experts_lost_ps.map(s_from_ps),
        requests: Touched {
            touched: s.records.iter().filter(of).count() as u64,
            retried: retried.len() as u64,
            failed,
        },
        goodput: AroundFault {
            before_per_s: before,
            during_per_s: rate(f.start_ps, until_ps),
            after_per_s: rate(after_ps, (after_ps + WINDOW_PS).min(s.end_ps)),
        },
        back_to_95_s,
    }
}

/// When the work of all that were found to be gone went on, without them or with them again; `None`: some of it did not.
fn at_work_again_ps(notes: &[&Note]) -> Option<Ps> {
    let mut gone: BTreeMap<u32, Option<Ps>> = BTreeMap::new();
    for n in notes {
        match n.kind {
            NoteKind::Noticed => {
                gone.entry(n.part).or_default();
            }
            NoteKind::Recovered => {
                if let Some(since) = gone.get_mut(&n.part) {
                    since.get_or_insert(n.at_ps);
                }
            }
            _ => {}
        }
    }
    let all: Option<Vec<Ps>> = gone.into_values().collect();
    all?.into_iter().max()
}

/// Lines for the table.
pub fn lines(faults: &[FaultReport]) -> String {
    let s = |x: Option<f64>| x.map_or("-".into(), |x| format!("{x:.3} s"));
    let r = |x: Option<f64>| x.map_or("-".into(), |x| format!("{x:.2}"));
    let mut text = String::new();
    for f in faults {
        text.push_str(&format!(
            "fault       {}\n            {} parts; noticed {}, recovered {}; {} requests touched, {} retried, {} failed; \
             goodput {} before, {} during, {} after; back to 95% after {}\n",
            f.fault,
            f.parts,
            s(f.noticed_s),
            s(f.recovered_s),
            f.requests.touched,
            f.requests.retried,
            f.requests.failed,
            r(f.goodput.before_per_s),
            r(f.goodput.during_per_s),
            r(f.goodput.after_per_s),
            s(f.back_to_95_s),
        ));
        if let Some(at_s) = f.experts_lost_s {
            text.push_str(&format!(
                "            at {at_s:.3} s too few dies of a decode group were left to hold every expert: it serves nobody until \
                 dies are back\n"
            ));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_over_when_the_last_part_is_at_work_again() {
        let note = |at_ps, part, kind| Note { at_ps, part, kind };
        let (gone, back) = (NoteKind::Noticed, NoteKind::Recovered);
        let notes = [
            note(1, 7, gone),
            note(2, 8, gone),
            note(3, 7, back),
            note(4, 7, gone),
            note(6, 9, back),
        ];
        let of = |n: &[Note]| at_work_again_ps(&n.iter().collect::<Vec<_>>());
        assert_eq!(of(&notes), None, "8 is still gone");
        let all = [&notes[..], &[note(5, 8, back), note(9, 8, back)]].concat();
        assert_eq!(of(&all), Some(5));
        assert_eq!(of(&[]), None);
    }
}
