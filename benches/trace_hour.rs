//! An hour of a generated trace in Mooncake's format at step fidelity, and 100,000 open-loop requests of 4,096 tokens in
//! and 256 out on a machine at about 70% load: requests per CPU second.

#[path = "common/mod.rs"]
mod common;
#[path = "common/scenario.rs"]
mod scenario;

use std::fs::File;
use std::io::BufWriter;

use common::{Row, quick};
use scenario::{cpu_s, prepared, run};
use supernode::workload::generate::{Profile, Recipe, generate};

/// Requests a second of the published hour of conversations: 12,031 in 3,536 s.
const RATE_PER_S: f64 = 3.4;

fn main() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("hour.jsonl");
    let requests = if quick() { 60 } else { 12_000 };
    let recipe = Recipe {
        profile: Profile::Conversation,
        seed: 1,
        requests,
        rate_per_s: RATE_PER_S,
    };
    let mut file = BufWriter::new(File::create(&path).expect("it can be written"));
    generate(&recipe, &mut file).expect("it can be written");
    drop(file);
    let trace = format!("workload.file={}", path.display());
    let mut rows = Vec::new();
    let mut measure = |what: String, keys: &[&str], requests: u64, shards: u32| {
        let prepared = prepared(keys);
        let before = cpu_s();
        let (report, wall_s) = run(prepared, shards);
        assert_eq!(report.requests.completed, requests);
        rows.push(Row {
            what: format!("{what}, {shards} shard(s)"),
            value: wall_s,
            unit: "s of wall time",
            against: vec![("real time".into(), report.virtual_s / wall_s)],
        });
        if let (Some(before), Some(after)) = (before, cpu_s()) {
            rows.push(Row {
                what: "  requests per CPU second".into(),
                value: requests as f64 / (after - before),
                unit: "requests",
                against: Vec::new(),
            });
        }
    };
    for shards in if quick() { 1..2 } else { 1..3 } {
        let keys = ["workload.kind=trace", trace.as_str()];
        measure(
            format!("{requests} requests of a trace"),
            &keys,
            requests,
            shards,
        );
    }
    let open = if quick() { 300 } else { 100_000 };
    let count = format!("workload.requests={open}");
    let keys = [
        "workload.kind=open",
        "workload.rate_per_s=130",
        "workload.prompt_tokens=4096",
        "workload.output_tokens=256",
        &count,
    ];
    measure(
        format!("{open} open-loop requests of 4,096 + 256"),
        &keys,
        open,
        1,
    );
    common::print("trace_hour", &rows);
}
