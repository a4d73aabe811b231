//! One direction of a part's lanes and of its node's uplinks: how they are, and what the part believes of them.
//!
//! How links are is worked out once and kept until a fault strikes one of them or is over, or a flapping one turns; what
//! messages pay is kept until the belief changes as well. Only draws are left to each message.

use super::toll::{Found, LinkState, OneWay, Spread, Terms, Toll};
use crate::runtime::Rng;
use crate::time::Ps;

/// How the links of a side are, until `until_ps`.
#[derive(Clone, Debug)]
pub struct View {
    pub lanes: Vec<LinkState>,
    /// By plane, then L2 chip.
    pub chips: Vec<LinkState>,
    /// A flapping link turns then.
    pub until_ps: Ps,
    /// A fault is in force on some of the links.
    pub struck: bool,
}

/// How a belief differs from what acknowledgements tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Difference {
    None,
    /// A lane or chip that is believed in lets nothing through.
    Dead,
    Worse,
    Better,
}

/// What is worked out of a view and a belief.
#[derive(Clone, Debug)]
struct Kept {
    view: View,
    /// What acknowledgements tell of lanes, then of chips.
    quality: Vec<f64>,
    difference: Difference,
    /// For messages within the node, and to or from another.
    spread: [Option<Spread>; 2],
    one_way: [Option<OneWay>; 2],
}

/// What a part believes of its own side, one direction.
#[derive(Clone, Debug)]
pub struct Side {
    /// Of lanes, then of chips by plane.
    believed: Vec<f64>,
    /// When it will have found out that this is no longer so.
    due_ps: Option<Ps>,
    kept: Option<Kept>,
}

impl Side {
    /// All are believed to be good.
    pub fn new(lanes: usize, chips: usize) -> Self {
        Self {
            believed: vec![1.0; lanes + chips],
            due_ps: None,
            kept: None,
        }
    }

    /// A fault has struck one of its links, or is over.
    pub fn forget(&mut self) {
        self.kept = None;
    }

    /// How its links are is known at `now`.
    pub fn knows(&self, now: Ps) -> bool {
        self.kept.as_ref().is_some_and(|k| now < k.view.until_ps)
    }

    /// Takes over how its links are.
    pub fn look(&mut self, view: View, terms: &Terms) {
        let links = view.lanes.iter().chain(&view.chips);
        let quality: Vec<f64> = links.map(|s| s.quality(terms)).collect();
        self.kept = Some(Kept {
            difference: difference(&self.believed, &quality),
            quality,
            view,
            spread: [None, None],
            one_way: [None, None],
        });
    }

    fn kept(&mut self) -> &mut Kept {
        self.kept.as_mut().expect("its links were looked at")
    }

    /// Nothing is wrong with it, and it believes so.
    pub fn is_as_new(&self) -> bool {
        self.kept.as_ref().is_some_and(|k| !k.view.struck)
            && self.believed.iter().all(|b| *b == 1.0)
    }

    /// No lane lets anything through.
    pub fn is_cut_off(&mut self) -> bool {
        self.kept().view.lanes.iter().all(|s| s.factor == 0.0)
    }

    /// Brings the belief up to date once the time that finding out takes is over.
    pub fn learn(&mut self, terms: &Terms, now: Ps) -> Option<Found> {
        let difference = self.kept().difference;
        let takes_ps = match difference {
            Difference::None => {
                self.due_ps = None;
                return None;
            }
            Difference::Dead => terms.ack_ps,
            Difference::Worse => terms.reweigh_ps,
            Difference::Better => terms.probe_ps,
        };
        if now < *self.due_ps.get_or_insert(now + takes_ps) {
            return None;
        }
        self.due_ps = None;
        let kept = self.kept.as_mut().expect("it was just there");
        self.believed.copy_from_slice(&kept.quality);
        kept.difference = Difference::None;
        kept.spread = [None, None];
        kept.one_way = [None, None];
        Some(match difference {
            Difference::Better => Found::Better,
            _ => Found::Worse,
        })
    }

    /// What a message of `bytes` pays that is spread over lanes and chips.
    pub fn spread(&mut self, remote: bool, bytes: u64, terms: &Terms, rng: &mut Rng) -> Toll {
        let Kept { view, spread, .. } = self.kept.as_mut().expect("its links were looked at");
        let View { lanes, chips, .. } = view;
        spread[usize::from(remote)]
            .get_or_insert_with(|| Spread::new(&self.believed, lanes, chips, remote, terms))
            .toll(lanes.len(), bytes, terms, rng)
    }

    /// What a small message pays, which takes one lane and, to or from another node, one chip.
    pub fn one_way(&mut self, remote: bool, terms: &Terms, rng: &mut Rng) -> Toll {
        let Kept { view, one_way, .. } = self.kept.as_mut().expect("its links were looked at");
        one_way[usize::from(remote)]
            .get_or_insert_with(|| OneWay::new(&self.believed, &view.lanes, &view.chips, remote))
            .toll(terms, rng)
    }
}

fn difference(believed: &[f64], quality: &[f64]) -> Difference {
    let (mut dead, mut worse, mut better) = (false, false, false);
    for (b, q) in believed.iter().zip(quality) {
        dead |= *q == 0.0 && *b > 0.0;
        worse |= q < b;
        better |= q > b;
    }
    match (dead, worse, better) {
        (true, ..) => Difference::Dead,
        (_, true, _) => Difference::Worse,
        (_, _, true) => Difference::Better,
        _ => Difference::None,
    }
}
