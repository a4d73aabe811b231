//! `supernode workload`: what a trace holds, and traces to try things on.

use std::fs::File;
use std::io::{BufWriter, Write, stdout};
use std::path::{Path, PathBuf};

use flate2::{Compression, GzBuilder};

use super::output;
use crate::error::{Error, Result};
use crate::report::{count, grid, number, percent};
use crate::scenario::Format;
use crate::workload::describe::{Description, Percentiles, describe};
use crate::workload::generate::{Profile, Recipe, generate};
use crate::workload::{self, Wanted};

/// Describe a workload file, or generate one
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Describe(DescribeArgs),
    Generate(GenerateArgs),
}

/// Show rate, burstiness, lengths and shared prefixes of a trace
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  supernode workload describe conversation_trace.jsonl.gz
  supernode workload describe                         the default workload
  supernode workload describe servegen-deepseek-r1/   a directory of ServeGen files")]
struct DescribeArgs {
    /// Trace, plain or gzip, or a ServeGen directory. Without one: the default workload
    file: Option<PathBuf>,

    /// Print JSON instead of the table
    #[arg(long)]
    json: bool,

    /// Seed of what is drawn (ServeGen)
    #[arg(
        allow_negative_numbers = true,
        long,
        default_value_t = 1,
        value_name = "N"
    )]
    seed: u64,
}

/// Generate a trace in Mooncake's format, with sessions that share prefixes
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  supernode workload generate --kind code --requests 5000 --rate 40 --out code.jsonl.gz
  supernode workload generate --kind reasoning | head -3

The default workload was made by
  supernode workload generate --kind conversation --seed 1 --out default.jsonl.gz")]
struct GenerateArgs {
    /// What the traffic looks like
    #[arg(long, value_enum, default_value_t = Profile::Conversation)]
    kind: Profile,

    /// Equal seeds give equal traces
    #[arg(
        allow_negative_numbers = true,
        long,
        default_value_t = 1,
        value_name = "N"
    )]
    seed: u64,

    /// How many requests
    #[arg(allow_negative_numbers = true, long, default_value_t = 3_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=50_000_000))]
    requests: u64,

    /// Requests per second
    #[arg(allow_negative_numbers = true, long, default_value_t = 30.0, value_name = "RATE", value_parser = rate)]
    rate: f64,

    /// Where to; .gz packs it [default: standard output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

fn rate(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (1e-6..=1e7).contains(&rate) => Ok(rate),
        _ => Err("expected requests per second, from 0.000001 to 10000000".into()),
    }
}

pub fn run(args: &Args) -> Result<()> {
    match &args.command {
        Command::Describe(args) => {
            let trace = workload::read(
                args.file.as_deref(),
                Format::Auto,
                &Wanted::everything(args.seed),
            )?;
            let description = describe(&trace);
            if args.json {
                let json = serde_json::to_string_pretty(&description)
                    .map_err(|e| Error::failed(e.to_string()))?;
                return output::stdout(&format!("{json}\n"));
            }
            output::stdout(&table(&description))
        }
        Command::Generate(args) => {
            let recipe = Recipe {
                profile: args.kind,
                seed: args.seed,
                requests: args.requests,
                rate_per_s: args.rate,
            };
            match args.out.as_deref() {
                None => {
                    let mut out = BufWriter::new(stdout().lock());
                    generate(&recipe, &mut out)?;
                    out.flush()?;
                    Ok(())
                }
                Some(path) => {
                    output::check("--out", path)?;
                    write_trace(&recipe, path)
                        .map_err(|e| Error::failed(format!("cannot write {}: {e}", path.display())))
                }
            }
        }
    }
}

fn write_trace(recipe: &Recipe, path: &Path) -> std::io::Result<()> {
    let file = BufWriter::new(File::create(path)?);
    if path.extension().is_some_and(|e| e == "gz") {
        // No time in the header: the same seed gives the same file.
        let mut packed = GzBuilder::new().mtime(0).write(file, Compression::best());
        generate(recipe, &mut packed)?;
        packed.finish()?.flush()
    } else {
        let mut file = file;
        generate(recipe, &mut file)?;
        file.flush()
    }
}

fn table(d: &Description) -> String {
    let mut rows = vec![
        vec!["workload".into(), format!("{} ({})", d.name, d.format)],
        vec!["requests".into(), count(d.requests)],
        vec!["span".into(), format!("{} s", number(d.span_s))],
        vec![
            "rate".into(),
            format!(
                "{} requests/s, {} prompt and {} output tokens/s",
                number(d.requests_per_s),
                number(d.input_tokens_per_s),
                number(d.output_tokens_per_s)
            ),
        ],
        vec![
            "CV".into(),
            format!("{} (between arrivals)", number(d.inter_arrival_cv)),
        ],
    ];
    if let Some(grid_s) = d.rounded_to_s {
        rows.push(vec![
            "rounding".into(),
            format!("arrival times are rounded to {grid_s} s; a run spreads them"),
        ]);
    }
    if let Some(p) = &d.prefix {
        rows.push(vec![
            "prefixes".into(),
            format!(
                "{} of blocks and {} of tokens hit in a cache without limits; {} blocks, {} unique; {} of requests have no hit",
                percent(p.hit_blocks_share),
                percent(p.hit_tokens_share),
                count(p.blocks),
                count(p.unique_blocks),
                percent(p.requests_without_hit_share)
            ),
        ]);
    }
    let mut text = String::new();
    for row in &rows {
        text.push_str(&format!("{:<12}{}\n", row[0], row[1]));
    }
    text.push('\n');
    let header = ["", "mean", "p10", "p50", "p90", "p95", "p99", "max"]
        .map(String::from)
        .to_vec();
    let lengths = |name: &str, p: &Percentiles| {
        let whole = [p.p10, p.p50, p.p90, p.p95, p.p99, p.max].map(|v| count(v.into()));
        [name.to_string(), number(p.mean)]
            .into_iter()
            .chain(whole)
            .collect::<Vec<_>>()
    };
    grid(
        &mut text,
        &[
            header,
            lengths("prompt tokens", &d.input_tokens),
            lengths("output tokens", &d.output_tokens),
        ],
    );
    for note in &d.notes {
        text.push_str(&format!("\nnote: {note}"));
    }
    if !d.notes.is_empty() {
        text.push('\n');
    }
    text
}
