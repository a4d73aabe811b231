//! The trace of a live machine: written as the machine goes, to a file without a name, until it is stopped, its time
//! is over or it has its full size. One at a time; the last one is kept until the next begins.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use supernode_actors::launch::Supernode;
use supernode_topology::Machine;

use crate::error::Result;
use crate::trace::{Header, Sink, Summary, TraceOptions};

/// Requests are followed when spans of actors are no longer written, but not beyond this many times the size wanted.
const BYTES_MOST: u64 = 2;

/// Where a trace is.
#[derive(Debug)]
enum State {
    /// Records are taken.
    Running(Sink),
    /// No more are; the writer has some left.
    Closing(Sink),
    Done(std::result::Result<Summary, String>),
}

/// A trace, begun at some time.
#[derive(Debug)]
pub struct Tracer {
    state: State,
    /// What was asked for; from and until are virtual times of the machine.
    pub options: TraceOptions,
    file: Arc<File>,
    full: bool,
}

/// How a trace is.
#[derive(Clone, Debug, PartialEq)]
pub struct Look {
    pub state: &'static str,
    /// Spans and counts so far; all but the bytes are known at the end only.
    pub summary: Summary,
    pub full: bool,
    pub error: Option<String>,
}

impl Tracer {
    /// Begins a trace; `options` says from when.
    ///
    /// # Errors
    /// When there is no place for its file, or nothing is selected.
    pub fn start(
        supernode: &mut Supernode,
        header: &Header,
        options: TraceOptions,
        seed: u64,
    ) -> Result<Self> {
        let machine: Arc<Machine> = Arc::clone(&supernode.shared().machine);
        let spec = options.spec(&machine, seed)?;
        let file = tempfile::tempfile().map_err(|e| {
            crate::error::Error::failed(format!("there is no place for a trace: {e}"))
        })?;
        let reader = file.try_clone().map_err(|e| {
            crate::error::Error::failed(format!("the trace could not be read again: {e}"))
        })?;
        let sink = Sink::onto(file, Path::new("live"), machine, header, &options)?;
        supernode.record(Some(spec));
        Ok(Self {
            state: State::Running(sink),
            options,
            file: Arc::new(reader),
            full: false,
        })
    }

    /// Takes what was recorded since the last round, and ends the trace when it is time.
    pub fn round(&mut self, supernode: &mut Supernode) {
        let State::Running(sink) = &mut self.state else {
            return;
        };
        supernode.hand_over(&mut |recorded| sink.take(recorded));
        self.full = sink.is_full();
        let over = supernode.now() >= self.options.until_ps
            || sink.bytes() >= BYTES_MOST * self.options.bytes_max
            || sink.is_finished();
        if over {
            self.stop(supernode);
        }
    }

    /// Nothing more is recorded.
    pub fn stop(&mut self, supernode: &mut Supernode) {
        let nothing = State::Done(Ok(Summary::default()));
        self.state = match std::mem::replace(&mut self.state, nothing) {
            State::Running(mut sink) => {
                supernode.hand_over(&mut |recorded| sink.take(recorded));
                supernode.record(None);
                sink.take(supernode.rest());
                sink.close();
                self.full = sink.is_full();
                self.options.until_ps = self.options.until_ps.min(supernode.now());
                State::Closing(sink)
            }
            other => other,
        };
        self.settle();
    }

    /// A writer that has ended gives its summary.
    fn settle(&mut self) {
        if let State::Closing(sink) = &self.state
            && sink.is_finished()
        {
            let nothing = State::Done(Ok(Summary::default()));
            if let State::Closing(sink) = std::mem::replace(&mut self.state, nothing) {
                self.state = State::Done(sink.finish().map_err(|e| e.to_string()));
            }
        }
    }

    pub fn look(&mut self) -> Look {
        self.settle();
        let so_far = |sink: &Sink| Summary {
            bytes: sink.bytes(),
            ..Summary::default()
        };
        let (state, summary, error) = match &self.state {
            State::Running(sink) => ("running", so_far(sink), None),
            State::Closing(sink) => ("closing", so_far(sink), None),
            State::Done(Ok(summary)) => ("done", summary.clone(), None),
            State::Done(Err(why)) => {
                let bytes = self.file.metadata().map_or(0, |m| m.len());
                let summary = Summary {
                    bytes,
                    ..Summary::default()
                };
                ("failed", summary, Some(why.clone()))
            }
        };
        Look {
            state,
            summary,
            full: self.full,
            error,
        }
    }

    /// The file, and how many of its bytes are a valid trace by now.
    pub fn file(&mut self) -> (Arc<File>, u64) {
        let bytes = self.look().summary.bytes;
        (Arc::clone(&self.file), bytes)
    }
}
