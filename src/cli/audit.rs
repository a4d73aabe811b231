//! `supernode audit`: published claims beside what comes out of the parts.

use std::path::PathBuf;

use supernode_actors::launch::Flow;

use super::interrupt::{self, Running};
use super::output;
use super::sweep::Bar;
use crate::audit::{Claims, Wanted, audit, to_table};
use crate::error::{Error, Result};
use crate::sweep::default_workers;

/// Check every published claim against what comes out of the parts
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  supernode audit                                  every claim, what bounds it, and how firm it is
  supernode audit decode-throughput decode-15ms    these claims only
  supernode audit --brief --json audit.json        verdicts only, and for programs
  supernode audit --set experts.balance=eplb       the same claims under another assumption

Each claim says which scenario shows it: `supernode run` on that file shows the same figures alone.
What bounds a figure is found by making one resource after the other 20% faster, and how firm it is
by making each assumed figure 20% smaller and larger; claims that this could turn are run again.

Exit codes: 0 every claim that is simulated holds, 1 one does not, 2 the input is wrong, 130 stopped
by Ctrl-C.")]
pub struct Args {
    /// Claims to check [default: all]
    claims: Vec<String>,

    /// Claims of this file (TOML, as scenarios/claims.toml) instead of the built-in ones
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,

    /// Set any key in the scenarios of all claims; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,

    /// Verdicts only: not what bounds them, nor how they move with what is assumed
    #[arg(long)]
    brief: bool,

    /// Write the audit as JSON to this file ("-": to standard output, instead of the table)
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Runs at a time, each on one thread [default: one per core]
    #[arg(allow_negative_numbers = true, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    jobs: Option<u32>,

    /// No progress bar and no table
    #[arg(short, long)]
    quiet: bool,
}

pub fn run(args: &Args) -> Result<()> {
    if let Some(path) = &args.json {
        output::check("--json", path)?;
    }
    let mut claims = match &args.file {
        Some(path) => Claims::from_file(path)?,
        None => Claims::builtin()?,
    };
    claims.keep(&args.claims)?;
    let wanted = Wanted {
        set: args.set.clone(),
        examine: !args.brief,
        workers: args.jobs.map_or_else(default_workers, |n| n as usize),
    };
    interrupt::listen()?;
    let running = Running::new();
    let bar = Bar::new(args.quiet, "runs");
    let audit = audit(&claims, &wanted, &mut |done| {
        bar.show(done);
        if running.stop_asked() {
            Flow::Stop
        } else {
            Flow::Continue
        }
    });
    drop((bar, running));
    let audit = audit?;
    let json_to_stdout = args.json.as_deref().is_some_and(output::is_stdout);
    if !args.quiet && !json_to_stdout {
        output::stdout(&to_table(&audit))?;
    }
    if let Some(path) = &args.json {
        output::to(path, "the audit", &audit.to_json()?)?;
    }
    if audit.partial {
        return Err(Error::Interrupted);
    }
    let failing = audit.failing();
    if failing.is_empty() {
        return Ok(());
    }
    Err(Error::failed(format!(
        "{} of {} claims do not hold: {}",
        failing.len(),
        audit.claims.len(),
        failing.join(", ")
    )))
}
