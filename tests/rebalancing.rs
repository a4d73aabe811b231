//! Balance of experts over dies: what it is worth, what drift takes from it, and what plans made while the machine
//! serves give back.

mod common;

use common::traced::trace_of;
use common::{file, refused, stdout_of};
use supernode::trace::events::Key;
use supernode_actors::trace::{Stage, What};

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

/// `decode.microbatch = "auto"` goes by what was counted: while a plan no longer fits the load, one microbatch is faster, and
/// where it does, two.
#[test]
fn microbatches_follow_the_counted_load() {
    let tpot = |interval_s: f64, more: &[&str]| {
        let interval = format!("--set=experts.eplb_interval_s={interval_s}");
        let mut args = vec![
            "--set=decode.npus_per_instance=32",
            "--set=workload.concurrency_per_npu=96",
            "--set=workload.prompt_tokens=4096",
            "--set=fidelity.level=step",
            "--set=workload.requests=3072",
            "--set=experts.skew=0.57",
            interval.as_str(),
        ];
        args.extend(more);
        tpot_ms(&report(&args))
    };
    let drift = [
        "--set=experts.drift_s=0.25",
        "--set=workload.output_tokens=50",
    ];
    let auto = tpot(0.25, &drift);
    let two = tpot(
        0.25,
        &[&drift[..], &["--set=decode.microbatch=true"]].concat(),
    );
    assert!(auto < 0.985 * two, "{auto} {two}");
    let auto = tpot(0.5, &[]);
    let one = tpot(0.5, &["--set=decode.microbatch=false"]);
    assert!(auto < 0.985 * one, "{auto} {one}");
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
        let plans = &runs[0]["experts"]["plans_made"];
        assert!(plans.as_u64().unwrap() > 0, "{level}");
        assert_eq!(runs[0]["digest"], runs[1]["digest"], "{level}");
        assert_eq!(runs[0]["digest"], runs[2]["digest"], "{level}");
    }
}

/// What a plan costs is there from when it is made; that it came into force is only said when it did, in all layers.
#[test]
fn plans_that_never_came_into_force_are_told_apart() {
    let with = |plan_ms: &str| {
        let plan_ms = format!("--set=experts.eplb_plan_ms={plan_ms}");
        let r = report(&[
            "--set=experts.drift_s=0.1",
            "--set=experts.eplb_interval_s=0.1",
            plan_ms.as_str(),
        ]);
        let count = |key: &str| r["experts"][key].as_u64().unwrap();
        (count("plans_made"), count("plans"), count("moved_bytes"))
    };
    let (made, in_force, _) = with("5");
    assert!(made >= in_force && in_force > 0, "{in_force} of {made}");
    // 400 s, for a run of little more than one.
    let (made, in_force, moved) = with("4e5");
    assert_eq!((made, in_force), (1, 0));
    assert!(moved > 0);
}

