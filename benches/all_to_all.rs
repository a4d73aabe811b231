//! All-to-all among 320 dies through the mechanism of dispatch and combine, beside the same pattern as actors of actix
//! and models of NeXosim. `actors/tests/phase_reference.rs` holds it against sending message by message.

#[path = "peers/actix_peer.rs"]
mod actix_peer;
#[path = "common/mod.rs"]
mod common;
#[path = "peers/nexosim_peer.rs"]
mod nexosim_peer;
#[path = "peers/pattern.rs"]
#[allow(dead_code, reason = "one of its patterns is what this bench is about")]
mod pattern;
#[path = "peers/phases.rs"]
mod phases;

use common::{Row, best, quick};
use pattern::{ACTORS, Pattern};

fn main() {
    let (rounds, repeats) = if quick() { (4, 1) } else { (400, 5) };
    let pattern = Pattern::AllToAll;
    let per_message = |seconds: f64| seconds / pattern.messages() as f64;
    let actix = |arbiters| {
        per_message(best(repeats, || {
            actix_peer::run(pattern, arbiters).as_secs_f64()
        }))
    };
    let nexosim = per_message(best(repeats, || nexosim_peer::run(pattern).as_secs_f64()));
    let actix = actix(1).min(actix(2));
    let mut rows = Vec::new();
    let mut digests = Vec::new();
    let mut one_shard = f64::NAN;
    for shards in [1, 2] {
        let seconds = best(repeats, || {
            let (took, messages, digest) = phases::run(ACTORS, rounds, shards);
            digests.push(digest);
            took.as_secs_f64() / messages as f64
        });
        let mut against = vec![
            ("actix".to_string(), actix / seconds),
            ("NeXosim".to_string(), nexosim / seconds),
        ];
        if shards == 1 {
            one_shard = seconds;
        } else {
            against.push(("1 shard".to_string(), one_shard / seconds));
        }
        rows.push(Row {
            what: format!("all-to-all of {ACTORS} dies, {shards} shard(s)"),
            value: 1e-6 / seconds,
            unit: "million messages/s",
            against,
        });
    }
    assert!(
        digests.windows(2).all(|d| d[0] == d[1]),
        "the same on any number of shards"
    );
    for (name, seconds) in [
        ("actix, the faster of 1 and 2 arbiters", actix),
        ("NeXosim", nexosim),
    ] {
        rows.push(Row {
            what: format!("the same, {name}"),
            value: 1e-6 / seconds,
            unit: "million messages/s",
            against: Vec::new(),
        });
    }
    common::print("all_to_all", &rows);
}
