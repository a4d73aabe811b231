//! `supernode trace actors`: queueing, service and transfer time of every actor, worst first.

use std::path::PathBuf;

use clap::ValueEnum;
use hdrhistogram::Histogram;
use serde::Serialize;
use supernode_topology::Machine;

use crate::cli::output;
use crate::error::{Error, Result};
use crate::report::{bytes, count, grid, number, percent};
use crate::rundir::{ActorRow, Histograms, RunDir, Which};

/// Show how long every actor queued, worked and exchanged, worst first
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  supernode trace actors out/                                   the twenty with the longest queueing
  supernode trace actors out/ --match 'node12/**' --sort utilisation
  supernode trace actors out/ --match '**/die*' --sort service --csv > dies.csv

Actors that carry equal shares are one line: node0/npu0/die0/ub{0..6} stands for seven lanes, each with these
figures. Times of links: queue is the wait for the link, service the time on the wire. Of dies: queue is the wait
for a stream of their own, service the operators, transfer the collectives (sending, waiting for the last flag,
putting together); those of message-level steps and batches. Utilisation is the share of the run's virtual time;
that of a die is the time its group ran steps or batches, times the share of it that the die's cores worked.")]
pub struct Args {
    /// Directory that `supernode run --out` wrote
    run: PathBuf,

    /// Only actors that this address or pattern selects
    #[arg(long = "match", value_name = "GLOB")]
    pattern: Option<String>,

    /// Worst first by this figure
    #[arg(long, value_enum, default_value_t = Sort::P99)]
    sort: Sort,

    /// Show at most so many lines of the table (0: all)
    #[arg(long, default_value_t = 20, value_name = "N")]
    top: usize,

    /// Print all as JSON
    #[arg(long, conflicts_with = "csv")]
    json: bool,

    /// Print all as CSV
    #[arg(long)]
    csv: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Sort {
    /// 99th percentile of queueing
    P99,
    /// Longest queueing
    Max,
    /// 99th percentile of service time
    Service,
    /// 99th percentile of transfer time
    Transfer,
    Utilisation,
    Messages,
    Bytes,
}

/// One line: every actor's figures under the names of JSON and CSV.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    pub address: String,
    pub kind: String,
    pub side: String,
    /// Actors that this line stands for, each with these figures.
    pub actors: u32,
    pub messages: u64,
    pub bytes: u64,
    pub lost_bytes: u64,
    pub utilisation: f64,
    pub queue_us_mean: f64,
    pub queue_us_p50: f64,
    pub queue_us_p99: f64,
    pub queue_us_max: f64,
    pub service_us_mean: f64,
    pub service_us_p50: f64,
    pub service_us_p99: f64,
    pub service_us_max: f64,
    pub transfer_us_mean: f64,
    pub transfer_us_p50: f64,
    pub transfer_us_p99: f64,
    pub transfer_us_max: f64,
    pub expert_tokens: u64,
}

pub fn run(args: &Args) -> Result<()> {
    let dir = RunDir::open(&args.run)?;
    let mut lines = lines(&dir, args.pattern.as_deref())?;
    let key = |l: &Line| match args.sort {
        Sort::P99 => l.queue_us_p99,
        Sort::Max => l.queue_us_max,
        Sort::Service => l.service_us_p99,
        Sort::Transfer => l.transfer_us_p99,
        Sort::Utilisation => l.utilisation,
        Sort::Messages => l.messages as f64,
        Sort::Bytes => l.bytes as f64,
    };
    lines.sort_by(|a, b| {
        let by_max = b.queue_us_max.total_cmp(&a.queue_us_max);
        key(b).total_cmp(&key(a)).then(by_max)
    });
    if args.json {
        let json =
            serde_json::to_string_pretty(&lines).map_err(|e| Error::failed(e.to_string()))?;
        return output::stdout(&format!("{json}\n"));
    }
    if args.csv {
        return output::stdout(&csv_of(&lines)?);
    }
    output::stdout(&table(&lines, args.top))
}

/// All actors of a run that a pattern selects.
pub fn lines(dir: &RunDir, pattern: Option<&str>) -> Result<Vec<Line>> {
    let histograms = dir.histograms()?;
    let rows = dir.actors()?;
    let wanted = match pattern {
        None => None,
        Some(p) => Some(selected(&dir.machine, p)?),
    };
    Ok(rows
        .into_iter()
        .filter_map(|row| line(dir, row, &histograms, wanted.as_deref()))
        .collect())
}

