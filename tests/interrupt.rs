//! Ctrl-C ends a run promptly with the report so far, marked as partial, and a sweep with the rows that are done.
#![cfg(unix)]

mod common;

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{command, text};
use supernode::rundir::RunDir;

/// Starts the command, presses Ctrl-C a while after a line with `launched` has come `launches` times, and gives what it
/// said by its prompt end.
fn interrupted(args: &[&str], launches: usize) -> (Output, String) {
    let mut child = command()
        .args(args)
        .env("RUST_LOG", "supernode=debug")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut said = String::new();
    while said.matches("launched").count() < launches {
        let mut line = String::new();
        assert!(
            log.read_line(&mut line).unwrap() > 0,
            "it ended before it was launched: {said}"
        );
        said.push_str(&line);
    }
    std::thread::sleep(Duration::from_millis(500));
    let interrupted = Instant::now();
    let sent = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(sent.success());
    log.read_to_string(&mut said).unwrap();
    let out = child.wait_with_output().unwrap();
    let took = interrupted.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(out.status.code(), Some(130), "{said}");
    assert!(said.contains("stopped by Ctrl-C"), "{said}");
    (out, said)
}

/// Many minutes of work, so that it is still under way.
const LONG: [&str; 4] = ["--copies", "60", "--speed", "0.2x"];

#[test]
fn ctrl_c_ends_a_run_with_the_report_so_far() {
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("report.json");
    let path = json.display().to_string();
    let args = [&["run"][..], &LONG, &["--json", &path]].concat();
    let (out, _) = interrupted(&args, 1);
    assert!(text(&out.stdout).contains("PARTIAL"));
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!(report["partial"], true);
    assert!(report["virtual_s"].as_f64().unwrap() > 0.0);
}

#[test]
fn ctrl_c_leaves_a_kept_run_with_a_valid_trace() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run").display().to_string();
    let args = [&["run"][..], &LONG, &["--out", &out]].concat();
    interrupted(&args, 1);
    let run = RunDir::open(Path::new(&out)).unwrap();
    assert_eq!(run.report().unwrap()["partial"], true);
    let trace = supernode::trace::Read::open(&run.trace_path().unwrap()).unwrap();
    assert!(trace.slices.len() > 1_000);
    let page = common::stdout_of(&["report", &out, "--html", "-"]);
    assert!(page.contains("stopped before its end"));
}

#[test]
fn ctrl_c_ends_a_sweep_with_the_rows_that_are_done() {
    // A single request is over at once.
    let set = ["--set", "workload.requests=1,100000,150000"];
    let args = [&["sweep"][..], &LONG, &set, &["--jobs", "1", "--csv", "-"]].concat();
    let (out, _) = interrupted(&args, 2);
    let rows: Vec<String> = text(&out.stdout).lines().map(String::from).collect();
    assert_eq!(rows.len(), 4, "{rows:?}");
    assert!(!rows[1].contains("stopped"), "{rows:?}");
    for row in &rows[2..] {
        assert!(row.ends_with("stopped by Ctrl-C"), "{rows:?}");
    }
}
