//! The audit: every published claim beside what comes out of the parts, what bounds it, and how firm that is.
//!
//! Claims are data ([`claims`]). All runs of an audit go through the engine of sweeps, first those that decide claims,
//! then those that examine them: each assumed figure moved both ways, each resource made faster.

mod bounds;
mod claims;
mod levers;
mod render;

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use supernode_actors::launch::Flow;

use crate::error::{Error, Result};
use crate::scenario::Loader;
use crate::sweep::{self, Axis, Condition, Done, Grid, Job, Outcome, figure, run_all};

pub use bounds::{Bound, Examination, Move};
pub use claims::{Claim, Claims};
pub use render::to_table;

/// What is asked of an audit besides its claims.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Set in every scenario.
    pub set: Vec<String>,
    /// Look at bounds and assumed figures too.
    pub examine: bool,
    pub workers: usize,
}

/// How a claim ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Holds,
    Fails,
    /// Not simulated.
    Open,
}

/// One claim and what became of it.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub claim: String,
    pub says: String,
    pub source: String,
    pub unit: String,
    pub published: Option<f64>,
    /// An upper bound, where the claim is one.
    pub at_most: Option<f64>,
    pub came_out: Option<f64>,
    /// What came out over what is published, less 1.
    pub difference: Option<f64>,
    pub tolerance: f64,
    pub verdict: Verdict,
    /// Where the verdict needs words.
    pub why: Option<String>,
    /// What comes out under settings that the published text leaves open.
    pub beside: Vec<Beside>,
    pub scenario: Option<String>,
    /// Commands that show the same without the audit.
    pub commands: Vec<String>,
    /// Assumed figures that turn the verdict when they are a fifth smaller or larger; null if that was not looked at.
    pub turned_by: Option<Vec<String>>,
}

/// A claim's figure under another setting.
#[derive(Clone, Debug, Serialize)]
pub struct Beside {
    pub set: String,
    /// Null where no point of a sweep meets the claim's condition, or the run failed.
    pub came_out: Option<f64>,
    /// Over what is published, less 1.
    pub difference: Option<f64>,
}

/// An audit that is done.
#[derive(Clone, Debug, Serialize)]
pub struct Audit {
    /// Stopped before its end: claims that were not decided by then are open, and runs may not be examined.
    pub partial: bool,
    pub claims: Vec<Row>,
    pub examined: Vec<Examination>,
}

impl Audit {
    pub fn to_json(&self) -> Result<String> {
        let json = serde_json::to_string_pretty(self).map_err(|e| Error::failed(e.to_string()))?;
        Ok(json + "\n")
    }

    pub fn failing(&self) -> Vec<&str> {
        self.claims
            .iter()
            .filter(|c| c.verdict == Verdict::Fails)
            .map(|c| c.claim.as_str())
            .collect()
    }
}

/// All runs that claims need, each once.
#[derive(Default)]
struct Runs {
    jobs: Vec<Job>,
    known: BTreeMap<String, usize>,
    outcomes: Vec<Outcome>,
    reports: Vec<Value>,
}

impl Runs {
    fn want(&mut self, loader: Loader) -> Result<usize> {
        let scenario = loader.load()?;
        let name = toml::to_string(&scenario).map_err(|e| Error::failed(e.to_string()))?;
        let jobs = &mut self.jobs;
        Ok(*self.known.entry(name).or_insert_with(|| {
            jobs.push(scenario.into());
            jobs.len() - 1
        }))
    }

    fn run(&mut self, workers: usize, observe: &mut dyn FnMut(&Done) -> Flow) -> Result<()> {
        self.outcomes = run_all(&self.jobs, workers, observe);
        self.reports = reports(&self.outcomes)?;
        Ok(())
    }

    /// The figure of a run, or why there is none.
    fn figure(&self, run: usize, key: &str) -> std::result::Result<f64, String> {
        if let Some(why) = self.outcomes[run].reason() {
            return Err(why.to_string());
        }
        figure(&self.reports[run], key)
            .and_then(Value::as_f64)
            .ok_or_else(|| format!("the report has no figure {key}"))
    }
}

fn stopped(outcomes: &[Outcome]) -> bool {
    outcomes.iter().any(|o| matches!(o, Outcome::Stopped))
}

fn reports(outcomes: &[Outcome]) -> Result<Vec<Value>> {
    outcomes
        .iter()
        .map(|o| serde_json::to_value(o.report()).map_err(|e| Error::failed(e.to_string())))
        .collect()
}

