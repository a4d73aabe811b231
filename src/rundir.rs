//! A run that is kept: a directory with the report, the scenario, what each actor measured, and the trace. Commands
//! that ask about a run take such a directory.
//!
//! ```text
//! run.json        what this directory is, its version, and the files below
//! report.json     as `supernode run --json` writes it       scenario.toml   every key of the scenario
//! digest          16 hexadecimal digits and a line end      machine.toml    the machine, every figure
//! requests.csv    every request that ended                  actors.csv      counts of every actor that did anything
//! stages.csv      time of each die in each stage            actors.hlog     their histograms (HdrHistogram V2 log, ns)
//! trace.pftrace   the trace, if one was made: opens in the Perfetto UI
//! ```

mod actors;
mod histograms;
mod lines;
mod requests;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use supernode_actors::figures::ActorFigures;
use supernode_actors::request::RequestRecord;
use supernode_topology::Machine;

pub use actors::{ActorRow, StageRow};
pub use histograms::{Histograms, Which};
pub use requests::RequestRow;

use crate::error::{Error, Result};
use crate::report::Report;
use crate::scenario::Scenario;

/// What `run.json` says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub format: String,
    pub version: u32,
    /// Version of the program that wrote it.
    pub program: String,
    pub machine: String,
    /// Virtual time of the run, in picoseconds.
    pub end_ps: u64,
    /// File of the trace, if there is one, as seen from the directory.
    pub trace: Option<String>,
}

/// What `format` says.
const FORMAT: &str = "supernode run";
/// Raised when what is written can no longer be read as before.
const VERSION: u32 = 2;
pub const TRACE_FILE: &str = "trace.pftrace";

/// What is kept of a run.
pub struct Kept<'a> {
    pub scenario: &'a Scenario,
    pub machine: &'a Machine,
    pub report: &'a Report,
    pub end_ps: u64,
    pub records: &'a [RequestRecord],
    pub figures: &'a [ActorFigures],
    /// Where its trace was written.
    pub trace: Option<&'a Path>,
}

/// Makes the directory, or takes one that is empty or holds an earlier run.
///
/// # Errors
/// Names the directory when it is something else.
pub fn prepare(dir: &Path) -> Result<()> {
    let wrong = |why: &str| Error::user(format!("--out {}: {why}", dir.display()));
    if dir.exists() && !dir.is_dir() {
        return Err(wrong("is a file, expected a directory"));
    }
    std::fs::create_dir_all(dir).map_err(|e| wrong(&e.to_string()))?;
    let mut entries = std::fs::read_dir(dir).map_err(|e| wrong(&e.to_string()))?;
    if entries.next().is_some() && !dir.join("run.json").is_file() {
        return Err(wrong(
            "holds files that are not of a run; expected a new or empty directory, or one of an earlier run",
        ));
    }
    Ok(())
}

/// Writes everything but the trace, `run.json` last: a directory that has one is whole.
///
/// # Errors
/// Names the file that could not be written.
pub fn write(dir: &Path, kept: &Kept<'_>) -> Result<()> {
    let toml_failed = |e: toml::ser::Error| Error::failed(e.to_string());
    let scenario = toml::to_string_pretty(kept.scenario).map_err(toml_failed)?;
    let machine = toml::to_string_pretty(&kept.machine.spec).map_err(toml_failed)?;
    put(dir, "report.json", |f| {
        f.write_all(kept.report.to_json().as_bytes())
    })?;
    put(dir, "scenario.toml", |f| f.write_all(scenario.as_bytes()))?;
    put(dir, "machine.toml", |f| f.write_all(machine.as_bytes()))?;
    put(dir, "digest", |f| writeln!(f, "{}", kept.report.digest))?;
    put(dir, "requests.csv", |f| {
        requests::write(f, kept.machine, kept.records)
    })?;
    put(dir, "actors.csv", |f| {
        actors::write(f, kept.machine, kept.figures)
    })?;
    put(dir, "stages.csv", |f| {
        actors::write_stages(f, kept.machine, kept.figures)
    })?;
    put(dir, "actors.hlog", |f| {
        histograms::write(f, kept.machine, kept.figures, kept.end_ps)
    })?;
    let manifest = Manifest {
        format: FORMAT.into(),
        version: VERSION,
        program: env!("CARGO_PKG_VERSION").into(),
        machine: kept.machine.spec.name.clone(),
        end_ps: kept.end_ps,
        trace: kept.trace.map(|path| match path.parent() == Some(dir) {
            true => TRACE_FILE.into(),
            false => std::path::absolute(path)
                .unwrap_or_else(|_| path.into())
                .display()
                .to_string(),
        }),
    };
    let manifest =
        serde_json::to_string_pretty(&manifest).map_err(|e| Error::failed(e.to_string()))?;
    put(dir, "run.json", |f| writeln!(f, "{manifest}"))
}

