//! Step fidelity beside message fidelity: the same full-load decode of 320 dies with every activation routed, and with most
//! steps drawn from simulated ones. Difference of TPOT, mean and 99th percentile (2% are allowed), and what drawing saves.

#[path = "common/mod.rs"]
mod common;
#[path = "common/scenario.rs"]
mod scenario;

use common::{Row, quick};
use scenario::{prepared, run};

/// What the two may differ by, of the figure at message fidelity.
const TOLERANCE: f64 = 0.02;

/// Mean and 99th percentile of TPOT in ms, and the wall time in seconds.
fn tpot(keys: &[&str], level: &str) -> ([f64; 2], f64) {
    let level = format!("fidelity.level={level}");
    let keys: Vec<&str> = keys.iter().copied().chain([level.as_str()]).collect();
    let (report, wall_s) = run(prepared(&keys), 1);
    ([report.tpot_ms.mean, report.tpot_ms.p99], wall_s)
}

fn main() {
    // Two requests for each place, so that places are refilled; a short form has a machine of four nodes.
    let machine: &[&str] = if quick() {
        &[
            "machine=mini4",
            "decode.npus_per_instance=16",
            "workload.requests=3072",
            "workload.output_tokens=16",
        ]
    } else {
        &[
            "decode.npus_per_instance=160",
            "workload.requests=30720",
            "workload.output_tokens=64",
        ]
    };
    let mut keys = vec![
        "workload.kind=closed",
        "workload.phase=decode",
        "workload.concurrency_per_npu=96",
        "workload.prompt_tokens=4096",
    ];
    keys.extend(machine);
    let (routed, routed_s) = tpot(&keys, "message");
    let (drawn, drawn_s) = tpot(&keys, "step");
    let mut rows = vec![Row {
        what: "decode with most steps drawn".into(),
        value: drawn_s,
        unit: "s of wall time",
        against: vec![("message fidelity".into(), routed_s / drawn_s)],
    }];
    for (name, (routed, drawn)) in ["mean", "99th percentile"]
        .into_iter()
        .zip(routed.into_iter().zip(drawn))
    {
        rows.push(Row {
            what: format!("  TPOT, {name}"),
            value: drawn,
            unit: "ms",
            against: vec![("message fidelity".into(), drawn / routed)],
        });
        assert!(
            (drawn / routed - 1.0).abs() <= TOLERANCE,
            "TPOT, {name}: {drawn} ms drawn, {routed} ms at message fidelity"
        );
    }
    common::print("fidelity", &rows);
}
