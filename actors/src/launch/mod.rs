//! Launching a supernode: what it needs to know, and the handle that runs it.

mod check;
mod parts;
mod run;
mod strikes;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use supernode_topology::Machine;

use crate::assemble;
use crate::compute::Calibration;
use crate::config::Serving;
use crate::experts::ExpertTables;
use crate::fault::Fault;
use crate::figures::{self, ActorFigures};
use crate::model::ModelSpec;
use crate::request::RequestSpec;
use crate::runtime::{RuntimeConfig, Simulation, Transport};
use crate::stats::RunStats;
use crate::time::Ps;
use crate::trace::{Merge, Record};
use crate::world::{Shared, World};

/// Which part of serving a workload exercises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Prompt to last token.
    Both,
    /// Requests end with their first token.
    Prefill,
    /// Requests arrive at a decode die with their KV in place.
    Decode,
}

/// What arrives, and when.
#[derive(Clone, Debug)]
pub struct Load {
    pub phase: Phase,
    /// In order of arrival; ids are 0, 1, 2, …
    pub requests: Vec<RequestSpec>,
    /// Closed loop: so many requests are in the machine at any time, the next one arriving when one ends
    /// (arrival times in `requests` are then ignored). `None`: each arrives at its time.
    pub concurrency: Option<u32>,
}

/// Everything a run depends on besides the number of shards.
#[derive(Clone, Debug)]
pub struct Launch {
    pub machine: Arc<Machine>,
    pub model: ModelSpec,
    pub serving: Serving,
    /// Operator efficiencies and overheads.
    pub calibration: Calibration,
    pub seed: u64,
    pub shards: u32,
    pub load: Load,
    /// Expert loads and placement from files.
    pub experts: ExpertTables,
}

/// How far a run is; handed to the observer a few times a second.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    pub now_ps: Ps,
    pub events: u64,
    pub offered: u64,
    pub ended: u64,
    pub total: u64,
}

/// What was recorded since the last time.
#[derive(Clone, Debug, Default)]
pub struct Recorded {
    /// By time, then by actor.
    pub records: Vec<Record>,
    /// Records that were given up because too many came at once.
    pub lost: u64,
}

/// What of a trace is still wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    All,
    /// Only marks of requests.
    Requests,
    Nothing,
}

/// What the observer wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    Continue,
    /// End now, with the report so far.
    Stop,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Nothing was left to do.
    Quiet,
    /// The observer stopped it.
    Stopped,
}

/// A configuration that cannot be launched; each message names the key, the value and what would be accepted.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error("{0}")]
    Config(String),
}

/// A run that broke: a bug in an actor, or an invariant that did not hold.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("{0}")]
    Broken(String),
}

/// Messages that may wait at one actor before the run is called broken.
const MAILBOX_LIMIT: u32 = 4_000_000;

/// A launched machine.
pub struct Supernode {
    pub(crate) sim: Simulation<World>,
    pub(crate) shared: Arc<Shared>,
    total: u64,
    concurrency: Option<u32>,
    merge: Merge,
    faults: Vec<Fault>,
    until_ps: Option<Ps>,
}

impl Supernode {
    /// Builds all actors and puts each on its shard.
    ///
    /// # Errors
    /// When the scenario does not fit the machine or the memory of its dies; the message shows the sum.
    pub fn launch(launch: Launch) -> Result<Self, LaunchError> {
        Self::launch_with(launch, Transport::Memory, None)
    }

    /// A machine that stays up: requests come by `submit`, and what it makes goes out by `take_deliveries`.
    ///
    /// # Errors
    /// As `launch`; `load.requests` must be empty, and `load.phase` is `Both`.
    pub fn launch_live(launch: Launch) -> Result<Self, LaunchError> {
        if launch.load.phase != Phase::Both || !launch.load.requests.is_empty() {
            return Err(LaunchError::Config(
                "workload.phase: a live machine serves requests from prompt to last token, as they come: \"both\" is expected"
                    .into(),
            ));
        }
        Self::launch_as(launch, Transport::Memory, None, true)
    }

    /// As `launch`, with a choice of how shards exchange messages and on how many threads they run.
    ///
    /// # Errors
    /// As `launch`.
    pub fn launch_with(
        launch: Launch,
        transport: Transport,
        executors: Option<usize>,
    ) -> Result<Self, LaunchError> {
        Self::launch_as(launch, transport, executors, false)
    }

    fn launch_as(
        launch: Launch,
        transport: Transport,
        executors: Option<usize>,
        live: bool,
    ) -> Result<Self, LaunchError> {
        let (seed, shards, load) = (launch.seed, launch.shards, &launch.load);
        if shards == 0 || shards > launch.machine.node_count() {
            return Err(LaunchError::Config(format!(
                "shards = {shards}: between 1 and the machine's {} nodes are possible",
                launch.machine.node_count()
            )));
        }
        let mut shared = assemble::shared(&launch).map_err(LaunchError::Config)?;
        shared.live = live;
        shared.stream_tokens |= live;
        let shared = Arc::new(shared);
        let worlds = parts::worlds(load, &shared);
        let starts = parts::starts(&worlds, &shared);
        let config = RuntimeConfig {
            seed,
            shards: shards as usize,
            executors,
            owner: parts::owners(&shared),
            lookahead: vec![shared.control_lookahead_ps, shared.phase_lookahead_ps],
            mailbox_limit: MAILBOX_LIMIT,
            profile: false,
            transport,
        };
        let mut sim =
            Simulation::new(config, worlds).map_err(|e| LaunchError::Config(e.to_string()))?;
        for (at, to, msg) in starts {
            sim.inject(at, to, msg);
        }
        Ok(Self {
            sim,
            shared,
            total: load.requests.len() as u64,
            concurrency: load.concurrency,
            merge: Merge::default(),
            faults: Vec::new(),
            until_ps: None,
        })
    }

    /// A machine that nothing arrives at, with as little of it serving as can be: for measuring the fabric.
    ///
    /// # Errors
    /// As `launch`.
    pub fn quiet(machine: Arc<Machine>) -> Result<Self, LaunchError> {
        let model = ModelSpec::builtin("deepseek-r1").expect("a built-in model");
        let mut serving = Serving::default();
        serving.prefill.instances = 0;
        serving.decode.instances = 0;
        Self::launch(Launch {
            machine,
            model,
            serving,
            calibration: Calibration::builtin(),
            seed: 0,
            shards: 1,
            load: Load {
                phase: Phase::Both,
                requests: Vec::new(),
                concurrency: None,
            },
            experts: ExpertTables::default(),
        })
    }

    pub fn stats(&self) -> RunStats {
        assemble::stats(&self.sim, &self.shared, self.concurrency)
    }

    /// What each actor measured of itself so far.
    pub fn figures(&self) -> Vec<ActorFigures> {
        figures::figures(self.sim.models(), &self.shared)
    }

    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}