fn put(
    dir: &Path,
    name: &str,
    content: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>,
) -> Result<()> {
    let path = dir.join(name);
    File::create(&path)
        .and_then(|file| {
            let mut file = BufWriter::new(file);
            content(&mut file)?;
            file.flush()
        })
        .map_err(|e| Error::failed(format!("cannot write {}: {e}", path.display())))
}

/// A run directory that has been recognised.
#[derive(Debug)]
pub struct RunDir {
    pub dir: PathBuf,
    pub manifest: Manifest,
    pub machine: Machine,
}

impl RunDir {
    /// # Errors
    /// Says what is missing or of another version, and what would do.
    pub fn open(dir: &Path) -> Result<Self> {
        let wrong = |why: String| Error::user(format!("{}: {why}", dir.display()));
        if !dir.is_dir() {
            return Err(wrong(
                "expected a directory that `supernode run --out` wrote".into(),
            ));
        }
        let text = std::fs::read_to_string(dir.join("run.json")).map_err(|_| {
            wrong("has no run.json: expected a directory that `supernode run --out` wrote".into())
        })?;
        let foreign = |why: &str| wrong(format!("run.json is not of a run ({why})"));
        let value: serde_json::Value =
            serde_json::from_str(&text).map_err(|e| foreign(&e.to_string()))?;
        if value["format"] != FORMAT {
            return Err(foreign("another format"));
        }
        if value["version"] != VERSION {
            return Err(wrong(format!(
                "was written as version {} (by Supernode {}), this program reads version {VERSION}: run it again",
                value["version"],
                value["program"].as_str().unwrap_or("?")
            )));
        }
        let manifest: Manifest =
            serde_json::from_value(value).map_err(|e| foreign(&e.to_string()))?;
        let path = dir.join("machine.toml");
        let machine = Machine::load(&path).map_err(|e| Error::user(e.to_string()))?;
        Ok(Self {
            dir: dir.to_path_buf(),
            manifest,
            machine,
        })
    }

    /// The trace.
    ///
    /// # Errors
    /// When the run has none.
    pub fn trace_path(&self) -> Result<PathBuf> {
        match &self.manifest.trace {
            Some(name) => Ok(self.dir.join(name)),
            None => Err(Error::user(format!(
                "{}: was kept without a trace: run it again with --out and --trace",
                self.dir.display()
            ))),
        }
    }

    pub fn actors(&self) -> Result<Vec<ActorRow>> {
        self.rows("actors.csv")
    }

    pub fn stages(&self) -> Result<Vec<StageRow>> {
        self.rows("stages.csv")
    }

    pub fn requests(&self) -> Result<Vec<RequestRow>> {
        self.rows("requests.csv")
    }

    /// Histograms by address and side.
    pub fn histograms(&self) -> Result<Histograms> {
        let path = self.dir.join("actors.hlog");
        let bytes = std::fs::read(&path).map_err(|e| unreadable(&path, &e))?;
        Histograms::read(&bytes).map_err(|why| unreadable(&path, &why))
    }

    /// The report, as JSON.
    pub fn report(&self) -> Result<serde_json::Value> {
        let path = self.dir.join("report.json");
        let text = std::fs::read_to_string(&path).map_err(|e| unreadable(&path, &e))?;
        serde_json::from_str(&text).map_err(|e| unreadable(&path, &e))
    }

    /// One of its TOML files.
    pub fn toml(&self, name: &str) -> Result<toml::Table> {
        let path = self.dir.join(name);
        let text = std::fs::read_to_string(&path).map_err(|e| unreadable(&path, &e))?;
        toml::from_str(&text).map_err(|e| unreadable(&path, &e))
    }

    fn rows<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<Vec<T>> {
        let path = self.dir.join(name);
        csv::Reader::from_path(&path)
            .and_then(|mut reader| reader.deserialize().collect())
            .map_err(|e| unreadable(&path, &e))
    }
}

fn unreadable(path: &Path, why: &dyn std::fmt::Display) -> Error {
    let why = why.to_string().replace('\n', " ");
    Error::user(format!(
        "{}: {why}; the run it belongs to must be run again",
        path.display()
    ))
}
