//! Reading back a trace that this program wrote, into the spans that questions are asked of. A file that is foreign,
//! cut off inside a packet or of another version is refused in one line.

use std::collections::BTreeMap;
use std::path::Path;

use supernode_actors::time::{PS_PER_NS, Ps};
use supernode_actors::trace::What;

use super::events::{self, Key};
use super::packets::{FORMAT, Header, VERSION};
use super::wire::{self, Broken, Field, Fields, Out};
use crate::error::{Error, Result};

/// One span, to the picosecond; or an instant, of no duration.
#[derive(Clone, Debug, PartialEq)]
pub struct Slice {
    pub what: What,
    /// Address of the actor, or "requests/request N".
    pub track: u32,
    pub start_ps: Ps,
    pub end_ps: Ps,
    pub notes: Notes,
}

impl Slice {
    pub fn ps(&self) -> Ps {
        self.end_ps - self.start_ps
    }
}

/// Annotations by key, as they are in the file: that is the shortest form.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Notes(Box<[u8]>);

/// Fields of an annotation: numbers, and words that are interned.
const UINT: u32 = 3;
const INTERNED: u32 = 17;

impl Notes {
    pub fn uint(&self, key: Key) -> Option<u64> {
        self.find(key, UINT)
    }

    /// 0 where it was left out.
    pub fn count(&self, key: Key) -> u64 {
        self.uint(key).unwrap_or(0)
    }

    fn interned(&self, key: Key) -> Option<u64> {
        self.find(key, INTERNED)
    }

    fn find(&self, key: Key, field: u32) -> Option<u64> {
        let mut of_event = Fields(&self.0).flatten();
        of_event.find_map(|(_, note)| {
            let (mut is_key, mut value) = (false, None);
            for (n, f) in Fields(note.bytes()).flatten() {
                is_key |= n == 1 && f.uint() == key as u64 + 1;
                value = if n == field { Some(f.uint()) } else { value };
            }
            value.filter(|_| is_key)
        })
    }
}

/// A value of a counter track.
#[derive(Clone, Debug, PartialEq)]
pub struct Counted {
    pub track: u32,
    pub at_ps: Ps,
    pub value: u64,
}

#[derive(Clone, Debug, Default)]
struct Track {
    name: String,
    parent: u64,
}

/// A whole trace.
#[derive(Debug)]
pub struct Read {
    pub header: Header,
    pub slices: Vec<Slice>,
    pub counted: Vec<Counted>,
    /// Paths by track: of a stream, the address of its actor.
    actors: Vec<String>,
    streams: Vec<String>,
    addresses: BTreeMap<u64, String>,
    pub bytes: u64,
}

/// The kind that a track's spans were written as, before its place in the tree is known.
struct Reader {
    whats: Vec<What>,
    tracks: BTreeMap<u64, Track>,
    open: BTreeMap<u64, Vec<usize>>,
    slices: Vec<Slice>,
    counted: Vec<Counted>,
    addresses: BTreeMap<u64, String>,
    header: Option<Header>,
}

