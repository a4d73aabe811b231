//! Scaling and cutting a trace: where it starts, copies, speed, and how much of it is played.

use super::{Row, Trace, spread};
use crate::error::{Error, Result};
use crate::scenario::{REQUESTS_MAX, Spread, WorkloadSpec};

/// Applies `start_s`, `spread`, `copies`, `speed`, `duration_s` and `requests`, in this order.
pub fn shape(
    mut trace: Trace,
    spec: &WorkloadSpec,
    seed: u64,
    notes: &mut Vec<String>,
) -> Result<Vec<Row>> {
    // Before anything is cut, while the whole trace shows how its times are rounded.
    if let Some(grid_s) = spread::grid_s(&trace.rows) {
        match spec.spread {
            Spread::Auto => {
                notes.push(format!(
                    "arrival times of {} are rounded to {grid_s} s: spread evenly inside each {grid_s} s, by seed",
                    trace.name
                ));
                spread::spread(&mut trace, grid_s, seed);
            }
            Spread::Off => notes.push(format!(
                "arrival times of {} are rounded to {grid_s} s and played so (workload.spread = \"off\")",
                trace.name
            )),
        }
    }
    if spec.start_s > 0.0 && !trace.starts_where_asked() {
        skip(&mut trace, spec.start_s)?;
    }
    let mut rows = if spec.copies > 1 {
        notes.push(format!(
            "{} copies of {}, each shifted by {:.1} s more than the one before (around the end) and with KV blocks of its own",
            spec.copies,
            trace.name,
            trace.span_s / f64::from(spec.copies)
        ));
        let until_s = spec.duration_s.map_or(f64::INFINITY, |d| d * spec.speed);
        copies(&trace, spec.copies, until_s)?
    } else {
        trace.rows
    };
    if spec.speed != 1.0 {
        for row in &mut rows {
            row.at_s /= spec.speed;
        }
    }
    if let Some(duration_s) = spec.duration_s {
        let first_s = rows.first().map_or(0.0, |r| r.at_s);
        rows.truncate(rows.partition_point(|r| r.at_s < duration_s));
        if rows.is_empty() {
            return Err(Error::user(format!(
                "workload.duration_s = {duration_s}: no request of {} arrives so early, the first comes at {first_s:.3} s",
                trace.name
            )));
        }
    }
    if let Some(requests) = spec.requests {
        rows.truncate(usize::try_from(requests).unwrap_or(usize::MAX));
    }
    Ok(rows)
}

impl Trace {
    /// ServeGen days are drawn from the start that was asked for.
    fn starts_where_asked(&self) -> bool {
        self.format == crate::scenario::Format::ServeGen
    }
}

fn skip(trace: &mut Trace, start_s: f64) -> Result<()> {
    let last_s = trace.rows.last().map_or(0.0, |r| r.at_s);
    let skipped = trace.rows.partition_point(|r| r.at_s < start_s);
    if skipped == trace.rows.len() {
        return Err(Error::user(format!(
            "workload.start_s = {start_s}: the last request of {} arrives at {last_s:.1} s",
            trace.name
        )));
    }
    trace.rows.drain(..skipped);
    for row in &mut trace.rows {
        row.at_s -= start_s;
    }
    trace.span_s = (trace.span_s - start_s).max(f64::MIN_POSITIVE);
    Ok(())
}

/// Superposes `n` copies and keeps what arrives before `until_s`. Copy `c` is turned by `c / n` of the span, so
/// that all copies cover the same time and no burst meets itself; its block ids are its own.
pub fn copies(trace: &Trace, n: u32, until_s: f64) -> Result<Vec<Row>> {
    let ids = OwnIds::new(&trace.rows, u64::from(n));
    let kept = trace.rows.len() as f64 * f64::from(n) * (until_s / trace.span_s).min(1.0);
    if kept > REQUESTS_MAX as f64 {
        return Err(Error::user(format!(
            "workload.copies = {n}: makes more than {REQUESTS_MAX} requests of the {} of {}; workload.duration_s (--for) keeps a part",
            trace.rows.len(),
            trace.name
        )));
    }
    let mut rows = Vec::with_capacity(kept as usize);
    for copy in 0..n {
        let shift_s = trace.span_s * f64::from(copy) / f64::from(n);
        for row in &trace.rows {
            let mut at_s = row.at_s + shift_s;
            if at_s >= trace.span_s && copy > 0 {
                at_s -= trace.span_s;
            }
            if at_s < until_s {
                let own = row.ids.as_deref().map(|own| ids.of(u64::from(copy), own));
                rows.push(Row {
                    at_s,
                    ids: own,
                    ..row.clone_lengths()
                });
            }
        }
    }
    // Stable: requests of one moment stay in the order of their copies.
    rows.sort_by(|a, b| a.at_s.total_cmp(&b.at_s));
    Ok(rows)
}

