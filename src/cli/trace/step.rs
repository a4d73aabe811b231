//! `supernode trace step`: the critical path of one decode step.

use std::fmt::Write;
use std::path::PathBuf;

use super::open;
use crate::cli::output;
use crate::error::{Error, Result};
use crate::report::{grid, grid_with_text, number, percent};
use crate::trace::ask::path::{StepSpans, roots, steps};
use crate::trace::ask::step::{StepPath, of};

/// Show what one decode step waited for: the die, link or expert, layer by layer
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The path is walked back from the rank that was done last: what it did, then whom it waited
for, then what that one did, and so on to the start of the step. \"Beyond the median\" is how much longer a piece of
it took than the same work of the same layer on the median rank; those are summed by die, link and expert, worst
first. Only steps that were simulated message by message have a path."
)]
pub struct Args {
    /// Directory of a kept run, or a trace file
    run: PathBuf,

    /// Number of the step; without one, the steps in the trace are listed
    step: Option<u64>,

    /// Decode group, from 0
    #[arg(long, default_value_t = 0, value_name = "N")]
    group: usize,

    /// Show so many causes
    #[arg(long, default_value_t = 10, value_name = "N")]
    top: usize,

    /// Show the path layer by layer
    #[arg(long)]
    layers: bool,

    /// Print JSON, times in picoseconds
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let trace = open(&args.run)?;
    let roots = roots(&trace);
    if roots.is_empty() {
        return Err(Error::user(
            "this trace has no steps: they are told by the die that leads a decode group, and no such die is in it; \
             trace more of the machine (all of it: --trace-match '**')",
        ));
    }
    if args.group >= roots.len() {
        return Err(Error::user(format!(
            "--group {}: this trace has steps of {} decode groups",
            args.group,
            roots.len()
        )));
    }
    let known = steps(&trace, &roots, args.group);
    let list = || {
        let few: Vec<String> = known.iter().take(30).map(u64::to_string).collect();
        let more = if known.len() > 30 { ", …" } else { "" };
        format!("{}{more}", few.join(", "))
    };
    let Some(step) = args.step else {
        return output::stdout(&format!("{} steps have a path: {}\n", known.len(), list()));
    };
    if !known.contains(&step) {
        return Err(Error::user(format!(
            "step {step}: has no spans of operators in this trace (only steps simulated message by message do); \
             there are {}",
            if known.is_empty() {
                "none".into()
            } else {
                list()
            }
        )));
    }
    let path = of(&StepSpans::of(&trace, &roots, args.group, step), step);
    if args.json {
        let json = serde_json::to_string_pretty(&path).map_err(|e| Error::failed(e.to_string()))?;
        return output::stdout(&format!("{json}\n"));
    }
    output::stdout(&table(&path, args))
}

fn us(ps: u64) -> String {
    number(ps as f64 / 1e6)
}

fn table(p: &StepPath, args: &Args) -> String {
    let mut t = String::new();
    let _ = writeln!(
        t,
        "step        {} of decode group {}: {} ranks, {} ms, {} ms of it beyond the median rank",
        p.step,
        args.group,
        p.ranks,
        number(p.path_ps as f64 / 1e9),
        number(p.excess_ps as f64 / 1e9)
    );
    if let Some(why) = &p.broken {
        let _ = writeln!(t, "note        the path is cut short: {why}");
    }
    let _ = writeln!(t, "\nwaited for most");
    let head = [
        "",
        "beyond the median µs",
        "on the path µs",
        "layers",
        "mostly in",
        "fault in force there",
    ];
    let mut rows = vec![head.map(String::from).to_vec()];
    for c in p.causes.iter().take(args.top) {
        rows.push(vec![
            c.what.clone(),
            us(c.excess_ps),
            us(c.path_ps),
            c.layers.to_string(),
            c.stage.clone(),
            c.faults.join(", "),
        ]);
    }
    grid_with_text(&mut t, &rows, 4);
    let _ = writeln!(t, "\nthe path by stage");
    let mut rows = vec![["", "µs", "share"].map(String::from).to_vec()];
    for (stage, ps) in &p.stages_ps {
        rows.push(vec![
            stage.clone(),
            us(*ps),
            percent(*ps as f64 / p.path_ps.max(1) as f64),
        ]);
    }
    grid(&mut t, &rows);
    if args.layers {
        t.push('\n');
        let head = ["layer.microbatch", "µs", "beyond", "most of it", "in"];
        let mut rows = vec![head.map(String::from).to_vec()];
        for l in &p.layers {
            rows.push(vec![
                format!("{}.{}", l.layer, l.microbatch),
                us(l.path_ps),
                us(l.excess_ps),
                l.what.clone(),
                l.stage.clone(),
            ]);
        }
        grid_with_text(&mut t, &rows, 3);
    }
    t
}
