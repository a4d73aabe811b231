//! What a trace holds: rate, burstiness, lengths, and how much of it a cache without limits would save.

use std::collections::HashSet;

use serde::Serialize;

use super::mooncake::BLOCK_TOKENS;
use super::{Trace, spread};

/// A trace in figures.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Description {
    pub name: String,
    pub format: &'static str,
    pub requests: u64,
    pub span_s: f64,
    pub requests_per_s: f64,
    /// Coefficient of variation of the times between arrivals.
    pub inter_arrival_cv: f64,
    /// Grid that arrival times are rounded to.
    pub rounded_to_s: Option<f64>,
    pub input_tokens: Percentiles,
    pub output_tokens: Percentiles,
    pub input_tokens_per_s: f64,
    pub output_tokens_per_s: f64,
    /// Where prompts have block ids.
    pub prefix: Option<PrefixShare>,
    pub notes: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Percentiles {
    pub mean: f64,
    pub p10: u32,
    pub p50: u32,
    pub p90: u32,
    pub p95: u32,
    pub p99: u32,
    pub max: u32,
}

/// Hits in a cache that forgets nothing.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PrefixShare {
    pub blocks: u64,
    pub unique_blocks: u64,
    pub hit_blocks_share: f64,
    pub hit_tokens_share: f64,
    /// Requests of which nothing is in the cache.
    pub requests_without_hit_share: f64,
}

pub fn describe(trace: &Trace) -> Description {
    let rows = &trace.rows;
    let n = rows.len() as f64;
    let last_s = rows.last().map_or(0.0, |r| r.at_s);
    let gaps: Vec<f64> = rows.windows(2).map(|w| w[1].at_s - w[0].at_s).collect();
    let mean = gaps.iter().sum::<f64>() / (gaps.len() as f64).max(1.0);
    let var = gaps.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / (gaps.len() as f64).max(1.0);
    let per_s = |total: f64| if last_s > 0.0 { total / last_s } else { 0.0 };
    let sum = |f: fn(&super::Row) -> u32| rows.iter().map(|r| f64::from(f(r))).sum::<f64>();
    Description {
        name: trace.name.clone(),
        format: trace.format.name(),
        requests: rows.len() as u64,
        span_s: last_s,
        requests_per_s: per_s(n),
        inter_arrival_cv: if mean > 0.0 { var.sqrt() / mean } else { 0.0 },
        rounded_to_s: spread::grid_s(rows),
        input_tokens: percentiles(rows.iter().map(|r| r.prompt_tokens).collect()),
        output_tokens: percentiles(rows.iter().map(|r| r.output_tokens).collect()),
        input_tokens_per_s: per_s(sum(|r| r.prompt_tokens)),
        output_tokens_per_s: per_s(sum(|r| r.output_tokens)),
        prefix: prefix_share(trace),
        notes: trace.notes.clone(),
    }
}

fn percentiles(mut values: Vec<u32>) -> Percentiles {
    values.sort_unstable();
    let at = |q: f64| {
        let rank = ((q * values.len() as f64).ceil() as usize).clamp(1, values.len().max(1));
        values.get(rank - 1).copied().unwrap_or(0)
    };
    let sum: f64 = values.iter().map(|v| f64::from(*v)).sum();
    Percentiles {
        mean: sum / (values.len() as f64).max(1.0),
        p10: at(0.10),
        p50: at(0.50),
        p90: at(0.90),
        p95: at(0.95),
        p99: at(0.99),
        max: at(1.0),
    }
}

fn prefix_share(trace: &Trace) -> Option<PrefixShare> {
    let mut seen: HashSet<u64> = HashSet::new();
    let (mut blocks, mut hits, mut tokens, mut hit_tokens, mut without) =
        (0u64, 0u64, 0u64, 0u64, 0u64);
    let mut any = false;
    for row in &trace.rows {
        tokens += u64::from(row.prompt_tokens);
        let Some(ids) = row.ids.as_deref() else {
            without += 1;
            continue;
        };
        any = true;
        let mut hit_here = 0;
        for (i, id) in ids.iter().enumerate() {
            blocks += 1;
            if !seen.insert(*id) {
                hit_here += 1;
                hit_tokens += u64::from(
                    row.prompt_tokens
                        .saturating_sub(i as u32 * BLOCK_TOKENS)
                        .min(BLOCK_TOKENS),
                );
            }
        }
        hits += hit_here;
        without += u64::from(hit_here == 0);
    }
    any.then(|| PrefixShare {
        blocks,
        unique_blocks: seen.len() as u64,
        hit_blocks_share: hits as f64 / blocks.max(1) as f64,
        hit_tokens_share: hit_tokens as f64 / tokens.max(1) as f64,
        requests_without_hit_share: without as f64 / trace.rows.len() as f64,
    })
}
