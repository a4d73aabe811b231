//! What people read: help texts, tables, and the keys of the JSON report.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::stdout_of;
use supernode::report::{Inputs, Offered, Report};
use supernode::scenario::{Loader, PhaseSpec, Scenario, Slo};
use supernode::sweep::{self, Chosen, DEFAULT_FIGURES, Grid};
use supernode::workload::Source;
use supernode_actors::launch::Ended;
use supernode_actors::request::{Outcome, RequestRecord};
use supernode_actors::stats::{
    CacheCounts, FidelityStats, LinkClassStats, MessageCounts, PoolStats, RunStats, StageTimes,
};

const MS: u64 = 1_000_000_000;

/// A made-up run of 100 requests over 10 s: request i waits 10 i ms for its first token, then makes
/// 11 tokens 40 ms apart (one of them a single token; the last one fails).
fn stats() -> (RunStats, Vec<Offered>) {
    let mut s = RunStats {
        digest: 0x00c0_ffee,
        events: 1_234_567,
        end_ps: 12_000 * MS,
        offered: 100,
        ..RunStats::default()
    };
    let mut offered = Vec::new();
    for id in 0..100u64 {
        let arrival_ps = id * 100 * MS;
        let output_tokens = if id == 50 { 1 } else { 11 };
        let first_token_ps = arrival_ps + id * 10 * MS;
        offered.push(Offered {
            arrival_ps,
            prompt_tokens: 1_000,
            output_tokens,
        });
        let failed = id == 99;
        s.records.push(RequestRecord {
            prefill_start_ps: 0,
            id,
            home: 0,
            arrival_ps,
            first_token_ps: if failed { 0 } else { first_token_ps },
            end_ps: first_token_ps + u64::from(output_tokens - 1) * 40 * MS,
            prompt_tokens: 1_000,
            cached_tokens: 512,
            output_tokens: if failed { 0 } else { output_tokens },
            retries: 0,
            outcome: if failed {
                Outcome::Failed("node3/npu1/die0 crashed".into())
            } else {
                Outcome::Completed
            },
        });
    }
    s.itl.record_n(40 * MS, 980);
    s.messages = MessageCounts {
        activation: 9_000_000,
        activation_messages: 1_200_000,
        kv_block: 5_000,
        weight_block: 0,
        tokens: 1_079,
        control: 44_000,
    };
    s.cache = CacheCounts {
        lookup_blocks: 200,
        hit_blocks: 100,
        hit_tokens: 51_200,
        prompt_tokens: 100_000,
        read_bytes: 3_600_000_000,
        write_bytes: 3_700_000_000,
        dram_bytes_peak: 3_700_000_000,
        ..CacheCounts::default()
    };
    s.prefill = PoolStats {
        npus: 96,
        ep_degree: 32,
        experts_per_die: 10,
        tokens: 48_800,
        span_ps: 10_000 * MS,
        steps: 50,
        busy_ps: 5_000 * MS,
        batch_sum: 100,
    };
    s.decode = PoolStats {
        npus: 160,
        ep_degree: 320,
        experts_per_die: 1,
        tokens: 1_079,
        span_ps: 12_000 * MS,
        steps: 300,
        busy_ps: 12_000 * MS,
        batch_sum: 1_200,
    };
    let mut stages = StageTimes::default();
    stages.add("attention", 58_000_000_000, 100);
    stages.add("dispatch", 15_200_000_000, 100);
    s.decode_layer = stages.clone();
    s.prefill_layer = stages;
    let mut link = LinkClassStats {
        class: "die_lane".into(),
        links: 5_376,
        bytes: 123_456_789_012,
        messages: 1_300_000,
        busy_ps_sum: 5_376 * 2 * 120 * u128::from(MS),
        busy_ps_max: 600 * MS,
        ..LinkClassStats::default()
    };
    link.queue.record_n(3_000_000, 100);
    s.links = vec![link];
    s.expert_load_max_over_mean = 1.42;
    s.fidelity = FidelityStats {
        message_steps: 6,
        step_steps: 294,
        rechecked_steps: 2,
        drawn_ps: 80_400 * MS,
        simulated_ps: 80_000 * MS,
        abs_error_ps: 800 * MS,
    };
    (s, offered)
}

fn report() -> Report {
    let (stats, offered) = stats();
    Report::new(&Inputs {
        stats: &stats,
        ended: Ended::Quiet,
        seed: 1,
        machine: "cloudmatrix384",
        model: "deepseek-r1",
        slo: &Slo {
            ttft_ms: 500.0,
            tpot_ms: 50.0,
        },
        source: &Source {
            name: "made-up.jsonl".into(),
            kind: "trace",
            format: "mooncake",
            phase: PhaseSpec::Both,
        },
        offered: &offered,
        concurrency: None,
        notes: &["arrival times of made-up.jsonl are rounded to 3 s".to_string()],
        faults: Vec::new(),
        prefill_instances: 1,
        decode_instances: 1,
        int8_tops_per_npu: 1_504.0,
        wall_s: 2.5,
    })
}

