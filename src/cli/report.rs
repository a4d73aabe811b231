//! `supernode report`: a kept run as a page for a browser.

use std::path::PathBuf;

use super::output;
use crate::error::Result;
use crate::page;
use crate::rundir::RunDir;

/// Make a page of a kept run, with pictures
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory that `supernode run --out` wrote
    run: PathBuf,

    /// Write one HTML page, which needs nothing else, to this file ("-": to standard output)
    #[arg(long, value_name = "FILE")]
    html: PathBuf,
}

pub fn run(args: &Args) -> Result<()> {
    output::check("--html", &args.html)?;
    let page = page::render(&RunDir::open(&args.run)?)?;
    output::to(&args.html, "the page", &page)
}
