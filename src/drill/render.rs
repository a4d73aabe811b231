//! What drills cost as a table for people, as Markdown, and as JSON for programs.

use super::Row;
use crate::report::{count, grid_with_text, number};

const HEADS: [(&str, &str); 11] = [
    ("", "lost"),
    ("", "fault"),
    ("noticed", "after"),
    ("at work", "again after"),
    ("started", "again"),
    ("", "failed"),
    ("goodput", "lost"),
    ("back to", "95% after"),
    ("TTFT", "p99 ms"),
    ("TPOT", "p50 ms"),
    ("TPOT", "p99 ms"),
];

fn span(s: Option<f64>) -> String {
    match s {
        None => "-".into(),
        Some(s) if s < 1.0 => format!("{} ms", number(s * 1e3)),
        Some(s) => format!("{} s", number(s)),
    }
}

fn cells(row: &Row) -> Vec<String> {
    let mut cells = vec![row.name.clone(), row.faults.join("; ")];
    if let Some(why) = &row.error {
        cells.push(why.clone());
        return cells;
    }
    cells.extend([
        span(row.noticed_s),
        span(row.recovered_s),
        count(row.retried),
        count(row.failed),
        format!("{} ({:.1}%)", row.lost, row.lost_share * 100.0),
        span(row.back_to_95_s),
        number(row.ttft_p99_ms),
        number(row.tpot_p50_ms),
        number(row.tpot_p99_ms),
    ]);
    cells
}

/// Rows with what failed below each, and whether all requests are accounted for.
pub fn to_table(rows: &[Row]) -> String {
    let mut text = String::new();
    let head = |of: &dyn Fn(&(&str, &str)) -> String| HEADS.iter().map(of).collect();
    let mut grid = vec![head(&|h| h.0.to_string()), head(&|h| h.1.to_string())];
    grid.extend(rows.iter().map(cells));
    grid_with_text(&mut text, &grid, 1);
    for row in rows {
        for why in &row.failures {
            text.push_str(&format!("{} {}: {why}\n", row.name, row.faults.join("; ")));
        }
    }
    let unaccounted: u64 = rows.iter().map(|r| r.unaccounted).sum();
    text.push_str(&format!(
        "{} runs; requests that ended neither complete nor with a reason: {unaccounted}\n",
        rows.len()
    ));
    text
}

pub fn to_markdown(rows: &[Row]) -> String {
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let head = HEADS
        .iter()
        .map(|h| format!("{} {}", h.0, h.1).trim().to_string());
    let mut text = line(head.collect());
    text.push_str(&format!("{}|\n", "|---".repeat(HEADS.len())));
    for row in rows {
        let mut cells = cells(row);
        if !cells[1].is_empty() {
            cells[1] = format!("`{}`", cells[1]);
        }
        text.push_str(&line(cells));
    }
    text
}

pub fn to_json(rows: &[Row]) -> String {
    let mut text = serde_json::to_string_pretty(rows).expect("rows hold only finite numbers");
    text.push('\n');
    text
}
