//! A kept run as one page for a browser, without anything from a network: latency distributions, throughput over
//! time with faults marked, the machine as a heat map, link classes, and the timeline of one decode step. Plain SVG,
//! readable in light and dark, and on paper.

mod charts;
mod machine;
mod timeline;

use std::fmt::Write;

use serde_json::Value;

use crate::error::Result;
use crate::report::{bytes, count, number, percent};
use crate::rundir::{RequestRow, RunDir};
use crate::trace::Read;

const STYLE: &str = include_str!("page/style.css");
const SCRIPT: &str = include_str!("page/switch.js");

/// The whole page.
///
/// # Errors
/// When a file of the run cannot be read.
pub fn render(run: &RunDir) -> Result<String> {
    let report = run.report()?;
    let requests = run.requests()?;
    let trace = match &run.manifest.trace {
        Some(_) => Some(Read::open(&run.trace_path()?)?),
        None => None,
    };
    let mut page = String::new();
    let title = format!(
        "{} serving {}",
        word(&report, "/machine"),
        word(&report, "/model")
    );
    let _ = write!(
        page,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>Supernode: {title}</title>\n<style>\n{STYLE}</style></head><body>\n\
         <header><h1>{title}</h1>{}</header>\n",
        subtitle(&report)
    );
    page.push_str(&tiles(&report));
    section(
        &mut page,
        "Latency",
        "latency",
        &latencies(&report, &requests),
    );
    section(
        &mut page,
        "Throughput over time",
        "throughput",
        &charts::over_time(&requests, &report, run.manifest.end_ps),
    );
    section(&mut page, "The machine", "machine", &machine::map(run)?);
    section(&mut page, "Links", "links", &links(&report));
    let drawn = trace.as_ref().and_then(timeline::of_busiest_step);
    let none = "<p class=\"note\">No decode step was traced message by message in this run: \
                <code>supernode run --out DIR --trace-match '**'</code> traces some.</p>";
    section(
        &mut page,
        "One decode step",
        "step",
        drawn.as_deref().unwrap_or(none),
    );
    let _ = write!(page, "<script>\n{SCRIPT}</script>\n</body></html>\n");
    Ok(page)
}

fn section(page: &mut String, title: &str, id: &str, body: &str) {
    let _ = write!(
        page,
        "<section id=\"{id}\" data-show=\"use\"><h2>{title}</h2>\n{body}</section>\n"
    );
}

fn of(report: &Value, at: &str) -> f64 {
    report.pointer(at).and_then(Value::as_f64).unwrap_or(0.0)
}

fn word(report: &Value, at: &str) -> String {
    escape(report.pointer(at).and_then(Value::as_str).unwrap_or(""))
}

/// Text that may stand in HTML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

fn subtitle(r: &Value) -> String {
    let partial = match r["partial"].as_bool() {
        Some(true) => " · stopped before its end",
        _ => "",
    };
    format!(
        "<p>{} · {} s virtual · seed {} · digest <code>{}</code>{partial}</p>",
        word(r, "/workload/name"),
        number(of(r, "/virtual_s")),
        r["seed"],
        word(r, "/digest")
    )
}

fn tiles(r: &Value) -> String {
    let tile = |value: String, name: &str| {
        format!("<div class=\"tile\"><b>{value}</b><span>{name}</span></div>")
    };
    let requests = of(r, "/requests/completed") as u64;
    [
        tile(count(requests), "requests completed"),
        tile(count(of(r, "/requests/failed") as u64), "failed"),
        tile(
            format!("{}/s", number(of(r, "/goodput/requests_per_s"))),
            "goodput",
        ),
        tile(percent(of(r, "/goodput/share")), "within the objectives"),
        tile(format!("{} ms", number(of(r, "/ttft_ms/p99"))), "TTFT p99"),
        tile(format!("{} ms", number(of(r, "/tpot_ms/p99"))), "TPOT p99"),
        tile(
            number(of(r, "/decode/tokens_per_s_per_npu")),
            "decode tokens/s per NPU",
        ),
        tile(percent(of(r, "/cache/hit_share")), "KV blocks hit"),
    ]
    .concat()
    .replacen(
        "<div class=\"tile\">",
        "<div class=\"tiles\"><div class=\"tile\">",
        1,
    ) + "</div>\n"
}

fn latencies(r: &Value, requests: &[RequestRow]) -> String {
    let done = || requests.iter().filter(|q| q.outcome == "completed");
    let ms = |ps: u64| ps as f64 / 1e9;
    let ttft = done().map(|q| ms(q.first_token_ps.saturating_sub(q.arrival_ps)));
    let tpot = done()
        .filter(|q| q.output_tokens > 1)
        .map(|q| ms(q.end_ps - q.first_token_ps) / f64::from(q.output_tokens - 1));
    let e2e = done().map(|q| ms(q.end_ps - q.arrival_ps));
    let slo = |at: &str| r.pointer(at).and_then(Value::as_f64);
    [
        charts::histogram("TTFT", ttft.collect(), slo("/slo/ttft_ms")),
        charts::histogram("TPOT", tpot.collect(), slo("/slo/tpot_ms")),
        charts::histogram("End to end", e2e.collect(), None),
    ]
    .concat()
    .replacen("<figure", "<div class=\"row\"><figure", 1)
        + "</div>\n"
}

fn links(r: &Value) -> String {
    let mut text = String::from(
        "<table><thead><tr><th>class<th>links<th>bytes<th>messages<th>mean use<th>busiest<th>queue p99 µs<th>lost</tr></thead><tbody>\n",
    );
    for (class, l) in r["links"].as_object().into_iter().flatten() {
        let max = of(l, "/utilisation_max");
        let _ = writeln!(
            text,
            "<tr><td>{}<td>{}<td>{}<td>{}<td>{}<td class=\"bar\" style=\"--share:{:.1}%\">{}<td>{}<td>{}</tr>",
            escape(class),
            count(of(l, "/links") as u64),
            bytes(of(l, "/bytes") as u64),
            count(of(l, "/messages") as u64),
            percent(of(l, "/utilisation_mean")),
            max.min(1.0) * 100.0,
            percent(max),
            number(of(l, "/queue_us_p99")),
            bytes(of(l, "/lost_bytes") as u64),
        );
    }
    text.push_str("</tbody></table>\n");
    text
}
