//! The one thread that touches a live machine: takes commands, lets virtual time follow the wall, and hands out what the
//! machine has made.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;
use supernode_actors::launch::Supernode;
use supernode_actors::request::{Delivered, Delivery, RequestRecord, RequestSpec};
use supernode_actors::stats::RunStats;
use supernode_actors::time::{Ps, s_from_ps};

use super::bell::Bell;
use super::clock::{Clock, Pace};
use super::gateway::{Command, Counters, Submission};
use super::inbox::Inbox;
use super::load::Player;
use super::mailbox::{Mailbox, Ticket, Tokens};
use super::meters::Meters;
use super::record::Recorder;
use super::tracer::Tracer;
use crate::error::{Error, Result};
use crate::report::Offered;

/// Rounds are at least so far apart while the machine has something to do.
const ROUND_LEAST: Duration = Duration::from_micros(500);
/// A round gives commands a turn after so long.
const ROUND_MOST: Duration = Duration::from_millis(8);
/// A machine at rest is looked at so often.
const REST: Duration = Duration::from_millis(200);
/// Commands that are taken in one round.
const COMMANDS_MOST: usize = 4_096;
/// Records kept for the report: the latest.
const RECORDS_MOST: usize = 200_000;
/// The machine is called late when it is later than this, and that is said at most so often.
const LATE_SAID: Duration = Duration::from_millis(100);
const SAID_EVERY: Duration = Duration::from_secs(10);

/// How a machine is kept up.
pub struct Options {
    pub pace: Pace,
    pub player: Option<Player>,
    pub recorder: Option<Recorder>,
    /// Told, a line at a time, what a person at the terminal should know.
    pub say: Box<dyn FnMut(&str) + Send>,
}

/// A request in the machine.
struct Open {
    mailbox: Option<Arc<Mailbox>>,
    arrival_ps: Ps,
    last_ps: Ps,
}

pub struct Driver {
    pub machine: Supernode,
    pub clock: Clock,
    pub meters: Meters,
    pub tracer: Option<Tracer>,
    /// The latest records, oldest first, and how many older ones there were.
    pub records: VecDeque<RequestRecord>,
    pub dropped_records: u64,
    offered: VecDeque<Offered>,
    open: BTreeMap<u64, Open>,
    next_id: u64,
    last_arrival_ps: Ps,
    options: Options,
    commands: Inbox<Command>,
    counters: Arc<Counters>,
    draining: bool,
    out: Vec<Delivery>,
    /// Of the threads that requests have come from.
    bells: Vec<Arc<Bell>>,
    said: Option<Instant>,
    /// Wall time by which the machine is behind, at the last look.
    pub late: Duration,
    sampled: Instant,
}

fn late_us(clock: &Clock, now: Instant, ps: Ps) -> u32 {
    u32::try_from(clock.behind(now, ps).as_micros()).unwrap_or(u32::MAX)
}

/// A machine that has been drained.
pub struct Finished {
    pub stats: RunStats,
    pub offered: Vec<Offered>,
    pub dropped_records: u64,
    /// Nothing was left.
    pub quiet: bool,
}

impl Driver {
    pub fn new(
        machine: Supernode,
        options: Options,
        commands: Inbox<Command>,
        counters: Arc<Counters>,
    ) -> Self {
        let now = Instant::now();
        Self {
            clock: Clock::new(options.pace, now, machine.now()),
            meters: Meters::new(),
            tracer: None,
            machine,
            records: VecDeque::new(),
            dropped_records: 0,
            offered: VecDeque::new(),
            open: BTreeMap::new(),
            next_id: 0,
            last_arrival_ps: 0,
            options,
            commands,
            counters,
            draining: false,
            out: Vec::new(),
            bells: Vec::new(),
            said: None,
            late: Duration::ZERO,
            sampled: now,
        }
    }

    /// Keeps the machine up until it is told to drain and `stop` says so or nothing is left.
    ///
    /// # Errors
    /// A bug in the machine, or a recording that cannot be written.
    pub fn run(mut self, stop: &dyn Fn() -> bool) -> Result<Finished> {
        let ended = self.rounds(stop);
        for open in self.open.values() {
            if let Some(mailbox) = &open.mailbox {
                mailbox.lost();
            }
        }
        let quiet = ended?;
        if let Some(recorder) = self.options.recorder.take() {
            recorder.finish()?;
        }
        if quiet {
            let checked = self.machine.check();
            checked.map_err(|why| Error::failed(format!("the machine broke a law: {why}")))?;
        }
        Ok(self.finished(quiet))
    }

