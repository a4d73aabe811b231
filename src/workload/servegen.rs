//! ServeGen client files (Xiang et al., arXiv 2505.09999): for each client of a production service its arrival
//! process in windows of ten minutes, and the distribution of its lengths. A trace is drawn from them. Two
//! forms are read: the upstream directory of `chunk-N-trace.csv` and `chunk-N-dataset.json`, and the same as
//! JSON lines, one client a line.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::draw::Draw;
use super::lines::{Lines, excerpt};
use super::{Row, Trace, Wanted};
use crate::error::{Error, Result};
use crate::scenario::Format;

/// One client: when it asks, and how much.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Client {
    client_id: u64,
    trace: Vec<Window>,
    /// Start in seconds of the time from which they hold (as text, upstream's way), to the lengths.
    dataset: BTreeMap<String, Lengths>,
}

/// Window start in s, rate per s, coefficient of variation, law of the times between arrivals, its shape and
/// scale (s).
#[derive(Clone, Debug, PartialEq, Deserialize)]
struct Window(f64, f64, f64, Option<Law>, Option<f64>, Option<f64>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum Law {
    Gamma,
    Weibull,
}

/// Length and probability, for prompts and outputs.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
struct Lengths {
    input_tokens: Vec<(f64, f64)>,
    output_tokens: Vec<(f64, f64)>,
}

/// Windows without a successor last as long as upstream's: ten minutes.
const WINDOW_S: f64 = 600.0;
/// Stream of the draws here, apart from those of other parts of a workload.
const STREAM: u64 = 0x5347_0000_0000_0000;

pub fn read_clients(lines: &mut Lines) -> Result<Vec<Client>> {
    let mut clients = Vec::new();
    while let Some(text) = lines.next()? {
        let client: std::result::Result<Client, _> = serde_json::from_str(text);
        match client {
            Ok(client) => {
                if let Err(why) = client.check() {
                    return Err(lines.wrong(None, &why));
                }
                clients.push(client);
            }
            Err(e) => {
                let why = e.to_string();
                let why = why.split(" at line ").next().unwrap_or(&why);
                let expected = "expected a ServeGen client {\"client_id\", \"trace\": [[t, rate, cv, law, shape, scale], …], \"dataset\": {…}}";
                return Err(lines.wrong(Some(e.column().max(1)), &format!("{why}: {expected}")));
            }
        }
    }
    Ok(clients)
}

/// Reads the upstream files of a directory, in the order of their numbers.
pub fn read_directory(dir: &Path) -> Result<Vec<Client>> {
    let shown = dir.display();
    let listed = fs::read_dir(dir).map_err(|e| Error::user(format!("workload {shown}: {e}")))?;
    let mut chunks: BTreeMap<u64, PathBuf> = BTreeMap::new();
    for entry in listed {
        let path = entry
            .map_err(|e| Error::user(format!("workload {shown}: {e}")))?
            .path();
        let name = path
            .file_name()
            .and_then(|n| n.to_str())
            .unwrap_or_default();
        let number = name
            .strip_prefix("chunk-")
            .and_then(|n| n.strip_suffix("-trace.csv"))
            .and_then(|n| n.parse().ok());
        if let Some(number) = number {
            chunks.insert(number, path);
        }
    }
    if chunks.is_empty() {
        return Err(Error::user(format!(
            "workload {shown} is a directory without ServeGen files: expected chunk-N-trace.csv and chunk-N-dataset.json"
        )));
    }
    let mut clients = Vec::with_capacity(chunks.len());
    for (client_id, path) in chunks {
        let client = Client {
            client_id,
            trace: read_windows(&path)?,
            dataset: read_lengths(&dir.join(format!("chunk-{client_id}-dataset.json")))?,
        };
        client
            .check()
            .map_err(|why| Error::user(format!("{}: {why}", path.display())))?;
        clients.push(client);
    }
    Ok(clients)
}

fn read_windows(path: &Path) -> Result<Vec<Window>> {
    let mut lines = Lines::open(path)?;
    let mut windows = Vec::new();
    while let Some(line) = lines.next()? {
        let fields: Vec<&str> = line.split(',').map(str::trim).collect();
        let number = |column: usize| fields.get(column).and_then(|f| f.parse::<f64>().ok());
        let window = (|| {
            let law = match *fields.get(3)? {
                "" => None,
                "Gamma" => Some(Law::Gamma),
                "Weibull" => Some(Law::Weibull),
                _ => return None,
            };
            Some(Window(
                number(0)?,
                number(1)?,
                number(2)?,
                law,
                number(4),
                number(5),
            ))
        })();
        let Some(window) = window else {
            let why = format!(
                "found {}, expected start, rate, cv, Gamma or Weibull or nothing, shape, scale",
                excerpt(line)
            );
            return Err(lines.wrong(None, &why));
        };
        windows.push(window);
    }
    Ok(windows)
}

fn read_lengths(path: &Path) -> Result<BTreeMap<String, Lengths>> {
    let shown = path.display();
    let text =
        fs::read_to_string(path).map_err(|e| Error::user(format!("workload {shown}: {e}")))?;
    let raw: BTreeMap<String, BTreeMap<String, String>> =
        serde_json::from_str(&text).map_err(|e| Error::user(format!("{shown}: {e}")))?;
    let mut all = BTreeMap::new();
    for (start, tables) in raw {
        let table = |name: &str| {
            let text = tables.get(name).map_or("{}", String::as_str);
            python_table(text).ok_or_else(|| {
                Error::user(format!(
                    "{shown}: {start}.{name}: found {}, expected {{length: probability, …}}",
                    excerpt(text)
                ))
            })
        };
        all.insert(
            start.clone(),
            Lengths {
                input_tokens: table("input_tokens")?,
                output_tokens: table("output_tokens")?,
            },
        );
    }
    Ok(all)
}

/// Upstream writes distributions as Python dictionaries; probabilities of 0 say nothing.
fn python_table(text: &str) -> Option<Vec<(f64, f64)>> {
    let inner = text.trim().strip_prefix('{')?.strip_suffix('}')?;
    let mut table = Vec::new();
    for pair in inner.split(',').filter(|p| !p.trim().is_empty()) {
        let (length, probability) = pair.split_once(':')?;
        let probability: f64 = probability.trim().parse().ok()?;
        if probability != 0.0 {
            table.push((length.trim().parse().ok()?, probability));
        }
    }
    Some(table)
}

impl Client {
    fn check(&self) -> std::result::Result<(), String> {
        let id = self.client_id;
        for (i, w) in self.trace.iter().enumerate() {
            let sane = |v: f64| v.is_finite() && v >= 0.0;
            if !sane(w.0) || !sane(w.1) || w.1 > 1e7 {
                return Err(format!(
                    "client {id}, window {i}: start {} and rate {} must be numbers from 0",
                    w.0, w.1
                ));
            }
            if i > 0 && w.0 <= self.trace[i - 1].0 {
                return Err(format!(
                    "client {id}, window {i}: start {} is not after the window before",
                    w.0
                ));
            }
            let positive = |v: Option<f64>| v.is_some_and(|v| v.is_finite() && v > 0.0);
            if w.3.is_some() && w.1 > 0.0 && !(positive(w.4) && positive(w.5)) {
                return Err(format!(
                    "client {id}, window {i}: shape and scale must be numbers above 0"
                ));
            }
        }
        for (start, lengths) in &self.dataset {
            if start.parse::<f64>().is_err() {
                return Err(format!(
                    "client {id}: the lengths of {start:?} need a start in seconds"
                ));
            }
            for (value, probability) in lengths.input_tokens.iter().chain(&lengths.output_tokens) {
                if !(0.0..=1e8).contains(value) || !(0.0..=1e9).contains(probability) {
                    return Err(format!(
                        "client {id}: found the length {value} with probability {probability}"
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Cumulated probabilities of lengths.
struct Table {
    upto: Vec<f64>,
    values: Vec<f64>,
}

impl Table {
    fn new(pairs: &[(f64, f64)]) -> Self {
        let mut sum = 0.0;
        let upto = pairs
            .iter()
            .map(|(_, p)| {
                sum += p;
                sum
            })
            .collect();
        Self {
            upto,
            values: pairs.iter().map(|(v, _)| *v).collect(),
        }
    }

    fn draw(&self, draw: &mut Draw) -> u32 {
        let total = self.upto.last().copied().unwrap_or(0.0);
        let drawn = draw.unit() * total;
        let at = self.upto.partition_point(|u| *u <= drawn);
        self.values
            .get(at.min(self.values.len().saturating_sub(1)))
            .map_or(0, |v| v.round() as u32)
    }
}

/// The lengths of one client from a time on.
struct Period {
    from_s: f64,
    input: Table,
    output: Table,
}

/// Draws the requests of all clients between `wanted.from_s` and `wanted.to_s`, times counted from the former.
///
/// A window with rate r gets exactly r times its length arrivals, as upstream counted; the times between them
/// follow the client's law, scaled together to fill the window (as upstream's own generator does).
pub fn sample(name: &str, clients: &[Client], wanted: &Wanted) -> Result<Trace> {
    let mut trace = Trace::new(name, Format::ServeGen);
    let periods: Vec<Vec<Period>> = clients.iter().map(periods).collect();
    // Window by window over all clients, so that a short cut of a long day costs little.
    let mut windows: Vec<(f64, usize, usize)> = Vec::new();
    for (c, client) in clients.iter().enumerate() {
        windows.extend(
            client
                .trace
                .iter()
                .enumerate()
                .map(|(w, window)| (window.0, c, w)),
        );
    }
    windows.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let mut end_s = 0.0f64;
    let mut lost = 0u64;
    let mut sorted_to_s = f64::NEG_INFINITY;
    for (start_s, c, w) in windows {
        let window = &clients[c].trace[w];
        let length_s = clients[c]
            .trace
            .get(w + 1)
            .map_or(WINDOW_S, |next| next.0 - start_s);
        end_s = end_s.max(start_s + length_s);
        if start_s >= wanted.to_s
            || (start_s > sorted_to_s && trace.rows.len() as u64 >= wanted.rows)
        {
            break;
        }
        sorted_to_s = start_s;
        let arrivals = (window.1 * length_s).round() as usize;
        if start_s + length_s <= wanted.from_s || arrivals == 0 {
            continue;
        }
        let Some(period) = periods[c]
            .iter()
            .rev()
            .find(|p| p.from_s <= start_s)
            .or(periods[c].first())
        else {
            lost += arrivals as u64;
            continue;
        };
        let mut draw = Draw::new(
            wanted.seed,
            STREAM | (clients[c].client_id << 20) | w as u64,
        );
        let times = arrival_times(window, arrivals, length_s, &mut draw);
        for at_s in times.into_iter().map(|t| start_s + t) {
            let (prompt_tokens, output_tokens) =
                (period.input.draw(&mut draw), period.output.draw(&mut draw));
            if at_s >= wanted.from_s && at_s < wanted.to_s {
                trace.push(Row {
                    at_s: at_s - wanted.from_s,
                    prompt_tokens,
                    output_tokens,
                    ids: None,
                });
            }
        }
    }
    trace.rows.sort_by(|a, b| a.at_s.total_cmp(&b.at_s));
    if trace.rows.is_empty() {
        return Err(Error::user(format!(
            "workload {name}: no requests in the part from {} s on that is asked for; its {} clients cover 0 s to {end_s} s",
            wanted.from_s,
            clients.len()
        )));
    }
    if lost > 0 {
        trace.notes.push(format!(
            "{lost} requests of {name} have no length distribution: left out"
        ));
    }
    trace.notes.push(format!(
        "requests of {name} are drawn from {} clients by seed: times between arrivals by each client's law in each window, \
         prompt and output lengths independently of one another (the data does not say how they go together), no shared prefixes",
        clients.len()
    ));
    Ok(trace)
}

fn periods(client: &Client) -> Vec<Period> {
    let mut periods: Vec<Period> = client
        .dataset
        .iter()
        .filter(|(_, l)| !l.input_tokens.is_empty() && !l.output_tokens.is_empty())
        .map(|(start, l)| Period {
            from_s: start.parse().unwrap_or(0.0),
            input: Table::new(&l.input_tokens),
            output: Table::new(&l.output_tokens),
        })
        .collect();
    periods.sort_by(|a, b| a.from_s.total_cmp(&b.from_s));
    periods
}

/// Times inside a window, in order.
fn arrival_times(window: &Window, arrivals: usize, length_s: f64, draw: &mut Draw) -> Vec<f64> {
    let mut gap = || match (window.3, window.4, window.5) {
        (Some(Law::Gamma), Some(shape), Some(scale)) => draw.gamma(shape, scale),
        (Some(Law::Weibull), Some(shape), Some(scale)) => draw.weibull(shape, scale),
        // Too few requests for upstream to fit a law: memoryless.
        _ => draw.exponential(1.0),
    };
    let mut at = 0.0;
    let mut times: Vec<f64> = (0..arrivals)
        .map(|_| {
            at += gap();
            at
        })
        .collect();
    let sum = at + gap();
    let scale = if sum > 0.0 { length_s / sum } else { 0.0 };
    for t in &mut times {
        // A last gap of (nearly) zero must not push an arrival into the next window.
        *t = (*t * scale).min(length_s * (1.0 - 1e-12));
    }
    times
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_drawn_as_often_as_the_table_says() {
        let pairs: Vec<(f64, f64)> = (1..=40).map(|v| (f64::from(v), f64::from(v))).collect();
        let table = Table::new(&pairs);
        let (mut draw, mut counts, n) = (Draw::new(1, 1), [0u32; 41], 400_000);
        for _ in 0..n {
            counts[table.draw(&mut draw) as usize] += 1;
        }
        for v in 1..=40u32 {
            let expected = f64::from(v) / 820.0 * f64::from(n);
            let off = (f64::from(counts[v as usize]) - expected).abs();
            assert!(
                off < 5.0 * expected.sqrt(),
                "{v}: {} for {expected}",
                counts[v as usize]
            );
        }
    }

    fn client(law: &str, shape: f64) -> Client {
        serde_json::from_str(&format!(
            r#"{{"client_id": 3, "trace": [[0, 2.0, 1.0, "{law}", {shape}, 0.5], [600, 0, 0, null, null, null], [1200, 0.5, 1.0, "Gamma", 1.0, 2.0]],
                "dataset": {{"0": {{"input_tokens": [[10, 0.25], [20, 0.75]], "output_tokens": [[5, 1.0]], "reason_ratio": []}},
                             "1200": {{"input_tokens": [], "output_tokens": [], "reason_ratio": []}}}}}}"#
        ))
        .unwrap()
    }

    #[test]
    fn each_window_has_the_requests_that_were_counted() {
        for (law, shape) in [("Gamma", 0.05), ("Gamma", 1.0), ("Weibull", 0.6)] {
            let t = sample("t", &[client(law, shape)], &Wanted::everything(1)).unwrap();
            let first = t.rows.iter().filter(|r| r.at_s < 600.0).count();
            let silent = t
                .rows
                .iter()
                .filter(|r| (600.0..1_200.0).contains(&r.at_s))
                .count();
            assert_eq!(
                (first, silent, t.rows.len()),
                (1_200, 0, 1_500),
                "{law} {shape}"
            );
            let tens = t.rows.iter().filter(|r| r.prompt_tokens == 10).count() as f64
                / t.rows.len() as f64;
            assert!((tens - 0.25).abs() < 0.05, "{tens}");
            assert!(t.rows.iter().all(|r| r.output_tokens == 5));
        }
    }

    #[test]
    fn a_part_of_the_day_is_the_same_as_in_the_whole_day() {
        let c = [client("Gamma", 1.0)];
        let day = sample("t", &c, &Wanted::everything(1)).unwrap();
        let part = sample(
            "t",
            &c,
            &Wanted {
                from_s: 100.0,
                to_s: 200.0,
                ..Wanted::everything(1)
            },
        )
        .unwrap();
        let cut: Vec<Row> = day
            .rows
            .into_iter()
            .filter(|r| (100.0..200.0).contains(&r.at_s))
            .map(|r| Row {
                at_s: r.at_s - 100.0,
                ..r
            })
            .collect();
        assert!(!cut.is_empty());
        assert_eq!(part.rows, cut);
    }

    #[test]
    fn python_dictionaries_are_tables() {
        assert_eq!(
            python_table("{45: 0.5, 46: 0.0, 47: 5e-1}"),
            Some(vec![(45.0, 0.5), (47.0, 0.5)])
        );
        assert_eq!(python_table("{}"), Some(vec![]));
        assert_eq!(python_table("[1, 2]"), None);
        assert_eq!(python_table("{a: 1}"), None);
    }
}
