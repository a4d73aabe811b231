//! Which assumed figures turn a claim's verdict when they are a fifth smaller or larger. An examination says how far
//! each moves one run; where that, or somewhat more, could turn a claim, the claim's own runs are made again with it.

use std::collections::BTreeSet;

use serde::Serialize;
use supernode_actors::launch::Flow;

use super::claims::{Claim, Claims};
use super::levers::Lever;
use super::plans::{Plan, Runs, Variant, of_figure};
use super::{Decided, Examination, Row, Verdict, Wanted, judge, stopped, verdict};
use crate::error::Result;
use crate::sweep::Done;

/// A claim's own runs may be moved by so much more than the one that was examined, which is shorter and may be at
/// another point of a sweep.
const MORE: f64 = 1.5;
/// Moves between none and that which are looked at.
const STEPS: u32 = 12;
/// Where a claim does not follow what was examined, anything is tried that moves it by more than this.
const MOVES: f64 = 1e-3;

/// What became of a claim with assumed figures moved.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Turned {
    /// Moves that turn the verdict.
    pub by: Vec<Trial>,
    /// Moves that could have, and do not.
    pub not_by: Vec<Trial>,
}

/// A claim with one assumed figure moved.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Trial {
    pub key: String,
    /// What it was moved to.
    pub value: f64,
    /// Of the claim; null where no point of its sweep met its condition.
    pub came_out: Option<f64>,
}

/// Fills in [`Row::turned`] of every claim with a figure whose scenario was examined; `None` if it was stopped.
pub fn turn(
    claims: &Claims,
    wanted: &Wanted,
    rows: &mut [Row],
    decided: &Decided,
    examined: &[Examination],
    observe: &mut dyn FnMut(&Done) -> Flow,
) -> Result<Option<()>> {
    let mut again = Runs::default();
    let mut trials = Vec::new();
    for (at, (claim, plan)) in claims.claims.iter().zip(decided.plans).enumerate() {
        let row = &rows[at];
        let place = decided.examined_as[at].filter(|_| row.came_out.is_some());
        let Some(e) = place.and_then(|p| examined.iter().find(|e| e.place == p)) else {
            continue;
        };
        let original = Original {
            row,
            claim,
            plan: plan.plain(),
            runs: decided.runs,
        };
        for (lever, value, by) in e.moves.iter().flat_map(|m| m.ways()) {
            let Some(points) = original.could_turn(&e.figure, lever, by) else {
                continue;
            };
            let variant = Variant {
                change: Some((lever, value)),
                points: Some(&points),
                ..Variant::default()
            };
            let plan = of_figure(claims, wanted, claim, &variant, &mut again)?;
            trials.push((at, lever, value, plan));
        }
        rows[at].turned = Some(Turned::default());
    }
    again.run(wanted.workers, observe)?;
    if stopped(&again.outcomes) {
        return Ok(None);
    }
    for (at, lever, value, plan) in &trials {
        let then = judge(claims, wanted, &claims.claims[*at], plan, &again);
        // What cannot be run with it is not turned by it.
        if then.came_out.is_none()
            && plan
                .points()
                .any(|run| again.outcomes[run].report().is_none())
        {
            continue;
        }
        let turns = then.verdict != rows[*at].verdict;
        let trial = Trial {
            key: lever.name(),
            value: *value,
            came_out: then.came_out,
        };
        let turned = rows[*at].turned.get_or_insert_default();
        let list = if turns {
            &mut turned.by
        } else {
            &mut turned.not_by
        };
        list.push(trial);
    }
    Ok(Some(()))
}

/// A claim as it came out with nothing moved.
struct Original<'a> {
    row: &'a Row,
    claim: &'a Claim,
    plan: &'a Plan,
    runs: &'a Runs,
}

impl Original<'_> {
    /// Whether the claim could be turned by what moves the examined figure by `by`: the points of its sweep that could
    /// then be its best, or the one of a single run.
    fn could_turn(&self, examined: &str, lever: &Lever, by: f64) -> Option<Vec<usize>> {
        let figure = self.claim.figure.as_deref()?;
        match self.plan {
            Plan::One(_) => {
                let Some(follows) = follows(figure, examined) else {
                    return (by.abs() >= MOVES).then(|| vec![0]);
                };
                let came_out = self.row.came_out?;
                moves(by)
                    .any(|by| verdict(self.row, came_out * follows(by)) != self.row.verdict)
                    .then(|| vec![0])
            }
            Plan::Best(axis, points, condition) => {
                if axis.keys.contains(&lever.name()) {
                    return None;
                }
                let (Some(figure_by), Some(limit_by)) =
                    (follows(figure, examined), follows(&condition.key, examined))
                else {
                    return (by.abs() >= MOVES).then(|| (0..points.len()).collect());
                };
                let known: Vec<(usize, f64, f64)> = (points.iter().enumerate())
                    .filter_map(|(i, &run)| {
                        let x = self.runs.figure(run, figure).ok()?;
                        Some((i, x, self.runs.figure(run, &condition.key).ok()?))
                    })
                    .collect();
                let best = |by: f64| {
                    (known.iter())
                        .filter(|(_, _, limit)| condition.met_by(limit * limit_by(by)))
                        .map(|(i, x, _)| (*i, x * figure_by(by)))
                        .max_by(|a, b| a.1.total_cmp(&b.1))
                };
                let verdicts: Vec<_> = std::iter::once(0.0)
                    .chain(moves(by))
                    .map(best)
                    .map(|b| (b, b.map_or(Verdict::Fails, |(_, x)| verdict(self.row, x))))
                    .collect();
                let turns = verdicts.iter().any(|(_, v)| *v != self.row.verdict);
                let picked: BTreeSet<usize> = verdicts
                    .iter()
                    .filter_map(|(b, _)| Some(b.as_ref()?.0))
                    .collect();
                turns.then(|| picked.into_iter().collect())
            }
            _ => None,
        }
    }
}

fn moves(by: f64) -> impl Iterator<Item = f64> {
    (1..=STEPS).map(move |i| by * MORE * f64::from(i) / f64::from(STEPS))
}

/// How a figure follows another that moves by a share: rates move alike, and times against them. `None` for what is
/// neither.
fn follows(figure: &str, examined: &str) -> Option<fn(f64) -> f64> {
    let time = |key: &str| {
        let section = key.split('.').next().unwrap_or_default();
        let rate = key.contains("_per_s");
        (section.ends_with("_ms") || rate).then_some(!rate)
    };
    Some(if time(figure)? == time(examined)? {
        |by| 1.0 + by
    } else {
        |by| 1.0 / (1.0 + by)
    })
}
