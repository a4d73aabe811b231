//! The range of every value of a scenario. What depends on the machine (do the instances fit? are there more
//! experts than dies?) is checked when it is launched.

use std::fmt;

use supernode_actors::config::{Balance, Experts, WeightStart};

use super::{Distribution, Kind, Length, Scenario};

/// A value outside what is accepted.
#[derive(Debug)]
pub struct Wrong {
    pub key: &'static str,
    value: String,
    accepted: String,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} = {}: {}", self.key, self.value, self.accepted)
    }
}

fn wrong(
    key: &'static str,
    value: impl fmt::Display,
    accepted: impl Into<String>,
) -> Result<(), Wrong> {
    Err(Wrong {
        key,
        value: value.to_string(),
        accepted: accepted.into(),
    })
}

fn whole(key: &'static str, value: u64, min: u64, max: u64) -> Result<(), Wrong> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    wrong(
        key,
        value,
        format!("expected a whole number from {min} to {max}"),
    )
}

/// NaN is in no range.
fn real(key: &'static str, value: f64, min: f64, max: f64) -> Result<(), Wrong> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    wrong(key, value, format!("expected a number from {min} to {max}"))
}

/// The NPUs of all instances together.
fn pool(key: &'static str, instances: u32, npus_per_instance: u32) -> Result<(), Wrong> {
    if u64::from(instances) * u64::from(npus_per_instance) <= NPUS_MAX {
        return Ok(());
    }
    let value = format!("{instances}, of {npus_per_instance} NPUs each");
    wrong(
        key,
        value,
        format!("expected at most {NPUS_MAX} NPUs in all"),
    )
}

