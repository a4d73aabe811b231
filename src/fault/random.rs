//! Plans drawn from failure rates: `random:seed=7,rate=1e6,for=60s`. `rate` is how many times as often as published
//! parts fail, since a run of a minute would else see nothing; `for` is the time in which they strike.

use serde::Deserialize;
use supernode_actors::fault::{Effect, Ways};
use supernode_actors::runtime::Rng;
use supernode_actors::time::ps_from_s;
use supernode_topology::{ActorId, Machine};

use super::{Said, Spoken, contradict, line};
use crate::error::{Error, Result};

/// The rates that ship with Supernode, with their sources.
pub const RATES: &str = include_str!("rates.toml");

#[derive(Deserialize)]
struct Rates {
    kind: Vec<Kind>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Kind {
    word: String,
    part: String,
    per_million_hours: f64,
    span_s: [f64; 2],
    range: Option<[f64; 2]>,
}

/// Faults of one plan at most: more than anyone can read.
const FAULTS_MAX: usize = 10_000;

struct Terms {
    seed: u64,
    rate: f64,
    span_s: f64,
}

fn terms(text: &str, span_s: f64) -> std::result::Result<Terms, String> {
    let mut t = Terms {
        seed: 1,
        rate: 1.0,
        span_s,
    };
    for item in text.split(',').filter(|i| !i.trim().is_empty()) {
        let (key, value) = item
            .split_once('=')
            .ok_or_else(|| format!("`{item}`: expected key=value"))?;
        let value = value.trim();
        match key.trim() {
            "seed" => {
                t.seed = value
                    .parse()
                    .map_err(|_| format!("seed = {value}: expected a whole number"))?;
            }
            "rate" => {
                t.rate = value
                    .trim_end_matches('x')
                    .parse()
                    .ok()
                    .filter(|r: &f64| r.is_finite() && *r > 0.0)
                    .ok_or_else(|| {
                        format!("rate = {value}: expected a factor above 0, such as 1e6")
                    })?;
            }
            "for" => t.span_s = line::span_ps(value)? as f64 * 1e-12,
            other => {
                return Err(format!(
                    "unknown key {other}: random: takes seed, rate and for, as in random:seed=7,rate=1e6,for=60s"
                ));
            }
        }
    }
    Ok(t)
}

/// Draws a plan for a machine over `span_s` seconds (or as `for` says).
pub fn draw(text: &str, machine: &Machine, span_s: f64) -> Result<Vec<Said>> {
    let origin = format!("random:{text}");
    let wrong = |why: String| Error::user(format!("--faults {origin}: {why}"));
    let t = terms(text, span_s).map_err(wrong)?;
    let rates: Rates = toml::from_str(RATES).expect("the rates that ship are checked by a test");
    let mut rng = Rng::new(t.seed, 0x0066_6175_6c74);
    let mut faults: Vec<Said> = Vec::new();
    let mut resolved = Vec::new();
    for kind in &rates.kind {
        let parts = count(machine, &kind.part);
        let mean = f64::from(parts) * kind.per_million_hours * 1e-6 / 3_600.0 * t.rate * t.span_s;
        if mean > FAULTS_MAX as f64 {
            return Err(wrong(format!(
                "rate = {} makes {mean:.0} faults of `{} {}` alone in {:.1} s: at most {FAULTS_MAX} are supported",
                t.rate, kind.word, kind.part, t.span_s
            )));
        }
        let mut at_s = 0.0;
        loop {
            // Poisson arrivals over the span.
            at_s += -(1.0 - rng.f64()).ln() / mean * t.span_s;
            if mean <= 0.0 || at_s >= t.span_s {
                break;
            }
            let spoken = one(kind, at_s, parts, machine, &mut rng);
            let said = Said {
                origin: origin.clone(),
                spoken,
            };
            let found = said.resolve(machine)?;
            if resolved.iter().all(|f| contradict(f, &found).is_none()) {
                resolved.push(found);
                faults.push(said);
            }
        }
    }
    faults.sort_by_key(|f| f.spoken.start_ps);
    Ok(faults)
}

fn one(kind: &Kind, at_s: f64, parts: u32, machine: &Machine, rng: &mut Rng) -> Spoken {
    let between = |range: [f64; 2], rng: &mut Rng| range[0] + (range[1] - range[0]) * rng.f64();
    let ms = |s: f64| (s * 1e3).round().max(1.0) * 1e-3;
    let start_ps = ps_from_s((at_s * 1e3).round() * 1e-3);
    let end_ps = Some(start_ps + ps_from_s(ms(between(kind.span_s, rng))));
    let value = (between(kind.range.unwrap_or([0.5, 0.5]), rng) * 100.0).round() / 100.0;
    let effect = match kind.word.as_str() {
        "crash" => Effect::Crash,
        "throttle" => Effect::Throttle(value),
        "slow" => Effect::Slow(value),
        "flap" => Effect::Flap {
            period_ps: ps_from_s(0.01),
            up: value,
        },
        _ => Effect::Down,
    };
    let index = rng.below(u64::from(parts.max(1))) as u32;
    Spoken {
        start_ps,
        end_ps,
        effect,
        ways: Ways::Both,
        address: address(machine, &kind.part, index),
    }
}

fn count(m: &Machine, part: &str) -> u32 {
    match part {
        "npu" => m.npu_count(),
        "die" => m.die_count(),
        "cpu" => m.cpu_count(),
        "uplink" => m.node_count() * m.planes() * m.l2_chips_per_plane(),
        "lane" => m.die_count() * m.planes(),
        "l2" => m.planes() * m.l2_chips_per_plane(),
        other => unreachable!("no part {other} in the rates"),
    }
}

fn address(m: &Machine, part: &str, i: u32) -> String {
    let of = |id: ActorId| m.address(id);
    match part {
        "npu" => format!(
            "node{}/npu{}/*",
            i / m.npus_per_node(),
            i % m.npus_per_node()
        ),
        "die" => of(m.die(i)),
        "cpu" => of(m.cpu(i)),
        "uplink" => {
            let per_node = m.planes() * m.l2_chips_per_plane();
            let (node, rest) = (i / per_node, i % per_node);
            of(m.uplink(
                node,
                rest / m.l2_chips_per_plane(),
                rest % m.l2_chips_per_plane(),
            ))
        }
        "lane" => of(m.die_lane(i / m.planes(), i % m.planes())),
        _ => format!(
            "plane{}/l2.{}",
            i / m.l2_chips_per_plane(),
            i % m.l2_chips_per_plane()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rates_draw_plans_that_hold_and_repeat() {
        let m = Machine::builtin("mini4").unwrap();
        let draw = |seed: u32| draw(&format!("seed={seed},rate=1e8"), &m, 60.0).unwrap();
        let plan = draw(7);
        assert!(plan.len() > 3, "{}", plan.len());
        assert_eq!(plan, draw(7));
        assert_ne!(plan, draw(8));
        let whole = super::super::Plan { faults: plan };
        whole.resolve(&m).unwrap();
    }
}
