//! The options that say which scenario is run: a file, and what is set on top of it. Every command that runs
//! scenarios takes these.

use std::path::PathBuf;

use crate::error::Result;
use crate::scenario::{Loader, Scenario, duration_s, speed_factor};

/// Which scenario.
#[derive(Clone, Debug, clap::Args)]
pub struct ScenarioArgs {
    /// Scenario file (TOML; `supernode schema` has its keys). Without one: the defaults
    pub scenario: Option<PathBuf>,

    /// Set any key of the scenario, such as decode.max_batch_per_npu=48; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,

    /// Play this trace: Mooncake JSONL, Azure or BurstGPT CSV, ServeGen clients, plain or gzip
    #[arg(long, value_name = "FILE")]
    pub workload: Option<PathBuf>,

    /// Superpose so many phase-shifted copies of the trace, each with its own KV blocks
    #[arg(allow_negative_numbers = true, long, value_name = "N")]
    pub copies: Option<u32>,

    /// Play the trace so many times as fast, such as 2x
    #[arg(allow_negative_numbers = true, long, value_name = "FACTOR", value_parser = speed_factor)]
    pub speed: Option<f64>,

    /// At most so many requests
    #[arg(allow_negative_numbers = true, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=i64::MAX as u64))]
    pub requests: Option<u64>,

    /// Requests of the first so much virtual time, such as 60s
    #[arg(allow_negative_numbers = true, long = "for", value_name = "TIME", value_parser = duration_s)]
    pub duration_s: Option<f64>,

    /// Route every activation message, or draw most decode steps from steps that were
    #[arg(long, value_name = "LEVEL", value_parser = ["message", "step"])]
    pub fidelity: Option<String>,

    /// Seed of every random draw
    #[arg(allow_negative_numbers = true, long, value_name = "N", value_parser = clap::value_parser!(u64).range(0..=i64::MAX as u64))]
    pub seed: Option<u64>,
}

impl ScenarioArgs {
    /// File first, then these options, then `--set` in order.
    pub fn loader(&self) -> Result<Loader> {
        let mut loader = self.without_sets()?;
        for assignment in &self.set {
            loader.set(assignment)?;
        }
        Ok(loader)
    }

    /// The same, but for `--set`.
    pub fn without_sets(&self) -> Result<Loader> {
        let mut loader = match &self.scenario {
            Some(path) => Loader::from_file(path)?,
            None => Loader::new(),
        };
        if let Some(file) = &self.workload {
            loader.option("--workload", "workload.kind", "trace")?;
            loader.option("--workload", "workload.file", file.display().to_string())?;
        }
        if let Some(copies) = self.copies {
            loader.option("--copies", "workload.copies", i64::from(copies))?;
        }
        if let Some(speed) = self.speed {
            loader.option("--speed", "workload.speed", speed)?;
        }
        if let Some(requests) = self.requests {
            loader.option("--requests", "workload.requests", requests as i64)?;
        }
        if let Some(duration_s) = self.duration_s {
            loader.option("--for", "workload.duration_s", duration_s)?;
        }
        if let Some(level) = &self.fidelity {
            loader.option("--fidelity", "fidelity.level", level.as_str())?;
        }
        if let Some(seed) = self.seed {
            loader.option("--seed", "seed", seed as i64)?;
        }
        Ok(loader)
    }

    pub fn load(&self) -> Result<Scenario> {
        self.loader()?.load()
    }
}
