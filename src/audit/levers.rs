//! Figures that can be moved to see what follows: those of operators, of the machine and of how experts are loaded, and
//! defaults of scenarios; which of them are assumed; and scenarios in which some of them are changed.

use std::sync::Arc;

use supernode_actors::compute::Calibration;
use supernode_topology::Machine;
use toml::{Table, Value};

use super::claims::Resource;
use crate::error::{Error, Result};
use crate::run;
use crate::scenario::{Loader, Scenario, known_keys};
use crate::sweep::Job;

/// Where a figure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Where {
    Operators,
    Machine,
    /// The file of expert load, with no key of a scenario.
    Experts,
    /// A key of scenarios.
    Scenario,
}

/// One figure of the parts.
#[derive(Clone, Debug, PartialEq)]
pub struct Lever {
    pub at: Where,
    /// Dotted path in its file.
    pub key: String,
    pub value: f64,
    whole: bool,
    /// Why it is assumed; `None` for what is published.
    pub assumed: Option<String>,
}

/// The machine whose file states all figures; others are built on it.
const ROOT_MACHINE: &str = "cloudmatrix384";

/// How experts are loaded, and what rebalancing costs.
const EXPERTS: &str = include_str!("../../actors/specs/experts.toml");

/// Expert figures that no scenario can set, by the start of their keys, and the key that is above 0 where they matter.
const FIXED: [(&str, &str); 2] = [
    ("drift.", "experts.drift_s"),
    ("rebalance.", "experts.eplb_interval_s"),
];

/// All figures of the built-in files of operators, machine and expert load, and the assumed defaults of scenarios.
pub fn levers() -> Result<Vec<Lever>> {
    let machine = Machine::builtin_toml(ROOT_MACHINE).unwrap_or_default();
    let mut all = read(Where::Operators, Calibration::BUILTIN)?;
    all.extend(read(Where::Machine, machine)?);
    all.extend(read(Where::Experts, EXPERTS)?.into_iter().map(|lever| {
        let name = lever.key.rsplit('.').next().unwrap_or_default();
        let key = format!("experts.{name}");
        if known_keys().iter().any(|k| k.path == key) {
            let at = Where::Scenario;
            Lever { at, key, ..lever }
        } else {
            lever
        }
    }));
    let defaults = table_of(&Scenario::default())?;
    for key in known_keys() {
        let Some(why) = &key.assumed else { continue };
        if let Some((value, whole)) = number_at(&defaults, &key.path) {
            all.push(Lever {
                at: Where::Scenario,
                key: key.path.clone(),
                value,
                whole,
                assumed: Some(why.clone()),
            });
        }
    }
    Ok(all)
}

/// The same with the values that they have in a scenario.
pub fn levers_in(scenario: &Scenario, levers: &[Lever]) -> Result<Vec<Lever>> {
    let operators = table_of(&run::calibration(&scenario.operators)?)?;
    let keys = table_of(scenario)?;
    let value = |lever: &Lever| {
        let table = match lever.at {
            Where::Operators => &operators,
            Where::Scenario => &keys,
            Where::Machine | Where::Experts => return lever.value,
        };
        number_at(table, &lever.key).map_or(lever.value, |(value, _)| value)
    };
    let in_scenario = |lever: &Lever| Lever {
        value: value(lever),
        ..lever.clone()
    };
    Ok(levers.iter().map(in_scenario).collect())
}

/// Assumed figures that matter in a scenario and cannot be moved, as no scenario can set them.
pub fn fixed_in(scenario: &Scenario, levers: &[Lever]) -> Result<Vec<String>> {
    let keys = table_of(scenario)?;
    let matters = |lever: &&Lever| {
        FIXED.iter().any(|(start, key)| {
            lever.key.starts_with(start) && number_at(&keys, key).is_some_and(|(x, _)| x > 0.0)
        })
    };
    let fixed = levers.iter().filter(|l| l.at == Where::Experts);
    Ok(fixed.filter(matters).map(Lever::name).collect())
}

fn table_of(value: &impl serde::Serialize) -> Result<Table> {
    Table::try_from(value).map_err(|e| Error::failed(e.to_string()))
}

/// The number at a dotted key, and whether it is a whole one.
fn number_at(table: &Table, key: &str) -> Option<(f64, bool)> {
    let (parents, last) = key.rsplit_once('.').unwrap_or(("", key));
    let parents = parents.split('.').filter(|p| !p.is_empty());
    let mut below = table;
    for part in parents {
        below = below.get(part)?.as_table()?;
    }
    match below.get(last)? {
        Value::Integer(n) => Some((*n as f64, true)),
        Value::Float(x) => Some((*x, false)),
        _ => None,
    }
}

