//! What the workload offered, what was served of it, and by how much it was more than the machine could serve.

use serde::Serialize;
use supernode_actors::request::{Outcome, RequestRecord};
use supernode_actors::time::s_from_ps;

use super::{Inputs, Offered, ratio};
use crate::scenario::PhaseSpec;

/// The workload of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LoadReport {
    pub name: String,
    pub kind: &'static str,
    pub format: &'static str,
    pub phase: PhaseSpec,
    pub requests: u64,
    pub prompt_tokens_mean: f64,
    pub output_tokens_mean: f64,
    /// Closed loop: requests in the machine at any time.
    pub concurrency: Option<u32>,
    /// From the first arrival to the last; 0 for a closed loop.
    pub span_s: f64,
    /// What arrived in that time, of the work that the workload's phase asks for.
    pub offered: Option<Rates>,
    /// What was done in that time (closed loop: in the whole run): requests ended, prompts that reached their
    /// first token, output tokens.
    pub served: Rates,
    /// Present when more arrived than the machine could serve.
    pub overload: Option<Overload>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Rates {
    pub requests_per_s: f64,
    pub prompt_tokens_per_s: f64,
    pub output_tokens_per_s: f64,
}

/// More arrived than was served.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Overload {
    /// Offered over served tokens per second (of prompts or of outputs, whichever fell behind more) in the
    /// second half of the arrivals.
    pub factor: f64,
    /// Requests in the machine, and what was left of them to do, when the last one arrived.
    pub backlog_requests: u64,
    pub backlog_prompt_tokens: u64,
    pub backlog_output_tokens: u64,
    /// From the last arrival to the last token.
    pub drain_s: f64,
}

pub fn of(inputs: &Inputs) -> LoadReport {
    let offered = inputs.offered;
    let n = offered.len() as f64;
    let prompt: f64 = offered.iter().map(|o| f64::from(o.prompt_tokens)).sum();
    let output: f64 = offered.iter().map(|o| f64::from(o.output_tokens)).sum();
    let first_ps = offered.first().map_or(0, |o| o.arrival_ps);
    let last_ps = offered.last().map_or(0, |o| o.arrival_ps);
    let open = inputs.concurrency.is_none();
    let span_s = if open {
        s_from_ps(last_ps - first_ps)
    } else {
        0.0
    };
    // Without a span to measure over: the whole run.
    let end_ps = inputs.stats.end_ps;
    let until_ps = if span_s > 0.0 {
        last_ps.min(end_ps)
    } else {
        end_ps
    };
    let start_ps = if open { first_ps } else { 0 };
    let mut served = done_between(&inputs.stats.records, start_ps, until_ps);
    let phase = inputs.source.phase;
    if phase == PhaseSpec::Decode {
        served.prompt_tokens = 0.0;
    }
    let asked: Vec<Offered> = offered.iter().map(|o| asked_of(o, phase)).collect();
    let asked_sum = |f: fn(&Offered) -> u32| asked.iter().map(|o| f64::from(f(o))).sum::<f64>();
    let served_s = s_from_ps(until_ps.saturating_sub(start_ps));
    LoadReport {
        name: inputs.source.name.clone(),
        kind: inputs.source.kind,
        format: inputs.source.format,
        phase: inputs.source.phase,
        requests: offered.len() as u64,
        prompt_tokens_mean: ratio(prompt, n),
        output_tokens_mean: ratio(output, n),
        concurrency: inputs.concurrency,
        span_s,
        offered: (span_s > 0.0).then(|| Rates {
            requests_per_s: ratio(n, span_s),
            prompt_tokens_per_s: ratio(asked_sum(|o| o.prompt_tokens), span_s),
            output_tokens_per_s: ratio(asked_sum(|o| o.output_tokens), span_s),
        }),
        served: Rates {
            requests_per_s: ratio(served.requests, served_s),
            prompt_tokens_per_s: ratio(served.prompt_tokens, served_s),
            output_tokens_per_s: ratio(served.output_tokens, served_s),
        },
        overload: if open {
            overload(&asked, &inputs.stats.records, inputs.stats.end_ps)
        } else {
            None
        },
    }
}

/// What a workload that exercises one phase asks of the machine: prefill alone makes first tokens, decode alone
/// gets prompts that are computed.
fn asked_of(o: &Offered, phase: PhaseSpec) -> Offered {
    match phase {
        PhaseSpec::Both => *o,
        PhaseSpec::Prefill => Offered {
            output_tokens: o.output_tokens.min(1),
            ..*o
        },
        PhaseSpec::Decode => Offered {
            prompt_tokens: 0,
            ..*o
        },
    }
}

