//! What bounds a figure, and how it moves with what was assumed. Both are found by moving things and running again,
//! so they are true of whatever the model does, not of what somebody thinks that it does.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use supernode_actors::launch::Flow;

use super::claims::{Claims, Examined};
use super::levers::{Lever, Where, levers, moved, resource_of};
use super::plans::loader;
use super::{Wanted, reports, set_in, stopped};
use crate::error::{Error, Result};
use crate::scenario::Loader;
use crate::sweep::{Done, Job, Outcome, figure, run_all};

/// Assumed figures are moved by this much, and resources made faster by it.
const BY: f64 = 0.2;
/// A time that is as good as none, in its unit.
const NO_TIME: f64 = 1e-3;

/// What was found about one figure of one scenario.
#[derive(Clone, Debug, Serialize)]
pub struct Examination {
    /// Its place in the file of claims.
    #[serde(skip)]
    pub place: usize,
    pub scenario: String,
    /// Set over the scenario.
    pub set: Vec<String>,
    pub figure: String,
    /// Over the first `until_s` of virtual time, as are all values here.
    pub value: f64,
    pub until_s: f64,
    /// With all operators at their peak and no fixed times, on the same machine.
    pub limit: f64,
    /// Value over limit.
    pub of_limit: f64,
    pub bounds: Vec<Bound>,
    /// Assumed figures, those that move it most first.
    pub moves: Vec<Move>,
}

/// The share of the time that a resource bounds.
#[derive(Clone, Debug, Serialize)]
pub struct Bound {
    pub resource: String,
    pub share: f64,
}

/// An assumed figure, and by how much the examined figure moves when it is a fifth smaller or larger.
#[derive(Clone, Debug, Serialize)]
pub struct Move {
    #[serde(skip)]
    lever: Lever,
    pub key: String,
    pub value: f64,
    /// The values it was moved to.
    pub tried: [f64; 2],
    /// Null where the scenario cannot be run with less of it.
    pub less: Option<f64>,
    /// Null where the scenario cannot be run with more of it.
    pub more: Option<f64>,
    pub why_assumed: String,
}

impl Move {
    /// The values it was moved to, and by how much the examined figure then moves.
    pub fn ways(&self) -> impl Iterator<Item = (&Lever, f64, f64)> {
        let by = [self.less, self.more];
        let ways = self.tried.into_iter().zip(by);
        ways.filter_map(|(value, by)| Some((&self.lever, value, by?)))
    }

    pub fn most(&self) -> f64 {
        [self.less, self.more]
            .into_iter()
            .flatten()
            .fold(0.0, |most, x| x.abs().max(most))
    }
}

/// One examination: its scenario, and its runs as places in the list of all that are not of moved figures.
struct Plan<'a> {
    place: usize,
    examined: &'a Examined,
    set: Vec<String>,
    loader: Loader,
    base: usize,
    limit: usize,
    resources: Vec<(&'a str, usize)>,
    /// Assumed figures, as they are in this scenario.
    assumed: Vec<Lever>,
}

/// The examined figure of each plan with each of its assumed figures moved; `None` where it cannot be run so.
type Found = Vec<Vec<Option<f64>>>;

/// Examines what claims were `picked` for, by place in the file of claims, with what is set to get to their points; `None`
/// if it was stopped.
pub fn examine(
    claims: &Claims,
    wanted: &Wanted,
    picked: &BTreeMap<usize, Vec<String>>,
    observe: &mut dyn FnMut(&Done) -> Flow,
) -> Result<Option<Vec<Examination>>> {
    let mut jobs = Vec::new();
    let mut plans = Vec::new();
    for (&place, set) in picked {
        let examined = &claims.examined[place];
        let set = [&set[..], &examined.set].concat();
        let base = loader(claims, wanted, &examined.scenario, &set)?;
        let set = set_in(wanted, &set, &[]);
        plans.push(plan(claims, (place, set), base, &mut jobs)?);
    }
    let outcomes = run_all(&jobs, wanted.workers, observe);
    if stopped(&outcomes) {
        return Ok(None);
    }
    let first = Values::new(&outcomes)?;
    let bases = plans
        .iter()
        .map(|p| first.of(p.base, p))
        .collect::<Result<Vec<f64>>>()?;
    let groups = grouped(&plans, |at, lever| plans[at].assumed[lever].often_idle());
    let Some(more) = move_all(&plans, &bases, 1.0 + BY, groups, wanted, observe)? else {
        return Ok(None);
    };
    // What does nothing when there is more of it mostly does nothing when there is less: but what is capped may.
    let idle = |plan: usize, lever: usize| more[plan][lever] == Some(bases[plan]);
    let groups = grouped(&plans, idle);
    let Some(less) = move_all(&plans, &bases, 1.0 - BY, groups, wanted, observe)? else {
        return Ok(None);
    };
    plans
        .iter()
        .zip(more.iter().zip(&less))
        .map(|(plan, (more, less))| found(claims, plan, &first, more, less))
        .collect::<Result<_>>()
        .map(Some)
}

/// The assumed figures of all plans, by plan: those that are likely to do nothing in one group, each other by itself.
fn grouped(plans: &[Plan], idle: impl Fn(usize, usize) -> bool) -> Vec<(usize, Vec<usize>)> {
    let mut groups = Vec::new();
    for (at, plan) in plans.iter().enumerate() {
        let all = 0..plan.assumed.len();
        let (together, alone): (Vec<_>, Vec<_>) = all.partition(|&lever| idle(at, lever));
        groups.extend(alone.into_iter().map(|lever| (at, vec![lever])));
        if !together.is_empty() {
            groups.push((at, together));
        }
    }
    groups
}

