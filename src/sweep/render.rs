//! A sweep as a table for people, and as CSV and JSON for programs: one row for each point, in the order of the grid.

use serde_json::{Map, Value, json};

use super::pick::{Best, Condition, figure};
use super::{Grid, Outcome};
use crate::error::{Error, Result};
use crate::report::{grid_with_text, number};

/// A sweep that was run, and what was asked of it.
#[derive(Debug)]
pub struct Chosen<'a> {
    pub grid: &'a Grid,
    pub outcomes: &'a [Outcome],
    /// The report of each point, as JSON; null where there is none.
    pub reports: Vec<Value>,
    /// Figures shown, and whether the user named them.
    pub show: Vec<String>,
    pub show_all: bool,
    pub conditions: Vec<Condition>,
    pub best: Option<Best>,
}

impl Chosen<'_> {
    /// The first condition that a point does not meet.
    fn fails(&self, point: usize) -> Option<&Condition> {
        self.conditions
            .iter()
            .find(|c| !c.holds(&self.reports[point]))
    }

    /// The point that was asked for with `--best`.
    pub fn pick(&self) -> Option<usize> {
        let met = (0..self.reports.len())
            .filter(|i| !self.reports[*i].is_null() && self.fails(*i).is_none());
        self.best.as_ref()?.of(met.map(|i| (i, &self.reports[i])))
    }

    /// What there is to say about a point besides its figures.
    fn note(&self, point: usize, pick: Option<usize>) -> String {
        if let Some(why) = self.outcomes[point].reason() {
            return why.to_string();
        }
        if pick == Some(point) {
            return "best".into();
        }
        self.fails(point)
            .map_or(String::new(), |c| format!("not {c}"))
    }

    /// Default figures that are 0 at every point say nothing: they belong to a part that does not run.
    fn shown(&self) -> Vec<&str> {
        let says = |key: &&str| {
            self.show_all
                || self
                    .reports
                    .iter()
                    .any(|r| figure(r, key).is_some_and(|v| v.as_f64() != Some(0.0)))
        };
        self.show.iter().map(String::as_str).filter(says).collect()
    }
}

/// Keys over two lines: the section above, the name below.
fn heads(keys: &[&str]) -> (Vec<String>, Vec<String>) {
    keys.iter()
        .map(|k| match k.rsplit_once('.') {
            Some((section, name)) => (section.to_string(), name.to_string()),
            None => (String::new(), (*k).to_string()),
        })
        .unzip()
}

pub fn to_table(c: &Chosen) -> String {
    let keys: Vec<&str> = c.grid.keys().into_iter().chain(c.shown()).collect();
    let (above, below) = heads(&keys);
    let mut rows = vec![above, below];
    let pick = c.pick();
    for (i, point) in c.grid.points.iter().enumerate() {
        let report = &c.reports[i];
        let mut row = point.values.clone();
        row.extend(c.shown().iter().map(|key| match figure(report, key) {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(value) => value.as_f64().map_or_else(|| value.to_string(), number),
        }));
        row.push(c.note(i, pick));
        rows.push(row);
    }
    let mut text = String::new();
    grid_with_text(&mut text, &rows, keys.len());
    text
}

/// Figures at full precision, under their dotted keys.
pub fn to_csv(c: &Chosen) -> Result<String> {
    let failed = |e: &dyn std::fmt::Display| Error::failed(format!("cannot write CSV: {e}"));
    let mut csv = csv::Writer::from_writer(Vec::new());
    let head = c
        .grid
        .keys()
        .into_iter()
        .chain(c.show.iter().map(String::as_str))
        .chain(["note"]);
    csv.write_record(head).map_err(|e| failed(&e))?;
    let pick = c.pick();
    for (i, point) in c.grid.points.iter().enumerate() {
        let figures = c.show.iter().map(|key| match figure(&c.reports[i], key) {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(value) => value.to_string(),
        });
        let row = point
            .values
            .iter()
            .cloned()
            .chain(figures)
            .chain([c.note(i, pick)]);
        csv.write_record(row).map_err(|e| failed(&e))?;
    }
    let bytes = csv.into_inner().map_err(|e| failed(&e))?;
    String::from_utf8(bytes).map_err(|e| failed(&e))
}

/// Every report whole, beside what was set for it.
pub fn to_json(c: &Chosen) -> String {
    let pick = c.pick();
    let keys = c.grid.keys();
    let points: Vec<Value> = c
        .grid
        .points
        .iter()
        .enumerate()
        .map(|(i, point)| {
            let set: Map<String, Value> = keys
                .iter()
                .zip(&point.values)
                .map(|(k, v)| ((*k).to_string(), value_of(v)))
                .collect();
            json!({
                "set": set,
                "meets": !c.reports[i].is_null() && c.fails(i).is_none(),
                "error": c.outcomes[i].reason(),
                "report": c.reports[i],
            })
        })
        .collect();
    let axes: Vec<Value> = c
        .grid
        .axes
        .iter()
        .map(|a| {
            let values: Vec<Value> = a.values.iter().map(|v| value_of(v)).collect();
            json!({ "keys": a.keys, "values": values })
        })
        .collect();
    let conditions: Vec<String> = c.conditions.iter().map(ToString::to_string).collect();
    let best = c.best.as_ref().map(|b| {
        json!({
            "key": b.key,
            "of": if b.smallest { "smallest" } else { "largest" },
            "point": pick,
        })
    });
    let all = json!({
        "axes": axes,
        "where": conditions,
        "best": best,
        "points": points,
    });
    format!("{all:#}\n")
}

/// Numbers and flags as such, all else as text.
fn value_of(text: &str) -> Value {
    match serde_json::from_str(text) {
        Ok(value @ (Value::Number(_) | Value::Bool(_))) => value,
        _ => Value::String(text.to_string()),
    }
}
