//! One request's way through the machine. Its stages follow each other without gaps, so they add up to its time to the
//! first token and to its end, to the picosecond.

use std::collections::BTreeMap;

use serde::Serialize;
use supernode_actors::time::Ps;
use supernode_actors::trace::{Mark, What};

use super::super::events::Key;
use super::super::read::{Read, Slice};

/// A stage, or all of a kind that follow each other (decode steps).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StageOf {
    pub stage: &'static str,
    /// Where it ended.
    pub actor: String,
    /// After the arrival.
    pub start_ps: Ps,
    pub ps: Ps,
    pub times: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RequestPath {
    pub request: u64,
    pub home: String,
    pub arrival_ps: Ps,
    pub prompt_tokens: u64,
    pub output_tokens: u64,
    /// Stages up to the first token at home: they add up to `ttft_ps`.
    pub ttft: Vec<StageOf>,
    pub ttft_ps: Option<Ps>,
    /// All stages to the end: they add up to `total_ps`.
    pub total: Vec<StageOf>,
    /// `None`: it had not ended when the trace did.
    pub total_ps: Option<Ps>,
    pub complete: Option<bool>,
    /// Of its decode steps, those with spans of its die in the trace, and that die's time in each stage of them.
    pub steps: u64,
    pub steps_seen: u64,
    pub in_steps_ps: BTreeMap<&'static str, Ps>,
}

/// Ids of all requests in a trace.
pub fn ids(trace: &Read) -> Vec<u64> {
    let arrived = trace
        .slices
        .iter()
        .filter(|s| s.what == What::Mark(Mark::Arrived));
    arrived.map(|s| s.notes.count(Key::Request)).collect()
}

/// `None` if the request is not in the trace.
pub fn of(trace: &Read, request: u64) -> Option<RequestPath> {
    let mine =
        |s: &&Slice| matches!(s.what, What::Mark(_)) && s.notes.uint(Key::Request) == Some(request);
    let slices: Vec<&Slice> = trace.slices.iter().filter(mine).collect();
    let whole = slices
        .iter()
        .find(|s| s.what == What::Mark(Mark::Arrived))?;
    let at = |s: &Slice| trace.word(s, Key::Actor).unwrap_or("?").to_string();
    let mut path = RequestPath {
        request,
        home: at(whole),
        arrival_ps: whole.start_ps,
        prompt_tokens: whole.notes.count(Key::PromptTokens),
        output_tokens: whole.notes.count(Key::OutputTokens),
        ttft: Vec::new(),
        ttft_ps: None,
        total: Vec::new(),
        total_ps: None,
        complete: None,
        steps: 0,
        steps_seen: 0,
        in_steps_ps: BTreeMap::new(),
    };
    let first = slices
        .iter()
        .find(|s| s.what == What::Mark(Mark::FirstToken));
    // The first token leaves for home where the prompt's KV is, or with the first decode step.
    let left = first.and_then(|f| {
        slices.iter().rposition(|s| {
            s.end_ps <= f.start_ps && matches!(s.what, What::Mark(Mark::HandedOff | Mark::Stepped))
        })
    });
    for (i, s) in slices.iter().enumerate() {
        let What::Mark(mark) = s.what else { continue };
        if mark == Mark::Arrived || mark.beside() {
            continue;
        }
        let stage = StageOf {
            stage: mark.stage(),
            actor: at(s),
            start_ps: s.start_ps - path.arrival_ps,
            ps: s.ps(),
            times: 1,
        };
        if left.is_some_and(|l| i <= l) {
            path.ttft.push(stage.clone());
        }
        match path.total.last_mut() {
            Some(l) if l.stage == stage.stage => {
                l.ps += stage.ps;
                l.times += 1;
                l.actor = stage.actor;
            }
            _ => path.total.push(stage),
        }
        match mark {
            Mark::Stepped => {
                path.steps += 1;
                in_step(trace, &at(s), s.notes.count(Key::Step), &mut path);
            }
            Mark::Ended => {
                path.total_ps = Some(s.end_ps - path.arrival_ps);
                path.complete = Some(s.notes.count(Key::Complete) == 1);
            }
            _ => {}
        }
    }
    if let Some(first) = first {
        let sent_ps = left.map_or(path.arrival_ps, |l| slices[l].end_ps);
        path.ttft.push(StageOf {
            stage: Mark::FirstToken.stage(),
            actor: at(first),
            start_ps: sent_ps - path.arrival_ps,
            ps: first.start_ps - sent_ps,
            times: 1,
        });
        path.ttft_ps = Some(first.start_ps - path.arrival_ps);
    }
    Some(path)
}

/// What a die did in one step.
fn in_step(trace: &Read, die: &str, step: u64, path: &mut RequestPath) {
    let mut seen = false;
    for s in &trace.slices {
        if let What::Stage(stage) = s.what
            && stage.is_decode()
            && s.notes.uint(Key::Run) == Some(step)
            && trace.actor(s.track) == die
        {
            *path.in_steps_ps.entry(stage.name()).or_default() += s.ps();
            seen = true;
        }
    }
    path.steps_seen += u64::from(seen);
}
