//! Operators one by one: what each takes in this machine, beside what was published of it. Transfers, dispatch and
//! combine, and the layers come out of actors that send each other messages; products and attention, which stay on
//! one die, out of its roofline.

mod kernels;
mod phases;

use std::sync::Arc;

use serde::Serialize;
use supernode_actors::launch::Supernode;
use supernode_topology::Machine;

use crate::error::{Error, Result};
use crate::report::{grid_with_text, number};
use crate::run;
use crate::scenario::Scenario;

/// One operator under one condition.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// `ub`, `ep`, `mla`, `gemm`, `decode_layer` or `prefill_layer`.
    pub section: &'static str,
    pub name: String,
    pub unit: &'static str,
    pub modelled: f64,
    /// The published figure, or the ends of the published range.
    pub published: Option<[f64; 2]>,
}

impl Row {
    fn new(section: &'static str, name: impl Into<String>, unit: &'static str, x: f64) -> Self {
        Self {
            section,
            name: name.into(),
            unit,
            modelled: x,
            published: None,
        }
    }

    fn published(mut self, value: Option<f64>) -> Self {
        self.published = value.map(|v| [v, v]);
        self
    }

    /// Modelled over published, less one; inside a published range: 0.
    pub fn difference(&self) -> Option<f64> {
        let [low, high] = self.published?;
        let nearest = self.modelled.clamp(low, high);
        Some(self.modelled / nearest - 1.0)
    }
}

/// Which dispatches and combines are measured.
#[derive(Clone, Debug)]
pub struct Phases {
    /// Dies in expert parallelism; without, the published ones.
    pub ep: Option<Vec<u32>>,
    /// Tokens on each of them.
    pub tokens: Vec<u32>,
}

impl Default for Phases {
    fn default() -> Self {
        Self {
            ep: None,
            tokens: vec![128],
        }
    }
}

/// What was measured, and what was not as the machine is too small for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    pub rows: Vec<Row>,
    /// Operators, and what they need more of.
    pub left_out: Vec<String>,
}

/// All rows, for the machine, model, precision, operator figures and layout of a scenario: with the degrees of expert
/// parallelism of `which`, or else those published that the machine has dies for. Layers of an instance that is larger
/// than the machine are left out.
///
/// # Errors
/// What of the scenario or of `which` does not fit the machine.
pub fn measure(scenario: &Scenario, which: &Phases) -> Result<Measured> {
    let bench = phases::Bench::new(scenario)?;
    let machine = &bench.machine;
    let mut left_out = Vec::new();
    let mut fits = |what: String, needs: u32, has: u32, parts: &str| {
        if needs > has {
            left_out.push(format!("{what}: the machine has {has} {parts}"));
        }
        needs <= has
    };
    let ep = match &which.ep {
        Some(ep) => ep.clone(),
        None => {
            let mut ep = phases::published_degrees();
            ep.retain(|&n| fits(format!("EP {n}"), n, machine.die_count(), "dies"));
            ep
        }
    };
    let mut layers = |pool: &str, npus: u32| {
        let what = format!("layers of {pool}, of {npus} NPUs an instance");
        fits(what, npus, machine.npu_count(), "NPUs")
    };
    let decode = layers("decode", scenario.decode.npus_per_instance);
    let prefill = layers("prefill", scenario.prefill.npus_per_instance);
    let mut rows = transfers(machine)?;
    for ep in ep {
        for &tokens in &which.tokens {
            rows.extend(bench.dispatch_and_combine(ep, tokens)?);
        }
    }
    rows.extend(kernels::rows(&bench));
    if decode {
        rows.extend(bench.decode_layer()?);
    }
    if prefill {
        rows.extend(bench.prefill_layer()?);
    }
    Ok(Measured { rows, left_out })
}

/// Copies between die memories and to CPU memory, as arXiv 2506.12708 measured them (Table 1): (what, in the node?,
/// read?, GB/s, us).
const TRANSFERS: [(&str, bool, bool, f64, f64); 8] = [
    ("NPU reads NPU", false, true, 164.0, 1.9),
    ("NPU reads NPU", true, true, 167.0, 1.2),
    ("NPU writes NPU", false, false, 135.0, 2.1),
    ("NPU writes NPU", true, false, 137.0, 1.3),
    ("NPU reads CPU", false, true, 147.0, 1.7),
    ("NPU reads CPU", true, true, 151.0, 1.0),
    ("NPU writes CPU", false, false, 107.0, 1.9),
    ("NPU writes CPU", true, false, 110.0, 1.1),
];
/// Sizes at which latency and bandwidth were measured.
const LATENCY_BYTES: u64 = 512;
const BANDWIDTH_BYTES: u64 = 1 << 30;