#[test]
fn the_figures_of_a_report_follow_from_what_was_measured() {
    let r = report();
    assert_eq!(r.digest, "0000000000c0ffee");
    assert_eq!((r.requests.completed, r.requests.failed), (99, 1));
    // TTFT 0 to 980 ms in steps of 10 over 99 requests: ranks 50, 90 and 99 of them.
    assert_eq!(
        (
            r.ttft_ms.mean,
            r.ttft_ms.p50,
            r.ttft_ms.p90,
            r.ttft_ms.p99,
            r.ttft_ms.max
        ),
        (490.0, 490.0, 890.0, 980.0, 980.0)
    );
    assert_eq!((r.tpot_ms.p50, r.tpot_ms.max), (40.0, 40.0));
    assert_eq!(r.e2e_ms.max, 980.0 + 400.0);
    // TTFT within 500 ms: requests 0 to 50, the single token of request 50 among them.
    assert_eq!(
        (r.goodput.share, r.goodput.requests_per_s),
        (0.51, 51.0 / 12.0)
    );
    // 48,800 tokens in 10 s on 96 NPUs.
    assert!((r.prefill.tokens_per_s_per_npu - 48_800.0 / 960.0).abs() < 1e-9);
    assert!((r.prefill.tokens_per_s_per_tflops - 48_800.0 / 960.0 / 1_504.0).abs() < 1e-9);
    assert!((r.decode.batch_per_npu - 4.0 / 160.0).abs() < 1e-12);
    assert_eq!(
        (
            r.decode.step_ms,
            r.cache.hit_share,
            r.cache.hit_tokens_share
        ),
        (40.0, 0.5, 0.512)
    );
    // 120 ms busy of 12 s, each link and direction.
    let lanes = &r.links["die_lane"];
    assert!(
        (lanes.utilisation_mean - 0.01).abs() < 1e-12
            && (lanes.utilisation_max - 0.05).abs() < 1e-12
    );
    assert_eq!(r.layer_us.decode["attention"], 580.0);
    assert_eq!(
        (r.fidelity.error, r.fidelity.error_abs),
        (Some(0.005), Some(0.01))
    );
    let offered = r.workload.offered.unwrap();
    assert!((offered.requests_per_s - 100.0 / 9.9).abs() < 1e-9);
}

#[test]
fn the_table_for_people() {
    insta::assert_snapshot!(report().to_table());
}

#[test]
fn the_keys_of_the_json_report() {
    let json = report().to_json();
    insta::assert_snapshot!(json);
    let read: serde_json::Value = serde_json::from_str(&json).unwrap();
    // The keys that programs may count on.
    let stable = [
        "digest",
        "seed",
        "virtual_s",
        "wall_s",
        "events",
        "messages",
        "requests",
        "goodput",
        "prefill",
        "decode",
        "ttft_ms",
        "tpot_ms",
        "itl_ms",
        "e2e_ms",
        "cache",
        "layer_us",
        "links",
        "experts",
        "faults",
        "fidelity",
        "workload",
        "notes",
    ];
    for key in stable {
        assert!(read.get(key).is_some(), "{key} is missing");
    }
    for pointer in [
        "/messages/activation",
        "/messages/kv_block",
        "/messages/tokens",
        "/messages/control",
        "/requests/offered",
        "/requests/completed",
        "/requests/failed",
        "/goodput/requests_per_s",
        "/goodput/share",
        "/prefill/tokens_per_s_per_npu",
        "/prefill/npus",
        "/prefill/tokens_per_s_per_tflops",
        "/decode/tokens_per_s_per_npu",
        "/decode/npus",
        "/decode/batch_per_npu",
        "/decode/tokens_per_s_per_tflops",
        "/ttft_ms/mean",
        "/ttft_ms/p50",
        "/tpot_ms/p90",
        "/itl_ms/p99",
        "/e2e_ms/max",
        "/cache/lookup_blocks",
        "/cache/hit_blocks",
        "/cache/hit_share",
        "/cache/read_bytes",
        "/cache/write_bytes",
        "/links/die_lane/utilisation_mean",
        "/links/die_lane/utilisation_max",
        "/links/die_lane/queue_us_p99",
        "/experts/load_max_over_mean",
        "/fidelity/message_steps",
        "/fidelity/step_steps",
        "/fidelity/error",
    ] {
        assert!(read.pointer(pointer).is_some(), "{pointer} is missing");
    }
}

