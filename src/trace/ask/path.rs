//! The critical path of one decode step, walked back from the rank that was done last: what it did itself, then whom
//! it waited for, then what that one did. Pieces follow each other without gaps, from the step's end to its start.

use std::collections::{BTreeMap, BTreeSet};

use supernode_actors::time::Ps;
use supernode_actors::trace::{Stage, What};

use super::super::events::Key;
use super::super::read::{Read, Slice};
use super::address_key;

/// Layer and microbatch.
pub type At = (u64, u64);

/// What was on the path for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Work {
    /// An operator of a die: dense layers, attention, gate, experts, head.
    Operator(Stage),
    /// Getting ready to send.
    Prepare(Stage),
    /// Sending, until the first flag leaves.
    Send(Stage),
    /// From the first flag leaving to the last flag that the waiting rank needed.
    Flag(Stage),
    /// Data queueing at the waiting rank's lanes after the last flag.
    Lanes(Stage),
    /// Putting together what has come.
    Assemble(Stage),
    /// Between two operators, with nothing to wait for: the start of the step, the root's word on its way.
    Rest,
}

/// A piece of the path.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// Address of the die that did it, or at whose lanes it was.
    pub die: String,
    pub work: Work,
    pub at: At,
    pub start_ps: Ps,
    pub end_ps: Ps,
}

impl Piece {
    pub fn ps(&self) -> Ps {
        self.end_ps - self.start_ps
    }
}

/// One rank's spans in the step.
#[derive(Debug, Default)]
pub struct Rank<'a> {
    pub stages: BTreeMap<(Stage, At), &'a Slice>,
    pub sends: BTreeMap<(Stage, At), &'a Slice>,
    pub step: Option<&'a Slice>,
}

/// All ranks of one group in one step, by address.
#[derive(Debug)]
pub struct StepSpans<'a> {
    pub trace: &'a Read,
    pub ranks: BTreeMap<String, Rank<'a>>,
    /// The step as its root saw it.
    pub whole: Option<&'a Slice>,
}

/// Decode groups in a trace: the roots' addresses.
pub fn roots(trace: &Read) -> Vec<String> {
    let all: BTreeSet<_> = trace
        .slices
        .iter()
        .filter(|s| s.what == What::GroupStep)
        .map(|s| address_key(trace.actor(s.track)))
        .collect();
    let named = |key: &Vec<(String, u64)>| {
        let parts = key.iter().map(|(name, n)| format!("{name}{n}"));
        parts.collect::<Vec<_>>().join("/")
    };
    all.iter().map(named).collect()
}

/// Steps of a group whose operators are in the trace.
pub fn steps(trace: &Read, roots: &[String], group: usize) -> Vec<u64> {
    let seen: BTreeSet<u64> = trace
        .slices
        .iter()
        .filter(|s| s.what == What::Stage(Stage::Attention))
        .filter(|s| group_of(roots, trace.actor(s.track)) == group)
        .filter_map(|s| s.notes.uint(Key::Run))
        .collect();
    seen.into_iter().collect()
}

/// Groups are neighbouring dies; the first is the root.
fn group_of(roots: &[String], die: &str) -> usize {
    let key = address_key(die);
    let before = roots.iter().take_while(|r| address_key(r) <= key);
    before.count().saturating_sub(1)
}

impl<'a> StepSpans<'a> {
    pub fn of(trace: &'a Read, roots: &[String], group: usize, step: u64) -> Self {
        let mut ranks: BTreeMap<String, Rank<'a>> = BTreeMap::new();
        let mut whole = None;
        for s in &trace.slices {
            if s.notes.uint(Key::Run) != Some(step) {
                continue;
            }
            let die = trace.actor(s.track);
            let at = (s.notes.count(Key::Layer), s.notes.count(Key::Microbatch));
            match s.what {
                What::Stage(_) | What::Send(_) | What::Step | What::GroupStep
                    if group_of(roots, die) != group => {}
                What::GroupStep => whole = Some(s),
                What::Stage(stage) if stage.is_decode() => {
                    let rank = ranks.entry(die.into()).or_default();
                    rank.stages.insert((stage, at), s);
                }
                What::Send(stage) if stage.is_decode() => {
                    let rank = ranks.entry(die.into()).or_default();
                    rank.sends.insert((stage, at), s);
                }
                What::Step => ranks.entry(die.into()).or_default().step = Some(s),
                _ => {}
            }
        }
        ranks.retain(|_, r| !r.stages.is_empty());
        Self {
            trace,
            ranks,
            whole,
        }
    }

