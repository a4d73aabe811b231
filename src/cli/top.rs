//! `supernode top`: a live machine in a terminal: throughput, latencies, hottest dies and links, faults.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Paragraph, Row, Sparkline, Table};
use serde_json::Value;

use super::remote::Remote;
use crate::error::{Error, Result};
use crate::report::{bytes, count, number, percent};

/// Watch a live machine in the terminal (q ends it)
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    remote: Remote,
}

const EVERY: Duration = Duration::from_secs(1);
/// The actors of the two tables: dies, and their lanes and RDMA ports.
const DIES: &str = "node*/npu*/die*";
const LINKS: &str = "node*/npu*/die*/*";

/// What is shown.
#[derive(Debug, Default)]
struct Seen {
    state: Value,
    points: Vec<Value>,
    dies: Vec<Value>,
    links: Vec<Value>,
    error: Option<String>,
}

impl Seen {
    fn look(remote: &Remote) -> Result<Self> {
        let list = |path: &str, key: &str| -> Result<Vec<Value>> {
            Ok(remote.get(path)?[key]
                .as_array()
                .cloned()
                .unwrap_or_default())
        };
        let actors = |glob: &str| {
            list(
                &format!("/api/actors?sort=busy&limit=12&match={glob}"),
                "actors",
            )
        };
        Ok(Self {
            state: remote.get("/api/state")?,
            points: list("/api/series", "points")?,
            dies: actors(DIES)?,
            links: actors(LINKS)?,
            error: None,
        })
    }
}

pub fn run(args: &Args) -> Result<()> {
    if !std::io::stdout().is_terminal() {
        return Err(Error::user(
            "supernode top draws on a terminal, and standard output is none: `supernode status` prints instead",
        ));
    }
    let mut seen = Seen::look(&args.remote)?;
    let mut terminal = ratatui::try_init()?;
    let ended = watch(&mut terminal, &mut seen, &args.remote);
    ratatui::restore();
    ended
}

fn watch(terminal: &mut ratatui::DefaultTerminal, seen: &mut Seen, remote: &Remote) -> Result<()> {
    let mut looked = Instant::now();
    loop {
        terminal.draw(|frame| draw(frame, seen))?;
        if event::poll(EVERY.saturating_sub(looked.elapsed()))?
            && let Event::Key(key) = event::read()?
        {
            let ctrl_c = key.modifiers == KeyModifiers::CONTROL && key.code == KeyCode::Char('c');
            if ctrl_c || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
                return Ok(());
            }
        }
        if looked.elapsed() >= EVERY {
            looked = Instant::now();
            match Seen::look(remote) {
                Ok(now) => *seen = now,
                Err(e) => seen.error = Some(e.to_string()),
            }
        }
    }
}

fn draw(frame: &mut Frame<'_>, seen: &Seen) {
    let [head, curves, tables, faults] = Layout::vertical([
        Constraint::Length(4),
        Constraint::Length(8),
        Constraint::Min(6),
        Constraint::Length(6),
    ])
    .areas(frame.area());
    header(frame, head, seen);
    let thirds = [Constraint::Ratio(1, 3); 3];
    let [rate, ttft, tpot] = Layout::horizontal(thirds).areas(curves);
    curve(frame, rate, "output tokens/s", "output_tokens_per_s", seen);
    curve(frame, ttft, "TTFT p50 ms", "ttft_p50_ms", seen);
    curve(frame, tpot, "TPOT mean ms", "tpot_mean_ms", seen);
    let [dies, links] = Layout::horizontal([Constraint::Ratio(1, 2); 2]).areas(tables);
    table(frame, dies, "busiest dies", "service", &seen.dies);
    table(frame, links, "hottest links", "queue", &seen.links);
    fault_list(frame, faults, seen);
}

fn f(v: &Value) -> f64 {
    v.as_f64().unwrap_or(0.0)
}

fn header(frame: &mut Frame<'_>, area: Rect, seen: &Seen) {
    let s = &seen.state;
    let (r, d, pace) = (&s["requests"], &s["decode"], &s["pace"]);
    let n = |v: &Value| count(v.as_u64().unwrap_or(0));
    let late = f(&pace["late_ms"]);
    let mut second = Style::new();
    if late > 100.0 {
        second = second.fg(Color::Red);
    }
    let lines = vec![
        Line::from(format!(
            "{} serving {}   {} s virtual   {} events",
            s["machine"].as_str().unwrap_or("?"),
            s["model"].as_str().unwrap_or("?"),
            number(f(&s["virtual_s"])),
            n(&s["events"])
        ))
        .style(Style::new().add_modifier(Modifier::BOLD)),
        Line::from(format!(
            "pace {} of {}, {} ms late, {} s lost",
            number(f(&pace["reached"])),
            pace["set"].as_str().unwrap_or("?"),
            number(late),
            number(f(&pace["lost_s"]))
        ))
        .style(second),
        Line::from(format!(
            "{} open, {} completed, {} failed, {} cancelled   slots {}   KV {}   prefill backlog {} tokens",
            n(&r["open"]),
            n(&r["completed"]),
            n(&r["failed"]),
            n(&r["cancelled"]),
            percent(f(&d["slots_used"]) / f(&d["slots"]).max(1.0)),
            percent(f(&d["kv_tokens"]) / f(&d["kv_tokens_max"]).max(1.0)),
            n(&s["prefill"]["backlog_tokens"])
        )),
        Line::from(seen.error.clone().unwrap_or_default()).style(Style::new().fg(Color::Red)),
    ];
    frame.render_widget(Paragraph::new(lines), area);
}

