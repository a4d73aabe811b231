//! Requests that are drawn: open-loop arrivals at a rate, closed-loop requests without times, lengths fixed or
//! from a distribution. A trace can lend them its lengths and prefixes.

use super::draw::Draw;
use super::shape::OwnIds;
use super::{Row, Trace};
use crate::error::{Error, Result};
use crate::scenario::{Distribution, Kind, Length, PhaseSpec, Scenario};

/// Requests of a closed loop for each place in the machine, when the scenario does not say: one that fills,
/// and enough after it to see it run steadily.
const REQUESTS_PER_PLACE: u64 = 4;

/// Streams of the draws here, apart from each other and from those of other parts of a workload: changing
/// one distribution leaves the draws of the others as they were.
const ARRIVALS: u64 = 0x5359_0001;
const PROMPTS: u64 = 0x5359_0002;
const OUTPUTS: u64 = 0x5359_0003;

/// More requests at once than this would overflow the mailbox of whoever hears of all of them.
const PLACES_MOST: f64 = 1_000_000.0;

/// The requests in the machine at any time of a closed loop.
pub fn concurrency(scenario: &Scenario) -> Result<u32> {
    let spec = &scenario.workload;
    let npus = match spec.phase {
        PhaseSpec::Prefill => scenario.prefill_npus(),
        PhaseSpec::Both | PhaseSpec::Decode => scenario.decode_npus(),
    };
    let per_npu = spec.concurrency_per_npu.unwrap_or(0.0);
    let places = (per_npu * f64::from(npus)).round();
    if !(1.0..=PLACES_MOST).contains(&places) {
        return Err(Error::user(format!(
            "workload.concurrency_per_npu = {per_npu}: makes {places} requests on {npus} NPUs, expected 1 to {PLACES_MOST}"
        )));
    }
    Ok(places as u32)
}

/// Rows of kind "open" and "closed"; those of a closed loop arrive at 0 s.
pub fn rows(scenario: &Scenario, lengths: Option<Trace>, context: u32) -> Result<Vec<Row>> {
    let spec = &scenario.workload;
    let rate = match spec.kind {
        Kind::Open => spec.rate_per_s.unwrap_or(1.0),
        _ => f64::INFINITY,
    };
    let count = match (spec.kind, spec.requests, &lengths) {
        (_, Some(requests), _) => requests,
        (Kind::Closed, None, _) => u64::from(concurrency(scenario)?) * REQUESTS_PER_PLACE,
        (_, None, Some(trace)) if spec.duration_s.is_none() => trace.rows.len() as u64,
        _ => u64::MAX,
    };
    let until_s = spec.duration_s.unwrap_or(f64::INFINITY);
    let laps = lengths
        .as_ref()
        .map_or(1, |t| count.min(1 << 32) / t.rows.len() as u64 + 1);
    let ids = lengths.as_ref().map(|t| OwnIds::new(&t.rows, laps));
    let mut arrivals = Draw::new(scenario.seed, ARRIVALS);
    let mut prompts = Draw::new(scenario.seed, PROMPTS);
    let mut outputs = Draw::new(scenario.seed, OUTPUTS);
    let mut rows = Vec::new();
    let mut at_s = 0.0;
    for i in 0..count {
        at_s += if rate.is_finite() {
            gap_s(rate, spec.cv, &mut arrivals)
        } else {
            0.0
        };
        if at_s >= until_s {
            break;
        }
        rows.push(match (&lengths, &ids) {
            (Some(trace), Some(own)) => {
                let n = trace.rows.len() as u64;
                let row = &trace.rows[(i % n) as usize];
                // A trace that is played again has other content.
                Row {
                    at_s,
                    ids: row.ids.as_deref().map(|ids| own.of(i / n, ids)),
                    ..row.clone_lengths()
                }
            }
            _ => Row {
                at_s,
                prompt_tokens: draw_length(&spec.prompt_tokens, context, &mut prompts),
                output_tokens: draw_length(&spec.output_tokens, context, &mut outputs),
                ids: None,
            },
        });
    }
    if rows.is_empty() {
        return Err(Error::user(format!(
            "workload.duration_s = {until_s}: at workload.rate_per_s = {rate} no request arrives so early (the first comes at {at_s:.3} s)"
        )));
    }
    Ok(rows)
}

/// Time to the next arrival: gamma with shape 1/cv², which is exponential at cv 1 and regular at 0.
fn gap_s(rate: f64, cv: f64, draw: &mut Draw) -> f64 {
    if cv == 0.0 {
        return 1.0 / rate;
    }
    if cv == 1.0 {
        return draw.exponential(1.0 / rate);
    }
    let shape = 1.0 / (cv * cv);
    draw.gamma(shape, 1.0 / (rate * shape))
}

