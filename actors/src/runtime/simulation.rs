//! The coordinator: holds the shards between slices, sends them to the executors, and decides when a run ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{Actor as _, Addr};
use crossbeam_channel::bounded;

use super::executor::{Done, Executor, Slice, Tally, Terms};
use super::pace::{Pace, Placement};
use super::profile::{KindProfile, Profile};
use super::rng::fold;
use super::shard::{Core, Shard};
use super::spread::connect;
use super::{Actor, Model, OUTSIDE, RuntimeConfig, RuntimeError, Transport, panics, queue};
use crate::time::Ps;

/// The first slices are short, to learn what windows hold.
const FIRST_SLICE: Duration = Duration::from_millis(2);
/// Shards return to the coordinator at least this often.
const SLICE_MOST: Duration = Duration::from_millis(20);

/// Why a run returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// No event is left anywhere.
    Finished,
    /// All events before `until` are done, and others are left.
    Until,
    /// The observer said so.
    Stopped,
}

/// The observer's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    Continue,
    Stop,
}

/// What an observer sees, at a window boundary.
#[derive(Clone, Debug)]
pub struct SliceReport {
    /// Virtual time of the latest event.
    pub now_ps: Ps,
    /// Events so far, over all calls of `run`.
    pub events: u64,
    /// Events that wait.
    pub pending: u64,
    /// Windows in this call of `run`.
    pub windows: u64,
    /// Threads in use right now.
    pub executors: usize,
    /// Wall time since this call of `run`.
    pub wall: Duration,
}

/// A machine of actors, ready to run.
pub struct Simulation<M: Model> {
    models: Vec<M>,
    cores: Vec<Core<M>>,
    threads: Threads,
    pace: Pace,
    owner: Arc<[u16]>,
    transport: Transport,
    /// Of the machine this runs on.
    cores_available: usize,
    injected: u64,
    /// Everything before is done.
    floor_ps: Ps,
    slice: Duration,
    failed: Option<RuntimeError>,
}

impl<M: Model> Simulation<M> {
    /// # Errors
    /// When the configuration does not fit together; the message says what would.
    pub fn new(config: RuntimeConfig, models: Vec<M>) -> Result<Self, RuntimeError> {
        config.check(models.len())?;
        panics::install();
        let available = std::thread::available_parallelism().map_or(1, usize::from);
        let executors = config.executors.unwrap_or(available).min(config.shards);
        let lookahead: Arc<[Ps]> = config.lookahead.as_slice().into();
        let cores = (0..config.shards)
            .map(|id| Core::new(id as u16, &config, &lookahead))
            .collect();
        let pace = match (executors, config.executors) {
            (1, _) => Pace::fixed(Placement::Together),
            (_, Some(_)) => Pace::fixed(Placement::Spread),
            (_, None) => Pace::adaptive(),
        };
        Ok(Self {
            models,
            cores,
            threads: Threads::start(executors)?,
            pace,
            owner: config.owner,
            transport: config.transport,
            cores_available: available,
            injected: 0,
            floor_ps: 0,
            slice: FIRST_SLICE,
            failed: None,
        })
    }

    /// Puts an event in from outside. A time that has passed, or an actor that does not exist, ends the next
    /// [`Simulation::run`] with an error.
    pub fn inject(&mut self, time: Ps, to: Actor, msg: M::Msg) {
        if self.failed.is_some() {
            return;
        }
        let shard = self.owner.get(to as usize).map_or(0, |&s| usize::from(s));
        let order = queue::order(OUTSIDE, self.injected);
        self.injected += 1;
        let now = self.floor_ps;
        // Nothing has been promised by the outside.
        self.cores[shard].post(now, OUTSIDE, 0, time, order, to, msg);
    }

    /// Handles events in order until none is left, `until` is reached (events at that time or later stay), or the
    /// observer stops. The observer is called about every `wall_slice`.
    ///
    /// # Errors
    /// The first error in the order of events, if a model fails or panics or breaks a rule of the runtime. The
    /// simulation cannot go on after one.
    pub fn run(
        &mut self,
        until: Option<Ps>,
        wall_slice: Duration,
        observe: &mut dyn FnMut(&SliceReport) -> Flow,
    ) -> Result<Ended, RuntimeError> {
        self.run_with(until, wall_slice, observe, &mut |_, _| ())
    }

