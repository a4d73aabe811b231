//! The range of each number of a scenario, by its key: what its value is held against, and what a message says of a
//! value of the wrong type.

use std::fmt;

use toml::Value;

/// Upper bounds far above any machine: they catch slips of the keyboard before they take memory or hours.
pub const NPUS_MAX: u64 = 1_000_000;
const TOKENS_MAX: u64 = 100_000_000;
pub const REQUESTS_MAX: u64 = 50_000_000;
const YEAR_S: f64 = 365.0 * 86_400.0;
/// Virtual time is picoseconds in 64 bits: 213 days.
pub const SPAN_S_MAX: f64 = 180.0 * 86_400.0;

/// Load does not change, and plans are not made, more often than a step may take.
const EVERY_LEAST_S: f64 = 0.01;

/// Values that a key takes, both ends among them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Range {
    Whole(u64, u64),
    Real(f64, f64),
    /// Seconds between two of something; 0: never.
    OffOrEvery(f64, f64),
    /// Tokens of prompts or outputs: a whole number, or a table that says how they are drawn.
    Length(u64, u64),
}

use Range::{Length, OffOrEvery, Real, Whole};

impl Range {
    /// Whether a value is inside; NaN is in no range. What is no number is for others to judge: a table may be meant.
    pub fn holds(self, value: &Value) -> bool {
        let (integer, number) = match value {
            Value::Integer(n) => (u64::try_from(*n).ok(), *n as f64),
            Value::Float(x) => (None, *x),
            _ => return true,
        };
        match self {
            Whole(min, max) | Length(min, max) => integer.is_some_and(|n| (min..=max).contains(&n)),
            Real(min, max) => (min..=max).contains(&number),
            OffOrEvery(min, max) => number == 0.0 || (min..=max).contains(&number),
        }
    }
}

/// What would be accepted.
impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Whole(min, max) => write!(f, "expected a whole number from {min} to {max}"),
            Real(min, max) => write!(f, "expected a number from {min} to {max}"),
            OffOrEvery(min, max) => {
                write!(f, "expected 0 (never) or a number from {min} to {max}")
            }
            Length(min, max) => write!(
                f,
                "expected a whole number from {min} to {max}, or a table such as \
                 {{ dist = \"lognormal\", mean = 4096, cv = 1.0 }}"
            ),
        }
    }
}

/// The range of a key, if it has one.
pub fn of(key: &str) -> Option<Range> {
    RANGES.iter().find(|(k, _)| *k == key).map(|(_, r)| *r)
}

