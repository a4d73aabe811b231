//! `supernode run` from the outside: table, JSON, and where they go.

mod common;

use common::{command, file, stdout_of, supernode, text};
use serde_json::Value;
use tempfile::tempdir;

const SMALL: [&str; 3] = ["run", "--requests", "20"];

fn run(args: &[&str]) -> Vec<String> {
    SMALL.iter().chain(args).map(|s| (*s).to_string()).collect()
}

fn json_of(args: &[&str]) -> Value {
    let args = run(&[args, &["--json", "-"]].concat());
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    serde_json::from_str(&stdout_of(&args)).expect("JSON alone on standard output")
}

#[test]
fn the_table_and_the_json_have_the_same_numbers() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("r.json").display().to_string();
    let args = run(&["--json", &path]);
    let table = stdout_of(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(
        (&json["requests"]["offered"], &json["requests"]["completed"]),
        (&20.into(), &20.into())
    );
    assert_eq!(json["partial"], false);
    let digest = json["digest"].as_str().unwrap();
    assert!(digest.len() == 16 && table.contains(digest), "{table}");
    let p50 = json["ttft_ms"]["p50"].as_f64().unwrap();
    assert!(
        p50 > 0.0 && table.contains(&supernode::report::number(p50)),
        "{table}"
    );
    assert!(
        table.contains("20 offered, 20 completed, 0 failed"),
        "{table}"
    );
}

#[test]
fn options_and_scenario_files_say_the_same() {
    let dir = tempdir().unwrap();
    let scenario = file(
        &dir,
        "s.toml",
        "seed = 5\n[decode]\nmax_batch_per_npu = 8\n[workload]\nkind = \"open\"\nrate_per_s = 50\nprompt_tokens = { mean = 900 }\noutput_tokens = 12\n",
    );
    let by_file = json_of(&[&scenario]);
    let by_options = json_of(&[
        "--seed",
        "5",
        "--set",
        "decode.max_batch_per_npu=8",
        "--set",
        "workload.kind=open",
        "--set",
        "workload.rate_per_s=50",
        "--set",
        "workload.prompt_tokens.mean=900",
        "--set",
        "workload.output_tokens=12",
    ]);
    assert_eq!(by_file["digest"], by_options["digest"]);
    assert_eq!(by_file["workload"]["name"], "open arrivals, drawn lengths");
    assert_ne!(
        by_file["digest"],
        json_of(&[&scenario, "--seed", "6"])["digest"]
    );
}

#[test]
fn a_trace_is_found_from_where_the_command_runs_and_beside_its_scenario() {
    let dir = tempdir().unwrap();
    let line =
        "{\"timestamp\": 0, \"input_length\": 600, \"output_length\": 3, \"hash_ids\": [0, 1]}\n";
    file(&dir, "t.jsonl", line.repeat(3));
    let scenario = file(&dir, "s.toml", "[workload]\nfile = \"t.jsonl\"\n");
    let beside = json_of(&[&scenario]);
    assert_eq!(beside["requests"]["completed"], 3);
    let out = command()
        .current_dir(&dir)
        .args(["run", "--workload", "t.jsonl", "--json", "-"])
        .output()
        .unwrap();
    let here: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(here["workload"]["requests"], 3);
    assert_eq!(here["digest"], beside["digest"]);
}

/// Without `--shards` the machine decides too: a single node cannot be shared.
#[test]
fn a_machine_of_one_node_runs_without_being_told_how_many_threads() {
    let dir = tempdir().unwrap();
    file(&dir, "one.toml", "base = \"mini\"\n[counts]\nnodes = 1\n");
    let scenario = file(
        &dir,
        "s.toml",
        "machine = \"one.toml\"\n[prefill]\ninstances = 1\nnpus_per_instance = 8\nbatch_tokens_per_npu = 1024\n\
         redundant = 0\nshared_replicas = 0\n\
         [workload]\nkind = \"open\"\nrate_per_s = 9.0\nprompt_tokens = 300\n\
         phase = \"prefill\"\n",
    );
    let report = json_of(&[&scenario]);
    assert_eq!(report["requests"]["completed"], 20);
}

#[test]
fn quiet_says_nothing() {
    let args = run(&["--quiet"]);
    let out = supernode(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(
        out.status.success() && out.stdout.is_empty() && out.stderr.is_empty(),
        "{}",
        text(&out.stderr)
    );
}

#[cfg(unix)]
#[test]
fn a_report_that_cannot_be_written_is_a_failed_run() {
    if !std::path::Path::new("/dev/full").exists() {
        println!("skipped: there is no /dev/full");
        return;
    }
    let args = run(&["--json", "/dev/full"]);
    let out = command().args(&args).output().unwrap();
    let said = text(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(
        said.contains("cannot write the report to /dev/full: No space left"),
        "{said}"
    );
    let full = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let out = command().args(run(&[])).stdout(full).output().unwrap();
    assert_eq!(out.status.code(), Some(1));
}
