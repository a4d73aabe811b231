//! What a live machine has measured since it came up, in virtual time: histograms with the buckets that vLLM's
//! dashboards expect, counters, and the points of the last minutes' curves.

mod families;
mod histogram;
mod prometheus;
mod text;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;
use supernode_actors::live::Occupancy;
use supernode_actors::request::{Outcome, RequestRecord};
use supernode_actors::stats::FineHist;
use supernode_actors::time::{Ps, ms_from_ps, s_from_ps};

pub use families::{Families, Family};
pub use histogram::Histogram;
pub use prometheus::render;
pub use text::CONTENT_TYPE;

/// Points of the curves that are kept: one a second.
const POINTS_MOST: usize = 600;
/// The slowest requests that are remembered, of the latest ones.
const SLOW_MOST: usize = 20;
const SLOW_WITHIN: Duration = Duration::from_secs(300);

/// One second of the curves.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Point {
    /// Wall seconds since the machine came up, and virtual seconds.
    pub wall_s: f64,
    pub virtual_s: f64,
    /// Virtual seconds in one second on the wall.
    pub pace: f64,
    pub late_ms: f64,
    /// Per virtual second.
    pub prompt_tokens_per_s: f64,
    pub output_tokens_per_s: f64,
    pub requests_per_s: f64,
    pub open: u64,
    pub waiting: u64,
    /// Of first tokens and of gaps in this second; 0 without any.
    pub ttft_p50_ms: f64,
    pub ttft_p99_ms: f64,
    pub tpot_mean_ms: f64,
    pub tpot_p99_ms: f64,
    pub kv_share: f64,
}

/// What the HTTP side counts.
#[derive(Debug, Default)]
pub struct HttpCounters {
    /// By status class: 2xx, 4xx, 5xx.
    pub by_class: [AtomicU64; 3],
    pub disconnects: AtomicU64,
}

impl HttpCounters {
    pub fn answered(&self, status: u16) {
        let class = match status {
            0..=399 => 0,
            400..=499 => 1,
            _ => 2,
        };
        self.by_class[class].fetch_add(1, Ordering::Relaxed);
    }
}

/// Sums of one second.
#[derive(Clone, Debug, Default)]
struct Second {
    prompt_tokens: u64,
    output_tokens: u64,
    ended: u64,
    ttft: FineHist,
    tpot: FineHist,
}

#[derive(Clone, Debug)]
pub struct Meters {
    pub families: Families,
    pub stopped: u64,
    pub aborted: u64,
    pub failed: u64,
    pub cached_tokens: u64,
    pub prompt_tokens_done: u64,
    pub output_tokens_made: u64,
    pub steps_of_tokens: u64,
    pub asked: u64,
    pub streams: u64,
    second: Second,
    pub points: VecDeque<Point>,
    wall: Duration,
    last_ps: Ps,
    pub occupancy: Occupancy,
    /// (wall time of its end, record).
    slow: Vec<(Duration, RequestRecord)>,
}

impl Meters {
    pub fn new() -> Self {
        Self {
            families: Families::default(),
            stopped: 0,
            aborted: 0,
            failed: 0,
            cached_tokens: 0,
            prompt_tokens_done: 0,
            output_tokens_made: 0,
            steps_of_tokens: 0,
            asked: 0,
            streams: 0,
            second: Second::default(),
            points: VecDeque::new(),
            wall: Duration::ZERO,
            last_ps: 0,
            occupancy: Occupancy::default(),
            slow: Vec::new(),
        }
    }

    pub fn asked(&mut self, output_tokens: u32, streams: bool) {
        self.asked += 1;
        self.streams += u64::from(streams);
        self.families
            .record(Family::AskedTokens, f64::from(output_tokens));
    }

    pub fn first_token(&mut self, ttft_ps: Ps, count: u32) {
        self.families.record(Family::Ttft, s_from_ps(ttft_ps));
        self.second.ttft.record(ttft_ps);
        self.made(count);
    }

    /// Tokens that came together after a gap: each counts with its share of the gap, so that the mean is the time per
    /// output token.
    pub fn tokens(&mut self, gap_ps: Ps, count: u32) {
        let each_ps = gap_ps / u64::from(count.max(1));
        let each_s = s_from_ps(each_ps);
        for family in [Family::Itl, Family::ItlFine] {
            self.families.record_n(family, each_s, u64::from(count));
        }
        self.second.tpot.record_n(each_ps, count);
        self.made(count);
    }

