//! `supernode trace request`: one request's way through the machine.

use std::fmt::Write;
use std::path::PathBuf;

use super::open;
use crate::cli::output;
use crate::error::{Error, Result};
use crate::report::{grid_with_text, number, percent};
use crate::trace::ask::request::{RequestPath, StageOf, ids, of};

/// Show one request's way through the machine, and the share of each stage
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory of a kept run, or a trace file
    run: PathBuf,

    /// Id of the request; without one, the followed requests are listed
    request: Option<u64>,

    /// Print JSON, times in picoseconds
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let trace = open(&args.run)?;
    let known = ids(&trace);
    let few = |ids: &[u64]| {
        let text: Vec<String> = ids.iter().take(20).map(u64::to_string).collect();
        let more = if ids.len() > 20 { ", …" } else { "" };
        format!("{}{more}", text.join(", "))
    };
    let Some(request) = args.request else {
        return output::stdout(&format!(
            "{} requests are followed in this trace: {}\n",
            known.len(),
            few(&known)
        ));
    };
    let path = of(&trace, request).ok_or_else(|| {
        Error::user(format!(
            "request {request}: is not followed in this trace (--trace-requests chooses); followed are {}",
            if known.is_empty() { "none".into() } else { few(&known) }
        ))
    })?;
    if args.json {
        let json = serde_json::to_string_pretty(&path).map_err(|e| Error::failed(e.to_string()))?;
        return output::stdout(&format!("{json}\n"));
    }
    output::stdout(&table(&path))
}

fn table(p: &RequestPath) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "request     {}: {} prompt and {} output tokens, home {}, arrived at {} s",
        p.request,
        p.prompt_tokens,
        p.output_tokens,
        p.home,
        number(p.arrival_ps as f64 / 1e12)
    );
    let part = |text: &mut String, title: &str, stages: &[StageOf], sum: Option<u64>| {
        let Some(sum) = sum else {
            let _ = writeln!(text, "\n{title}: not reached in this trace");
            return;
        };
        let _ = writeln!(text, "\n{title} {} ms", number(sum as f64 / 1e9));
        let mut rows = vec![
            ["stage", "from ms", "ms", "share", "ends at"]
                .map(String::from)
                .to_vec(),
        ];
        for s in stages {
            let times = if s.times > 1 {
                format!(" x {}", s.times)
            } else {
                String::new()
            };
            rows.push(vec![
                format!("{}{times}", s.stage),
                number(s.start_ps as f64 / 1e9),
                number(s.ps as f64 / 1e9),
                percent(s.ps as f64 / sum.max(1) as f64),
                s.actor.clone(),
            ]);
        }
        grid_with_text(text, &rows, 4);
    };
    part(&mut text, "TTFT", &p.ttft, p.ttft_ps);
    part(&mut text, "total", &p.total, p.total_ps);
    if p.steps_seen > 0 {
        let _ = writeln!(
            text,
            "\nin its decode steps ({} of {} with spans of its die), that die's time",
            p.steps_seen, p.steps
        );
        let mut rows = vec![["stage", "ms a step"].map(String::from).to_vec()];
        for (stage, ps) in &p.in_steps_ps {
            rows.push(vec![
                (*stage).into(),
                number(*ps as f64 / 1e9 / p.steps_seen as f64),
            ]);
        }
        grid_with_text(&mut text, &rows, 9);
    }
    text
}
