//! `supernode fault`: what a fault plan would hit, without running anything.

use std::fmt::Write;

use serde_json::json;
use supernode_actors::fault::{Fault, Ways};

use super::output;
use crate::error::Result;
use crate::fault::{Plan, time_text};
use crate::report::count;
use crate::run;

/// Look at fault plans
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Say what a plan would hit: how many parts, and which
    #[command(after_help = "Examples:
  supernode fault check plan.toml
  supernode fault check 'at 2s for 500ms: slow node12/npu3/die1/ub4 x0.3'
  supernode fault check random:seed=7,rate=1e6,for=60s
  supernode fault check --rates                           published failure rates, with sources

Lines: at TIME [for TIME | until TIME]: WORD ADDRESS [VALUE] [inbound | outbound], with
  slow x0.3, delay 5us, jitter 5us, loss 2%, flap every 100ms up 50%, down      on links
  throttle x0.5, hbm_slow x0.5, hang, crash [restart 2s]                        on dies and CPUs
Groups (node7, node7/l1.2, plane4, plane4/l2.9, rack3) and patterns mean all their parts.")]
    Check {
        /// Plan file, random:seed=N,rate=FACTOR,for=TIME, or a line
        #[arg(value_name = "PLAN", required_unless_present = "rates")]
        plan: Vec<String>,
        /// Built-in machine (cloudmatrix384, half, mini4, mini) or machine file
        #[arg(long, value_name = "NAME|FILE", default_value = "cloudmatrix384")]
        machine: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Print the failure rates that random plans are drawn from
        #[arg(long)]
        rates: bool,
    },
}

/// Parts shown of each fault.
const SHOWN: usize = 4;
/// Span of a random plan that does not say.
const SPAN_S: f64 = 60.0;

pub fn run(args: &Args) -> Result<()> {
    let Command::Check {
        plan,
        machine,
        json,
        rates,
    } = &args.command;
    if *rates {
        return output::stdout(crate::fault::RATES);
    }
    let machine = run::machine(machine)?;
    // A line has a colon followed by a blank; neither paths nor `random:` have.
    let (lines, files): (Vec<_>, Vec<_>) = plan.iter().cloned().partition(|p| p.contains(": "));
    let faults = Plan::read(&files, &lines, &machine, SPAN_S)?.resolve(&machine)?;
    let names = |f: &Fault, most: usize| -> Vec<String> {
        f.parts
            .iter()
            .take(most)
            .map(|p| machine.address(*p))
            .collect()
    };
    if *json {
        let rows: Vec<_> = faults
            .iter()
            .map(|f| {
                json!({
                    "fault": f.text,
                    "start_s": f.start_ps as f64 * 1e-12,
                    "end_s": f.end_ps.map(|e| e as f64 * 1e-12),
                    "word": f.effect.word(),
                    "parts": f.parts.len(),
                    "addresses": names(f, usize::MAX),
                })
            })
            .collect();
        return output::stdout(&format!("{:#}\n", json!(rows)));
    }
    let mut text = String::new();
    for f in &faults {
        let kind = if f.effect.is_of_links() {
            "link"
        } else {
            "die or CPU"
        };
        let plural = match (f.parts.len(), f.effect.is_of_links()) {
            (1, _) => kind.to_string(),
            (_, true) => "links".into(),
            (_, false) => "dies and CPUs".into(),
        };
        let ways = match f.ways {
            Ways::Both if f.effect.is_of_links() => ", both directions",
            _ => "",
        };
        let more = if f.parts.len() > SHOWN { ", …" } else { "" };
        let until = match f.end_ps {
            Some(end) => format!("until {}", time_text(end)),
            None => "until the end".into(),
        };
        let _ = writeln!(
            text,
            "{}\n  hits {} {plural}{ways}, {until}: {}{more}",
            f.text,
            count(f.parts.len() as u64),
            names(f, SHOWN).join(", "),
        );
    }
    let _ = writeln!(
        text,
        "{} in all, on machine {}",
        match faults.len() {
            1 => "1 fault".into(),
            n => format!("{n} faults"),
        },
        machine.spec.name
    );
    output::stdout(&text)
}
