//! Where each key of a scenario was set, so that what is wrong is said at its place.

use std::collections::BTreeMap;
use std::path::Path;

use super::keys::{self, known_keys};
use crate::error::{Error, Result};

/// Key path to the place that set it: `file:line`, or the option. Is not part of what a scenario says: any two are equal.
#[derive(Clone, Debug, Default)]
pub struct Places(BTreeMap<String, String>);

impl PartialEq for Places {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl FromIterator<(String, String)> for Places {
    fn from_iter<T: IntoIterator<Item = (String, String)>>(places: T) -> Self {
        Self(places.into_iter().collect())
    }
}

impl Places {
    pub fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// `place` sets a key: what was said below it before no longer holds.
    pub fn set(&mut self, key: &str, place: &str) {
        self.forget_below(key);
        self.0.insert(key.to_string(), place.to_string());
    }

    pub fn forget_below(&mut self, key: &str) {
        self.0.retain(|k, _| {
            !k.strip_prefix(key)
                .is_some_and(|rest| rest.starts_with('.'))
        });
    }

    /// What another says goes over this.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// The place of a key where it was set in a file, and not by an option.
    fn in_file(&self, key: &str) -> Option<&str> {
        let place = self.0.get(key)?;
        (!place.starts_with("--")).then_some(place)
    }

    /// How a message about a key begins: with its place, if it was set at all.
    fn before(&self, key: &str) -> String {
        match self.0.get(key) {
            None => String::new(),
            Some(o) if o.starts_with("--") && o.ends_with(key) => "--set: ".to_string(),
            Some(o) => format!("{o}: "),
        }
    }

    /// What is wrong: at the place of the key that it begins with, if it does (`key = value: …`), and with the places of
    /// the other keys that it speaks of.
    pub fn wrong(&self, what: &str) -> Error {
        let key = leading_key(what);
        let place = key.map_or(String::new(), |key| self.before(key));
        Error::user(format!("{place}{what}{}", self.spoken_of(what, key)))
    }

    /// The same of an error, if it begins with a key.
    pub fn placed(&self, e: Error) -> Error {
        match e {
            Error::User(what) if leading_key(&what).is_some() => self.wrong(&what),
            other => other,
        }
    }

    /// That the file which a key names is there; `wanted` is what it should be.
    ///
    /// # Errors
    /// Says so at the place of the key, and from where paths are seen.
    pub fn is_there(&self, key: &str, path: &str, wanted: &str) -> Result<()> {
        let Err(e) = std::fs::metadata(Path::new(path)) else {
            return Ok(());
        };
        let from = match self.in_file(key) {
            Some(_) => "directory of the scenario file that has it",
            None => "directory that the command is run in",
        };
        let place = self.before(key);
        Err(Error::user(format!(
            "{place}{key} = {path:?}: {e}; expected {wanted}, as seen from the {from}"
        )))
    }

    /// Places, in brackets, of keys that a message speaks of. Options are not among them: who gave them sees them.
    fn spoken_of(&self, what: &str, but: Option<&str>) -> String {
        let places: Vec<String> = known_keys()
            .iter()
            .map(|k| k.path.as_str())
            .filter(|k| k.contains('.') && Some(*k) != but && speaks_of(what, k))
            .filter_map(|k| Some(format!("{} sets {k}", self.in_file(k)?)))
            .collect();
        match places.is_empty() {
            true => String::new(),
            false => format!(" ({})", places.join(", ")),
        }
    }
}

/// The key that a message is about: `key = value: …`.
fn leading_key(what: &str) -> Option<&str> {
    let (key, _) = what.split_once(" = ")?;
    keys::find(key).map(|_| key)
}

/// Whether a text has a key in it, and not only as a part of a longer one.
fn speaks_of(text: &str, key: &str) -> bool {
    let of_key = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.match_indices(key).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let mut after = text[at + key.len()..].chars();
        let longer = match after.next() {
            Some('.') => after.next().is_some_and(of_key),
            Some(c) => of_key(c),
            None => false,
        };
        !longer && !before.is_some_and(|c| of_key(c) || c == '.')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_whole() {
        assert!(speaks_of("set decode.instances.", "decode.instances"));
        assert!(speaks_of("(decode.instances)", "decode.instances"));
        for other in [
            "decode.instances_x",
            "x.decode.instances",
            "decode.instances.x",
        ] {
            assert!(!speaks_of(other, "decode.instances"), "{other}");
        }
    }
}
