//! Launching a supernode: what it needs to know, and the handle that runs it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use supernode_topology::{ActorId, Machine};

use crate::assemble;
use crate::compute::Calibration;
use crate::config::Serving;
use crate::cpu::{Cpu, Home, Source, Store};
use crate::die::{Die, Part as DiePart};
use crate::experts::ExpertTables;
use crate::fabric::Fabric;
use crate::fabric::{Board, Health, Shape};
use crate::fault::{Body, Fault, Strike};
use crate::figures::{self, ActorFigures};
use crate::layout::{Group, Layout};
use crate::message::{Copying, Msg};
use crate::meter::Meter;
use crate::model::ModelSpec;
use crate::request::RequestSpec;
use crate::runtime::{self, KindProfile, RuntimeConfig, RuntimeError, Simulation, Transport};
use crate::stats::RunStats;
use crate::tally::Tally;
use crate::time::Ps;
use crate::trace::{Merge, Record, Recorder, TraceSpec};
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
        let machine = &shared.machine;
        let mut homes = deal(load, &shared);
        let mut worlds = Vec::new();
        for shard in 0..shards {
            let here = |node: u32| Layout::shard_of_node(node, shards) == shard;
            let dies = (0..machine.die_count())
                .map(|d| here(shared.node_of_die(d)).then(|| Box::new(Die::new(d, &shared))))
                .collect();
            let cpus = (0..machine.cpu_count())
                .map(|c| {
                    here(c / machine.cpus_per_node()).then(|| {
                        Box::new(Cpu {
                            index: c,
                            home: Home::new(
                                c,
                                homes[c as usize].take().expect("each CPU is on one shard"),
                            ),
                            store: Store::new(shared.layout.pool.contains(&c), &shared),
                            body: Body::default(),
                        })
                    })
                })
                .collect();
            let boards = boards(&shared, shard);
            let health = Health::new(machine, &shared.serving.recovery);
            let fabric = Fabric::new(machine, boards, health);
            worlds.push(World {
                shared: Arc::clone(&shared),
                dies,
                cpus,
                fabric,
                tally: Tally::default(),
                meters: vec![
                    Meter::default();
                    (machine.die_count() + machine.cpu_count()) as usize
                ],
                trace: Recorder::default(),
                struck: false,
            });
        }
        let starts: Vec<(u32, Ps)> = worlds
            .iter()
            .flat_map(|w| w.cpus.iter().flatten())
            .filter_map(|c| {
                c.home
                    .first_arrival_ps()
                    .map(|at| (shared.cpu_actor(c.index), at))
            })
            .collect();
        let owner: Arc<[u16]> = (0..machine.actor_count())
            .map(|a| Layout::shard_of_node(machine.node_of(ActorId(a)), shards) as u16)
            .collect();
        let config = RuntimeConfig {
            seed,
            shards: shards as usize,
            executors,
            owner,
            lookahead: vec![shared.control_lookahead_ps, shared.phase_lookahead_ps],
            mailbox_limit: MAILBOX_LIMIT,
            profile: false,
            transport,
        };
        let mut sim =
            Simulation::new(config, worlds).map_err(|e| LaunchError::Config(e.to_string()))?;
        let mut starts = starts;
        starts.sort_unstable();
        for (cpu, at) in starts {
            sim.inject(at, cpu, Msg::Arrival);
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

    /// Injects a fault: each of its parts is told when it strikes (at once, if that time has passed) and when it is
    /// over. Returns its number, for [`Supernode::clear`]. To be called between runs, or from no other place.
    pub fn inject(&mut self, mut fault: Fault) -> u32 {
        let number = self.faults.len() as u32;
        let now = self.sim.now();
        fault.start_ps = fault.start_ps.max(now);
        fault.end_ps = fault.end_ps.map(|end| end.max(fault.start_ps + 1));
        {
            let strikes = &mut self.shared.strikes_ps.write().expect("no reader panics");
            strikes.push(fault.start_ps);
            strikes.extend(fault.end_ps);
            strikes.sort_unstable();
        }
        self.strike(number, &fault, true, fault.start_ps);
        if let Some(end_ps) = fault.end_ps {
            self.strike(number, &fault, false, end_ps);
        }
        self.faults.push(fault);
        number
    }

    /// Ends a fault now that has no end yet, or a later one; whether there is such a fault.
    pub fn clear(&mut self, number: u32) -> bool {
        let now = self.sim.now();
        let Some(mut fault) = self.faults.get(number as usize).cloned() else {
            return false;
        };
        if fault.end_ps.is_some_and(|end| end <= now) {
            return false;
        }
        let at = now.max(fault.start_ps + 1);
        fault.end_ps = Some(at);
        {
            let strikes = &mut self.shared.strikes_ps.write().expect("no reader panics");
            strikes.push(at);
            strikes.sort_unstable();
        }
        self.strike(number, &fault, false, at);
        self.faults[number as usize] = fault;
        true
    }

    /// All faults injected so far, by number.
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }

    fn strike(&mut self, number: u32, fault: &Fault, begins: bool, at_ps: Ps) {
        for part in &fault.parts {
            let strike = Strike {
                fault: number,
                effect: fault.effect,
                ways: fault.ways,
                begins,
            };
            self.sim.inject(at_ps, part.0, Msg::Fault(strike));
        }
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

    /// Runs until nothing is left to do or the observer says stop; then checks the conservation laws
    /// (when it ended quietly).
    ///
    /// # Errors
    /// A bug: an actor panicked, or an invariant does not hold.
    pub fn run(&mut self, observe: &mut dyn FnMut(&Progress) -> Flow) -> Result<Ended, RunError> {
        self.run_recorded(observe, &mut |_| Wanted::All)
    }

    /// From now on this is recorded; `None`: nothing. To change it while a machine runs, stop it, and let it go on.
    pub fn record(&mut self, spec: Option<TraceSpec>) {
        for world in self.sim.models_mut() {
            world.trace.set(spec.clone());
        }
    }

    /// Runs end at this time, as if stopped just then: what has happened by then does not depend on the computer.
    pub fn stop_at(&mut self, at_ps: Ps) {
        self.until_ps = Some(at_ps);
    }

    /// Measures the wall time of each kind of actor from now on.
    pub fn measure_profile(&mut self) {
        self.sim.measure_profile();
    }

    /// Events and wall time by kind of actor; empty unless it was measured.
    pub fn profile(&self) -> Vec<KindProfile> {
        self.sim.profile()
    }

    /// As [`Supernode::run`]; `take` gets what is recorded as the run goes, in an order that depends on nothing but the
    /// scenario, and says what is still wanted.
    ///
    /// # Errors
    /// As [`Supernode::run`].
    pub fn run_recorded(
        &mut self,
        observe: &mut dyn FnMut(&Progress) -> Flow,
        take: &mut dyn FnMut(Recorded) -> Wanted,
    ) -> Result<Ended, RunError> {
        let merge = &mut self.merge;
        let total = self.total;
        let counters = &self.shared.progress;
        let ended = self
            .sim
            .run_with(
                self.until_ps,
                Duration::from_millis(100),
                &mut |s| {
                    let p = Progress {
                        now_ps: s.now_ps,
                        events: s.events,
                        offered: counters.offered.load(Ordering::Relaxed),
                        ended: counters.ended.load(Ordering::Relaxed),
                        total,
                    };
                    match observe(&p) {
                        Flow::Continue => runtime::Flow::Continue,
                        Flow::Stop => runtime::Flow::Stop,
                    }
                },
                &mut |worlds, next_ps| {
                    hand_over(merge, worlds, next_ps, take);
                },
            )
            .map_err(|e: RuntimeError| RunError::Broken(e.to_string()))?;
        match ended {
            runtime::Ended::Stopped | runtime::Ended::Until => Ok(Ended::Stopped),
            runtime::Ended::Finished => {
                self.check().map_err(RunError::Broken)?;
                Ok(Ended::Quiet)
            }
        }
    }

    /// What must hold when nothing is left to do: each request ended once, all memory and slots are back,
    /// and every byte that left a port reached one.
    ///
    /// # Errors
    /// Names the actor and what it still holds.
    pub fn check(&self) -> Result<(), String> {
        let machine = &self.shared.machine;
        let mut ended = 0;
        let mut offered = 0;
        for world in self.sim.models() {
            offered += world.tally.offered;
            ended += world.tally.ended;
            for die in world.dies.iter().flatten() {
                // What hangs keeps what it has.
                if die.body.is_stopped() {
                    continue;
                }
                let checked = match &die.part {
                    DiePart::Idle => Ok(()),
                    DiePart::Prefill(p) => p.check_idle(),
                    DiePart::Decode(d) => d.check_idle(),
                };
                checked.map_err(|e| format!("{}: {e}", machine.address(machine.die(die.index))))?;
            }
            for cpu in world.cpus.iter().flatten() {
                cpu.home
                    .check_idle()
                    .map_err(|e| format!("{}: {e}", machine.address(machine.cpu(cpu.index))))?;
            }
            // Where steps may have been given up, what was sent for them is accounted for in bytes.
            let faultless = self.faults.is_empty();
            if faultless && world.fabric.boards.iter().any(|b| !b.is_clear()) {
                return Err("activations were sent and never served".into());
            }
        }
        if ended != offered {
            return Err(format!("{offered} requests were put in, {ended} ended"));
        }
        assemble::check_bytes(self.sim.models(), machine)
    }

    /// Gives `take` what was recorded since the last time and is final; it says what is still wanted. Between runs.
    pub fn hand_over(&mut self, take: &mut dyn FnMut(Recorded) -> Wanted) {
        let next_ps = self.sim.next_event_ps().unwrap_or(Ps::MAX);
        hand_over(&mut self.merge, self.sim.models_mut(), next_ps, take);
    }

    /// What was recorded and not handed out yet, once a run was stopped.
    pub fn rest(&mut self) -> Recorded {
        Recorded {
            records: self.merge.take(Ps::MAX),
            lost: std::mem::take(&mut self.merge.lost),
        }
    }

    /// Copies `bytes` between the memories of two parts through the actors on the way, on a machine with nothing else
    /// to do: die `a` reads them from `b`, or writes them to `b`. Returns how long that took, from the request to
    /// the last byte.
    ///
    /// # Errors
    /// When `a` is not a die or `b` neither die nor CPU (the measured table has no such transfer), or the run broke.
    pub fn copy(&mut self, a: ActorId, b: ActorId, bytes: u64, read: bool) -> Result<Ps, RunError> {
        let machine = &self.shared.machine;
        if machine.as_die(a).is_none() || machine.is_link(b) || a == b {
            return Err(RunError::Broken(format!(
                "{} to {}: a copy goes from a die to another die or a CPU",
                machine.address(a),
                machine.address(b)
            )));
        }
        let (holder, receiver) = if read { (b, a) } else { (a, b) };
        let copying = Copying {
            to: receiver.0,
            bytes,
            read,
        };
        self.sim
            .inject(self.sim.now(), holder.0, Msg::Copy(copying));
        self.run(&mut |_| Flow::Continue)?;
        self.sim
            .models_mut()
            .iter_mut()
            .find_map(|w| w.tally.copies_ps.pop())
            .ok_or_else(|| RunError::Broken("the copy never arrived".into()))
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

/// Messages that may wait at one actor before the run is called broken.
const MAILBOX_LIMIT: u32 = 4_000_000;

/// Collects what the shards recorded, gives `take` what comes before `next_ps`, and has no more recorded than it wants.
fn hand_over(
    merge: &mut Merge,
    worlds: &mut [World],
    next_ps: Ps,
    take: &mut dyn FnMut(Recorded) -> Wanted,
) {
    for world in worlds.iter_mut() {
        let lost = world.trace.drain(merge.inbox());
        merge.lost += lost;
    }
    let records = merge.take(next_ps);
    let lost = std::mem::take(&mut merge.lost);
    if !records.is_empty() || lost > 0 {
        let wanted = take(Recorded { records, lost });
        for world in worlds {
            world.trace.narrow(wanted);
        }
    }
}

/// Deals the load over the homes: requests in turn, and streams of a closed loop in turn.
fn deal(load: &Load, shared: &Shared) -> Vec<Option<Source>> {
    let homes = shared.layout.homes.len();
    let mut queues: Vec<VecDeque<RequestSpec>> = vec![VecDeque::new(); homes];
    match load.concurrency {
        None => {
            for r in &load.requests {
                queues[r.id as usize % homes].push_back(r.clone());
            }
            queues.into_iter().map(|q| Some(Source::Open(q))).collect()
        }
        Some(streams) => {
            let used = homes.min(streams.max(1) as usize);
            for (i, r) in load.requests.iter().enumerate() {
                queues[i % used].push_back(r.clone());
            }
            let dies: Vec<u32> = shared
                .layout
                .decode
                .iter()
                .flat_map(|g| g.dies.iter().copied())
                .collect();
            let mut of_home: Vec<Vec<Option<u32>>> = vec![Vec::new(); homes];
            for s in 0..streams as usize {
                let die =
                    (shared.phase == Phase::Decode).then(|| shared.die_actor(dies[s % dies.len()]));
                of_home[s % used].push(die);
            }
            queues
                .into_iter()
                .zip(of_home)
                .map(|(requests, streams)| Some(Source::Closed { requests, streams }))
                .collect()
        }
    }
}

/// A board for each group, as `shard` sees it.
fn boards(shared: &Shared, shard: u32) -> Vec<Board> {
    let machine = &shared.machine;
    let make = |group: &Group, slots: u32, channels: u32| {
        let shard_of_rank: Vec<usize> = group
            .node_of_rank
            .iter()
            .map(|&node| Layout::shard_of_node(node, shared.shards) as usize)
            .collect();
        let shape = Shape::new(
            group.node_of_rank.clone(),
            group.dies.iter().map(|&d| machine.npu_of_die(d)).collect(),
            &shard_of_rank,
            shard as usize,
            slots as usize,
        );
        Board::new(shape, channels, shared.paths.npu_npu_write)
    };
    let slots =
        |e: &Option<crate::experts::ExpertLayers>| e.as_ref().map_or(1, |e| e.slots_per_rank);
    shared
        .layout
        .prefill
        .iter()
        .map(|g| make(g, slots(&shared.prefill_experts), 2))
        .chain(
            shared
                .layout
                .decode
                .iter()
                .map(|g| make(g, slots(&shared.decode_experts), 1)),
        )
        .collect()
}