/// Keys, values and the reasons of those marked `assumed` in the comment beside them.
fn read(at: Where, text: &str) -> Result<Vec<Lever>> {
    let table: Table = toml::from_str(text).map_err(|e| Error::failed(e.to_string()))?;
    let (mut levers, mut section) = (Vec::new(), String::new());
    for line in text.lines() {
        let line = line.trim();
        if let Some(name) = line.strip_prefix('[') {
            section = name.split(']').next().unwrap_or_default().to_string();
            continue;
        }
        let Some((name, rest)) = line.split_once('=').filter(|_| !line.starts_with('#')) else {
            continue;
        };
        let key = match section.as_str() {
            "" => name.trim().to_string(),
            s => format!("{s}.{}", name.trim()),
        };
        let comment = rest.split_once('#').map_or("", |(_, c)| c.trim());
        let assumed = comment
            .strip_prefix("assumed")
            .map(|why| why.trim_start_matches([':', ' ']).to_string());
        let Some((value, whole)) = number_at(&table, &key) else {
            continue;
        };
        levers.push(Lever {
            at,
            key,
            value,
            whole,
            assumed,
        });
    }
    Ok(levers)
}

impl Lever {
    /// Its value times a factor: whole where it must be, and efficiencies up to 1.
    pub fn times(&self, factor: f64) -> f64 {
        let value = self.value * factor;
        if self.is_share() {
            value.min(1.0)
        } else if self.whole && self.at != Where::Machine {
            // A small count by one at least.
            let by = (value - self.value).signum();
            if value.round() == self.value {
                self.value + by
            } else {
                value.round()
            }
        } else {
            value
        }
    }

    /// What a reader is told it is: the key that `--set` takes, where there is one.
    pub fn name(&self) -> String {
        match self.at {
            Where::Operators => format!("operators.{}", self.key),
            Where::Machine => format!("machine {}", self.key),
            Where::Experts => format!("expert load {}", self.key),
            Where::Scenario => self.key.clone(),
        }
    }

    /// It is assumed, and can be moved.
    pub fn can_be_tried(&self) -> bool {
        self.assumed.is_some() && self.at != Where::Experts
    }

    /// It mostly matters in other runs than those of claims: with faults, loads of weights, or transfers between pools.
    pub fn often_idle(&self) -> bool {
        self.at == Where::Machine || self.at == Where::Scenario && !self.key.starts_with("experts.")
    }

    /// A share of a peak.
    pub fn is_share(&self) -> bool {
        self.key.ends_with("_efficiency")
    }

    /// A time that no rate shortens.
    pub fn is_time(&self) -> bool {
        ["_us", "_ns"].iter().any(|unit| self.key.ends_with(unit))
    }

    fn matches(&self, glob: &str) -> bool {
        match glob.split_once('*') {
            None => self.key == glob,
            Some((start, end)) => {
                self.key.len() >= start.len() + end.len()
                    && self.key.starts_with(start)
                    && self.key.ends_with(end)
            }
        }
    }
}

/// The resource that a figure belongs to: the first that names it.
pub fn resource_of<'a>(resources: &'a [Resource], lever: &Lever) -> Option<&'a str> {
    resources
        .iter()
        .find(|r| {
            let globs = match lever.at {
                Where::Operators => &r.operators,
                Where::Machine => &r.machine,
                Where::Experts | Where::Scenario => return false,
            };
            globs.iter().any(|g| lever.matches(g))
        })
        .map(|r| r.name.as_str())
}

/// The scenario of `base` with some figures changed, stopped after `until_s`, if at all.
pub fn moved(base: &Loader, changes: &[(&Lever, f64)], until_s: Option<f64>) -> Result<Job> {
    let mut loader = base.clone();
    let mut machine = Table::new();
    for (lever, value) in changes {
        // Efficiencies and times alike are written as reals, and counts as whole numbers.
        let whole = lever.whole && value.fract() == 0.0;
        match lever.at {
            Where::Operators | Where::Scenario if whole => {
                loader.set(&format!("{}={value:.0}", lever.name()))?;
            }
            Where::Operators | Where::Scenario => {
                loader.set(&format!("{}={value:?}", lever.name()))?;
            }
            Where::Experts => {}
            Where::Machine => {
                let value = if whole {
                    Value::Integer(*value as i64)
                } else {
                    Value::Float(*value)
                };
                put(&mut machine, &lever.key, value);
            }
        }
    }
    let scenario = loader.load()?;
    let machine = if machine.is_empty() {
        None
    } else {
        let name = scenario.machine.clone();
        machine.insert("base".into(), Value::String(name.clone()));
        machine.insert("name".into(), Value::String(name.clone()));
        let text = toml::to_string(&machine).map_err(|e| Error::failed(e.to_string()))?;
        let moved = Machine::from_toml(&text, &name).map_err(|e| Error::user(e.to_string()))?;
        Some(Arc::new(moved))
    };
    Ok(Job {
        machine,
        until_s,
        ..Job::from(scenario)
    })
}