#[test]
fn the_table_of_a_sweep() {
    let sets = [
        "decode.max_batch_per_npu=32,96".into(),
        "decode.mtp_tokens=0,1".into(),
    ];
    let (_, axes) = sweep::axes(&sets).unwrap();
    let grid = Grid::new(&Loader::new(), axes).unwrap();
    let outcomes: Vec<sweep::Outcome> = (0..4)
        .map(|i| {
            let mut r = report();
            r.decode.tokens_per_s_per_npu = 1_234.5 * f64::from(i + 1);
            r.tpot_ms.p99 = 20.0 * f64::from(i);
            r.prefill.tokens_per_s_per_npu = 0.0;
            match i {
                2 => sweep::Outcome::Refused("it does not fit".into()),
                _ => sweep::Outcome::Done(Box::new(r)),
            }
        })
        .collect();
    let chosen = Chosen {
        grid: &grid,
        reports: outcomes
            .iter()
            .map(|o| serde_json::to_value(o.report()).unwrap())
            .collect(),
        outcomes: &outcomes,
        show: DEFAULT_FIGURES.map(String::from).to_vec(),
        show_all: false,
        conditions: vec!["tpot_ms.p99<50".parse().unwrap()],
        best: Some("decode.tokens_per_s_per_npu".parse().unwrap()),
    };
    insta::assert_snapshot!(format!(
        "{}\n{}",
        sweep::to_table(&chosen),
        sweep::to_csv(&chosen).unwrap()
    ));
}

#[test]
fn the_stable_report_has_no_wall_time() {
    let (mut a, mut b) = (report(), report());
    a.wall_s = Some(1.0);
    b.wall_s = Some(2.0);
    assert_ne!(a.to_json(), b.to_json());
    assert_eq!(a.stable().to_json(), b.stable().to_json());
    assert!(!a.stable().to_json().contains("wall"));
}

#[test]
fn a_run_in_which_nothing_happened_has_a_report_without_gaps() {
    let stats = RunStats::default();
    let r = Report::new(&Inputs {
        stats: &stats,
        ended: Ended::Stopped,
        seed: 1,
        machine: "mini",
        model: "deepseek-r1",
        slo: &Slo::default(),
        source: &Source {
            name: "nothing".into(),
            kind: "trace",
            format: "mooncake",
            phase: PhaseSpec::Both,
        },
        offered: &[],
        concurrency: None,
        notes: &[],
        faults: Vec::new(),
        prefill_instances: 1,
        decode_instances: 1,
        int8_tops_per_npu: 1_504.0,
        wall_s: 0.0,
    });
    assert!(r.partial);
    let (json, table) = (r.to_json(), r.to_table());
    assert!(table.contains("PARTIAL"));
    for never in ["NaN", "inf"] {
        assert!(!table.contains(never) && !json.contains(never), "{table}");
    }
}

#[test]
fn help_texts() {
    let mut texts = BTreeMap::new();
    for command in [
        &[][..],
        &["run"],
        &["workload"],
        &["workload", "describe"],
        &["workload", "generate"],
        &["topology"],
        &["topology", "route"],
        &["schema"],
        &["sweep"],
        &["ops"],
        &["audit"],
    ] {
        let args: Vec<&str> = command.iter().copied().chain(["--help"]).collect();
        texts.insert(command.join(" "), stdout_of(&args));
    }
    let all: String = texts
        .iter()
        .map(|(name, text)| format!("$ supernode {name} --help\n{text}\n"))
        .collect();
    insta::assert_snapshot!(all);
}

#[test]
fn the_printed_defaults_are_the_default_scenario() {
    let printed = stdout_of(&["schema", "--defaults"]);
    let read = Loader::from_text("defaults.toml", &printed, Path::new(""))
        .and_then(Loader::load)
        .unwrap();
    assert_eq!(read, Scenario::default());
    for section in ["[prefill]", "[decode]", "[cache]", "[slo]", "[workload]"] {
        assert!(printed.contains(section), "{printed}");
    }
}

#[test]
fn the_schema_names_every_key_with_its_meaning() {
    let schema: serde_json::Value = serde_json::from_str(&stdout_of(&["schema"])).unwrap();
    assert_eq!(schema["additionalProperties"], false);
    for key in [
        "seed", "machine", "model", "prefill", "decode", "experts", "cache", "slo", "workload",
        "base",
    ] {
        assert!(schema["properties"].get(key).is_some(), "{key}");
    }
    let workload = &schema["$defs"]["WorkloadSpec"]["properties"];
    for key in [
        "kind",
        "file",
        "speed",
        "requests",
        "duration_s",
        "rate_per_s",
        "prompt_tokens",
        "output_tokens",
        "concurrency_per_npu",
        "phase",
    ] {
        assert!(workload[key]["description"].is_string(), "{key}");
    }
}

#[test]
fn a_described_trace() {
    insta::assert_snapshot!(stdout_of(&["workload", "describe"]));
}
