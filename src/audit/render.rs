//! An audit as text for people: the claims, what stands behind them, and what bounds them.

use std::fmt::Write;

use super::{Audit, Examination, Row, Trial, Turned, Verdict};
use crate::report::{grid_with_text, number, percent};

/// Assumed figures listed for each run, and the move below which they are not.
const MOVES_SHOWN: usize = 8;
const MOVE_MIN: f64 = 0.002;

pub fn to_table(audit: &Audit) -> String {
    let mut t = String::new();
    claims(&mut t, &audit.claims);
    for row in &audit.claims {
        behind(&mut t, row);
    }
    for e in &audit.examined {
        examined(&mut t, e);
    }
    t
}

fn claims(t: &mut String, rows: &[Row]) {
    let head = [
        "claim",
        "published",
        "came out",
        "difference",
        "verdict",
        "unit",
    ];
    let mut table = vec![head.map(String::from).to_vec()];
    for row in rows {
        let published = match (row.published, row.at_most) {
            (Some(p), _) => number(p),
            (None, Some(limit)) => format!("< {}", number(limit)),
            (None, None) => String::new(),
        };
        table.push(vec![
            row.claim.clone(),
            published,
            row.came_out.map_or(String::new(), number),
            row.difference.map_or(String::new(), signed),
            verdict(row.verdict).into(),
            row.unit.clone(),
        ]);
    }
    grid_with_text(t, &table, 4);
}

fn verdict(v: Verdict) -> &'static str {
    match v {
        Verdict::Holds => "holds",
        Verdict::Fails => "FAILS",
        Verdict::Open => "open",
    }
}

fn behind(t: &mut String, row: &Row) {
    let _ = writeln!(t, "\n{}: {}", row.claim, row.says);
    if let Some(why) = &row.why {
        let _ = writeln!(t, "  {why}");
    }
    for b in &row.beside {
        let came_out = b.came_out.map_or("nothing".into(), number);
        let difference = b
            .difference
            .map_or(String::new(), |d| format!(" ({})", signed(d)));
        let _ = writeln!(t, "  with {}: {came_out}{difference}", b.set);
    }
    if let Some(turned) = &row.turned {
        turned_by(t, turned);
    }
    for command in &row.commands {
        let _ = writeln!(t, "  $ {command}");
    }
}

/// Says what turns a claim, and which of what does not was run to find out.
fn turned_by(t: &mut String, turned: &Turned) {
    let list = |trials: &[Trial]| {
        let said = trials.iter().map(|trial| {
            let came_out = trial.came_out.map_or("nothing".into(), number);
            format!("{} = {} ({came_out})", trial.key, number(trial.value))
        });
        said.collect::<Vec<_>>().join(", ")
    };
    let moves = "a fifth more or less of";
    let _ = match turned.by.as_slice() {
        [] => writeln!(t, "  not turned by {moves} any assumed figure"),
        by => writeln!(t, "  turned by {moves}: {}", list(by)),
    };
    let rest = "what moves the examined figure too little to be tried";
    let _ = match turned.not_by.as_slice() {
        [] => writeln!(t, "  not tried: {rest}"),
        not_by => writeln!(
            t,
            "  tried, and does not: {}; not tried: {rest}",
            list(not_by)
        ),
    };
}

fn examined(t: &mut String, e: &Examination) {
    let set: String = e.set.iter().map(|s| format!(" --set {s}")).collect();
    let _ = writeln!(
        t,
        "\n{} of {}{set}, over its first {} s\n  {}, {} of the {} with every operator at its peak and no fixed times",
        e.figure,
        e.scenario,
        e.until_s,
        number(e.value),
        percent(e.of_limit),
        number(e.limit)
    );
    let bounds: Vec<String> = e
        .bounds
        .iter()
        .map(|b| format!("{} {}", b.resource, percent(b.share)))
        .collect();
    let rest = 1.0 - e.bounds.iter().map(|b| b.share).sum::<f64>();
    let _ = writeln!(
        t,
        "  time bound by: {}, waiting and the rest {}",
        bounds.join(", "),
        percent(rest)
    );
    let head = ["  assumed", "value", "20% less", "20% more"];
    let mut rows = vec![head.map(String::from).to_vec()];
    let shown = e
        .moves
        .iter()
        .take(MOVES_SHOWN)
        .take_while(|m| m.most() >= MOVE_MIN);
    for m in shown {
        rows.push(vec![
            format!("  {}", m.key),
            number(m.value),
            m.less.map_or(String::new(), signed),
            m.more.map_or(String::new(), signed),
        ]);
    }
    let others = &e.moves[rows.len() - 1..];
    grid_with_text(t, &rows, usize::MAX);
    if let Some(next) = others.first() {
        let _ = writeln!(
            t,
            "  each of the other {} moves it by {} at most",
            others.len(),
            percent(next.most())
        );
    }
}

fn signed(share: f64) -> String {
    format!("{:+.1}%", share * 100.0)
}
