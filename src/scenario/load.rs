//! Reading a scenario: the file, then what the command line sets on top of it, then the check of every value.
//! Each key remembers where it was set, so that a wrong value is reported at its place.

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::de::{DeTable, Deserializer};
use toml::{Table, Value};

use super::base::{Named, Shelf, merge};
use super::places::Places;
use super::{Scenario, check, keys, ranges};
use crate::error::{Error, Result};

/// Collects what makes up a scenario. Later settings win over earlier ones and over the file.
#[derive(Clone, Debug, Default)]
pub struct Loader {
    table: Table,
    places: Places,
}

impl Loader {
    /// Starts from the defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts from a scenario file and those that it builds on.
    pub fn from_file(path: &Path) -> Result<Self> {
        Shelf::Disk.load(path)
    }

    /// Starts from a scenario that is in the program: `files` are paths and texts, and `path` is one of them.
    pub fn from_builtin(files: &[(&str, &str)], path: &str) -> Result<Self> {
        Shelf::Builtin(files).load(Path::new(path))
    }

    /// Starts from the text of a scenario; `name` is what messages call it, and paths in it are relative to
    /// `dir`.
    pub fn from_text(name: &str, text: &str, dir: &Path) -> Result<Self> {
        Shelf::Disk.load_text(name, text, dir)
    }

    /// What one file says, and the base that it names.
    pub(super) fn parse(name: &str, text: &str, dir: &Path) -> Result<(Self, Option<Named>)> {
        let at = |span: Option<Range<usize>>| {
            let (line, column) = place(text, span.map_or(0, |s| s.start));
            format!("{name}:{line}:{column}")
        };
        let mut document = DeTable::parse(text).map_err(|e| {
            let what = match e.message() {
                "duplicate key" => duplicate(text, e.span()),
                other => one_line(other),
            };
            Error::user(format!("{}: {what}", at(e.span())))
        })?;
        let base = Named::take(&mut document, text, at)?;
        let mut entries = Vec::new();
        flatten(document.get_ref(), "", &mut entries);
        for e in &entries {
            if keys::find(&e.path).is_none() {
                let advice = keys::advice(&e.path);
                return Err(Error::user(format!(
                    "{}: unknown key {}: {advice}",
                    at(Some(e.key.clone())),
                    e.path
                )));
            }
        }
        if let Some(e) = entries
            .iter()
            .find(|e| !e.table && keys::is_section(&e.path))
        {
            let path = &e.path;
            return Err(Error::user(format!(
                "{}: {path}: expected a table of keys, such as [{path}]",
                at(Some(e.key.clone()))
            )));
        }
        // Types, while the places are known.
        let wrong_type = |e: toml::de::Error| {
            let inside = |entry: &&Entry| {
                e.span()
                    .is_some_and(|s| entry.value.start <= s.start && s.end <= entry.value.end)
            };
            let entry = entries.iter().filter(inside).min_by_key(|x| x.value.len());
            let what = entry.map_or_else(
                || humane(e.message()),
                |entry| {
                    let written = text.get(entry.value.clone()).unwrap_or_default();
                    mistyped(&entry.path, written, e.message())
                },
            );
            Error::user(format!("{}: {what}", at(e.span())))
        };
        Scenario::deserialize(Deserializer::from(document.clone())).map_err(wrong_type)?;
        let mut table =
            Table::deserialize(Deserializer::from(document.clone())).map_err(wrong_type)?;
        relocate(&mut table, dir);
        let places = entries
            .into_iter()
            .map(|e| {
                let (line, _) = place(text, e.key.start);
                (e.path, format!("{name}:{line}"))
            })
            .collect();
        Ok((Self { table, places }, base))
    }

    /// This over what it builds on.
    ///
    /// # Errors
    /// Says why the two make no scenario.
    pub(super) fn upon(self, mut base: Self) -> std::result::Result<Self, String> {
        let places = &mut base.places;
        merge(&mut base.table, self.table, "", &mut |key| {
            places.forget_below(key);
        });
        base.places.extend(self.places);
        base.check_types()?;
        Ok(base)
    }

