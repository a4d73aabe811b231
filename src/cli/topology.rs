//! `supernode topology`: the parts of a machine, what an address pattern names, and the route between two parts.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::Arc;

use serde_json::json;
use supernode_actors::launch::{LaunchError, RunError, Supernode};
use supernode_topology::{ActorId, Machine, Plane, Route};

use super::output;
use crate::error::{Error, Result};
use crate::report::{count, grid_with_text, number};
use crate::run;

/// Show the parts of a machine, list addresses, or trace a route
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:
  supernode topology                                       the inventory of the default machine
  supernode topology --machine mini                        of a small one
  supernode topology list 'node12/npu3/die1/ub*'           the UB lanes of a die
  supernode topology list 'plane4/l2.9'                    the links of an L2 chip
  supernode topology route node0/npu0/die0 node12/cpu2     hops, latency and bandwidth
  supernode topology route node0/npu0/die0 node12/npu3/die1 --avoid 'node12/l1.4/*'
  supernode topology copy node0/npu0/die0 node12/cpu2      what a read and a write of 512 B to 256 MiB take

Addresses: node12, node12/npu3/die1, node12/npu3/die1/ub4, node12/cpu2/ub4, node12/l1.4/up9,
node12/npu3/sio, node12/npu3/die1/rdma, node12/vpc, plane4/l2.9. Patterns: * ** {1,4} {0..7}."
)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    common: Common,

    /// Print the machine file instead, to start one of your own from
    #[arg(long, conflicts_with = "json")]
    toml: bool,
}

#[derive(Debug, clap::Args)]
struct Common {
    /// Built-in machine (cloudmatrix384, half, mini4, mini) or machine file
    #[arg(long, value_name = "NAME|FILE", default_value = "cloudmatrix384")]
    machine: String,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List the actors that a pattern or group names
    List {
        /// Address, group or pattern
        #[arg(value_name = "GLOB")]
        pattern: String,
        #[command(flatten)]
        common: Common,
    },
    /// Show the way from one die or CPU to another
    Route {
        /// The part that reads or writes
        #[arg(value_name = "A")]
        from: String,
        /// The part that holds the data
        #[arg(value_name = "B")]
        to: String,
        /// Network: ub, rdma, vpc or sio
        #[arg(long, default_value = "ub", value_parser = ["ub", "rdma", "vpc", "sio"])]
        plane: String,
        /// Parts that are taken to be down; may be repeated
        #[arg(long, value_name = "GLOB")]
        avoid: Vec<String>,
        #[command(flatten)]
        common: Common,
    },
    /// Copy bytes between two parts' memories through the actors, and show what that takes
    Copy {
        /// The die that reads or writes
        #[arg(value_name = "A")]
        from: String,
        /// The die or CPU that holds the data
        #[arg(value_name = "B")]
        to: String,
        /// Sizes of the copies
        #[arg(allow_negative_numbers = true, long, value_name = "N,...", value_delimiter = ',', value_parser = clap::value_parser!(u64).range(1..=MOST_BYTES),
              default_values_t = [512, 4_096, 65_536, 1 << 20, 16 << 20, 256 << 20])]
        bytes: Vec<u64>,
        #[command(flatten)]
        common: Common,
    },
}

/// One copy: no more than fits into any part's memory.
const MOST_BYTES: u64 = 1 << 40;

pub fn run(args: &Args) -> Result<()> {
    match &args.command {
        None if args.toml => {
            let name = &args.common.machine;
            match Machine::builtin_toml(name) {
                Some(text) => output::stdout(text),
                None => {
                    run::machine(name)?;
                    let text = std::fs::read_to_string(name)
                        .map_err(|e| Error::user(format!("machine file {name}: {e}")))?;
                    output::stdout(&text)
                }
            }
        }
        None => inventory(&args.common),
        Some(Command::List { pattern, common }) => list(pattern, common),
        Some(Command::Route {
            from,
            to,
            plane,
            avoid,
            common,
        }) => {
            let plane: Plane = plane.parse().map_err(user)?;
            route(from, to, plane, avoid, common)
        }
        Some(Command::Copy {
            from,
            to,
            bytes,
            common,
        }) => copy(from, to, bytes, common),
    }
}

