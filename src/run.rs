//! From a scenario to a report, without printing: what every command that runs scenarios shares.

use std::sync::Arc;
use std::time::Instant;

use supernode_actors::compute::Calibration;
use supernode_actors::experts::ExpertTables;
use supernode_actors::fault::Fault;
use supernode_actors::figures::ActorFigures;
use supernode_actors::launch::{
    Flow, Launch, LaunchError, Load, Phase, Progress, Recorded, RunError, Supernode, Wanted,
};
use supernode_actors::layout::Layout;
use supernode_actors::model::ModelSpec;
use supernode_actors::request::RequestRecord;
use supernode_actors::runtime::KindProfile;
use supernode_actors::time::{Ps, ps_from_s, s_from_ps};
use supernode_actors::trace::TraceSpec;
use supernode_topology::Machine;

use crate::error::{Error, Result};
use crate::expert_files;
use crate::fault::Plan;
use crate::report::{Inputs, Offered, Report, faults_of};
use crate::scenario::{PhaseSpec, Scenario};
use crate::workload::{self, Source};

/// What is wanted of a run besides its report.
#[derive(Default)]
pub struct Extras<'a> {
    pub recording: Option<Recording<'a>>,
    /// Measure the wall time of each kind of actor.
    pub profile: bool,
    /// Stop at this virtual time.
    pub until_s: Option<f64>,
}

/// What is recorded, and who takes it as the run goes.
pub struct Recording<'a> {
    pub spec: TraceSpec,
    pub take: &'a mut dyn FnMut(Recorded) -> Wanted,
}

/// All that is known of a run that has ended.
#[derive(Debug)]
pub struct Finished {
    pub report: Report,
    pub end_ps: Ps,
    /// Requests that ended, by id.
    pub records: Vec<RequestRecord>,
    pub figures: Vec<ActorFigures>,
    pub profile: Vec<KindProfile>,
    /// Wall time of the run itself, without launch and report.
    pub ran_s: f64,
    pub scenario: Scenario,
    pub machine: Arc<Machine>,
}

/// A machine that stays up, and what it was launched from.
pub struct Launched {
    pub supernode: Supernode,
    pub load: Load,
    pub scenario: Scenario,
    pub model: ModelSpec,
    pub source: Source,
    pub notes: Vec<String>,
    pub int8_tops_per_npu: f64,
}

/// A scenario whose machine, model and workload have been read and found good.
#[derive(Debug)]
pub struct Prepared {
    pub scenario: Scenario,
    pub machine: Arc<Machine>,
    pub model: ModelSpec,
    pub calibration: Calibration,
    load: Load,
    experts: ExpertTables,
    source: Source,
    faults: Vec<Fault>,
    notes: Vec<String>,
}

impl Prepared {
    pub fn new(scenario: Scenario) -> Result<Self> {
        let machine = Arc::new(machine_of(&scenario)?);
        Self::on(scenario, machine)
    }

    /// On this machine, whatever the scenario names.
    pub fn on(scenario: Scenario, machine: Arc<Machine>) -> Result<Self> {
        let model = model_of(&scenario)?;
        check_drafts(&scenario, &model)?;
        let calibration = calibration_of(&scenario)?;
        let experts = expert_files::tables(&scenario, &model)?;
        let workload = workload::build(&scenario, &model).map_err(|e| scenario.places.placed(e))?;
        tracing::debug!(
            requests = workload.load.requests.len(),
            source = workload.source.name,
            "workload"
        );
        Ok(Self {
            scenario,
            machine,
            model,
            calibration,
            load: workload.load,
            experts,
            source: workload.source,
            faults: Vec::new(),
            notes: workload.notes,
        })
    }

    /// What is to break: plans (files or `random:`) and lines.
    ///
    /// # Errors
    /// What is wrong with them, in one line.
    pub fn break_parts(&mut self, plans: &[String], lines: &[String]) -> Result<()> {
        let last_ps = self.load.requests.last().map_or(0, |r| r.arrival_ps);
        let span_s = s_from_ps(last_ps).max(1.0);
        let plan = Plan::read(plans, lines, &self.machine, span_s)?;
        self.faults = plan.resolve(&self.machine)?;
        Ok(())
    }