/// Fewer arrivals than this do not show whether a backlog grows.
const ARRIVALS_MIN: usize = 40;
/// A backlog that grew by this factor from the middle of the arrivals to their end is not steady.
const BACKLOG_GROWTH: f64 = 1.3;
/// And waiting must have grown by this factor from the first quarter of the arrivals to the last, so that
/// a machine that is merely filling up is not called overloaded.
const WAIT_GROWTH: f64 = 1.5;

/// A machine is overloaded if its backlog grows as long as requests arrive and the later ones wait longer for
/// it: for their first token, or between tokens.
fn overload(offered: &[Offered], records: &[RequestRecord], end_ps: u64) -> Option<Overload> {
    if offered.len() < ARRIVALS_MIN || records.is_empty() {
        return None;
    }
    let last_ps = offered[offered.len() - 1].arrival_ps;
    let middle_ps = offered[0].arrival_ps + (last_ps - offered[0].arrival_ps) / 2;
    // What a stopped run did not end is in its backlog too.
    let backlog = |at_ps: u64| {
        let arrived = offered.partition_point(|o| o.arrival_ps <= at_ps) as f64;
        arrived - records.iter().filter(|r| r.end_ps <= at_ps).count() as f64
    };
    let until_ps = last_ps.min(end_ps);
    let grown = backlog(until_ps) > BACKLOG_GROWTH * backlog(middle_ps).max(1.0);
    if !grown || !waits_grow(records) || until_ps <= middle_ps {
        return None;
    }
    let within = |o: &&Offered| o.arrival_ps > middle_ps && o.arrival_ps <= until_ps;
    let asked = |f: fn(&Offered) -> u32| {
        offered
            .iter()
            .filter(within)
            .map(|o| f64::from(f(o)))
            .sum::<f64>()
    };
    let done = done_between(records, middle_ps, until_ps);
    let by_last = done_between(records, 0, until_ps);
    // Work that came and went is what was failed, not what was served: it is no backlog either.
    let failed = |f: fn(&RequestRecord) -> u32| -> u64 {
        records
            .iter()
            .filter(|r| r.outcome != Outcome::Completed)
            .map(|r| u64::from(f(r)))
            .sum()
    };
    let arrived = &offered[..offered.partition_point(|o| o.arrival_ps <= until_ps)];
    let sum = |f: fn(&Offered) -> u32| arrived.iter().map(|o| u64::from(f(o))).sum::<u64>();
    Some(Overload {
        factor: ratio(asked(|o| o.prompt_tokens), done.prompt_tokens)
            .max(ratio(asked(|o| o.output_tokens), done.output_tokens)),
        backlog_requests: backlog(until_ps) as u64,
        backlog_prompt_tokens: sum(|o| o.prompt_tokens)
            .saturating_sub(by_last.prompt_tokens as u64 + failed(|r| r.prompt_tokens)),
        backlog_output_tokens: sum(|o| o.output_tokens)
            .saturating_sub(by_last.output_tokens as u64 + failed(|r| r.output_tokens)),
        drain_s: s_from_ps(end_ps.saturating_sub(last_ps)),
    })
    .filter(|o| o.factor > 1.0)
}

/// Work that completed requests had done to them.
struct Done {
    requests: f64,
    prompt_tokens: f64,
    output_tokens: f64,
}

/// Work done after one time and up to another.
fn done_between(records: &[RequestRecord], after_ps: u64, until_ps: u64) -> Done {
    let mut done = Done {
        requests: 0.0,
        prompt_tokens: 0.0,
        output_tokens: 0.0,
    };
    let within = |at_ps: u64| (at_ps > after_ps || after_ps == 0) && at_ps <= until_ps;
    for r in records.iter().filter(|r| r.outcome == Outcome::Completed) {
        done.requests += f64::from(u8::from(within(r.end_ps)));
        if within(r.first_token_ps) {
            done.prompt_tokens += f64::from(r.prompt_tokens);
        }
        let before = if after_ps == 0 {
            0.0
        } else {
            made_by(r, after_ps)
        };
        done.output_tokens += made_by(r, until_ps) - before;
    }
    done
}