/// What one claim waits for.
enum Plan {
    Nothing,
    One(usize),
    /// Runs by the values of the axis.
    Best(Axis, Vec<usize>, Condition),
    Sweeps(Vec<(Axis, Vec<usize>)>),
    /// A figure, and the same under other settings.
    Beside(Box<Plan>, Vec<(String, Plan)>),
}

/// Audits all claims. `observe` sees each of two rounds of runs.
///
/// # Errors
/// A claim or a scenario that cannot be read, or a run that cannot be examined.
pub fn audit(
    claims: &Claims,
    wanted: &Wanted,
    observe: &mut dyn FnMut(&Done) -> Flow,
) -> Result<Audit> {
    let mut runs = Runs::default();
    let mut plans = Vec::new();
    for claim in &claims.claims {
        plans.push(plan(claims, wanted, claim, &mut runs)?);
    }
    runs.run(wanted.workers, observe)?;
    let mut partial = stopped(&runs.outcomes);
    let mut rows: Vec<Row> = claims
        .claims
        .iter()
        .zip(&plans)
        .map(|(claim, plan)| judge(claims, claim, plan, &runs))
        .collect();
    for row in &mut rows {
        if partial && row.verdict == Verdict::Fails {
            row.verdict = Verdict::Open;
        }
    }
    let mut examined = Vec::new();
    if wanted.examine && !partial {
        let picked: BTreeMap<&str, Vec<String>> = claims
            .claims
            .iter()
            .zip(&plans)
            .filter_map(|(c, p)| Some((c.scenario.as_deref()?, settled(c, p, &runs))))
            .collect();
        match bounds::examine(claims, wanted, &picked, observe)? {
            Some(all) => examined = all,
            None => partial = true,
        }
        for (row, claim) in rows.iter_mut().zip(&claims.claims) {
            row.turned_by = turned_by(row, claim, &examined);
        }
    }
    Ok(Audit {
        partial,
        claims: rows,
        examined,
    })
}

fn loader(claims: &Claims, wanted: &Wanted, scenario: &str, set: &[String]) -> Result<Loader> {
    let mut loader = claims.scenario(scenario)?;
    for set in set.iter().chain(&wanted.set) {
        loader.set(set)?;
    }
    Ok(loader)
}

fn one_axis(text: &str) -> Result<Axis> {
    let (_, mut axes) = sweep::axes(&[text.to_string()])?;
    axes.pop()
        .ok_or_else(|| Error::user(format!("axis {text}: expected several values")))
}

fn along(loader: &Loader, axis: &Axis, runs: &mut Runs) -> Result<Vec<usize>> {
    let grid = Grid::new(loader, vec![axis.clone()])?;
    (0..grid.points.len())
        .map(|i| {
            let mut point = loader.clone();
            for (key, value) in grid.keys().iter().zip(&grid.points[i].values) {
                point.set(&format!("{key}={value}"))?;
            }
            runs.want(point)
        })
        .collect()
}

fn plan(claims: &Claims, wanted: &Wanted, claim: &Claim, runs: &mut Runs) -> Result<Plan> {
    let in_claim = |why: String| Error::user(format!("claim {}: {why}", claim.name));
    if !claim.scales.is_empty() {
        let mut sweeps = Vec::new();
        for s in &claim.scales {
            let axis = one_axis(&s.axis)?;
            let loader = loader(claims, wanted, &s.scenario, &s.set)?;
            let runs = along(&loader, &axis, runs)?;
            sweeps.push((axis, runs));
        }
        return Ok(Plan::Sweeps(sweeps));
    }
    let Some(scenario) = &claim.scenario else {
        return Ok(Plan::Nothing);
    };
    let mut figure_with = |set: &[String]| -> Result<Plan> {
        let loader = loader(claims, wanted, scenario, set)?;
        match (&claim.axis, &claim.condition) {
            (Some(axis), Some(condition)) => {
                let axis = one_axis(axis)?;
                let condition = condition.parse().map_err(in_claim)?;
                let runs = along(&loader, &axis, runs)?;
                Ok(Plan::Best(axis, runs, condition))
            }
            _ => Ok(Plan::One(runs.want(loader)?)),
        }
    };
    let plain = figure_with(&[])?;
    if claim.beside.is_empty() {
        return Ok(plain);
    }
    let beside = claim
        .beside
        .iter()
        .map(|set| -> Result<(String, Plan)> {
            Ok((set.clone(), figure_with(std::slice::from_ref(set))?))
        })
        .collect::<Result<_>>()?;
    Ok(Plan::Beside(Box::new(plain), beside))
}

