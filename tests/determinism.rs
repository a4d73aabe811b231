//! The same scenario and seed give the same digest and the same report (wall times aside) on 1, 2 and 4 shards, at
//! both fidelities, on the full machine; another seed gives another digest.

mod common;

use common::{file, supernode, text};
use serde_json::Value;

/// What depends on the machine the simulator runs on, not on the one it simulates.
const WALL: [&str; 3] = ["wall_s", "events_per_s", "real_time_factor"];

fn report(args: &[&str]) -> Value {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let json = file(&dir, "report.json", "");
    let mut all = vec!["run", "--json", &json];
    all.extend(args);
    let out = supernode(&all);
    assert!(out.status.success(), "{args:?}: {}", text(&out.stderr));
    let mut report: Value =
        serde_json::from_slice(&std::fs::read(&json).expect("a report")).expect("JSON");
    let fields = report.as_object_mut().expect("an object");
    assert!(fields.contains_key(WALL[0]));
    for key in WALL {
        fields.remove(key);
    }
    report
}

/// Open-loop traffic with shared prefixes; small enough for a debug build at message level.
fn same_on_any_shards(fidelity: &str, requests: &str) {
    let run = |shards: &str, seed: &str| {
        let seed = format!("seed={seed}");
        report(&[
            "--fidelity",
            fidelity,
            "--requests",
            requests,
            "--shards",
            shards,
            "--set",
            &seed,
            "--set",
            "workload.kind=open",
            "--set",
            "workload.rate_per_s=200",
            "--set",
            "workload.prompt_tokens=300",
            "--set",
            "workload.output_tokens=3",
        ])
    };
    let one = run("1", "1");
    assert_eq!(run("2", "1"), one, "{fidelity}: two shards");
    assert_eq!(run("4", "1"), one, "{fidelity}: four shards");
    assert_eq!(one["requests"]["completed"], one["requests"]["offered"]);
    assert_ne!(
        run("2", "2")["digest"],
        one["digest"],
        "{fidelity}: another seed"
    );
}

#[test]
fn step_fidelity_does_not_depend_on_shards() {
    same_on_any_shards("step", "12");
}

#[test]
fn message_fidelity_does_not_depend_on_shards() {
    same_on_any_shards("message", "4");
}
