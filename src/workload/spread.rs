//! Arrival times that a trace rounds to a coarse grid (Mooncake's conversation trace to 3 s, BurstGPT to 1 s):
//! found by looking at them, and spread evenly inside their bucket, by seed.

use super::draw::Draw;
use super::{Row, Trace};

/// Grids that are looked for, in milliseconds.
const GRIDS_MS: [u64; 16] = [
    100, 200, 250, 500, 1_000, 2_000, 3_000, 4_000, 5_000, 10_000, 15_000, 20_000, 30_000, 60_000,
    300_000, 600_000,
];
/// Fewer distinct times than this say nothing about a grid.
const DISTINCT_MIN: usize = 10;
/// A grid that rounds makes times coincide: at least one row in this many shares its time.
const SHARED_ONE_IN: usize = 10;
/// Times may be off their grid by one part in this many, or by a millisecond: whoever rounded them did so with
/// a clock that was late now and then.
const SLACK_ONE_IN: u64 = 500;
/// Stream of the draws here, apart from those of other parts of a workload.
const STREAM: u64 = 0x5052_4541_4400;

/// The grid in seconds on which all times lie (give or take a little), if they are coarse enough to
/// bunch requests that in truth came one by one.
pub fn grid_s(rows: &[Row]) -> Option<f64> {
    let times_ms: Vec<u64> = rows.iter().map(|r| (r.at_s * 1e3).round() as u64).collect();
    let mut distinct = times_ms.clone();
    distinct.dedup();
    if distinct.len() < DISTINCT_MIN || (rows.len() - distinct.len()) * SHARED_ONE_IN < rows.len() {
        return None;
    }
    // Rounding leaves nothing between the milliseconds either.
    if rows
        .iter()
        .any(|r| (r.at_s * 1e3 - (r.at_s * 1e3).round()).abs() > 1e-3)
    {
        return None;
    }
    let on = |grid: u64| {
        let slack = (grid / SLACK_ONE_IN).max(1);
        distinct
            .iter()
            .all(|t| t % grid <= slack || t % grid >= grid - slack)
    };
    GRIDS_MS
        .iter()
        .rev()
        .find(|g| on(**g))
        .map(|g| *g as f64 / 1e3)
}

/// Spreads the arrivals of each bucket over it. Rows stay in order of arrival.
pub fn spread(trace: &mut Trace, grid_s: f64, seed: u64) {
    let mut draw = Draw::new(seed, STREAM);
    for row in &mut trace.rows {
        let bucket = (row.at_s / grid_s).round();
        row.at_s = (bucket + draw.unit()) * grid_s;
    }
    trace.rows.sort_by(|a, b| a.at_s.total_cmp(&b.at_s));
    let last = trace.rows.last().map_or(0.0, |r| r.at_s);
    trace.span_s = ((last / grid_s).floor() + 1.0) * grid_s;
}

#[cfg(test)]
mod tests {
    use super::super::Row;
    use super::*;
    use crate::scenario::Format;

    fn rows(times_s: impl IntoIterator<Item = f64>) -> Vec<Row> {
        times_s
            .into_iter()
            .map(|at_s| Row {
                at_s,
                prompt_tokens: 1,
                output_tokens: 1,
                ids: None,
            })
            .collect()
    }

    #[test]
    fn a_grid_is_found_only_where_rounding_made_one() {
        // 3-second buckets that end a millisecond early, as in Mooncake's conversation trace.
        let bunched = rows((0..90).map(|i| f64::from(i / 3 * 3_000 - i32::from(i >= 3)) / 1e3));
        assert_eq!(grid_s(&bunched), Some(3.0));
        assert_eq!(grid_s(&rows((0..40).map(|i| f64::from(i / 2)))), Some(1.0));
        // One request a second is a schedule, not rounding; neither are a few bursts, or fine times.
        assert_eq!(grid_s(&rows((0..40).map(f64::from))), None);
        assert_eq!(grid_s(&rows([0.0, 0.0, 0.0, 5.0, 5.0, 5.0])), None);
        assert_eq!(
            grid_s(&rows((0..40).map(|i| f64::from(i / 2) * 0.37 + 0.0001))),
            None
        );
    }

    #[test]
    fn spreading_keeps_each_request_in_its_bucket_and_follows_the_seed() {
        let mut trace = Trace::new("t", Format::Mooncake);
        trace.rows = rows((0..300).map(|i| f64::from(i / 30)));
        let before = trace.rows.clone();
        let (mut a, mut b, mut c) = (trace.clone(), trace.clone(), trace);
        spread(&mut a, 1.0, 5);
        spread(&mut b, 1.0, 5);
        spread(&mut c, 1.0, 6);
        assert_eq!(a.rows, b.rows);
        assert_ne!(a.rows, c.rows);
        for (spread, was) in a.rows.iter().zip(&before) {
            assert_eq!(spread.at_s.floor(), was.at_s);
        }
        assert!(a.rows.windows(2).all(|w| w[0].at_s < w[1].at_s));
        assert_eq!(a.span_s, 10.0);
    }
}