    /// As [`Simulation::run`]; `between` sees the models whenever the shards are back (every few milliseconds, and at
    /// the end), with the time before which no event is left.
    ///
    /// # Errors
    /// As [`Simulation::run`].
    pub fn run_with(
        &mut self,
        until: Option<Ps>,
        wall_slice: Duration,
        observe: &mut dyn FnMut(&SliceReport) -> Flow,
        between: &mut dyn FnMut(&mut [M], Ps),
    ) -> Result<Ended, RuntimeError> {
        let started = Instant::now();
        let mut observed = started;
        let mut windows = 0;
        let until_ps = until.unwrap_or(Ps::MAX);
        let slice_most = wall_slice.min(SLICE_MOST);
        loop {
            if let Some(e) = &self.failed {
                return Err(e.clone());
            }
            let begun = Instant::now();
            let result = self.run_slice(until_ps, begun + self.slice.min(slice_most));
            let tally = match result {
                Ok(tally) => tally,
                Err(e) => {
                    self.failed = Some(e.clone());
                    return Err(e);
                }
            };
            windows += tally.windows;
            self.pace.learn(&tally, begun.elapsed().as_nanos() as u64);
            self.slice = (self.slice * 2).min(SLICE_MOST);
            self.floor_ps = self
                .cores
                .iter()
                .map(|c| c.now())
                .max()
                .unwrap_or(0)
                .max(self.floor_ps);
            let next_ps = self.cores.iter_mut().map(|c| c.horizon().0).min();
            between(&mut self.models, next_ps.unwrap_or(Ps::MAX));
            if tally.done {
                let left = self.cores.iter().any(|c| c.pending() > 0);
                if left {
                    self.floor_ps = self.floor_ps.max(until_ps);
                }
                return Ok(if left { Ended::Until } else { Ended::Finished });
            }
            if observed.elapsed() >= wall_slice {
                observed = Instant::now();
                let report = SliceReport {
                    now_ps: self.now(),
                    events: self.events(),
                    pending: self.cores.iter().map(|c| c.pending() as u64).sum(),
                    windows,
                    executors: match self.pace.placement() {
                        Placement::Together => 1,
                        Placement::Spread => self.threads.executors.len(),
                    },
                    wall: started.elapsed(),
                };
                if observe(&report) == Flow::Stop {
                    return Ok(Ended::Stopped);
                }
            }
        }
    }

    /// Sends the shards out and gets them back.
    fn run_slice(&mut self, until: Ps, deadline: Instant) -> Result<Tally, RuntimeError> {
        let spread = self.threads.executors.len();
        let terms = Terms {
            until,
            deadline,
            transport: self.transport,
            events_per_word: self.pace.events_per_word(),
            spread,
        };
        let shards = self
            .models
            .drain(..)
            .zip(self.cores.drain(..))
            .map(|(model, core)| Shard { model, core });
        let (mut groups, exchanges): (Vec<Vec<Shard<M>>>, Vec<_>) = match self.pace.placement() {
            Placement::Together => (vec![shards.collect()], vec![None]),
            Placement::Spread => {
                let mut groups: Vec<Vec<Shard<M>>> = (0..spread).map(|_| Vec::new()).collect();
                let mut count = 0;
                for shard in shards {
                    groups[count % spread].push(shard);
                    count += 1;
                }
                (
                    groups,
                    connect(spread, count, self.cores_available)
                        .into_iter()
                        .map(Some)
                        .collect(),
                )
            }
        };
        let replies: Vec<_> = groups
            .drain(..)
            .zip(exchanges)
            .zip(&self.threads.executors)
            .map(|((group, exchange), executor)| {
                let (reply, replied) = bounded(1);
                executor.do_send(Slice::new(group, terms, exchange, reply));
                replied
            })
            .collect();

        let mut total = Tally {
            done: true,
            ..Tally::default()
        };
        let mut back: Vec<Shard<M>> = Vec::new();
        let mut lost = None;
        for (i, replied) in replies.into_iter().enumerate() {
            let Ok(Done { shards, tally }) = replied.recv() else {
                lost = lost.or(Some(i));
                continue;
            };
            back.extend(shards);
            total.windows = total.windows.max(tally.windows);
            total.events += tally.events;
            total.critical += tally.critical;
            total.busy_ns += tally.busy_ns;
            total.done &= tally.done;
            total.broken |= tally.broken;
        }
        back.sort_by_key(|s| s.core.id);
        let first = back
            .iter_mut()
            .filter_map(Shard::take_error)
            .min_by_key(|(key, _)| *key);
        for Shard { model, core } in back {
            self.models.push(model);
            self.cores.push(core);
        }
        match (lost, first) {
            (Some(executor), _) => Err(RuntimeError::ExecutorLost(executor)),
            (None, Some((_, error))) => Err(error),
            (None, None) => Ok(total),
        }
    }

