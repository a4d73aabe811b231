//! One decode step: what each of some ranks did, one line each.

use std::fmt::Write;

use supernode_actors::trace::{Stage, What};

use super::escape;
use crate::report::number;
use crate::trace::Read;
use crate::trace::ask::address_key;
use crate::trace::ask::path::{StepSpans, roots, steps};
use crate::trace::ask::step::{self, StepPath};
use crate::trace::events::Key;

const WIDTH: f64 = 1_280.0;
const LEFT: f64 = 120.0;
const LINE: f64 = 15.0;
const RANKS_MAX: usize = 24;
/// Layers that are drawn: a step has too many to tell them apart.
const LAYERS: u64 = 6;

/// Steps that are looked at to find one whose path is whole.
const CANDIDATES_MAX: usize = 8;

/// Of the first group's steps in the trace, one that is in it from start to end, and of those the one with most
/// requests; without such a one, that with the longest path.
fn busiest<'t>(trace: &'t Read, roots: &[String]) -> Option<(u64, StepSpans<'t>, StepPath)> {
    let known = steps(trace, roots, 0);
    let root = roots.first()?;
    let ended = trace
        .slices
        .iter()
        .filter(|s| s.what == What::GroupStep && trace.actor(s.track) == root);
    let mut by_requests: Vec<(u64, u64)> = ended
        .filter_map(|s| Some((s.notes.count(Key::Requests), s.notes.uint(Key::Run)?)))
        .filter(|(_, step)| known.contains(step))
        .collect();
    by_requests.sort_unstable();
    let mut best: Option<(u64, StepSpans<'t>, StepPath)> = None;
    for (_, step) in by_requests.into_iter().rev().take(CANDIDATES_MAX) {
        let spans = StepSpans::of(trace, roots, 0, step);
        let path = step::of(&spans, step);
        let whole = path.broken.is_none();
        if whole || best.as_ref().is_none_or(|b| path.path_ps > b.2.path_ps) {
            best = Some((step, spans, path));
        }
        if whole {
            break;
        }
    }
    best
}

const SHOWN: [Stage; 7] = [
    Stage::DenseLayers,
    Stage::Attention,
    Stage::Gate,
    Stage::Dispatch,
    Stage::Experts,
    Stage::Combine,
    Stage::Head,
];

/// `None` when no step has its operators in the trace.
pub fn of_busiest_step(trace: &Read) -> Option<String> {
    let roots = roots(trace);
    let (number_of_step, spans, path) = busiest(trace, &roots)?;
    let mut dies: Vec<&String> = spans.ranks.keys().collect();
    dies.sort_by_key(|d| address_key(d));
    let every = dies.len().div_ceil(RANKS_MAX).max(1);
    let mut shown: Vec<&String> = dies.iter().copied().step_by(every).collect();
    // The die that was waited for most is always there.
    if let Some(worst) = path.causes.first()
        && let Some(die) = dies.iter().find(|d| worst.what.contains(d.as_str()))
        && !shown.contains(die)
    {
        shown.push(die);
        shown.sort_by_key(|d| address_key(d));
    }
    let within = |layer: u64| layer < 3 + LAYERS;
    let drawn = |die: &str| {
        let stages = &spans.ranks[die].stages;
        stages.iter().filter(|((stage, at), _)| {
            SHOWN.contains(stage) && within(at.0) && *stage != Stage::Head
        })
    };
    let all = || shown.iter().flat_map(|d| drawn(d).map(|(_, s)| s));
    let from_ps = all().map(|s| s.start_ps).min()?;
    let to_ps = all().map(|s| s.end_ps).max()?.max(from_ps + 1);
    let x =
        |ps: u64| LEFT + (ps - from_ps) as f64 / (to_ps - from_ps) as f64 * (WIDTH - LEFT - 8.0);
    let height = shown.len() as f64 * LINE + 28.0;
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"timeline of decode step {number_of_step}\">"
    );
    for (row, die) in shown.iter().enumerate() {
        let y = row as f64 * LINE;
        let _ = write!(
            svg,
            "<text x=\"0\" y=\"{:.1}\" class=\"strong\">{}</text>",
            y + 11.0,
            escape(die)
        );
        for (&(stage, at), s) in drawn(die) {
            // Attention runs beside the MoE stream: the upper half is its.
            let upper = matches!(stage, Stage::Attention | Stage::DenseLayers);
            let (dy, h) = if upper { (1.0, 6.0) } else { (7.5, 6.0) };
            let _ = write!(
                svg,
                "<rect class=\"s-{0}\" x=\"{1:.1}\" y=\"{2:.1}\" width=\"{3:.2}\" height=\"{h}\"><title>{0}, layer {4}.{5}: {6} µs</title></rect>",
                stage.name(),
                x(s.start_ps),
                y + dy,
                (x(s.end_ps) - x(s.start_ps)).max(0.3),
                at.0,
                at.1,
                number(s.ps() as f64 / 1e6)
            );
        }
    }
    for i in 0..=4u64 {
        let ps = from_ps + (to_ps - from_ps) / 4 * i;
        let anchor = ["start", "middle", "middle", "middle", "end"][i as usize];
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{} µs</text>",
            x(ps),
            height - 6.0,
            number((ps - from_ps) as f64 / 1e6)
        );
    }
    svg.push_str("</svg>");
    let mut legend = String::from("<p class=\"legend\">");
    for stage in SHOWN {
        let _ = write!(
            legend,
            "<span><svg viewBox=\"0 0 10 10\"><rect width=\"10\" height=\"10\" class=\"s-{0}\"/></svg> {0}</span>",
            stage.name()
        );
    }
    legend.push_str("</p>\n");
    let worst = path.causes.first().map_or(String::new(), |c| {
        format!(
            ", most waited for: {} ({} µs beyond the median rank)",
            escape(&c.what),
            number(c.excess_ps as f64 / 1e6)
        )
    });
    Some(format!(
        "{legend}<figure>{svg}<figcaption>step {number_of_step}: the first {LAYERS} MoE layers on {} of {} ranks; critical path of the whole step {} ms{worst}</figcaption></figure>\n",
        shown.len(),
        dies.len(),
        number(path.path_ps as f64 / 1e9)
    ))
}
