//! Balance of experts over dies: what it is worth, what drift takes from it, and what plans made while the machine
//! serves give back.

mod common;

use common::{refused, stdout_of};

/// 16 NPUs (32 dies, ten experts each) that decode at 32 requests a NPU, message by message, for some 1.2 s.
fn report(more: &[&str]) -> serde_json::Value {
    let mut args = vec![
        "run",
        "-q",
        "--json=-",
        "--set=machine=mini4",
        "--set=decode.npus_per_instance=16",
        "--set=workload.kind=closed",
        "--set=workload.phase=decode",
        "--set=workload.concurrency_per_npu=32",
        "--set=workload.prompt_tokens=1024",
        "--set=workload.output_tokens=40",
        "--set=fidelity.level=message",
        "--set=workload.requests=512",
        "--set=experts.skew=1.07",
    ];
    // The last of two values for one key counts.
    args.extend(more);
    serde_json::from_str(&stdout_of(&args)).unwrap()
}

fn tpot_ms(r: &serde_json::Value) -> f64 {
    r["tpot_ms"]["mean"].as_f64().unwrap()
}

#[test]
fn the_better_the_balance_the_shorter_the_steps() {
    let [none, late, eplb, perfect] = [
        &["--set=experts.balance=none"][..],
        // A plan made from the choices of 100 tokens.
        &["--set=experts.plan_tokens=100"],
        &[],
        &["--set=experts.balance=perfect"],
    ]
    .map(|more| tpot_ms(&report(more)));
    assert!(none > 1.05 * late, "{none} {late}");
    assert!(late > eplb, "{late} {eplb}");
    assert!(eplb >= 0.999 * perfect, "{eplb} {perfect}");
}

#[test]
fn new_plans_win_back_what_drift_takes() {
    // 64 dies with full batches for some 4 s, most steps drawn; a new plan a second.
    let long = |more: &[&str]| {
        let mut args = vec![
            "--set=decode.npus_per_instance=32",
            "--set=workload.concurrency_per_npu=96",
            "--set=workload.prompt_tokens=512",
            "--set=workload.output_tokens=100",
            "--set=fidelity.level=step",
            "--set=workload.requests=3072",
            "--set=experts.drift_s=1",
        ];
        args.extend(more);
        report(&args)
    };
    let perfect = tpot_ms(&long(&["--set=experts.balance=perfect"]));
    let once = long(&[]);
    let again = long(&["--set=experts.eplb_interval_s=1"]);
    let (worst, between) = (tpot_ms(&once), tpot_ms(&again));
    assert!(worst > 1.15 * perfect, "drift costs: {worst} {perfect}");
    assert!(between < 0.95 * worst, "new plans help: {between} {worst}");
    assert!(between > perfect, "{between} {perfect}");
    // What moved shows: whole experts of 44 MB.
    let moved = again["experts"]["moved_bytes"].as_u64().unwrap();
    assert!(again["experts"]["plans"].as_u64().unwrap() >= 2);
    assert!(moved > 0 && moved.is_multiple_of(3 * 7_168 * 2_048));
    assert_eq!(once["experts"]["moved_bytes"], 0);
}

#[test]
fn rebalancing_is_the_same_on_any_shards_and_fidelity_sees_it() {
    let more = [
        "--set=experts.drift_s=0.1",
        "--set=experts.eplb_interval_s=0.1",
        "--set=workload.output_tokens=16",
    ];
    for level in ["message", "step"] {
        let level = format!("--set=fidelity.level={level}");
        let runs = ["1", "2", "4"].map(|shards| {
            let mut args = more.to_vec();
            let shards = format!("--shards={shards}");
            args.extend([level.as_str(), shards.as_str()]);
            report(&args)
        });
        assert!(runs[0]["experts"]["plans"].as_u64().unwrap() > 0, "{level}");
        assert_eq!(runs[0]["digest"], runs[1]["digest"], "{level}");
        assert_eq!(runs[0]["digest"], runs[2]["digest"], "{level}");
    }
}

#[test]
fn intervals_without_eplb_are_refused() {
    refused(
        &[
            "run",
            "--set=experts.balance=none",
            "--set=experts.eplb_interval_s=5",
        ],
        &["experts.eplb_interval_s = 5", "experts.balance = \"eplb\""],
    );
}
