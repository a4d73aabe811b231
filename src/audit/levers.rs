//! Figures that can be moved to see what follows: those of operators and of the machine, which of them are assumed,
//! and scenarios in which some of them are changed.

use std::sync::Arc;

use supernode_actors::compute::Calibration;
use supernode_topology::Machine;
use toml::{Table, Value};

use super::claims::Resource;
use crate::error::{Error, Result};
use crate::scenario::Loader;
use crate::sweep::Job;

/// Where a figure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Where {
    Operators,
    Machine,
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

/// All figures of the built-in operator and machine files.
pub fn levers() -> Result<Vec<Lever>> {
    let machine = Machine::builtin_toml(ROOT_MACHINE).unwrap_or_default();
    let mut all = read(Where::Operators, Calibration::BUILTIN)?;
    all.extend(read(Where::Machine, machine)?);
    Ok(all)
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
        let value = key
            .split('.')
            .try_fold(None, |t: Option<&Value>, part| match t {
                None => table.get(part).map(Some),
                Some(v) => v.get(part).map(Some),
            })
            .flatten();
        let (value, whole) = match value {
            Some(Value::Integer(n)) => (*n as f64, true),
            Some(Value::Float(x)) => (*x, false),
            _ => continue,
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
        } else if self.whole && self.at == Where::Operators {
            value.round()
        } else {
            value
        }
    }

    /// Its file and key, as a reader is told; with a figure of operators, what `--set` takes.
    pub fn name(&self) -> String {
        match self.at {
            Where::Operators => format!("operators.{}", self.key),
            Where::Machine => format!("machine {}", self.key),
        }
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
            Where::Operators if whole => {
                loader.set(&format!("operators.{}={value:.0}", lever.key))?;
            }
            Where::Operators => loader.set(&format!("operators.{}={value:?}", lever.key))?,
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
        // None is missed: every line of the files that says so is here.
        let said = |text: &str| {
            text.lines()
                .filter(|l| l.contains("# assumed") && !l.trim_start().starts_with('#'))
                .count()
        };
        let files = [
            Calibration::BUILTIN,
            Machine::builtin_toml(ROOT_MACHINE).unwrap(),
        ];
        let marked: usize = files.map(said).iter().sum();
        assert_eq!(all.iter().filter(|l| l.assumed.is_some()).count(), marked);
    }

    #[test]
    fn every_figure_can_be_moved_by_a_fifth_both_ways() {
        let base = Loader::new();
        for lever in levers().unwrap() {
            if lever.assumed.is_none() {
                continue;
            }
            for factor in [0.8, 1.2] {
                let value = lever.times(factor);
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
