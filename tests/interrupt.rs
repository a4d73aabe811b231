//! Ctrl-C ends a run promptly with the report so far, marked as partial.
#![cfg(unix)]

mod common;

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::command;

#[test]
fn ctrl_c_ends_a_run_with_the_report_so_far() {
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("report.json");
    // Many minutes of work, so that it is still under way.
    let mut child = command()
        .args(["run", "--copies", "60", "--speed", "0.2x", "--json"])
        .arg(&json)
        .env("RUST_LOG", "supernode=debug")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut said = String::new();
    while !said.contains("launched") {
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
    assert_eq!(out.status.code(), Some(130), "{said}");
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert!(said.contains("stopped by Ctrl-C"), "{said}");
    assert!(String::from_utf8_lossy(&out.stdout).contains("PARTIAL"));
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!(report["partial"], true);
    assert!(report["virtual_s"].as_f64().unwrap() > 0.0);
}
