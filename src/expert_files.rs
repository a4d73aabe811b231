//! Files that say how experts are loaded and placed: per-expert loads (CSV or NumPy), and placement maps
//! (NumPy, shape [rank, layer, expert], as omni-infer writes them).

use std::fs::File;
use std::path::Path;

use supernode_actors::experts::{ExpertTables, Placement};
use supernode_actors::model::ModelSpec;

use crate::error::{Error, Result};
use crate::npy;
use crate::scenario::Scenario;

/// What the files of a scenario say, if it names any.
///
/// # Errors
/// Names the key, the file, and what is wrong in it.
pub fn tables(scenario: &Scenario, model: &ModelSpec) -> Result<ExpertTables> {
    let mut tables = ExpertTables::default();
    if let Some(file) = &scenario.experts.load_file {
        let wanted = "a file of expert loads (CSV, .npy) or a placement map (.npy)";
        scenario
            .places
            .is_there("experts.load_file", file, wanted)?;
        let load = loads(Path::new(file), model)
            .map_err(|why| Error::user(format!("experts.load_file {file}: {why}")))?;
        tables.load = Some(load);
    }
    if let Some(file) = &scenario.experts.placement_file {
        let wanted = "a placement map (.npy, .npy.gz)";
        scenario
            .places
            .is_there("experts.placement_file", file, wanted)?;
        let placement = placement(Path::new(file), model)
            .map_err(|why| Error::user(format!("experts.placement_file {file}: {why}")))?;
        tables.placement = Some(placement);
    }
    Ok(tables)
}

fn is_npy(path: &Path) -> bool {
    let name = path.to_string_lossy();
    name.ends_with(".npy") || name.ends_with(".npy.gz")
}

/// Loads by MoE layer and expert.
fn loads(path: &Path, model: &ModelSpec) -> std::result::Result<Vec<Vec<f64>>, String> {
    let (layers, experts) = (model.moe_layers() as usize, model.routed_experts as usize);
    let load = if is_npy(path) {
        let a = npy::read(path)?;
        match a.shape[..] {
            [l, e] if (l, e) == (layers, experts) => {
                a.values.chunks(experts).map(<[f64]>::to_vec).collect()
            }
            // A placement map: an expert with twice the copies has about twice the load.
            [_, l, e] if (l, e) == (layers, experts) => {
                let mut load = vec![vec![0.0; experts]; layers];
                for rank in a.values.chunks(layers * experts) {
                    for (row, held) in load.iter_mut().zip(rank.chunks(experts)) {
                        row.iter_mut().zip(held).for_each(|(n, h)| *n += h);
                    }
                }
                load
            }
            _ => {
                return Err(format!(
                    "shape {:?}, expected [{layers}, {experts}] (layer, expert) or [ranks, {layers}, {experts}]",
                    a.shape
                ));
            }
        }
    } else {
        csv_loads(path, layers, experts)?
    };
    for (layer, row) in load.iter().enumerate() {
        let hot = row.iter().filter(|l| **l > 0.0).count();
        if let Some(e) = row.iter().position(|l| !l.is_finite() || *l < 0.0) {
            return Err(format!(
                "layer {layer}, expert {e}: load {}, expected a number from 0",
                row[e]
            ));
        }
        if hot < model.top_k as usize {
            return Err(format!(
                "layer {layer}: {hot} experts have any load, but a token chooses {} different ones",
                model.top_k
            ));
        }
    }
    Ok(load)
}

/// Lines `layer,expert,load`, layers counted from the first MoE layer, with or without a header.
fn csv_loads(
    path: &Path,
    layers: usize,
    experts: usize,
) -> std::result::Result<Vec<Vec<f64>>, String> {
    let file = File::open(path).map_err(|e| e.to_string())?;
    let mut load = vec![vec![f64::NAN; experts]; layers];
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .trim(csv::Trim::All)
        .from_reader(file);
    for (i, row) in reader.records().enumerate() {
        let row = row.map_err(|e| e.to_string())?;
        let line = row.position().map_or(i as u64 + 1, csv::Position::line);
        if i == 0 && row.get(0).is_some_and(|c| c.parse::<f64>().is_err()) {
            continue;
        }
        let wrong = |what: &str| format!("line {line}: {what}, expected layer,expert,load");
        let index = |column: usize, name: &str, below: usize| {
            row[column]
                .parse::<usize>()
                .ok()
                .filter(|n| *n < below)
                .ok_or_else(|| {
                    wrong(&format!(
                        "{name} {:?} is not 0 to {}",
                        &row[column],
                        below - 1
                    ))
                })
        };
        if row.len() != 3 {
            return Err(wrong(&format!("{} columns", row.len())));
        }
        let (layer, expert) = (index(0, "layer", layers)?, index(1, "expert", experts)?);
        let value: f64 = row[2]
            .parse()
            .map_err(|_| wrong(&format!("load {:?} is not a number", &row[2])))?;
        if !load[layer][expert].is_nan() {
            return Err(wrong(&format!(
                "layer {layer}, expert {expert} a second time"
            )));
        }
        load[layer][expert] = value;
    }
    for (layer, row) in load.iter().enumerate() {
        if let Some(e) = row.iter().position(|l| l.is_nan()) {
            return Err(format!("no load for layer {layer}, expert {e}"));
        }
    }
    Ok(load)
}

fn placement(path: &Path, model: &ModelSpec) -> std::result::Result<Placement, String> {
    let (layers, experts) = (model.moe_layers() as usize, model.routed_experts as usize);
    let a = npy::read(path)?;
    let [ranks, l, e] = a.shape[..] else {
        return Err(format!(
            "shape {:?}, expected [ranks, {layers}, {experts}]",
            a.shape
        ));
    };
    if (l, e) != (layers, experts) || ranks == 0 || ranks > 4_096 {
        return Err(format!(
            "shape {:?}, expected [1 to 4096 ranks, {layers}, {experts}]",
            a.shape
        ));
    }
    let mut holders = vec![vec![Vec::new(); experts]; layers];
    for (i, &held) in a.values.iter().enumerate() {
        let (rank, layer, expert) = (i / (l * e), i / e % l, i % e);
        if held == 1.0 {
            holders[layer][expert].push(rank as u16);
        } else if held != 0.0 {
            return Err(format!(
                "rank {rank}, layer {layer}, expert {expert} is {held}, expected 0 or 1"
            ));
        }
    }
    for (layer, row) in holders.iter().enumerate() {
        if let Some(e) = row.iter().position(Vec::is_empty) {
            return Err(format!("layer {layer}: no rank holds expert {e}"));
        }
    }
    Ok(Placement {
        ranks: ranks as u32,
        holders,
    })
}
