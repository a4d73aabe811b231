//! Reading and checking machine files. Whatever passes here can be built: later code relies on counts above
//! zero, finite figures and latencies that split into positive parts.

use std::path::Path;

use crate::error::TopologyError;
use crate::machine::Machine;
use crate::spec::{Counts, MachineFile, MachineSpec, Setting, UbPathSpec};
use crate::toml_fault::TomlFault;

const BUILTIN_FILES: &[(&str, &str)] = &[
    (
        "cloudmatrix384",
        include_str!("../machines/cloudmatrix384.toml"),
    ),
    ("half", include_str!("../machines/half.toml")),
    ("mini4", include_str!("../machines/mini4.toml")),
    ("mini", include_str!("../machines/mini.toml")),
];

/// Bounds on what one process can hold, not on what machines there may be.
const NODES_MAX: u32 = 16_384;
const PER_NODE_MAX: u32 = 1_024;
const ACTORS_MAX: u64 = 4_000_000;
const FIGURE_MAX: f64 = 1e9;

impl Machine {
    /// Names of the machines that come with the program, largest first.
    pub const BUILTIN: &[&str] = &["cloudmatrix384", "half", "mini4", "mini"];

    /// A machine that comes with the program.
    pub fn builtin(name: &str) -> Option<Machine> {
        let text = Self::builtin_toml(name)?;
        Some(
            Self::from_toml(text, name).expect("the machines that come with the program are valid"),
        )
    }

    /// The file of a built-in machine, to start one's own from.
    pub fn builtin_toml(name: &str) -> Option<&'static str> {
        BUILTIN_FILES
            .iter()
            .find(|(builtin, _)| *builtin == name)
            .map(|(_, text)| *text)
    }

    /// Reads a machine file.
    pub fn load(path: &Path) -> Result<Machine, TopologyError> {
        let origin = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| TopologyError::NoMachine {
            wanted: origin.clone(),
            builtins: builtins(),
            reason: error.to_string(),
        })?;
        Self::from_toml(&text, &origin)
    }

    /// A built-in machine by its name, or else a machine file by its path.
    pub fn resolve(name_or_path: &str) -> Result<Machine, TopologyError> {
        match Self::builtin(name_or_path) {
            Some(machine) => Ok(machine),
            None => Self::load(Path::new(name_or_path)),
        }
    }

    /// A machine from the text of a machine file; `origin` names the file in errors.
    pub fn from_toml(text: &str, origin: &str) -> Result<Machine, TopologyError> {
        let file: MachineFile =
            toml::from_str(text).map_err(|error| toml_error(&error, text, origin))?;
        let spec = match file.base.clone() {
            Some(base) => {
                // A base's own base is always the complete file, so this goes no deeper than two.
                let text = Self::builtin_toml(&base).ok_or_else(|| TopologyError::Value {
                    origin: origin.to_owned(),
                    key: "base".to_owned(),
                    value: format!("{base:?}"),
                    accepted: format!("a built-in machine: {}", builtins()),
                })?;
                let mut spec = Self::from_toml(text, &base)?.spec;
                spec.patch(file);
                spec
            }
            None => {
                MachineSpec::complete(Some(file), "").map_err(|key| TopologyError::Missing {
                    origin: origin.to_owned(),
                    key,
                    builtins: builtins(),
                })?
            }
        };
        Self::from_spec(spec, origin)
    }

    /// A machine from a specification; `origin` says in errors where it came from.
    pub fn from_spec(spec: MachineSpec, origin: &str) -> Result<Machine, TopologyError> {
        check(&spec).map_err(|bad| TopologyError::Value {
            origin: origin.to_owned(),
            key: bad.key,
            value: bad.value,
            accepted: bad.accepted,
        })?;
        Ok(Machine::new(spec))
    }
}

fn builtins() -> String {
    Machine::BUILTIN.join(", ")
}

fn toml_error(error: &toml::de::Error, text: &str, origin: &str) -> TopologyError {
    let TomlFault {
        line,
        column,
        message,
    } = TomlFault::new(error, text);
    TopologyError::Toml {
        origin: origin.to_owned(),
        line,
        column,
        // Whole numbers of a machine file are counts of parts.
        message: message.replace("a whole number, 0 or more", "a whole number of 1 or more"),
    }
}

struct Bad {
    key: String,
    value: String,
    accepted: String,
}

fn check(spec: &MachineSpec) -> Result<(), Bad> {
    check_name(&spec.name)?;
    check_counts(&spec.counts)?;
    let mut bad = None;
    spec.numbers("", &mut |key, value| {
        if bad.is_none() && !(value > 0.0 && value <= FIGURE_MAX) {
            bad = Some(Bad {
                key: key.to_owned(),
                value: value.to_string(),
                accepted: format!("a number above 0, at most {FIGURE_MAX:e}"),
            });
        }
    });
    if let Some(bad) = bad {
        return Err(bad);
    }
    check_ub(spec)
}