    /// The path, first piece first; and why it could not be walked to the start, if so.
    pub fn walk(&self) -> (Vec<Piece>, Option<String>) {
        let last = self
            .ranks
            .iter()
            .max_by_key(|(_, r)| r.stages.values().map(|s| s.end_ps).max().unwrap_or(0));
        let Some((die, rank)) = last else {
            return (
                Vec::new(),
                Some("no rank's operators are in the trace".into()),
            );
        };
        let mut walk = Walk {
            spans: self,
            pieces: Vec::new(),
            die: die.clone(),
            now_ps: rank.stages.values().map(|s| s.end_ps).max().unwrap_or(0),
        };
        // Bounded by the number of spans: every turn goes back in time or ends.
        let turns = self.ranks.values().map(|r| r.stages.len()).sum::<usize>();
        let mut broken = None;
        for _ in 0..=turns {
            match walk.back() {
                Ok(true) => {}
                Ok(false) => break,
                Err(why) => {
                    broken = Some(why);
                    break;
                }
            }
        }
        walk.pieces.reverse();
        (walk.pieces, broken)
    }
}

struct Walk<'s, 'a> {
    spans: &'s StepSpans<'a>,
    pieces: Vec<Piece>,
    die: String,
    now_ps: Ps,
}

impl Walk<'_, '_> {
    /// From now back to `to_ps`.
    fn piece(&mut self, work: Work, at: At, to_ps: Ps) {
        let end_ps = self.now_ps;
        self.now_ps = to_ps.min(end_ps);
        if self.now_ps < end_ps {
            self.pieces.push(Piece {
                die: self.die.clone(),
                work,
                at,
                start_ps: self.now_ps,
                end_ps,
            });
        }
    }

    /// One stage back. `false`: this is where the step began.
    fn back(&mut self) -> Result<bool, String> {
        let spans = self.spans;
        let Some(rank) = spans.ranks.get(&self.die) else {
            return Err(format!("{} is not in the trace", self.die));
        };
        // What ended just now on this die; waits are not what anyone waited for.
        let ended = rank
            .stages
            .iter()
            .filter(|((stage, _), s)| {
                *stage != Stage::WaitMoeStream && s.end_ps <= self.now_ps && s.ps() > 0
            })
            .max_by_key(|((stage, _), s)| (s.end_ps, *stage));
        let Some((&(stage, at), slice)) = ended else {
            let began = rank.step.map_or(self.now_ps, |s| s.start_ps);
            self.piece(Work::Rest, (0, 0), began);
            return Ok(false);
        };
        self.piece(Work::Rest, at, slice.end_ps);
        match stage {
            Stage::Dispatch | Stage::Combine => self.collected(stage, at, slice)?,
            _ => self.piece(Work::Operator(stage), at, slice.start_ps),
        }
        Ok(true)
    }

    /// Back over a phase, to the rank whose flag came last.
    fn collected(&mut self, stage: Stage, at: At, slice: &Slice) -> Result<(), String> {
        let spans = self.spans;
        let over_ps = slice.start_ps + slice.notes.count(Key::WaitedPs);
        self.piece(Work::Assemble(stage), at, over_ps);
        let word = spans.trace.word(slice, Key::WaitedFor);
        let waited_for = word.ok_or("the trace does not say who was waited for")?;
        let own_lanes = waited_for.contains("/ub");
        let send_of = |die: &str| spans.ranks.get(die).and_then(|r| r.sends.get(&(stage, at)));
        let source = if own_lanes {
            // Data was still coming in: its last sender's flag was here before.
            let senders = spans.ranks.iter().filter_map(|(die, r)| {
                let s = r.sends.get(&(stage, at))?;
                (s.end_ps <= self.now_ps).then_some((s.end_ps, die.clone()))
            });
            senders.max().map(|(_, die)| die)
        } else {
            Some(waited_for.to_string())
        };
        let source = source.ok_or("no sender of the phase is in the trace")?;
        let send = send_of(&source)
            .ok_or_else(|| format!("what {source} sent is not in the trace: trace all dies, and the step from its start"))?;
        let work = match own_lanes {
            true => Work::Lanes(stage),
            false => Work::Flag(stage),
        };
        self.piece(work, at, send.end_ps);
        self.die = source;
        self.piece(Work::Send(stage), at, send.start_ps);
        // Before it sent, it ran its gate or its experts.
        let before = match stage {
            Stage::Dispatch => Stage::Gate,
            _ => Stage::Experts,
        };
        let ready = spans.ranks[&self.die].stages.get(&(before, at));
        let ready_ps = ready.map_or(self.now_ps, |s| s.end_ps);
        self.piece(Work::Prepare(stage), at, ready_ps);
        if let Some(s) = ready {
            self.piece(Work::Operator(before), at, s.start_ps);
        }
        Ok(())
    }
}