fn put(table: &mut Table, key: &str, value: Value) {
    match key.split_once('.') {
        None => {
            table.insert(key.to_string(), value);
        }
        Some((section, rest)) => {
            let below = table
                .entry(section)
                .or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(below) = below {
                put(below, rest, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assumed_figures_are_found_with_their_reasons() {
        let all = levers().unwrap();
        let find = |key: &str| all.iter().find(|l| l.key == key).unwrap();
        assert_eq!(find("gemm.int8_efficiency").assumed, None);
        let us = find("overhead.operator_us");
        assert!(us.assumed.as_ref().is_some_and(|why| why.len() > 10));
        assert!(find("rdma.latency_us").assumed.is_some());
        assert_eq!(find("ub.npu_npu_write.inter_gb_per_s").value, 135.0);
        let skew = find("experts.skew");
        assert_eq!((skew.at, skew.value), (Where::Scenario, 0.57));
        assert!(skew.assumed.as_ref().unwrap().contains("geometric mean"));
        assert_eq!(find("recovery.reply_ms").value, 20.0);
        // None is missed: every place of the files that says so is here.
        let said = |text: &str| text.matches("# assumed").count();
        let files = [
            Calibration::BUILTIN,
            Machine::builtin_toml(ROOT_MACHINE).unwrap(),
            EXPERTS,
        ];
        let config = include_str!("../../actors/src/config.rs");
        let marked: usize =
            files.map(said).iter().sum::<usize>() + config.matches("(assumed: ").count();
        assert_eq!(all.iter().filter(|l| l.assumed.is_some()).count(), marked);
        // What cannot be moved is known to matter only where something is switched on that claims leave off.
        for lever in all.iter().filter(|l| l.at == Where::Experts) {
            let fixed = FIXED.iter().any(|(start, _)| lever.key.starts_with(start));
            assert!(fixed || lever.assumed.is_none(), "{}", lever.key);
        }
        let mut scenario = Scenario::default();
        assert!(fixed_in(&scenario, &all).unwrap().is_empty());
        scenario.experts.eplb_interval_s = 1.0;
        let fixed = fixed_in(&scenario, &all).unwrap();
        assert!(
            fixed.contains(&"expert load rebalance.plan_ms".to_string()),
            "{fixed:?}"
        );
    }

    #[test]
    fn figures_are_those_of_the_scenario() {
        let mut scenario = Scenario::default();
        scenario.experts.skew = 0.3;
        scenario.operators.overhead.operator_us = Some(4.0);
        let all = levers_in(&scenario, &levers().unwrap()).unwrap();
        let value = |key: &str| all.iter().find(|l| l.key == key).unwrap().value;
        assert_eq!(
            (value("experts.skew"), value("overhead.operator_us")),
            (0.3, 4.0)
        );
    }

    #[test]
    fn every_figure_can_be_moved_by_a_fifth_both_ways() {
        let base = Loader::new();
        for lever in levers().unwrap() {
            if !lever.can_be_tried() {
                continue;
            }
            for factor in [0.8, 1.2] {
                let value = lever.times(factor);
                assert!(
                    (value - lever.value) * (factor - 1.0) > 0.0,
                    "{}",
                    lever.key
                );
                let job = moved(&base, &[(&lever, value)], None).unwrap();
                let scenario = job.scenario.unwrap();
                crate::run::calibration(&scenario.operators)
                    .unwrap_or_else(|e| panic!("{} = {value}: {e}", lever.key));
            }
        }
    }

    #[test]
    fn a_figure_belongs_to_the_first_resource_that_names_it() {
        let resource = |name: &str, glob: &str| Resource {
            name: name.into(),
            machine: vec![],
            operators: vec![glob.into()],
        };
        let all = levers().unwrap();
        let find = |key: &str| all.iter().find(|l| l.key == key).unwrap();
        let resources = [resource("a", "dispatch.startup_us"), resource("b", "*_us")];
        assert_eq!(
            resource_of(&resources, find("dispatch.startup_us")),
            Some("a")
        );
        assert_eq!(
            resource_of(&resources, find("combine.startup_us")),
            Some("b")
        );
        assert_eq!(resource_of(&resources, find("dispatch.flag_ns")), None);
        assert_eq!(resource_of(&resources, find("rdma.latency_us")), None);
    }
}
