//! What is lost, and what is not: groups that go on with fewer dies, requests that nobody can serve, and drills.

mod common;

use common::{SMALL, few_layers, file, refused, stdout_of};
use serde_json::Value;
use tempfile::tempdir;

/// Decode of 16 dies, two experts on each, that loses half of them for good.
fn half_lost(more: &[&str]) -> Value {
    let dir = tempdir().unwrap();
    let (scenario, model) = few_layers(&dir);
    let args = [
        &[
            "run",
            &scenario,
            &model,
            "--set=experts.shared_replicas=8",
            "--set=experts.balance=eplb",
            "--set=workload.requests=96",
            "--set=workload.output_tokens=400",
            "--fault=at 100ms: crash node0/npu{4..7}/*",
            "--json",
            "-",
        ],
        more,
    ]
    .concat();
    serde_json::from_str(&stdout_of(&args)).unwrap()
}

#[test]
fn half_of_a_decode_group_takes_up_the_experts_of_the_other() {
    let report = half_lost(&[]);
    assert_eq!(report["requests"]["completed"], 96, "{report:#}");
    let fault = &report["faults"][0];
    assert!(fault["recovered_s"].as_f64().unwrap() < 1.0, "{fault}");
    assert!(fault["experts_lost_s"].is_null(), "{fault}");
    assert!(
        fault["requests"]["retried"].as_u64().unwrap() > 0,
        "{fault}"
    );
}

#[test]
fn what_nobody_can_serve_fails_with_what_was_lost_and_asks_less_and_less() {
    let report = half_lost(&["--set=recovery.kv_for_experts=0"]);
    let requests = &report["requests"];
    let failed = requests["failed"].as_u64().unwrap();
    assert_eq!(requests["completed"].as_u64().unwrap() + failed, 96);
    assert!(failed >= 64, "{report:#}");
    for (why, _) in requests["failures"].as_object().unwrap() {
        assert!(why.contains("no decode die took it for 60 s"), "{why}");
        assert!(why.contains("being lost"), "{why}");
    }
    let fault = &report["faults"][0];
    assert!(fault["experts_lost_s"].as_f64().unwrap() > 0.1, "{fault}");
    // Once a second at most 16 dies and as many answers, after 6 rounds that come sooner.
    let control = report["messages"]["control"].as_u64().unwrap();
    assert!(control < failed * (60 + 6) * 40, "{control} messages");
}

#[test]
fn a_die_that_takes_up_experts_sends_back_what_it_has_no_memory_for() {
    // 32 places for experts are left, all but two of which are needed; 0.27 GB are for KV, of which most dies lose 0.26.
    let few = [
        "--set=experts.shared_replicas=2",
        "--set=recovery.kv_for_experts=1",
    ];
    let dir = tempdir().unwrap();
    let tight = "name = \"tight\"\nbase = \"mini4\"\n[die]\nhbm_gb = 2.153\n";
    let tight = format!("--set=machine={}", file(&dir, "tight.toml", tight));
    let control = |more: &[&str]| {
        let report = half_lost(&[&few, more].concat());
        assert_eq!(report["requests"]["completed"], 96, "{report:#}");
        assert!(report["faults"][0]["experts_lost_s"].is_null());
        report["messages"]["control"].as_u64().unwrap()
    };
    let (enough, little) = (control(&[]), control(&[&tight]));
    assert!(little > enough, "{little} messages, {enough} with memory");
}

#[test]
fn a_lost_root_of_prefill_is_noticed_by_who_asks_it() {
    let dir = tempdir().unwrap();
    let (scenario, model) = few_layers(&dir);
    let args = [
        "run",
        &scenario,
        &model,
        "--set=prefill.instances=2",
        "--set=prefill.npus_per_instance=4",
        "--set=workload.phase=both",
        "--set=workload.prompt_tokens=3000",
        "--requests=200",
        "--fault=at 20ms: crash node0/npu0/die0 restart 500ms",
        "--json",
        "-",
    ];
    let report: Value = serde_json::from_str(&stdout_of(&args)).unwrap();
    assert_eq!(report["requests"]["completed"], 200, "{report:#}");
    let fault = &report["faults"][0];
    let s = |key: &str| {
        fault[key]
            .as_f64()
            .unwrap_or_else(|| panic!("{key}: {fault}"))
    };
    assert!(s("noticed_s") > 0.02 && s("recovered_s") > 0.52, "{fault}");
}

