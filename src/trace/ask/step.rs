//! What a decode step waited for: of each piece of its critical path, by how much it was longer than the same work
//! on the median rank, and whose doing that was.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use supernode_actors::time::Ps;
use supernode_actors::trace::Stage;

use super::super::events::Key;
use super::median;
use super::path::{At, Piece, StepSpans, Work};

/// A die, link or expert that the step waited for.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Cause {
    /// "die node3/npu1/die0", "link node3/npu1/die0/ub{0..6}", "link node3/npu1/sio" or "expert 17 on
    /// node3/npu1/die0".
    pub what: String,
    /// Time on the path beyond what the same work took on the median rank.
    pub excess_ps: Ps,
    /// All of its time on the path.
    pub path_ps: Ps,
    /// Stage that most of the excess was in.
    pub stage: String,
    pub layers: usize,
    /// Faults in force on it during the step, as far as the trace has them: "slow x0.3 on node3/npu1/die0/ub4".
    pub faults: Vec<String>,
}

/// One layer of one microbatch on the path.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LayerOf {
    pub layer: u64,
    pub microbatch: u64,
    pub path_ps: Ps,
    pub excess_ps: Ps,
    /// What most of the excess was.
    pub what: String,
    pub stage: String,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepPath {
    pub step: u64,
    pub ranks: usize,
    pub path_ps: Ps,
    pub excess_ps: Ps,
    /// Time on the path by stage; adds up to `path_ps`.
    pub stages_ps: BTreeMap<String, Ps>,
    /// Worst first.
    pub causes: Vec<Cause>,
    pub layers: Vec<LayerOf>,
    /// Why the path does not go back to the start of the step.
    pub broken: Option<String>,
}

/// More tokens than this share above the median make an expert hot, rather than its die slow.
const HOT: f64 = 1.15;

pub fn name(work: Work) -> String {
    match work {
        Work::Operator(s) => s.name().into(),
        Work::Prepare(s) => format!("{} prepare", s.name()),
        Work::Send(s) => format!("{} send", s.name()),
        Work::Flag(s) => format!("{} flag", s.name()),
        Work::Lanes(s) => format!("{} data", s.name()),
        Work::Assemble(s) => format!("{} assemble", s.name()),
        Work::Rest => "start".into(),
    }
}

/// A cause, its excess by stage, and where it was on the path.
type Gathered = (Cause, BTreeMap<String, Ps>, BTreeSet<At>);

pub fn of(spans: &StepSpans<'_>, step: u64) -> StepPath {
    let (pieces, broken) = spans.walk();
    let mut causes: BTreeMap<String, Gathered> = BTreeMap::new();
    let mut layers: BTreeMap<At, (LayerOf, Ps)> = BTreeMap::new();
    let mut stages_ps = BTreeMap::new();
    let mut usual = Usual {
        spans,
        known: BTreeMap::new(),
    };
    for piece in &pieces {
        let excess = piece.ps().saturating_sub(usual.ps(piece));
        let stage = name(piece.work);
        let what = usual.blame(piece);
        *stages_ps.entry(stage.clone()).or_default() += piece.ps();
        let (cause, by_stage, at) = causes.entry(what.clone()).or_default();
        cause.excess_ps += excess;
        cause.path_ps += piece.ps();
        *by_stage.entry(stage.clone()).or_default() += excess;
        at.insert(piece.at);
        let (layer, most) = layers.entry(piece.at).or_default();
        (layer.layer, layer.microbatch) = piece.at;
        layer.path_ps += piece.ps();
        layer.excess_ps += excess;
        if excess > *most {
            *most = excess;
            layer.what = what;
            layer.stage = stage;
        }
    }
    let from_ps = pieces.first().map_or(0, |p| p.start_ps);
    let until_ps = pieces.last().map_or(0, |p| p.end_ps);
    let mut causes: Vec<Cause> = causes
        .into_iter()
        .map(|(what, (cause, by_stage, at))| Cause {
            faults: faults_on(spans, &what, from_ps, until_ps),
            what,
            stage: super::ranked(by_stage).swap_remove(0).0,
            layers: at.len(),
            ..cause
        })
        .collect();
    causes.sort_by_key(|c| (std::cmp::Reverse((c.excess_ps, c.path_ps)), c.what.clone()));
    StepPath {
        step,
        ranks: spans.ranks.len(),
        path_ps: pieces.iter().map(Piece::ps).sum(),
        excess_ps: causes.iter().map(|c| c.excess_ps).sum(),
        stages_ps,
        causes,
        layers: layers.into_values().map(|(l, _)| l).collect(),
        broken,
    }
}

