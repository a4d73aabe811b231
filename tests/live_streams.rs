//! Many streams at once: what clients see is what the machine computed. `cargo bench --bench live_streams` has 2,000 of
//! them for a minute on the whole machine.
#![cfg(unix)]

mod common;

use std::time::Duration;

use common::live::Up;
use common::streams::{Lateness, Load, Watch, hold, quantile_ms, show};

#[test]
fn what_many_clients_see_is_what_the_machine_computed() {
    // Slower than time, so that steps take what they do on the whole machine.
    let up = Up::new(&["--pace", "0.1"]);
    let load = Load {
        address: up.address.parse().unwrap(),
        streams: 100,
        ramp: Duration::from_secs(1),
        warm: Duration::from_secs(3),
        lasts: Duration::from_secs(7),
        pace: 0.1,
        prompt_words: 60,
        output_tokens: 60,
    };
    let lost = || up.metric("supernode_pace_lost_seconds_total");
    let watch = Watch::new(up.child.id());
    let lateness = Lateness::watch();
    let (mut seen, before) = hold(&load, lost);
    let late_ms = lateness.quantile_ms(0.99);
    let (lost_s, memory_mb) = (lost() - before, watch.rows());
    show("100 streams", &mut seen, lost_s, &memory_mb);
    up.await_state("all have ended", |s| s["requests"]["open"] == 0);
    assert!(seen.requests >= 100);
    if lost_s > 0.0 {
        println!("skipped: the computer was too slow to keep pace");
        return;
    }
    // Other work on the computer delays some; the bench looks at 99% of them.
    // A first token passes several threads, each of which may wake up late.
    println!("threads wake up {late_ms:.2} ms late (p99)");
    let most_ms = 10.0 + 4.0 * late_ms;
    assert!(quantile_ms(&mut seen.ttft_us, 0.5) < most_ms);
    assert!(quantile_ms(&mut seen.itl_us, 0.5) < most_ms);
}
