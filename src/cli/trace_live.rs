//! `supernode trace start|stop|state|fetch`: the trace of a live machine, over its control API.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::output;
use super::remote::Remote;
use crate::error::Result;
use crate::report::{bytes, count, number, percent};

/// Start a trace of a live machine
#[derive(Debug, clap::Args)]
#[command(
    after_help = "It ends after --for, when requests have brought it to twice --limit, or by `supernode trace stop`.
Examples:
  supernode trace start --match 'node12/**' --for 5s
  supernode trace fetch live.pftrace
  supernode trace top live.pftrace"
)]
pub struct Start {
    /// Spans of actors that this address or pattern selects, such as 'node12/**' [default: all]
    #[arg(long = "match", value_name = "GLOB")]
    pattern: Option<String>,

    /// Share of the requests that are followed, of those that arrive from now on [default: 10%]
    #[arg(long, value_name = "SHARE")]
    requests: Option<String>,

    /// Stop writing spans of actors when the trace has this size [default: 256MB]
    #[arg(long, value_name = "SIZE")]
    limit: Option<String>,

    /// End after this much virtual time [default: 60s]
    #[arg(long = "for", value_name = "TIME")]
    lasts: Option<String>,

    #[command(flatten)]
    remote: Remote,
}

/// Stop the trace of a live machine
#[derive(Debug, clap::Args)]
pub struct Stop {
    #[command(flatten)]
    remote: Remote,
}

/// Say how the trace of a live machine is
#[derive(Debug, clap::Args)]
pub struct State {
    #[command(flatten)]
    remote: Remote,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Keep the trace of a live machine, or what there is of it so far, as a file
#[derive(Debug, clap::Args)]
pub struct Fetch {
    /// Where to; `supernode trace step|top|request FILE` and the Perfetto UI read it
    file: PathBuf,

    #[command(flatten)]
    remote: Remote,
}

pub fn start(args: &Start) -> Result<()> {
    let body = json!({
        "match": args.pattern, "requests": args.requests, "limit": args.limit, "for": args.lasts,
    });
    let state = args.remote.ask("POST", "/api/trace/start", Some(body))?;
    output::stdout(&said(&state))
}

pub fn stop(args: &Stop) -> Result<()> {
    let state = args.remote.ask("POST", "/api/trace/stop", None)?;
    output::stdout(&said(&state))
}

pub fn state(args: &State) -> Result<()> {
    let state = args.remote.get("/api/trace")?;
    if args.json {
        return output::stdout(&format!("{state:#}\n"));
    }
    output::stdout(&said(&state))
}

pub fn fetch(args: &Fetch) -> Result<()> {
    output::check("FILE", &args.file)?;
    let state = args.remote.get("/api/trace")?;
    let n = args.remote.download("/api/trace/file", &args.file)?;
    if output::is_stdout(&args.file) {
        return Ok(());
    }
    let so_far = match state["state"].as_str() {
        Some("running" | "closing") => ", so far: it is still being written",
        _ => "",
    };
    output::stdout(&format!("{}: {}{so_far}\n", args.file.display(), bytes(n)))
}

/// The state in one line, and what is missing in others.
fn said(s: &Value) -> String {
    let f = |key: &str| s[key].as_f64().unwrap_or(0.0);
    let n = |key: &str| s[key].as_u64().unwrap_or(0);
    let state = s["state"].as_str().unwrap_or("?");
    if state == "none" {
        return "no trace has been started\n".into();
    }
    let until = match s["until_s"].as_f64() {
        Some(until) => format!("until {} s of virtual time", number(until)),
        None => "until it is stopped".into(),
    };
    let mut text = format!(
        "trace {state}: {} and {} of requests, from {} s {until}; {}",
        s["match"].as_str().unwrap_or("all actors"),
        percent(f("requests")),
        number(f("from_s")),
        bytes(n("bytes")),
    );
    if n("spans") > 0 {
        text += &format!(", {} spans", count(n("spans")));
    }
    text.push('\n');
    if s["full"] == true {
        text += &format!(
            "spans of actors are left out since it has {}\n",
            bytes(n("limit_bytes"))
        );
    }
    if n("lost") > 0 {
        text += &format!(
            "{} spans were lost because too many came at once\n",
            count(n("lost"))
        );
    }
    if let Some(why) = s["error"].as_str() {
        text += &format!("{why}\n");
    }
    text
}