    /// The figures so far.
    pub fn stats(&self) -> (RunStats, Vec<Offered>) {
        let mut stats = self.machine.stats();
        stats.records = self.records.iter().cloned().collect();
        stats.records.sort_unstable_by_key(|r| r.id);
        (stats, self.offered.iter().copied().collect())
    }

    fn finished(&self, quiet: bool) -> Finished {
        let (stats, offered) = self.stats();
        Finished {
            stats,
            offered,
            dropped_records: self.dropped_records,
            quiet,
        }
    }

    fn rounds(&mut self, stop: &dyn Fn() -> bool) -> Result<bool> {
        loop {
            let began = Instant::now();
            self.play()?;
            self.hand_out();
            if let Some(tracer) = &mut self.tracer {
                tracer.round(&mut self.machine);
            }
            self.sample();
            if self.draining {
                if self.open.is_empty() && self.machine.next_event_ps().is_none() {
                    return Ok(true);
                }
                if stop() {
                    return Ok(false);
                }
            }
            if !self.wait(began) {
                return Ok(false);
            }
        }
    }

    /// Waits until something is due or a command comes, and takes what commands there are. False when nobody can send
    /// any more.
    fn wait(&mut self, began: Instant) -> bool {
        let now = Instant::now();
        let until = self.due(now).max(began + ROUND_LEAST).min(now + REST);
        let mut first = match self.commands.recv_deadline(until) {
            Ok(command) => Some(command),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return false,
        };
        if first.is_some() {
            // What has passed since the last round comes before what has just arrived.
            if let Some(due) = self.clock.due_ps(Instant::now())
                && self.machine.next_event_ps().is_none_or(|at| at >= due)
            {
                let _ = self.machine.run_until(due, ROUND_MOST);
            }
        }
        for _ in 0..COMMANDS_MOST {
            let Some(command) = first.take().or_else(|| self.commands.try_recv().ok()) else {
                break;
            };
            match command {
                Command::Submit(submission) => self.submit(submission),
                Command::Cancel(mailbox) => {
                    if let Some(ticket) = mailbox.ticket() {
                        self.machine.cancel(ticket.id);
                    }
                }
                Command::Do(what) => what(self),
                Command::Drain => {
                    self.draining = true;
                    self.options.player = None;
                }
            }
        }
        true
    }

    /// When the next event or arrival is due on the wall.
    fn due(&mut self, now: Instant) -> Instant {
        let reached = self.machine.now();
        let arrival = self
            .options
            .player
            .as_ref()
            .and_then(|p| p.next_ps(reached));
        let next = self
            .machine
            .next_event_ps()
            .into_iter()
            .chain(arrival)
            .min();
        match next {
            None => now + REST,
            Some(ps) => self.clock.wall_of(ps).unwrap_or(now),
        }
    }

    /// Lets virtual time go on to where it should be, with the arrivals of the workload on the way.
    fn play(&mut self) -> Result<()> {
        let started = Instant::now();
        loop {
            let due = self.clock.due_ps(Instant::now()).unwrap_or(Ps::MAX);
            let reached = self.machine.now();
            let player = self.options.player.as_ref();
            let arrival = player.and_then(|p| p.next_ps(reached));
            let until = arrival.map_or(due, |at| at.min(due));
            let left = ROUND_MOST.saturating_sub(started.elapsed());
            let reached = self
                .machine
                .run_until(until, left)
                .map_err(|e| Error::failed(format!("the machine broke: {e}")))?;
            match arrival {
                Some(at) if reached >= at && at <= due => {
                    let spec = self.options.player.as_mut().and_then(Player::take);
                    if let Some(spec) = spec {
                        self.put_in(at, spec, None);
                    }
                }
                _ => break,
            }
            if started.elapsed() >= ROUND_MOST {
                break;
            }
        }
        self.be_late();
        Ok(())
    }

    /// Notices how late the machine is, and says so when it matters.
    fn be_late(&mut self) {
        let now = Instant::now();
        if self.machine.next_event_ps().is_none() {
            self.late = Duration::ZERO;
            return;
        }
        self.late = self.clock.late(now, self.machine.now());
        let said_lately = self.said.is_some_and(|at| now - at < SAID_EVERY);
        if self.late > LATE_SAID && !said_lately {
            self.said = Some(now);
            let rate = self.rate(now);
            let text = format!(
                "cannot keep pace {}: {:.0} ms behind, {:.1} s lost so far, running at {rate:.2} virtual seconds a second",
                self.clock.pace(),
                self.late.as_secs_f64() * 1e3,
                self.clock.let_off().as_secs_f64(),
            );
            (self.options.say)(&text);
        }
    }

