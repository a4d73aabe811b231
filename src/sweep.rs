//! Many runs side by side: a grid of scenarios, each on one shard of its own, as many at a time as there are cores.
//! What comes out stands in the order of the grid, whichever run ended first, and each row is what `supernode run`
//! would say of that scenario. A point that cannot run keeps its place, with the reason.

mod axes;
mod pick;
mod render;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use supernode_actors::launch::{Flow, Progress};
use supernode_topology::Machine;

use crate::error::{Error, Result};
use crate::report::Report;
use crate::run::{Extras, Prepared};
use crate::scenario::{Loader, Scenario};

pub use axes::{Axis, POINTS_MAX, axes};
pub use pick::{Best, Condition, DEFAULT_FIGURES, figure, figures};
pub use render::{Chosen, to_csv, to_json, to_table};

/// One point of a grid.
#[derive(Clone, Debug)]
pub struct Point {
    /// What each key of the axes is set to here, in the order of [`Grid::keys`].
    pub values: Vec<String>,
    /// Or why there is no such scenario.
    pub scenario: std::result::Result<Scenario, String>,
}

/// A grid: the axes that vary, and every point of it. The first axis varies slowest.
#[derive(Clone, Debug)]
pub struct Grid {
    pub axes: Vec<Axis>,
    pub points: Vec<Point>,
}

impl Grid {
    /// The grid that axes span over a scenario; what they all have in common is set already.
    ///
    /// # Errors
    /// More points than [`POINTS_MAX`], or a value of the wrong type.
    pub fn new(base: &Loader, axes: Vec<Axis>) -> Result<Self> {
        let size = axes::size(&axes)?;
        let mut points = Vec::with_capacity(size);
        for index in 0..size {
            let mut loader = base.clone();
            let mut values = Vec::new();
            for (axis, i) in axes.iter().zip(axes::place(&axes, index)) {
                for key in &axis.keys {
                    loader.set(&format!("{key}={}", axis.values[i]))?;
                    values.push(axis.values[i].clone());
                }
            }
            points.push(Point {
                values,
                scenario: loader.load().map_err(|e| e.to_string()),
            });
        }
        Ok(Self { axes, points })
    }

    /// Keys that vary, those of one axis beside each other.
    pub fn keys(&self) -> Vec<&str> {
        self.axes
            .iter()
            .flat_map(|a| a.keys.iter().map(String::as_str))
            .collect()
    }

    /// What there is to run, in the order of the points.
    pub fn jobs(&self) -> Vec<Job> {
        self.points
            .iter()
            .map(|p| Job::of(p.scenario.clone()))
            .collect()
    }
}

/// One run that is wanted.
#[derive(Clone, Debug)]
pub struct Job {
    /// Or why it cannot be run.
    pub scenario: std::result::Result<Scenario, String>,
    /// A machine to use instead of the one that the scenario names.
    pub machine: Option<Arc<Machine>>,
    /// Stop at this virtual time, with the report so far.
    pub until_s: Option<f64>,
    /// What is to break, as [`Prepared::break_parts`] takes it.
    pub plans: Vec<String>,
    pub lines: Vec<String>,
}

impl Job {
    fn of(scenario: std::result::Result<Scenario, String>) -> Self {
        Self {
            scenario,
            machine: None,
            until_s: None,
            plans: Vec::new(),
            lines: Vec::new(),
        }
    }

    /// One that cannot be run, as there is no such scenario.
    pub fn refused(why: Error) -> Self {
        Self::of(Err(why.to_string()))
    }
}

impl From<Scenario> for Job {
    fn from(scenario: Scenario) -> Self {
        Self::of(Ok(scenario))
    }
}

/// How one run ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    Done(Box<Report>),
    /// The scenario cannot be run: what is wrong with it.
    Refused(String),
    /// A bug: the run broke.
    Broke(String),
    /// Stopped before its end, or before its start.
    Stopped,
}

impl Outcome {
    pub fn report(&self) -> Option<&Report> {
        match self {
            Self::Done(report) => Some(report),
            _ => None,
        }
    }

    /// Why there is no report.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Done(_) => None,
            Self::Refused(why) | Self::Broke(why) => Some(why),
            Self::Stopped => Some("stopped by Ctrl-C"),
        }
    }
}