    fn made(&mut self, count: u32) {
        self.output_tokens_made += u64::from(count);
        self.steps_of_tokens += 1;
        self.second.output_tokens += u64::from(count);
    }

    pub fn ended(&mut self, r: &RequestRecord) {
        self.second.ended += 1;
        match r.outcome {
            Outcome::Completed => self.stopped += 1,
            Outcome::Cancelled => self.aborted += 1,
            Outcome::Failed(_) => self.failed += 1,
        }
        if r.outcome != Outcome::Completed {
            return;
        }
        self.second.prompt_tokens += u64::from(r.prompt_tokens);
        self.prompt_tokens_done += u64::from(r.prompt_tokens);
        self.cached_tokens += u64::from(r.cached_tokens);
        let started = r.prefill_start_ps.max(r.arrival_ps);
        let first_ps = r.first_token_ps;
        let span_s = |from: Ps, to: Ps| s_from_ps(to.saturating_sub(from));
        for (family, value) in [
            (Family::PromptTokens, f64::from(r.prompt_tokens)),
            (Family::OutputTokens, f64::from(r.output_tokens)),
            (
                Family::ComputedTokens,
                f64::from(r.prompt_tokens - r.cached_tokens),
            ),
            (Family::E2e, s_from_ps(r.e2e_ps())),
            (Family::Queue, span_s(r.arrival_ps, started)),
            (Family::Prefill, span_s(started, first_ps)),
            (Family::Decode, span_s(first_ps, r.end_ps)),
            (Family::Inference, span_s(started, r.end_ps)),
        ] {
            self.families.record(family, value);
        }
        if let Some(tpot) = r.tpot_ps() {
            self.families.record(Family::Tpot, s_from_ps(tpot));
        }
        self.remember(r);
    }

    fn remember(&mut self, r: &RequestRecord) {
        let wall = self.wall;
        self.slow.retain(|(at, _)| *at + SLOW_WITHIN >= wall);
        let at = self
            .slow
            .partition_point(|(_, other)| other.e2e_ps() >= r.e2e_ps());
        if at < SLOW_MOST {
            self.slow.insert(at, (wall, r.clone()));
            self.slow.truncate(SLOW_MOST);
        }
    }

    /// The slowest of the latest requests, slowest first.
    pub fn slow(&self) -> impl Iterator<Item = &RequestRecord> {
        self.slow.iter().map(|(_, r)| r)
    }

    /// Virtual seconds in the last second.
    pub fn pace_reached(&self) -> f64 {
        self.points.back().map_or(0.0, |p| p.pace)
    }

    /// Closes a second.
    pub fn sample(
        &mut self,
        passed: Duration,
        now: Ps,
        open: u64,
        late: Duration,
        occupancy: &Occupancy,
    ) {
        self.wall += passed;
        let s = std::mem::take(&mut self.second);
        let virtual_s = s_from_ps(now - self.last_ps);
        let rate = |n: u64| {
            if virtual_s > 0.0 {
                n as f64 / virtual_s
            } else {
                0.0
            }
        };
        let ms = |h: &FineHist, q| ms_from_ps(h.quantile_ps(q));
        let kv = occupancy.kv_tokens as f64 / occupancy.kv_tokens_max.max(1) as f64;
        if self.points.len() == POINTS_MOST {
            self.points.pop_front();
        }
        self.points.push_back(Point {
            wall_s: self.wall.as_secs_f64(),
            virtual_s: s_from_ps(now),
            pace: virtual_s / passed.as_secs_f64(),
            late_ms: late.as_secs_f64() * 1e3,
            prompt_tokens_per_s: rate(s.prompt_tokens),
            output_tokens_per_s: rate(s.output_tokens),
            requests_per_s: rate(s.ended),
            open,
            waiting: occupancy.prefill_waiting + occupancy.decode_waiting,
            ttft_p50_ms: ms(&s.ttft, 0.5),
            ttft_p99_ms: ms(&s.ttft, 0.99),
            tpot_mean_ms: s.tpot.mean_ps() / 1e9,
            tpot_p99_ms: ms(&s.tpot, 0.99),
            kv_share: kv,
        });
        self.last_ps = now;
        self.occupancy = *occupancy;
    }
}
