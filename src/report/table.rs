//! The report as aligned text. Every figure is one of the report's, under the same name.

use std::fmt::Write;

use super::{Latency, Report};
use crate::scenario::PhaseSpec;

/// Columns of names on the left.
const NAME_WIDTH: usize = 12;

pub fn render(r: &Report) -> String {
    let mut t = String::new();
    let partial = if r.partial {
        "  PARTIAL: stopped before its end"
    } else {
        ""
    };
    line(
        &mut t,
        "run",
        &format!(
            "{} serving {}, seed {}, digest {}{partial}",
            r.machine, r.model, r.seed, r.digest
        ),
    );
    workload(&mut t, r);
    let wall = r.wall_s.map_or(String::new(), |w| {
        let speed = if w > 0.0 {
            format!(", {}x real time", number(r.virtual_s / w))
        } else {
            String::new()
        };
        format!(" in {} s of wall time{speed}", number(w))
    });
    line(
        &mut t,
        "time",
        &format!(
            "{} s virtual{wall}, {} events",
            number(r.virtual_s),
            count(r.events)
        ),
    );
    let m = &r.messages;
    line(
        &mut t,
        "messages",
        &format!(
            "{} activations in {} messages, {} KV blocks, {} token, {} control",
            count(m.activation),
            count(m.activation_messages),
            count(m.kv_block),
            count(m.tokens),
            count(m.control)
        ),
    );
    let q = &r.requests;
    line(
        &mut t,
        "requests",
        &format!(
            "{} offered, {} completed, {} failed",
            count(q.offered),
            count(q.completed),
            count(q.failed)
        ),
    );
    for (why, n) in &q.failures {
        line(&mut t, "", &format!("{} failed: {why}", count(*n)));
    }
    if q.cancelled > 0 {
        let text = format!("{} cancelled by who asked for them", count(q.cancelled));
        line(&mut t, "", &text);
    }
    line(
        &mut t,
        "goodput",
        &format!(
            "{} requests/s, {} of those that ended, within TTFT {} ms and TPOT {} ms",
            number(r.goodput.requests_per_s),
            percent(r.goodput.share),
            number(r.slo.ttft_ms),
            number(r.slo.tpot_ms)
        ),
    );
    t.push('\n');
    latencies(&mut t, r);
    t.push('\n');
    pools(&mut t, r);
    let c = &r.cache;
    line(
        &mut t,
        "cache",
        &format!(
            "{} of {} blocks hit ({}; {} of prompt tokens), {} read, {} written, {} from SSD, {} blocks evicted",
            count(c.hit_blocks),
            count(c.lookup_blocks),
            percent(c.hit_share),
            percent(c.hit_tokens_share),
            bytes(c.read_bytes),
            bytes(c.write_bytes),
            bytes(c.ssd_read_bytes),
            count(c.evicted_blocks)
        ),
    );
    let e = &r.experts;
    let moved = match e.plans_made {
        0 => String::new(),
        made => format!(
            ", {} of {} new plans came into force, {} of weights moved",
            count(e.plans),
            count(made),
            bytes(e.moved_bytes)
        ),
    };
    line(
        &mut t,
        "experts",
        &format!(
            "busiest die {} x the mean load{moved}",
            number(r.experts.load_max_over_mean)
        ),
    );
    for (name, text) in r.model_load.iter().flat_map(super::weights::lines) {
        line(&mut t, name, &text);
    }
    for (pool, m) in &r.memory {
        line(
            &mut t,
            "memory",
            &format!(
                "{pool} die: {} attention, {} dense, {} experts, {} head, {} buffers, {} workspace; {} left for KV",
                bytes(m.attention_bytes),
                bytes(m.dense_bytes),
                bytes(m.experts_bytes),
                bytes(m.head_bytes),
                bytes(m.buffers_bytes + m.staging_bytes),
                bytes(m.workspace_bytes),
                bytes(m.kv_bytes)
            ),
        );
    }
    let f = &r.fidelity;
    let error = match (f.error, f.error_abs) {
        (Some(e), Some(a)) => format!(
            "; error {} (absolute {}) over {} run both ways",
            signed(e),
            percent(a),
            count(f.rechecked_steps)
        ),
        _ => String::new(),
    };
    line(
        &mut t,
        "fidelity",
        &format!(
            "{} steps at message level, {} drawn{error}",
            count(f.message_steps),
            count(f.step_steps)
        ),
    );
    layers(&mut t, r);
    links(&mut t, r);
    if !r.notes.is_empty() {
        t.push_str("\nnotes\n");
        for note in &r.notes {
            let _ = writeln!(t, "  - {note}");
        }
    }
    t
}

