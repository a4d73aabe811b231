//! Claims as data: what is published, which scenario shows it, and what is looked at. The built-in file and its
//! scenarios are in the program itself, so that it can audit without them at hand.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use supernode_topology::TomlFault;

use crate::error::{Error, Result};
use crate::scenario::Loader;

/// A file of claims.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claims {
    /// Share by which what comes out may differ from what is published.
    pub tolerance: f64,
    #[serde(rename = "claim")]
    pub claims: Vec<Claim>,
    #[serde(default)]
    pub examined: Vec<Examined>,
    #[serde(default, rename = "resource")]
    pub resources: Vec<Resource>,
    /// Where scenarios are; none for the built-in ones.
    #[serde(skip)]
    dir: Option<PathBuf>,
}

/// One claim. It has a figure with `published` or `at_most` (with `axis` and `where`: of the best point of a sweep),
/// or figures that must be `exactly` so, or sweeps over which figures stay as they are (`scales`), or it is `open`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    pub name: String,
    pub says: String,
    pub source: String,
    #[serde(default)]
    pub unit: String,
    pub published: Option<f64>,
    pub at_most: Option<f64>,
    /// Instead of that of the file.
    pub tolerance: Option<f64>,
    pub scenario: Option<String>,
    pub figure: Option<String>,
    pub axis: Option<String>,
    #[serde(rename = "where")]
    pub condition: Option<String>,
    /// Settings under which the figure is shown as well: what the published text leaves open. They decide nothing.
    #[serde(default)]
    pub beside: Vec<String>,
    #[serde(default)]
    pub exactly: Vec<Exactly>,
    #[serde(default)]
    pub scales: Vec<Scales>,
    pub open: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exactly {
    pub figure: String,
    pub is: f64,
}

/// A sweep over one key, and what it must do to figures.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scales {
    pub scenario: String,
    #[serde(default)]
    pub set: Vec<String>,
    pub axis: String,
    /// Figures that stay as they are.
    #[serde(default)]
    pub same: Vec<String>,
    /// Figures that grow as the key does.
    #[serde(default)]
    pub proportional: Vec<String>,
}

/// A run whose bounds and sensitivities are looked at.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Examined {
    pub scenario: String,
    #[serde(default)]
    pub set: Vec<String>,
    pub figure: String,
    /// Virtual time after which the figure has shown itself.
    pub until_s: f64,
}

/// Something that can bound a figure: keys (globs) of the machine and of the operators.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resource {
    pub name: String,
    #[serde(default)]
    pub machine: Vec<String>,
    #[serde(default)]
    pub operators: Vec<String>,
}

const BUILTIN: &str = include_str!("../../scenarios/claims.toml");
const BUILTIN_PLACE: &str = "scenarios";

/// Paths and texts of the scenarios of claims.
macro_rules! scenarios {
    ($($name:literal),+ $(,)?) => {
        &[$((
            concat!("scenarios/claims/", $name, ".toml"),
            include_str!(concat!("../../scenarios/claims/", $name, ".toml")),
        )),+]
    };
}

const BUILTIN_SCENARIOS: &[(&str, &str)] = scenarios![
    "prefill-throughput",
    "prefill-efficiency",
    "decode-throughput",
    "decode-tpot",
    "decode-efficiency",
    "decode-15ms",
    "decode-batch-8",
    "ep320",
    "scale-independently",
    "scale-independently-cache",
];

impl Claims {
    /// The claims that come with the program.
    pub fn builtin() -> Result<Self> {
        Self::parse(BUILTIN, "the built-in claims", None)
    }