fn transfers(machine: &Arc<Machine>) -> Result<Vec<Row>> {
    let failed = |e: &dyn std::fmt::Display| Error::failed(e.to_string());
    let part = |address: &str| machine.parse(address).map_err(|e| failed(&e));
    let a = part("node0/npu0/die0")?;
    let mut rows = Vec::new();
    for (what, inside, read, gb_per_s, us) in TRANSFERS {
        let node = u32::from(!inside);
        if node >= machine.node_count() {
            continue;
        }
        let other = if what.ends_with("CPU") {
            "cpu0"
        } else {
            "npu1/die0"
        };
        let b = part(&format!("node{node}/{other}"))?;
        let took_s = |bytes| -> Result<f64> {
            let mut quiet = Supernode::quiet(Arc::clone(machine)).map_err(|e| failed(&e))?;
            let ps = quiet.copy(a, b, bytes, read).map_err(|e| failed(&e))?;
            Ok(ps as f64 * 1e-12)
        };
        let reach = if inside { "in a node" } else { "between nodes" };
        let bandwidth = BANDWIDTH_BYTES as f64 / took_s(BANDWIDTH_BYTES)? / 1e9;
        let name = format!("{what} {reach}, 1 GiB");
        rows.push(Row::new("ub", name, "GB/s", bandwidth).published(Some(gb_per_s)));
        let latency = took_s(LATENCY_BYTES)? * 1e6;
        let name = format!("{what} {reach}, 512 B");
        rows.push(Row::new("ub", name, "us", latency).published(Some(us)));
    }
    Ok(rows)
}

/// What a section is called, and where its figures come from.
const SECTIONS: [(&str, &str); 6] = [
    ("ub", "UB transfers, one die, through the actors"),
    ("ep", "Dispatch and combine, through the actors"),
    ("mla", "Decode attention core on one die"),
    ("gemm", "INT8 products on one die"),
    (
        "decode_layer",
        "One MoE layer of decode, through the actors",
    ),
    (
        "prefill_layer",
        "One MoE layer of prefill, through the actors",
    ),
];

/// The rows for people.
pub fn to_table(rows: &[Row]) -> String {
    let mut text = String::new();
    for (section, title) in SECTIONS {
        let of: Vec<&Row> = rows.iter().filter(|r| r.section == section).collect();
        if of.is_empty() {
            continue;
        }
        let mut cells = vec![
            [title, "modelled", "published", "difference", ""]
                .map(String::from)
                .to_vec(),
        ];
        for r in of {
            let published = r.published.map_or(String::new(), |[low, high]| {
                if low == high {
                    number(low)
                } else {
                    format!("{} to {}", number(low), number(high))
                }
            });
            let difference = r
                .difference()
                .map_or(String::new(), |d| format!("{:+.1}%", 100.0 * d));
            cells.push(vec![
                r.name.clone(),
                number(r.modelled),
                published,
                difference,
                r.unit.into(),
            ]);
        }
        if !text.is_empty() {
            text.push('\n');
        }
        grid_with_text(&mut text, &cells, 4);
    }
    text
}

/// The rows for programs.
pub fn to_json(rows: &[Row]) -> String {
    let rows: Vec<serde_json::Value> = rows
        .iter()
        .map(|r| {
            serde_json::json!({
                "section": r.section,
                "name": r.name,
                "unit": r.unit,
                "modelled": r.modelled,
                "published": r.published,
                "difference": r.difference(),
            })
        })
        .collect();
    format!("{:#}\n", serde_json::json!({ "operators": rows }))
}

/// The machine, model and operator figures of a scenario.
fn parts(
    scenario: &Scenario,
) -> Result<(
    Arc<Machine>,
    supernode_actors::model::ModelSpec,
    supernode_actors::compute::Calibration,
)> {
    Ok((
        Arc::new(run::machine_of(scenario)?),
        run::model_of(scenario)?,
        run::calibration_of(scenario)?,
    ))
}
