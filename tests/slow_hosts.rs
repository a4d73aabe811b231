//! Slow CPUs: their dies wait for launches, and whoever reads from them for their memory.

mod common;

use common::{few_layers, stdout_of};
use serde_json::Value;
use tempfile::tempdir;

fn report(more: &[&str]) -> Value {
    let dir = tempdir().unwrap();
    let (scenario, model) = few_layers(&dir);
    let args = [&["run", &scenario, &model, "--json", "-"], more].concat();
    serde_json::from_str(&stdout_of(&args)).unwrap()
}

/// Median TPOT of 64 requests of decode, 200 tokens each, on 16 dies.
fn tpot_ms(more: &[&str]) -> f64 {
    let load = ["--requests=64", "--set=workload.output_tokens=200"];
    let report = report(&[&load, more].concat());
    assert_eq!(report["requests"]["completed"], 64, "{report:#}");
    // Drawn steps take as long as simulated ones.
    let error = report["fidelity"]["error_abs"].as_f64();
    assert!(error.unwrap_or(0.0) < 0.05, "{report:#}");
    report["tpot_ms"]["p50"].as_f64().unwrap()
}

#[test]
fn a_launch_that_outlasts_the_step_before_it_slows_decode() {
    let well = tpot_ms(&[]);
    // A launch of 4 layers takes 46 us: at half the clock it is still over before the step before it, which takes longer.
    let half = tpot_ms(&["--fault=at 0s: throttle node0/cpu1 x0.5"]);
    assert!((half / well - 1.0).abs() < 0.02, "{well} ms, {half} ms");
    // 1.7 tokens a step, and the next launch begins with the step: 46 us / 0.01 for each step, of all ranks.
    for fidelity in ["message", "step"] {
        let level = format!("--set=fidelity.level=\"{fidelity}\"");
        let slow = tpot_ms(&[&level, "--fault=at 0s: throttle node0/cpu1 x0.01"]);
        let step_ms = 4.0 * 11.5e-3 / 0.01;
        assert!(
            (step_ms * 0.5..step_ms * 1.1).contains(&slow),
            "{fidelity}: {slow} ms, {step_ms} ms a step"
        );
    }
    // Dies of another node are launched by CPUs of their own.
    let other = tpot_ms(&["--fault=at 0s: throttle node1/cpu* x0.01"]);
    assert!((other / well - 1.0).abs() < 0.02, "{well} ms, {other} ms");
}

#[test]
fn a_gap_between_steps_is_as_much_longer_as_the_clock_is_slower() {
    let gap = "--set=operators.overhead.host_gap_us=700";
    let well = tpot_ms(&[gap]);
    let half = tpot_ms(&[gap, "--fault=at 0s: throttle node0/cpu1 x0.5"]);
    // 700 us more for each step of 1.7 tokens.
    let more = half - well;
    assert!((0.3..0.75).contains(&more), "{well} ms, {half} ms");
}

#[test]
fn slow_dram_keeps_back_cached_blocks() {
    let ttft_ms = |more: &[&str]| {
        let load = [
            "--set=workload.phase=prefill",
            "--set=workload.kind=open",
            "--set=workload.prompt_tokens=32768",
            "--set=workload.rate_per_s=10",
            "--set=workload.reuse_share=0.9",
            "--requests=8",
        ];
        let report = report(&[&load, more].concat());
        assert_eq!(report["requests"]["completed"], 8, "{report:#}");
        assert!(report["cache"]["hit_share"].as_f64().unwrap() > 0.5);
        report["ttft_ms"]["p50"].as_f64().unwrap()
    };
    let well = ttft_ms(&[]);
    // 333 GB/s a CPU, of which its lanes read 147: a good half is none too little.
    let enough = ttft_ms(&["--fault=at 0s: hbm_slow node*/cpu* x0.8"]);
    assert!((enough / well - 1.0).abs() < 0.02, "{well} ms, {enough} ms");
    let slow = ttft_ms(&["--fault=at 0s: hbm_slow node*/cpu* x0.01"]);
    assert!(slow > well * 1.2, "{well} ms, {slow} ms");
}

#[test]
fn slow_hosts_do_not_cost_determinism() {
    let digest = |shards: &str| {
        let report = report(&[
            "--requests=32",
            "--set=workload.phase=both",
            "--fault=at 5ms for 40ms: throttle node0/** x0.05",
            "--fault=at 0s: hbm_slow node1/cpu0 x0.02",
            "--shards",
            shards,
        ]);
        report["digest"].clone()
    };
    let one = digest("1");
    assert_eq!(digest("2"), one);
    assert_eq!(digest("4"), one);
}
