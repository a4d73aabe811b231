//! Workloads: requests and their arrival times, read from a trace or drawn from distributions, then scaled and
//! cut as the scenario says. Whatever is changed or left out on the way becomes a note that the report prints.

pub mod describe;
mod draw;
pub mod generate;
mod lines;
mod mooncake;
mod servegen;
mod shape;
mod spread;
mod synthetic;
mod tables;

use std::path::Path;

use serde::Serialize;
use supernode_actors::launch::Load;
use supernode_actors::model::ModelSpec;
use supernode_actors::request::{Prefix, RequestSpec};
use supernode_actors::time::ps_from_s;

use crate::error::{Error, Result};
use crate::scenario::{Format, Kind, PhaseSpec, SPAN_S_MAX, Scenario, WorkloadSpec};
pub use generate::{Profile, Recipe};
use lines::{Lines, excerpt};
pub use mooncake::BLOCK_TOKENS;

/// The workload that ships with Supernode (`supernode workload generate` made it).
const DEFAULT: &[u8] = include_bytes!("../scenarios/workloads/default.jsonl.gz");
pub const DEFAULT_NAME: &str = "the default workload";

/// One request of a trace.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub at_s: f64,
    pub prompt_tokens: u32,
    pub output_tokens: u32,
    /// Prefix-chained block ids, where the trace has them.
    pub ids: Option<Box<[u64]>>,
}

/// A trace as it was read: in order of arrival, the first near 0 s.
#[derive(Clone, Debug)]
pub struct Trace {
    pub name: String,
    pub format: Format,
    pub rows: Vec<Row>,
    /// Seconds after which a copy of the trace may start again.
    pub span_s: f64,
    pub notes: Vec<String>,
}

impl Trace {
    fn new(name: &str, format: Format) -> Self {
        Self {
            name: name.to_string(),
            format,
            rows: Vec::new(),
            span_s: 0.0,
            notes: Vec::new(),
        }
    }

    fn push(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// Drops what cannot be served, puts rows in order and the first at 0 s.
    fn tidy(&mut self) -> Result<()> {
        if self.rows.is_empty() {
            return Err(Error::user(format!(
                "workload {} has no requests",
                self.name
            )));
        }
        let read = self.rows.len();
        self.rows
            .retain(|r| r.prompt_tokens > 0 && r.output_tokens > 0);
        let dropped = read - self.rows.len();
        if self.rows.is_empty() {
            let name = &self.name;
            return Err(Error::user(format!(
                "workload {name}: all of its {read} requests have no input or no output tokens"
            )));
        }
        if dropped > 0 {
            let name = &self.name;
            self.notes.push(format!(
                "{dropped} of {read} requests of {name} have no input or no output tokens: dropped"
            ));
        }
        if self.rows.windows(2).any(|w| w[1].at_s < w[0].at_s) {
            self.rows.sort_by(|a, b| a.at_s.total_cmp(&b.at_s));
            self.notes
                .push(format!("{} is not in order of arrival: sorted", self.name));
        }
        let first_s = self.rows[0].at_s;
        for row in &mut self.rows {
            row.at_s -= first_s;
        }
        let last_s = self.rows[self.rows.len() - 1].at_s;
        self.span_s = last_s + last_s / (self.rows.len() - 1).max(1) as f64;
        Ok(())
    }
}

/// Which part of a trace is wanted, so that a long one need not be drawn or kept whole.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    pub seed: u64,
    pub from_s: f64,
    pub to_s: f64,
    pub rows: u64,
}

impl Wanted {
    pub fn everything(seed: u64) -> Self {
        Self {
            seed,
            from_s: 0.0,
            to_s: f64::INFINITY,
            rows: u64::MAX,
        }
    }
}

