//! Scenarios as benches run them.

use std::time::Instant;

use supernode::report::Report;
use supernode::run::Prepared;
use supernode::scenario::Loader;
use supernode_actors::launch::Flow;

/// Decode of one instance under full load, message by message: 320 dies, 96 requests per NPU.
#[allow(dead_code, reason = "not every bench decodes")]
pub const FULL_DECODE: [&str; 6] = [
    "fidelity.level=message",
    "workload.kind=closed",
    "workload.phase=decode",
    "workload.concurrency_per_npu=96",
    "workload.prompt_tokens=4096",
    "workload.requests=15360",
];

/// The built-in scenario with some of its keys set.
pub fn prepared(keys: &[&str]) -> Prepared {
    let mut loader = Loader::new();
    for key in keys {
        loader.set(key).expect("a key of the scenario");
    }
    let scenario = loader.load().expect("a sound scenario");
    Prepared::new(scenario).expect("it fits the machine")
}

/// Runs to the end; returns the report and the wall time in seconds, launch included.
pub fn run(prepared: Prepared, shards: u32) -> (Report, f64) {
    let started = Instant::now();
    let report = prepared
        .run(shards, &mut |_| Flow::Continue)
        .expect("the run ends");
    (report, started.elapsed().as_secs_f64())
}

/// A figure of this process in `/proc/self/status`, in bytes; `None` where there is no such file.
#[allow(dead_code, reason = "not every bench asks")]
pub fn status_bytes(key: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with(key))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

/// CPU time of this process so far in seconds, all threads; `None` where `/proc` does not say.
#[allow(dead_code, reason = "not every bench asks")]
pub fn cpu_s() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let ticks: u64 = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    // USER_HZ, the same on all Linux machines.
    Some(ticks as f64 / 100.0)
}