    fn check_types(&self) -> std::result::Result<(), String> {
        Scenario::deserialize(Value::Table(self.table.clone()))
            .map(|_| ())
            .map_err(|e| humane(e.message()))
    }

    /// `--set key=value`: the value is TOML, and a bare word is a string.
    pub fn set(&mut self, assignment: &str) -> Result<()> {
        let Some((key, raw)) = assignment.split_once('=') else {
            return Err(Error::user(format!(
                "--set {assignment}: expected key=value, such as --set decode.max_batch_per_npu=96"
            )));
        };
        let (key, raw) = (key.trim(), raw.trim());
        let Some(known) = keys::find(key) else {
            return Err(Error::user(format!(
                "--set {assignment}: unknown key {key}: {}",
                keys::advice(key)
            )));
        };
        if raw.is_empty() {
            return Err(Error::user(format!(
                "--set {assignment}: expected a value after the equals sign"
            )));
        }
        let value = match parse_value(raw) {
            Some(value) if value.is_str() || value.is_table() || !known.string => value,
            _ => Value::String(raw.to_string()),
        };
        self.put(&format!("--set {key}"), key, value)
    }

    /// A setting that has an option of its own, such as `--seed`.
    pub fn option(&mut self, option: &str, key: &str, value: impl Into<Value>) -> Result<()> {
        self.put(option, key, value.into())
    }

    fn put(&mut self, origin: &str, key: &str, value: Value) -> Result<()> {
        let shown = value.to_string();
        if !value.is_table() && keys::is_section(key) {
            return Err(Error::user(format!(
                "{origin} = {shown}: expected a key of this section, such as {}",
                keys::first_of(key)
            )));
        }
        let mut table = &mut self.table;
        let mut parts = key.split('.').peekable();
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                table.insert(part.to_string(), value);
                break;
            }
            let entry = table
                .entry(part)
                .or_insert_with(|| Value::Table(Table::new()));
            if !entry.is_table() {
                *entry = Value::Table(Table::new());
            }
            table = entry.as_table_mut().expect("made a table above");
        }
        self.check_types().map_err(|why| {
            let why = ranges::of(key).map_or(why, |range| range.to_string());
            Error::user(format!("{origin} = {shown}: {why}"))
        })?;
        self.places.set(key, origin);
        Ok(())
    }

    /// Whether the file or the command line says anything about a key.
    pub fn has(&self, key: &str) -> bool {
        self.places.has(key)
    }

    /// The scenario, every value checked.
    pub fn load(self) -> Result<Scenario> {
        let mut scenario = Scenario::deserialize(Value::Table(self.table))
            .map_err(|e| Error::user(format!("scenario: {}", humane(e.message()))))?;
        let keys = Table::try_from(&scenario).map_err(|e| Error::failed(e.to_string()))?;
        check::check(&scenario, &keys).map_err(|wrong| self.places.wrong(&wrong.to_string()))?;
        scenario.places = self.places;
        Ok(scenario)
    }
}

struct Entry {
    path: String,
    key: Range<usize>,
    value: Range<usize>,
    table: bool,
}

fn flatten(table: &DeTable, prefix: &str, entries: &mut Vec<Entry>) {
    for (key, value) in table.iter() {
        let path = key_path(prefix, key.get_ref());
        entries.push(Entry {
            path: path.clone(),
            key: key.span(),
            value: value.span(),
            table: value.get_ref().is_table(),
        });
        if let Some(sub) = value.get_ref().as_table() {
            flatten(sub, &path, entries);
        }
    }
    entries.sort_by_key(|e| e.key.start);
}

/// Path of a key in a table.
pub(super) fn key_path(table: &str, key: &str) -> String {
    if table.is_empty() {
        key.to_string()
    } else {
        format!("{table}.{key}")
    }
}

