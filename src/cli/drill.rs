//! `supernode fault drill`: runs a scenario without a fault and under one plan after the other, and shows what each cost.

use std::path::PathBuf;

use super::output;
use super::scenario_args::ScenarioArgs;
use super::sweep::{Bar, run_until_stopped};
use crate::drill::{
    Drill, all_accounted_for, jobs, one_of_each, rows, to_json, to_markdown, to_table,
};
use crate::error::{Error, Result};
use crate::fault::time_ps;
use crate::run::Prepared;
use crate::sweep::{Outcome, none_broke};

#[derive(Debug, clap::Args)]
#[command(mut_arg("scenario", |arg| arg.long("scenario").value_name("FILE")))]
pub struct Drills {
    /// Plan files, random:seed=N,rate=FACTOR,for=TIME, or lines, each a run of its own
    #[arg(value_name = "PLAN", required_unless_present = "each_part")]
    plan: Vec<String>,

    #[command(flatten)]
    scenario: ScenarioArgs,

    /// Also lose a part of every kind and role, one in each run, for good
    #[arg(long)]
    each_part: bool,

    /// --each-part: when the part is lost
    #[arg(allow_negative_numbers = true, long, value_name = "TIME", default_value = "5s", value_parser = time_ps)]
    at: u64,

    /// --each-part: so many of each kind
    #[arg(allow_negative_numbers = true, long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    samples: u32,

    /// Runs at a time, each on one thread [default: one per core]
    #[arg(allow_negative_numbers = true, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    jobs: Option<u32>,

    /// Print the table as Markdown
    #[arg(long)]
    markdown: bool,

    /// Write the rows as JSON to this file ("-": to standard output, instead of the table)
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub fn run(args: &Drills) -> Result<()> {
    if let Some(path) = &args.json {
        output::check("--json", path)?;
    }
    let scenario = args.scenario.load()?;
    let mut drills: Vec<Drill> = args.plan.iter().map(|p| Drill::of(p)).collect();
    if args.each_part {
        let prepared = Prepared::new(scenario.clone())?;
        let (layout, seed) = (prepared.layout()?, scenario.seed);
        let machine = &prepared.machine;
        drills.extend(one_of_each(machine, &layout, args.samples, seed, args.at));
    }
    let jobs = jobs(&scenario, &drills)?;
    let bar = Bar::new(false, "runs");
    let (outcomes, stopped) = run_until_stopped(&jobs, args.jobs, bar)?;
    if let Some(Outcome::Refused(why)) = outcomes.first() {
        return Err(Error::user(why.clone()));
    }
    let rows = rows(&drills, &outcomes);
    let json = args.json.as_deref();
    if let Some(path) = json {
        output::to(path, "the rows", &to_json(&rows))?;
    }
    if !json.is_some_and(output::is_stdout) {
        let text = if args.markdown {
            to_markdown(&rows)
        } else {
            to_table(&rows)
        };
        output::stdout(&text)?;
    }
    if stopped {
        return Err(Error::Interrupted);
    }
    none_broke(&outcomes)?;
    all_accounted_for(&rows)
}
