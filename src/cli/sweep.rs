//! `supernode sweep`: runs a grid of scenarios side by side, and shows what came out of each.

use std::io::{IsTerminal, stderr};
use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressStyle};
use supernode_actors::launch::Flow;

use super::interrupt::{self, Running};
use super::output;
use super::scenario_args::ScenarioArgs;
use crate::error::{Error, Result};
use crate::sweep::{
    Best, Chosen, Condition, DEFAULT_FIGURES, Done, Grid, Job, Outcome, axes, default_workers,
    figures, none_broke, run_all, to_csv, to_json, to_table,
};

/// Run a grid of scenarios side by side, and compare what comes out
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A --set with several values is an axis of the grid, one with a single value holds for all of it:
  --set decode.max_batch_per_npu=32,64,96    three values
  --set decode.max_batch_per_npu=32..96:32   the same, as a range with its step; both ends count
  --set workload.rate_per_s=1..100:x10       a range by factors: 1, 10, 100
  --set decode.instances+prefill.instances=1,2   two keys that move together
The first axis varies slowest.

Examples:
  supernode sweep --set decode.mtp_tokens=0..2 --set decode.max_batch_per_npu=16,96
  supernode sweep s.toml --set workload.rate_per_s=10..40:10 --show goodput,ttft_ms --csv out.csv
  supernode sweep s.toml --set decode.max_batch_per_npu=8..128:8 \\
      --best decode.tokens_per_s_per_npu --where 'tpot_ms.p99<50'

A point that cannot run, such as one that does not fit in memory, is a row with the reason.
Ctrl-C ends the sweep and shows what is done; a second one ends at once.
Exit codes: 0 done, 1 a run failed or nothing meets --where, 2 the input is wrong or no point
can run, 130 stopped by Ctrl-C.",
    mut_arg("set", |set| set.value_name("KEY=VALUES").help(
        "Set a key of the scenario; several values are an axis of the grid (see below); may be repeated"
    ))
)]
pub struct Args {
    #[command(flatten)]
    scenario: ScenarioArgs,

    /// Figures to show, by their keys in the JSON report, such as ttft_ms,decode.tokens_per_s_per_npu
    #[arg(long, value_name = "KEYS", value_delimiter = ',')]
    show: Vec<String>,

    /// Pick the point with the largest figure (of times: the smallest); min:KEY and max:KEY say which
    #[arg(long, value_name = "KEY")]
    best: Option<String>,

    /// Pick only among points that meet this, such as 'tpot_ms.p99<50'; may be repeated, all must hold
    #[arg(long = "where", value_name = "CONDITION")]
    conditions: Vec<String>,

    /// Write the rows as CSV to this file ("-": to standard output, instead of the table)
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,

    /// Write all reports as JSON to this file ("-": to standard output, instead of the table)
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Runs at a time, each on one thread [default: one per core]
    #[arg(allow_negative_numbers = true, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    jobs: Option<u32>,

    /// No progress bar and no table
    #[arg(short, long)]
    quiet: bool,
}

/// Runs all jobs, so many at a time (otherwise one per core), until Ctrl-C, which the second value tells of.
pub fn run_until_stopped(
    jobs: &[Job],
    at_a_time: Option<u32>,
    bar: Bar,
) -> Result<(Vec<Outcome>, bool)> {
    interrupt::listen()?;
    let running = Running::new();
    let workers = at_a_time.map_or_else(default_workers, |n| n as usize);
    let outcomes = run_all(jobs, workers, &mut |done| {
        bar.show(done);
        if running.stop_asked() {
            Flow::Stop
        } else {
            Flow::Continue
        }
    });
    Ok((outcomes, running.stop_asked()))
}

