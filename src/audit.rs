//! The audit: every published claim beside what comes out of the parts, what bounds it, and how firm that is.
//!
//! Claims are data ([`claims`]). All runs of an audit go through the engine of sweeps, first those that decide claims,
//! then those that examine them: each assumed figure moved both ways, each resource made faster; and last those of
//! claims that a moved figure could turn.

mod bounds;
mod claims;
mod levers;
mod plans;
mod render;
mod turned;

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use supernode_actors::launch::Flow;

use crate::error::{Error, Result};
use crate::sweep::{Axis, Done, Outcome};
use plans::{Plan, Runs, best, plan, settled, settled_figure};

pub use bounds::{Bound, Examination, Move};
pub use claims::{Claim, Claims};
pub use render::to_table;
pub use turned::{Trial, Turned};

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
    /// Which assumed figures turn the verdict when they are a fifth smaller or larger; null if that was not looked at.
    pub turned: Option<Turned>,
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

/// What claims were decided by.
struct Decided<'a> {
    /// Of each claim.
    plans: &'a [Plan],
    runs: &'a Runs,
    /// Which examination is of the scenario of each claim, by its place in the file of claims.
    examined_as: &'a [Option<usize>],
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

/// Audits all claims. `observe` sees each round of runs.
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
        .map(|(claim, plan)| judge(claims, wanted, claim, plan, &runs))
        .collect();
    for row in &mut rows {
        if partial && row.verdict == Verdict::Fails {
            row.verdict = Verdict::Open;
        }
    }
    let mut examined = Vec::new();
    if wanted.examine && !partial {
        let examined_as = claims
            .claims
            .iter()
            .map(|claim| plans::examined_as(claims, wanted, claim))
            .collect::<Result<Vec<_>>>()?;
        let picked: BTreeMap<usize, Vec<String>> = (claims.claims.iter().zip(&plans))
            .zip(&examined_as)
            .filter_map(|((c, p), place)| Some(((*place)?, settled(c, p, &runs))))
            .collect();
        match bounds::examine(claims, wanted, &picked, observe)? {
            Some(all) => examined = all,
            None => partial = true,
        }
        let decided = Decided {
            plans: &plans,
            runs: &runs,
            examined_as: &examined_as,
        };
        let turned = turned::turn(claims, wanted, &mut rows, &decided, &examined, observe)?;
        partial |= turned.is_none();
    }
    Ok(Audit {
        partial,
        claims: rows,
        examined,
    })
}

fn judge(claims: &Claims, wanted: &Wanted, claim: &Claim, plan: &Plan, runs: &Runs) -> Row {
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
        turned: None,
    };
    let place = row.scenario.clone().unwrap_or_default();
    match plan {
        Plan::Nothing => {}
        Plan::Beside(plain, beside) => {
            row = judge(claims, wanted, claim, plain, runs);
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
            let sets = shown_sets(wanted, &[], &[]);
            row.commands.push(format!("supernode run {place}{sets}"));
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
            let sets = shown_sets(wanted, &[], &axis.keys);
            row.commands.push(format!(
                "supernode sweep {place}{sets} --set '{set}' --best {figure} --where '{condition}'"
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
            for (s, (axis, _)) in claim.scales.iter().zip(sweeps) {
                let sets = shown_sets(wanted, &s.set, &axis.keys);
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

/// What is set in a run of a claim: what is set in all, but for keys that the claim sets itself or varies.
fn set_in(wanted: &Wanted, own: &[String], varied: &[String]) -> Vec<String> {
    let key = |set: &str| set.split('=').next().unwrap_or_default().trim().to_string();
    let taken: Vec<String> = own.iter().map(|s| key(s)).collect();
    let common = wanted.set.iter().filter(|s| {
        let key = key(s);
        !taken.contains(&key) && !varied.contains(&key)
    });
    common.chain(own).cloned().collect()
}

/// The same as options of a command.
fn shown_sets(wanted: &Wanted, own: &[String], varied: &[String]) -> String {
    let set = set_in(wanted, own, varied);
    set.iter().map(|s| format!(" --set {s}")).collect()
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
