//! Chaos: small random machines, workloads and fault plans from a seed, and every invariant checked at the end. A
//! seed that fails is replayed exactly, and its plan shrunk to the lines that still fail.

mod case;

use std::sync::Arc;
use std::time::{Duration, Instant};

use supernode_actors::compute::Calibration;
use supernode_actors::experts::ExpertTables;
use supernode_actors::launch::{Ended, Flow, Launch, Supernode};
use supernode_actors::request::Outcome;

pub use case::{Case, small_machine, small_model, some_prefix};

use crate::fault::Plan;

/// Events and virtual time that a case of this size never needs: beyond it hangs.
const EVENTS_MAX: u64 = 40_000_000;
const VIRTUAL_S_MAX: f64 = 3_600.0;
/// Wall time after which a case counts as hanging, whatever it is doing.
const WALL_MAX: Duration = Duration::from_secs(120);

/// How a case went.
#[derive(Clone, Debug, Default)]
pub struct Passed {
    pub digest: u64,
    pub requests: u64,
    pub completed: u64,
    pub failed: u64,
    pub retried: u64,
    pub events: u64,
}

/// Runs a case on so many shards.
///
/// # Errors
/// The invariant that does not hold.
pub fn run(case: &Case, shards: u32) -> Result<Passed, String> {
    let machine = Arc::new(case.machine());
    let plan = Plan {
        faults: case.plan.clone(),
    };
    let faults = plan.resolve(&machine).map_err(|e| e.to_string())?;
    let mut supernode = Supernode::launch(Launch {
        machine: Arc::clone(&machine),
        model: case.model.clone(),
        serving: case.serving.clone(),
        calibration: Calibration::builtin(),
        experts: ExpertTables::default(),
        seed: case.seed,
        shards,
        load: case.load.clone(),
    })
    .map_err(|e| format!("not launched: {e}"))?;
    for fault in faults {
        supernode.inject(fault);
    }
    let started = Instant::now();
    let mut hang = None;
    let ended = supernode
        .run(&mut |p| {
            let virtual_s = p.now_ps as f64 * 1e-12;
            if p.events > EVENTS_MAX || virtual_s > VIRTUAL_S_MAX || started.elapsed() > WALL_MAX {
                hang = Some(format!(
                    "it hangs: {} events, {virtual_s:.1} s of virtual time, {} of {} requests ended",
                    p.events, p.ended, p.total
                ));
                return Flow::Stop;
            }
            Flow::Continue
        })
        .map_err(|e| e.to_string())?;
    if let Some(hang) = hang {
        return Err(hang);
    }
    if ended != Ended::Quiet {
        return Err("it was stopped".into());
    }
    let stats = supernode.stats();
    let mut passed = Passed {
        digest: stats.digest,
        requests: stats.records.len() as u64,
        events: stats.events,
        ..Passed::default()
    };
    if stats.records.len() != case.load.requests.len() {
        return Err(format!(
            "{} requests were offered, {} ended",
            case.load.requests.len(),
            stats.records.len()
        ));
    }
    for (record, spec) in stats.records.iter().zip(&case.load.requests) {
        if record.id != spec.id {
            return Err(format!("request {} ended twice or never", spec.id));
        }
        passed.retried += u64::from(record.retries > 0);
        match &record.outcome {
            Outcome::Completed if record.output_tokens != spec.output_tokens => {
                return Err(format!(
                    "request {} completed with {} of {} tokens",
                    spec.id, record.output_tokens, spec.output_tokens
                ));
            }
            Outcome::Completed => passed.completed += 1,
            Outcome::Failed(why) if !why.contains("node") => {
                return Err(format!(
                    "request {} failed with a reason that names no part: {why}",
                    spec.id
                ));
            }
            Outcome::Failed(_) => passed.failed += 1,
            Outcome::Cancelled => {
                return Err(format!("request {} was cancelled by nobody", spec.id));
            }
        }
    }
    Ok(passed)
}

/// As `run` on one shard, and the same digest on two and four.
///
/// # Errors
/// As `run`, or that results depend on shards.
pub fn run_on_shards(case: &Case) -> Result<Passed, String> {
    let one = run(case, 1)?;
    for shards in [2, 4] {
        let other = run(case, shards).map_err(|e| format!("on {shards} shards: {e}"))?;
        if other.digest != one.digest {
            return Err(format!(
                "digest {:016x} on one shard, {:016x} on {shards}",
                one.digest, other.digest
            ));
        }
    }
    Ok(one)
}

/// Leaves out faults and requests as long as the case still fails.
pub fn shrink(case: &Case, fails: &dyn Fn(&Case) -> bool) -> Case {
    let mut least = case.clone();
    let mut smaller = true;
    while smaller {
        smaller = false;
        for i in (0..least.plan.len()).rev() {
            let mut fewer = least.clone();
            fewer.plan.remove(i);
            if fails(&fewer) {
                least = fewer;
                smaller = true;
            }
        }
        let requests = least.load.requests.len();
        if requests > 1 {
            let mut fewer = least.clone();
            fewer.load.requests.truncate(requests / 2);
            if fails(&fewer) {
                least = fewer;
                smaller = true;
            }
        }
    }
    least
}