    /// Virtual seconds in the last second, or since the start when that was less ago.
    fn rate(&self, now: Instant) -> f64 {
        if self.meters.points.is_empty() {
            let passed = (now - self.sampled).as_secs_f64();
            return s_from_ps(self.machine.now()) / passed.max(1e-3);
        }
        self.meters.pace_reached()
    }

    fn submit(&mut self, submission: Submission) {
        let Submission {
            prompt_tokens,
            output_tokens,
            prefix,
            streams,
            mailbox,
        } = submission;
        self.meters.asked(output_tokens, streams);
        if !self.bells.iter().any(|b| Arc::ptr_eq(b, mailbox.bell())) {
            self.bells.push(Arc::clone(mailbox.bell()));
        }
        let spec = RequestSpec {
            id: 0,
            arrival_ps: 0,
            prompt_tokens,
            output_tokens,
            prefix,
        };
        let due = self.clock.due_ps(Instant::now()).unwrap_or(0);
        let at = match self.machine.next_event_ps() {
            Some(next) => due.min(next),
            None => due,
        };
        self.put_in(at, spec, Some(mailbox));
    }

    fn put_in(&mut self, at: Ps, mut spec: RequestSpec, mailbox: Option<Arc<Mailbox>>) {
        spec.id = self.next_id;
        self.next_id += 1;
        if mailbox.is_none() {
            self.counters.open.fetch_add(1, Ordering::Relaxed);
            self.meters.asked(spec.output_tokens, false);
        }
        let at = at.max(self.last_arrival_ps + 1);
        let id = spec.id;
        let (arrival_ps, home) = self.machine.submit(at, spec.clone());
        self.last_arrival_ps = arrival_ps;
        spec.arrival_ps = arrival_ps;
        if let Some(recorder) = &mut self.options.recorder {
            recorder.arrived(&spec);
        }
        if let Some(mailbox) = &mailbox {
            mailbox.accepted(Ticket {
                id,
                arrival_ps,
                home,
                late_us: late_us(&self.clock, Instant::now(), arrival_ps),
            });
        }
        if self.offered.len() == RECORDS_MOST {
            self.offered.pop_front();
        }
        self.offered.push_back(Offered {
            arrival_ps,
            prompt_tokens: spec.prompt_tokens,
            output_tokens: spec.output_tokens,
        });
        self.open.insert(
            id,
            Open {
                mailbox,
                arrival_ps,
                last_ps: 0,
            },
        );
    }

    /// Gives what the machine has made to who waits for it.
    fn hand_out(&mut self) {
        let now = Instant::now();
        let mut out = std::mem::take(&mut self.out);
        self.machine.take_deliveries(&mut out);
        for Delivery {
            request,
            at_ps,
            what,
        } in out.drain(..)
        {
            match what {
                Delivered::Tokens { count, by } => {
                    let Some(open) = self.open.get_mut(&request) else {
                        continue;
                    };
                    if open.last_ps == 0 {
                        self.meters.first_token(at_ps - open.arrival_ps, count);
                    } else {
                        self.meters.tokens(at_ps - open.last_ps, count);
                    }
                    open.last_ps = at_ps;
                    if let Some(mailbox) = &open.mailbox {
                        mailbox.put(Tokens {
                            count,
                            at_ps,
                            by,
                            late_us: late_us(&self.clock, now, at_ps),
                        });
                    }
                }
                Delivered::Ended(record) => self.ended(record),
            }
        }
        self.out = out;
        self.bells.iter().for_each(|bell| bell.ring());
    }

    fn ended(&mut self, record: Box<RequestRecord>) {
        self.counters.open.fetch_sub(1, Ordering::Relaxed);
        self.meters.ended(&record);
        if self.records.len() == RECORDS_MOST {
            self.records.pop_front();
            self.dropped_records += 1;
        }
        self.records.push_back((*record).clone());
        match self.open.remove(&record.id).and_then(|o| o.mailbox) {
            Some(mailbox) => mailbox.end(record),
            None => {
                if let Some(player) = &mut self.options.player {
                    player.ended();
                }
            }
        }
    }

    /// Once a second, a point of the curves.
    fn sample(&mut self) {
        let now = Instant::now();
        let passed = now - self.sampled;
        if passed < Duration::from_secs(1) {
            return;
        }
        self.sampled = now;
        let occupancy = self.machine.occupancy();
        self.meters.sample(
            passed,
            self.machine.now(),
            self.open.len() as u64,
            self.late,
            &occupancy,
        );
    }

    /// Requests in the machine.
    pub fn open_requests(&self) -> usize {
        self.open.len()
    }
}