    /// Which part does what.
    ///
    /// # Errors
    /// When the instances do not fit on the machine.
    pub fn layout(&self) -> Result<Layout> {
        let phase = self.load.phase;
        let (prefill, decode) = (phase != Phase::Decode, phase != Phase::Prefill);
        Layout::new(&self.machine, &self.scenario.serving(), prefill, decode)
            .map_err(|why| self.scenario.places.wrong(&why))
    }

    /// Requests that will be offered.
    pub fn requests(&self) -> u64 {
        self.load.requests.len() as u64
    }

    /// Launches a machine that stays up; the workload is handed out beside it.
    pub fn launch_live(self, shards: u32) -> Result<Launched> {
        let int8_tops_per_npu = int8_tops_per_npu(&self.machine);
        let phase = self.load.phase;
        let supernode = Supernode::launch_live(Launch {
            machine: self.machine,
            model: self.model.clone(),
            serving: self.scenario.serving(),
            calibration: self.calibration,
            seed: self.scenario.seed,
            shards,
            load: Load {
                phase,
                requests: Vec::new(),
                concurrency: None,
            },
            experts: self.experts,
        })
        .map_err(|LaunchError::Config(why)| self.scenario.places.wrong(&why))?;
        Ok(Launched {
            supernode,
            load: self.load,
            scenario: self.scenario,
            model: self.model,
            source: self.source,
            notes: self.notes,
            int8_tops_per_npu,
        })
    }

    /// Launches, runs to the end (or to where `observe` stops it) and reports.
    pub fn run(self, shards: u32, observe: &mut dyn FnMut(&Progress) -> Flow) -> Result<Report> {
        Ok(self.run_with(shards, Extras::default(), observe)?.report)
    }

    /// The same, with all that can be known of a run.
    pub fn run_with(
        self,
        shards: u32,
        mut extras: Extras<'_>,
        observe: &mut dyn FnMut(&Progress) -> Flow,
    ) -> Result<Finished> {
        let started = Instant::now();
        let offered: Vec<Offered> = self
            .load
            .requests
            .iter()
            .map(|r| Offered {
                arrival_ps: r.arrival_ps,
                prompt_tokens: r.prompt_tokens,
                output_tokens: r.output_tokens,
            })
            .collect();
        let concurrency = self.load.concurrency;
        let int8_tops_per_npu = int8_tops_per_npu(&self.machine);
        let machine = Arc::clone(&self.machine);
        let mut supernode = Supernode::launch(Launch {
            machine: self.machine,
            model: self.model,
            serving: self.scenario.serving(),
            calibration: self.calibration,
            seed: self.scenario.seed,
            shards,
            load: self.load,
            experts: self.experts,
        })
        .map_err(|LaunchError::Config(why)| self.scenario.places.wrong(&why))?;
        tracing::debug!(seconds = started.elapsed().as_secs_f64(), "launched");
        if let Some(recording) = &extras.recording {
            supernode.record(Some(recording.spec.clone()));
        }
        if let Some(until_s) = extras.until_s {
            supernode.stop_at(ps_from_s(until_s));
        }
        if extras.profile {
            supernode.measure_profile();
        }
        let mut nobody = |_| Wanted::Nothing;
        let take: &mut dyn FnMut(Recorded) -> Wanted = match &mut extras.recording {
            Some(recording) => recording.take,
            None => &mut nobody,
        };
        for fault in self.faults {
            supernode.inject(fault);
        }
        let running = Instant::now();
        let ended = supernode
            .run_recorded(observe, take)
            .map_err(|RunError::Broken(why)| Error::failed(format!("the run failed: {why}")))?;
        take(supernode.rest());
        let ran_s = running.elapsed().as_secs_f64();
        tracing::debug!(seconds = ran_s, "ran");
        let stats = supernode.stats();
        let report = Report::new(&Inputs {
            stats: &stats,
            ended,
            seed: self.scenario.seed,
            machine: &self.scenario.machine,
            model: &self.scenario.model,
            slo: &self.scenario.slo,
            source: &self.source,
            offered: &offered,
            concurrency,
            notes: &self.notes,
            faults: faults_of(supernode.faults(), &machine, &stats, &self.scenario.slo),
            prefill_instances: self.scenario.prefill.instances,
            decode_instances: self.scenario.decode.instances,
            int8_tops_per_npu,
            wall_s: started.elapsed().as_secs_f64(),
        });
        Ok(Finished {
            report,
            end_ps: stats.end_ps,
            records: stats.records,
            figures: supernode.figures(),
            profile: supernode.profile(),
            ran_s,
            scenario: self.scenario,
            machine: supernode.shared().machine.clone(),
        })
    }
}