/// Paths in a scenario file are relative to it, so that it can be run from anywhere.
fn relocate(table: &mut Table, dir: &Path) {
    let below = |value: &mut Value| {
        if let Value::String(path) = value
            && Path::new(path.as_str()).is_relative()
        {
            *path = dir.join(&path).display().to_string();
        }
    };
    for (section, key) in [
        ("workload", "file"),
        ("experts", "load_file"),
        ("experts", "placement_file"),
        ("operators", "file"),
    ] {
        if let Some(value) = table.get_mut(section).and_then(|s| s.get_mut(key)) {
            below(value);
        }
    }
    for key in ["machine", "model"] {
        if let Some(value) = table.get_mut(key)
            && value.as_str().is_some_and(looks_like_path)
        {
            below(value);
        }
    }
}

/// A name is built in; a path has a directory or the ending of a TOML file.
pub fn looks_like_path(name: &str) -> bool {
    name.contains('/') || PathBuf::from(name).extension().is_some_and(|e| e == "toml")
}

fn parse_value(raw: &str) -> Option<Value> {
    let mut table: Table = toml::from_str(&format!("v = {raw}")).ok()?;
    if table.len() == 1 {
        table.remove("v")
    } else {
        None
    }
}

/// Line and column, from 1, of a byte.
fn place(text: &str, byte: usize) -> (usize, usize) {
    let before = &text.as_bytes()[..byte.min(text.len())];
    let line = before.iter().filter(|b| **b == b'\n').count() + 1;
    let start = before
        .iter()
        .rposition(|b| *b == b'\n')
        .map_or(0, |p| p + 1);
    (
        line,
        String::from_utf8_lossy(&before[start..]).chars().count() + 1,
    )
}

/// What is said of a value of the wrong type: the range of the key, or what the parser says of it.
fn mistyped(key: &str, written: &str, message: &str) -> String {
    match ranges::of(key) {
        Some(range) => format!("{key} = {}: {range}", one_line(written)),
        None => format!("{key}: {}", humane(message)),
    }
}

/// What is said of a key that is there twice; `span` is the second of them.
fn duplicate(text: &str, span: Option<Range<usize>>) -> String {
    let span = span.unwrap_or(0..0);
    let name = text.get(span.clone()).unwrap_or_default();
    let start = text[..span.start].rfind('\n').map_or(0, |at| at + 1);
    // Dots before it, or the table whose header it is in or under.
    let lead = text[start..span.start].trim();
    let dotted = |lead: &str| {
        lead.chars()
            .all(|c| c.is_alphanumeric() || "_-.\"' ".contains(c))
    };
    let path = match lead.strip_prefix('[') {
        Some(above) => format!("{above}{name}"),
        None if dotted(lead) => {
            let header = text[..start].lines().rev().find_map(|line| {
                let inside = line.trim().strip_prefix('[')?;
                inside.split_once(']').map(|(table, _)| table.trim())
            });
            key_path(header.unwrap_or_default(), &format!("{lead}{name}"))
        }
        None => name.to_string(),
    };
    format!("duplicate key {path}: keep one of the lines that set it")
}

fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Types as a person would name them.
fn humane(message: &str) -> String {
    let mut text = one_line(message);
    for (rust, plain) in [
        (
            "expected u32",
            "expected a whole number from 0 to 4294967295",
        ),
        ("expected u64", "expected a whole number, 0 or more"),
        ("expected f64", "expected a number"),
        ("expected a boolean", "expected true or false"),
    ] {
        text = text.replace(rust, plain);
    }
    // A section, by the name of its type: of no use to a reader.
    if let Some(at) = text.find("expected struct ") {
        text.truncate(at);
        text.push_str("expected a table of keys");
    }
    text
}

/// "60s", "5m", "1h", "250ms" or plain seconds.
pub fn duration_s(text: &str) -> std::result::Result<f64, String> {
    let text = text.trim();
    let split = text
        .find(|c: char| c.is_ascii_alphabetic() && c != 'e' && c != 'E')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor = match unit.trim() {
        "" | "s" => 1.0,
        "ms" => 1e-3,
        "m" | "min" => 60.0,
        "h" => 3_600.0,
        "d" => 86_400.0,
        _ => return Err("expected a time such as 60s, 250ms, 5m or 1h".into()),
    };
    match number.trim().parse::<f64>() {
        Ok(value) if value.is_finite() && value > 0.0 => Ok(value * factor),
        _ => Err("expected a time above 0, such as 60s, 250ms, 5m or 1h".into()),
    }
}

