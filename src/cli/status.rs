//! `supernode status`: how a live machine is.

use serde_json::Value;

use super::output;
use super::remote::Remote;
use crate::error::Result;
use crate::report::{count, grid_with_text, number, percent};

/// Say how a live machine is
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    remote: Remote,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let state = args.remote.get("/api/state")?;
    if args.json {
        return output::stdout(&format!("{state:#}\n"));
    }
    output::stdout(&text(&state))
}

/// The state as lines for people.
fn text(s: &Value) -> String {
    let n = |v: &Value| count(v.as_u64().unwrap_or(0));
    let f = |v: &Value| v.as_f64().unwrap_or(0.0);
    let share = |used: &Value, all: &Value| percent(f(used) / f(all).max(1.0));
    let (r, p, d, pace, last) = (
        &s["requests"],
        &s["prefill"],
        &s["decode"],
        &s["pace"],
        &s["last"],
    );
    let mut late = String::new();
    if f(&pace["late_ms"]) > 100.0 || f(&pace["lost_s"]) > 0.0 {
        late = format!(
            "; {} ms late, {} s lost for good",
            number(f(&pace["late_ms"])),
            number(f(&pace["lost_s"]))
        );
    }
    let word = |v: &Value| v.as_str().unwrap_or("?").to_string();
    let mut rows = vec![
        vec![
            "machine".into(),
            format!("{} serving {}", word(&s["machine"]), word(&s["model"])),
        ],
        vec![
            "time".into(),
            format!(
                "{} s virtual, up for {} s; pace {} of {}{late}",
                number(f(&s["virtual_s"])),
                number(f(&s["uptime_s"])),
                number(f(&pace["reached"])),
                word(&pace["set"]),
            ),
        ],
        vec![
            "requests".into(),
            format!(
                "{} open, {} completed, {} failed, {} cancelled, {} turned away",
                n(&r["open"]),
                n(&r["completed"]),
                n(&r["failed"]),
                n(&r["cancelled"]),
                n(&r["rejected"])
            ),
        ],
        vec![
            "prefill".into(),
            format!(
                "{} waiting, {} in batches, {} tokens of backlog",
                n(&p["waiting"]),
                n(&p["running"]),
                n(&p["backlog_tokens"])
            ),
        ],
        vec![
            "decode".into(),
            format!(
                "{} waiting, {} of slots, {} of KV memory",
                n(&d["waiting"]),
                share(&d["slots_used"], &d["slots"]),
                share(&d["kv_tokens"], &d["kv_tokens_max"])
            ),
        ],
        vec![
            "last second".into(),
            format!(
                "{} output tokens/s, TTFT p50 {} ms, TPOT {} ms",
                number(f(&last["output_tokens_per_s"])),
                number(f(&last["ttft_p50_ms"])),
                number(f(&last["tpot_mean_ms"]))
            ),
        ],
    ];
    let faults = s["faults"].as_array().map_or(&[][..], Vec::as_slice);
    if faults.is_empty() {
        rows.push(vec!["faults".into(), "none".into()]);
    }
    for fault in faults {
        let until = match fault["end_s"].as_f64() {
            Some(end) => format!("until {} s", number(end)),
            None => "until cleared".into(),
        };
        rows.push(vec![
            format!("fault {}", fault["id"]),
            format!(
                "{}: {} on {} parts, {until}",
                word(&fault["fault"]),
                word(&fault["state"]),
                n(&fault["parts"])
            ),
        ]);
    }
    let mut text = String::new();
    grid_with_text(&mut text, &rows, 1);
    text
}