/// A built-in machine, or one from a file.
pub fn machine(name: &str) -> Result<Machine> {
    Machine::resolve(name).map_err(|e| Error::user(e.to_string()))
}

fn int8_tops_per_npu(machine: &Machine) -> f64 {
    machine.spec.die.int8_tops * f64::from(machine.dies_per_npu())
}

/// The machine that a scenario names.
pub fn machine_of(scenario: &Scenario) -> Result<Machine> {
    let name = &scenario.machine;
    if !Machine::BUILTIN.contains(&name.as_str()) {
        let wanted = named("machine", Machine::BUILTIN);
        scenario.places.is_there("machine", name, &wanted)?;
    }
    machine(name)
}

/// The model that a scenario names: a built-in one, or one from a file.
pub fn model_of(scenario: &Scenario) -> Result<ModelSpec> {
    let name = &scenario.model;
    if let Some(model) = ModelSpec::builtin(name) {
        return Ok(model);
    }
    let wanted = named("model", ModelSpec::BUILTIN);
    scenario.places.is_there("model", name, &wanted)?;
    let text = std::fs::read_to_string(name)
        .map_err(|e| Error::user(format!("model file {name}: {e}")))?;
    ModelSpec::from_toml(&text).map_err(|why| Error::user(in_file("model file", name, &why)))
}

/// Speculative tokens need a layer that makes them.
fn check_drafts(scenario: &Scenario, model: &ModelSpec) -> Result<()> {
    let drafts = scenario.decode.mtp_tokens;
    if drafts == 0 || model.mtp_layers > 0 || scenario.workload.phase == PhaseSpec::Prefill {
        return Ok(());
    }
    Err(scenario.places.wrong(&format!(
        "decode.mtp_tokens = {drafts}: expected 0, since model {:?} has no layer that predicts more tokens (its mtp_layers = 0)",
        scenario.model
    )))
}

/// What is wrong in a file: `line:column: …`, or something of the whole file.
fn in_file(what: &str, name: &str, why: &str) -> String {
    let space = match why.starts_with(|c: char| c.is_ascii_digit()) {
        true => "",
        false => " ",
    };
    format!("{what} {name}:{space}{}", why.trim_end())
}

/// What a key takes that names something built in or a file.
fn named(what: &str, builtin: &[&str]) -> String {
    let names = builtin.join(", ");
    format!("a built-in {what} ({names}) or the path of a {what} file (TOML)")
}

/// Operator figures: the built-in ones or those of a file, and what the scenario sets over them.
pub fn calibration_of(scenario: &Scenario) -> Result<Calibration> {
    let operators = &scenario.operators;
    let base = match &operators.file {
        None => Calibration::builtin(),
        Some(name) => {
            let wanted = "the path of an operator file (TOML)";
            scenario.places.is_there("operators.file", name, wanted)?;
            let text = std::fs::read_to_string(name)
                .map_err(|e| Error::user(format!("operators.file {name}: {e}")))?;
            Calibration::from_toml(&text)
                .map_err(|why| Error::user(in_file("operators.file", name, &why)))?
        }
    };
    let set = operators.over(base);
    set.check()
        .map_err(|why| scenario.places.wrong(&format!("operators.{why}")))?;
    Ok(set)
}
