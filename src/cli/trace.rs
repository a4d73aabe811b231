//! `supernode trace`: questions about a run that was kept, or about its trace alone; and traces of a live machine.

mod actors;
mod diff;
mod request;
mod step;
mod top;

use std::path::Path;

use super::trace_live;
use crate::error::Result;
use crate::rundir::RunDir;
use crate::trace::Read;

/// Ask a kept run where its time went, or trace a live machine
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Actors(actors::Args),
    Request(request::Args),
    Step(step::Args),
    Diff(diff::Args),
    Top(top::Args),
    Start(trace_live::Start),
    Stop(trace_live::Stop),
    State(trace_live::State),
    Fetch(trace_live::Fetch),
}

pub fn run(args: &Args) -> Result<()> {
    match &args.command {
        Command::Actors(args) => actors::run(args),
        Command::Request(args) => request::run(args),
        Command::Step(args) => step::run(args),
        Command::Diff(args) => diff::run(args),
        Command::Top(args) => top::run(args),
        Command::Start(args) => trace_live::start(args),
        Command::Stop(args) => trace_live::stop(args),
        Command::State(args) => trace_live::state(args),
        Command::Fetch(args) => trace_live::fetch(args),
    }
}

/// The trace of a kept run, or a trace file.
fn open(path: &Path) -> Result<Read> {
    if path.is_dir() {
        return Read::open(&RunDir::open(path)?.trace_path()?);
    }
    Read::open(path)
}
