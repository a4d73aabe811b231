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

/// How experts are loaded, and what rebalancing costs: defaults of scenarios.
const EXPERTS: &str = include_str!("../../actors/specs/experts.toml");

/// Tables of that file, and how the keys of scenarios begin that their figures are defaults of.
const EXPERT_KEYS: [(&str, &str); 3] = [
    ("popularity.", "experts."),
    ("drift.", "experts.drift_"),
    ("rebalance.", "experts.eplb_"),
];

/// Keys, by their starts, that do nothing unless another is above 0.
const NEEDS: [(&str, &str); 2] = [
    ("experts.drift_", "experts.drift_s"),
    ("experts.eplb_", "experts.eplb_interval_s"),
];

/// All figures of a scenario's operators and machine, and what is assumed among its own keys, but for those of what it does
/// not do. Values are those of the scenario.
pub fn levers(scenario: &Scenario) -> Result<Vec<Lever>> {
    let keys = table_of(scenario)?;
    let operators = table_of(&run::calibration_of(scenario)?)?;
    let operator_levers = read(Where::Operators, Calibration::BUILTIN)?;
    let mut all = with_values(operator_levers, &operators);
    all.extend(of_machine(scenario)?);
    let needed = |lever: &Lever| {
        let needs = NEEDS
            .iter()
            .filter(|(start, _)| lever.key.starts_with(start));
        needs
            .into_iter()
            .all(|(_, key)| number_at(&keys, key).is_some_and(|(x, _)| x > 0.0))
    };
    let own = with_values(of_scenarios()?, &keys);
    all.extend(own.into_iter().filter(needed));
    Ok(all)
}

/// Defaults of scenarios that have a reason beside them: in the file of expert load, or in what their key says.
fn of_scenarios() -> Result<Vec<Lever>> {
    let defaults = table_of(&Scenario::default())?;
    let experts = read(Where::Scenario, EXPERTS)?.into_iter().map(|lever| {
        let key = EXPERT_KEYS.iter().find_map(|(table, start)| {
            let name = lever.key.strip_prefix(table)?;
            Some(format!("{start}{name}"))
        });
        Lever {
            key: key.unwrap_or_default(),
            ..lever
        }
    });
    let marked = known_keys().iter().filter_map(|key| {
        let assumed = Some(key.assumed.clone()?);
        let (value, whole) = number_at(&defaults, &key.path)?;
        Some(Lever {
            at: Where::Scenario,
            key: key.path.clone(),
            value,
            whole,
            assumed,
        })
    });
    Ok(experts.chain(marked).collect())
}

/// Figures of a machine. Whether one is assumed is said by the file that states it: the machine's own, or one that it
/// is built on.
fn of_machine(scenario: &Scenario) -> Result<Vec<Lever>> {
    let name = &scenario.machine;
    let machine = run::machine_of(scenario)?;
    let mut all: Vec<Lever> = Vec::new();
    let mut next = Some(name.clone());
    while let Some(name) = next {
        let text = match Machine::builtin_toml(&name) {
            Some(text) => text.to_string(),
            None => std::fs::read_to_string(&name)
                .map_err(|e| Error::user(format!("machine file {name}: {e}")))?,
        };
        for lever in read(Where::Machine, &text)? {
            if !all.iter().any(|known| known.key == lever.key) {
                all.push(lever);
            }
        }
        let table: Table = toml::from_str(&text).map_err(|e| Error::failed(e.to_string()))?;
        next = table.get("base").and_then(Value::as_str).map(String::from);
    }
    Ok(with_values(all, &table_of(&machine.spec)?))
}

/// The same figures with the values that they have in a table.
fn with_values(levers: Vec<Lever>, table: &Table) -> Vec<Lever> {
    let value = |lever: &Lever| number_at(table, &lever.key).map_or(lever.value, |(x, _)| x);
    let valued = levers.into_iter().map(|lever| Lever {
        value: value(&lever),
        ..lever
    });
    valued.collect()
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
            Where::Scenario => self.key.clone(),
        }
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
                Where::Scenario => return false,
            };
            globs.iter().any(|g| lever.matches(g))
        })
        .map(|r| r.name.as_str())
}

