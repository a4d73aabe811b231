//! Addresses and patterns to actors, and back. An address that names nothing is answered with what there is at that
//! spot, and the nearest address that does name something.

use crate::error::TopologyError;
use crate::glob::{self, Segment};
use crate::machine::{ActorId, Machine};
use crate::tree::{Names, Place};

impl Machine {
    /// The address of an actor, as people type it.
    pub fn address(&self, id: ActorId) -> String {
        self.place_name(Place::Actor(id))
    }

    /// The one actor that an address names. Groups, and patterns that match several actors, are errors.
    pub fn parse(&self, address: &str) -> Result<ActorId, TopologyError> {
        let found = self.select(address)?;
        if let [one] = found[..] {
            return Ok(one);
        }
        Err(TopologyError::Address {
            address: address.to_owned(),
            reason: format!(
                "one part is wanted, and this selects {} ({}, …)",
                found.len(),
                self.address(found[0])
            ),
        })
    }

    /// The actors that an address, group or pattern selects, in the order of ids, each once.
    ///
    /// - A group means all links of its chip (`node12/l1.4`, `plane4/l2.9`), all links of its sub-plane (`plane4`), or
    ///   all parts of its node, NPU or rack.
    /// - A die or CPU is itself alone; its links are below it (`node12/npu3/die1/*`).
    /// - `*` is any one segment or part of one, `**` any number of segments, `{1,4}` and `{0..7}` alternatives.
    /// - `all`, like `**`, is everything.
    ///
    /// Selecting nothing is an error.
    pub fn select(&self, pattern: &str) -> Result<Vec<ActorId>, TopologyError> {
        let error = |reason| TopologyError::Address {
            // Empty, or with line breaks: as a program would write it, so that the message stays one readable line.
            address: match pattern.is_empty() || pattern.contains(char::is_control) {
                true => format!("{pattern:?}"),
                false => pattern.to_owned(),
            },
            reason,
        };
        let segments = glob::parse(pattern).map_err(error)?;
        match self.find(&segments) {
            Ok(found) => Ok(found),
            Err(miss) => Err(error(self.explain(&segments, miss))),
        }
    }

