//! Checks every value of a scenario: its range, and whether the keys go together. What depends on the machine (do the
//! instances fit? are there more experts than dies?) is checked when it is launched.

use std::fmt;

use supernode_actors::config::{Balance, WeightStart};
use toml::{Table, Value};

use super::ranges::{NPUS_MAX, RANGES, REQUESTS_MAX};
use super::{Distribution, Kind, Length, Scenario};

/// A value outside what is accepted.
#[derive(Debug)]
pub struct Wrong {
    key: &'static str,
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

/// `keys` are all keys of `s`, those that have no value left out.
pub fn check(s: &Scenario, keys: &Table) -> Result<(), Wrong> {
    for (key, range) in RANGES {
        if let Some(value) = value_at(keys, key)
            && !range.holds(value)
        {
            return wrong(key, shown(value), range.to_string());
        }
    }
    let (p, d, e) = (&s.prefill, &s.decode, &s.experts);
    pool("prefill.instances", p.instances, p.npus_per_instance)?;
    pool("decode.instances", d.instances, d.npus_per_instance)?;
    if e.eplb_interval_s > 0.0 && e.balance != Balance::Eplb {
        return wrong(
            "experts.eplb_interval_s",
            e.eplb_interval_s,
            "needs experts.balance = \"eplb\": other balances make no plans",
        );
    }
    model_cache(s)?;
    workload(s)
}

fn value_at<'a>(keys: &'a Table, path: &str) -> Option<&'a Value> {
    let mut parts = path.split('.');
    let first = keys.get(parts.next()?)?;
    parts.try_fold(first, |value, part| value.get(part))
}

/// A number as Rust writes it: `-5` for `-5.0`.
fn shown(value: &Value) -> String {
    match value {
        Value::Float(x) => x.to_string(),
        other => other.to_string(),
    }
}

/// The NPUs of all instances together.
fn pool(key: &'static str, instances: u32, npus_per_instance: u32) -> Result<(), Wrong> {
    if u64::from(instances) * u64::from(npus_per_instance) <= NPUS_MAX {
        return Ok(());
    }
    let value = format!("{instances}, of {npus_per_instance} NPUs each");
    let pool = key.split('.').next().unwrap_or_default();
    wrong(
        key,
        value,
        format!("expected at most {NPUS_MAX} NPUs in all (see {pool}.npus_per_instance)"),
    )
}

fn model_cache(s: &Scenario) -> Result<(), Wrong> {
    let m = &s.model_cache;
    if m.switch_from == WeightStart::Resident {
        return wrong(
            "model_cache.switch_from",
            "\"resident\"",
            "expected \"warm\" or \"cold\": a die holds the weights of one model",
        );
    }
    if m.switch_at_s.is_some() && s.experts.eplb_interval_s > 0.0 {
        return wrong(
            "model_cache.switch_at_s",
            m.switch_at_s.unwrap_or_default(),
            "expected experts.eplb_interval_s = 0 beside it: what EPLB has observed of one model says nothing of another",
        );
    }
    let loads = match (m.start, m.switch_at_s) {
        (WeightStart::Warm, _) => Some(("model_cache.start", "\"warm\"".to_string())),
        (WeightStart::Cold, _) => Some(("model_cache.start", "\"cold\"".to_string())),
        (WeightStart::Resident, Some(at_s)) => Some(("model_cache.switch_at_s", at_s.to_string())),
        (WeightStart::Resident, None) => None,
    };
    if let Some((key, value)) = loads
        && !s.cache.enabled
    {
        let accepted = "expected cache.enabled = true: the weights are kept in the pool";
        return wrong(key, value, accepted);
    }
    Ok(())
}

fn workload(s: &Scenario) -> Result<(), Wrong> {
    let w = &s.workload;
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
    max: &'static str,
}

const PROMPT: LengthKeys = LengthKeys {
    whole: "workload.prompt_tokens",
    max: "workload.prompt_tokens.max",
};

const OUTPUT: LengthKeys = LengthKeys {
    whole: "workload.output_tokens",
    max: "workload.output_tokens.max",
};

fn length(keys: &LengthKeys, length: &Length) -> Result<(), Wrong> {
    let Length::Drawn(drawn) = length else {
        return Ok(());
    };
    if let (Some(min), Some(max)) = (drawn.min, drawn.max)
        && max < min
    {
        let accepted = format!(
            "expected a whole number from {min} on, which {}.min is",
            keys.whole
        );
        return wrong(keys.max, max, accepted);
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