/// The point of a sweep with the most of the claim's figure, among those that meet its condition.
fn best(claim: &Claim, points: &[usize], condition: &Condition, runs: &Runs) -> Option<usize> {
    let best = sweep::Best {
        key: claim.figure.clone()?,
        smallest: false,
    };
    let met = points
        .iter()
        .enumerate()
        .map(|(i, &run)| (i, &runs.reports[run]))
        .filter(|(_, report)| !report.is_null() && condition.holds(report));
    best.of(met)
}

/// What is set besides the scenario of a claim to get to its point.
fn settled(claim: &Claim, plan: &Plan, runs: &Runs) -> Vec<String> {
    match plan {
        Plan::Best(axis, points, condition) => best(claim, points, condition, runs)
            .map(|i| {
                let set = |key| format!("{key}={}", axis.values[i]);
                axis.keys.iter().map(set).collect()
            })
            .unwrap_or_default(),
        Plan::Beside(plain, _) => settled(claim, plain, runs),
        _ => Vec::new(),
    }
}

/// A claim's figure as its plan has it: of the run, or of the best point of the sweep.
fn settled_figure(claim: &Claim, plan: &Plan, runs: &Runs) -> Option<f64> {
    let run = match plan {
        Plan::One(run) => *run,
        Plan::Best(_, points, condition) => points[best(claim, points, condition, runs)?],
        _ => return None,
    };
    runs.figure(run, claim.figure.as_deref()?).ok()
}

fn judge(claims: &Claims, claim: &Claim, plan: &Plan, runs: &Runs) -> Row {
    let mut row = Row {
        claim: claim.name.clone(),
        says: claim.says.clone(),
        source: claim.source.clone(),
        unit: claim.unit.clone(),
        published: claim.published,
        at_most: claim.at_most,
        came_out: None,
        difference: None,
        tolerance: claim.tolerance.unwrap_or(claims.tolerance),
        verdict: Verdict::Open,
        why: claim.open.clone(),
        beside: Vec::new(),
        scenario: claim.scenario.as_ref().map(|s| claims.place(s)),
        commands: Vec::new(),
        turned_by: None,
    };
    let place = row.scenario.clone().unwrap_or_default();
    match plan {
        Plan::Nothing => {}
        Plan::Beside(plain, beside) => {
            row = judge(claims, claim, plain, runs);
            row.beside = beside
                .iter()
                .map(|(set, plan)| {
                    let came_out = settled_figure(claim, plan, runs);
                    Beside {
                        set: set.clone(),
                        came_out,
                        difference: came_out.and_then(|x| difference(&row, x)),
                    }
                })
                .collect();
        }
        Plan::One(run) => {
            row.commands.push(format!("supernode run {place}"));
            if claim.exactly.is_empty() {
                let figure = claim.figure.as_deref().unwrap_or_default();
                figure_of(&mut row, runs.figure(*run, figure));
            } else {
                exactly(&mut row, claim, *run, runs);
            }
        }
        Plan::Best(axis, points, condition) => {
            let figure = claim.figure.as_deref().unwrap_or_default();
            let set = claim.axis.as_deref().unwrap_or_default();
            row.commands.push(format!(
                "supernode sweep {place} --set '{set}' --best {figure} --where '{condition}'"
            ));
            match best(claim, points, condition, runs) {
                Some(i) => {
                    figure_of(&mut row, runs.figure(points[i], figure));
                    let at = |i: usize| {
                        let limit = runs.figure(points[i], &condition.key).ok()?;
                        let (keys, value) = (axis.keys.join(" = "), &axis.values[i]);
                        Some(format!(
                            "{keys} = {value}, where {} is {limit:.2}",
                            condition.key
                        ))
                    };
                    row.why = at(i);
                    // And the point beyond, which is outside the limit.
                    if let Some(beyond) = points.get(i + 1)
                        && let (Some(why), Some(next)) = (&mut row.why, at(i + 1))
                        && let Ok(x) = runs.figure(*beyond, figure)
                    {
                        *why = format!("{why}; {next}, gives {x:.1}");
                    }
                }
                None => {
                    row.verdict = Verdict::Fails;
                    row.why = Some(format!("no point of {set} has {condition}"));
                }
            }
        }
        Plan::Sweeps(sweeps) => {
            for s in &claim.scales {
                let sets: String = s.set.iter().map(|s| format!(" --set {s}")).collect();
                let shown: Vec<&str> = s
                    .same
                    .iter()
                    .chain(&s.proportional)
                    .map(String::as_str)
                    .collect();
                row.commands.push(format!(
                    "supernode sweep {}{sets} --set {} --show {}",
                    claims.place(&s.scenario),
                    s.axis,
                    shown.join(",")
                ));
            }
            scales(&mut row, claim, sweeps, runs);
        }
    }
    row
}

