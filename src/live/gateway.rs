//! The HTTP side's handle on the machine: puts requests in, gives them up, asks the driver. Admission is decided here,
//! without waiting for anybody.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use supernode_actors::request::Prefix;

use super::bell::Bell;
use super::driver::Driver;
use super::inbox::Outbox;
use super::mailbox::Mailbox;

/// What the driver is told.
pub enum Command {
    Submit(Submission),
    Cancel(Arc<Mailbox>),
    /// A look at the machine, or a change to it, between two windows.
    Do(Box<dyn FnOnce(&mut Driver) + Send>),
    /// Take nothing new, finish what there is, and end.
    Drain,
}

/// A request on its way into the machine.
pub struct Submission {
    pub prompt_tokens: u32,
    pub output_tokens: u32,
    pub prefix: Prefix,
    pub streams: bool,
    pub mailbox: Arc<Mailbox>,
}

/// What does not change while the machine is up.
#[derive(Clone, Debug)]
pub struct Facts {
    pub model: String,
    pub machine: String,
    pub max_context: u32,
    /// Tokens of KV that one decode die has memory for: no request can be larger.
    pub kv_tokens_max: u64,
    pub vocab: u32,
    /// Requests that may be in the machine at once.
    pub requests_max: u64,
    /// Unix seconds.
    pub created: u64,
    pub started: Instant,
    pub addresses: Arc<dyn Addresses>,
}

/// The address of any actor.
pub trait Addresses: std::fmt::Debug + Send + Sync {
    fn actor(&self, actor: u32) -> String;
    fn cpu(&self, cpu: u32) -> String;
}

impl Addresses for supernode_topology::Machine {
    fn actor(&self, actor: u32) -> String {
        self.address(supernode_topology::ActorId(actor))
    }

    fn cpu(&self, cpu: u32) -> String {
        self.address(self.cpu(cpu))
    }
}

/// Counted by both sides.
#[derive(Debug, Default)]
pub struct Counters {
    /// Requests that were let in and have not ended, those on their way in among them.
    pub open: AtomicU64,
    pub rejected: AtomicU64,
    /// Answers that ended by themselves, or at a stop string.
    pub stops: AtomicU64,
    pub draining: AtomicBool,
    pub http: super::meters::HttpCounters,
}

/// The driver has ended.
#[derive(Debug)]
pub struct Gone;

#[derive(Clone)]
pub struct Gateway {
    commands: Outbox<Command>,
    pub facts: Arc<Facts>,
    pub counters: Arc<Counters>,
    /// Of the thread that this handle is used on.
    pub bell: Arc<Bell>,
}

/// Why a request is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    Full,
    Draining,
}

impl Gateway {
    pub fn new(commands: Outbox<Command>, facts: Facts, counters: Arc<Counters>) -> Self {
        Self {
            commands,
            facts: Arc::new(facts),
            counters,
            bell: Arc::default(),
        }
    }

    /// A handle for the answers of this thread.
    pub fn on_this_thread(&self) -> Self {
        Self {
            bell: Bell::on_this_thread(),
            ..self.clone()
        }
    }

    /// Takes `n` places in the machine; they are given back one by one as the requests end.
    pub fn admit(&self, n: u64) -> Result<(), Refusal> {
        if self.counters.draining.load(Ordering::Relaxed) {
            return Err(Refusal::Draining);
        }
        let most = self.facts.requests_max;
        let taken = self
            .counters
            .open
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| {
                (open + n <= most).then_some(open + n)
            });
        if taken.is_err() {
            self.counters.rejected.fetch_add(n, Ordering::Relaxed);
            return Err(Refusal::Full);
        }
        Ok(())
    }

    /// Puts a request in that was admitted.
    pub fn submit(&self, submission: Submission) {
        let mailbox = Arc::clone(&submission.mailbox);
        if self.commands.send(Command::Submit(submission)).is_err() {
            self.counters.open.fetch_sub(1, Ordering::Relaxed);
            mailbox.lost();
        }
    }

    pub fn cancel(&self, mailbox: Arc<Mailbox>) {
        let _ = self.commands.send(Command::Cancel(mailbox));
    }

    /// Has the driver do something between two windows, and waits for the answer.
    pub async fn ask<T: Send + 'static>(
        &self,
        what: impl FnOnce(&mut Driver) -> T + Send + 'static,
    ) -> Result<T, Gone> {
        let (answer, answered) = tokio::sync::oneshot::channel();
        let command = Command::Do(Box::new(move |driver| {
            let _ = answer.send(what(driver));
        }));
        self.commands.send(command).map_err(|_| Gone)?;
        answered.await.map_err(|_| Gone)
    }

    pub fn drain(&self) {
        self.counters.draining.store(true, Ordering::Relaxed);
        let _ = self.commands.send(Command::Drain);
    }
}
