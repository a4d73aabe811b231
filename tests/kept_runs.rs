//! A run that is kept in a directory can be asked about later: every actor's figures, and clear words for a directory
//! that is not one.

mod common;

use common::{file, refused, stdout_of, supernode, text};
use serde_json::Value;
use tempfile::{TempDir, tempdir};

/// A small machine, a few requests, every message routed.
const SMALL: &[&str] = &[
    "--set",
    "machine=mini4",
    "--set",
    "prefill.instances=1",
    "--set",
    "prefill.npus_per_instance=8",
    // Small batches need small buffers: the weights of so few dies leave little room.
    "--set",
    "prefill.batch_tokens_per_npu=1024",
    "--set",
    "prefill.redundant=0",
    "--set",
    "prefill.shared_replicas=0",
    "--set",
    "decode.npus_per_instance=8",
    "--set",
    "experts.redundant=0",
    "--set",
    "experts.shared_replicas=0",
    "--fidelity",
    "message",
    "--set",
    "workload.kind=open",
    "--set",
    "workload.rate_per_s=300",
    "--set",
    "workload.prompt_tokens=1500",
    "--set",
    "workload.output_tokens=4",
    "--requests",
    "6",
];

fn keep(dir: &TempDir, name: &str, more: &[&str]) -> String {
    let out = dir.path().join(name).display().to_string();
    let mut args = vec!["run", "-q", "--out", &out];
    args.extend(SMALL);
    args.extend(more);
    let ran = supernode(&args);
    assert!(ran.status.success(), "{}", text(&ran.stderr));
    out
}

fn read(dir: &str, name: &str) -> String {
    std::fs::read_to_string(format!("{dir}/{name}")).expect("a file of the run")
}

#[test]
fn a_kept_run_tells_of_every_actor() {
    let dir = tempdir().unwrap();
    let out = keep(&dir, "run", &[]);
    let report: Value = serde_json::from_str(&read(&out, "report.json")).unwrap();
    assert_eq!(report["digest"], read(&out, "digest").trim_end());
    // The scenario is whole: running it again is the same run.
    let again = dir.path().join("again.json").display().to_string();
    let scenario = format!("{out}/scenario.toml");
    stdout_of(&["run", "-q", &scenario, "--json", &again]);
    let again: Value = serde_json::from_str(&std::fs::read_to_string(again).unwrap()).unwrap();
    assert_eq!(again["digest"], report["digest"]);

    let lines: Value =
        serde_json::from_str(&stdout_of(&["trace", "actors", &out, "--json"])).unwrap();
    let lines = lines.as_array().unwrap();
    // Every byte of a link class is some actor's.
    for class in ["die_lane", "rdma", "sio", "cpu_lane"] {
        let sum: u64 = lines
            .iter()
            .filter(|l| l["kind"] == class)
            .map(|l| l["bytes"].as_u64().unwrap() * l["actors"].as_u64().unwrap())
            .sum();
        let reported = report["links"][class]["bytes"].as_u64().unwrap();
        // Equal shares are rounded down, a byte a lane at most.
        assert!(
            sum <= reported && reported - sum < 10_000,
            "{class}: {sum} of {reported}"
        );
        assert!(reported > 0);
    }
    let p99 = |l: &Value| l["queue_us_p99"].as_f64().unwrap();
    assert!(lines.is_sorted_by(|a, b| p99(a) >= p99(b)));
    // One lane of seven is found by its own address.
    let lane = stdout_of(&[
        "trace",
        "actors",
        &out,
        "--match",
        "node1/npu0/die0/ub3",
        "--csv",
    ]);
    assert!(lane.lines().count() >= 2, "{lane}");
    assert!(
        lane.lines()
            .skip(1)
            .all(|l| l.starts_with("node1/npu0/die0/ub3,die_lane,"))
    );
    refused(
        &["trace", "actors", &out, "--match", "node99"],
        &["--match", "node99"],
    );
    // The same again may take its place.
    keep(&dir, "run", &[]);
}

/// Runs that differ in what they were asked for are compared all the same, and it is said in what they differ.
#[test]
fn a_diff_names_the_settings_that_differ() {
    let dir = tempdir().unwrap();
    let a = keep(&dir, "a", &[]);
    let b = keep(
        &dir,
        "b",
        &["--set", "machine=half", "--set", "workload.output_tokens=5"],
    );
    let said = stdout_of(&["trace", "diff", &a, &b]);
    let lines: Vec<Vec<&str>> = said
        .lines()
        .map(|l| l.split_whitespace().collect())
        .collect();
    assert!(
        lines[0].starts_with(&["settings", "that", "differ"]),
        "{said}"
    );
    for line in [
        ["machine", "mini4", "half"],
        ["workload.output_tokens", "4", "5"],
        ["machine.counts.nodes", "4", "24"],
    ] {
        assert!(lines.contains(&line.to_vec()), "{line:?} is not in {said}");
    }
    let same = stdout_of(&["trace", "diff", &a, &a]);
    assert!(!same.contains("settings that differ"), "{same}");
}

#[test]
fn what_is_no_run_is_told_so() {
    let dir = tempdir().unwrap();
    let path = dir.path().display().to_string();
    let ask = |path: &str, expected: &[&str]| {
        refused(&["trace", "actors", path], expected);
    };
    ask("nowhere", &["nowhere", "supernode run --out"]);
    ask(&path, &["no run.json"]);
    file(&dir, "run.json", "{\"format\": 1}");
    ask(&path, &["run.json", "another format"]);
    file(&dir, "run.json", "not even json");
    ask(&path, &["run.json is not of a run"]);
    file(
        &dir,
        "run.json",
        "{\"format\": \"supernode run\", \"version\": 99, \"program\": \"7.0\"}",
    );
    ask(&path, &["version 99", "Supernode 7.0", "reads version 2"]);
    file(&dir, "notes.txt", "mine");
    std::fs::remove_file(dir.path().join("run.json")).unwrap();
    refused(&["run", "--out", &path], &["--out", "not of a run"]);
    let notes = format!("{path}/notes.txt");
    refused(&["run", "--out", &notes], &["--out", "is a file"]);
}