/// Judges a claim by one figure.
fn figure_of(row: &mut Row, came_out: std::result::Result<f64, String>) {
    let x = match came_out {
        Ok(x) => x,
        Err(why) => {
            row.verdict = Verdict::Fails;
            row.why = Some(why);
            return;
        }
    };
    row.came_out = Some(x);
    row.difference = difference(row, x);
    row.verdict = verdict(row, x);
}

/// What came out over what is published, less 1.
fn difference(row: &Row, came_out: f64) -> Option<f64> {
    let published = row.published.or(row.at_most).filter(|p| *p != 0.0);
    published.map(|p| came_out / p - 1.0)
}

fn verdict(row: &Row, came_out: f64) -> Verdict {
    let holds = match (row.published, row.at_most) {
        (Some(p), _) => (came_out / p - 1.0).abs() <= row.tolerance,
        (None, Some(limit)) => came_out <= limit,
        (None, None) => false,
    };
    if holds {
        Verdict::Holds
    } else {
        Verdict::Fails
    }
}

fn exactly(row: &mut Row, claim: &Claim, run: usize, runs: &Runs) {
    let mut found = Vec::new();
    row.verdict = Verdict::Holds;
    for want in &claim.exactly {
        match runs.figure(run, &want.figure) {
            Ok(x) => {
                if x != want.is {
                    row.verdict = Verdict::Fails;
                }
                found.push(format!("{} is {x} of {}", want.figure, want.is));
            }
            Err(why) => {
                row.verdict = Verdict::Fails;
                found.push(why);
            }
        }
    }
    row.why = Some(found.join(", "));
}

/// Judges sweeps: the figure that moves most decides.
fn scales(row: &mut Row, claim: &Claim, sweeps: &[(Axis, Vec<usize>)], runs: &Runs) {
    let mut worst: Option<(f64, String)> = None;
    row.verdict = Verdict::Holds;
    for (s, (axis, points)) in claim.scales.iter().zip(sweeps) {
        let same = s.same.iter().map(|f| (f, false));
        for (figure, grows) in same.chain(s.proportional.iter().map(|f| (f, true))) {
            match moved_most(figure, grows, axis, points, runs) {
                Ok(moved) => {
                    if moved > row.tolerance {
                        row.verdict = Verdict::Fails;
                    }
                    if worst.as_ref().is_none_or(|(w, _)| moved > *w) {
                        let over = if grows { " for each of it" } else { "" };
                        let text = format!(
                            "{figure}{over} moves by {:.1}% over {}",
                            moved * 1e2,
                            s.axis
                        );
                        worst = Some((moved, text));
                    }
                }
                Err(why) => {
                    row.verdict = Verdict::Fails;
                    worst = Some((f64::INFINITY, why));
                }
            }
        }
    }
    row.why = worst.map(|(_, text)| format!("the largest of them: {text}"));
}

/// Largest move of a figure along an axis, from its value at the first point: as it is, or for each unit of the key.
fn moved_most(
    figure: &str,
    grows: bool,
    axis: &Axis,
    points: &[usize],
    runs: &Runs,
) -> std::result::Result<f64, String> {
    let mut first = None;
    let mut most: f64 = 0.0;
    for (value, &run) in axis.values.iter().zip(points) {
        let mut x = runs.figure(run, figure)?;
        if grows {
            let size: f64 = value
                .parse()
                .map_err(|_| format!("{value} is not a number"))?;
            x /= size;
        }
        let first = *first.get_or_insert(x);
        if first == 0.0 {
            return Err(format!("{figure} is 0"));
        }
        most = most.max((x / first - 1.0).abs());
    }
    Ok(most)
}

/// Assumed figures whose move by a fifth turns the verdict. A time moves against a throughput.
fn turned_by(row: &Row, claim: &Claim, examined: &[Examination]) -> Option<Vec<String>> {
    let came_out = row.came_out?;
    let scenario = row.scenario.as_deref()?;
    let e = examined.iter().find(|e| e.scenario == scenario)?;
    let time = claim
        .figure
        .as_ref()
        .is_some_and(|f| f.split('.').next().is_some_and(|s| s.ends_with("_ms")));
    let turns = |by: f64| {
        let factor = if time { 1.0 / (1.0 + by) } else { 1.0 + by };
        verdict(row, came_out * factor) != row.verdict
    };
    let turning = e
        .moves
        .iter()
        .filter(|m| m.less.is_some_and(turns) || m.more.is_some_and(turns))
        .map(|m| m.key.clone());
    Some(turning.collect())
}
