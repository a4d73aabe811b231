//! Plan files.
//!
//! ```toml
//! lines = ["at 2s for 500ms: slow node12/npu3/die1/ub4 x0.3"]
//!
//! [[fault]]
//! at = "3s"              # for = "1s" or until = "4s": until the end without either
//! what = "crash"
//! where = "node7/npu0/die1"
//! restart = "2s"         # factor, time, share, every, up: as the word takes them
//! ```

use serde::Deserialize;
use supernode_topology::TomlFault;

use super::{Said, Spoken};
use crate::error::{Error, Result};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// What the plan is about, for people.
    #[serde(default, rename = "about")]
    _about: Option<String>,
    #[serde(default)]
    lines: Vec<toml::Spanned<String>>,
    #[serde(default)]
    fault: Vec<toml::Spanned<Entry>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    at: String,
    #[serde(rename = "for")]
    span: Option<String>,
    until: Option<String>,
    what: String,
    #[serde(rename = "where")]
    address: String,
    direction: Option<String>,
    factor: Option<f64>,
    time: Option<String>,
    share: Option<f64>,
    every: Option<String>,
    up: Option<f64>,
    restart: Option<String>,
}

impl Entry {
    /// The same fault as a line.
    fn line(&self) -> String {
        let mut line = format!("at {}", self.at);
        for (word, value) in [("for", &self.span), ("until", &self.until)] {
            if let Some(v) = value {
                line.push_str(&format!(" {word} {v}"));
            }
        }
        line.push_str(&format!(": {} {}", self.what, self.address));
        if let Some(f) = self.factor {
            line.push_str(&format!(" x{f}"));
        }
        if let Some(t) = &self.time {
            line.push_str(&format!(" {t}"));
        }
        if let Some(p) = self.share {
            line.push_str(&format!(" {p}"));
        }
        if let Some(every) = &self.every {
            line.push_str(&format!(" every {every}"));
        }
        if let Some(up) = self.up {
            line.push_str(&format!(" up {up}"));
        }
        if let Some(t) = &self.restart {
            line.push_str(&format!(" restart {t}"));
        }
        if let Some(way) = &self.direction {
            line.push_str(&format!(" {way}"));
        }
        line
    }
}

pub fn read(path: &str) -> Result<Vec<Said>> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| Error::user(format!("fault plan {path}: {e}")))?;
    parse(path, &text)
}

pub fn parse(path: &str, text: &str) -> Result<Vec<Said>> {
    let line_of = |byte: usize| text[..byte.min(text.len())].matches('\n').count() + 1;
    let file: File = toml::from_str(text)
        .map_err(|e| Error::user(format!("fault plan {path}:{}", TomlFault::new(&e, text))))?;
    let mut faults = Vec::new();
    let lines = file
        .lines
        .iter()
        .map(|l| (l.span().start, l.get_ref().clone()));
    let entries = file
        .fault
        .iter()
        .map(|f| (f.span().start, f.get_ref().line()));
    for (byte, line) in lines.chain(entries) {
        let origin = format!("{path}:{}", line_of(byte));
        let spoken =
            Spoken::parse(&line).map_err(|why| Error::user(format!("{origin}: {line}: {why}")))?;
        faults.push(Said { origin, spoken });
    }
    Ok(faults)
}
