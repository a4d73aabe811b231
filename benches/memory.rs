//! Peak memory: the launched machine per actor, and a run per request in flight. Each is measured in a process of its own
//! (this program again), by the high-water mark of its resident set. Also how long launching takes.

#[path = "common/mod.rs"]
mod common;
#[path = "common/scenario.rs"]
mod scenario;

use std::process::Command;

use common::{Row, quick};
use scenario::{prepared, run, status_bytes};

/// `memory child REQUESTS`: runs so many requests at once; prints the peak, the number of actors, and the seconds it took.
fn child(requests: &str) {
    let count = format!("workload.requests={requests}");
    let prepared = prepared(&[
        "workload.kind=closed",
        "workload.phase=decode",
        "workload.concurrency_per_npu=96",
        "workload.prompt_tokens=4096",
        "workload.output_tokens=64",
        &count,
    ]);
    let actors = prepared.machine.actor_count();
    let (_, took_s) = run(prepared, 1);
    let peak = status_bytes("VmHWM").unwrap_or(0);
    println!("{peak} {actors} {took_s}");
}

fn measured(requests: u64) -> (f64, f64, f64) {
    let me = std::env::current_exe().expect("this program has a path");
    let output = Command::new(me)
        .args(["child", &requests.to_string()])
        .output()
        .expect("it can run itself");
    let text = String::from_utf8_lossy(&output.stdout);
    let figures: Vec<f64> = text
        .split_whitespace()
        .filter_map(|w| w.parse().ok())
        .collect();
    let [peak, actors, seconds] = figures[..] else {
        panic!(
            "the measured process failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    (peak, actors, seconds)
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, word, requests] = arguments.as_slice()
        && word == "child"
    {
        return child(requests);
    }
    if status_bytes("VmHWM").is_none() {
        println!("memory: /proc/self/status is not there, nothing is measured");
        return;
    }
    let in_flight = if quick() { 500 } else { 15_360 };
    let (idle, actors, seconds) = measured(1);
    let (busy, _, _) = measured(in_flight);
    let row = |what: String, value: f64, unit: &'static str| Row {
        what,
        value,
        unit,
        against: Vec::new(),
    };
    let rows = [
        row(
            "the machine and one request, launch to end".into(),
            seconds * 1e3,
            "ms",
        ),
        row(
            format!("peak, {actors} actors and one request"),
            idle / 1e6,
            "MB",
        ),
        row("  per actor".into(), idle / actors, "bytes"),
        row(
            format!("peak with {in_flight} requests in flight"),
            busy / 1e6,
            "MB",
        ),
        row(
            "  more, per request".into(),
            (busy - idle).max(0.0) / in_flight as f64,
            "bytes",
        ),
    ];
    common::print("memory", &rows);
}