/// "2x", "0.5x" or a plain factor.
pub fn speed_factor(text: &str) -> std::result::Result<f64, String> {
    let number = text.trim().trim_end_matches(['x', 'X']);
    match number.trim().parse::<f64>() {
        Ok(value) if value.is_finite() && value > 0.0 => Ok(value),
        _ => Err("expected a factor above 0, such as 2x or 0.5x".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> String {
        Loader::from_text("s.toml", text, Path::new(""))
            .and_then(Loader::load)
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn a_wrong_key_or_type_is_reported_at_its_line() {
        let m = message("seed = 1\n[decode]\nmax_batch = 3\n");
        assert!(
            m.starts_with("s.toml:3:1: unknown key decode.max_batch"),
            "{m}"
        );
        let m = message("[prefill]\ninstances = \"many\"\n");
        assert!(
            m.starts_with(
                "s.toml:2:13: prefill.instances = \"many\": expected a whole number from 1 to"
            ),
            "{m}"
        );
        let m = message("[prefill\n");
        assert!(m.starts_with("s.toml:1:"), "{m}");
    }

    #[test]
    fn a_value_out_of_range_is_reported_where_it_was_set() {
        let m = message("[decode]\n\nmtp_acceptance = 1.5\n");
        assert!(
            m.starts_with("s.toml:3: decode.mtp_acceptance = 1.5: "),
            "{m}"
        );
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let mut l = Loader::from_text(
            "s.toml",
            "seed = 3\n[workload]\nkind = \"open\"\nrate_per_s = 4.0\n",
            Path::new(""),
        )
        .unwrap();
        l.set("seed=9").unwrap();
        l.set("workload.duration_s=5").unwrap();
        l.set("workload.rate_per_s = 2").unwrap();
        l.set("workload.prompt_tokens.mean=300").unwrap();
        l.set("workload.prompt_tokens.dist=exponential").unwrap();
        l.set("experts.balance=perfect").unwrap();
        let s = l.load().unwrap();
        assert_eq!((s.seed, s.workload.rate_per_s), (9, Some(2.0)));
        assert!(
            matches!(s.workload.prompt_tokens, super::super::Length::Drawn(d) if d.mean == Some(300.0))
        );
    }

    #[test]
    fn a_bare_word_is_a_string_and_a_number_can_be_one() {
        let mut l = Loader::new();
        l.set("workload.file=2024").unwrap();
        l.set("machine=half.toml").unwrap();
        let s = l.load().unwrap();
        assert_eq!(
            (s.workload.file.as_deref(), s.machine.as_str()),
            (Some("2024"), "half.toml")
        );
    }

    #[test]
    fn paths_in_a_file_are_relative_to_it() {
        let l = Loader::from_text(
            "d/s.toml",
            "machine = \"cloudmatrix384\"\n[workload]\nfile = \"t.jsonl\"\n",
            Path::new("d"),
        )
        .unwrap();
        let s = l.load().unwrap();
        assert_eq!(
            (s.workload.file.as_deref(), s.machine.as_str()),
            (Some("d/t.jsonl"), "cloudmatrix384")
        );
    }

    #[test]
    fn the_defaults_survive_being_written_and_read() {
        let text = toml::to_string(&Scenario::default()).unwrap();
        let l = Loader::from_text("s.toml", &text, Path::new("")).unwrap();
        assert_eq!(l.load().unwrap(), Scenario::default());
    }

    #[test]
    fn times_and_factors_have_units() {
        assert_eq!(duration_s("60s"), Ok(60.0));
        assert_eq!(duration_s("1.5h"), Ok(5_400.0));
        assert_eq!(duration_s("250ms"), Ok(0.25));
        assert_eq!(duration_s("1e3"), Ok(1_000.0));
        for wrong in ["", "s", "-1s", "0", "nan", "inf", "3 parsecs"] {
            assert!(duration_s(wrong).is_err(), "{wrong}");
        }
        assert_eq!(speed_factor("2x"), Ok(2.0));
        assert!(speed_factor("fast").is_err() && speed_factor("0x").is_err());
    }
}
