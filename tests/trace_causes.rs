//! Causes that were planted are found first: by the critical path of a step, and by the comparison of two runs.

mod common;

use common::traced::{DECODE, keep, sets, trace_of};
use common::{file, stdout_of};
use serde_json::Value;
use supernode::trace::ask::path::{StepSpans, roots};
use supernode_actors::time::Ps;
use tempfile::{TempDir, tempdir};

/// A loaded decode group in which something is wrong.
fn planted(dir: &TempDir, name: &str, more: &[&str]) -> String {
    let loaded = sets(DECODE);
    let mut args: Vec<&str> = loaded.iter().map(String::as_str).collect();
    args.extend(["--trace-requests", "0%"]);
    args.extend(more);
    keep(dir, name, &args)
}

/// What a step waited for most; the path is whole.
fn first_cause(run: &str, step: u64) -> Value {
    let trace = trace_of(run);
    let roots = roots(&trace);
    assert_eq!(roots.len(), 1);
    let spans = StepSpans::of(&trace, &roots, 0, step);
    assert_eq!(spans.ranks.len(), 16);
    let said = stdout_of(&["trace", "step", run, &step.to_string(), "--json"]);
    let found: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(found["broken"], Value::Null);
    let path_ps = found["path_ps"].as_u64().unwrap();
    let whole_ps = spans.whole.unwrap().ps();
    // Before the path begins, the root's word goes round; after it, the ranks' go back.
    assert!(path_ps <= whole_ps && path_ps * 100 > whole_ps * 97);
    let stages = found["stages_ps"].as_object().unwrap();
    let sum: Ps = stages.values().map(|v| v.as_u64().unwrap()).sum();
    assert_eq!(sum, path_ps);
    for c in found["causes"].as_array().unwrap().iter().take(3) {
        println!("{} {} {}", c["what"], c["excess_ps"], c["stage"]);
    }
    found["causes"][0].clone()
}

#[test]
fn a_throttled_die_is_found_first() {
    let dir = tempdir().unwrap();
    let fault = ["--fault", "at 1us: throttle node0/npu3/die1 x0.5"];
    let cause = first_cause(&planted(&dir, "run", &fault), 2);
    assert_eq!(cause["what"], "die node0/npu3/die1");
    assert_eq!(cause["faults"][0], "throttle x0.5 on node0/npu3/die1");
}

#[test]
fn a_slowed_lane_is_found_first() {
    let dir = tempdir().unwrap();
    // The step in which it strikes: after `recovery.lane_reweigh_ms` its die spreads its messages over the other lanes.
    for way in ["", " outbound", " inbound"] {
        let fault = format!("at 1us: slow node0/npu3/die1/ub2 x0.05{way}");
        let run = planted(&dir, "run", &["--fault", &fault]);
        let cause = first_cause(&run, 1);
        assert_eq!(cause["what"], "link node0/npu3/die1/ub{0..6}", "{way}");
        assert_eq!(cause["faults"][0], "slow x0.05 on node0/npu3/die1/ub2");
    }
}

#[test]
fn a_hot_expert_is_found_first() {
    let dir = tempdir().unwrap();
    // One expert gets a sixth of all tokens, and nobody balances.
    let loads: String = (0..58)
        .flat_map(|layer| (0..256).map(move |e| (layer, e)))
        .map(|(layer, e)| format!("{layer},{e},{}\n", if e == 100 { 50 } else { 1 }))
        .collect();
    let loads = file(&dir, "loads.csv", format!("layer,expert,load\n{loads}"));
    let load_file = format!("experts.load_file={loads}");
    let hot = ["--set", &load_file, "--set", "experts.balance=none"];
    let cause = first_cause(&planted(&dir, "run", &hot), 2);
    let what = cause["what"].as_str().unwrap();
    assert!(what.starts_with("expert 100 on node0/"), "{what}");
}

/// The part whose time changed most from one run to another, beyond what its kind did.
fn first_changed(a: &str, b: &str) -> Value {
    let diff = stdout_of(&["trace", "diff", a, b, "--json"]);
    let diff: Value = serde_json::from_str(&diff).unwrap();
    for c in diff["actors"].as_array().unwrap().iter().take(4) {
        println!("{c}");
    }
    diff["actors"][0].clone()
}

#[test]
fn a_diff_ranks_a_slowed_die_first() {
    let dir = tempdir().unwrap();
    let a = keep(&dir, "a", &[]);
    let fault = ["--fault", "at 1us: throttle node1/npu3/die1 x0.4"];
    let b = keep(&dir, "b", &fault);
    assert_eq!(first_changed(&a, &b)["actor"], "node1/npu3/die1");
    // A page of a run needs nothing else.
    let page = stdout_of(&["report", &a, "--html", "-"]);
    assert!(page.starts_with("<!doctype html>") && page.trim_end().ends_with("</html>"));
    for never in ["http://", "https://", "src=", "<link", "@import", "NaN"] {
        assert!(!page.contains(never), "{never}");
    }
    assert!(page.contains("node1/npu3/die1") && page.contains("timeline of decode step"));
    assert!(page.contains("L2 switches 3") && !page.contains("class=\"fault\""));
    // Faults are shaded where they were in force.
    let page = stdout_of(&["report", &b, "--html", "-"]);
    assert!(page.contains("class=\"fault\"") && page.contains("throttle node1/npu3/die1 x0.4"));
}

#[test]
fn a_diff_ranks_a_slowed_link_or_what_waits_for_it_first() {
    let dir = tempdir().unwrap();
    let (decode, open) = (
        sets(DECODE),
        sets(&["workload.requests=64", "fidelity.level=step"]),
    );
    // Lanes of a decode die, and the RDMA port of a prefill die, over which the KV of its prompts leaves.
    let cases = [
        ("node0/npu3/die1/ub*", &decode),
        ("node0/npu3/die1/rdma", &open),
    ];
    for (link, more) in cases {
        let a = planted_or_not(&dir, "a", more, None);
        let b = planted_or_not(&dir, "b", more, Some(link));
        let first = first_changed(&a, &b);
        let part = link.rsplit_once('/').unwrap().0;
        let actor = first["actor"].as_str().unwrap();
        assert!(actor.starts_with(part), "{link}: {first}");
    }
}

fn planted_or_not(dir: &TempDir, name: &str, more: &[String], slow: Option<&str>) -> String {
    let fault = slow.map(|link| format!("at 1us: slow {link} x0.2"));
    let mut args: Vec<&str> = more.iter().map(String::as_str).collect();
    args.extend(["--trace-requests", "0%"]);
    if let Some(fault) = &fault {
        args.extend(["--fault", fault]);
    }
    keep(dir, name, &args)
}
