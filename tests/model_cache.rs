//! Model caching: a cold start from object storage, a warm one from the pool, and a switch to another model.

mod common;

use common::{refused, stdout_of};
use serde_json::Value;

/// Two instances of 32 dies on four nodes, and a few prompts of 2,048 tokens a second.
const MACHINE: [&str; 9] = [
    "run",
    "-q",
    "--json=-",
    "--set=machine=mini4",
    "--set=prefill.instances=1",
    "--set=decode.npus_per_instance=16",
    "--set=workload.kind=open",
    "--set=workload.prompt_tokens=2048",
    "--set=workload.output_tokens=8",
];

fn report(more: &[&str]) -> Value {
    let args: Vec<&str> = MACHINE.iter().chain(more).copied().collect();
    serde_json::from_str(&stdout_of(&args)).unwrap()
}

fn warm(more: &[&str]) -> Value {
    let mut args = vec![
        "--set=model_cache.start=warm",
        "--set=workload.rate_per_s=20",
        "--requests=40",
    ];
    args.extend(more);
    report(&args)
}

/// Object storage of 50 GB/s, so that a load takes seconds, not minutes.
fn cold(more: &[&str]) -> Value {
    let mut args = vec![
        "--set=model_cache.start=cold",
        "--set=model_cache.object_store_gb_per_s=50",
        "--set=workload.rate_per_s=20",
        "--requests=40",
    ];
    args.extend(more);
    report(&args)
}

fn f(r: &Value, path: &str) -> f64 {
    r.pointer(path)
        .and_then(Value::as_f64)
        .unwrap_or_else(|| panic!("{path} of {r}"))
}

fn all_completed(r: &Value) {
    assert_eq!(r["requests"]["completed"], r["requests"]["offered"]);
    assert!(f(r, "/requests/completed") > 0.0);
}

#[test]
fn a_warm_start_reads_what_each_die_holds_from_the_pool_and_then_serves() {
    let r = warm(&[]);
    all_completed(&r);
    let start = "/model_load/start";
    assert_eq!(f(&r, &format!("{start}/dies")), 64.0);
    assert_eq!(f(&r, "/model_load/object_store_bytes"), 0.0);
    // What is read is what the report says that dies hold (the fullest of them; a few slots are empty).
    let of_die = |pool: &str| {
        ["attention", "dense", "experts", "head"]
            .iter()
            .map(|kind| f(&r, &format!("/memory/{pool}/{kind}_bytes")))
            .sum::<f64>()
    };
    let held = 32.0 * (of_die("prefill") + of_die("decode"));
    let read = f(&r, "/model_load/pool_read_bytes");
    assert!((0.95 * held..1.001 * held).contains(&read), "{read} {held}");
    // 16 CPUs give 151 GB/s each at the best; hashing leaves some with more than their share.
    let ready = f(&r, &format!("{start}/ready_s"));
    let least = read / (16.0 * 151e9);
    assert!((least..2.0 * least).contains(&ready), "{ready} {least}");
    // Nobody is served before, and the first who waited soon after.
    let first = f(&r, &format!("{start}/first_token_s"));
    assert!((ready..ready + 1.0).contains(&first), "{first} {ready}");
    // The pool holds the model once, beside the KV.
    assert_eq!(
        f(&r, "/model_load/dram_bytes"),
        f(&r, "/model_load/model_bytes")
    );
    assert!((680e9..690e9).contains(&f(&r, "/model_load/model_bytes")));
}

#[test]
fn the_vpc_plane_loads_slower_by_the_bandwidth_of_the_nodes() {
    let ub = f(&warm(&[]), "/model_load/start/ready_s");
    let vpc = warm(&["--set=cache.plane=vpc"]);
    let read = f(&vpc, "/model_load/pool_read_bytes");
    let (least, ready) = (read / (4.0 * 50e9), f(&vpc, "/model_load/start/ready_s"));
    assert!((least..2.0 * least).contains(&ready), "{ready} {least}");
    assert!(ready > 5.0 * ub, "{ready} {ub}");
}

#[test]
fn a_cold_start_takes_the_time_of_object_storage_and_fetches_each_block_once() {
    let shared = cold(&[]);
    all_completed(&shared);
    let model = f(&shared, "/model_load/model_bytes");
    assert_eq!(f(&shared, "/model_load/object_store_bytes"), model);
    assert_eq!(f(&shared, "/model_load/dram_bytes"), model);
    let ready = f(&shared, "/model_load/start/ready_s");
    let least = model / 50e9;
    assert!((least..1.15 * least).contains(&ready), "{ready} {least}");
    // Each instance for itself: twice the bytes, and twice the time.
    let own = cold(&["--set=model_cache.copies=instance"]);
    assert_eq!(f(&own, "/model_load/object_store_bytes"), 2.0 * model);
    assert_eq!(f(&own, "/model_load/dram_bytes"), 2.0 * model);
    let longer = f(&own, "/model_load/start/ready_s") / ready;
    assert!((1.8..2.1).contains(&longer), "{longer}");
}

