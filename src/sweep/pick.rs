//! Figures of a report by their dotted JSON keys, conditions on them, and the best of many runs by one of them.

use std::fmt;
use std::str::FromStr;

use serde_json::Value;

use supernode_actors::launch::Ended;
use supernode_actors::stats::RunStats;

use crate::report::{Inputs, Rates, Report};
use crate::scenario::{PhaseSpec, Slo};
use crate::workload::Source;

/// Columns of a sweep that names none.
pub const DEFAULT_FIGURES: [&str; 7] = [
    "prefill.tokens_per_s_per_npu",
    "decode.tokens_per_s_per_npu",
    "decode.batch_per_npu",
    "ttft_ms.p99",
    "tpot_ms.mean",
    "tpot_ms.p99",
    "goodput.share",
];

/// The value at a dotted key of a report's JSON.
pub fn figure<'a>(report: &'a Value, key: &str) -> Option<&'a Value> {
    key.split('.').try_fold(report, |v, part| v.get(part))
}

/// The figures that a key stands for: itself, or all below it.
///
/// # Errors
/// There is no such key: says which are near.
pub fn figures(key: &str) -> Result<Vec<String>, String> {
    let known = example();
    let mut at = &known;
    for part in key.split('.') {
        match at {
            // What is here depends on the run.
            Value::Null => return Ok(vec![key.to_string()]),
            Value::Object(map) if map.is_empty() => return Ok(vec![key.to_string()]),
            Value::Object(map) => match map.get(part) {
                Some(below) => at = below,
                None => return Err(unknown(&known, key)),
            },
            _ => return Err(unknown(&known, key)),
        }
    }
    let mut all = Vec::new();
    leaves(at, key, &mut all);
    if all.is_empty() {
        return Err(format!(
            "{key}: which keys it has depends on the run, expected one of them, such as {key}.NAME"
        ));
    }
    Ok(all)
}

/// A report that holds every key there can be; what depends on the run is null or empty in it.
fn example() -> Value {
    let source = Source {
        name: String::new(),
        kind: "",
        format: "",
        phase: PhaseSpec::Both,
    };
    let mut report = Report::new(&Inputs {
        stats: &RunStats::default(),
        ended: Ended::Quiet,
        seed: 0,
        machine: "",
        model: "",
        slo: &Slo::default(),
        source: &source,
        offered: &[],
        concurrency: Some(1),
        notes: &[],
        faults: Vec::new(),
        prefill_instances: 1,
        decode_instances: 1,
        int8_tops_per_npu: 1.0,
        wall_s: 0.0,
    })
    .stable();
    report.workload.offered = Some(Rates::default());
    serde_json::to_value(report).unwrap_or_default()
}

fn leaves(value: &Value, key: &str, all: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (name, below) in map {
                let key = if key.is_empty() {
                    name.clone()
                } else {
                    format!("{key}.{name}")
                };
                leaves(below, &key, all);
            }
        }
        _ => all.push(key.to_string()),
    }
}

/// Keys this far away are not what was meant.
const DISTANCE_MAX: usize = 6;

fn unknown(known: &Value, key: &str) -> String {
    let mut all = Vec::new();
    leaves(known, "", &mut all);
    // Sections are keys too.
    let sections: Vec<String> = all
        .iter()
        .filter_map(|k| Some(k.split_once('.')?.0.to_string()))
        .collect();
    all.extend(sections);
    all.sort();
    all.dedup();
    let mut near: Vec<(usize, &String)> = all
        .iter()
        .map(|k| {
            let tail = k.rsplit('.').next().unwrap_or(k);
            let whole = strsim::damerau_levenshtein(key, k);
            // The right name without its section.
            // And one that was not typed to its end.
            let distance = if k.starts_with(key) { 1 } else { whole };
            (distance.min(strsim::damerau_levenshtein(key, tail) + 1), k)
        })
        .filter(|(distance, _)| *distance <= DISTANCE_MAX.min(key.len() / 2))
        .collect();
    near.sort();
    let near: Vec<&str> = near.iter().take(3).map(|(_, k)| k.as_str()).collect();
    let meant = if near.is_empty() {
        String::new()
    } else {
        format!("did you mean {}? ", near.join(" or "))
    };
    let tops: Vec<&str> = known
        .as_object()
        .map(|o| o.keys().map(String::as_str).collect())
        .unwrap_or_default();
    format!(
        "unknown figure {key}: {meant}a report has {} (`supernode run --json -` shows all)",
        tops.join(", ")
    )
}

