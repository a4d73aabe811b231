//! Drills: the same run without a fault and under one plan after the other, side by side, and what each plan cost.

mod parts;
mod render;

use serde::Serialize;

pub use parts::one_of_each;
pub use render::{to_json, to_markdown, to_table};

use crate::error::{Error, Result};
use crate::fault::Plan;
use crate::report::{FaultReport, Report};
use crate::run::Prepared;
use crate::scenario::Scenario;
use crate::sweep::{Job, Outcome};

/// One plan that is tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drill {
    pub name: String,
    /// As [`Prepared::break_parts`] takes them.
    pub plans: Vec<String>,
    pub lines: Vec<String>,
}

impl Drill {
    pub fn of_line(name: &str, line: String) -> Self {
        Self {
            name: name.to_string(),
            plans: Vec::new(),
            lines: vec![line],
        }
    }

    /// A plan as `supernode fault check` takes it: a file, `random:...`, or a line.
    pub fn of(plan: &str) -> Self {
        if plan.contains(": ") {
            return Self::of_line("", plan.to_string());
        }
        let stem = std::path::Path::new(plan).file_stem();
        let name = stem.filter(|_| !plan.starts_with("random:"));
        Self {
            name: name.map_or(String::new(), |n| n.to_string_lossy().into_owned()),
            plans: vec![plan.to_string()],
            lines: Vec::new(),
        }
    }
}

/// What came out of one drill, beside the run without a fault.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub name: String,
    /// The faults, as one would say them.
    pub faults: Vec<String>,
    /// From the first strike until a part found out, and until the work of the last that was found to be gone went on; null:
    /// nobody did, or it did not.
    pub noticed_s: Option<f64>,
    pub recovered_s: Option<f64>,
    /// When too few dies of a decode group were left to hold every expert.
    pub experts_lost_s: Option<f64>,
    /// From the first strike until goodput was at 95% of before again.
    pub back_to_95_s: Option<f64>,
    /// Requests started again, failed with a reason, and ended neither so nor complete: of these there must be none.
    pub retried: u64,
    pub failed: u64,
    pub unaccounted: u64,
    /// Requests within both objectives, and how many fewer than without the fault.
    pub good: u64,
    pub lost: i64,
    pub lost_share: f64,
    pub ttft_p99_ms: f64,
    pub tpot_p50_ms: f64,
    pub tpot_p99_ms: f64,
    pub failures: Vec<String>,
    pub digest: String,
    /// Why there are no figures.
    pub error: Option<String>,
}

/// The runs that drills are made of: one without a fault first.
///
/// # Errors
/// What is wrong with a plan: all are looked at before any is run.
pub fn jobs(scenario: &Scenario, drills: &[Drill]) -> Result<Vec<Job>> {
    let prepared = Prepared::new(scenario.clone())?;
    let mut jobs = vec![Job::from(scenario.clone())];
    for drill in drills {
        let plan = Plan::read(&drill.plans, &drill.lines, &prepared.machine, 1.0)?;
        plan.resolve(&prepared.machine)?;
        jobs.push(Job {
            plans: drill.plans.clone(),
            lines: drill.lines.clone(),
            ..Job::from(scenario.clone())
        });
    }
    Ok(jobs)
}

/// A row for each outcome: `none` first, then the drills in order.
pub fn rows(drills: &[Drill], outcomes: &[Outcome]) -> Vec<Row> {
    let none = Drill {
        name: "none".into(),
        plans: Vec::new(),
        lines: Vec::new(),
    };
    let good_before = outcomes.first().and_then(Outcome::report).map_or(0, good);
    let all = std::iter::once(&none).chain(drills);
    all.zip(outcomes)
        .map(|(drill, outcome)| row(drill, outcome, good_before))
        .collect()
}

/// # Errors
/// When a request ended neither complete nor with a reason.
pub fn all_accounted_for(rows: &[Row]) -> Result<()> {
    match rows.iter().find(|r| r.unaccounted > 0) {
        None => Ok(()),
        Some(row) => Err(Error::failed(format!(
            "{} {}: {} requests ended neither complete nor with a reason",
            row.name,
            row.faults.join("; "),
            row.unaccounted
        ))),
    }
}

fn good(report: &Report) -> u64 {
    let ended = report.requests.completed + report.requests.failed;
    (report.goodput.share * ended as f64).round() as u64
}

fn row(drill: &Drill, outcome: &Outcome, good_before: u64) -> Row {
    let Some(report) = outcome.report() else {
        return Row {
            name: drill.name.clone(),
            faults: drill.lines.clone(),
            error: outcome.reason().map(str::to_string),
            noticed_s: None,
            recovered_s: None,
            experts_lost_s: None,
            back_to_95_s: None,
            retried: 0,
            failed: 0,
            unaccounted: 0,
            good: 0,
            lost: 0,
            lost_share: 0.0,
            ttft_p99_ms: 0.0,
            tpot_p50_ms: 0.0,
            tpot_p99_ms: 0.0,
            failures: Vec::new(),
            digest: String::new(),
        };
    };
    let q = &report.requests;
    let with_reason: u64 = q
        .failures
        .iter()
        .filter(|f| !f.0.is_empty())
        .map(|f| f.1)
        .sum();
    let good = good(report);
    let lost = good_before as i64 - good as i64;
    let faults = &report.faults;
    let struck_s = faults
        .iter()
        .map(|f| f.injected_s)
        .fold(f64::INFINITY, f64::min);
    let noticed = faults.iter().filter_map(|f| f.noticed_s);
    let noticed_s = noticed.reduce(f64::min).map(|s| s - struck_s);
    let latest = |of: &dyn Fn(&FaultReport) -> Option<f64>| {
        let all: Option<Vec<f64>> = faults.iter().map(of).collect();
        all?.into_iter().reduce(f64::max)
    };
    Row {
        name: drill.name.clone(),
        faults: faults.iter().map(|f| f.fault.clone()).collect(),
        noticed_s,
        recovered_s: latest(&|f| f.recovered_s).map(|s| s - struck_s),
        experts_lost_s: faults.iter().find_map(|f| f.experts_lost_s),
        back_to_95_s: latest(&|f| f.back_to_95_s),
        retried: faults.iter().map(|f| f.requests.retried).sum(),
        failed: q.failed,
        unaccounted: q.offered - q.completed - q.cancelled - with_reason.min(q.failed),
        good,
        lost,
        lost_share: lost as f64 / good_before.max(1) as f64,
        ttft_p99_ms: report.ttft_ms.p99,
        tpot_p50_ms: report.tpot_ms.p50,
        tpot_p99_ms: report.tpot_ms.p99,
        failures: q
            .failures
            .iter()
            .map(|(why, n)| format!("{n} failed: {why}"))
            .collect(),
        digest: report.digest.clone(),
        error: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_named_after_its_file() {
        let file = Drill::of("scenarios/drills/dead-node.toml");
        assert_eq!((file.name.as_str(), file.lines.len()), ("dead-node", 0));
        let line = Drill::of("at 1s: crash node3");
        assert_eq!(line.lines, ["at 1s: crash node3"]);
        assert_eq!(Drill::of("random:seed=1.5,rate=2").name, "");
    }
}
