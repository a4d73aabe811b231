//! `supernode up`: launches a machine and keeps it up, behind an OpenAI-compatible API.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::interrupt::{self, Running};
use super::output;
use super::run::{cores, default_shards};
use super::scenario_args::ScenarioArgs;
use crate::error::{Error, Result};
use crate::live::{
    Bound, Context, Counters, Desk, Driver, Facts, Gateway, Options, Pace, Player, Recorder, inbox,
};
use crate::run::Prepared;
use crate::workload::Source;

/// Launch a machine and keep it up, behind an OpenAI-compatible API, metrics and a page
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  supernode up                                     384 NPUs on http://127.0.0.1:8384
  supernode up --load                              with the default workload played against it, over and over
  supernode up --pace 0.1 --record arrivals.jsonl  ten times as slow, and keeping what arrives
  supernode up --listen 0.0.0.0:8384 --token KEY   for others too, who need the token

Virtual time follows the wall at --pace; when the computer is too slow for that, it says by how much.
Ctrl-C takes nothing new, lets open requests end and prints the report; a second one ends at once.")]
pub struct Args {
    #[command(flatten)]
    scenario: ScenarioArgs,

    /// Virtual seconds in a second on the wall: 1, 0.1, … or max
    #[arg(
        allow_negative_numbers = true,
        long,
        value_name = "FACTOR",
        default_value = "1"
    )]
    pace: Pace,

    /// Address and port to listen on
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8384")]
    listen: SocketAddr,

    /// Token that clients must send as a bearer; needed to listen on other addresses than this computer's own
    #[arg(
        long,
        value_name = "TOKEN",
        env = "SUPERNODE_TOKEN",
        hide_env_values = true
    )]
    token: Option<String>,

    /// Play the scenario's workload against it from inside, over and over
    #[arg(long)]
    load: bool,

    /// Requests in the machine at once; more are answered with 429 [default: twice the decode slots]
    #[arg(allow_negative_numbers = true, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    max_requests: Option<u64>,

    /// Keep what arrives as a trace that `supernode run --workload` plays again
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,

    /// Threads that share the machine [default: one per core that HTTP leaves (half of them, at most 4), at most 2]
    #[arg(allow_negative_numbers = true, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    shards: Option<u32>,

    /// Threads that read requests and write answers [default: half the cores, at most 4]
    #[arg(allow_negative_numbers = true, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    http_threads: Option<u16>,

    /// Write the report as JSON to this file at the end ("-": to standard output, instead of the table)
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Say nothing but errors
    #[arg(short, long)]
    quiet: bool,
}

/// All streams of a decode group get their tokens at once, so HTTP comes in bursts; a few threads are enough for them.
const HTTP_THREADS_MAX: usize = 4;

/// Open requests get so long to end after Ctrl-C.
const DRAIN_MOST: Duration = Duration::from_secs(60);

pub fn run(args: &Args) -> Result<()> {
    if let Some(path) = &args.json {
        output::check("--json", path)?;
    }
    let scenario = args.scenario.load()?;
    let bound = Bound::new(args.listen, args.token.as_deref())?;
    let recorder = args.record.as_deref().map(Recorder::new).transpose()?;
    interrupt::listen()?;
    let address = bound.address;
    let prepared = Prepared::new(scenario)?;
    let nodes = prepared.machine.node_count();
    let http = args
        .http_threads
        .map_or_else(|| (cores() / 2).clamp(1, HTTP_THREADS_MAX), usize::from);
    let left = cores().saturating_sub(http).max(1);
    let shards = args.shards.unwrap_or_else(|| default_shards(left, nodes));
    let launched = prepared.launch_live(shards)?;
    let started = Instant::now();
    let supernode = launched.supernode;
    let machine = Arc::clone(&supernode.shared().machine);
    let slots = supernode.occupancy().slots;
    let facts = Facts {
        model: launched.model.name.clone(),
        machine: machine.spec.name.clone(),
        max_context: launched.model.max_context,
        kv_tokens_max: supernode.shared().decode_kv_tokens,
        vocab: launched.model.vocab,
        requests_max: args.max_requests.unwrap_or(2 * slots.max(1)),
        created: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_secs()),
        started,
        addresses: machine.clone(),
    };
    let context = || Context {
        scenario: launched.scenario.clone(),
        source: source(&launched.source, args.load),
        concurrency: None,
        notes: if args.load {
            launched.notes.clone()
        } else {
            Vec::new()
        },
        int8_tops_per_npu: launched.int8_tops_per_npu,
    };
    let (commands, inbox) = inbox();
    let counters = Arc::new(Counters::default());
    let gateway = Gateway::new(commands, facts, Arc::clone(&counters));
    let options = Options {
        pace: args.pace,
        player: args
            .load
            .then(|| Player::new(launched.load, supernode.now())),
        recorder,
        say: Box::new({
            let quiet = args.quiet;
            move |text| say(quiet, text)
        }),
    };
    let server = bound.serve(http, gateway.clone(), Desk::new(context(), machine.clone()))?;
    say(
        args.quiet,
        &format!(
            "{} is up on http://{address}, {} NPUs at pace {}",
            machine.spec.name,
            machine.npu_count(),
            args.pace
        ),
    );
    let finished = {
        let running = Running::new();
        let over = AtomicBool::new(false);
        let gave_up = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| watch(&running, &gateway, &over, &gave_up, args.quiet));
            let driver = Driver::new(supernode, options, inbox, counters);
            let finished = driver.run(&|| gave_up.load(Ordering::Relaxed));
            over.store(true, Ordering::Relaxed);
            finished
        })
    };
    server.stop();
    let finished = finished?;
    let report = context().of(&finished, started.elapsed().as_secs_f64());
    if !args.quiet && !args.json.as_deref().is_some_and(output::is_stdout) {
        output::stdout(&report.to_table())?;
    }
    if let Some(path) = &args.json {
        output::to(path, "the report", &report.to_json())?;
    }
    if !finished.quiet {
        return Err(Error::failed(format!(
            "open requests did not end within {} s",
            DRAIN_MOST.as_secs()
        )));
    }
    Ok(())
}

/// Waits for Ctrl-C, then has the machine drained, for so long.
fn watch(
    running: &Running,
    gateway: &Gateway,
    over: &AtomicBool,
    gave_up: &AtomicBool,
    quiet: bool,
) {
    let mut draining: Option<Instant> = None;
    while !over.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(50));
        match draining {
            None if running.stop_asked() => {
                draining = Some(Instant::now());
                say(
                    quiet,
                    "shutting down: open requests may end (Ctrl-C again: at once)",
                );
                gateway.drain();
            }
            Some(since) if since.elapsed() > DRAIN_MOST => gave_up.store(true, Ordering::Relaxed),
            _ => {}
        }
    }
}

fn source(workload: &Source, load: bool) -> Source {
    Source {
        name: if load {
            format!("live requests, and {}", workload.name)
        } else {
            "live requests".into()
        },
        kind: "live",
        format: "live",
        phase: crate::scenario::PhaseSpec::Both,
    }
}

fn say(quiet: bool, text: &str) {
    if !quiet {
        output::note(text);
    }
}