fn workload(t: &mut String, r: &Report) {
    let w = &r.workload;
    let phase = if w.phase == PhaseSpec::Both {
        String::new()
    } else {
        format!(", {} only", w.phase.name())
    };
    line(
        t,
        "workload",
        &format!(
            "{}: {} requests{phase}, mean {} prompt and {} output tokens",
            w.name,
            count(w.requests),
            number(w.prompt_tokens_mean),
            number(w.output_tokens_mean)
        ),
    );
    if let Some(places) = w.concurrency {
        line(
            t,
            "",
            &format!("{} in the machine at any time", count(places.into())),
        );
    }
    let rates = |r: &super::Rates| {
        format!(
            "{} requests/s, {} prompt and {} output tokens/s",
            number(r.requests_per_s),
            number(r.prompt_tokens_per_s),
            number(r.output_tokens_per_s)
        )
    };
    if let Some(offered) = &w.offered {
        line(
            t,
            "offered",
            &format!("{} over {} s", rates(offered), number(w.span_s)),
        );
    }
    line(t, "served", &rates(&w.served));
    if let Some(o) = &w.overload {
        line(
            t,
            "OVERLOAD",
            &format!(
                "{} x what was served while requests arrived",
                number(o.factor)
            ),
        );
        line(
            t,
            "",
            &format!(
                "at the last arrival {} requests were in the machine, with {} prompt and {} output tokens to go; {} s to drain",
                count(o.backlog_requests),
                count(o.backlog_prompt_tokens),
                count(o.backlog_output_tokens),
                number(o.drain_s)
            ),
        );
    }
}

fn latencies(t: &mut String, r: &Report) {
    let mut rows = vec![
        ["", "mean", "p50", "p90", "p99", "max"]
            .map(String::from)
            .to_vec(),
    ];
    let mut row = |name: &str, l: &Latency| {
        rows.push(
            std::iter::once(name.to_string())
                .chain([l.mean, l.p50, l.p90, l.p99, l.max].map(number))
                .collect(),
        );
    };
    row("TTFT ms", &r.ttft_ms);
    row("TPOT ms", &r.tpot_ms);
    row("ITL ms", &r.itl_ms);
    row("E2E ms", &r.e2e_ms);
    grid(t, &rows);
}

fn pools(t: &mut String, r: &Report) {
    let (p, d) = (&r.prefill, &r.decode);
    line(
        t,
        "prefill",
        &format!(
            "{} tokens/s per NPU on {} NPUs, {} tokens/s per TFLOPS; {} batches of {} requests, {} busy",
            number(p.tokens_per_s_per_npu),
            p.npus,
            number(p.tokens_per_s_per_tflops),
            count(p.batches),
            number(p.requests_per_batch),
            percent(p.busy_share)
        ),
    );
    line(
        t,
        "decode",
        &format!(
            "{} tokens/s per NPU on {} NPUs, {} tokens/s per TFLOPS; {} steps of {} ms, {} requests per NPU",
            number(d.tokens_per_s_per_npu),
            d.npus,
            number(d.tokens_per_s_per_tflops),
            count(d.steps),
            number(d.step_ms),
            number(d.batch_per_npu)
        ),
    );
}

fn layers(t: &mut String, r: &Report) {
    for (pool, stages) in [
        ("decode", &r.layer_us.decode),
        ("prefill", &r.layer_us.prefill),
    ] {
        if stages.is_empty() {
            continue;
        }
        let _ = writeln!(t, "\n{pool} layer, mean µs per layer and microbatch");
        let rows: Vec<Vec<String>> = stages
            .iter()
            .map(|(stage, us)| vec![stage.clone(), number(*us)])
            .collect();
        grid(t, &rows);
    }
}

