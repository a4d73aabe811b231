//! `supernode fault`: what a fault plan would hit, without running anything; and faults of a live machine.

use std::fmt::Write;

use serde_json::json;
use supernode_actors::fault::{Fault, Ways};

use super::drill::{self, Drills};
use super::fault_live::{self, Clear, List, Strike};
use super::output;
use crate::error::Result;
use crate::fault::{Plan, time_text};
use crate::report::count;
use crate::run;

/// Look at fault plans, and break parts of a live machine
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
    /// Run without a fault and under one plan after the other, and show what each cost
    #[command(after_help = "Examples:
  supernode fault drill scenarios/drills/*.toml --requests 1300
  supernode fault drill 'at 5s: crash node30' 'at 5s: down plane4' --requests 600
  supernode fault drill --each-part --requests 400        a part of every kind and role, one a run

Goodput lost: requests within both objectives without the fault, less those with it. Exit codes: 0 each request
ended complete or with a reason, 1 one did not or a run failed, 2 the input is wrong, 130 stopped by Ctrl-C.")]
    Drill(Box<Drills>),
    /// Live: leave a link only so much of its bandwidth (x0.3)
    Slow(Strike),
    /// Live: make each message on a link take so much longer (5us)
    Delay(Strike),
    /// Live: make each message on a link take up to so much longer (5us)
    Jitter(Strike),
    /// Live: lose this share of a link's packets (2%)
    Loss(Strike),
    /// Live: take a link down and up again (every 100ms up 50%)
    Flap(Strike),
    /// Live: take a link down
    Down(Strike),
    /// Live: leave a die or CPU only so much of its clock (x0.5)
    Throttle(Strike),
    /// Live: leave a die only so much of its memory's bandwidth (x0.5)
    #[command(name = "hbm_slow")]
    HbmSlow(Strike),
    /// Live: make a die or CPU do nothing
    Hang(Strike),
    /// Live: make a die or CPU lose all it had in memory ([restart 2s])
    Crash(Strike),
    /// Live: list the faults of a machine that is up
    List(List),
    /// Live: end a fault, or all
    Clear(Clear),
}

/// Parts shown of each fault.
const SHOWN: usize = 4;
/// Span of a random plan that does not say.
const SPAN_S: f64 = 60.0;

pub fn run(args: &Args) -> Result<()> {
    let (plan, machine, json, rates) = match &args.command {
        Command::Check {
            plan,
            machine,
            json,
            rates,
        } => (plan, machine, json, rates),
        Command::Drill(d) => return drill::run(d),
        Command::Slow(s) => return fault_live::strike("slow", s),
        Command::Delay(s) => return fault_live::strike("delay", s),
        Command::Jitter(s) => return fault_live::strike("jitter", s),
        Command::Loss(s) => return fault_live::strike("loss", s),
        Command::Flap(s) => return fault_live::strike("flap", s),
        Command::Down(s) => return fault_live::strike("down", s),
        Command::Throttle(s) => return fault_live::strike("throttle", s),
        Command::HbmSlow(s) => return fault_live::strike("hbm_slow", s),
        Command::Hang(s) => return fault_live::strike("hang", s),
        Command::Crash(s) => return fault_live::strike("crash", s),
        Command::List(l) => return fault_live::list(l),
        Command::Clear(c) => return fault_live::clear(c),
    };
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
        let (one, several) = match f.effect {
            e if e.is_of_links() => ("link", "links"),
            _ => ("die or CPU", "dies and CPUs"),
        };
        let kind = if f.parts.len() == 1 { one } else { several };
        let ways = match f.ways {
            _ if !f.effect.is_of_links() => "",
            Ways::Both => ", both directions",
            Ways::Out => ", outbound",
            Ways::In => ", inbound",
        };
        let more = if f.parts.len() > SHOWN { ", …" } else { "" };
        let until = match f.end_ps {
            Some(end) => format!("until {}", time_text(end)),
            None => "until the end".into(),
        };
        let _ = writeln!(
            text,
            "{}\n  hits {} {kind}{ways}, {until}: {}{more}",
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
