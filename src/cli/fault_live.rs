//! `supernode fault slow …` and its like: faults of a live machine, injected, listed and cleared over its control API.

use serde_json::{Value, json};

use super::output;
use super::remote::Remote;
use crate::error::Result;
use crate::report::{count, grid_with_text, number};

/// One fault, as it is said.
#[derive(Debug, clap::Args)]
pub struct Strike {
    /// Address or pattern, such as node12/npu3/die1/ub4
    address: String,

    /// How much, where the word has a measure: x0.3, 5us, 2%, every 100ms up 50%; then inbound or outbound
    value: Vec<String>,

    /// How long, such as 10s; until cleared without it
    #[arg(allow_negative_numbers = true, long = "for", value_name = "TIME")]
    lasts: Option<String>,

    /// How long from now, such as 2s
    #[arg(allow_negative_numbers = true, long = "in", value_name = "TIME")]
    after: Option<String>,

    #[command(flatten)]
    remote: Remote,
}

/// Faults that are listed.
#[derive(Debug, clap::Args)]
pub struct List {
    #[command(flatten)]
    remote: Remote,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Faults that are ended.
#[derive(Debug, clap::Args)]
pub struct Clear {
    /// Number of a fault, or all
    #[arg(value_name = "ID|all")]
    id: String,

    #[command(flatten)]
    remote: Remote,
}

pub fn strike(word: &str, args: &Strike) -> Result<()> {
    let mut said = format!("{word} {}", args.address);
    for value in &args.value {
        said.push(' ');
        said.push_str(value);
    }
    let body = json!({"fault": said, "for": args.lasts, "in": args.after});
    let fault = args.remote.ask("POST", "/api/faults", Some(body))?;
    let until = match fault["end_s"].as_f64() {
        Some(end) => format!("until {} s", number(end)),
        None => "until cleared".into(),
    };
    output::stdout(&format!(
        "fault {}: {said} on {} parts, from {} s {until} of virtual time\n",
        fault["id"],
        fault["parts"],
        number(fault["start_s"].as_f64().unwrap_or(0.0)),
    ))
}

pub fn list(args: &List) -> Result<()> {
    let all = args.remote.get("/api/faults")?;
    if args.json {
        return output::stdout(&format!("{all:#}\n"));
    }
    let faults = all["faults"].as_array().map_or(&[][..], Vec::as_slice);
    if faults.is_empty() {
        return output::stdout("no faults\n");
    }
    let time = |v: &Value| {
        v.as_f64()
            .map_or("-".into(), |s| format!("{} s", number(s)))
    };
    let word = |v: &Value| v.as_str().unwrap_or("?").to_string();
    let head = ["fault", "parts", "from", "until", "state", "what"];
    let mut rows = vec![head.map(String::from).to_vec()];
    rows.extend(faults.iter().map(|f| {
        vec![
            f["id"].to_string(),
            count(f["parts"].as_u64().unwrap_or(0)),
            time(&f["start_s"]),
            time(&f["end_s"]),
            word(&f["state"]),
            word(&f["fault"]),
        ]
    }));
    let mut text = String::new();
    grid_with_text(&mut text, &rows, 4);
    output::stdout(&text)
}

pub fn clear(args: &Clear) -> Result<()> {
    let path = match args.id.as_str() {
        "all" => "/api/faults".to_string(),
        id => format!("/api/faults/{id}"),
    };
    let cleared = args.remote.ask("DELETE", &path, None)?;
    output::stdout(&format!("{} cleared\n", cleared["cleared"]))
}
