//! Hot links, hot experts, stragglers and faults over all that is in a trace.

use std::collections::BTreeMap;

use serde::Serialize;
use supernode_actors::time::Ps;
use supernode_actors::trace::What;

use super::super::events::{self, Key};
use super::super::read::Read;
use super::ranked;

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Top {
    /// Links by bytes: address, bytes, time that they carried them.
    pub links: Vec<HotLink>,
    /// Experts by tokens, of those that were the busiest of their die.
    pub experts: Vec<HotExpert>,
    /// Dies and links that others waited for last, by how often and for how long after the median of the phase.
    pub stragglers: Vec<Straggler>,
    /// Faults in the order in which they struck.
    pub faults: Vec<FaultOf>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HotLink {
    pub link: String,
    pub bytes: u64,
    pub spans: u64,
    pub busy_ps: Ps,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HotExpert {
    pub expert: u64,
    pub die: String,
    pub layer: u64,
    pub tokens_max: u64,
    /// Mean tokens of a busiest expert in that layer.
    pub tokens_mean: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Straggler {
    pub who: String,
    /// Phases of ranks that waited for it last.
    pub times: u64,
    pub waited_ps: Ps,
}

/// A fault on a part; one still in force when the trace ends lasts to its end.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FaultOf {
    pub part: String,
    pub effect: String,
    pub from_ps: Ps,
    pub until_ps: Ps,
}

pub fn of(trace: &Read) -> Top {
    let mut links: BTreeMap<String, (u64, u64, Ps)> = BTreeMap::new();
    let mut stragglers: BTreeMap<String, (u64, Ps)> = BTreeMap::new();
    let mut hottest: BTreeMap<(u64, String), (u64, u64)> = BTreeMap::new();
    let mut by_layer: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    for s in &trace.slices {
        match s.what {
            What::TransferOut | What::TransferIn | What::PhaseOut | What::PhaseIn => {
                let side = match s.what {
                    What::TransferOut | What::PhaseOut => "out",
                    _ => "in",
                };
                let link = format!("{} {side}", trace.actor(s.track));
                let l = links.entry(link).or_default();
                l.0 += s.notes.count(Key::Bytes);
                l.1 += 1;
                l.2 += s.ps();
            }
            What::Stage(_) if s.notes.uint(Key::Expert).is_some() => {
                let layer = s.notes.count(Key::Layer);
                let tokens = s.notes.count(Key::ExpertTokens);
                let key = (layer, trace.actor(s.track).to_string());
                let h = hottest.entry(key).or_default();
                *h = (*h).max((tokens, s.notes.count(Key::Expert)));
                let l = by_layer.entry(layer).or_default();
                *l = (l.0 + tokens, l.1 + 1);
            }
            what if events::collects(what) => {
                if let Some(who) = trace.word(s, Key::WaitedFor) {
                    let w = stragglers.entry(who.to_string()).or_default();
                    w.0 += 1;
                    w.1 += s.notes.count(Key::WaitedPs);
                }
            }
            _ => {}
        }
    }
    let mut top = Top::default();
    for (part, effect, (from_ps, until_ps)) in trace.faults() {
        top.faults.push(FaultOf {
            part: part.into(),
            effect: effect.into(),
            from_ps,
            until_ps,
        });
    }
    for (link, bytes) in ranked(links.iter().map(|(k, v)| (k.clone(), v.0)).collect()) {
        let (_, spans, busy_ps) = links[&link];
        top.links.push(HotLink {
            link,
            bytes,
            spans,
            busy_ps,
        });
    }
    for ((layer, die), (tokens_max, expert)) in hottest {
        let (sum, n) = by_layer[&layer];
        top.experts.push(HotExpert {
            expert,
            die,
            layer,
            tokens_max,
            tokens_mean: sum as f64 / n as f64,
        });
    }
    let over = |e: &HotExpert| e.tokens_max as f64 / e.tokens_mean.max(1.0);
    top.experts.sort_by(|a, b| over(b).total_cmp(&over(a)));
    for (who, times) in ranked(stragglers.iter().map(|(k, v)| (k.clone(), v.0)).collect()) {
        let waited_ps = stragglers[&who].1;
        top.stragglers.push(Straggler {
            who,
            times,
            waited_ps,
        });
    }
    top
}