fn option(
    check: fn(&'static str, f64, f64, f64) -> Result<(), Wrong>,
    key: &'static str,
    value: Option<f64>,
    min: f64,
    max: f64,
) -> Result<(), Wrong> {
    value.map_or(Ok(()), |v| check(key, v, min, max))
}

/// Upper bounds far above any machine: they catch slips of the keyboard before they take memory or hours.
const NPUS_MAX: u64 = 1_000_000;
const TOKENS_MAX: u64 = 100_000_000;
pub const REQUESTS_MAX: u64 = 50_000_000;
const YEAR_S: f64 = 365.0 * 86_400.0;

/// Load does not change, and plans are not made, more often than a step may take.
const EVERY_LEAST_S: f64 = 0.01;

/// Seconds between two of something; 0: never.
fn off_or_every(key: &'static str, s: f64) -> Result<(), Wrong> {
    if s > 0.0 && s < EVERY_LEAST_S {
        return wrong(
            key,
            s,
            format!("expected 0 (never) or a number from {EVERY_LEAST_S} to {YEAR_S}"),
        );
    }
    real(key, s, 0.0, YEAR_S)
}
/// Virtual time is picoseconds in 64 bits: 213 days.
pub const SPAN_S_MAX: f64 = 180.0 * 86_400.0;

pub fn check(s: &Scenario) -> Result<(), Wrong> {
    let p = &s.prefill;
    whole("prefill.instances", p.instances.into(), 1, NPUS_MAX)?;
    whole(
        "prefill.npus_per_instance",
        p.npus_per_instance.into(),
        1,
        NPUS_MAX,
    )?;
    pool("prefill.instances", p.instances, p.npus_per_instance)?;
    whole(
        "prefill.batch_tokens_per_npu",
        p.batch_tokens_per_npu.into(),
        1,
        TOKENS_MAX,
    )?;
    whole("prefill.redundant", p.redundant.into(), 0, NPUS_MAX)?;
    whole(
        "prefill.shared_replicas",
        p.shared_replicas.into(),
        0,
        NPUS_MAX,
    )?;

    let d = &s.decode;
    whole("decode.instances", d.instances.into(), 1, NPUS_MAX)?;
    whole(
        "decode.npus_per_instance",
        d.npus_per_instance.into(),
        1,
        NPUS_MAX,
    )?;
    pool("decode.instances", d.instances, d.npus_per_instance)?;
    whole(
        "decode.max_batch_per_npu",
        d.max_batch_per_npu.into(),
        1,
        1_000_000,
    )?;
    whole("decode.mtp_tokens", d.mtp_tokens.into(), 0, 16)?;
    real("decode.mtp_acceptance", d.mtp_acceptance, 0.0, 1.0)?;

    let e = &s.experts;
    whole("experts.redundant", e.redundant.into(), 0, NPUS_MAX)?;
    whole(
        "experts.shared_replicas",
        e.shared_replicas.into(),
        0,
        NPUS_MAX,
    )?;
    real("experts.skew", e.skew, 0.0, 10.0)?;
    off_or_every("experts.eplb_interval_s", e.eplb_interval_s)?;
    off_or_every("experts.drift_s", e.drift_s)?;
    real("experts.drift_correlation", e.drift_correlation, 0.0, 1.0)?;
    rebalancing(e)?;
    if e.eplb_interval_s > 0.0 && e.balance != Balance::Eplb {
        return wrong(
            "experts.eplb_interval_s",
            e.eplb_interval_s,
            "needs experts.balance = \"eplb\": other balances make no plans",
        );
    }

    let c = &s.cache;
    whole("cache.block_tokens", c.block_tokens.into(), 1, 1_048_576)?;
    real("cache.dram_gb_per_node", c.dram_gb_per_node, 0.001, 1e6)?;
    real("cache.ssd_gb_per_node", c.ssd_gb_per_node, 0.0, 1e9)?;
    if let Some(nodes) = c.nodes {
        whole("cache.nodes", nodes.into(), 1, NPUS_MAX)?;
    }

    model_cache(s)?;

    let l = &s.placement;
    whole("placement.prefill_choices", l.prefill_choices.into(), 1, 64)?;
    whole("placement.decode_choices", l.decode_choices.into(), 1, 64)?;

    let r = &s.recovery;
    real("recovery.lane_ack_us", r.lane_ack_us, 0.1, 1e9)?;
    real("recovery.lane_reweigh_ms", r.lane_reweigh_ms, 0.001, 1e9)?;
    real("recovery.lane_probe_ms", r.lane_probe_ms, 0.001, 1e9)?;
    real("recovery.lane_loss_max", r.lane_loss_max, 0.0, 1.0)?;
    real("recovery.lane_delay_max_us", r.lane_delay_max_us, 0.0, 1e9)?;
    whole("recovery.packet_bytes", r.packet_bytes.into(), 1, 1 << 30)?;
    real("recovery.step_late_ms", r.step_late_ms, 0.1, 1e9)?;
    whole("recovery.ping_tries", r.ping_tries.into(), 1, 1_000)?;
    real("recovery.ping_ms", r.ping_ms, 0.01, 1e9)?;
    real("recovery.beat_ms", r.beat_ms, 0.01, 1e9)?;
    whole("recovery.beats_missed", r.beats_missed.into(), 1, 1_000)?;
    real("recovery.reply_ms", r.reply_ms, 0.1, 1e9)?;
    real("recovery.quiet_ms", r.quiet_ms, 0.1, 1e9)?;
    real("recovery.quiet_max_ms", r.quiet_max_ms, 0.1, 1e9)?;
    real("recovery.client_ms", r.client_ms, 0.1, 1e9)?;
    real("recovery.suspect_ms", r.suspect_ms, 0.1, 1e9)?;
    real("recovery.kv_for_experts", r.kv_for_experts, 0.0, 1.0)?;
    whole("recovery.retries_max", r.retries_max.into(), 0, 1_000_000)?;
    real("recovery.give_up_s", r.give_up_s, 0.001, YEAR_S)?;

    whole(
        "fidelity.calibration_steps",
        s.fidelity.calibration_steps.into(),
        1,
        1_000_000,
    )?;

    real("slo.ttft_ms", s.slo.ttft_ms, 0.001, 1e9)?;
    real("slo.tpot_ms", s.slo.tpot_ms, 0.001, 1e9)?;

    workload(s)
}

fn rebalancing(e: &Experts) -> Result<(), Wrong> {
    real("experts.eplb_plan_ms", e.eplb_plan_ms, 0.001, 1e9)?;
    let layers = e.eplb_layers_at_once.into();
    whole("experts.eplb_layers_at_once", layers, 1, 10_000)?;
    real("experts.eplb_chunk_mb", e.eplb_chunk_mb, 0.01, 1e6)?;
    real("experts.eplb_gain_min", e.eplb_gain_min, 0.0, 100.0)?;
    let (plan, load) = (e.eplb_plan_bytes_per_slot, e.eplb_load_bytes_per_slot);
    whole("experts.eplb_plan_bytes_per_slot", plan, 1, 1 << 20)?;
    whole("experts.eplb_load_bytes_per_slot", load, 1, 1 << 20)
}

fn model_cache(s: &Scenario) -> Result<(), Wrong> {
    let m = &s.model_cache;
    whole("model_cache.block_mb", m.block_mb.into(), 1, 4_096)?;
    whole(
        "model_cache.reads_at_once",
        m.reads_at_once.into(),
        1,
        1_024,
    )?;
    let store = "model_cache.object_store_gb_per_s";
    option(real, store, m.object_store_gb_per_s, 0.001, 1e6)?;
    let switch = "model_cache.switch_at_s";
    option(real, switch, m.switch_at_s, 0.0, SPAN_S_MAX)?;
    real("model_cache.drain_s", m.drain_s, 0.0, SPAN_S_MAX)?;
    if m.switch_from == WeightStart::Resident {
        return wrong(
            "model_cache.switch_from",
            "\"resident\"",
            "expected \"warm\" or \"cold\": a die holds the weights of one model",
        );
    }
    if m.switch_at_s.is_some() && s.experts.eplb_interval_s > 0.0 {
        return wrong(
            switch,
            m.switch_at_s.unwrap_or_default(),
            "expected experts.eplb_interval_s = 0 beside it: what EPLB has observed of one model says nothing of another",
        );
    }
    if (m.start != WeightStart::Resident || m.switch_at_s.is_some()) && !s.cache.enabled {
        return wrong(
            "model_cache.start",
            "a load that is simulated",
            "expected cache.enabled = true: the weights are kept in the pool",
        );
    }
    Ok(())
}

fn workload(s: &Scenario) -> Result<(), Wrong> {
    let w = &s.workload;
    real("workload.speed", w.speed, 1e-6, 1e6)?;
    whole("workload.copies", w.copies.into(), 1, 10_000)?;
    real("workload.start_s", w.start_s, 0.0, SPAN_S_MAX)?;
    if let Some(requests) = w.requests {
        whole("workload.requests", requests, 1, REQUESTS_MAX)?;
    }
    option(real, "workload.duration_s", w.duration_s, 1e-6, SPAN_S_MAX)?;
    option(real, "workload.rate_per_s", w.rate_per_s, 1e-6, 1e7)?;
    real("workload.cv", w.cv, 0.0, 100.0)?;
    option(
        real,
        "workload.concurrency_per_npu",
        w.concurrency_per_npu,
        1e-6,
        1e6,
    )?;
    real("workload.reuse_share", w.reuse_share, 0.0, 1.0)?;
    length(&PROMPT, &w.prompt_tokens)?;
    length(&OUTPUT, &w.output_tokens)?;
    match w.kind {
        Kind::Trace => Ok(()),
        Kind::Open => {
            if w.rate_per_s.is_none() {
                return wrong(
                    "workload.kind",
                    "\"open\"",
                    "needs workload.rate_per_s, the requests per second that arrive",
                );
            }
            if w.requests.is_none() && w.duration_s.is_none() && w.file.is_none() {
                return wrong(
                    "workload.kind",
                    "\"open\"",
                    "needs workload.requests or workload.duration_s (--requests or --for), or it would not end",
                );
            }
            if let (None, Some(rate), Some(duration)) = (w.requests, w.rate_per_s, w.duration_s)
                && rate * duration > REQUESTS_MAX as f64
            {
                return wrong(
                    "workload.rate_per_s",
                    rate,
                    format!(
                        "makes more than {REQUESTS_MAX} requests in workload.duration_s = {duration}"
                    ),
                );
            }
            Ok(())
        }
        Kind::Closed => {
            if w.concurrency_per_npu.is_none() {
                return wrong(
                    "workload.kind",
                    "\"closed\"",
                    "needs workload.concurrency_per_npu, the requests in the machine for each NPU of the pool",
                );
            }
            if let Some(duration) = w.duration_s {
                return wrong(
                    "workload.duration_s",
                    duration,
                    "is for arrivals that have times; a closed loop takes workload.requests (--requests)",
                );
            }
            Ok(())
        }
    }
}

/// The keys of one length.
struct LengthKeys {
    whole: &'static str,
    mean: &'static str,
    cv: &'static str,
    min: &'static str,
    max: &'static str,
}

const PROMPT: LengthKeys = LengthKeys {
    whole: "workload.prompt_tokens",
    mean: "workload.prompt_tokens.mean",
    cv: "workload.prompt_tokens.cv",
    min: "workload.prompt_tokens.min",
    max: "workload.prompt_tokens.max",
};

const OUTPUT: LengthKeys = LengthKeys {
    whole: "workload.output_tokens",
    mean: "workload.output_tokens.mean",
    cv: "workload.output_tokens.cv",
    min: "workload.output_tokens.min",
    max: "workload.output_tokens.max",
};

fn length(keys: &LengthKeys, length: &Length) -> Result<(), Wrong> {
    let drawn = match length {
        Length::Fixed(tokens) => return whole(keys.whole, (*tokens).into(), 1, TOKENS_MAX),
        Length::Drawn(drawn) => drawn,
    };
    option(real, keys.mean, drawn.mean, 1.0, TOKENS_MAX as f64)?;
    option(real, keys.cv, drawn.cv, 0.001, 100.0)?;
    if let Some(min) = drawn.min {
        whole(keys.min, min.into(), 1, TOKENS_MAX)?;
    }
    if let Some(max) = drawn.max {
        whole(
            keys.max,
            max.into(),
            drawn.min.unwrap_or(1).into(),
            TOKENS_MAX,
        )?;
    }
    match drawn.dist {
        Distribution::Uniform if drawn.max.is_none() => wrong(
            keys.whole,
            "{ dist = \"uniform\" }",
            "needs max (and takes min, 1 when not given)",
        ),
        Distribution::Uniform => Ok(()),
        dist if drawn.mean.is_none() => {
            let name = format!("{dist:?}").to_lowercase();
            wrong(keys.whole, format!("{{ dist = \"{name}\" }}"), "needs mean")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Loader;

    #[test]
    fn zero_negative_absurd_and_missing_values_are_refused_by_name() {
        for (set, expected) in [
            (
                "prefill.instances=0",
                "prefill.instances = 0: expected a whole number from 1",
            ),
            (
                "decode.npus_per_instance=4000000000",
                "decode.npus_per_instance = 4000000000: expected",
            ),
            (
                "decode.mtp_acceptance=nan",
                "decode.mtp_acceptance = NaN: expected a number from 0 to 1",
            ),
            (
                "prefill.instances=100000",
                "prefill.instances = 100000, of 16 NPUs each: expected at most 1000000 NPUs",
            ),
            ("slo.tpot_ms=-1", "slo.tpot_ms = -1: expected"),
            (
                "experts.drift_correlation=1.1",
                "experts.drift_correlation = 1.1: expected a number from 0 to 1",
            ),
            (
                "experts.eplb_layers_at_once=0",
                "experts.eplb_layers_at_once = 0: expected a whole number from 1",
            ),
            (
                "experts.eplb_chunk_mb=0",
                "experts.eplb_chunk_mb = 0: expected",
            ),
            (
                "experts.eplb_gain_min=-0.1",
                "experts.eplb_gain_min = -0.1: expected",
            ),
            (
                "cache.dram_gb_per_node=inf",
                "cache.dram_gb_per_node = inf: expected",
            ),
            ("workload.speed=0", "workload.speed = 0: expected"),
            ("workload.copies=0", "workload.copies = 0: expected"),
            ("workload.requests=0", "workload.requests = 0: expected"),
            (
                "workload.prompt_tokens=0",
                "workload.prompt_tokens = 0: expected",
            ),
            (
                "workload.reuse_share=1.01",
                "workload.reuse_share = 1.01: expected a number from 0 to 1",
            ),
            (
                "workload.kind=open",
                "workload.kind = \"open\": needs workload.rate_per_s",
            ),
            (
                "workload.kind=closed",
                "workload.kind = \"closed\": needs workload.concurrency_per_npu",
            ),
            ("workload.prompt_tokens={dist=\"lognormal\"}", "needs mean"),
            (
                "workload.output_tokens={dist=\"uniform\",min=9,max=3}",
                "workload.output_tokens.max = 3: expected a whole number from 9",
            ),
        ] {
            let mut l = Loader::new();
            let said = l.set(set).and_then(|()| l.load()).unwrap_err().to_string();
            assert!(said.contains(expected), "{set}: {said}");
        }
    }

    #[test]
    fn negative_counts_are_refused() {
        let said = Loader::new()
            .set("prefill.instances=-3")
            .unwrap_err()
            .to_string();
        assert!(
            said.contains("prefill.instances = -3") && said.contains("whole number"),
            "{said}"
        );
    }
}
