//! Scenario files that build on others: a file's `base` names another file, as seen from the first one, whose keys hold
//! where the first does not set them. Tables are merged key by key. A base may have a base of its own.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use super::load::{Loader, key_path};
use crate::error::{Error, Result};

/// The key, at the top of a file.
pub const BASE: &str = "base";

/// What the key means, for whoever reads the schema.
pub const DESCRIPTION: &str = "Path of a scenario file that this one builds on, as seen from this one's directory: keys \
                               that are not set here are as they are there. In files only, not with --set.";

const EXPECTED: &str =
    "expected the path of a scenario file in quotes, such as base = \"other.toml\"";

/// Larger scenario files than this are a mistake.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// The base that a file names, and where.
pub struct Named {
    pub path: String,
    /// `file:line:column` of the value.
    pub place: String,
}

impl Named {
    /// Takes the key out of a file; `at` says where a byte of the file is.
    ///
    /// # Errors
    /// When it is no path.
    pub fn take(
        document: &mut Spanned<DeTable>,
        text: &str,
        at: impl Fn(Option<Range<usize>>) -> String,
    ) -> Result<Option<Self>> {
        let Some(value) = document.get_mut().remove(BASE) else {
            return Ok(None);
        };
        let place = at(Some(value.span()));
        match value.get_ref() {
            DeValue::String(path) if !path.trim().is_empty() => Ok(Some(Self {
                path: path.to_string(),
                place,
            })),
            _ => {
                let written = text.get(value.span()).unwrap_or_default();
                let written = written.lines().next().unwrap_or_default();
                Err(Error::user(format!(
                    "{place}: base = {written}: {EXPECTED}"
                )))
            }
        }
    }
}

/// Where scenario files are read.
#[derive(Clone, Copy)]
pub enum Shelf<'a> {
    Disk,
    /// Files in the program itself: paths and texts.
    Builtin(&'a [(&'a str, &'a str)]),
}

impl Shelf<'_> {
    /// The scenario of a file, over those that it builds on.
    pub fn load(self, path: &Path) -> Result<Loader> {
        let text = self.text(path)?;
        self.over(path, &text, directory(path), &mut vec![self.identity(path)])
    }

    /// The same of a text that messages call `name`, as if it were in `dir`.
    pub fn load_text(self, name: &str, text: &str, dir: &Path) -> Result<Loader> {
        self.over(Path::new(name), text, dir, &mut Vec::new())
    }

    /// `above`: the file itself, and before it those that build on it.
    fn over(self, path: &Path, text: &str, dir: &Path, above: &mut Vec<PathBuf>) -> Result<Loader> {
        let name = &path.display().to_string();
        let (own, base) = Loader::parse(name, text, dir)?;
        let Some(base) = base else { return Ok(own) };
        let wrong =
            |why: &str| Error::user(format!("{}: base = \"{}\": {why}", base.place, base.path));
        let path = match self {
            Self::Disk => dir.join(&base.path),
            Self::Builtin(_) => plain(&dir.join(&base.path)),
        };
        let identity = self.identity(&path);
        if above.contains(&identity) {
            let shown = path.display();
            return Err(wrong(&format!(
                "{shown} builds on this file or is this file: leave out one of the bases"
            )));
        }
        let text = self.text(&path).map_err(|e| {
            wrong(&format!(
                "{e}; a base is a scenario file, as seen from the directory of the file that names it"
            ))
        })?;
        above.push(identity);
        let below = self.over(&path, &text, directory(&path), above)?;
        own.upon(below).map_err(|why| wrong(&why))
    }

    /// What tells files apart, however they are named.
    fn identity(self, path: &Path) -> PathBuf {
        match self {
            Self::Disk => std::fs::canonicalize(path).unwrap_or_else(|_| plain(path)),
            Self::Builtin(_) => plain(path),
        }
    }

    fn text(self, path: &Path) -> Result<String> {
        match self {
            Self::Disk => on_disk(path),
            Self::Builtin(files) => files
                .iter()
                .find(|(p, _)| Path::new(p) == path)
                .map(|(_, text)| (*text).to_string())
                .ok_or_else(|| Error::failed(format!("{} is not built in", path.display()))),
        }
    }
}

fn directory(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

fn on_disk(path: &Path) -> Result<String> {
    let shown = path.display();
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|f| f.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(|e| Error::user(format!("scenario file {shown}: {e}")))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(Error::user(format!(
            "scenario file {shown} is larger than {} MiB: is it a scenario? (workloads go with --workload)",
            FILE_BYTES_MAX >> 20
        )));
    }
    String::from_utf8(bytes).map_err(|e| {
        Error::user(format!(
            "scenario file {shown} is not UTF-8 text (byte {}): is it a scenario? (workloads go with --workload)",
            e.utf8_error().valid_up_to()
        ))
    })
}

/// A path without detours that are seen in its text.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir if plain.file_name().is_some() => {
                plain.pop();
            }
            part => plain.push(part),
        }
    }
    plain
}

