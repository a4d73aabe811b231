//! Mooncake's format: one JSON object a line, with `timestamp` in ms, `input_length` and `output_length` in
//! tokens, and `hash_ids`, one id per 512-token prefix block (Qin et al., FAST'25).

use serde::Deserialize;
use serde_json::Value;

use super::lines::{Lines, excerpt};
use super::shape::OwnIds;
use super::{Row, Trace};
use crate::error::{Error, Result};
use crate::scenario::Format;

/// Tokens of a block that one id stands for, in Mooncake's published traces.
pub const BLOCK_TOKENS: u32 = 512;

#[derive(Deserialize)]
struct Line {
    timestamp: f64,
    input_length: u32,
    output_length: u32,
    hash_ids: Option<Vec<u64>>,
}

pub fn read(lines: &mut Lines) -> Result<Trace> {
    let mut trace = Trace::new(lines.name(), Format::Mooncake);
    let mut without_ids = 0u64;
    let mut short = 0u64;
    while let Some(text) = lines.next()? {
        let parsed: std::result::Result<Line, _> = serde_json::from_str(text);
        let line = match parsed {
            Ok(line) => line,
            Err(e) => {
                let (column, why) = diagnose(text, &e);
                return Err(lines.wrong(Some(column), &why));
            }
        };
        if line.timestamp < 0.0 {
            let why = format!(
                "timestamp: found {}, expected milliseconds, 0 or more",
                line.timestamp
            );
            return Err(lines.wrong(None, &why));
        }
        let blocks = line.input_length.div_ceil(BLOCK_TOKENS) as usize;
        let ids = match line.hash_ids {
            None => {
                without_ids += 1;
                None
            }
            Some(ids) if ids.len() > blocks => {
                return Err(too_many_ids(lines, ids.len(), line.input_length, blocks));
            }
            Some(ids) => {
                if ids.len() < blocks {
                    short += 1;
                }
                (!ids.is_empty()).then(|| ids.into_boxed_slice())
            }
        };
        trace.push(Row {
            at_s: line.timestamp / 1e3,
            prompt_tokens: line.input_length,
            output_tokens: line.output_length,
            ids,
        });
    }
    if without_ids > 0 {
        trace.notes.push(format!(
            "{without_ids} requests of {} have no hash_ids: they share no prefix",
            trace.name
        ));
    }
    if short > 0 {
        complete(&mut trace);
        trace.notes.push(format!(
            "{short} requests of {} have fewer hash_ids than blocks of {BLOCK_TOKENS} tokens: the rest of their prompts is unique",
            trace.name
        ));
    }
    Ok(trace)
}

/// Gives prompts with too few ids the rest, each an id of its own.
fn complete(trace: &mut Trace) {
    let known = OwnIds::new(&trace.rows, 2);
    let mut fresh = known.after();
    for row in &mut trace.rows {
        if let Some(ids) = row.ids.take() {
            let missing = u64::from(row.prompt_tokens.div_ceil(BLOCK_TOKENS)) - ids.len() as u64;
            row.ids = Some(
                known
                    .of(0, &ids)
                    .iter()
                    .copied()
                    .chain(fresh..fresh + missing)
                    .collect(),
            );
            fresh += missing;
        }
    }
}

fn too_many_ids(lines: &Lines, ids: usize, tokens: u32, blocks: usize) -> Error {
    lines.wrong(
        None,
        &format!("hash_ids: found {ids} ids for {tokens} tokens, expected at most {blocks} (one per {BLOCK_TOKENS} tokens)"),
    )
}

/// Column, and what was found and expected, of a line that serde did not take.
fn diagnose(text: &str, e: &serde_json::Error) -> (usize, String) {
    let column = e.column().max(1);
    let Ok(value) = serde_json::from_str::<Value>(text) else {
        let why = e.to_string();
        let why = why.split(" at line ").next().unwrap_or(&why).to_string();
        return (
            column,
            format!(
                "not a JSON object ({why}): found {}, expected {{\"timestamp\": …, \"input_length\": …, \"output_length\": …, \"hash_ids\": […]}}",
                excerpt(text)
            ),
        );
    };
    let Some(object) = value.as_object() else {
        return (
            column,
            format!("found {}, expected a JSON object", excerpt(text)),
        );
    };
    let is_tokens = |v: &Value| v.as_u64().is_some_and(|n| n <= u64::from(u32::MAX));
    let time = "milliseconds since the start of the trace";
    let tokens = "a whole number of tokens";
    for (name, expected) in [
        ("timestamp", time),
        ("input_length", tokens),
        ("output_length", tokens),
    ] {
        let Some(found) = object.get(name) else {
            return (column, format!("{name}: missing, expected {expected}"));
        };
        let fits = if name == "timestamp" {
            found.is_number()
        } else {
            is_tokens(found)
        };
        if !fits {
            let at = text
                .find(&format!("\"{name}\""))
                .map_or(column, |byte| byte + 1);
            let found = excerpt(&found.to_string());
            return (at, format!("{name}: found {found}, expected {expected}"));
        }
    }
    let at = text.find("\"hash_ids\"").map_or(column, |byte| byte + 1);
    let found = object
        .get("hash_ids")
        .map_or("nothing".to_string(), |v| match v.as_array() {
            Some(ids) => ids
                .iter()
                .find(|id| !id.is_u64())
                .map_or(e.to_string(), |id| format!("the id {id}")),
            None => v.to_string(),
        });
    (
        at,
        format!(
            "hash_ids: found {}, expected a list of whole numbers, one per {BLOCK_TOKENS} tokens",
            excerpt(&found)
        ),
    )
}
