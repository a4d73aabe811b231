//! How weights came to the dies: what a run says of loading its model, and of switching to another.

use serde::Serialize;
use supernode_actors::request::RequestRecord;
use supernode_actors::stats::{LoadTimes, RunStats};
use supernode_actors::time::{Ps, s_from_ps};

use super::table::{bytes, count, number};

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelLoadReport {
    /// Of one model in one copy.
    pub model_bytes: u64,
    /// Of each model in the pool.
    pub copies: u32,
    /// The load that the run starts with, if it does.
    pub start: Option<LoadReport>,
    /// The load of the model that it switches to, if it does.
    pub switch: Option<LoadReport>,
    /// Read by dies from the pool, and by the pool from object storage.
    pub pool_read_bytes: u64,
    pub object_store_bytes: u64,
    /// Weights in the pool's DRAM at the end.
    pub dram_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LoadReport {
    /// When it was wanted: at the start, or when the switch began.
    pub from_s: f64,
    /// Dies that have loaded all that is theirs, and how long each took.
    pub dies: u64,
    pub load_s_mean: f64,
    pub load_s_max: f64,
    /// From `from_s` until the last die had it all; of a switch, requests of the model before ended meanwhile.
    pub ready_s: f64,
    /// From `from_s` to the first token of a request for this model; none was served: null.
    pub first_token_s: Option<f64>,
}

pub fn of(stats: &RunStats) -> Option<ModelLoadReport> {
    let w = stats.weights.as_ref()?;
    let at = w.switch_ps.unwrap_or(Ps::MAX);
    let load = |l: &LoadTimes, from_ps: Ps, until_ps: Ps| {
        let served = |r: &&RequestRecord| {
            (from_ps..until_ps).contains(&r.arrival_ps) && r.first_token_ps > 0
        };
        let first = stats.records.iter().filter(served);
        let first_ps = first.map(|r| r.first_token_ps).min();
        let since = |ps: Ps| s_from_ps(ps.saturating_sub(from_ps));
        LoadReport {
            from_s: s_from_ps(from_ps),
            dies: l.dies,
            load_s_mean: super::ratio(s_from_ps(l.sum_ps), l.dies as f64),
            load_s_max: s_from_ps(l.max_ps),
            ready_s: since(l.ready_ps),
            first_token_s: first_ps.map(since),
        }
    };
    let [start, other] = &w.loads;
    Some(ModelLoadReport {
        model_bytes: w.model_bytes,
        copies: w.copies,
        start: w.loads_at_start.then(|| load(start, 0, at)),
        switch: w.switch_ps.map(|at| load(other, at, Ps::MAX)),
        pool_read_bytes: w.pool_bytes,
        object_store_bytes: w.object_store_bytes,
        dram_bytes: w.dram_bytes,
    })
}

/// (name, text) of each line of the table.
pub fn lines(m: &ModelLoadReport) -> Vec<(&'static str, String)> {
    let load = |what: &str, l: &LoadReport| {
        let first = l.first_token_s.map_or("none served".into(), |s| {
            format!("first token after {} s", number(s))
        });
        format!(
            "{what}: {} dies, {} s each (max {}), all after {} s, {first}",
            count(l.dies),
            number(l.load_s_mean),
            number(l.load_s_max),
            number(l.ready_s)
        )
    };
    let mut all = Vec::new();
    if let Some(l) = &m.start {
        all.push(("model", load("loaded at the start", l)));
    }
    if let Some(l) = &m.switch {
        let what = format!("switched from {} s on", number(l.from_s));
        all.push(("model", load(&what, l)));
    }
    let copies = if m.copies == 1 {
        String::new()
    } else {
        format!(" in {} copies", m.copies)
    };
    all.push((
        "",
        format!(
            "{} of weights{copies}: {} read from the pool, {} from object storage; {} in the pool's DRAM",
            bytes(m.model_bytes),
            bytes(m.pool_read_bytes),
            bytes(m.object_store_bytes),
            bytes(m.dram_bytes)
        ),
    ));
    all
}