/// How far all runs are.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    pub jobs: usize,
    pub of: usize,
    /// Of all work, 0 to 1, taking all runs as equally long.
    pub share: f64,
}

/// How often the observer is asked.
const OBSERVE_EVERY: Duration = Duration::from_millis(100);

/// Runs all jobs on `workers` threads. Outcomes stand in the order of the jobs. The observer is called a few times a
/// second; once it says stop, runs that are under way are dropped and the others not started.
pub fn run_all(
    jobs: &[Job],
    workers: usize,
    observe: &mut dyn FnMut(&Done) -> Flow,
) -> Vec<Outcome> {
    let workers = workers.clamp(1, jobs.len().max(1));
    let mut outcomes: Vec<Outcome> = vec![Outcome::Stopped; jobs.len()];
    let stop = AtomicBool::new(false);
    let under_way: Vec<AtomicU32> = (0..workers).map(|_| AtomicU32::new(0)).collect();
    let (todo, next) = crossbeam_channel::unbounded();
    let (done, results) = crossbeam_channel::unbounded();
    for index in 0..jobs.len() {
        let _ = todo.send(index);
    }
    drop(todo);
    std::thread::scope(|scope| {
        for share in &under_way {
            let (next, done, stop) = (next.clone(), done.clone(), &stop);
            scope.spawn(move || {
                for index in next {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let outcome = run_one(&jobs[index], stop, share);
                    share.store(0, Ordering::Relaxed);
                    if done.send((index, outcome)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(done);
        let mut ended = 0;
        loop {
            match results.recv_timeout(OBSERVE_EVERY) {
                Ok((index, outcome)) => {
                    outcomes[index] = outcome;
                    ended += 1;
                }
                Err(crossbeam_channel::RecvTimeoutError::Timeout) => {}
                Err(crossbeam_channel::RecvTimeoutError::Disconnected) => return,
            }
            let parts: f64 = under_way
                .iter()
                .map(|s| f64::from(s.load(Ordering::Relaxed)) / f64::from(WHOLE))
                .sum();
            let so_far = Done {
                jobs: ended,
                of: jobs.len(),
                share: ((ended as f64 + parts) / jobs.len() as f64).min(1.0),
            };
            if observe(&so_far) == Flow::Stop {
                stop.store(true, Ordering::Relaxed);
            }
        }
    });
    outcomes
}

/// A run's progress is counted in these parts.
const WHOLE: u32 = 10_000;

fn run_one(job: &Job, stop: &AtomicBool, share: &AtomicU32) -> Outcome {
    let prepared = match &job.scenario {
        Err(why) => return Outcome::Refused(why.clone()),
        Ok(scenario) => match &job.machine {
            None => Prepared::new(scenario.clone()),
            Some(machine) => Prepared::on(scenario.clone(), Arc::clone(machine)),
        },
    };
    let mut observe = |p: &Progress| {
        let ended = p.ended as f64 / p.total.max(1) as f64;
        share.store((ended * f64::from(WHOLE)) as u32, Ordering::Relaxed);
        if stop.load(Ordering::Relaxed) {
            Flow::Stop
        } else {
            Flow::Continue
        }
    };
    let extras = Extras {
        until_s: job.until_s,
        ..Extras::default()
    };
    let prepared = prepared.and_then(|mut p| {
        p.break_parts(&job.plans, &job.lines)?;
        Ok(p)
    });
    match prepared.and_then(|p| p.run_with(1, extras, &mut observe)) {
        Ok(_) if stop.load(Ordering::Relaxed) => Outcome::Stopped,
        Ok(finished) => Outcome::Done(Box::new(finished.report.stable())),
        Err(e @ Error::User(_)) => Outcome::Refused(e.to_string()),
        Err(e) => Outcome::Broke(e.to_string()),
    }
}

/// What runs that broke end as; `rows` say why each did.
///
/// # Errors
/// When there are any.
pub fn none_broke(outcomes: &[Outcome]) -> Result<()> {
    let broke = |o: &&Outcome| matches!(o, Outcome::Broke(_));
    match outcomes.iter().filter(broke).count() {
        0 => Ok(()),
        n => Err(Error::failed(format!(
            "{n} of {} runs failed: their rows say why",
            outcomes.len()
        ))),
    }
}

/// Threads to run on: the cores there are.
pub fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
