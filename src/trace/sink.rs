//! The thread that writes a trace while the machine runs: it takes records in their final order over a bounded
//! channel, and writes whole packets, so that the file is valid wherever it ends. When the disk is full the
//! machine runs on; what was written stays readable, and the failure is told once.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use crossbeam_channel::{Sender, bounded};
use supernode_actors::launch::{Recorded, Wanted};
use supernode_actors::time::Ps;
use supernode_actors::trace::{ActorSet, Record, Requests, TraceSpec, What};
use supernode_topology::{ActorId, Machine};

use super::packets::{Header, Writer};
use super::tracks::stands_for;
use super::wire::whole;
use crate::error::{Error, Result};

/// Batches that may wait for the writer before the machine does.
const BATCHES_MAX: usize = 16;
/// Bytes gathered before they are written.
const CHUNK_BYTES: usize = 256 * 1024;

/// What is traced.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceOptions {
    /// Actors whose spans are written, as an address or pattern; `None`: all.
    pub pattern: Option<String>,
    /// Virtual time of spans, and of the arrival of requests.
    pub from_ps: Ps,
    pub until_ps: Ps,
    /// Share of the requests that are followed.
    pub requests: f64,
    /// Spans of actors are written until the file has this size; requests to their end.
    pub bytes_max: u64,
}

impl TraceOptions {
    /// # Errors
    /// When the pattern selects nothing.
    pub fn spec(&self, machine: &Machine, seed: u64) -> Result<TraceSpec> {
        let pattern = self.pattern.as_deref().unwrap_or("**");
        let selected = machine
            .select(pattern)
            .map_err(|e| Error::user(format!("--trace-match: {e}")))?;
        // Faults strike a link itself; what it carries is on the track of the one that stands for it.
        let both = |a: &ActorId| [a.0, stands_for(machine, *a).0];
        Ok(TraceSpec {
            actors: Some(ActorSet::new(
                machine.actor_count(),
                selected.iter().flat_map(both),
            )),
            from_ps: self.from_ps,
            until_ps: self.until_ps,
            requests: Requests::share(self.requests, seed),
        })
    }
}

/// What came of a trace.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    pub spans: u64,
    pub bytes: u64,
    /// Spans of actors that were left out because the file had its full size.
    pub left_out: u64,
    /// Records that the machine gave up because too many came at once.
    pub lost: u64,
}

/// A trace being written.
#[derive(Debug)]
pub struct Sink {
    path: PathBuf,
    sender: Option<Sender<Recorded>>,
    state: Arc<State>,
    thread: Option<JoinHandle<std::io::Result<Summary>>>,
}

/// What the writer tells of itself as it goes.
#[derive(Debug, Default)]
struct State {
    /// Spans of actors are written no more.
    full: AtomicBool,
    /// Bytes in the file: whole packets.
    bytes: AtomicU64,
}

impl Sink {
    /// Creates the file and starts the thread.
    ///
    /// # Errors
    /// When the file cannot be created.
    pub fn create(
        path: &Path,
        machine: Arc<Machine>,
        header: &Header,
        options: &TraceOptions,
    ) -> Result<Self> {
        let file = File::create(path).map_err(|e| cannot(path, &e))?;
        Self::onto(file, path, machine, header, options)
    }