impl Read {
    /// # Errors
    /// One line that names the file and what is wrong with it.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |why: String| Error::user(format!("trace {}: {why}", path.display()));
        let file = std::fs::File::open(path).map_err(|e| failed(e.to_string()))?;
        Self::of(file).map_err(failed)
    }

    /// Reads a trace piece by piece: what is kept is its spans and values of counters.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn of(mut from: impl std::io::Read) -> std::result::Result<Self, String> {
        let mut r = Reader {
            whats: events::all(),
            tracks: BTreeMap::new(),
            open: BTreeMap::new(),
            slices: Vec::new(),
            counted: Vec::new(),
            addresses: BTreeMap::new(),
            header: None,
        };
        let (mut piece, mut kept, mut bytes) = (vec![0; PIECE_BYTES], 0, 0);
        let mut packets = 0;
        loop {
            let got = match from.read(&mut piece[kept..]) {
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                got => got.map_err(|e| e.to_string())?,
            };
            bytes += got as u64;
            kept += got;
            if bytes == 0 {
                return Err("is empty".into());
            }
            let whole = wire::whole(&piece[..kept]);
            for packet in Fields(&piece[..whole]) {
                r.take(packet, packets)?;
                packets += 1;
            }
            // What is left is the beginning of a packet, unless nothing follows or no packet is so long.
            let left = kept - whole;
            if left > 0 && (got == 0 || left == PIECE_BYTES) {
                r.take(Err(Broken), packets)?;
            }
            if got == 0 {
                return r.finish(bytes);
            }
            piece.copy_within(whole..kept, 0);
            kept = left;
        }
    }

    /// Faults: address of the part, effect, and from when to when.
    pub fn faults(&self) -> impl Iterator<Item = (&str, &str, (Ps, Ps))> {
        let faults = self.slices.iter().filter(|s| s.what == What::Fault);
        faults.map(|s| {
            let effect = self.word(s, Key::Effect).unwrap_or("fault");
            (self.actor(s.track), effect, (s.start_ps, s.end_ps))
        })
    }

    /// Address of the actor of a track.
    pub fn actor(&self, track: u32) -> &str {
        &self.actors[track as usize]
    }

    /// Name of a track below its actor.
    pub fn stream(&self, track: u32) -> &str {
        &self.streams[track as usize]
    }

    /// An annotation that names an actor, or is another word.
    pub fn word(&self, slice: &Slice, key: Key) -> Option<&str> {
        let iid = slice.notes.interned(key)?;
        self.addresses.get(&iid).map(String::as_str)
    }
}

const FOREIGN: &str = "is not a trace of Supernode (its first packet does not say so)";

/// Read at one time; no packet is longer.
const PIECE_BYTES: usize = 4 << 20;

