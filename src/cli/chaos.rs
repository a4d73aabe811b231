//! `supernode chaos`: random runs with random faults, every invariant checked.

use std::time::Instant;

use super::interrupt::{self, Running};
use super::output;
use crate::chaos::{self, Case};
use crate::error::{Error, Result};

/// Break small random machines at random, and check every invariant
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  supernode chaos --seeds 1000          seeds 0 to 999
  supernode chaos --for 60s             as many as a minute holds
  supernode chaos --seed 421            replay one, exactly
  supernode chaos --from 1000 --seeds 1000 --keep-going

Each seed makes a machine, a layout, a workload and a fault plan. Checked are: each request ends exactly once, complete or
with a reason; its tokens arrive in order, none twice, none missing; slots and memory are given back; bytes sent are bytes
delivered or accounted as lost; it ends; and (--shards) the same digest on one, two and four shards.")]
pub struct Args {
    /// So many seeds
    #[arg(
        allow_negative_numbers = true,
        long,
        value_name = "N",
        default_value_t = 100
    )]
    seeds: u64,

    /// The first of them
    #[arg(
        allow_negative_numbers = true,
        long,
        value_name = "N",
        default_value_t = 0
    )]
    from: u64,

    /// Replay this seed only, and shrink its plan if it fails
    #[arg(allow_negative_numbers = true, long, value_name = "N", conflicts_with_all = ["seeds", "from", "duration_s"])]
    seed: Option<u64>,

    /// As many seeds as so much wall time holds
    #[arg(allow_negative_numbers = true, long = "for", value_name = "TIME", value_parser = crate::scenario::duration_s, conflicts_with = "seeds")]
    duration_s: Option<f64>,

    /// Go on after a seed that fails
    #[arg(long)]
    keep_going: bool,

    /// Compare digests on one, two and four shards
    #[arg(long)]
    shards: bool,
}

pub fn run(args: &Args) -> Result<()> {
    interrupt::listen()?;
    let running = Running::new();
    let started = Instant::now();
    let check = |case: &Case| {
        if args.shards {
            chaos::run_on_shards(case)
        } else {
            chaos::run(case, 1)
        }
    };
    let (first, last) = match (args.seed, args.duration_s) {
        (Some(seed), _) => (seed, seed.saturating_add(1)),
        (None, Some(_)) => (args.from, u64::MAX),
        (None, None) => (args.from, args.from.saturating_add(args.seeds)),
    };
    let mut failures = Vec::new();
    let (mut runs, mut requests, mut retried, mut failed, mut faults) = (0u64, 0, 0, 0, 0);
    for seed in first..last {
        let spent_s = started.elapsed().as_secs_f64();
        if running.stop_asked() || args.duration_s.is_some_and(|d| spent_s >= d) {
            break;
        }
        let case = Case::new(seed);
        if args.seed.is_some() {
            let mut text = format!("seed {seed}: {}\n", case.text());
            for line in case.lines() {
                text.push_str(&format!("  {line}\n"));
            }
            output::stdout(&text)?;
        }
        match check(&case) {
            Ok(passed) => {
                runs += 1;
                requests += passed.requests;
                retried += passed.retried;
                failed += passed.failed;
                faults += case.plan.len();
            }
            Err(why) => {
                failures.push(seed);
                let least = chaos::shrink(&case, &|c| check(c).is_err());
                let mut text = format!(
                    "seed {seed} fails: {why}\n  {}\n  its plan, shrunk to {} of {} faults and {} of {} requests:\n",
                    case.text(),
                    least.plan.len(),
                    case.plan.len(),
                    least.load.requests.len(),
                    case.load.requests.len()
                );
                for line in least.lines() {
                    text.push_str(&format!("    {line}\n"));
                }
                text.push_str(&format!("  supernode chaos --seed {seed} replays it\n"));
                output::stdout(&text)?;
                if !args.keep_going {
                    return Err(Error::failed(format!("chaos: seed {seed} failed: {why}")));
                }
            }
        }
    }
    output::stdout(&format!(
        "{runs} runs passed in {:.1} s: {faults} faults, {requests} requests, {retried} of them started again, \
         {failed} failed with a reason\n",
        started.elapsed().as_secs_f64()
    ))?;
    match failures.len() {
        0 => Ok(()),
        n => {
            let seeds: Vec<String> = failures.iter().map(u64::to_string).collect();
            let seeds = seeds.join(", ");
            Err(Error::failed(format!("chaos: {n} seeds failed: {seeds}")))
        }
    }
}
