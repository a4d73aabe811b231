//! What bounds a figure, and how it moves with what was assumed. Both are found by moving things and running again,
//! so they are true of whatever the model does, not of what somebody thinks that it does.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use supernode_actors::launch::Flow;

use super::claims::{Claims, Examined};
use super::levers::{Lever, Where, levers, moved, resource_of};
use super::plans::loader;
use super::{Wanted, reports, stopped};
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
    pub scenario: String,
    /// Set besides the scenario.
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
    /// Null where more of it moves so little that less was not tried.
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

/// The runs of one examination, as places in the list of all.
struct Plan<'a> {
    examined: &'a Examined,
    set: Vec<String>,
    loader: Loader,
    base: usize,
    limit: usize,
    resources: Vec<(&'a str, usize)>,
    /// With each of them a fifth larger.
    assumed: Vec<(&'a Lever, usize)>,
}

/// A figure that moves what is examined by less than this when it is larger is not made smaller as well.
const MOVES: f64 = 1e-3;

/// Examines every scenario that a claim uses and the file of claims says how to; `None` if it was stopped.
pub fn examine(
    claims: &Claims,
    wanted: &Wanted,
    picked: &BTreeMap<&str, Vec<String>>,
    observe: &mut dyn FnMut(&Done) -> Flow,
) -> Result<Option<Vec<Examination>>> {
    let levers = levers()?;
    let mut jobs = Vec::new();
    let mut plans = Vec::new();
    for examined in &claims.examined {
        if let Some(set) = picked.get(examined.scenario.as_str()) {
            let set = [&set[..], &examined.set].concat();
            let base = loader(claims, wanted, &examined.scenario, &set)?;
            plans.push(plan(claims, examined, &set, base, &levers, &mut jobs)?);
        }
    }
    let outcomes = run_all(&jobs, wanted.workers, observe);
    if stopped(&outcomes) {
        return Ok(None);
    }
    let first = Values::new(&outcomes)?;
    // The other way, where it matters.
    let mut less = Vec::new();
    for plan in &plans {
        let base = first.of(plan.base, plan)?;
        for (lever, run) in &plan.assumed {
            let moves = first
                .of(*run, plan)
                .map_or(true, |x| (x / base - 1.0).abs() >= MOVES);
            let smaller = lever.times(1.0 - BY);
            less.push(if moves {
                Some(moved(
                    &plan.loader,
                    &[(lever, smaller)],
                    Some(plan.examined.until_s),
                )?)
            } else {
                None
            });
        }
    }
    let jobs: Vec<Job> = less.iter().flatten().cloned().collect();
    let outcomes = run_all(&jobs, wanted.workers, observe);
    if stopped(&outcomes) {
        return Ok(None);
    }
    let second = Values::new(&outcomes)?;
    let mut runs = 0..jobs.len();
    let mut less = less
        .iter()
        .map(|job| job.as_ref().and_then(|_| runs.next()));
    plans
        .iter()
        .map(|plan| found(claims, plan, &first, &second, &mut less))
        .collect::<Result<_>>()
        .map(Some)
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
    examined: &'a Examined,
    set: &[String],
    base: Loader,
    levers: &'a [Lever],
    jobs: &mut Vec<Job>,
) -> Result<Plan<'a>> {
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
    let mut assumed = Vec::new();
    for lever in levers.iter().filter(|l| l.assumed.is_some()) {
        assumed.push((lever, want(&[(lever, lever.times(1.0 + BY))])?));
    }
    let (alone, limit) = (want(&[])?, want(&at_peak)?);
    Ok(Plan {
        examined,
        set: set.to_vec(),
        loader: base,
        base: alone,
        limit,
        resources,
        assumed,
    })
}

/// `less` gives, for each assumed figure in turn, the run of `second` in which it is smaller.
fn found(
    claims: &Claims,
    plan: &Plan,
    first: &Values,
    second: &Values,
    less: &mut dyn Iterator<Item = Option<usize>>,
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
    for (lever, more) in &plan.assumed {
        let by = |values: &Values, run: usize| {
            let x = values.of(run, plan).ok()?;
            Some(x / value - 1.0)
        };
        let less = less.next().flatten();
        moves.push(Move {
            lever: (*lever).clone(),
            key: lever.name(),
            value: lever.value,
            tried: [lever.times(1.0 - BY), lever.times(1.0 + BY)],
            less: less.and_then(|run| by(second, run)),
            more: by(first, *more),
            why_assumed: lever.assumed.clone().unwrap_or_default(),
        });
    }
    moves.sort_by(|a, b| b.most().total_cmp(&a.most()));
    Ok(Examination {
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