/// The scenario of `base` with some figures changed, stopped after `until_s`, if at all.
pub fn moved(base: &Loader, changes: &[(&Lever, f64)], until_s: Option<f64>) -> Result<Job> {
    let mut loader = base.clone();
    let mut of_machine = Vec::new();
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
            Where::Machine => {
                let value = if whole {
                    Value::Integer(*value as i64)
                } else {
                    Value::Float(*value)
                };
                of_machine.push((&lever.key, value));
            }
        }
    }
    let scenario = loader.load()?;
    let machine = if of_machine.is_empty() {
        None
    } else {
        let name = &scenario.machine;
        let mut spec = table_of(&run::machine(name)?.spec)?;
        for (key, value) in of_machine {
            put(&mut spec, key, value);
        }
        let text = toml::to_string(&spec).map_err(|e| Error::failed(e.to_string()))?;
        let moved = Machine::from_toml(&text, name).map_err(|e| Error::user(e.to_string()))?;
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

    /// A scenario that uses everything.
    fn full() -> Scenario {
        let mut scenario = Scenario::default();
        scenario.experts.drift_s = 1.0;
        scenario.experts.eplb_interval_s = 1.0;
        scenario
    }

    #[test]
    fn assumed_figures_are_found_with_their_reasons() {
        let all = levers(&full()).unwrap();
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
            Machine::builtin_toml("cloudmatrix384").unwrap(),
            EXPERTS,
        ];
        let config = include_str!("../../actors/src/config.rs");
        let marked: usize =
            files.map(said).iter().sum::<usize>() + config.matches("(assumed: ").count();
        assert_eq!(all.iter().filter(|l| l.assumed.is_some()).count(), marked);
        // Those of scenarios are keys of scenarios.
        for lever in all.iter().filter(|l| l.at == Where::Scenario) {
            let known = known_keys().iter().any(|k| k.path == lever.key);
            assert!(known, "{}", lever.key);
        }
    }

    #[test]
    fn what_drift_and_rebalancing_assume_is_looked_at_where_they_are() {
        let keys = |scenario: &Scenario, start: &str| {
            let all = levers(scenario).unwrap();
            let found = all.iter().filter(|l| l.key.starts_with(start));
            found.map(|l| l.key.clone()).collect::<Vec<_>>()
        };
        let plain = Scenario::default();
        assert_eq!(keys(&plain, "experts."), ["experts.skew"]);
        let mut drifts = plain.clone();
        drifts.experts.drift_s = 0.5;
        assert_eq!(
            keys(&drifts, "experts."),
            ["experts.skew", "experts.drift_correlation"]
        );
        let mut plans = plain;
        plans.experts.eplb_interval_s = 0.5;
        plans.experts.eplb_plan_ms = 30.0;
        assert_eq!(keys(&plans, "experts.eplb_").len(), 6);
        let all = levers(&plans).unwrap();
        let plan = all.iter().find(|l| l.key == "experts.eplb_plan_ms");
        assert_eq!(plan.unwrap().value, 30.0);
    }

    #[test]
    fn figures_are_those_of_the_scenario() {
        let mut scenario = Scenario::default();
        scenario.experts.skew = 0.3;
        scenario.operators.overhead.operator_us = Some(4.0);
        let all = levers(&scenario).unwrap();
        let value = |key: &str| all.iter().find(|l| l.key == key).unwrap().value;
        assert_eq!(
            (value("experts.skew"), value("overhead.operator_us")),
            (0.3, 4.0)
        );
    }

    #[test]
    fn figures_of_the_machine_are_those_of_the_machine_that_the_scenario_names() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("own.toml");
        let text = "base = \"mini4\"\nname = \"own\"\n[die]\nhbm_gb_per_s = 1000 # assumed: a guess\n\
                    [rdma]\nlatency_us = 8.0 # measured\n[vpc]\nlatency_us = 20.0 # assumed: another\n";
        std::fs::write(&path, text).unwrap();
        let mut base = Loader::new();
        base.option("test", "machine", path.display().to_string())
            .unwrap();
        let all = levers(&base.clone().load().unwrap()).unwrap();
        let find = |key: &str| all.iter().find(|l| l.key == key).unwrap();
        // Values and marks of the file itself, and for what it leaves open those of what it is built on.
        let hbm = find("die.hbm_gb_per_s");
        assert_eq!(
            (hbm.value, hbm.assumed.as_deref()),
            (1000.0, Some("a guess"))
        );
        let rdma = find("rdma.latency_us");
        assert_eq!((rdma.value, &rdma.assumed), (8.0, &None));
        assert_eq!(find("vpc.latency_us").assumed.as_deref(), Some("another"));
        assert_eq!(find("counts.nodes").value, 4.0);
        assert!(find("sio.latency_us").assumed.is_some());
        // Moving one moves it on that machine.
        let job = moved(&base, &[(hbm, hbm.times(1.2)), (rdma, 4.0)], None).unwrap();
        let spec = &job.machine.unwrap().spec;
        assert_eq!((spec.die.hbm_gb_per_s, spec.rdma.latency_us), (1200.0, 4.0));
        assert_eq!((spec.counts.nodes, spec.vpc.latency_us), (4, 20.0));
        assert_eq!(spec.name, "own");
    }

    #[test]
    fn every_figure_can_be_moved_by_a_fifth_both_ways() {
        let mut base = Loader::new();
        base.set("experts.drift_s=1").unwrap();
        base.set("experts.eplb_interval_s=1").unwrap();
        for lever in levers(&full()).unwrap() {
            if lever.assumed.is_none() {
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
                crate::run::calibration_of(&scenario)
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
        let all = levers(&Scenario::default()).unwrap();
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