fn curve(frame: &mut Frame<'_>, area: Rect, title: &str, key: &str, seen: &Seen) {
    let width = usize::from(area.width.saturating_sub(2));
    let from = seen.points.len().saturating_sub(width);
    let values: Vec<f64> = seen.points[from..].iter().map(|p| f(&p[key])).collect();
    let now = values.last().copied().unwrap_or(0.0);
    let most = values.iter().copied().fold(0.0, f64::max);
    // Sparklines take whole numbers: a thousandth of the largest is fine enough.
    let scaled: Vec<u64> = values
        .iter()
        .map(|v| (v / most.max(1e-9) * 1_000.0) as u64)
        .collect();
    let title = format!(" {title} {} (most {}) ", number(now), number(most));
    let line = Sparkline::default()
        .block(Block::bordered().title(title))
        .data(&scaled)
        .style(Style::new().fg(Color::Cyan));
    frame.render_widget(line, area);
}

fn table(frame: &mut Frame<'_>, area: Rect, title: &str, hist: &str, actors: &[Value]) {
    let rows = actors.iter().map(|a| {
        Row::new(vec![
            format!(
                "{} {}",
                a["actor"].as_str().unwrap_or("?"),
                a["side"].as_str().unwrap_or("")
            ),
            percent(f(&a["busy_share"])),
            bytes(a["bytes"].as_u64().unwrap_or(0)),
            number(f(&a[hist]["p99_us"])),
        ])
    });
    let widths = [
        Constraint::Min(24),
        Constraint::Length(8),
        Constraint::Length(10),
        Constraint::Length(12),
    ];
    let p99 = format!("{hist} p99 µs");
    let head = Row::new(vec![
        "actor".to_string(),
        "busy".into(),
        "bytes".into(),
        p99,
    ]);
    let table = Table::new(rows, widths)
        .header(head.style(Style::new().add_modifier(Modifier::DIM)))
        .block(Block::bordered().title(format!(" {title} ")));
    frame.render_widget(table, area);
}

fn fault_list(frame: &mut Frame<'_>, area: Rect, seen: &Seen) {
    let faults = seen.state["faults"].as_array();
    let lines: Vec<Line<'_>> = faults
        .into_iter()
        .flatten()
        .map(|x| {
            let until = x["end_s"].as_f64().map_or("until cleared".into(), |end| {
                format!("until {} s", number(end))
            });
            let text = format!(
                "{}  {}  {until}",
                x["id"],
                x["fault"].as_str().unwrap_or("?")
            );
            Line::from(text).style(Style::new().fg(Color::Red))
        })
        .collect();
    let block = Block::bordered().title(" faults in force ");
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;

    #[test]
    fn both_tables_ask_for_actors_that_there_are() {
        let m = supernode_topology::Machine::builtin("mini4").unwrap();
        let dies = m.die_count() as usize;
        let each = m.planes() as usize + 1;
        assert_eq!(m.select(DIES).unwrap().len(), dies);
        assert_eq!(m.select(LINKS).unwrap().len(), dies * each);
    }

    #[test]
    fn the_terminal_shows_throughput_hot_parts_and_faults() {
        let seen = Seen {
            state: json!({
                "machine": "cloudmatrix384", "model": "deepseek-r1", "virtual_s": 12.5,
                "pace": {"reached": 0.9, "set": "1", "late_ms": 180.0, "lost_s": 1.0},
                "requests": {"open": 7}, "decode": {"slots_used": 5, "slots": 10},
                "faults": [{"id": 0, "fault": "slow node12/npu3/die1/ub4 x0.3", "end_s": 20.0}],
            }),
            points: (0..40)
                .map(|i| json!({"output_tokens_per_s": 100 * i}))
                .collect(),
            dies: vec![json!({"actor": "node1/npu2/die0", "busy_share": 0.5, "bytes": 1000})],
            links: vec![json!({"actor": "node1/npu2/die0/ub0", "queue": {"p99_us": 3.5}})],
            error: None,
        };
        let mut terminal = Terminal::new(TestBackend::new(120, 30)).unwrap();
        terminal.draw(|frame| draw(frame, &seen)).unwrap();
        let shown = terminal.backend().to_string();
        for part in [
            "cloudmatrix384 serving deepseek-r1",
            "180.0 ms late",
            "output tokens/s 3,900",
            "node1/npu2/die0",
            "node1/npu2/die0/ub0",
            "slow node12/npu3/die1/ub4 x0.3",
        ] {
            assert!(shown.contains(part), "{part}\n{shown}");
        }
    }
}