fn links(t: &mut String, r: &Report) {
    if r.links.is_empty() {
        return;
    }
    t.push('\n');
    let head = [
        "links",
        "count",
        "bytes",
        "messages",
        "mean use",
        "max use",
        "queue p99 µs",
        "lost",
    ];
    let mut rows = vec![head.map(String::from).to_vec()];
    for (class, l) in &r.links {
        rows.push(vec![
            class.clone(),
            count(l.links.into()),
            bytes(l.bytes),
            count(l.messages),
            percent(l.utilisation_mean),
            percent(l.utilisation_max),
            number(l.queue_us_p99),
            bytes(l.lost_bytes),
        ]);
    }
    grid(t, &rows);
}

fn line(t: &mut String, name: &str, text: &str) {
    let _ = writeln!(t, "{name:<NAME_WIDTH$}{text}");
}

/// Columns as wide as their widest cell: the first to the left, the others, which hold figures, to the right.
pub fn grid(t: &mut String, rows: &[Vec<String>]) {
    grid_with_text(t, rows, usize::MAX);
}

/// The same, with words instead of figures from a column on.
pub fn grid_with_text(t: &mut String, rows: &[Vec<String>], text_from: usize) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| {
        rows.iter()
            .filter_map(|r| r.get(c))
            .map(|s| s.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns)
        .map(|c| {
            if c == 0 {
                width(c).max(NAME_WIDTH - 2)
            } else {
                width(c)
            }
        })
        .collect();
    for row in rows {
        let mut text = String::new();
        for (c, cell) in row.iter().enumerate() {
            if c == 0 {
                let _ = write!(text, "{cell:<w$}", w = widths[c]);
            } else if c >= text_from {
                let _ = write!(text, "  {cell:<w$}", w = widths[c]);
            } else {
                let _ = write!(text, "  {cell:>w$}", w = widths[c]);
            }
        }
        let _ = writeln!(t, "{}", text.trim_end());
    }
}

/// A whole number with thousands separated.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, d) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(d);
    }
    text
}

/// Four significant digits, without tails of zeros; thousands separated.
pub fn number(x: f64) -> String {
    if x == 0.0 {
        return "0".into();
    }
    let magnitude = x.abs();
    if magnitude >= 1_000.0 {
        let sign = if x < 0.0 { "-" } else { "" };
        return format!("{sign}{}", count(magnitude.round() as u64));
    }
    let decimals = if magnitude >= 100.0 {
        1
    } else if magnitude >= 10.0 {
        2
    } else if magnitude >= 1.0 {
        3
    } else {
        4
    };
    let text = format!("{x:.decimals$}");
    if magnitude < 0.001 {
        format!("{x:.2e}")
    } else {
        text
    }
}

/// One decimal, or two significant digits of small shares.
pub fn percent(share: f64) -> String {
    let percent = share * 100.0;
    match percent.abs() {
        0.0 => "0%".into(),
        p if p < 0.0095 => format!("{percent:.1e}%"),
        p if p < 0.095 => format!("{percent:.3}%"),
        p if p < 0.95 => format!("{percent:.2}%"),
        _ => format!("{percent:.1}%"),
    }
}

fn signed(share: f64) -> String {
    format!("{:+.2}%", share * 100.0)
}

pub fn bytes(n: u64) -> String {
    let mut value = n as f64;
    for unit in ["B", "kB", "MB", "GB", "TB"] {
        if value < 999.5 {
            return if unit == "B" {
                format!("{n} B")
            } else {
                format!("{value:.1} {unit}")
            };
        }
        value /= 1e3;
    }
    format!("{value:.1} PB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short_and_readable() {
        let got: Vec<String> = [
            0.0, 1234567.8, -1500.2, 123.456, 12.3456, 1.23456, 0.123456, 0.0001234,
        ]
        .map(number)
        .to_vec();
        assert_eq!(
            got,
            [
                "0",
                "1,234,568",
                "-1,500",
                "123.5",
                "12.35",
                "1.235",
                "0.1235",
                "1.23e-4"
            ]
        );
        assert_eq!(
            [0.0, 0.5, 0.012, 0.0042, 0.00042, 0.00001].map(percent),
            ["0%", "50.0%", "1.2%", "0.42%", "0.042%", "1.0e-3%"]
        );
        assert_eq!(
            [count(0), count(999), count(1_000), count(1_234_567)],
            ["0", "999", "1,000", "1,234,567"]
        );
        assert_eq!(
            [
                bytes(17),
                bytes(1_500),
                bytes(999_700),
                bytes(2_500_000_000_000)
            ],
            ["17 B", "1.5 kB", "1.0 MB", "2.5 TB"]
        );
    }
}
