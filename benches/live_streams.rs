//! 2,000 streams held for a minute on the whole machine, paced to the wall clock: how far what clients see is from what
//! the machine computed, and whether memory grows. `SUPERNODE_STREAMS`, `SUPERNODE_SECONDS` and `SUPERNODE_PACE` change the load,
//! `SUPERNODE_UP` the machine.

#[cfg(unix)]
#[path = "../tests/common/mod.rs"]
mod client;
#[path = "common/mod.rs"]
mod common;

#[cfg(not(unix))]
fn main() {
    println!("live_streams: its clients are for Unix only, nothing is measured");
}

#[cfg(unix)]
fn main() {
    unix::main();
}

#[cfg(unix)]
mod unix {
    use std::time::Duration;

    use super::client::live::Up;
    use super::client::streams::{Load, Watch, hold, quantile_ms};
    use super::common::{Row, print, quick};

    /// How far the 99th percentile of what clients see may be off while pacing holds.
    const OFF_MS: f64 = 10.0;

    /// A number from the environment.
    fn set(name: &str, otherwise: f64) -> f64 {
        std::env::var(name).map_or(otherwise, |text| text.parse().expect(name))
    }

    pub fn main() {
        let load = |up: &Up, streams, ramp_s, warm_s, seconds, pace, tokens| Load {
            address: up.address.parse().expect("an address"),
            streams,
            ramp: Duration::from_secs(ramp_s),
            warm: Duration::from_secs_f64(warm_s),
            lasts: Duration::from_secs_f64(warm_s + seconds),
            pace,
            prompt_words: 200,
            output_tokens: tokens,
        };
        let pace = set("SUPERNODE_PACE", if quick() { 0.1 } else { 1.0 });
        let arg = pace.to_string();
        let more = std::env::var("SUPERNODE_UP").unwrap_or_default();
        let args: Vec<&str> = ["--pace", &arg]
            .into_iter()
            .chain(more.split_whitespace())
            .collect();
        let (up, load) = if quick() {
            let up = Up::new(&args);
            let load = load(&up, 50, 1, 2.0, 1.0, pace, 40);
            (up, load)
        } else {
            let up = Up::whole(&args);
            // Clients start at 400 a second.
            let (streams, warm_s, seconds) = (
                set("SUPERNODE_STREAMS", 2_000.0),
                // As much virtual time at any pace.
                set("SUPERNODE_WARM_SECONDS", 25.0 / pace),
                set("SUPERNODE_SECONDS", 60.0),
            );
            let load = load(&up, streams as usize, 5, warm_s, seconds, pace, 600);
            (up, load)
        };
        let lost = || up.metric("supernode_pace_lost_seconds_total");
        let watch = Watch::new(up.child.id());
        let (mut seen, before_s) = hold(&load, lost);
        let (lost_s, memory_mb) = (lost() - before_s, watch.rows());
        let ttft_ms = quantile_ms(&mut seen.ttft_us, 0.99);
        let itl_ms = quantile_ms(&mut seen.itl_us, 0.99);
        let behind_ms = quantile_ms(&mut seen.behind_us, 0.99);
        let most_mb = memory_mb.iter().copied().max().unwrap_or(0);
        let row = |what: &str, value, unit| Row {
            what: what.into(),
            value,
            unit,
            against: Vec::new(),
        };
        let title = format!("{} streams", load.streams);
        print(
            "live_streams",
            &[
                row(
                    &format!("{title}: requests"),
                    seen.requests as f64,
                    "requests",
                ),
                row("  tokens", seen.tokens as f64, "tokens"),
                row("  TTFT seen, p99 off what was computed by", ttft_ms, "ms"),
                row("  ITL seen, p99 off what was computed by", itl_ms, "ms"),
                row("  of all, while pacing held", 100.0 * seen.held(), "%"),
                row("  the others, p99 off", behind_ms, "ms"),
                row("  pace lost", lost_s, "s"),
                row("  memory of the machine, peak", most_mb as f64, "MB"),
            ],
        );
        if quick() {
            return;
        }
        // All clients are there: memory does not grow any more.
        // Where there is no /proc, it is not known.
        if let Some(early_mb) = memory_mb.get(load.warm.as_secs() as usize) {
            assert!(
                most_mb < early_mb + early_mb / 4,
                "memory grows: {memory_mb:?}"
            );
        }
        assert!(seen.held() > 0.95, "pacing held too seldom");
        assert!(ttft_ms < OFF_MS, "TTFT: {ttft_ms} ms off");
        assert!(itl_ms < OFF_MS, "ITL: {itl_ms} ms off");
    }
}