impl Row {
    /// All but the ids.
    pub fn clone_lengths(&self) -> Self {
        Self {
            at_s: self.at_s,
            prompt_tokens: self.prompt_tokens,
            output_tokens: self.output_tokens,
            ids: None,
        }
    }
}

/// Block ids for several copies of a trace: those of different copies never meet.
pub struct OwnIds {
    /// Ids of one copy are below this.
    stride: u64,
    /// For ids too large to be offset: all of them in order, their rank being the new id.
    sorted: Option<Vec<u64>>,
}

impl OwnIds {
    pub fn new(rows: &[Row], copies: u64) -> Self {
        let all = || {
            rows.iter()
                .filter_map(|r| r.ids.as_deref())
                .flatten()
                .copied()
        };
        let stride = all().max().map_or(Some(0), |max| max.checked_add(1));
        match stride {
            Some(stride) if stride.checked_mul(copies).is_some() => Self {
                stride,
                sorted: None,
            },
            _ => {
                let mut sorted: Vec<u64> = all().collect();
                sorted.sort_unstable();
                sorted.dedup();
                Self {
                    stride: sorted.len() as u64,
                    sorted: Some(sorted),
                }
            }
        }
    }

    /// The first id that no row of the first copy has.
    pub fn after(&self) -> u64 {
        self.stride
    }

    pub fn of(&self, copy: u64, ids: &[u64]) -> Box<[u64]> {
        let offset = copy.wrapping_mul(self.stride);
        let rank = |id: u64| match &self.sorted {
            Some(sorted) => sorted.partition_point(|x| *x < id) as u64,
            None => id,
        };
        ids.iter()
            .map(|id| offset.wrapping_add(rank(*id)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Format;

    fn trace(ids: &[&[u64]]) -> Trace {
        let mut t = Trace::new("t", Format::Mooncake);
        t.rows = ids
            .iter()
            .enumerate()
            .map(|(i, ids)| Row {
                at_s: i as f64,
                prompt_tokens: 600,
                output_tokens: 5,
                ids: Some((*ids).into()),
            })
            .collect();
        t.span_s = ids.len() as f64;
        t
    }

    #[test]
    fn copies_share_no_block_and_keep_the_sharing_inside_each() {
        for ids in [
            [&[0, 1][..], &[0, 2], &[0, 1]],
            [&[u64::MAX, 1], &[u64::MAX, 7], &[u64::MAX, 1]],
        ] {
            let rows = copies(&trace(&ids), 4, f64::INFINITY).unwrap();
            assert_eq!(rows.len(), 12);
            let heads: std::collections::BTreeSet<u64> =
                rows.iter().map(|r| r.ids.as_ref().unwrap()[0]).collect();
            assert_eq!(heads.len(), 4, "one first block for each copy");
            let all: std::collections::BTreeSet<u64> = rows
                .iter()
                .flat_map(|r| r.ids.as_ref().unwrap().iter().copied())
                .collect();
            assert_eq!(all.len(), 12, "three blocks for each copy");
        }
    }

    #[test]
    fn copies_cover_the_time_of_the_trace_in_order() {
        let rows = copies(&trace(&[&[0], &[1], &[2], &[3]]), 2, f64::INFINITY).unwrap();
        let times: Vec<f64> = rows.iter().map(|r| r.at_s).collect();
        assert_eq!(times, [0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0]);
        // The second copy starts half way: its first request comes at 2 s.
        assert_eq!(rows[5].ids.as_deref(), Some(&[4u64][..]));
    }

    #[test]
    fn speed_duration_and_requests_apply_in_this_order() {
        let spec = WorkloadSpec {
            speed: 2.0,
            duration_s: Some(1.5),
            requests: Some(2),
            ..WorkloadSpec::default()
        };
        let t = trace(&[&[0], &[1], &[2], &[3], &[4]]);
        let mut notes = Vec::new();
        let times = |rows: Vec<Row>| rows.iter().map(|r| r.at_s).collect::<Vec<_>>();
        assert_eq!(
            times(shape(t.clone(), &spec, 1, &mut notes).unwrap()),
            [0.0, 0.5]
        );
        let spec = WorkloadSpec {
            requests: None,
            ..spec
        };
        assert_eq!(
            times(shape(t.clone(), &spec, 1, &mut notes).unwrap()),
            [0.0, 0.5, 1.0]
        );
        let spec = WorkloadSpec {
            start_s: 3.0,
            ..WorkloadSpec::default()
        };
        assert_eq!(
            times(shape(t.clone(), &spec, 1, &mut notes).unwrap()),
            [0.0, 1.0]
        );
        let spec = WorkloadSpec {
            start_s: 30.0,
            ..WorkloadSpec::default()
        };
        assert!(
            shape(t, &spec, 1, &mut notes)
                .unwrap_err()
                .to_string()
                .contains("workload.start_s = 30")
        );
    }
}