impl Reader {
    /// Takes the `n`th field of the file.
    fn take(
        &mut self,
        packet: std::result::Result<(u32, Field<'_>), Broken>,
        n: u64,
    ) -> std::result::Result<(), String> {
        let parsed = packet.and_then(|(number, field)| match (number, field) {
            (1, Field::Bytes(b)) => self.packet(b),
            _ => Err(Broken),
        });
        let Some(header) = &self.header else {
            return Err(FOREIGN.into());
        };
        if header.version != VERSION {
            return Err(format!(
                "was written as version {} (by Supernode {}), this program reads version {VERSION}: trace the run again",
                header.version, header.program
            ));
        }
        parsed
            .map_err(|_| format!("is truncated or damaged after {n} packets: trace the run again"))
    }

    fn packet(&mut self, bytes: &[u8]) -> std::result::Result<(), Broken> {
        let mut ns = 0;
        let mut event = None;
        for field in Fields(bytes) {
            match field? {
                (8, f) => ns = f.uint(),
                (11, f) => event = Some(f.bytes()),
                (12, f) => self.interned(f.bytes())?,
                (60, f) => self.track(f.bytes())?,
                _ => {}
            }
        }
        match event {
            Some(event) if self.header.is_some() => self.event(ns, event),
            _ => Ok(()),
        }
    }

    fn interned(&mut self, bytes: &[u8]) -> std::result::Result<(), Broken> {
        for field in Fields(bytes) {
            if let (29, entry) = field? {
                let (mut iid, mut text) = (0, String::new());
                for f in Fields(entry.bytes()) {
                    match f? {
                        (1, f) => iid = f.uint(),
                        (2, f) => text = f.text(),
                        _ => {}
                    }
                }
                self.addresses.insert(iid, text);
            }
        }
        Ok(())
    }

    fn track(&mut self, bytes: &[u8]) -> std::result::Result<(), Broken> {
        let (mut uuid, mut track, mut about) = (0, Track::default(), None);
        for field in Fields(bytes) {
            match field? {
                (1, f) => uuid = f.uint(),
                (2, f) => track.name = f.text(),
                (5, f) => track.parent = f.uint(),
                (14, f) => about = Some(f.text()),
                _ => {}
            }
        }
        if self.header.is_none() {
            let text = about.ok_or(Broken)?;
            let value: serde_json::Value = serde_json::from_str(&text).map_err(|_| Broken)?;
            if value["format"] != FORMAT {
                return Err(Broken);
            }
            let word = |key: &str| value[key].as_str().unwrap_or("?").to_string();
            // Of another version, only what every version says is looked at.
            self.header = Some(
                serde_json::from_value(value.clone()).unwrap_or_else(|_| Header {
                    format: FORMAT.into(),
                    version: value["version"].as_u64().unwrap_or(0) as u32,
                    program: word("program"),
                    machine: word("machine"),
                    model: word("model"),
                    seed: 0,
                    fidelity: word("fidelity"),
                }),
            );
        }
        self.tracks.insert(uuid, track);
        Ok(())
    }

    fn event(&mut self, ns: u64, bytes: &[u8]) -> std::result::Result<(), Broken> {
        let (mut kind, mut track, mut name, mut value) = (0, 0, 0, 0);
        let mut notes = Out::default();
        for field in Fields(bytes) {
            match field? {
                (9, f) => kind = f.uint(),
                (11, f) => track = f.uint(),
                (10, f) => name = f.uint(),
                (30, f) => value = f.uint(),
                (4, f) => notes.bytes(4, sound(f.bytes())?),
                _ => {}
            }
        }
        let notes = Notes(notes.0.into());
        let track32 = u32::try_from(track).map_err(|_| Broken)?;
        match kind {
            4 => self.counted.push(Counted {
                track: track32,
                at_ps: ns * PS_PER_NS,
                value,
            }),
            1 | 3 => {
                // Arrows' ends are for the eye.
                let what = match self.whats.get((name as usize).wrapping_sub(1)) {
                    Some(&what) => what,
                    None if name >= events::GIVEN => What::Fault,
                    None => return Ok(()),
                };
                let start_ps = ns * PS_PER_NS + notes.count(Key::StartSubPs);
                if kind == 1 {
                    self.open.entry(track).or_default().push(self.slices.len());
                }
                // A request's own span ends when it does, and a fault's.
                let ps = notes.uint(Key::Ps).unwrap_or(0);
                self.slices.push(Slice {
                    what,
                    track: track32,
                    start_ps,
                    end_ps: start_ps + ps,
                    notes,
                });
            }
            2 => {
                let open = self.open.get_mut(&track).and_then(Vec::pop).ok_or(Broken)?;
                let slice = &mut self.slices[open];
                if slice.notes.uint(Key::Ps).is_none() {
                    slice.end_ps = slice.start_ps.max(ns * PS_PER_NS);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn finish(mut self, bytes: u64) -> std::result::Result<Read, String> {
        let header = self.header.ok_or(FOREIGN)?;
        // What has not ended lasts to the end of the trace.
        let last_ps = self.slices.iter().map(|s| s.end_ps).max().unwrap_or(0);
        for open in self.open.into_values().flatten() {
            self.slices[open].end_ps = last_ps;
        }
        let most = self.tracks.keys().next_back().copied().unwrap_or(0) as usize;
        let (mut actors, mut streams) =
            (vec![String::new(); most + 1], vec![String::new(); most + 1]);
        for (&uuid, track) in &self.tracks {
            let mut path = Vec::new();
            let mut at = track.parent;
            while let Some(t) = self.tracks.get(&at) {
                path.push(t.name.as_str());
                at = t.parent;
            }
            path.reverse();
            actors[uuid as usize] = path.join("/");
            streams[uuid as usize] = track.name.clone();
        }
        Ok(Read {
            header,
            slices: self.slices,
            counted: self.counted,
            actors,
            streams,
            addresses: self.addresses,
            bytes,
        })
    }
}

/// A message that is whole.
fn sound(bytes: &[u8]) -> std::result::Result<&[u8], Broken> {
    Fields(bytes).try_for_each(|f| f.map(|_| ()))?;
    Ok(bytes)
}
