//! `supernode sweep`: a row says what a run of its scenario alone says, rows stand in the order of the grid, and what
//! cannot run is a row with its reason.

mod common;

use common::{SMALL, command, file, refused, stdout_of, supernode, text};
use serde_json::Value;
use tempfile::{TempDir, tempdir};

const AXES: [&str; 4] = [
    "--set",
    "decode.mtp_tokens=0..1",
    "--set",
    "workload.concurrency_per_npu=8,2,4",
];

fn small() -> (TempDir, String) {
    let dir = tempdir().unwrap();
    let path = file(&dir, "small.toml", SMALL);
    (dir, path)
}

fn sweep(scenario: &str, more: &[&str]) -> Vec<String> {
    ["sweep", scenario]
        .iter()
        .chain(more)
        .map(|s| (*s).to_string())
        .collect()
}

fn json_of(args: &[String]) -> Value {
    let args: Vec<&str> = args
        .iter()
        .map(String::as_str)
        .chain(["--json", "-"])
        .collect();
    serde_json::from_str(&stdout_of(&args)).expect("JSON alone on standard output")
}

#[test]
fn rows_stand_in_the_order_of_the_grid_whatever_ends_first() {
    let (_dir, scenario) = small();
    let one = json_of(&sweep(&scenario, &[&AXES[..], &["--jobs", "1"]].concat()));
    let order: Vec<(u64, u64)> = one["points"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| {
            let set = &p["set"];
            (
                set["decode.mtp_tokens"].as_u64().unwrap(),
                set["workload.concurrency_per_npu"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(order, [(0, 8), (0, 2), (0, 4), (1, 8), (1, 2), (1, 4)]);
    let many = json_of(&sweep(&scenario, &[&AXES[..], &["--jobs", "4"]].concat()));
    assert_eq!(one, many);
}

#[test]
fn a_row_is_what_a_run_of_its_scenario_says() {
    let (_dir, scenario) = small();
    let all = json_of(&sweep(&scenario, &AXES));
    let alone = stdout_of(&[
        "run",
        &scenario,
        "--set",
        "decode.mtp_tokens=1",
        "--set",
        "workload.concurrency_per_npu=2",
        "--json",
        "-",
    ]);
    let mut alone: Value = serde_json::from_str(&alone).unwrap();
    // The only figure of the wall clock.
    alone.as_object_mut().unwrap().remove("wall_s");
    assert_eq!(all["points"][4]["report"], alone);
    assert_ne!(all["points"][3]["report"]["digest"], alone["digest"]);
}

#[test]
fn csv_has_the_figures_of_the_reports_at_full_precision() {
    let (dir, scenario) = small();
    let path = dir.path().join("rows.csv").display().to_string();
    let show = [
        "--show",
        "tpot_ms.p99,digest",
        "--csv",
        &path,
        "--where",
        "tpot_ms.mean>0",
    ];
    let json = json_of(&sweep(&scenario, &[&AXES[..], &show].concat()));
    let mut csv = csv::Reader::from_path(&path).unwrap();
    assert_eq!(
        csv.headers().unwrap().iter().collect::<Vec<_>>(),
        [
            "decode.mtp_tokens",
            "workload.concurrency_per_npu",
            "tpot_ms.p99",
            "digest",
            "tpot_ms.mean",
            "note"
        ]
    );
    let rows: Vec<csv::StringRecord> = csv.records().map(Result::unwrap).collect();
    assert_eq!(rows.len(), 6);
    for (row, point) in rows.iter().zip(json["points"].as_array().unwrap()) {
        let report = &point["report"];
        assert_eq!(row[2].parse::<f64>().unwrap(), report["tpot_ms"]["p99"]);
        assert_eq!(&row[3], report["digest"].as_str().unwrap());
        assert_eq!(point["meets"], true);
    }
}

#[test]
fn the_best_is_picked_among_those_that_meet_the_conditions() {
    let (_dir, scenario) = small();
    let pick = |more: &[&str]| json_of(&sweep(&scenario, &[&AXES[..], more].concat()));
    let key = "decode.tokens_per_s_per_npu";
    // The most work is done by the largest batch with speculation, and the least waiting by the smallest.
    assert_eq!(pick(&["--best", key])["best"]["point"], 3);
    assert_eq!(pick(&["--best", "tpot_ms.mean"])["best"]["point"], 4);
    let among = pick(&["--best", key, "--where", "decode.batch_per_npu<6"]);
    assert_eq!(among["best"]["point"], 5);
    assert_eq!(among["best"]["of"], "largest");
    let none = sweep(
        &scenario,
        &[&AXES[..], &["--best", key, "--where", "tpot_ms.p99<1"]].concat(),
    );
    let out = command().args(&none).output().unwrap();
    let said = text(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(
        said.contains("there is none among points with tpot_ms.p99<1"),
        "{said}"
    );
    assert_eq!(text(&out.stdout).matches("not tpot_ms.p99<1").count(), 6);
}

#[test]
fn a_point_that_cannot_run_is_a_row_with_the_reason() {
    let (_dir, scenario) = small();
    let args = sweep(&scenario, &["--set", "decode.npus_per_instance=1,8"]);
    let table = stdout_of(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(
        table.contains("does not fit in its 64 GB of HBM"),
        "{table}"
    );
    let json = json_of(&args);
    assert!(json["points"][0]["report"].is_null());
    assert!(json["points"][0]["error"].as_str().unwrap().contains("HBM"));
    assert!(json["points"][1]["error"].is_null());
    // If nothing runs, the scenario is wrong.
    refused(
        &["sweep", &scenario, "--set", "decode.npus_per_instance=1,2"],
        &["none of the 2 points can run; the first: ", "HBM"],
    );
    refused(
        &[
            "sweep",
            &scenario,
            "--workload",
            "nowhere.jsonl",
            "--set",
            "seed=1,2",
        ],
        &["nowhere.jsonl"],
    );
}

#[test]
fn a_wrong_grid_is_refused_before_anything_runs() {
    for (args, expected) in [
        (&["--set", "decode.max_batch=3,4"][..], "max_batch_per_npu"),
        (
            &["--set", "seed=1..200", "--set", "decode.mtp_tokens=0..99"],
            "20000 points (200 x 100)",
        ),
        (
            &["--set", "seed=1,2", "--set", "seed=3"],
            "seed is set twice",
        ),
        (&["--set", "seed=3..1"], "from small to large"),
        (&["--set", "seed=1,lots"], "lots"),
        (&["--show", "tpot"], "did you mean tpot_ms"),
        (&["--show", "links"], "depends on the run"),
        (&["--best", "decode.token_per_s"], "did you mean"),
        (&["--best", "tpot_ms"], "expected one of tpot_ms."),
        (&["--where", "tpot_ms.p99~3"], "expected KEY<NUMBER"),
        (&["--where", "tpot_ms.p99<slow"], "\"slow\" is not a number"),
        (
            &["--csv", "-", "--json", "-"],
            "expected a file for the other",
        ),
        (
            &["--csv", "/nowhere/rows.csv"],
            "there is no directory /nowhere",
        ),
    ] {
        let args: Vec<&str> = ["sweep"].iter().chain(args).copied().collect();
        refused(&args, &[expected]);
    }
    let out = supernode(&["sweep", "--jobs", "0"]);
    assert_eq!(out.status.code(), Some(2));
}

#[test]
fn the_table_of_a_sweep() {
    let (_dir, scenario) = small();
    let args = sweep(
        &scenario,
        &[
            &AXES[..],
            &[
                "--best",
                "decode.tokens_per_s_per_npu",
                "--where",
                "ttft_ms.p99<90",
            ],
        ]
        .concat(),
    );
    let table = stdout_of(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(table.lines().count(), 8, "{table}");
    for head in [
        "concurrency_per_npu",
        "tokens_per_s_per_npu",
        "tpot_ms",
        "share",
    ] {
        assert!(table.contains(head), "{table}");
    }
    // A part that does not run has no columns.
    assert!(!table.contains("prefill"), "{table}");
    assert_eq!(table.matches("best").count(), 1, "{table}");
}
