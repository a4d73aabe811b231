//! `supernode trace`: questions about a run that was kept, or about its trace alone.

mod actors;

use crate::error::Result;

/// Ask a kept run where its time went
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Actors(actors::Args),
}

pub fn run(args: &Args) -> Result<()> {
    match &args.command {
        Command::Actors(args) => actors::run(args),
    }
}
