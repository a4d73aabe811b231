//! `supernode trace top`: hot links, hot experts, stragglers, faults.

use std::path::PathBuf;

use super::open;
use crate::cli::output;
use crate::error::{Error, Result};
use crate::report::{bytes, count, grid, number};
use crate::trace::ask::top::{Top, of};

/// Show hot links, hot experts, stragglers and faults of a trace
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory of a kept run, or a trace file
    run: PathBuf,

    /// So many of each
    #[arg(long, default_value_t = 10, value_name = "N")]
    top: usize,

    /// Print JSON, times in picoseconds
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let mut top = of(&open(&args.run)?);
    top.links.truncate(args.top);
    top.experts.truncate(args.top);
    top.stragglers.truncate(args.top);
    top.faults.truncate(args.top);
    if args.json {
        let json = serde_json::to_string_pretty(&top).map_err(|e| Error::failed(e.to_string()))?;
        return output::stdout(&format!("{json}\n"));
    }
    output::stdout(&table(&top))
}

fn table(top: &Top) -> String {
    let mut t = String::new();
    let mut rows = vec![
        ["hot links", "bytes", "spans", "busy ms"]
            .map(String::from)
            .to_vec(),
    ];
    for l in &top.links {
        rows.push(vec![
            l.link.clone(),
            bytes(l.bytes),
            count(l.spans),
            number(l.busy_ps as f64 / 1e9),
        ]);
    }
    grid(&mut t, &rows);
    t.push('\n');
    let head = [
        "hot experts",
        "layer",
        "expert",
        "tokens",
        "mean of busiest",
    ];
    let mut rows = vec![head.map(String::from).to_vec()];
    for e in &top.experts {
        rows.push(vec![
            e.die.clone(),
            e.layer.to_string(),
            e.expert.to_string(),
            count(e.tokens_max),
            number(e.tokens_mean),
        ]);
    }
    grid(&mut t, &rows);
    t.push('\n');
    let head = ["stragglers", "waited for last", "waits ms"];
    let mut rows = vec![head.map(String::from).to_vec()];
    for s in &top.stragglers {
        rows.push(vec![
            s.who.clone(),
            count(s.times),
            number(s.waited_ps as f64 / 1e9),
        ]);
    }
    grid(&mut t, &rows);
    if top.faults.is_empty() {
        return t;
    }
    t.push('\n');
    let head = ["faults", "effect", "from s", "until s"];
    let mut rows = vec![head.map(String::from).to_vec()];
    for f in &top.faults {
        let s = |ps: u64| number(ps as f64 / 1e12);
        rows.push(vec![
            f.part.clone(),
            f.effect.clone(),
            s(f.from_ps),
            s(f.until_ps),
        ]);
    }
    grid(&mut t, &rows);
    t
}
