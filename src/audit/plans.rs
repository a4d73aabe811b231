//! What claims wait for: the runs that decide them, each once, as jobs of one round.

use std::collections::BTreeMap;

use serde_json::Value;
use supernode_actors::launch::Flow;

use super::claims::{Claim, Claims};
use super::levers::{Lever, moved};
use super::{Wanted, reports};
use crate::error::{Error, Result};
use crate::scenario::Loader;
use crate::sweep::{self, Axis, Condition, Done, Grid, Job, Outcome, figure, run_all};

/// All runs of a round, each once.
#[derive(Default)]
pub struct Runs {
    jobs: Vec<Job>,
    known: BTreeMap<String, usize>,
    pub outcomes: Vec<Outcome>,
    pub reports: Vec<Value>,
}

impl Runs {
    /// A run of this scenario with one figure of the parts moved, if any is.
    fn want(&mut self, loader: &Loader, change: Option<(&Lever, f64)>) -> Result<usize> {
        let job = moved(loader, change.as_slice(), None)?;
        let scenario = job.scenario.as_ref().map_err(|e| Error::user(e.clone()))?;
        let mut name = toml::to_string(scenario).map_err(|e| Error::failed(e.to_string()))?;
        if let (Some(_), Some((lever, value))) = (&job.machine, change) {
            name.push_str(&format!("{} = {value}", lever.name()));
        }
        let jobs = &mut self.jobs;
        Ok(*self.known.entry(name).or_insert_with(|| {
            jobs.push(job);
            jobs.len() - 1
        }))
    }

    pub fn run(&mut self, workers: usize, observe: &mut dyn FnMut(&Done) -> Flow) -> Result<()> {
        self.outcomes = run_all(&self.jobs, workers, observe);
        self.reports = reports(&self.outcomes)?;
        Ok(())
    }

    /// The figure of a run, or why there is none.
    pub fn figure(&self, run: usize, key: &str) -> std::result::Result<f64, String> {
        if let Some(why) = self.outcomes[run].reason() {
            return Err(why.to_string());
        }
        figure(&self.reports[run], key)
            .and_then(Value::as_f64)
            .ok_or_else(|| format!("the report has no figure {key}"))
    }
}

/// What one claim waits for.
pub enum Plan {
    Nothing,
    One(usize),
    /// Runs by the values of the axis.
    Best(Axis, Vec<usize>, Condition),
    Sweeps(Vec<(Axis, Vec<usize>)>),
    /// A figure, and the same under other settings.
    Beside(Box<Plan>, Vec<(String, Plan)>),
}

impl Plan {
    /// All runs of a figure.
    pub fn points(&self) -> impl Iterator<Item = usize> {
        let points = match self.plain() {
            Self::One(run) => std::slice::from_ref(run),
            Self::Best(_, points, _) => points,
            _ => &[],
        };
        points.iter().copied()
    }

    /// Without what is shown beside it.
    pub fn plain(&self) -> &Self {
        match self {
            Self::Beside(plain, _) => plain,
            plan => plan,
        }
    }
}

/// How a claim's figure is shown other than as the claim says.
#[derive(Default)]
pub struct Variant<'a> {
    pub set: &'a [String],
    /// One figure of the parts moved.
    pub change: Option<(&'a Lever, f64)>,
    /// At these points of its axis only.
    pub points: Option<&'a [usize]>,
}

/// A scenario of a claim with what is set in all of them, and over that what its claim sets itself: so what is said of
/// a run to be set is set.
pub fn loader(claims: &Claims, wanted: &Wanted, scenario: &str, set: &[String]) -> Result<Loader> {
    let mut loader = claims.scenario(scenario)?;
    for set in wanted.set.iter().chain(set) {
        loader.set(set)?;
    }
    Ok(loader)
}

/// The place of the examination whose scenario a claim has: under whatever name, with the same values.
pub fn examined_as(claims: &Claims, wanted: &Wanted, claim: &Claim) -> Result<Option<usize>> {
    let Some(own) = &claim.scenario else {
        return Ok(None);
    };
    let load = |name: &str| loader(claims, wanted, name, &[])?.load();
    for (place, examined) in claims.examined.iter().enumerate() {
        if examined.scenario == *own || load(&examined.scenario)? == load(own)? {
            return Ok(Some(place));
        }
    }
    Ok(None)
}

fn one_axis(text: &str) -> Result<Axis> {
    let (_, mut axes) = sweep::axes(&[text.to_string()])?;
    axes.pop()
        .ok_or_else(|| Error::user(format!("axis {text}: expected several values")))
}

fn along(
    loader: &Loader,
    axis: &Axis,
    change: Option<(&Lever, f64)>,
    runs: &mut Runs,
) -> Result<Vec<usize>> {
    let grid = Grid::new(loader, vec![axis.clone()])?;
    (0..grid.points.len())
        .map(|i| {
            let mut point = loader.clone();
            for (key, value) in grid.keys().iter().zip(&grid.points[i].values) {
                point.set(&format!("{key}={value}"))?;
            }
            runs.want(&point, change)
        })
        .collect()
}

