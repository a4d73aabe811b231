//! Small runs that are kept with a trace.
#![allow(dead_code)]

use std::path::Path;

use supernode::trace::Read;
use tempfile::TempDir;

use super::{supernode, text};

/// A small machine, a few requests, every message routed.
pub const SMALL: &[&str] = &[
    "machine=mini4",
    "prefill.instances=1",
    "prefill.npus_per_instance=8",
    // Small batches need small buffers: the weights of so few dies leave little room.
    "prefill.batch_tokens_per_npu=1024",
    "prefill.redundant=0",
    "prefill.shared_replicas=0",
    "decode.npus_per_instance=8",
    "experts.redundant=0",
    "experts.shared_replicas=0",
    "fidelity.level=message",
    "workload.kind=open",
    "workload.rate_per_s=300",
    "workload.prompt_tokens=700",
    "workload.output_tokens=3",
    "workload.requests=4",
];

/// A loaded decode group: every die has the same requests.
pub const DECODE: &[&str] = &[
    "workload.kind=closed",
    "workload.phase=decode",
    "workload.concurrency_per_npu=16",
    "workload.requests=128",
    "workload.prompt_tokens=2000",
];

pub fn keep(dir: &TempDir, name: &str, more: &[&str]) -> String {
    let out = dir.path().join(name).display().to_string();
    let mut args = vec!["run", "-q", "--out", &out];
    let small = small();
    args.extend(small.iter().map(String::as_str));
    args.extend(more);
    let ran = supernode(&args);
    assert!(ran.status.success(), "{}", text(&ran.stderr));
    out
}

pub fn trace_of(run: &str) -> Read {
    Read::open(&Path::new(run).join("trace.pftrace")).unwrap()
}

/// The small machine as arguments.
pub fn small() -> Vec<String> {
    sets(SMALL)
}

pub fn sets(keys: &[&str]) -> Vec<String> {
    let both = keys.iter().flat_map(|set| ["--set", set]);
    both.map(String::from).collect()
}
