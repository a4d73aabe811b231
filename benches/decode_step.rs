//! Decode of the whole instance under full load at message fidelity: 320 dies, 96 requests per NPU, every expert
//! activation routed. Virtual over wall time, and activations delivered per second.

#[path = "common/mod.rs"]
mod common;
#[path = "common/scenario.rs"]
mod scenario;

use common::{Row, best, quick};
use scenario::{FULL_DECODE, prepared, run};

fn main() {
    let (tokens, repeats) = if quick() { (3, 1) } else { (9, 3) };
    let tokens = format!("workload.output_tokens={tokens}");
    let keys = [&FULL_DECODE[..], &[&tokens]].concat();
    let mut rows = Vec::new();
    let (mut one_shard, mut digests) = (f64::NAN, Vec::new());
    for shards in [1, 2] {
        let (mut virtual_s, mut activations) = (0.0, 0);
        let wall_s = best(repeats, || {
            let (report, wall_s) = run(prepared(&keys), shards);
            virtual_s = report.virtual_s;
            activations = report.messages.activation;
            digests.push(report.digest);
            wall_s
        });
        let mut against = Vec::new();
        if shards == 1 {
            one_shard = wall_s;
        } else {
            against.push(("1 shard".to_string(), one_shard / wall_s));
        }
        rows.push(Row {
            what: format!("full-load decode of 320 dies, {shards} shard(s)"),
            value: virtual_s / wall_s,
            unit: "x real time",
            against,
        });
        rows.push(Row {
            what: format!("  expert activations, {shards} shard(s)"),
            value: activations as f64 / wall_s * 1e-6,
            unit: "million/s",
            against: Vec::new(),
        });
    }
    assert!(
        digests.windows(2).all(|d| d[0] == d[1]),
        "the same on any number of shards"
    );
    common::print("decode_step", &rows);
}