/// The runs that decide a claim, and those that stand beside it.
pub fn plan(claims: &Claims, wanted: &Wanted, claim: &Claim, runs: &mut Runs) -> Result<Plan> {
    if !claim.scales.is_empty() {
        let mut sweeps = Vec::new();
        for s in &claim.scales {
            let axis = one_axis(&s.axis)?;
            let loader = loader(claims, wanted, &s.scenario, &s.set)?;
            let runs = along(&loader, &axis, None, runs)?;
            sweeps.push((axis, runs));
        }
        return Ok(Plan::Sweeps(sweeps));
    }
    let plain = of_figure(claims, wanted, claim, &Variant::default(), runs)?;
    if claim.beside.is_empty() {
        return Ok(plain);
    }
    let beside = claim
        .beside
        .iter()
        .map(|set| -> Result<(String, Plan)> {
            let variant = Variant {
                set: std::slice::from_ref(set),
                ..Variant::default()
            };
            let plan = of_figure(claims, wanted, claim, &variant, runs)?;
            Ok((set.clone(), plan))
        })
        .collect::<Result<_>>()?;
    Ok(Plan::Beside(Box::new(plain), beside))
}

/// The runs that show a claim's figure.
pub fn of_figure(
    claims: &Claims,
    wanted: &Wanted,
    claim: &Claim,
    variant: &Variant,
    runs: &mut Runs,
) -> Result<Plan> {
    let Some(scenario) = &claim.scenario else {
        return Ok(Plan::Nothing);
    };
    let loader = loader(claims, wanted, scenario, variant.set)?;
    let (Some(axis), Some(condition)) = (&claim.axis, &claim.condition) else {
        return Ok(Plan::One(runs.want(&loader, variant.change)?));
    };
    let in_claim = |why: String| Error::user(format!("claim {}: {why}", claim.name));
    let mut axis = one_axis(axis)?;
    if let Some(points) = variant.points {
        axis.values = points.iter().map(|&i| axis.values[i].clone()).collect();
    }
    let condition = condition.parse().map_err(in_claim)?;
    let runs = along(&loader, &axis, variant.change, runs)?;
    Ok(Plan::Best(axis, runs, condition))
}

/// The point of a sweep with the most of the claim's figure, among those that meet its condition.
pub fn best(claim: &Claim, points: &[usize], condition: &Condition, runs: &Runs) -> Option<usize> {
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
pub fn settled(claim: &Claim, plan: &Plan, runs: &Runs) -> Vec<String> {
    match plan.plain() {
        Plan::Best(axis, points, condition) => best(claim, points, condition, runs)
            .map(|i| {
                let set = |key| format!("{key}={}", axis.values[i]);
                axis.keys.iter().map(set).collect()
            })
            .unwrap_or_default(),
        _ => Vec::new(),
    }
}

/// A claim's figure as its plan has it: of the run, or of the best point of the sweep.
pub fn settled_figure(claim: &Claim, plan: &Plan, runs: &Runs) -> Option<f64> {
    let run = match plan {
        Plan::One(run) => *run,
        Plan::Best(_, points, condition) => points[best(claim, points, condition, runs)?],
        _ => return None,
    };
    runs.figure(run, claim.figure.as_deref()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A claim has a scenario of its own, but scenarios that come to the same are run once, and examined once.
    #[test]
    fn claims_of_one_run_share_it() {
        let claims = Claims::builtin().unwrap();
        let wanted = Wanted {
            set: Vec::new(),
            examine: true,
            workers: 1,
        };
        let mut runs = Runs::default();
        let plans: BTreeMap<&str, Plan> = claims
            .claims
            .iter()
            .map(|c| {
                (
                    c.name.as_str(),
                    plan(&claims, &wanted, c, &mut runs).unwrap(),
                )
            })
            .collect();
        let points = |claim: &str| plans[claim].points().collect::<Vec<_>>();
        for (claim, with) in [
            ("prefill-efficiency", "prefill-throughput"),
            ("decode-tpot", "decode-throughput"),
            ("decode-efficiency", "decode-throughput"),
            ("ep320", "decode-throughput"),
        ] {
            assert_eq!(points(claim), points(with), "{claim}");
        }
        assert!(points("decode-15ms").contains(&points("decode-batch-8")[0]));
        // Prefill of 3, 6 and 12 instances. Decode at full load, that beside three settings, and short of one and of two
        // instances. Eight batches, with two balances each. The cache of 1 and 2 nodes. The four sizes of pools.
        assert_eq!(runs.jobs.len(), 3 + 4 + 2 + 16 + 2 + 4);
        let examined = |name: &str| {
            let claim = claims.claims.iter().find(|c| c.name == name).unwrap();
            examined_as(&claims, &wanted, claim).unwrap()
        };
        assert_eq!(examined("decode-tpot"), examined("decode-throughput"));
        assert_eq!(examined("decode-batch-8"), examined("decode-15ms"));
        assert_eq!(examined("prefill-efficiency"), Some(0));
        assert_eq!(examined("scale-independently"), None);
    }
}