/// Puts `own` over `base`, tables key by key; `replaced` is told the path of each key whose value gives way whole.
pub fn merge(base: &mut Table, own: Table, above: &str, replaced: &mut impl FnMut(&str)) {
    for (name, value) in own {
        let path = key_path(above, &name);
        match (base.get_mut(&name), value) {
            (Some(Value::Table(below)), Value::Table(own)) => merge(below, own, &path, replaced),
            (_, value) => {
                replaced(&path);
                base.insert(name, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Length, Scenario};
    use super::*;

    const SHELF: Shelf = Shelf::Builtin(&[
        (
            "d/base.toml",
            "seed = 7\n[decode]\nmtp_tokens = 2\nmtp_acceptance = 0.9\n\
             [workload]\nfile = \"t.jsonl\"\nprompt_tokens = { dist = \"exponential\", mean = 300 }\n",
        ),
        (
            "d/e/own.toml",
            "base = \"../base.toml\"\n[decode]\nmtp_tokens = 1\n[workload]\nprompt_tokens = 64\n",
        ),
        (
            "d/top.toml",
            "base = \"./e/own.toml\"\n[workload]\noutput_tokens = 3\n",
        ),
        ("d/wrong.toml", "\nbase = \"bad.toml\"\nseed = 1\n"),
        (
            "d/bad.toml",
            "base = \"base.toml\"\n\n[decode]\nmtp_acceptance = 2.0\n",
        ),
        ("d/a.toml", "base = \"b.toml\"\n"),
        ("d/b.toml", "base = \"c.toml\"\n"),
        ("d/c.toml", "seed = 1\nbase = \"a.toml\"\n"),
        ("d/self.toml", "base = \"self.toml\"\n"),
        ("d/none.toml", "base = \"nowhere.toml\"\n"),
        ("d/number.toml", "seed = 1\nbase = 3\n"),
        ("d/empty.toml", "base = \"\"\n"),
        ("d/below.toml", "[decode]\nbase = \"base.toml\"\n"),
        ("d/slip.toml", "base = \"slipped.toml\"\n"),
        ("d/slipped.toml", "\n[decode]\nmtp = 3\n"),
    ]);

    fn loader(path: &str) -> Result<Loader> {
        SHELF.load(Path::new(path))
    }

    fn scenario(path: &str) -> Scenario {
        loader(path).and_then(Loader::load).unwrap()
    }

    fn message(path: &str) -> String {
        let loaded = loader(path).and_then(Loader::load);
        loaded.unwrap_err().to_string()
    }

    #[test]
    fn what_a_file_does_not_set_is_as_in_its_base() {
        let own = scenario("d/e/own.toml");
        assert_eq!(own.seed, 7);
        assert_eq!((own.decode.mtp_tokens, own.decode.mtp_acceptance), (1, 0.9));
        // A path is relative to the file that has it, and a table gives way to a number.
        assert_eq!(own.workload.file.as_deref(), Some("d/t.jsonl"));
        assert_eq!(own.workload.prompt_tokens, Length::Fixed(64));
        let top = scenario("d/top.toml");
        assert_eq!(top.workload.output_tokens, Length::Fixed(3));
        assert_eq!(top.decode, own.decode);
    }

    #[test]
    fn options_go_over_a_base_too_and_what_is_wrong_is_said_of_the_file_that_has_it() {
        let mut l = loader("d/top.toml").unwrap();
        l.set("seed=8").unwrap();
        assert!(l.has("decode.mtp_acceptance") && l.has("workload.output_tokens"));
        assert!(!l.has("workload.prompt_tokens.mean") && !l.has(BASE));
        assert_eq!(l.load().unwrap().seed, 8);
        let m = message("d/wrong.toml");
        assert!(
            m.starts_with("d/bad.toml:4: decode.mtp_acceptance = 2: expected"),
            "{m}"
        );
        let m = message("d/slip.toml");
        assert!(
            m.starts_with("d/slipped.toml:3:1: unknown key decode.mtp:"),
            "{m}"
        );
    }

    #[test]
    fn a_base_that_cannot_be_is_refused_at_its_place() {
        for (path, expected) in [
            (
                "d/a.toml",
                "d/c.toml:2:8: base = \"a.toml\": d/a.toml builds on this file",
            ),
            ("d/self.toml", "d/self.toml:1:8: base = \"self.toml\": "),
            (
                "d/none.toml",
                "d/none.toml:1:8: base = \"nowhere.toml\": d/nowhere.toml is not built in",
            ),
            ("d/number.toml", "d/number.toml:2:8: base = 3: expected"),
            ("d/empty.toml", "d/empty.toml:1:8: base = \"\": expected"),
            ("d/below.toml", "d/below.toml:2:1: unknown key decode.base"),
        ] {
            let m = message(path);
            assert!(m.starts_with(expected), "{m}");
        }
        let said = Loader::new().set("base=d/base.toml").unwrap_err();
        assert!(said.to_string().contains("only scenario files"), "{said}");
    }
}