#[test]
fn a_lost_port_is_noticed_by_what_is_not_acknowledged() {
    let dir = tempdir().unwrap();
    let (scenario, model) = few_layers(&dir);
    for fault in [
        "--fault=at 1ms: down node1/npu*/die*/rdma",
        "--fault=at 1ms: down node1/npu0/sio",
    ] {
        let args = [
            "run",
            &scenario,
            &model,
            "--set=workload.phase=both",
            "--requests=64",
            fault,
            "--json",
            "-",
        ];
        let report: Value = serde_json::from_str(&stdout_of(&args)).unwrap();
        assert_eq!(report["requests"]["completed"], 64, "{report:#}");
        let noticed_s = report["faults"][0]["noticed_s"].as_f64();
        assert!(noticed_s.is_some_and(|s| s < 0.1), "{report:#}");
    }
}

#[test]
fn drills_stand_beside_the_run_without_a_fault() {
    let dir = tempdir().unwrap();
    let scenario = file(&dir, "small.toml", SMALL);
    let plan = file(
        &dir,
        "slow-die.toml",
        "about = \"slow\"\nlines = [\"at 10ms: throttle node0/npu1/die0 x0.5\"]\n",
    );
    let line = "at 50ms: crash node0/npu7/die1 restart 1s";
    let args = ["fault", "drill", &plan, line, "--scenario", &scenario];
    let args = [&args[..], &["--requests", "40"]].concat();
    let table = stdout_of(&args);
    assert!(
        table.contains("slow-die") && table.contains(line),
        "{table}"
    );
    assert!(
        table.contains("neither complete nor with a reason: 0"),
        "{table}"
    );
    let json = stdout_of(&[&args[..], &["--json", "-"]].concat());
    let rows: Vec<Value> = serde_json::from_str(&json).unwrap();
    assert_eq!(rows.len(), 3);
    assert_eq!(rows[0]["name"], "none");
    assert!(rows[1]["tpot_p50_ms"].as_f64() > rows[0]["tpot_p50_ms"].as_f64());
    assert!(rows[2]["noticed_s"].as_f64().is_some() && rows[1]["noticed_s"].is_null());
    // The same figures as a run of its own.
    let alone = stdout_of(&[
        "run",
        &scenario,
        "--requests",
        "40",
        "--fault",
        line,
        "--json",
        "-",
    ]);
    let alone: Value = serde_json::from_str(&alone).unwrap();
    assert_eq!(alone["digest"], rows[2]["digest"]);
    let markdown = stdout_of(&[&args[..], &["--markdown"]].concat());
    assert_eq!(markdown.lines().count(), 5);
    let each = [
        "fault",
        "drill",
        "--each-part",
        "--scenario",
        &scenario,
        "--requests",
        "8",
        "--at",
        "5ms",
    ];
    let all = stdout_of(&[&each[..], &["--json", "-"]].concat());
    let rows: Vec<Value> = serde_json::from_str(&all).unwrap();
    for kind in [
        "decode first die",
        "idle node",
        "decode RDMA link",
        "L2 chip",
        "sub-plane",
    ] {
        assert!(rows.iter().any(|r| r["name"] == kind), "{kind}");
    }
    assert!(
        rows.iter()
            .all(|r| r["unaccounted"] == 0 && r["error"].is_null())
    );
}

#[test]
fn drills_that_cannot_be_are_refused_before_any_runs() {
    refused(&["fault", "drill", "at 1s: crash node99"], &["node99"]);
    refused(&["fault", "drill", "none.toml"], &["fault plan none.toml"]);
    refused(
        &[
            "fault",
            "drill",
            "at 1s: down plane1",
            "--set",
            "decode.instances=99",
        ],
        &["decode.instances"],
    );
}