    /// Claims of a file; their scenarios are relative to it.
    pub fn from_file(path: &Path) -> Result<Self> {
        let shown = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|e| Error::user(format!("claims file {shown}: {e}")))?;
        let dir = path.parent().unwrap_or(Path::new("")).to_path_buf();
        Self::parse(&text, &shown, Some(dir))
    }

    fn parse(text: &str, name: &str, dir: Option<PathBuf>) -> Result<Self> {
        let mut all: Self = toml::from_str(text)
            .map_err(|e| Error::user(format!("claims file {name}:{}", TomlFault::new(&e, text))))?;
        all.dir = dir;
        for c in &all.claims {
            c.check().map_err(|why| {
                Error::user(format!("claims file {name}: claim {}: {why}", c.name))
            })?;
        }
        Ok(all)
    }

    /// Keeps those with these names; all of them if there are none.
    pub fn keep(&mut self, names: &[String]) -> Result<()> {
        for name in names {
            if !self.claims.iter().any(|c| c.name == *name) {
                let all: Vec<&str> = self.claims.iter().map(|c| c.name.as_str()).collect();
                let near = all
                    .iter()
                    .map(|c| (strsim::damerau_levenshtein(name, c), c))
                    .min()
                    .filter(|(distance, c)| *distance <= c.len() / 2);
                let meant = near.map_or(String::new(), |(_, c)| format!("did you mean {c}? "));
                return Err(Error::user(format!(
                    "{name}: unknown claim: {meant}there are {}",
                    all.join(", ")
                )));
            }
        }
        if !names.is_empty() {
            self.claims.retain(|c| names.contains(&c.name));
        }
        Ok(())
    }

    /// A scenario that a claim names.
    pub fn scenario(&self, name: &str) -> Result<Loader> {
        match &self.dir {
            Some(dir) => Loader::from_file(&dir.join(name)),
            None => Loader::from_builtin(BUILTIN_SCENARIOS, &self.place(name)),
        }
    }

    /// Where a reader finds a scenario.
    pub fn place(&self, name: &str) -> String {
        let dir = self.dir.as_deref().unwrap_or(Path::new(BUILTIN_PLACE));
        dir.join(name).display().to_string()
    }
}

impl Claim {
    fn check(&self) -> std::result::Result<(), String> {
        let figure = self.figure.is_some();
        let kinds = [
            figure,
            !self.exactly.is_empty(),
            !self.scales.is_empty(),
            self.open.is_some(),
        ];
        if kinds.iter().filter(|k| **k).count() != 1 {
            return Err("expected one of figure, exactly, scales, open".into());
        }
        if figure && self.published.is_some() == self.at_most.is_some() {
            return Err("expected published or at_most beside figure".into());
        }
        if (figure || !self.exactly.is_empty()) && self.scenario.is_none() {
            return Err("expected scenario".into());
        }
        if !self.beside.is_empty() && !figure {
            return Err("expected figure where there is beside".into());
        }
        if self.axis.is_some() != self.condition.is_some() {
            return Err("expected axis and where together".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_of_a_claim_is_built_in_and_loads() {
        let all = Claims::builtin().unwrap();
        let named = all.claims.iter().filter_map(|c| c.scenario.as_ref());
        let scales = all
            .claims
            .iter()
            .flat_map(|c| &c.scales)
            .map(|s| &s.scenario);
        let examined = all.examined.iter().map(|e| &e.scenario);
        for name in named.chain(scales).chain(examined) {
            all.scenario(name).unwrap().load().unwrap();
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(all.place(name));
            assert!(path.is_file(), "{}", path.display());
        }
    }

    #[test]
    fn every_simulated_claim_has_a_file_of_its_name_and_every_file_a_claim() {
        let all = Claims::builtin().unwrap();
        let scenarios = |claim: &Claim| -> Vec<String> {
            let scales = claim.scales.iter().map(|s| &s.scenario);
            claim.scenario.iter().chain(scales).cloned().collect()
        };
        for claim in all.claims.iter().filter(|c| c.open.is_none()) {
            let own = format!("claims/{}.toml", claim.name);
            assert!(scenarios(claim).contains(&own), "{own}");
        }
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios/claims");
        let mut files = 0;
        for entry in dir.read_dir().unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let (stem, file) = (
                name.strip_suffix(".toml").unwrap(),
                format!("claims/{name}"),
            );
            let belongs = all.claims.iter().any(|claim| {
                let of_name = |rest: &str| rest.is_empty() || rest.starts_with('-');
                stem.strip_prefix(&claim.name).is_some_and(of_name)
                    && scenarios(claim).contains(&file)
            });
            assert!(belongs, "no claim uses {name} as its own");
            files += 1;
        }
        assert_eq!(files, BUILTIN_SCENARIOS.len());
    }

    #[test]
    fn an_unknown_claim_is_answered_with_the_near_one() {
        let mut all = Claims::builtin().unwrap();
        let e = all
            .keep(&["decode-thoughput".into()])
            .unwrap_err()
            .to_string();
        assert!(e.contains("did you mean decode-throughput?"), "{e}");
        all.keep(&["ep320".into()]).unwrap();
        assert_eq!(all.claims.len(), 1);
    }

    #[test]
    fn a_claim_that_says_nothing_to_check_is_refused() {
        let text = "tolerance = 0.1\n[[claim]]\nname = \"x\"\nsays = \"\"\nsource = \"\"\n";
        let e = Claims::parse(text, "c.toml", None).unwrap_err().to_string();
        assert!(e.contains("claim x: expected one of figure"), "{e}");
    }
}