/// Whether each actor is selected.
fn selected(machine: &Machine, pattern: &str) -> Result<Vec<bool>> {
    let mut wanted = vec![false; machine.actor_count() as usize];
    let found = machine
        .select(pattern)
        .map_err(|e| Error::user(format!("--match: {e}")))?;
    for id in found {
        wanted[id.0 as usize] = true;
    }
    Ok(wanted)
}

fn line(dir: &RunDir, row: ActorRow, all: &Histograms, wanted: Option<&[bool]>) -> Option<Line> {
    let mut address = row.address.clone();
    let mut actors = row.count;
    if let Some(wanted) = wanted {
        let ids = row.first..row.first + row.count;
        let mut picked = ids.filter(|&a| wanted.get(a as usize) == Some(&true));
        let first = picked.next()?;
        actors = 1 + picked.count() as u32;
        if actors < row.count {
            address = dir.machine.address(supernode_topology::ActorId(first));
        }
    }
    let of = |which| all.of(&row.address, &row.side, which);
    let [queue, service, transfer] = [Which::Queue, Which::Service, Which::Transfer].map(of);
    let at =
        |h: Option<&Histogram<u64>>, q: f64| h.map_or(0.0, |h| h.value_at_quantile(q) as f64 / 1e3);
    let mean = |h: Option<&Histogram<u64>>| h.map_or(0.0, |h| h.mean() / 1e3);
    Some(Line {
        kind: row.kind,
        actors,
        messages: row.messages,
        bytes: row.bytes,
        lost_bytes: row.lost_bytes,
        utilisation: row.busy_ps as f64 / dir.manifest.end_ps.max(1) as f64,
        queue_us_mean: mean(queue),
        queue_us_p50: at(queue, 0.5),
        queue_us_p99: at(queue, 0.99),
        queue_us_max: at(queue, 1.0),
        service_us_mean: mean(service),
        service_us_p50: at(service, 0.5),
        service_us_p99: at(service, 0.99),
        service_us_max: at(service, 1.0),
        transfer_us_mean: mean(transfer),
        transfer_us_p50: at(transfer, 0.5),
        transfer_us_p99: at(transfer, 0.99),
        transfer_us_max: at(transfer, 1.0),
        expert_tokens: row.expert_tokens,
        address,
        side: row.side,
    })
}

fn csv_of(lines: &[Line]) -> Result<String> {
    let mut out = csv::Writer::from_writer(Vec::new());
    let failed = |e: &dyn std::fmt::Display| Error::failed(e.to_string());
    for l in lines {
        out.serialize(l).map_err(|e| failed(&e))?;
    }
    let bytes = out.into_inner().map_err(|e| failed(&e))?;
    String::from_utf8(bytes).map_err(|e| failed(&e))
}

fn table(lines: &[Line], top: usize) -> String {
    let shown = if top == 0 {
        lines.len()
    } else {
        top.min(lines.len())
    };
    let head = [
        "actor",
        "side",
        "messages",
        "bytes",
        "use",
        "queue p50",
        "p99",
        "max µs",
        "service p50",
        "p99 µs",
        "transfer p50",
        "p99 µs",
    ];
    let mut rows = vec![head.map(String::from).to_vec()];
    let us = |x: f64| if x == 0.0 { "-".into() } else { number(x) };
    for l in &lines[..shown] {
        rows.push(vec![
            l.address.clone(),
            l.side.clone(),
            count(l.messages),
            bytes(l.bytes),
            percent(l.utilisation),
            us(l.queue_us_p50),
            us(l.queue_us_p99),
            us(l.queue_us_max),
            us(l.service_us_p50),
            us(l.service_us_p99),
            us(l.transfer_us_p50),
            us(l.transfer_us_p99),
        ]);
    }
    let mut text = String::new();
    grid(&mut text, &rows);
    if shown < lines.len() {
        text.push_str(&format!(
            "\n{} more; --top 0 shows all\n",
            count((lines.len() - shown) as u64)
        ));
    }
    text
}