fn check_name(name: &str) -> Result<(), Bad> {
    if name.trim().is_empty() || name.chars().any(char::is_control) || name.len() > 100 {
        return Err(Bad {
            key: "name".to_owned(),
            value: format!("{name:?}"),
            accepted: "1 to 100 printable characters".to_owned(),
        });
    }
    Ok(())
}

fn check_counts(counts: &Counts) -> Result<(), Bad> {
    let bounds = [
        ("nodes", counts.nodes, NODES_MAX),
        ("npus_per_node", counts.npus_per_node, PER_NODE_MAX),
        ("dies_per_npu", counts.dies_per_npu, PER_NODE_MAX),
        ("cpus_per_node", counts.cpus_per_node, PER_NODE_MAX),
        ("nodes_per_rack", counts.nodes_per_rack, NODES_MAX),
        ("switch_racks", counts.switch_racks, NODES_MAX),
        ("planes", counts.planes, PER_NODE_MAX),
        (
            "l2_chips_per_plane",
            counts.l2_chips_per_plane,
            PER_NODE_MAX,
        ),
    ];
    for (key, value, max) in bounds {
        if value == 0 || value > max {
            return Err(Bad {
                key: format!("counts.{key}"),
                value: value.to_string(),
                accepted: format!("a whole number from 1 to {max}"),
            });
        }
    }
    let actors = actors(counts);
    if actors > ACTORS_MAX {
        return Err(Bad {
            key: "counts".to_owned(),
            value: format!("{actors} parts in all"),
            accepted: format!(
                "at most {ACTORS_MAX} dies, CPUs and links together: lower counts.nodes or the parts per node"
            ),
        });
    }
    Ok(())
}

/// All dies, CPUs and links that the counts make.
fn actors(counts: &Counts) -> u64 {
    let planes = u64::from(counts.planes);
    let npus = u64::from(counts.npus_per_node);
    let dies = npus * u64::from(counts.dies_per_npu);
    let cpus = u64::from(counts.cpus_per_node);
    let uplinks = planes * u64::from(counts.l2_chips_per_plane);
    // Per die: itself, its lanes, its RDMA port. Per CPU: itself and its lanes. Then SIO links, uplinks, VPC port.
    let per_node = dies * (planes + 2) + cpus * (planes + 1) + npus + uplinks + 1;
    u64::from(counts.nodes) * per_node
}

/// The measured table has to fit the links it was measured over, and split into positive hop latencies.
fn check_ub(spec: &MachineSpec) -> Result<(), Bad> {
    let ub = &spec.ub;
    let planes = spec.counts.planes;
    let die_gb_per_s = ub.lane_gb_per_s * f64::from(planes);
    let die_limit = format!(
        "at most {die_gb_per_s}, the sum of a die's {planes} lanes (counts.planes x ub.lane_gb_per_s)"
    );
    let cpu_limit = format!(
        "at most {}, the rate of a CPU (cpu.ub_gb_per_s)",
        spec.cpu.ub_gb_per_s
    );
    let rows = [
        ("npu_npu_read", &ub.npu_npu_read, false),
        ("npu_npu_write", &ub.npu_npu_write, false),
        ("npu_cpu_read", &ub.npu_cpu_read, true),
        ("npu_cpu_write", &ub.npu_cpu_write, true),
    ];
    for (row, path, has_cpu) in rows {
        for (key, gb_per_s) in [
            ("inter_gb_per_s", path.inter_gb_per_s),
            ("intra_gb_per_s", path.intra_gb_per_s),
        ] {
            let limit = if gb_per_s > die_gb_per_s {
                &die_limit
            } else if has_cpu && gb_per_s > spec.cpu.ub_gb_per_s {
                &cpu_limit
            } else {
                continue;
            };
            return Err(Bad {
                key: format!("ub.{row}.{key}"),
                value: gb_per_s.to_string(),
                accepted: limit.clone(),
            });
        }
        check_latencies(row, path, ub.switch_hop_ns / 1e3, ub.lane_ns / 1e3)?;
    }
    Ok(())
}

fn check_latencies(row: &str, path: &UbPathSpec, switch_us: f64, lane_us: f64) -> Result<(), Bad> {
    let intra_floor_us = switch_us + 2.0 * lane_us;
    if path.intra_latency_us <= intra_floor_us {
        return Err(Bad {
            key: format!("ub.{row}.intra_latency_us"),
            value: path.intra_latency_us.to_string(),
            accepted: format!(
                "more than {intra_floor_us:.3}, one switch chip and two lanes (ub.switch_hop_ns, ub.lane_ns)"
            ),
        });
    }
    let inter_floor_us = path.intra_latency_us + 2.0 * switch_us;
    if path.inter_latency_us <= inter_floor_us {
        return Err(Bad {
            key: format!("ub.{row}.inter_latency_us"),
            value: path.inter_latency_us.to_string(),
            accepted: format!(
                "more than {inter_floor_us:.3}, intra_latency_us and two more switch chips (ub.switch_hop_ns)"
            ),
        });
    }
    Ok(())
}