#[test]
fn loads_are_the_same_on_any_shards_at_both_fidelities() {
    for start in ["warm", "cold"] {
        for level in ["message", "step"] {
            let level = format!("--set=fidelity.level={level}");
            let digests = ["1", "2", "4"].map(|shards| {
                let shards = format!("--shards={shards}");
                let more = [
                    level.as_str(),
                    &shards,
                    "--set=model_cache.switch_at_s=6",
                    "--set=workload.rate_per_s=5",
                    "--set=workload.output_tokens=3",
                ];
                let run = if start == "warm" { warm } else { cold };
                let r = run(&more);
                all_completed(&r);
                r["digest"].clone()
            });
            assert_eq!(digests[0], digests[1], "{start} {level}");
            assert_eq!(digests[0], digests[2], "{start} {level}");
        }
    }
}

#[test]
fn a_switch_lets_the_old_end_and_the_new_wait() {
    let switch = |more: &[&str]| {
        let mut args = vec![
            "--set=model_cache.switch_at_s=2",
            "--set=workload.rate_per_s=20",
            "--set=workload.output_tokens=40",
            "--set=workload.reuse_share=0.5",
            "--requests=80",
        ];
        args.extend(more);
        report(&args)
    };
    let r = switch(&[]);
    all_completed(&r);
    let load = f(&r, "/model_load/switch/load_s_max");
    let ready = f(&r, "/model_load/switch/ready_s");
    assert!(ready > load, "the old end first: {ready} {load}");
    let first = f(&r, "/model_load/switch/first_token_s");
    assert!(first > ready, "{first} {ready}");
    assert!(r["model_load"]["start"].is_null());
    // Whoever comes in the meantime waits about as long: far above what the others see.
    assert!(f(&r, "/ttft_ms/max") > 0.9e3 * ready, "{r}");
    // KV of the model before is of no use to the other: only the first half finds its prefix.
    let hits = f(&r, "/cache/hit_blocks") / f(&r, "/cache/lookup_blocks");
    assert!((0.15..0.35).contains(&hits), "{hits}");
    // From object storage it takes as long as that.
    let fetched = switch(&[
        "--set=model_cache.switch_from=cold",
        "--set=model_cache.object_store_gb_per_s=250",
    ]);
    all_completed(&fetched);
    let longer = f(&fetched, "/model_load/switch/ready_s") - ready;
    assert!(longer > 1.0, "{longer}");
}

/// Arrival and end in seconds, and outcome, of each request of a run.
fn requests(more: &[&str]) -> Vec<(f64, f64, String)> {
    let dir = tempfile::tempdir().unwrap();
    let out = format!("--out={}", dir.path().join("out").display());
    let mut args = vec![out.as_str()];
    args.extend(more);
    report(&args);
    let table = std::fs::read_to_string(dir.path().join("out/requests.csv")).unwrap();
    let mut lines = table.lines();
    let header: Vec<&str> = lines.next().unwrap().split(',').collect();
    let of = ["arrival_ps", "end_ps", "outcome"]
        .map(|name| header.iter().position(|h| *h == name).unwrap());
    let row = |line: &str| {
        let cells: Vec<&str> = line.split(',').collect();
        let [arrival, end, outcome] = of.map(|i| cells[i]);
        let s = |ps: &str| ps.parse::<f64>().unwrap() * 1e-12;
        (s(arrival), s(end), outcome.to_string())
    };
    lines.map(row).collect()
}

#[test]
fn what_has_not_drained_in_time_fails_with_the_reason() {
    let slow = [
        "--set=model_cache.switch_at_s=2",
        "--set=model_cache.drain_s=0.05",
        "--set=workload.rate_per_s=20",
        "--set=workload.output_tokens=200",
        "--requests=80",
    ];
    let r = report(&slow);
    let why = r["requests"]["failures"].as_object().unwrap();
    assert_eq!(why.len(), 1, "{why:?}");
    assert!(
        why.keys().all(|w| w.contains("model_cache.drain_s")),
        "{why:?}"
    );
    // Those, and only those, that came before the switch and had not ended by then.
    let all = requests(&slow);
    let failed = all.iter().filter(|r| r.2 != "completed");
    assert_eq!(failed.clone().count() as f64, f(&r, "/requests/failed"));
    assert!(failed.clone().count() > 5);
    for (arrival_s, end_s, outcome) in &all {
        let in_time = *arrival_s >= 2.0 || *end_s < 2.05;
        assert_eq!(outcome == "completed", in_time, "{arrival_s} {end_s}");
    }
}

