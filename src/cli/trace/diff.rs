//! `supernode trace diff`: what is different between two kept runs, actors and stages ranked by how much.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::PathBuf;

use serde::Serialize;

use crate::cli::output;
use crate::error::{Error, Result};
use crate::report::{grid_with_text, number};
use crate::rundir::{RunDir, Which};

/// Rank actors and stages by how much they changed from one kept run to another
#[derive(Debug, clap::Args)]
#[command(
    after_help = "An actor's change is how much its mean queueing, service or transfer time moved beyond the
median of its kind (all dies of a pool, all links of a class in one direction), in units of that kind's median: a
slow link stands out among links, while what slows everybody alike shows in the stages. Settings that differ are named
first: between other machines or other loads, much of what is below is theirs."
)]
pub struct Args {
    /// Directory of a kept run
    a: PathBuf,

    /// Directory of the other
    b: PathBuf,

    /// Show so many actors
    #[arg(long, default_value_t = 15, value_name = "N")]
    top: usize,

    /// Print JSON, times in microseconds
    #[arg(long)]
    json: bool,
}

/// One time of one actor.
#[derive(Clone, Debug, Serialize)]
struct Change {
    actor: String,
    side: String,
    what: &'static str,
    a_us: f64,
    b_us: f64,
    /// Beyond the median change of its kind, over its kind's median.
    beyond: f64,
}

#[derive(Clone, Debug, Serialize)]
struct Stage {
    pool: String,
    stage: String,
    a_us: f64,
    b_us: f64,
    change: f64,
}

#[derive(Clone, Debug, Serialize)]
struct Diff {
    /// Keys of the scenarios, and figures of the machines, that differ: key, before, after.
    settings: Vec<(String, String, String)>,
    /// Headline figures of the report: name, before, after.
    figures: Vec<(String, f64, f64)>,
    stages: Vec<Stage>,
    actors: Vec<Change>,
}

/// Settings shown in the table.
const SETTINGS_SHOWN: usize = 20;
/// Fewer records than this in either run say little.
const RECORDS_LEAST: u64 = 5;
/// Times below this are not told apart by the histograms.
const FLOOR_US: f64 = 0.05;

pub fn run(args: &Args) -> Result<()> {
    let (a, b) = (RunDir::open(&args.a)?, RunDir::open(&args.b)?);
    let mut diff = Diff {
        settings: settings(&a, &b)?,
        figures: figures(&a, &b)?,
        stages: stages(&a, &b)?,
        actors: actors(&a, &b)?,
    };
    diff.actors.truncate(args.top);
    if args.json {
        let json = serde_json::to_string_pretty(&diff).map_err(|e| Error::failed(e.to_string()))?;
        return output::stdout(&format!("{json}\n"));
    }
    output::stdout(&table(&diff))
}

fn settings(a: &RunDir, b: &RunDir) -> Result<Vec<(String, String, String)>> {
    let mut differ = Vec::new();
    for (section, file) in [("", "scenario.toml"), ("machine", "machine.toml")] {
        let (a, b) = (leaves(a, section, file)?, leaves(b, section, file)?);
        let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
        let value = |of: &BTreeMap<String, String>, key| of.get(key).cloned().unwrap_or("-".into());
        for key in keys {
            let (x, y) = (value(&a, key), value(&b, key));
            if x != y {
                differ.push((key.clone(), x, y));
            }
        }
    }
    Ok(differ)
}

/// Values of a file of a run by their dotted keys.
fn leaves(run: &RunDir, section: &str, file: &str) -> Result<BTreeMap<String, String>> {
    fn walk(value: toml::Value, key: &str, all: &mut BTreeMap<String, String>) {
        match value {
            toml::Value::Table(table) => {
                for (name, below) in table {
                    let key = match key {
                        "" => name,
                        key => format!("{key}.{name}"),
                    };
                    walk(below, &key, all);
                }
            }
            toml::Value::String(text) => {
                all.insert(key.into(), text);
            }
            value => {
                all.insert(key.into(), value.to_string());
            }
        }
    }
    let mut all = BTreeMap::new();
    walk(toml::Value::Table(run.toml(file)?), section, &mut all);
    Ok(all)
}

fn figures(a: &RunDir, b: &RunDir) -> Result<Vec<(String, f64, f64)>> {
    let (a, b) = (a.report()?, b.report()?);
    let names = [
        ("TTFT p50 ms", "/ttft_ms/p50"),
        ("TTFT p99 ms", "/ttft_ms/p99"),
        ("TPOT p50 ms", "/tpot_ms/p50"),
        ("TPOT p99 ms", "/tpot_ms/p99"),
        ("E2E p99 ms", "/e2e_ms/p99"),
        ("goodput requests/s", "/goodput/requests_per_s"),
    ];
    let of =
        |v: &serde_json::Value, at: &str| v.pointer(at).and_then(|v| v.as_f64()).unwrap_or(0.0);
    let row = |(name, at): (&str, &str)| (name.to_string(), of(&a, at), of(&b, at));
    Ok(names.into_iter().map(row).collect())
}