fn draw_length(length: &Length, context: u32, draw: &mut Draw) -> u32 {
    let spec = match length {
        Length::Fixed(tokens) => return *tokens,
        Length::Drawn(spec) => spec,
    };
    let min = spec.min.unwrap_or(1);
    let max = spec.max.unwrap_or(context).max(min);
    let mean = spec.mean.unwrap_or(1.0);
    let tokens = match spec.dist {
        Distribution::Fixed => mean,
        Distribution::Uniform => return min + draw.below(u64::from(max - min) + 1) as u32,
        Distribution::Exponential => draw.exponential(mean),
        Distribution::Lognormal => draw.lognormal(mean, spec.cv.unwrap_or(1.0)),
    };
    (tokens.round().clamp(f64::from(min), f64::from(max))) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::{Drawn, WorkloadSpec};

    fn open(workload: WorkloadSpec) -> Scenario {
        Scenario {
            workload: WorkloadSpec {
                kind: Kind::Open,
                ..workload
            },
            ..Scenario::default()
        }
    }

    fn lognormal(mean: f64) -> Length {
        Length::Drawn(Drawn {
            dist: Distribution::Lognormal,
            mean: Some(mean),
            cv: Some(1.0),
            min: None,
            max: Some(9_000),
        })
    }

    #[test]
    fn open_arrivals_have_the_rate_and_the_spread_that_were_asked() {
        for cv in [0.0, 0.5, 1.0, 3.0] {
            let s = open(WorkloadSpec {
                rate_per_s: Some(50.0),
                cv,
                requests: Some(60_000),
                ..WorkloadSpec::default()
            });
            let rows = rows(&s, None, 131_072).unwrap();
            let gaps: Vec<f64> = rows.windows(2).map(|w| w[1].at_s - w[0].at_s).collect();
            let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
            let var = gaps.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
            assert!(
                (mean * 50.0 - 1.0).abs() < 0.04,
                "rate of cv {cv}: {}",
                1.0 / mean
            );
            assert!(
                (var.sqrt() / mean - cv).abs() < 0.05 * cv.max(0.1),
                "cv {cv}: {}",
                var.sqrt() / mean
            );
        }
    }

    #[test]
    fn lengths_follow_their_distribution_and_bounds() {
        let s = open(WorkloadSpec {
            rate_per_s: Some(1e3),
            duration_s: Some(50.0),
            prompt_tokens: lognormal(1_000.0),
            output_tokens: Length::Drawn(Drawn {
                dist: Distribution::Uniform,
                mean: None,
                cv: None,
                min: Some(3),
                max: Some(5),
            }),
            ..WorkloadSpec::default()
        });
        let rows = rows(&s, None, 131_072).unwrap();
        let mean = rows.iter().map(|r| f64::from(r.prompt_tokens)).sum::<f64>() / rows.len() as f64;
        assert!((900.0..1_050.0).contains(&mean), "{mean}");
        assert!(
            rows.iter()
                .all(|r| r.prompt_tokens <= 9_000 && (3..=5).contains(&r.output_tokens))
        );
        assert!((3..=5).all(|n| rows.iter().any(|r| r.output_tokens == n)));
    }

    #[test]
    fn a_trace_that_lends_its_lengths_twice_shares_no_block_between_the_laps() {
        let mut trace = Trace::new("t", crate::scenario::Format::Mooncake);
        trace.rows = vec![Row {
            at_s: 0.0,
            prompt_tokens: 600,
            output_tokens: 7,
            ids: Some([4, 9].into()),
        }];
        let s = open(WorkloadSpec {
            rate_per_s: Some(1.0),
            requests: Some(3),
            ..WorkloadSpec::default()
        });
        let rows = rows(&s, Some(trace), 131_072).unwrap();
        let ids: Vec<&[u64]> = rows.iter().map(|r| r.ids.as_deref().unwrap()).collect();
        assert_eq!(ids, [&[4, 9][..], &[14, 19], &[24, 29]]);
    }

    #[test]
    fn a_closed_loop_fills_the_pool_of_its_phase() {
        let mut s = open(WorkloadSpec {
            concurrency_per_npu: Some(96.0),
            ..WorkloadSpec::default()
        });
        s.workload.kind = Kind::Closed;
        s.workload.phase = PhaseSpec::Decode;
        assert_eq!(concurrency(&s).unwrap(), 160 * 96);
        s.workload.phase = PhaseSpec::Prefill;
        s.workload.concurrency_per_npu = Some(0.5);
        assert_eq!(concurrency(&s).unwrap(), 48);
        assert_eq!(rows(&s, None, 131_072).unwrap().len(), 48 * 4);
        s.workload.concurrency_per_npu = Some(0.001);
        assert!(concurrency(&s).is_err());
    }
}