/// Reads a workload file, or a ServeGen directory; without a path, the workload that ships with Supernode.
pub fn read(path: Option<&Path>, format: Format, wanted: &Wanted) -> Result<Trace> {
    let mut trace = match path {
        Some(path) if path.is_dir() => {
            if !matches!(format, Format::Auto | Format::ServeGen) {
                return Err(Error::user(format!(
                    "workload {} is a directory: only ServeGen traces are, not {}",
                    path.display(),
                    format.name()
                )));
            }
            servegen::sample(
                &path.display().to_string(),
                &servegen::read_directory(path)?,
                wanted,
            )?
        }
        Some(path) => read_lines(Lines::open(path)?, format, wanted)?,
        None => return read_bytes(DEFAULT_NAME, DEFAULT, format, wanted),
    };
    trace.tidy()?;
    Ok(trace)
}

/// Reads a workload that is in memory, plain or gzip.
pub fn read_bytes(name: &str, bytes: &[u8], format: Format, wanted: &Wanted) -> Result<Trace> {
    let mut trace = read_lines(Lines::new(name, bytes)?, format, wanted)?;
    trace.tidy()?;
    Ok(trace)
}

fn read_lines(mut lines: Lines, format: Format, wanted: &Wanted) -> Result<Trace> {
    let name = lines.name().to_string();
    let Some(first) = lines.peek()? else {
        return Err(Error::user(format!("workload {name} is empty")));
    };
    let format = match format {
        Format::Auto => format_of(first).ok_or_else(|| {
            Error::user(format!(
                "workload {name} is of no known format: its first line is {}; expected Mooncake JSONL (timestamp, input_length, output_length, hash_ids), \
                 a CSV with the header TIMESTAMP,ContextTokens,GeneratedTokens (Azure) or Timestamp,…,Request tokens,Response tokens,… (BurstGPT), \
                 or ServeGen clients",
                excerpt(first)
            ))
        })?,
        known => known,
    };
    match format {
        Format::Azure | Format::BurstGpt => tables::read(&mut lines, format),
        Format::ServeGen => servegen::sample(&name, &servegen::read_clients(&mut lines)?, wanted),
        Format::Mooncake | Format::Auto => mooncake::read(&mut lines),
    }
}

/// The format that a file's first line shows.
fn format_of(first: &str) -> Option<Format> {
    if first.trim_start().starts_with('{') {
        return Some(if first.contains("\"client_id\"") {
            Format::ServeGen
        } else {
            Format::Mooncake
        });
    }
    tables::format_of_header(first)
}

/// What a workload is, beside its requests.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Source {
    /// File, or what was drawn.
    pub name: String,
    pub kind: &'static str,
    pub format: &'static str,
    pub phase: PhaseSpec,
}

/// Everything that a scenario's `[workload]` says, made concrete.
#[derive(Debug)]
pub struct Workload {
    pub load: Load,
    pub source: Source,
    pub notes: Vec<String>,
}

/// Makes the workload of a scenario.
pub fn build(scenario: &Scenario, model: &ModelSpec) -> Result<Workload> {
    let spec = &scenario.workload;
    let mut notes = unused_keys(spec);
    let (rows, name, format) = match spec.kind {
        Kind::Trace => {
            let trace = trace_of(scenario)?;
            notes.extend(trace.notes.iter().cloned());
            let (name, format) = (trace.name.clone(), trace.format);
            (
                shape::shape(trace, spec, scenario.seed, &mut notes)?,
                name,
                format.name(),
            )
        }
        Kind::Open | Kind::Closed => {
            let lengths = match &spec.file {
                Some(_) => {
                    let trace = trace_of(scenario)?;
                    notes.extend(trace.notes.iter().cloned());
                    Some(trace)
                }
                None => None,
            };
            let format = lengths.as_ref().map_or("synthetic", |t| t.format.name());
            let name = match &lengths {
                Some(trace) => format!("{} arrivals, lengths of {}", spec.kind.name(), trace.name),
                None => format!("{} arrivals, drawn lengths", spec.kind.name()),
            };
            (
                synthetic::rows(scenario, lengths, model.max_context)?,
                name,
                format,
            )
        }
    };
    if let Some(last) = rows.last()
        && last.at_s > SPAN_S_MAX
    {
        return Err(Error::user(format!(
            "workload {name}: its last request arrives after {:.0} s; virtual time ends before {SPAN_S_MAX} s (--for keeps a part)",
            last.at_s
        )));
    }
    let concurrency = match spec.kind {
        Kind::Closed => Some(synthetic::concurrency(scenario)?),
        _ => None,
    };
    if let Some(places) = concurrency
        && rows.len() < places as usize
    {
        notes.push(format!(
            "{} requests do not fill the {places} places of the closed loop",
            rows.len()
        ));
    }
    let requests = finish(rows, scenario, model, &mut notes);
    Ok(Workload {
        load: Load {
            phase: spec.phase.into(),
            requests,
            concurrency,
        },
        source: Source {
            name,
            kind: spec.kind.name(),
            format,
            phase: spec.phase,
        },
        notes,
    })
}

