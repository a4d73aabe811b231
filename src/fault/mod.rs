//! Fault plans: what breaks, when, and for how long. A plan is a TOML file, lines on the command line, or drawn from
//! published failure rates; here its addresses are found on a machine, and plans that cannot be are refused.

mod file;
mod line;
mod random;

use supernode_actors::fault::{Effect, Fault, Ways};
use supernode_topology::{ActorId, Machine};

use crate::error::{Error, Result};

pub use line::{Spoken, span_ps, time_ps, time_text};
pub use random::RATES;

/// A fault and where it was said.
#[derive(Clone, Debug, PartialEq)]
pub struct Said {
    pub origin: String,
    pub spoken: Spoken,
}

/// Everything that is to go wrong in a run, before its parts are found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub faults: Vec<Said>,
}

impl Plan {
    /// From `--faults` (a file, or `random:...`) and `--fault` lines.
    ///
    /// # Errors
    /// One line that names the place, the value and what would be accepted.
    pub fn read(
        files: &[String],
        lines: &[String],
        machine: &Machine,
        span_s: f64,
    ) -> Result<Self> {
        let mut plan = Self::default();
        for file in files {
            match file.strip_prefix("random:") {
                Some(terms) => plan.faults.extend(random::draw(terms, machine, span_s)?),
                None => plan.faults.extend(file::read(file)?),
            }
        }
        for line in lines {
            let spoken = Spoken::parse(line)
                .map_err(|why| Error::user(format!("--fault '{line}': {why}")))?;
            plan.faults.push(Said {
                origin: "--fault".into(),
                spoken,
            });
        }
        Ok(plan)
    }

    /// Finds the parts that each fault hits.
    ///
    /// # Errors
    /// An address that names nothing, or nothing of the kind that the word is for; or two faults that contradict each
    /// other.
    pub fn resolve(&self, machine: &Machine) -> Result<Vec<Fault>> {
        let found = self
            .faults
            .iter()
            .map(|said| said.resolve(machine))
            .collect::<Result<Vec<_>>>()?;
        contradictions(&found, &self.faults, machine)?;
        Ok(found)
    }
}

impl Said {
    /// Finds the parts that it hits.
    ///
    /// # Errors
    /// An address that names nothing, or nothing of the kind that the word is for.
    pub fn resolve(&self, machine: &Machine) -> Result<Fault> {
        let Spoken {
            start_ps,
            end_ps,
            effect,
            ways,
            ref address,
        } = self.spoken;
        let text = self.spoken.text();
        let wrong = |why: String| Error::user(format!("{}: {text}: {why}", self.origin));
        let all = machine.select(address).map_err(|e| wrong(e.to_string()))?;
        let parts: Vec<ActorId> = all
            .iter()
            .copied()
            .filter(|&id| takes(machine, id, effect))
            .collect();
        if parts.is_empty() {
            return Err(wrong(wrong_kind(machine, effect, address, &all)));
        }
        Ok(Fault {
            text,
            start_ps,
            end_ps,
            effect,
            ways,
            parts,
        })
    }
}

/// Whether a part can be so.
fn takes(machine: &Machine, id: ActorId, effect: Effect) -> bool {
    machine.is_link(id) == effect.is_of_links()
}

fn wrong_kind(machine: &Machine, effect: Effect, address: &str, all: &[ActorId]) -> String {
    let word = effect.word();
    if effect.is_of_links() {
        let below = match machine.as_die(all[0]).or(machine.as_cpu(all[0])) {
            Some(_) => format!("; its links are {address}/*"),
            None => String::new(),
        };
        format!(
            "`{word}` is for links, and {address} selects {} dies or CPUs{below}",
            all.len()
        )
    } else {
        format!(
            "`{word}` is for dies and CPUs, and {address} selects {} links: they can be slow, delay, jitter, loss, flap or down",
            all.len()
        )
    }
}

fn contradictions(faults: &[Fault], said: &[Said], machine: &Machine) -> Result<()> {
    for (i, b) in faults.iter().enumerate() {
        for (j, a) in faults.iter().enumerate().take(i) {
            if let Some(part) = contradict(a, b) {
                return Err(Error::user(format!(
                    "{}: {}: contradicts `{}` ({}) on {}: both at one time",
                    said[i].origin,
                    b.text,
                    a.text,
                    said[j].origin,
                    machine.address(part)
                )));
            }
        }
    }
    Ok(())
}

/// The first part on which two faults cannot both be: the same word twice at one time, or anything on a link that is
/// down, or on a die or CPU that has crashed.
pub fn contradict(a: &Fault, b: &Fault) -> Option<ActorId> {
    let whole = |e: Effect| matches!(e, Effect::Down | Effect::Crash);
    let together =
        a.start_ps < b.end_ps.unwrap_or(u64::MAX) && b.start_ps < a.end_ps.unwrap_or(u64::MAX);
    let same_way = a.ways == Ways::Both || b.ways == Ways::Both || a.ways == b.ways;
    let same_word = a.effect.word() == b.effect.word();
    if together && same_way && (same_word || whole(a.effect) || whole(b.effect)) {
        common(&a.parts, &b.parts)
    } else {
        None
    }
}

/// The first part that is in both lists, which are in order.
fn common(a: &[ActorId], b: &[ActorId]) -> Option<ActorId> {
    let (few, many) = if a.len() < b.len() { (a, b) } else { (b, a) };
    few.iter()
        .copied()
        .find(|id| many.binary_search(id).is_ok())
}
