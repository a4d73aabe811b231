//! The actor runtime beside actix and NeXosim: the same three patterns, with the same 40-byte message, in the same run.
//! A table with ratios follows Criterion's report.
//!
//! What each of them does differs, and not to our advantage: a message of ours waits in an event queue until its own
//! virtual time, and enters a digest; actix knows no time; NeXosim passes messages without time and lets a model wait
//! by scheduling itself, so its models wait once per hop (ring, fan-in) or once per round (all-to-all).

#[path = "peers/actix_peer.rs"]
mod actix_peer;
#[path = "peers/nexosim_peer.rs"]
mod nexosim_peer;
#[path = "peers/ours.rs"]
mod ours;
#[path = "peers/pattern.rs"]
mod pattern;

use std::time::Duration;

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
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(2))
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

    println!(
        "\n{:<20} {:<20} {:>12} {:>16} {:>14}",
        "pattern", "runtime", "ns/message", "million/s", "1 shard is"
    );
    for &(pattern, name, seconds) in &table {
        let messages = pattern.messages() as f64;
        let ours = table
            .iter()
            .find(|(p, n, _)| *p == pattern && *n == RUNS[0].0)
            .map_or(seconds, |r| r.2);
        println!(
            "{:<20} {:<20} {:>12.1} {:>16.2} {:>12.2} x",
            pattern.name(),
            name,
            seconds * 1e9 / messages,
            messages / seconds / 1e6,
            seconds / ours,
        );
    }
}