fn trace_of(scenario: &Scenario) -> Result<Trace> {
    let spec = &scenario.workload;
    let mut wanted = Wanted::everything(scenario.seed);
    wanted.from_s = spec.start_s;
    // Copies are shifted over the whole trace, so they need all of it.
    if spec.kind == Kind::Trace && spec.copies == 1 {
        wanted.rows = spec.requests.unwrap_or(u64::MAX);
        wanted.to_s = spec
            .duration_s
            .map_or(f64::INFINITY, |d| spec.start_s + d * spec.speed);
    }
    if let Some(file) = &spec.file {
        let wanted = "a workload file or a directory of ServeGen files";
        scenario.places.is_there("workload.file", file, wanted)?;
    }
    read(spec.file.as_deref().map(Path::new), spec.format, &wanted)
}

fn unused_keys(spec: &WorkloadSpec) -> Vec<String> {
    let mut unused = Vec::new();
    let kind = spec.kind.name();
    let mut note = |set: bool, key: &str| {
        if set {
            unused.push(format!(
                "workload.{key} is not used by workload.kind = \"{kind}\""
            ));
        }
    };
    note(
        spec.kind != Kind::Open && spec.rate_per_s.is_some(),
        "rate_per_s",
    );
    note(
        spec.kind != Kind::Closed && spec.concurrency_per_npu.is_some(),
        "concurrency_per_npu",
    );
    note(spec.kind != Kind::Trace && spec.copies != 1, "copies");
    note(spec.kind != Kind::Trace && spec.speed != 1.0, "speed");
    note(
        (spec.kind == Kind::Trace || spec.file.is_some()) && spec.reuse_share != 0.0,
        "reuse_share",
    );
    unused
}

/// Rows to requests: held to the model's context, numbered in order of arrival.
fn finish(
    rows: Vec<Row>,
    scenario: &Scenario,
    model: &ModelSpec,
    notes: &mut Vec<String>,
) -> Vec<RequestSpec> {
    let context = model.max_context;
    let synthetic = scenario.workload.kind != Kind::Trace && scenario.workload.file.is_none();
    let mut truncated = 0u64;
    let requests = rows
        .into_iter()
        .enumerate()
        .map(|(id, row)| {
            let output_tokens = row.output_tokens.min(context.saturating_sub(1)).max(1);
            let prompt_tokens = row
                .prompt_tokens
                .min(context.saturating_sub(output_tokens))
                .max(1);
            if (prompt_tokens, output_tokens) != (row.prompt_tokens, row.output_tokens) {
                truncated += 1;
            }
            let prefix = match row.ids {
                Some(ids) => {
                    let blocks = (prompt_tokens.div_ceil(BLOCK_TOKENS) as usize).min(ids.len());
                    let ids = if blocks < ids.len() {
                        ids[..blocks].into()
                    } else {
                        ids
                    };
                    Prefix::Blocks {
                        block_tokens: BLOCK_TOKENS,
                        ids,
                    }
                }
                None if synthetic && scenario.workload.reuse_share > 0.0 => Prefix::Cached {
                    tokens: (f64::from(prompt_tokens) * scenario.workload.reuse_share).round()
                        as u32,
                },
                None => Prefix::Unique,
            };
            RequestSpec {
                id: id as u64,
                arrival_ps: ps_from_s(row.at_s),
                prompt_tokens,
                output_tokens,
                prefix,
            }
        })
        .collect();
    if truncated > 0 {
        notes.push(format!(
            "{truncated} requests are longer than the {context} tokens of {}'s context: their prompts are cut at the end",
            model.name
        ));
    }
    requests
}