/// Faults in force between two times on what a cause names: on the die, or on the link.
fn faults_on(spans: &StepSpans<'_>, what: &str, from_ps: Ps, until_ps: Ps) -> Vec<String> {
    let named = what.rsplit(' ').find(|w| w.contains('/')).unwrap_or("");
    let stem = named.split('{').next().unwrap_or("");
    let link = what.starts_with("link ");
    let faults = spans.trace.faults();
    let there = faults.filter(|(part, _, (start, end))| {
        let same = match link {
            true => part.starts_with(stem),
            false => *part == stem,
        };
        same && *start < until_ps && *end > from_ps
    });
    there
        .map(|(part, effect, _)| format!("{effect} on {part}"))
        .collect()
}

/// How long work takes on the median rank.
struct Usual<'s, 'a> {
    spans: &'s StepSpans<'a>,
    known: BTreeMap<(Work, At), Ps>,
}

impl Usual<'_, '_> {
    fn ps(&mut self, piece: &Piece) -> Ps {
        let key = (piece.work, piece.at);
        if let Some(&ps) = self.known.get(&key) {
            return ps;
        }
        let at = piece.at;
        let ranks = self.spans.ranks.values();
        let ps = match piece.work {
            Work::Operator(s) => median(
                ranks
                    .filter_map(|r| r.stages.get(&(s, at)))
                    .map(|s| s.ps())
                    .collect(),
            ),
            Work::Send(s) => median(
                ranks
                    .filter_map(|r| r.sends.get(&(s, at)))
                    .map(|s| s.ps())
                    .collect(),
            ),
            Work::Assemble(s) => {
                let of = |s: &&super::super::read::Slice| {
                    s.ps().saturating_sub(s.notes.count(Key::WaitedPs))
                };
                median(
                    ranks
                        .filter_map(|r| r.stages.get(&(s, at)))
                        .map(of)
                        .collect(),
                )
            }
            Work::Lanes(_) => 0,
            // Costs that every rank has: nobody's doing.
            Work::Prepare(_) | Work::Flag(_) | Work::Rest => piece.ps(),
        };
        self.known.insert(key, ps);
        ps
    }

    /// Whose doing a piece was.
    fn blame(&self, piece: &Piece) -> String {
        let die = format!("die {}", piece.die);
        let link = format!("link {}/ub{{0..6}}", piece.die);
        match piece.work {
            Work::Operator(Stage::Experts) => self.hot_expert(piece).unwrap_or(die),
            Work::Lanes(Stage::Dispatch) => self.hot_expert(piece).unwrap_or(link),
            Work::Assemble(Stage::Dispatch) => self.hot_expert(piece).unwrap_or(die),
            Work::Lanes(_) => link,
            Work::Send(stage) => {
                let send = self.spans.ranks.get(&piece.die);
                let send = send.and_then(|r| r.sends.get(&(stage, piece.at)));
                match send.and_then(|s| self.spans.trace.word(s, Key::HeldUpBy)) {
                    Some("lanes") => match stage {
                        Stage::Combine => self.hot_expert(piece).unwrap_or(link),
                        _ => link,
                    },
                    Some("sio") => {
                        let npu = piece.die.rsplit_once('/').map_or("", |p| p.0);
                        format!("link {npu}/sio")
                    }
                    _ => die,
                }
            }
            _ => die,
        }
    }

    /// The busiest expert of a die that got clearly more tokens than the median die.
    fn hot_expert(&self, piece: &Piece) -> Option<String> {
        let tokens = |s: &super::super::read::Slice| s.notes.count(Key::Tokens);
        let key = (Stage::Experts, piece.at);
        let mine = *self.spans.ranks.get(&piece.die)?.stages.get(&key)?;
        let ranks = self.spans.ranks.values();
        let all = ranks.filter_map(|r| r.stages.get(&key).copied());
        let usual = median(all.map(tokens).collect());
        if (tokens(mine) as f64) < HOT * usual as f64 {
            return None;
        }
        let expert = mine.notes.count(Key::Expert);
        Some(format!("expert {expert} on {}", piece.die))
    }
}