fn user(e: supernode_topology::TopologyError) -> Error {
    Error::user(e.to_string())
}

fn inventory(common: &Common) -> Result<()> {
    let machine = run::machine(&common.machine)?;
    let (actors, groups) = (machine.inventory(), machine.groups());
    if common.json {
        let rows = |kinds: &[(&str, u64, String)]| -> Vec<_> {
            kinds
                .iter()
                .map(|(kind, n, what)| json!({"kind": kind, "count": n, "what": what}))
                .collect()
        };
        let all = json!({
            "machine": common.machine,
            "actors": rows(&actors),
            "actor_count": machine.actor_count(),
            "groups": rows(&groups),
        });
        return output::stdout(&format!("{all:#}\n"));
    }
    let mut text = format!(
        "{}: {} actors\n\n",
        common.machine,
        count(machine.actor_count().into())
    );
    let mut section = |title: &str, kinds: &[(&str, u64, String)]| {
        let _ = writeln!(text, "{title:<10}    count");
        for (kind, n, what) in kinds {
            let _ = writeln!(text, "{kind:<10} {:>8}  {what}", count(*n));
        }
        text.push('\n');
    };
    section("actor", &actors);
    section("group", &groups);
    output::stdout(&text)
}

fn list(pattern: &str, common: &Common) -> Result<()> {
    let machine = run::machine(&common.machine)?;
    let found = machine.select(pattern).map_err(user)?;
    if common.json {
        let all: Vec<String> = found.iter().map(|id| machine.address(*id)).collect();
        return output::stdout(&format!("{:#}\n", json!(all)));
    }
    let mut text = String::new();
    for id in found {
        text.push_str(&machine.address(id));
        text.push('\n');
    }
    output::stdout(&text)
}

fn route(from: &str, to: &str, plane: Plane, avoid: &[String], common: &Common) -> Result<()> {
    let machine = run::machine(&common.machine)?;
    let (from, to) = (
        machine.parse(from).map_err(user)?,
        machine.parse(to).map_err(user)?,
    );
    let mut down: BTreeSet<u32> = BTreeSet::new();
    for pattern in avoid {
        down.extend(machine.select(pattern).map_err(user)?.iter().map(|id| id.0));
    }
    let route = machine
        .route(from, to, plane, &|id: ActorId| down.contains(&id.0))
        .map_err(user)?;
    output::stdout(&if common.json {
        route_json(&machine, &route)
    } else {
        route_table(&machine, &route)
    })
}

fn copy(from: &str, to: &str, sizes: &[u64], common: &Common) -> Result<()> {
    let machine = Arc::new(run::machine(&common.machine)?);
    let (a, b) = (
        machine.parse(from).map_err(user)?,
        machine.parse(to).map_err(user)?,
    );
    let mut copies = Vec::new();
    for &bytes in sizes {
        let took_us = |read| -> Result<f64> {
            let mut quiet = Supernode::quiet(Arc::clone(&machine))
                .map_err(|LaunchError::Config(why)| Error::user(why))?;
            let ps = quiet
                .copy(a, b, bytes, read)
                .map_err(|RunError::Broken(why)| Error::user(why))?;
            Ok(ps as f64 / 1e6)
        };
        copies.push((bytes, took_us(true)?, took_us(false)?));
    }
    let gb_per_s = |bytes: u64, us: f64| bytes as f64 / us / 1e3;
    if common.json {
        let all: Vec<_> = copies
            .iter()
            .map(|&(bytes, read, write)| {
                json!({
                    "bytes": bytes,
                    "read_us": read,
                    "write_us": write,
                    "read_gb_per_s": gb_per_s(bytes, read),
                    "write_gb_per_s": gb_per_s(bytes, write),
                })
            })
            .collect();
        let all = json!({"from": machine.address(a), "to": machine.address(b), "copies": all});
        return output::stdout(&format!("{all:#}\n"));
    }
    let mut text = format!(
        "{} reads from and writes to {} over UB\n\n",
        machine.address(a),
        machine.address(b)
    );
    let head = ["bytes", "read µs", "GB/s", "write µs", "GB/s"];
    let mut rows = vec![head.map(String::from).to_vec()];
    for (bytes, read, write) in copies {
        rows.push(vec![
            count(bytes),
            number(read),
            number(gb_per_s(bytes, read)),
            number(write),
            number(gb_per_s(bytes, write)),
        ]);
    }
    grid_with_text(&mut text, &rows, 5);
    output::stdout(&text)
}