/// Tokens of a request made by a time, taking them as evenly spaced after the first.
fn made_by(r: &RequestRecord, at_ps: u64) -> f64 {
    if at_ps < r.first_token_ps {
        return 0.0;
    }
    let after_first = f64::from(r.output_tokens.saturating_sub(1));
    let share = ratio(
        (at_ps.min(r.end_ps) - r.first_token_ps) as f64,
        (r.end_ps - r.first_token_ps) as f64,
    );
    1.0 + after_first * share
}

fn waits_grow(records: &[RequestRecord]) -> bool {
    let quarter = records.len() / 4;
    let (early, late) = (&records[..quarter], &records[records.len() - quarter..]);
    let grows = |f: fn(&RequestRecord) -> Option<u64>| match (median(early, f), median(late, f)) {
        (Some(a), Some(b)) => b as f64 > WAIT_GROWTH * a as f64,
        _ => false,
    };
    grows(|r| Some(r.ttft_ps())) || grows(RequestRecord::tpot_ps)
}

fn median(records: &[RequestRecord], f: fn(&RequestRecord) -> Option<u64>) -> Option<u64> {
    let mut all: Vec<u64> = records
        .iter()
        .filter(|r| r.outcome == Outcome::Completed)
        .filter_map(f)
        .collect();
    all.sort_unstable();
    all.get(all.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000_000;

    /// One server that takes `service_ms` for each request, which arrive every 10 ms, and then makes 9 more
    /// tokens in 9 ms.
    fn queue(service_ms: u64) -> (Vec<Offered>, Vec<RequestRecord>) {
        let (mut offered, mut records, mut free) = (Vec::new(), Vec::new(), 0);
        for id in 0..1_000u64 {
            let arrival_ps = id * 10 * MS;
            free = arrival_ps.max(free) + service_ms * MS;
            offered.push(Offered {
                arrival_ps,
                prompt_tokens: 100,
                output_tokens: 10,
            });
            records.push(RequestRecord {
                prefill_start_ps: 0,
                id,
                home: 0,
                arrival_ps,
                first_token_ps: free,
                end_ps: free + 9 * MS,
                prompt_tokens: 100,
                cached_tokens: 0,
                output_tokens: 10,
                retries: 0,
                outcome: Outcome::Completed,
            });
        }
        (offered, records)
    }

    #[test]
    fn a_load_twice_what_can_be_served_is_called_so() {
        let (offered, records) = queue(20);
        let end = records.last().unwrap().end_ps;
        let o = overload(&offered, &records, end).expect("an overload");
        assert!((o.factor - 2.0).abs() < 0.05, "{o:?}");
        assert!((498..=502).contains(&o.backlog_requests), "{o:?}");
        assert!(
            (o.backlog_prompt_tokens as i64 - 50_000).abs() < 300,
            "{o:?}"
        );
        assert!((o.drain_s - 10.0).abs() < 0.1, "{o:?}");
    }

    /// Requests that end with their first token leave no output tokens behind, whatever the trace says they make.
    #[test]
    fn a_phase_is_measured_by_what_it_asks_of_the_machine() {
        let (offered, mut records) = queue(20);
        for r in &mut records {
            (r.output_tokens, r.end_ps) = (1, r.first_token_ps);
        }
        let end = records.last().unwrap().end_ps;
        let asked: Vec<Offered> = offered
            .iter()
            .map(|o| asked_of(o, PhaseSpec::Prefill))
            .collect();
        let o = overload(&asked, &records, end).expect("an overload");
        assert!((o.factor - 2.0).abs() < 0.05, "{o:?}");
        assert_eq!(o.backlog_output_tokens, o.backlog_requests);
        // Decode alone has no prompts to compute.
        let asked = asked_of(&offered[0], PhaseSpec::Decode);
        assert_eq!((asked.prompt_tokens, asked.output_tokens), (0, 10));
    }

    #[test]
    fn a_load_that_is_served_is_not_called_an_overload() {
        for service_ms in [1, 5, 9, 10] {
            let (offered, records) = queue(service_ms);
            assert_eq!(
                overload(&offered, &records, records.last().unwrap().end_ps),
                None,
                "{service_ms}"
            );
        }
        // Long answers on a machine that fills up: the backlog grows, but nobody waits longer.
        let (offered, mut records) = queue(1);
        for r in &mut records {
            r.end_ps = r.first_token_ps + 100_000 * MS;
        }
        assert_eq!(
            overload(&offered, &records, records.last().unwrap().end_ps),
            None
        );
    }
}