fn stages(a: &RunDir, b: &RunDir) -> Result<Vec<Stage>> {
    let mut sums: BTreeMap<(String, String), [(u64, u64); 2]> = BTreeMap::new();
    for (i, run) in [a, b].into_iter().enumerate() {
        for row in run.stages()? {
            let s = &mut sums.entry((row.pool, row.stage)).or_default()[i];
            *s = (s.0 + row.sum_ps, s.1 + row.count);
        }
    }
    let mean = |(sum, n): (u64, u64)| sum as f64 / 1e6 / n.max(1) as f64;
    let mut all: Vec<Stage> = sums
        .into_iter()
        .map(|((pool, stage), [a, b])| {
            let (a_us, b_us) = (mean(a), mean(b));
            Stage {
                pool,
                stage,
                a_us,
                b_us,
                change: (b_us - a_us) / a_us.max(FLOOR_US),
            }
        })
        .collect();
    all.sort_by(|x, y| y.change.abs().total_cmp(&x.change.abs()));
    Ok(all)
}

fn actors(a: &RunDir, b: &RunDir) -> Result<Vec<Change>> {
    let histograms = [a.histograms()?, b.histograms()?];
    let mut kinds: BTreeMap<(String, String, Which), Vec<Change>> = BTreeMap::new();
    for row in a.actors()? {
        for which in Which::ALL {
            let of = |i: usize| histograms[i].of(&row.address, &row.side, which);
            let (Some(x), Some(y)) = (of(0), of(1)) else {
                continue;
            };
            if x.len() < RECORDS_LEAST || y.len() < RECORDS_LEAST {
                continue;
            }
            let key = (row.kind.clone(), row.side.clone(), which);
            kinds.entry(key).or_default().push(Change {
                actor: row.address.clone(),
                side: row.side.clone(),
                what: which.name(),
                a_us: x.mean() / 1e3,
                b_us: y.mean() / 1e3,
                beyond: 0.0,
            });
        }
    }
    let mut all = Vec::new();
    for mut changes in kinds.into_values() {
        let usual = median(changes.iter().map(|c| c.a_us).collect()).max(FLOOR_US);
        let moved = median(changes.iter().map(|c| c.b_us - c.a_us).collect());
        for c in &mut changes {
            c.beyond = (c.b_us - c.a_us - moved) / usual;
        }
        all.extend(changes);
    }
    all.retain(|c| c.beyond != 0.0);
    all.sort_by(|x, y| y.beyond.abs().total_cmp(&x.beyond.abs()));
    Ok(all)
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of.get(of.len() / 2).copied().unwrap_or(0.0)
}

fn table(d: &Diff) -> String {
    let mut t = String::new();
    if !d.settings.is_empty() {
        let mut rows = vec![
            ["settings that differ", "A", "B"]
                .map(String::from)
                .to_vec(),
        ];
        let shown = d.settings.iter().take(SETTINGS_SHOWN);
        rows.extend(shown.map(|(key, a, b)| vec![key.clone(), a.clone(), b.clone()]));
        grid_with_text(&mut t, &rows, 9);
        match d.settings.len().saturating_sub(SETTINGS_SHOWN) {
            0 => {}
            more => {
                let _ = writeln!(t, "and {more} more (--json shows all)");
            }
        }
        let _ = writeln!(t);
    }
    let mut rows = vec![["figures", "A", "B"].map(String::from).to_vec()];
    for (name, a, b) in &d.figures {
        rows.push(vec![name.clone(), number(*a), number(*b)]);
    }
    grid_with_text(&mut t, &rows, 9);
    let _ = writeln!(t);
    let head = ["stages", "A µs", "B µs", "change"];
    let mut rows = vec![head.map(String::from).to_vec()];
    for s in &d.stages {
        rows.push(vec![
            format!("{} {}", s.pool, s.stage),
            number(s.a_us),
            number(s.b_us),
            format!("{:+.1}%", s.change * 100.0),
        ]);
    }
    grid_with_text(&mut t, &rows, 9);
    let _ = writeln!(t);
    let head = ["actors", "side", "of", "A µs", "B µs", "beyond its kind"];
    let mut rows = vec![head.map(String::from).to_vec()];
    for c in &d.actors {
        rows.push(vec![
            c.actor.clone(),
            c.side.clone(),
            c.what.into(),
            number(c.a_us),
            number(c.b_us),
            format!("{:+.2}x", c.beyond),
        ]);
    }
    grid_with_text(&mut t, &rows, 9);
    t
}
