//! Writes what arrives at a live machine as a Mooncake trace: `supernode run --workload FILE` plays it again, with the
//! same arrival times to the picosecond.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use supernode_actors::request::{Prefix, RequestSpec};
use supernode_actors::time::{PS_PER_MS, Ps};

use crate::error::{Error, Result};

#[derive(Debug)]
pub struct Recorder {
    path: PathBuf,
    file: BufWriter<File>,
    /// Trace time starts with the first arrival.
    first_ps: Option<Ps>,
    failed: Option<std::io::Error>,
}

impl Recorder {
    pub fn new(path: &Path) -> Result<Self> {
        let file = File::create(path)
            .map_err(|e| Error::user(format!("--record {}: {e}", path.display())))?;
        Ok(Self {
            path: path.to_path_buf(),
            file: BufWriter::new(file),
            first_ps: None,
            failed: None,
        })
    }

    /// Notes an arrival. Errors are kept for the end.
    pub fn arrived(&mut self, spec: &RequestSpec) {
        let at_ps = spec.arrival_ps - *self.first_ps.get_or_insert(spec.arrival_ps);
        let ids = match &spec.prefix {
            Prefix::Blocks { ids, .. } => format!(", \"hash_ids\": {ids:?}"),
            Prefix::Unique | Prefix::Cached { .. } => String::new(),
        };
        let written = writeln!(
            self.file,
            "{{\"timestamp\": {}.{:09}, \"input_length\": {}, \"output_length\": {}{ids}}}",
            at_ps / PS_PER_MS,
            at_ps % PS_PER_MS,
            spec.prompt_tokens,
            spec.output_tokens
        );
        if let Err(e) = written {
            self.failed.get_or_insert(e);
        }
    }

    pub fn finish(mut self) -> Result<()> {
        let flushed = self.file.flush();
        match self.failed.map_or(flushed, Err) {
            Ok(()) => Ok(()),
            Err(e) => Err(Error::failed(format!(
                "--record {}: {e}",
                self.path.display()
            ))),
        }
    }
}