    /// The models, by shard. After [`RuntimeError::ExecutorLost`] those of the lost executor are missing.
    pub fn models(&self) -> &[M] {
        &self.models
    }

    pub fn models_mut(&mut self) -> &mut [M] {
        &mut self.models
    }

    /// The digest of the history of all events so far: equal for equal histories, whatever the shards.
    pub fn digest(&self) -> u64 {
        let mut digest = 0x6a09_e667_f3bc_c908;
        for (actor, &shard) in self.owner.iter().enumerate() {
            let chain = self
                .cores
                .get(usize::from(shard))
                .map_or(0, |c| c.digest_of(actor));
            digest = fold(
                digest ^ 0x9e37_79b9_7f4a_7c15,
                chain ^ 0xd1b5_4a32_d192_ed03,
            );
        }
        digest
    }

    /// Events handled so far.
    pub fn events(&self) -> u64 {
        self.cores.iter().map(|c| c.events).sum()
    }

    /// Virtual time that has been reached: of the last event, or `until`.
    pub fn now(&self) -> Ps {
        self.floor_ps
    }

    /// Measures wall time by kind of actor from now on.
    pub fn measure_profile(&mut self) {
        for core in &mut self.cores {
            core.profile
                .get_or_insert_with(|| Box::new(Profile::new(M::kind_names().len())));
        }
    }

    /// Time of the earliest event that waits.
    pub fn next_event_ps(&mut self) -> Option<Ps> {
        let earliest = self.cores.iter_mut().map(|c| c.horizon().0).min();
        earliest.filter(|&ps| ps < Ps::MAX)
    }

    /// Lets virtual time pass when nothing is due before `ps`: later injections are not earlier than that.
    pub fn advance_to(&mut self, ps: Ps) {
        let next = self.next_event_ps().unwrap_or(Ps::MAX);
        self.floor_ps = self.floor_ps.max(ps.min(next));
    }

    /// Wall time by kind of actor; empty unless the configuration asked for it.
    pub fn profile(&self) -> Vec<KindProfile> {
        let mut kinds: Vec<KindProfile> = Vec::new();
        for profile in self.cores.iter().filter_map(|c| c.profile.as_ref()) {
            if kinds.is_empty() {
                kinds.extend(M::kind_names().iter().map(|&kind| KindProfile {
                    kind,
                    events: 0,
                    wall_ns: 0,
                }));
            }
            for (sum, &(events, ticks)) in kinds.iter_mut().zip(&profile.kinds) {
                sum.events += events;
                sum.wall_ns += profile.clock.delta_as_nanos(0, ticks);
            }
        }
        kinds
    }
}

/// The executors' threads: an actix system of their own, so that nothing depends on where `run` is called.
struct Threads {
    executors: Vec<Addr<Executor>>,
    system: actix_rt::System,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Threads {
    fn start(count: usize) -> Result<Self, RuntimeError> {
        let (started, starting) = bounded(1);
        let thread = std::thread::Builder::new()
            .name("supernode-system".into())
            .spawn(move || {
                let runner = actix_rt::System::new();
                let (arbiters, executors): (Vec<_>, Vec<_>) = runner.block_on(async {
                    (0..count)
                        .map(|_| {
                            let arbiter = actix_rt::Arbiter::new();
                            let executor =
                                Executor::start_in_arbiter(&arbiter.handle(), |_| Executor);
                            (arbiter, executor)
                        })
                        .unzip()
                });
                let _ = started.send((executors, actix_rt::System::current()));
                let _ = runner.run();
                for arbiter in arbiters {
                    arbiter.stop();
                    let _ = arbiter.join();
                }
            })
            .map_err(|e| RuntimeError::Config(format!("cannot start a thread: {e}")))?;
        let (executors, system) = starting.recv().map_err(|_| {
            RuntimeError::Config(
                "the executors could not be started: is a thread limit in force?".into(),
            )
        })?;
        Ok(Self {
            executors,
            system,
            thread: Some(thread),
        })
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.executors.clear();
        self.system.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