#[test]
fn what_plans_cost_and_how_far_load_drifts_can_be_set() {
    let with = |set: &str| {
        let set = format!("--set=experts.{set}");
        report(&[
            "--set=experts.drift_s=0.1",
            "--set=experts.eplb_interval_s=0.1",
            "--set=workload.output_tokens=16",
            set.as_str(),
        ])
    };
    let count = |r: &serde_json::Value, key: &str| r["experts"][key].as_u64().unwrap();
    let plain = with("redundant=32");
    assert!(count(&plain, "plans_made") > 0 && count(&plain, "moved_bytes") > 0);
    // A plan that must bring more than any can.
    assert_eq!(count(&with("eplb_gain_min=100"), "plans_made"), 0);
    // The more it drifts, the worse a plan fits.
    let uneven = |correlation: f64| {
        let r = with(&format!("drift_correlation={correlation}"));
        r["experts"]["load_max_over_mean"].as_f64().unwrap()
    };
    let [new, drifted, stays] = [0.0, 0.99, 1.0].map(uneven);
    assert!(new > 1.1 * drifted, "{new} {drifted}");
    assert!(drifted > 1.02 * stays, "{drifted} {stays}");
    // Smaller pieces are more messages, and what a die holds beside its weights is part of its memory.
    let pieces = with("eplb_chunk_mb=1");
    let control = |r: &serde_json::Value| r["messages"]["control"].as_u64().unwrap();
    assert!(control(&pieces) > control(&plain));
    let staged = |r: &serde_json::Value| r["memory"]["decode"]["staging_bytes"].as_f64().unwrap();
    let half = with("eplb_layers_at_once=4");
    assert_eq!(2.0 * staged(&half), staged(&plain));
    // Plans come sooner, and what is counted and planned is of another size on the wire.
    for set in [
        "eplb_plan_ms=5",
        "eplb_plan_bytes_per_slot=512",
        "eplb_load_bytes_per_slot=512",
    ] {
        assert_ne!(with(set)["digest"], plain["digest"], "{set}");
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
    for key in ["experts.eplb_interval_s", "experts.drift_s"] {
        // So often that a run would do nothing else.
        let set = format!("--set={key}=1e-9");
        refused(
            &["run", &set],
            &[key, "expected 0 (never) or a number from 0.01"],
        );
    }
}

/// A model of so few experts that each has a die of its own, the four most loaded two or more.
const FEW_EXPERTS: &str = "\
name = \"few\"\nlayers = 3\ndense_layers = 1\nhidden = 7168\nheads = 128\nq_lora_rank = 1536\nkv_lora_rank = 512\n\
qk_nope_head_dim = 128\nqk_rope_head_dim = 64\nv_head_dim = 128\ndense_intermediate = 18432\n\
moe_intermediate = 2048\nrouted_experts = 12\nshared_experts = 0\ntop_k = 2\nexpert_groups = 4\ntop_groups = 4\n\
vocab = 129280\nmtp_layers = 1\nmax_context = 131072\n";

#[test]
fn traces_name_the_experts_of_the_plan_in_force() {
    let dir = tempfile::tempdir().unwrap();
    let model = file(&dir, "model.toml", FEW_EXPERTS);
    let model = format!("--set=model={model}");
    let out = dir.path().join("out").display().to_string();
    // A plan made from a few tokens, soon followed by one that knows better; what tokens choose stays the same.
    let r = report(&[
        &model,
        "--set=decode.npus_per_instance=8",
        "--set=experts.redundant=4",
        "--set=experts.plan_tokens=4",
        "--set=experts.eplb_interval_s=0.05",
        "--set=workload.concurrency_per_npu=96",
        "--set=workload.requests=768",
        "--set=workload.output_tokens=60",
        "--trace-requests=0%",
        "--out",
        &out,
    ]);
    assert!(r["experts"]["moved_bytes"].as_u64().unwrap() > 0, "{r:#}");
    let trace = trace_of(&out);
    let spans: Vec<_> = trace
        .slices
        .iter()
        .filter(|s| s.what == What::Stage(Stage::Experts) && s.notes.uint(Key::Expert).is_some())
        .collect();
    let steps = spans.iter().map(|s| s.notes.count(Key::Run)).max().unwrap();
    // One expert a die: over all dies, each expert's share of a layer's tokens.
    let shares = |layer: u64, from: u64, to: u64| {
        let mut tokens = [0u64; 12];
        let mut dies: [std::collections::BTreeSet<u32>; 12] = Default::default();
        for s in &spans {
            if s.notes.count(Key::Layer) == layer && (from..to).contains(&s.notes.count(Key::Run)) {
                let expert = s.notes.count(Key::Expert) as usize;
                tokens[expert] += s.notes.count(Key::ExpertTokens);
                dies[expert].insert(s.track);
            }
        }
        let all: u64 = tokens.iter().sum();
        (tokens.map(|n| n as f64 / all as f64), dies)
    };
    let mut moved = 0;
    for layer in [1, 2] {
        let (before, was) = shares(layer, 1, 11);
        let (after, is) = shares(layer, steps - 10, steps);
        moved += was.iter().zip(&is).filter(|(a, b)| a != b).count();
        for (e, (a, b)) in before.into_iter().zip(after).enumerate() {
            assert!(
                (a - b).abs() < 0.01 + 0.05 * a,
                "layer {layer}, expert {e}: {a:.3} of the tokens before, {b:.3} after"
            );
        }
    }
    assert!(moved >= 4, "experts changed places: {moved}");
}