fn one(key: &str) -> Result<String, String> {
    let all = figures(key)?;
    match all.as_slice() {
        [one] => Ok(one.clone()),
        many => Err(format!(
            "{key} has several figures, expected one of {}",
            many.join(", ")
        )),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relation {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Equal,
    NotEqual,
}

/// Longer signs first.
const RELATIONS: [(&str, Relation); 7] = [
    ("<=", Relation::LessOrEqual),
    (">=", Relation::GreaterOrEqual),
    ("!=", Relation::NotEqual),
    ("==", Relation::Equal),
    ("<", Relation::Less),
    (">", Relation::Greater),
    ("=", Relation::Equal),
];

/// `KEY<NUMBER`: what a run must meet.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    pub key: String,
    relation: Relation,
    number: f64,
    text: String,
}

impl Condition {
    /// Whether a report meets it; one without the figure does not.
    pub fn holds(&self, report: &Value) -> bool {
        let x = figure(report, &self.key).and_then(Value::as_f64);
        x.is_some_and(|x| self.met_by(x))
    }

    /// Whether a value of its figure meets it.
    pub fn met_by(&self, x: f64) -> bool {
        match self.relation {
            Relation::Less => x < self.number,
            Relation::LessOrEqual => x <= self.number,
            Relation::Greater => x > self.number,
            Relation::GreaterOrEqual => x >= self.number,
            Relation::Equal => x == self.number,
            Relation::NotEqual => x != self.number,
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Condition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = text
            .find(['<', '>', '=', '!'])
            .and_then(|at| Some((at, RELATIONS.iter().find(|r| text[at..].starts_with(r.0))?)));
        let Some((at, (sign, relation))) = found else {
            return Err("expected KEY<NUMBER, such as tpot_ms.p99<50 (or <=, >, >=, =, !=)".into());
        };
        let number = text[at + sign.len()..].trim();
        let Some(value) = number.parse::<f64>().ok().filter(|n| n.is_finite()) else {
            return Err(format!(
                "{number:?} is not a number, expected KEY{sign}NUMBER"
            ));
        };
        let key = one(text[..at].trim())?;
        Ok(Self {
            text: format!("{key}{sign}{number}"),
            key,
            relation: *relation,
            number: value,
        })
    }
}

/// Which of many runs is best: by the largest or the smallest of a figure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Best {
    pub key: String,
    pub smallest: bool,
}

impl Best {
    /// The first of the best of those reports.
    pub fn of<'a>(&self, reports: impl Iterator<Item = (usize, &'a Value)>) -> Option<usize> {
        let mut best: Option<(usize, f64)> = None;
        for (i, report) in reports {
            let Some(x) = figure(report, &self.key).and_then(Value::as_f64) else {
                continue;
            };
            if best.is_none_or(|(_, b)| if self.smallest { x < b } else { x > b }) {
                best = Some((i, x));
            }
        }
        best.map(|(i, _)| i)
    }
}

/// Figures of which less is better; `min:` and `max:` say otherwise.
const LESS_IS_BETTER: [&str; 9] = [
    "ttft_ms",
    "tpot_ms",
    "itl_ms",
    "e2e_ms",
    "layer_us",
    "requests.failed",
    "requests.failures",
    "decode.step_ms",
    "experts",
];

impl FromStr for Best {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (smallest, key) = match text.split_once(':') {
            Some(("min", key)) => (Some(true), key),
            Some(("max", key)) => (Some(false), key),
            Some((other, _)) => {
                return Err(format!("{other}: expected KEY, min:KEY or max:KEY"));
            }
            None => (None, text),
        };
        let key = one(key.trim())?;
        let less = || {
            LESS_IS_BETTER
                .iter()
                .any(|l| key == *l || key.starts_with(&format!("{l}.")))
                || ["_us_p99", "virtual_s", ".error", "drain_s"]
                    .iter()
                    .any(|end| key.ends_with(end))
        };
        let smallest = smallest.unwrap_or_else(less);
        Ok(Self { key, smallest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_key_is_a_figure_or_all_figures_below_it() {
        assert_eq!(figures("tpot_ms.p99").unwrap(), ["tpot_ms.p99"]);
        assert_eq!(figures("ttft_ms").unwrap().len(), 5);
        assert_eq!(
            figures("layer_us.decode.attention").unwrap(),
            ["layer_us.decode.attention"]
        );
        assert!(figures("links").unwrap_err().contains("depends on the run"));
    }

    #[test]
    fn an_unknown_key_is_answered_with_near_ones() {
        let e = figures("tpot_ms.p95").unwrap_err();
        assert!(
            e.contains("did you mean tpot_ms.p") && e.contains("tpot_ms.p99"),
            "{e}"
        );
        let e = figures("tokens_per_s_per_npu").unwrap_err();
        assert!(e.contains("decode.tokens_per_s_per_npu"), "{e}");
        let e = figures("colour").unwrap_err();
        assert!(!e.contains("did you mean"), "{e}");
    }

    #[test]
    fn conditions_compare_and_say_what_they_want() {
        let report = json!({ "tpot_ms": { "p99": 50.0 } });
        for (text, holds) in [
            ("tpot_ms.p99<50", false),
            ("tpot_ms.p99 <= 50", true),
            ("tpot_ms.p99>49.9", true),
            ("tpot_ms.p99 >= 50.1", false),
            ("tpot_ms.p99=50", true),
            ("tpot_ms.p99==50", true),
            ("tpot_ms.p99!=50", false),
            ("ttft_ms.p99<50", false),
        ] {
            assert_eq!(
                text.parse::<Condition>().unwrap().holds(&report),
                holds,
                "{text}"
            );
        }
        for (text, why) in [
            ("tpot_ms.p99", "expected KEY<NUMBER"),
            ("tpot_ms.p99<fast", "is not a number"),
            ("tpot_ms.p98<5", "did you mean"),
            ("tpot_ms<5", "expected one of tpot_ms."),
        ] {
            let e = text.parse::<Condition>().unwrap_err();
            assert!(e.contains(why), "{text}: {e}");
        }
    }

    #[test]
    fn the_best_is_the_least_wait_or_the_most_work() {
        let best = |text: &str| text.parse::<Best>().unwrap();
        assert!(best("tpot_ms.p99").smallest && best("min:goodput.share").smallest);
        assert!(!best("goodput.share").smallest && !best("max:ttft_ms.p99").smallest);
        assert!("most:goodput.share".parse::<Best>().is_err());
        let reports = [1.0, 3.0, 3.0, 2.0].map(|x| json!({ "goodput": { "share": x } }));
        let of = |b: &Best| b.of(reports.iter().enumerate());
        assert_eq!(of(&best("goodput.share")), Some(1));
        assert_eq!(of(&best("min:goodput.share")), Some(0));
        assert_eq!(of(&best("tpot_ms.p99")), None);
    }
}