/// Moves all assumed figures by a factor. Those of a group are moved in one run: where that changes nothing at all, to
/// the last digit, none of them does anything; else each half of the group is tried.
fn move_all(
    plans: &[Plan],
    bases: &[f64],
    factor: f64,
    mut groups: Vec<(usize, Vec<usize>)>,
    wanted: &Wanted,
    observe: &mut dyn FnMut(&Done) -> Flow,
) -> Result<Option<Found>> {
    let mut found: Found = plans.iter().map(|p| vec![None; p.assumed.len()]).collect();
    while !groups.is_empty() {
        let jobs: Vec<Job> = groups
            .iter()
            .map(|(at, group)| {
                let plan = &plans[*at];
                let lever = |i: &usize| (&plan.assumed[*i], plan.assumed[*i].times(factor));
                let changes: Vec<(&Lever, f64)> = group.iter().map(lever).collect();
                moved(&plan.loader, &changes, Some(plan.examined.until_s))
                    .unwrap_or_else(Job::refused)
            })
            .collect();
        let outcomes = run_all(&jobs, wanted.workers, observe);
        if stopped(&outcomes) {
            return Ok(None);
        }
        let values = Values::new(&outcomes)?;
        let mut next = Vec::new();
        for (run, (at, group)) in groups.into_iter().enumerate() {
            let value = values.of(run, &plans[at]).ok();
            if value == Some(bases[at]) || group.len() == 1 {
                for lever in group {
                    found[at][lever] = value;
                }
            } else {
                let (a, b) = group.split_at(group.len() / 2);
                next.extend([(at, a.to_vec()), (at, b.to_vec())]);
            }
        }
        groups = next;
    }
    Ok(Some(found))
}

/// What came out of one round of runs.
struct Values<'a> {
    outcomes: &'a [Outcome],
    reports: Vec<Value>,
}

impl<'a> Values<'a> {
    fn new(outcomes: &'a [Outcome]) -> Result<Self> {
        Ok(Self {
            outcomes,
            reports: reports(outcomes)?,
        })
    }

    /// The examined figure of a run.
    fn of(&self, run: usize, plan: &Plan) -> Result<f64> {
        let key = &plan.examined.figure;
        let none = || {
            let why = self.outcomes[run]
                .reason()
                .unwrap_or("it is not in the report");
            let scenario = &plan.examined.scenario;
            Error::failed(format!("{key} of {scenario} cannot be examined: {why}"))
        };
        figure(&self.reports[run], key)
            .and_then(Value::as_f64)
            .filter(|x| *x > 0.0)
            .ok_or_else(none)
    }
}

fn plan<'a>(
    claims: &'a Claims,
    (place, set): (usize, Vec<String>),
    base: Loader,
    jobs: &mut Vec<Job>,
) -> Result<Plan<'a>> {
    let examined = &claims.examined[place];
    let scenario = base.clone().load()?;
    let levers = levers(&scenario)?;
    let mut want = |changes: &[(&Lever, f64)]| -> Result<usize> {
        jobs.push(moved(&base, changes, Some(examined.until_s))?);
        Ok(jobs.len() - 1)
    };
    let at_peak: Vec<(&Lever, f64)> = levers
        .iter()
        .filter(|l| l.at == Where::Operators)
        .filter_map(|l| {
            let peak = if l.is_share() { 1.0 } else { NO_TIME };
            (l.is_share() || l.is_time()).then_some((l, peak))
        })
        .collect();
    let mut resources = Vec::new();
    for resource in &claims.resources {
        let faster: Vec<(&Lever, f64)> = levers
            .iter()
            .filter(|l| resource_of(&claims.resources, l) == Some(resource.name.as_str()))
            .map(|l| {
                let time = l.is_time();
                let factor = if time { 1.0 / (1.0 + BY) } else { 1.0 + BY };
                (l, l.value * factor)
            })
            .collect();
        if !faster.is_empty() {
            resources.push((resource.name.as_str(), want(&faster)?));
        }
    }
    let (alone, limit) = (want(&[])?, want(&at_peak)?);
    Ok(Plan {
        place,
        examined,
        set,
        loader: base,
        base: alone,
        limit,
        resources,
        assumed: (levers.into_iter())
            .filter(|lever| lever.assumed.is_some())
            .collect(),
    })
}

/// `more` and `less` have the examined figure with more and less of each assumed figure in turn.
fn found(
    claims: &Claims,
    plan: &Plan,
    first: &Values,
    more: &[Option<f64>],
    less: &[Option<f64>],
) -> Result<Examination> {
    let value = first.of(plan.base, plan)?;
    let limit = first.of(plan.limit, plan)?;
    let mut bounds = Vec::new();
    for (resource, run) in &plan.resources {
        bounds.push(Bound {
            resource: (*resource).to_string(),
            share: (first.of(*run, plan)? / value).ln() / (1.0 + BY).ln(),
        });
    }
    bounds.sort_by(|a, b| b.share.total_cmp(&a.share));
    let mut moves = Vec::new();
    let by = |x: Option<f64>| Some(x? / value - 1.0);
    for (i, lever) in plan.assumed.iter().enumerate() {
        moves.push(Move {
            lever: lever.clone(),
            key: lever.name(),
            value: lever.value,
            tried: [lever.times(1.0 - BY), lever.times(1.0 + BY)],
            less: by(less[i]),
            more: by(more[i]),
            why_assumed: lever.assumed.clone().unwrap_or_default(),
        });
    }
    moves.sort_by(|a, b| b.most().total_cmp(&a.most()));
    Ok(Examination {
        place: plan.place,
        scenario: claims.place(&plan.examined.scenario),
        set: plan.set.clone(),
        figure: plan.examined.figure.clone(),
        value,
        until_s: plan.examined.until_s,
        limit,
        of_limit: value / limit,
        bounds,
        moves,
    })
}
