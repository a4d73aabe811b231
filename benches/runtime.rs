//! The actor runtime beside actix and NeXosim: the same three patterns, with the same 40-byte message, in the same run.
//! A table with ratios follows Criterion's report.
//!
//! What each of them does differs, and not to our advantage: a message of ours waits in an event queue until its own
//! virtual time, and enters a digest; actix knows no time; NeXosim passes messages without time and lets a model wait
//! by scheduling itself, so its models wait once per hop (ring, fan-in) or once per round (all-to-all).

#[path = "peers/actix_peer.rs"]
mod actix_peer;
#[path = "common/mod.rs"]
mod common;
#[path = "peers/nexosim_peer.rs"]
mod nexosim_peer;
#[path = "peers/ours.rs"]
mod ours;
#[path = "peers/pattern.rs"]
mod pattern;

use std::time::Duration;

use common::{Row, quick};
use criterion::{BenchmarkId, Criterion, Throughput};
use pattern::Pattern;

/// Runs a pattern once and returns how long its messages took, start-up not counted.
type Run = fn(Pattern) -> Duration;

const RUNS: [(&str, Run); 5] = [
    ("supernode, 1 shard", |p| ours::run(p, 1)),
    ("supernode, 2 shards", |p| ours::run(p, 2)),
    ("actix, 1 arbiter", |p| actix_peer::run(p, 1)),
    ("actix, 2 arbiters", |p| actix_peer::run(p, 2)),
    ("NeXosim", nexosim_peer::run),
];

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(if quick() { 1 } else { 200 }))
        .measurement_time(Duration::from_millis(if quick() { 10 } else { 2_000 }))
        .configure_from_args();
    let mut table: Vec<(Pattern, &str, f64)> = Vec::new();
    for pattern in Pattern::ALL {
        let mut group = criterion.benchmark_group(pattern.name());
        group.throughput(Throughput::Elements(pattern.messages()));
        for (name, run) in RUNS {
            let mut best = f64::INFINITY;
            group.bench_function(BenchmarkId::from_parameter(name), |b| {
                b.iter_custom(|iterations| {
                    let mut total = Duration::ZERO;
                    for _ in 0..iterations {
                        let took = run(pattern);
                        best = best.min(took.as_secs_f64());
                        total += took;
                    }
                    total
                });
            });
            if best.is_finite() {
                table.push((pattern, name, best));
            }
        }
        group.finish();
    }
    criterion.final_summary();

    let rows: Vec<Row> = table
        .iter()
        .map(|&(pattern, name, seconds)| {
            let peers = table
                .iter()
                .filter(|(p, n, _)| *p == pattern && *n != name && name.starts_with("supernode"))
                .map(|(_, n, s)| ((*n).to_string(), s / seconds));
            Row {
                what: format!("{}, {name}", pattern.name()),
                value: pattern.messages() as f64 / seconds * 1e-6,
                unit: "million messages/s",
                against: peers.collect(),
            }
        })
        .collect();
    common::print("runtime", &rows);
}