fn route_json(machine: &Machine, r: &Route) -> String {
    let hops: Vec<_> = r
        .hops
        .iter()
        .map(|h| {
            json!({
                "plane": h.plane.name(),
                "what": h.kind.description(),
                "links": h.links.iter().map(|l| machine.address(*l)).collect::<Vec<_>>(),
                "links_all": h.links_all,
                "latency_us": {"read": h.latency_us_read, "write": h.latency_us_write},
            })
        })
        .collect();
    let planes: Vec<_> = r
        .sub_planes
        .iter()
        .map(|p| json!({"plane": p.plane, "l2_chips": p.l2_chips}))
        .collect();
    let all = json!({
        "from": machine.address(r.from),
        "to": machine.address(r.to),
        "plane": r.plane.name(),
        "same_node": r.same_node,
        "hops": hops,
        "sub_planes": planes,
        "endpoints_us": {"read": r.endpoints_us_read, "write": r.endpoints_us_write},
        "latency_us": {"read": r.latency_us_read, "write": r.latency_us_write},
        "gb_per_s": {"read": r.gb_per_s_read, "write": r.gb_per_s_write},
    });
    format!("{all:#}\n")
}

fn route_table(machine: &Machine, r: &Route) -> String {
    let place = if r.same_node {
        "inside a node"
    } else {
        "between nodes"
    };
    let mut text = format!(
        "{} to {} over {}, {place}\n\n",
        machine.address(r.from),
        machine.address(r.to),
        r.plane.name().to_uppercase()
    );
    let head = ["hop", "usable", "of", "read µs", "write µs", "links"]
        .map(String::from)
        .to_vec();
    let mut rows = vec![head];
    for h in &r.hops {
        rows.push(vec![
            h.kind.description().to_string(),
            count(h.links.len() as u64),
            count(h.links_all.into()),
            number(h.latency_us_read),
            number(h.latency_us_write),
            some_of(machine, &h.links),
        ]);
    }
    rows.push(vec![
        "both ends".into(),
        String::new(),
        String::new(),
        number(r.endpoints_us_read),
        number(r.endpoints_us_write),
        String::new(),
    ]);
    grid_with_text(&mut text, &rows, 5);
    let _ = writeln!(
        text,
        "\nlatency    {} µs read, {} µs write (small transfer)",
        number(r.latency_us_read),
        number(r.latency_us_write)
    );
    let _ = writeln!(
        text,
        "bandwidth  {} GB/s read, {} GB/s write (large transfer)",
        number(r.gb_per_s_read),
        number(r.gb_per_s_write)
    );
    if !r.sub_planes.is_empty() {
        let planes: Vec<String> = r.sub_planes.iter().map(|p| p.plane.to_string()).collect();
        let _ = writeln!(
            text,
            "sub-planes {} of {} usable: {}",
            planes.len(),
            machine.planes(),
            planes.join(", ")
        );
    }
    text
}

/// The first link, the last, and how many lie between.
fn some_of(machine: &Machine, links: &[ActorId]) -> String {
    match links {
        [] => "none".into(),
        [one] => machine.address(*one),
        [first, last] => format!("{}, {}", machine.address(*first), machine.address(*last)),
        [first, .., last] => format!("{} … {}", machine.address(*first), machine.address(*last)),
    }
}
