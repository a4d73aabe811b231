//! Heartbeats between neighbours: whatever is lost is missed, also what nobody works with.

mod common;

use common::{few_layers, stdout_of};
use serde_json::Value;
use tempfile::tempdir;

/// The small scenario with prefill on node 0, decode on node 1 and nothing on nodes 2 and 3; all requests are over before
/// the losses, which come at 2 s.
fn lost_at_rest(lines: &[&str], more: &[&str]) -> Value {
    let dir = tempdir().unwrap();
    let (scenario, model) = few_layers(&dir);
    let mut args = vec!["run", &scenario, &model, "--set=workload.phase=both"];
    args.extend(["--requests=4", "--json", "-"]);
    let faults: Vec<String> = lines
        .iter()
        .map(|l| format!("--fault=at 2s: {l}"))
        .collect();
    args.extend(faults.iter().map(String::as_str));
    args.extend(more);
    let report: Value = serde_json::from_str(&stdout_of(&args)).unwrap();
    assert_eq!(report["requests"]["completed"], 4, "{report:#}");
    assert!(report["virtual_s"].as_f64().unwrap() < 2.0, "{report:#}");
    report
}

fn after_s(fault: &Value, key: &str) -> f64 {
    let at = fault[key].as_f64();
    at.unwrap_or_else(|| panic!("{key}: {fault:#}")) - 2.0
}

#[test]
fn a_part_is_missed_whatever_it_does() {
    // An idle die and CPU, a CPU of a node that serves, ranks of groups at rest and their roots, and nodes.
    for part in [
        "node2/npu3/die1",
        "node3/cpu1",
        "node1/cpu0",
        "node0/npu5/die0",
        "node0/npu0/die0",
        "node1/npu5/die0",
        "node1/npu0/die0",
        "node2",
        "node1/npu{0..3}/*",
    ] {
        for word in ["crash", "hang"] {
            let report = lost_at_rest(&[&format!("{word} {part}")], &[]);
            let noticed_s = after_s(&report["faults"][0], "noticed_s");
            // Three beats of 100 ms in a row, and what those ask whom that concerns.
            assert!(
                (0.2..0.5).contains(&noticed_s),
                "{word} {part}: {noticed_s} s"
            );
        }
    }
}

#[test]
fn what_was_lost_at_rest_is_at_work_again_without_it_or_with_it() {
    // Decode goes on without a die and without its root, clients of a CPU turn to others, prefill waits for its die.
    for (line, by_s) in [
        ("crash node1/npu5/die0", 0.5),
        ("crash node1/npu0/die0", 0.5),
        ("crash node2/npu3/die1", 0.5),
        ("crash node3/cpu1", 1.1),
        ("crash node0/npu5/die0 restart 1s", 10.0),
        ("crash node0/npu0/die0 restart 1s", 10.0),
    ] {
        let report = lost_at_rest(&[line], &[]);
        let recovered_s = after_s(&report["faults"][0], "recovered_s");
        assert!(recovered_s < by_s, "{line}: {recovered_s} s");
    }
}

#[test]
fn beats_are_as_often_as_the_scenario_says() {
    let noticed_s = |more: &[&str]| {
        let report = lost_at_rest(&["crash node2/npu3/die1"], more);
        after_s(&report["faults"][0], "noticed_s")
    };
    let often = noticed_s(&["--set=recovery.beat_ms=10"]);
    assert!((0.02..0.05).contains(&often), "{often} s");
    let patient = noticed_s(&["--set=recovery.beats_missed=9"]);
    assert!((0.8..1.1).contains(&patient), "{patient} s");
}

#[test]
fn a_part_that_hears_nobody_takes_itself_for_cut_off() {
    // All lanes of an idle die: its neighbour misses it, and it says of nobody that they are gone.
    let report = lost_at_rest(
        &["down node2/npu3/die1/ub*", "throttle node3/npu3/die1 x0.9"],
        &[],
    );
    assert!(after_s(&report["faults"][0], "noticed_s") < 0.5);
    assert!(report["faults"][1]["noticed_s"].is_null(), "{report:#}");
}

#[test]
fn a_machine_that_is_mostly_gone_ends() {
    // 60 of 80 parts: those that are left look past the others, ring by ring.
    let lines = ["crash node1", "crash node2", "crash node3"];
    let digest = |shards: &str| {
        let report = lost_at_rest(&lines, &["--shards", shards]);
        for fault in report["faults"].as_array().unwrap() {
            assert!(after_s(fault, "noticed_s") < 1.0, "{fault:#}");
        }
        report["digest"].clone()
    };
    let one = digest("1");
    assert_eq!(digest("2"), one);
    assert_eq!(digest("4"), one);
}