/// All ranges, in the order in which values are looked at.
pub const RANGES: &[(&str, Range)] = &[
    ("seed", Whole(0, i64::MAX as u64)),
    ("prefill.instances", Whole(1, NPUS_MAX)),
    ("prefill.npus_per_instance", Whole(1, NPUS_MAX)),
    ("prefill.batch_tokens_per_npu", Whole(1, TOKENS_MAX)),
    ("prefill.redundant", Whole(0, NPUS_MAX)),
    ("prefill.shared_replicas", Whole(0, NPUS_MAX)),
    ("decode.instances", Whole(1, NPUS_MAX)),
    ("decode.npus_per_instance", Whole(1, NPUS_MAX)),
    ("decode.max_batch_per_npu", Whole(1, 1_000_000)),
    ("decode.mtp_tokens", Whole(0, 16)),
    ("decode.mtp_acceptance", Real(0.0, 1.0)),
    ("experts.redundant", Whole(0, NPUS_MAX)),
    ("experts.shared_replicas", Whole(0, NPUS_MAX)),
    ("experts.skew", Real(0.0, 10.0)),
    ("experts.plan_tokens", Whole(0, u32::MAX as u64)),
    ("experts.eplb_interval_s", OffOrEvery(EVERY_LEAST_S, YEAR_S)),
    ("experts.drift_s", OffOrEvery(EVERY_LEAST_S, YEAR_S)),
    ("experts.drift_correlation", Real(0.0, 1.0)),
    ("experts.eplb_plan_ms", Real(0.001, 1e9)),
    ("experts.eplb_layers_at_once", Whole(1, 10_000)),
    ("experts.eplb_chunk_mb", Real(0.01, 1e6)),
    ("experts.eplb_gain_min", Real(0.0, 100.0)),
    ("experts.eplb_plan_bytes_per_slot", Whole(1, 1 << 20)),
    ("experts.eplb_load_bytes_per_slot", Whole(1, 1 << 20)),
    ("cache.block_tokens", Whole(1, 1_048_576)),
    ("cache.dram_gb_per_node", Real(0.001, 1e6)),
    ("cache.ssd_gb_per_node", Real(0.0, 1e9)),
    ("cache.nodes", Whole(1, NPUS_MAX)),
    ("model_cache.block_mb", Whole(1, 4_096)),
    ("model_cache.reads_at_once", Whole(1, 1_024)),
    ("model_cache.object_store_gb_per_s", Real(0.001, 1e6)),
    ("model_cache.switch_at_s", Real(0.0, SPAN_S_MAX)),
    ("model_cache.drain_s", Real(0.0, SPAN_S_MAX)),
    ("placement.prefill_choices", Whole(1, 64)),
    ("placement.decode_choices", Whole(1, 64)),
    ("recovery.lane_ack_us", Real(0.1, 1e9)),
    ("recovery.lane_reweigh_ms", Real(0.001, 1e9)),
    ("recovery.lane_probe_ms", Real(0.001, 1e9)),
    ("recovery.lane_loss_max", Real(0.0, 1.0)),
    ("recovery.lane_delay_max_us", Real(0.0, 1e9)),
    ("recovery.packet_bytes", Whole(1, 1 << 30)),
    ("recovery.step_late_ms", Real(0.1, 1e9)),
    ("recovery.ping_tries", Whole(1, 1_000)),
    ("recovery.ping_ms", Real(0.01, 1e9)),
    ("recovery.beat_ms", Real(0.01, 1e9)),
    ("recovery.beats_missed", Whole(1, 1_000)),
    ("recovery.reply_ms", Real(0.1, 1e9)),
    ("recovery.quiet_ms", Real(0.1, 1e9)),
    ("recovery.quiet_max_ms", Real(0.1, 1e9)),
    ("recovery.client_ms", Real(0.1, 1e9)),
    ("recovery.suspect_ms", Real(0.1, 1e9)),
    ("recovery.kv_for_experts", Real(0.0, 1.0)),
    ("recovery.retries_max", Whole(0, 1_000_000)),
    ("recovery.give_up_s", Real(0.001, YEAR_S)),
    ("fidelity.calibration_steps", Whole(1, 1_000_000)),
    ("fidelity.recheck_every", Whole(0, u32::MAX as u64)),
    ("slo.ttft_ms", Real(0.001, 1e9)),
    ("slo.tpot_ms", Real(0.001, 1e9)),
    ("workload.speed", Real(1e-6, 1e6)),
    ("workload.copies", Whole(1, 10_000)),
    ("workload.start_s", Real(0.0, SPAN_S_MAX)),
    ("workload.requests", Whole(1, REQUESTS_MAX)),
    ("workload.duration_s", Real(1e-6, SPAN_S_MAX)),
    ("workload.rate_per_s", Real(1e-6, 1e7)),
    ("workload.cv", Real(0.0, 100.0)),
    ("workload.concurrency_per_npu", Real(1e-6, 1e6)),
    ("workload.reuse_share", Real(0.0, 1.0)),
    ("workload.prompt_tokens", Length(1, TOKENS_MAX)),
    ("workload.prompt_tokens.mean", Real(1.0, TOKENS_MAX as f64)),
    ("workload.prompt_tokens.cv", Real(0.001, 100.0)),
    ("workload.prompt_tokens.min", Whole(1, TOKENS_MAX)),
    ("workload.prompt_tokens.max", Whole(1, TOKENS_MAX)),
    ("workload.output_tokens", Length(1, TOKENS_MAX)),
    ("workload.output_tokens.mean", Real(1.0, TOKENS_MAX as f64)),
    ("workload.output_tokens.cv", Real(0.001, 100.0)),
    ("workload.output_tokens.min", Whole(1, TOKENS_MAX)),
    ("workload.output_tokens.max", Whole(1, TOKENS_MAX)),
];

#[cfg(test)]
mod tests {
    use super::super::{Scenario, known_keys};
    use super::*;

    /// Every key that holds a number has its range here, but for those of operators, whose file's reader knows them.
    #[test]
    fn every_number_has_a_range() {
        let defaults = toml::Table::try_from(Scenario::default()).unwrap();
        for key in known_keys() {
            let mut value = Some(&Value::Table(defaults.clone())).cloned();
            for part in key.path.split('.') {
                value = value.and_then(|v| v.get(part).cloned());
            }
            let number = value.is_some_and(|v| v.is_integer() || v.is_float());
            if number && !key.path.starts_with("operators.") {
                assert!(of(&key.path).is_some(), "{}", key.path);
            }
        }
        for (key, _) in RANGES {
            assert!(known_keys().iter().any(|k| k.path == *key), "{key}");
        }
    }

    #[test]
    fn both_ends_are_inside_and_nan_is_nowhere() {
        let whole = Whole(1, 3);
        for (n, inside) in [(-1, false), (0, false), (1, true), (3, true), (4, false)] {
            assert_eq!(whole.holds(&Value::Integer(n)), inside, "{n}");
        }
        let never = OffOrEvery(0.5, 2.0);
        for (x, inside) in [
            (0.0, true),
            (0.4, false),
            (0.5, true),
            (2.0, true),
            (-1.0, false),
        ] {
            assert_eq!(never.holds(&Value::Float(x)), inside, "{x}");
        }
        assert!(!never.holds(&Value::Float(f64::NAN)));
        assert!(!Real(0.0, 1.0).holds(&Value::Float(f64::NAN)));
    }
}
