//! What a fault plan costs that has no faults: the same full-load decode without a plan and with an empty one, in turn, so
//! that what else the machine does falls on both. In CPU time.

#[path = "common/mod.rs"]
mod common;
#[path = "common/scenario.rs"]
mod scenario;

use common::{Row, quick};
use scenario::{FULL_DECODE, cpu_s, prepared, run};

/// CPU seconds (wall where `/proc` does not say) and digest of one run.
fn timed(plan: Option<&str>) -> (f64, String) {
    let mut prepared = prepared(&[&FULL_DECODE[..], &["workload.output_tokens=3"]].concat());
    if let Some(path) = plan {
        prepared
            .break_parts(&[path.to_string()], &[])
            .expect("a plan without faults");
    }
    let before_s = cpu_s();
    let (report, wall_s) = run(prepared, 1);
    let spent_s = before_s.zip(cpu_s()).map_or(wall_s, |(b, a)| a - b);
    (spent_s, report.digest)
}

fn main() {
    let dir = tempfile::tempdir().expect("a directory for a plan");
    let path = dir.path().join("empty.toml").display().to_string();
    std::fs::write(&path, "about = \"nothing\"\nlines = []\n").expect("a plan");
    let pairs = if quick() { 1 } else { 9 };
    let (mut without_s, mut ratios) = (f64::INFINITY, Vec::new());
    for pair in 0..pairs {
        // Each goes first in half of the pairs.
        let plans = [None, Some(path.as_str())];
        let mut runs = plans.map(|_| (0.0, String::new()));
        for k in [pair % 2, 1 - pair % 2] {
            runs[k] = timed(plans[k]);
        }
        let [(s, digest), (with_s, with_digest)] = runs;
        assert_eq!(digest, with_digest, "an empty plan changes nothing");
        without_s = without_s.min(s);
        ratios.push(with_s / s);
    }
    ratios.sort_by(f64::total_cmp);
    let rows = [
        Row {
            what: "full-load decode, 2 steps, no plan".into(),
            value: without_s,
            unit: "s of CPU",
            against: Vec::new(),
        },
        Row {
            what: format!(
                "  empty plan over none: median of {pairs} pairs ({:.3} to {:.3})",
                ratios[0],
                ratios[pairs - 1]
            ),
            value: ratios[pairs / 2],
            unit: "x no plan",
            against: Vec::new(),
        },
    ];
    common::print("empty_plan", &rows);
}