    /// The same onto an empty file that is open; `path` is what messages call it.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn onto(
        file: File,
        path: &Path,
        machine: Arc<Machine>,
        header: &Header,
        options: &TraceOptions,
    ) -> Result<Self> {
        let (sender, receiver) = bounded::<Recorded>(BATCHES_MAX);
        let state = Arc::new(State::default());
        let mut job = Job {
            file,
            writer: Writer::new(machine, header, (options.from_ps, options.until_ps)),
            bytes_max: options.bytes_max,
            state: state.clone(),
            summary: Summary::default(),
        };
        let thread = std::thread::Builder::new()
            .name("trace".into())
            .spawn(move || {
                // What the file is stands in it from the start.
                job.flush()?;
                for batch in &receiver {
                    job.take(&batch)?;
                }
                job.finish()
            })
            .map_err(|e| cannot(path, &e))?;
        Ok(Self {
            path: path.to_path_buf(),
            sender: Some(sender),
            state,
            thread: Some(thread),
        })
    }

    /// Hands over what was recorded; waits when the writer is far behind. Says what is still wanted.
    pub fn take(&mut self, recorded: Recorded) -> Wanted {
        // A writer that has failed tells so at the end.
        let gone = match &self.sender {
            Some(sender) => sender.send(recorded).is_err(),
            None => true,
        };
        if gone {
            self.sender = None;
            Wanted::Nothing
        } else if self.is_full() {
            Wanted::Requests
        } else {
            Wanted::All
        }
    }

    /// Whether spans of actors are left out because the file has its full size.
    pub fn is_full(&self) -> bool {
        self.state.full.load(Ordering::Relaxed)
    }

    /// Bytes in the file so far; up to there it is a valid trace.
    pub fn bytes(&self) -> u64 {
        self.state.bytes.load(Ordering::Acquire)
    }

    /// Nothing more comes: what is there is written without being waited for.
    pub fn close(&mut self) {
        self.sender = None;
    }

    /// Whether the writer has ended, by itself or because the sink was closed.
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits until all is written.
    ///
    /// # Errors
    /// When something could not be written: what could be is a valid trace.
    pub fn finish(mut self) -> Result<Summary> {
        self.sender = None;
        let thread = self.thread.take().expect("it is finished once");
        let path = self.path.display();
        match thread.join() {
            Ok(Ok(summary)) => Ok(summary),
            Ok(Err(e)) => Err(Error::failed(format!(
                "cannot write all of the trace to {path}: {e}; what is there is a valid trace"
            ))),
            Err(_) => Err(Error::failed(format!("the writer of {path} broke"))),
        }
    }
}

fn cannot(path: &Path, e: &std::io::Error) -> Error {
    Error::failed(format!("cannot write the trace to {}: {e}", path.display()))
}

/// Writes all it can; how much that was.
fn write(file: &mut File, bytes: &[u8]) -> (usize, std::io::Result<()>) {
    let mut written = 0;
    while written < bytes.len() {
        match file.write(&bytes[written..]) {
            Ok(0) => return (written, Err(ErrorKind::WriteZero.into())),
            Ok(n) => written += n,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return (written, Err(e)),
        }
    }
    (written, Ok(()))
}

struct Job {
    file: File,
    writer: Writer,
    bytes_max: u64,
    state: Arc<State>,
    summary: Summary,
}

impl Job {
    fn take(&mut self, batch: &Recorded) -> std::io::Result<()> {
        self.summary.lost += batch.lost;
        for record in &batch.records {
            self.record(record);
            if self.writer.bytes().len() >= CHUNK_BYTES {
                self.flush()?;
            }
        }
        // What is there now survives whatever ends the program.
        self.flush()
    }

    fn record(&mut self, record: &Record) {
        let of_actor = !matches!(record.what, What::Mark(_) | What::Fault | What::FaultOver);
        if of_actor && self.summary.bytes + self.writer.bytes().len() as u64 >= self.bytes_max {
            self.state.full.store(true, Ordering::Relaxed);
            self.summary.left_out += 1;
            return;
        }
        self.writer.record(record);
    }

    fn flush(&mut self) -> std::io::Result<()> {
        let packets = std::mem::take(self.writer.bytes());
        let (written, result) = write(&mut self.file, &packets);
        if let Err(e) = result {
            // Half a packet is no packet: what is whole stays.
            self.summary.bytes += whole(&packets[..written]) as u64;
            let _ = self.file.set_len(self.summary.bytes);
            self.state
                .bytes
                .store(self.summary.bytes, Ordering::Release);
            return Err(e);
        }
        self.summary.bytes += packets.len() as u64;
        self.state
            .bytes
            .store(self.summary.bytes, Ordering::Release);
        *self.writer.bytes() = packets;
        self.writer.bytes().clear();
        Ok(())
    }

    fn finish(mut self) -> std::io::Result<Summary> {
        self.writer.finish();
        self.flush()?;
        self.file.flush()?;
        self.summary.spans = self.writer.spans;
        Ok(self.summary)
    }
}
