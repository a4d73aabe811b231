//! The command line. Each subcommand is a file here with its `Args` and a `run`; this file names them, sets up
//! what they share, and turns how they end into one message and an exit code: 0 done, 1 the run failed,
//! 2 the input is wrong, 130 stopped by Ctrl-C.

mod audit;
mod chaos;
mod drill;
mod fault;
mod fault_live;
mod interrupt;
mod ops;
mod output;
mod progress;
mod remote;
mod report;
mod run;
mod scenario_args;
mod schema;
mod status;
mod sweep;
mod top;
mod topology;
mod trace;
mod trace_args;
mod trace_live;
mod up;
mod workload;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::error::{Error, Result};

/// A virtual CloudMatrix384: 384 NPUs of actors serving DeepSeek-R1, in messages you can trace and links you can break.
#[derive(Debug, Parser)]
#[command(
    name = "supernode",
    version,
    arg_required_else_help = true,
    max_term_width = 100,
    after_help = "Examples:
  supernode run                                      the default workload on 384 NPUs
  supernode run --workload trace.jsonl.gz --copies 4 a trace of yours, four times over
  supernode sweep --set decode.mtp_tokens=0..2       three runs side by side, compared
  supernode workload describe trace.jsonl.gz         what is in it

RUST_LOG=supernode=debug shows what goes on inside. `supernode COMMAND --help` has more."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Args),
    Sweep(sweep::Args),
    Fault(fault::Args),
    Audit(audit::Args),
    Chaos(chaos::Args),
    Workload(workload::Args),
    Ops(ops::Args),
    Topology(topology::Args),
    Trace(trace::Args),
    Report(report::Args),
    Schema(schema::Args),
    Up(up::Args),
    Status(status::Args),
    Top(top::Args),
}

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return usage(&e),
    };
    let done = log_to_stderr().and_then(|()| match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Audit(args) => audit::run(&args),
        Command::Sweep(args) => sweep::run(&args),
        Command::Fault(args) => fault::run(&args),
        Command::Chaos(args) => chaos::run(&args),
        Command::Workload(args) => workload::run(&args),
        Command::Ops(args) => ops::run(&args),
        Command::Topology(args) => topology::run(&args),
        Command::Trace(args) => trace::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Schema(args) => schema::run(&args),
        Command::Up(args) => up::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Top(args) => top::run(&args),
    });
    finish(done)
}

/// Help and versions go to standard output and are no failure; usage errors are clap's own text.
fn usage(e: &clap::Error) -> ExitCode {
    if e.use_stderr() {
        let _ = write!(std::io::stderr(), "{}", e.render());
        return ExitCode::from(2);
    }
    finish(output::stdout(&e.render().to_string()))
}

fn finish(done: Result<()>) -> ExitCode {
    let Err(e) = done else {
        return ExitCode::SUCCESS;
    };
    let code = e.exit_code();
    if code != 0 {
        // Nothing can be done if standard error is gone too.
        let _ = writeln!(std::io::stderr(), "supernode: {e}");
    }
    ExitCode::from(code)
}

fn log_to_stderr() -> Result<()> {
    let Ok(filter) = std::env::var("RUST_LOG") else {
        return Ok(());
    };
    let filter = EnvFilter::try_new(&filter).map_err(|e| {
        Error::user(format!(
            "RUST_LOG={filter}: {e}; expected such as info or supernode=debug"
        ))
    })?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colours())
        .init();
    Ok(())
}

/// Logs have colours only on a terminal, and where NO_COLOR (no-color.org) does not forbid them.
fn colours() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
