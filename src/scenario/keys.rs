//! The keys of a scenario, read off its JSON Schema so that there is one list of them, and the nearest known
//! key to a misspelt one.

use std::sync::OnceLock;

use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::Scenario;
use super::base::{BASE, DESCRIPTION};
use super::load::key_path;
use super::ranges;

/// JSON Schema of a scenario file.
pub fn schema() -> Value {
    let mut schema = schemars::schema_for!(Scenario).to_value();
    if let Some(object) = schema.as_object_mut() {
        object.insert("title".into(), "Supernode scenario".into());
    }
    schema["properties"][BASE] =
        serde_json::json!({ "type": "string", "description": DESCRIPTION });
    schema
}

/// One key of a scenario.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Dotted path, such as `decode.max_batch_per_npu`.
    pub path: String,
    /// Has keys of its own.
    pub table: bool,
    /// Takes a string, so that a bare word on the command line is one.
    pub string: bool,
    /// Why its default is assumed, where its description says so.
    pub assumed: Option<String>,
}

/// Every key that a scenario accepts, in the order of the schema.
pub fn known_keys() -> &'static [Key] {
    static KEYS: OnceLock<Vec<Key>> = OnceLock::new();
    KEYS.get_or_init(|| {
        let settings = SchemaSettings::draft2020_12().with(|s| s.inline_subschemas = true);
        let schema = settings
            .into_generator()
            .into_root_schema_for::<Scenario>()
            .to_value();
        let mut keys = Vec::new();
        walk(&schema, "", &mut keys);
        keys
    })
}

fn walk(schema: &Value, prefix: &str, keys: &mut Vec<Key>) {
    for branch in branches(schema) {
        let Some(properties) = branch.get("properties").and_then(Value::as_object) else {
            continue;
        };
        for (name, sub) in properties {
            let path = key_path(prefix, name);
            let table = branches(sub).iter().any(|b| b.get("properties").is_some());
            let string = branches(sub).iter().any(|b| takes_string(b));
            keys.push(Key {
                path: path.clone(),
                table,
                string,
                assumed: sub["description"].as_str().and_then(assumed),
            });
            walk(sub, &path, keys);
        }
    }
}

/// The reason in a description that says "(assumed: reason)".
fn assumed(description: &str) -> Option<String> {
    let (_, why) = description.split_once("(assumed: ")?;
    let (why, _) = why.split_once(')')?;
    Some(why.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// A schema and the alternatives it offers.
fn branches(schema: &Value) -> Vec<&Value> {
    let mut all = vec![schema];
    for of in ["anyOf", "oneOf", "allOf"] {
        for sub in schema
            .get(of)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            all.extend(branches(sub));
        }
    }
    all
}

fn takes_string(schema: &Value) -> bool {
    match schema.get("type") {
        Some(Value::String(t)) => t == "string",
        Some(Value::Array(types)) => types.iter().any(|t| t == "string"),
        _ => schema.get("const").is_some_and(Value::is_string),
    }
}

pub fn find(path: &str) -> Option<&'static Key> {
    known_keys().iter().find(|k| k.path == path)
}

/// Whether a key is a section: nothing but a table of keys.
pub fn is_section(path: &str) -> bool {
    find(path).is_some_and(|k| k.table) && ranges::of(path).is_none()
}

/// The first key of a section.
pub fn first_of(section: &str) -> &'static str {
    let below = |k: &&Key| {
        let rest = k.path.strip_prefix(section);
        rest.is_some_and(|rest| rest.starts_with('.'))
    };
    known_keys().iter().find(below).map_or("", |k| &k.path)
}

/// "did you mean …? … accepts …" for a key that does not exist.
pub fn advice(path: &str) -> String {
    if path == BASE {
        return "only scenario files build on others: give the one that is meant".into();
    }
    let (parent, last) = path.rsplit_once('.').unwrap_or(("", path));
    // The deepest table on the way that does exist says what is accepted.
    let mut table = parent;
    while !table.is_empty() && !find(table).is_some_and(|k| k.table) {
        table = table.rsplit_once('.').map_or("", |(up, _)| up);
    }
    let siblings: Vec<&str> = known_keys()
        .iter()
        .filter_map(|k| {
            let name = if table.is_empty() {
                k.path.as_str()
            } else {
                k.path.strip_prefix(table)?.strip_prefix('.')?
            };
            (!name.contains('.')).then_some(name)
        })
        .collect();
    let mut text = match nearest(path, last) {
        Some(key) => format!("did you mean {key}? "),
        None => String::new(),
    };
    if table.is_empty() {
        text.push_str("a scenario accepts ");
    } else {
        text.push_str(&format!("[{table}] accepts "));
    }
    text.push_str(&siblings.join(", "));
    text
}

/// The known key that is closest to `path`, if any is close.
fn nearest(path: &str, last: &str) -> Option<&'static str> {
    let reach = |s: &str| (s.len() / 3).clamp(1, 4);
    let whole = known_keys()
        .iter()
        .map(|k| (strsim::damerau_levenshtein(path, &k.path), k.path.as_str()))
        .min()
        .filter(|(distance, _)| *distance <= reach(last));
    // The right key in the wrong section, or in none.
    let tail = known_keys()
        .iter()
        .filter(|k| k.path.contains('.'))
        .map(|k| {
            let name = k.path.rsplit('.').next().unwrap_or(&k.path);
            (strsim::damerau_levenshtein(last, name), k.path.as_str())
        })
        .min()
        .filter(|(distance, _)| *distance <= reach(last).min(2));
    whole.or(tail).map(|(_, key)| key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_section_and_distribution_is_listed() {
        for path in [
            "seed",
            "prefill.instances",
            "experts.load_file",
            "slo.ttft_ms",
            "workload.prompt_tokens.mean",
        ] {
            assert!(
                find(path).is_some(),
                "{path} is missing from {:?}",
                known_keys()
            );
        }
        assert!(find("prefill").unwrap().table);
        assert!(find("workload.prompt_tokens").unwrap().table);
        assert!(find("workload.file").unwrap().string);
        assert!(find("workload.kind").unwrap().string);
        assert!(!find("decode.mtp_acceptance").unwrap().string);
        let why = find("recovery.client_ms").unwrap().assumed.as_deref();
        assert_eq!(why, Some("one TCP retransmission time-out"));
        assert_eq!(find("decode.mtp_acceptance").unwrap().assumed, None);
    }

    #[test]
    fn a_misspelt_key_is_answered_with_the_one_that_was_meant() {
        assert!(advice("prefil.instances").contains("did you mean prefill.instances?"));
        assert!(
            advice("decode.max_batch_per_npus").contains("did you mean decode.max_batch_per_npu?")
        );
        assert!(advice("ttft_ms").contains("did you mean slo.ttft_ms?"));
        assert!(!advice("decode.colour").contains("did you mean"));
        assert!(advice("decode.colour").contains("[decode] accepts "));
    }
}