pub fn run(args: &Args) -> Result<()> {
    let files = [("--csv", &args.csv), ("--json", &args.json)];
    for (option, path) in files {
        if let Some(path) = path {
            output::check(option, path)?;
        }
    }
    let to_stdout = |path: &Option<PathBuf>| path.as_deref().is_some_and(output::is_stdout);
    if to_stdout(&args.csv) && to_stdout(&args.json) {
        return Err(Error::user(
            "--csv - --json -: standard output can be one of them, expected a file for the other",
        ));
    }
    let (show, conditions, best) = asked(args)?;
    let (fixed, axes) = axes(&args.scenario.set)?;
    let mut base = args.scenario.without_sets()?;
    for set in &fixed {
        base.set(set)?;
    }
    let grid = Grid::new(&base, axes)?;
    let bar = Bar::new(args.quiet, "points");
    let (outcomes, stopped) = run_until_stopped(&grid.jobs(), args.jobs, bar)?;
    if let Some(why) = nothing_ran(&outcomes) {
        return Err(Error::user(why));
    }
    let chosen = Chosen {
        grid: &grid,
        reports: outcomes
            .iter()
            .map(|o| serde_json::to_value(o.report()))
            .collect::<std::result::Result<_, _>>()
            .map_err(|e| Error::failed(e.to_string()))?,
        outcomes: &outcomes,
        show,
        show_all: !args.show.is_empty(),
        conditions,
        best,
    };
    if !args.quiet && !to_stdout(&args.csv) && !to_stdout(&args.json) {
        output::stdout(&to_table(&chosen))?;
    }
    if let Some(path) = &args.csv {
        output::to(path, "the rows", &to_csv(&chosen)?)?;
    }
    if let Some(path) = &args.json {
        output::to(path, "the reports", &to_json(&chosen))?;
    }
    if stopped {
        return Err(Error::Interrupted);
    }
    ended(&chosen)
}

/// The figures that were asked for.
fn asked(args: &Args) -> Result<(Vec<String>, Vec<Condition>, Option<Best>)> {
    let user =
        |option: &str, text: &str, why: String| Error::user(format!("{option} {text}: {why}"));
    let mut show = Vec::new();
    for key in &args.show {
        show.extend(figures(key.trim()).map_err(|why| user("--show", key, why))?);
    }
    if show.is_empty() {
        show = DEFAULT_FIGURES.map(String::from).to_vec();
    }
    let conditions = args
        .conditions
        .iter()
        .map(|text| text.parse().map_err(|why| user("--where", text, why)))
        .collect::<Result<Vec<Condition>>>()?;
    let best: Option<Best> = match &args.best {
        None => None,
        Some(text) => Some(text.parse().map_err(|why| user("--best", text, why))?),
    };
    // What decides is shown.
    let deciding = conditions
        .iter()
        .map(|c| &c.key)
        .chain(best.iter().map(|b| &b.key));
    for key in deciding {
        if !show.contains(key) {
            show.push(key.clone());
        }
    }
    Ok((show, conditions, best))
}

/// Why not a single point could be run.
fn nothing_ran(outcomes: &[Outcome]) -> Option<String> {
    let refused = |o: &Outcome| matches!(o, Outcome::Refused(_));
    if !outcomes.iter().all(refused) {
        return None;
    }
    let first = outcomes.first()?.reason()?;
    Some(match outcomes.len() {
        1 => first.to_string(),
        n => format!("none of the {n} points can run; the first: {first}"),
    })
}

fn ended(chosen: &Chosen) -> Result<()> {
    none_broke(chosen.outcomes)?;
    if let (Some(best), None) = (&chosen.best, chosen.pick()) {
        let conditions: Vec<String> = chosen.conditions.iter().map(ToString::to_string).collect();
        let meets = if conditions.is_empty() {
            String::new()
        } else {
            format!(" among points with {}", conditions.join(" and "))
        };
        return Err(Error::failed(format!(
            "--best {}: there is none{meets}",
            best.key
        )));
    }
    Ok(())
}

/// The progress bar of many runs, on standard error, and only where that is a terminal.
pub struct Bar {
    bar: Option<ProgressBar>,
    what: &'static str,
}

/// Length of the bar: runs that are under way count in part.
const BAR_PARTS: u64 = 10_000;

impl Bar {
    pub fn new(quiet: bool, what: &'static str) -> Self {
        let bar = (!quiet && stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new(BAR_PARTS);
            let style = ProgressStyle::with_template("{bar:30} {msg}  {elapsed} gone, {eta} to go");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Self { bar, what }
    }

    pub fn show(&self, done: &Done) {
        if let Some(bar) = &self.bar {
            bar.set_position((done.share * BAR_PARTS as f64) as u64);
            bar.set_message(format!("{}/{} {}", done.jobs, done.of, self.what));
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
