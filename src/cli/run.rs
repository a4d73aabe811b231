//! `supernode run`: launches the machine of a scenario, serves its workload, and prints the report.

use std::fmt::Write;
use std::path::PathBuf;

use supernode_actors::launch::Flow;
use supernode_actors::trace::TraceSpec;

use super::interrupt::{self, Running};
use super::output;
use super::progress::Bar;
use super::scenario_args::ScenarioArgs;
use super::trace_args::TraceArgs;
use crate::error::{Error, Result};
use crate::report::{count, grid, number, percent};
use crate::run::{Extras, Finished, Prepared, Recording};
use crate::rundir::{self, Kept};
use crate::trace::{Header, Sink, TraceOptions};

/// Launch a machine, serve a workload on it, and report
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  supernode run                                              the default workload, 384 NPUs
  supernode run scenario.toml --json report.json             a scenario, and its report for programs
  supernode run --workload trace.jsonl.gz --copies 8         a trace, superposed eight times
  supernode run --workload trace.csv --speed 2x --for 60s    one minute of a trace at double speed
  supernode run --set decode.microbatch=off --seed 7         any key of the scenario
  supernode run --fidelity message --requests 200            every activation message routed
  supernode run --fault 'at 3s: crash node7/npu0/die1'       with a die that dies

Ctrl-C ends the run and reports what there is so far; a second one ends at once.
Exit codes: 0 done, 1 the run failed, 2 the input is wrong, 130 stopped by Ctrl-C.")]
pub struct Args {
    #[command(flatten)]
    scenario: ScenarioArgs,

    /// Something that breaks, such as 'at 3s: crash node7/npu0/die1'; may be repeated
    #[arg(long, value_name = "LINE")]
    fault: Vec<String>,

    /// A fault plan (TOML), or random:seed=7,rate=1e6 from published failure rates; may be repeated
    #[arg(long, value_name = "PLAN")]
    faults: Vec<String>,

    /// Threads that share the machine; results do not depend on it [default: one per core, at most 2]
    #[arg(allow_negative_numbers = true, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    shards: Option<u32>,

    /// Write the report as JSON to this file ("-": to standard output, instead of the table)
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Keep the run in this directory: report, scenario, digest, what every actor measured, and the trace
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    #[command(flatten)]
    trace: TraceArgs,

    /// Say on what kinds of actor the simulator spends its own time
    #[arg(long)]
    profile: bool,

    /// No progress bar and no table
    #[arg(short, long)]
    quiet: bool,
}

/// More shards than this seldom pay for the windows they wait in.
const DEFAULT_SHARDS_MAX: usize = 2;

pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// One per core, as far as that pays and a shard has a node of its own.
pub fn default_shards(cores: usize, nodes: u32) -> u32 {
    (cores.clamp(1, DEFAULT_SHARDS_MAX) as u32).min(nodes)
}

pub fn run(args: &Args) -> Result<()> {
    if let Some(path) = &args.json {
        output::check("--json", path)?;
    }
    if let Some(path) = &args.trace.trace {
        output::check("--trace", path)?;
    }
    let options = args.trace.options(args.out.is_some())?;
    if let Some(dir) = &args.out {
        rundir::prepare(dir)?;
    }
    interrupt::listen()?;
    let mut prepared = Prepared::new(args.scenario.load()?)?;
    prepared.break_parts(&args.faults, &args.fault)?;
    let bar = Bar::new(args.quiet, prepared.requests());
    let running = Running::new();
    let nodes = prepared.machine.node_count();
    let shards = args
        .shards
        .unwrap_or_else(|| default_shards(cores(), nodes));
    let mut tracing = match &options {
        Some(options) => Some(Tracing::start(args, options, &prepared)?),
        None => None,
    };
    let traced_to = tracing.as_ref().map(|t| t.path.clone());
    let mut extras = Extras {
        profile: args.profile,
        ..Extras::default()
    };
    let mut take;
    if let Some(Tracing { spec, sink, .. }) = &mut tracing {
        take = |recorded| sink.take(recorded);
        extras.recording = Some(Recording {
            spec: spec.clone(),
            take: &mut take,
        });
    }
    let finished = prepared.run_with(shards, extras, &mut |progress| {
        bar.show(progress);
        if running.stop_asked() {
            Flow::Stop
        } else {
            Flow::Continue
        }
    });
    drop(bar);
    let traced = tracing.map(|t| t.sink.finish());
    let finished = finished?;
    let report = &finished.report;
    let json_to_stdout = args.json.as_deref().is_some_and(output::is_stdout);
    if !args.quiet && !json_to_stdout {
        output::stdout(&report.to_table())?;
    }
    if args.profile && !json_to_stdout {
        output::stdout(&profile_table(&finished, shards))?;
    }
    if let Some(path) = &args.json {
        output::to(path, "the report", &report.to_json())?;
    }
    if let Some(dir) = &args.out {
        let kept = Kept {
            scenario: &finished.scenario,
            machine: &finished.machine,
            report,
            end_ps: finished.end_ps,
            records: &finished.records,
            figures: &finished.figures,
            trace: traced_to.as_deref(),
        };
        rundir::write(dir, &kept)?;
    }
    if let Some(traced) = traced {
        let summary = traced?;
        tracing::info!(?summary, "traced");
    }
    if report.partial {
        return Err(Error::Interrupted);
    }
    Ok(())
}

/// A trace that is being written.
struct Tracing {
    path: PathBuf,
    spec: TraceSpec,
    sink: Sink,
}

impl Tracing {
    fn start(args: &Args, options: &TraceOptions, prepared: &Prepared) -> Result<Self> {
        let path = match (&args.trace.trace, &args.out) {
            (Some(file), _) => file.clone(),
            (None, Some(dir)) => dir.join(rundir::TRACE_FILE),
            (None, None) => unreachable!("a trace has a place to go to"),
        };
        let scenario = &prepared.scenario;
        let header = Header::of(scenario);
        let spec = options.spec(&prepared.machine, scenario.seed)?;
        let sink = Sink::create(&path, prepared.machine.clone(), &header, options)?;
        Ok(Self { path, spec, sink })
    }
}

/// What handling an event of each kind of actor cost on this computer.
fn profile_table(finished: &Finished, shards: u32) -> String {
    let kinds = &finished.profile;
    let head = ["handled by", "events", "wall s", "ns each", "share"];
    let all_ns: u64 = kinds.iter().map(|k| k.wall_ns).sum();
    let mut rows = vec![head.map(String::from).to_vec()];
    for k in kinds.iter().filter(|k| k.events > 0) {
        rows.push(vec![
            k.kind.to_string(),
            count(k.events),
            number(k.wall_ns as f64 / 1e9),
            number(k.wall_ns as f64 / k.events.max(1) as f64),
            percent(k.wall_ns as f64 / all_ns.max(1) as f64),
        ]);
    }
    let mut text = String::from("\n");
    grid(&mut text, &rows);
    let _ = writeln!(
        text,
        "\nin actors {} s, the whole run {} s on {shards} shard{}: the rest is event queues, exchange and waiting",
        number(all_ns as f64 / 1e9),
        number(finished.ran_s),
        if shards == 1 { "" } else { "s" }
    );
    text
}