#[test]
fn what_comes_back_after_the_time_to_drain_fails_with_the_reason() {
    // Clients of a CPU that is lost before the switch turn to another after a second: the model that their requests are for
    // is gone by then. Those of other CPUs end in time.
    for restart in ["", " restart 1s"] {
        let fault = format!("at 1.9s: crash node1/cpu2{restart}");
        let lost = [
            "--fault",
            fault.as_str(),
            "--set=model_cache.switch_at_s=2",
            "--set=model_cache.drain_s=0.5",
            "--set=workload.rate_per_s=200",
            "--set=workload.output_tokens=8",
            "--requests=800",
        ];
        let r = report(&lost);
        let why = r["requests"]["failures"].as_object().unwrap();
        let drained = |w: &&String| w.contains("model_cache.drain_s");
        assert!(why.keys().any(|w| drained(&w)), "{why:?}");
        let all = requests(&lost);
        let late: Vec<_> = all.iter().filter(|r| r.0 < 2.0 && r.1 > 2.6).collect();
        assert!(!late.is_empty(), "nobody came back: {fault}");
        for (arrival_s, end_s, outcome) in late {
            let failed = outcome.contains("model_cache.drain_s");
            assert!(failed, "{arrival_s} {end_s} {outcome}");
        }
    }
}

#[test]
fn the_end_of_the_time_to_drain_takes_none_of_the_other_model() {
    // 7 s after the start some of those that came after the switch are being served, and with a model from object storage
    // (14 s) all of them wait for it at their prefill groups.
    for from in ["warm", "cold"] {
        let from = format!("--set=model_cache.switch_from={from}");
        let r = report(&[
            &from,
            "--set=model_cache.switch_at_s=2",
            "--set=model_cache.drain_s=5",
            "--set=model_cache.object_store_gb_per_s=50",
            "--set=workload.rate_per_s=20",
            "--set=workload.output_tokens=100",
            "--requests=160",
        ]);
        all_completed(&r);
        assert!(f(&r, "/virtual_s") > 7.0, "{from}: {r}");
    }
}

#[test]
fn weights_take_their_place_in_the_pool() {
    // 171 GB of weights in each of four nodes, 56 GB in the fullest CPU: of 57.5 GB there is little left for KV.
    let evicted = |more: &[&str]| {
        let mut args = vec![
            "--set=cache.dram_gb_per_node=230",
            "--set=workload.prompt_tokens=65536",
        ];
        args.extend(more);
        f(&warm(&args), "/cache/evicted_blocks")
    };
    let with = evicted(&[]);
    let without = evicted(&["--set=model_cache.start=resident"]);
    assert!(with > without, "{with} {without}");
    let said = refused(
        &[
            "run",
            "--set=machine=mini4",
            "--set=prefill.instances=1",
            "--set=decode.npus_per_instance=16",
            "--set=model_cache.start=warm",
            "--set=cache.dram_gb_per_node=100",
        ],
        &["cache.dram_gb_per_node = 100", "685.3 GB of weights"],
    );
    assert!(!said.contains("panic"));
}

#[test]
fn bad_settings_are_refused() {
    for (set, expected) in [
        ("model_cache.block_mb=0", "model_cache.block_mb"),
        ("model_cache.start=lukewarm", "model_cache.start"),
        (
            "model_cache.switch_from=resident",
            "holds the weights of one",
        ),
        (
            "model_cache.object_store_gb_per_s=0",
            "model_cache.object_store_gb_per_s",
        ),
    ] {
        refused(&["run", "--set", set], &[expected]);
    }
    let off = "--set=cache.enabled=false";
    refused(
        &["run", off, "--set=model_cache.start=warm"],
        &["cache.enabled"],
    );
    refused(
        &[
            "run",
            "--set=model_cache.switch_at_s=3",
            "--set=experts.eplb_interval_s=1",
        ],
        &["eplb_interval_s"],
    );
}

#[test]
fn a_load_survives_the_loss_of_a_cpu_and_of_a_die() {
    for fault in [
        "at 0.2s: crash node1/cpu2",
        "at 0.2s: crash node1/cpu2 restart 1s",
        "at 0.2s: crash node3/npu2/die1 restart 1s",
        "at 0.2s: crash node0/npu1/die0 restart 1s",
        "at 0.2s: crash node2/npu0/die0 restart 1s",
        "at 0.2s: crash node3/npu2/die1",
        "from 0.1s for 1s: down node0/cpu1/*",
    ] {
        for run in [warm, cold] {
            let r = run(&["--fault", fault]);
            let ended = f(&r, "/requests/completed") + f(&r, "/requests/failed");
            assert_eq!(ended, 40.0, "{fault}");
            assert!(
                f(&r, "/requests/completed") > 30.0,
                "{fault}: {}",
                r["requests"]
            );
        }
    }
}
