//! What is wrong with a TOML file, for people: where, with which key, and in one line without the names of Rust types.

use std::fmt;

/// The first fault of a file: it is not TOML, or has an unknown key or a value of the wrong type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TomlFault {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    pub message: String,
}

impl TomlFault {
    /// `text` is what `error` is about.
    pub fn new(error: &toml::de::Error, text: &str) -> Self {
        let span = error.span().unwrap_or(0..0);
        let before = &text[..text.floor_char_boundary(span.start)];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = text[line_start..].lines().next().unwrap_or("");
        // A wrong type is reported at the value: say whose value it is.
        let key = line
            .split_once('=')
            .map(|(key, _)| key.trim())
            .filter(|_| before[line_start..].contains('='));
        let message = match error.message() {
            "duplicate key" => {
                let key = text.get(span).unwrap_or_default();
                format!("duplicate key {key}: keep one of the lines that set it")
            }
            other => plain(other),
        };
        Self {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            message: match key {
                Some(key) => format!("{key}: {message}"),
                None => message,
            },
        }
    }
}

/// `line:column: message`.
impl fmt::Display for TomlFault {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.message)
    }
}

fn plain(message: &str) -> String {
    let message = message
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .replace("expected u32", "expected a whole number, 0 or more")
        .replace("expected u64", "expected a whole number, 0 or more")
        .replace("expected f64", "expected a number");
    match message.split_once("expected struct ") {
        Some((before, _)) => format!("{before}expected a table"),
        None => message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "nothing is read but what is wrong")]
    struct File {
        count: u32,
    }

    #[test]
    fn faults_have_place_and_key_in_one_line() {
        for (text, said) in [
            (
                "count = 1\ncount = 2\n",
                "2:1: duplicate key count: keep one of the lines that set it",
            ),
            (
                "\ncount = \"x\"\n",
                "2:9: count: invalid type: string \"x\", expected a whole number, 0 or more",
            ),
            (
                "counts = 1\n",
                "1:1: unknown field `counts`, expected `count`",
            ),
            ("count\n", "1:6: key with no value, expected `=`"),
        ] {
            let error = toml::from_str::<File>(text).unwrap_err();
            let fault = TomlFault::new(&error, text).to_string();
            assert_eq!(fault, said);
        }
    }
}