    fn find(&self, segments: &[Segment]) -> Result<Vec<ActorId>, Miss> {
        let mut walk = Walk {
            machine: self,
            segments,
            found: Vec::new(),
            miss: None,
            name: String::new(),
        };
        walk.visit(Place::Machine, 0);
        let Walk {
            mut found, miss, ..
        } = walk;
        if found.is_empty() {
            return Err(miss.expect("what matches nothing fails somewhere"));
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// What is at the place where nothing matched, and the nearest that would.
    fn explain(&self, segments: &[Segment], miss: Miss) -> String {
        let wrong = &segments[miss.depth];
        let there = self.names_for(segments, miss);
        let place = match after_deep(segments, miss) {
            true => "this machine, over all depths,".to_owned(),
            false => self.place_name(miss.place),
        };
        let mut reason = match (&there[..], miss.place) {
            ([], Place::Rack(rack)) => {
                let first = rack * self.spec.counts.nodes_per_rack;
                format!(
                    "{place} has no addresses below it; its nodes are addressed as node{first} and on"
                )
            }
            ([], _) => format!("{place} has nothing below it"),
            (names, _) => {
                // Where the kind is right and the number wrong, only that kind's range is of interest.
                let kind = names.iter().find(|names| wrong.kind() == names.name);
                let ranges: Vec<String> = match kind {
                    Some(names) => vec![names.range()],
                    None => names.iter().map(|names| names.range()).collect(),
                };
                format!("{place} has {}", ranges.join(", "))
            }
        };
        if segments.len() > 1 && !there.is_empty() {
            reason = format!("no `{}`: {reason}", wrong.text());
        }
        match self.nearest(segments) {
            Some(nearest) => format!("{reason}; did you mean {nearest}?"),
            None => reason,
        }
    }

    /// The names that could stand where a walk went wrong.
    fn names_for(&self, segments: &[Segment], miss: Miss) -> Vec<Names> {
        if !after_deep(segments, miss) {
            return self.names_below(miss.place);
        }
        let (npu, l1, plane) = (
            Place::Npu(0),
            Place::L1 { node: 0, plane: 0 },
            Place::Plane(0),
        );
        let (die, cpu) = (Place::Actor(self.die(0)), Place::Actor(self.cpu(0)));
        let mut names = Vec::new();
        for place in [Place::Machine, Place::Node(0), npu, die, cpu, l1, plane] {
            for name in self.names_below(place) {
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        }
        names
    }

    /// The nearest address or pattern that selects something: the same at any depth, if only its beginning is missing, or
    /// with one segment after the other mended.
    fn nearest(&self, segments: &[Segment]) -> Option<String> {
        let mut anywhere = vec![Segment::Deep];
        anywhere.extend_from_slice(segments);
        if segments[0] != Segment::Deep && self.find(&anywhere).is_ok() {
            return Some(text(&anywhere));
        }
        let mut mended = segments.to_vec();
        for _ in 0..segments.len() {
            let Err(miss) = self.find(&mended) else { break };
            let names = self.names_for(&mended, miss);
            if names.is_empty() {
                mended.truncate(miss.depth);
            } else {
                mended[miss.depth] = nearest_segment(&mended[miss.depth], &names);
            }
        }
        self.find(&mended).is_ok().then(|| text(&mended))
    }
}

/// Whether a miss comes right after a `**`, so that the name may be at any depth.
fn after_deep(segments: &[Segment], miss: Miss) -> bool {
    miss.depth > 0 && segments[miss.depth - 1] == Segment::Deep
}

fn text(segments: &[Segment]) -> String {
    let texts: Vec<&str> = segments.iter().map(Segment::text).collect();
    texts.join("/")
}

/// Where a walk went wrong: this segment matched nothing below this place.
#[derive(Copy, Clone, Debug)]
struct Miss {
    depth: usize,
    place: Place,
}

struct Walk<'a> {
    machine: &'a Machine,
    segments: &'a [Segment],
    found: Vec<ActorId>,
    /// The first of the deepest misses.
    miss: Option<Miss>,
    /// Scratch for names.
    name: String,
}

impl Walk<'_> {
    fn visit(&mut self, place: Place, depth: usize) {
        let (machine, segments) = (self.machine, self.segments);
        let Some(segment) = segments.get(depth) else {
            machine.members(place, &mut self.found);
            return;
        };
        if *segment == Segment::Deep {
            if depth + 1 == segments.len() {
                machine.subtree(place, &mut self.found);
                return;
            }
            self.visit(place, depth + 1);
            for names in machine.names_below(place) {
                for index in 0..names.len() {
                    self.visit(machine.child(place, names, index), depth);
                }
            }
            return;
        }
        let mut any = false;
        for names in machine.names_below(place) {
            if let Segment::Plain(text) = segment {
                if let Some(index) = names.index_of(text) {
                    any = true;
                    self.visit(machine.child(place, names, index), depth + 1);
                }
                continue;
            }
            for index in 0..names.len() {
                let mut name = std::mem::take(&mut self.name);
                names.write(index, &mut name);
                let matched = segment.matches(&name);
                self.name = name;
                if matched {
                    any = true;
                    self.visit(machine.child(place, names, index), depth + 1);
                }
            }
        }
        if !any && self.miss.is_none_or(|miss| depth > miss.depth) {
            self.miss = Some(Miss { depth, place });
        }
    }
}

/// The nearest name to a plain segment: the kind that takes the fewest edits, with the index brought into range. A
/// pattern becomes all of the nearest kind.
fn nearest_segment(wrong: &Segment, names: &[Names]) -> Segment {
    let kind = wrong.kind().to_ascii_lowercase();
    let nearest = names
        .iter()
        .min_by_key(|names| edits(&kind, names.name))
        .expect("the caller has names to choose from");
    let Segment::Plain(text) = wrong else {
        return glob::all_of(nearest.name, nearest.count.is_some());
    };
    let digits: String = text[kind.len()..]
        .chars()
        .filter(char::is_ascii_digit)
        .collect();
    let index = match digits.is_empty() {
        true => 0,
        false => digits.parse().unwrap_or(u32::MAX),
    };
    Segment::Plain(nearest.nth(index.min(nearest.len() - 1)))
}

/// Levenshtein distance, by characters.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replace = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}
