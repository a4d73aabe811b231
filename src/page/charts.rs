//! Histograms and lines over time, as SVG.

use std::fmt::Write;

use serde_json::Value;

use super::escape;
use crate::report::number;
use crate::rundir::RequestRow;

const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 170.0;
const LEFT: f64 = 58.0;
const BOTTOM: f64 = 24.0;
const TOP: f64 = 12.0;
const BINS: usize = 48;

fn open(width: f64, label: &str) -> String {
    format!(
        "<svg viewBox=\"0 0 {width} {HEIGHT}\" role=\"img\" aria-label=\"{}\">",
        escape(label)
    )
}

/// Fits beside an axis.
fn short(value: f64) -> String {
    if value >= 1e6 {
        format!("{} M", number(value / 1e6))
    } else {
        number(value)
    }
}

/// A distribution on a logarithmic axis, with its percentiles and the objective.
pub fn histogram(name: &str, mut ms: Vec<f64>, limit: Option<f64>) -> String {
    if ms.is_empty() {
        return format!("<figure><figcaption>{name}: nothing was measured</figcaption></figure>");
    }
    ms.sort_by(f64::total_cmp);
    let at = |q: f64| ms[((ms.len() as f64 * q).ceil() as usize).clamp(1, ms.len()) - 1];
    let low = ms[0].max(1e-3);
    let high = (ms[ms.len() - 1] * 1.0001).max(low * 1.5);
    let span = (high / low).ln();
    let x_of = |v: f64| LEFT + (v.max(low) / low).ln() / span * (WIDTH - LEFT - 8.0);
    let mut bins = [0u64; BINS];
    for v in &ms {
        let i = ((v.max(low) / low).ln() / span * BINS as f64) as usize;
        bins[i.min(BINS - 1)] += 1;
    }
    let most = bins.iter().copied().max().unwrap_or(1) as f64;
    let base = HEIGHT - BOTTOM;
    let mut svg = open(WIDTH, &format!("distribution of {name}"));
    let step = (WIDTH - LEFT - 8.0) / BINS as f64;
    for (i, n) in bins.iter().enumerate().filter(|(_, n)| **n > 0) {
        let h = *n as f64 / most * (base - TOP);
        let x = LEFT + i as f64 * step;
        let _ = write!(
            svg,
            "<rect class=\"bar1\" x=\"{x:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{h:.1}\"/>",
            base - h,
            step - 0.6
        );
    }
    let _ = write!(
        svg,
        "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{base}\" y2=\"{base}\"/>\
         <text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{}</text>",
        LEFT - 4.0,
        TOP + 8.0,
        most
    );
    for (v, anchor) in [
        (low, "start"),
        ((low * high).sqrt(), "middle"),
        (high, "end"),
    ] {
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"{anchor}\">{} ms</text>",
            x_of(v),
            HEIGHT - 8.0,
            number(v)
        );
    }
    if let Some(limit) = limit.filter(|l| (low..high).contains(l)) {
        let x = x_of(limit);
        let _ = write!(
            svg,
            "<line class=\"limit\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{base}\"/>"
        );
    }
    format!(
        "<figure>{svg}</svg><figcaption>{name}: p50 {} · p90 {} · p99 {} ms</figcaption></figure>",
        number(at(0.5)),
        number(at(0.9)),
        number(at(0.99))
    )
}

/// Requests that came and went, and tokens made, over the run; faults are shaded.
pub fn over_time(requests: &[RequestRow], report: &Value, end_ps: u64) -> String {
    let width = 1_280.0;
    let end_s = (end_ps as f64 / 1e12).max(1e-9);
    const TICKS: usize = 160;
    let tick_s = end_s / TICKS as f64;
    let at = |ps: u64| ((ps as f64 / 1e12 / tick_s) as usize).min(TICKS - 1);
    let (mut came, mut went, mut tokens) = ([0.0; TICKS], [0.0; TICKS], [0.0; TICKS]);
    for q in requests {
        came[at(q.arrival_ps)] += 1.0;
        if q.outcome == "completed" {
            went[at(q.end_ps)] += 1.0;
        }
        if q.first_token_ps > 0 && q.output_tokens > 0 {
            // Tokens come evenly between the first and the last, as far as the home can tell.
            let (from, to) = (at(q.first_token_ps), at(q.end_ps));
            let each = f64::from(q.output_tokens) / (to - from + 1) as f64;
            tokens[from..=to].iter_mut().for_each(|t| *t += each);
        }
    }
    let chart = |caption: &str, lines: &[(&str, &[f64])]| {
        let per_s: Vec<(&str, Vec<f64>)> = lines
            .iter()
            .map(|(class, v)| (*class, v.iter().map(|n| n / tick_s).collect()))
            .collect();
        let most = per_s
            .iter()
            .flat_map(|(_, v)| v.iter().copied())
            .fold(1e-9, f64::max);
        let base = HEIGHT - BOTTOM;
        let x = |s: f64| LEFT + s / end_s * (width - LEFT - 8.0);
        let mut svg = open(width, caption);
        for f in report["faults"].as_array().into_iter().flatten() {
            let s = |key: &str| f[key].as_f64();
            let Some(from) = s("injected_s") else {
                continue;
            };
            let to = s("ended_s").unwrap_or(end_s).min(end_s);
            let name = f["fault"].as_str().unwrap_or("fault");
            let _ = write!(
                svg,
                "<rect class=\"fault\" x=\"{:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{:.1}\"><title>{}</title></rect>",
                x(from),
                (x(to) - x(from)).max(2.0),
                base - TOP,
                escape(name)
            );
        }
        for (class, values) in &per_s {
            let points: Vec<String> = values
                .iter()
                .enumerate()
                .map(|(i, v)| {
                    let y = base - v / most * (base - TOP);
                    format!("{:.1},{y:.1}", x((i as f64 + 0.5) * tick_s))
                })
                .collect();
            let _ = write!(
                svg,
                "<polyline class=\"{class}\" points=\"{}\"/>",
                points.join(" ")
            );
        }
        let _ = write!(
            svg,
            "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{width}\" y1=\"{base}\" y2=\"{base}\"/>\
             <text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{}</text>",
            LEFT - 4.0,
            TOP + 8.0,
            short(most)
        );
        for i in 0..=4 {
            let s = end_s * f64::from(i) / 4.0;
            let anchor = ["start", "middle", "middle", "middle", "end"][i as usize];
            let _ = write!(
                svg,
                "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"{anchor}\">{} s</text>",
                x(s),
                HEIGHT - 8.0,
                number(s)
            );
        }
        format!("<figure>{svg}</svg><figcaption>{caption}</figcaption></figure>\n")
    };
    chart(
        "requests per second: arriving (blue) and completed (orange)",
        &[("line1", &came), ("line2", &went)],
    ) + &chart(
        "output tokens per second at the homes",
        &[("line1", &tokens)],
    )
}
