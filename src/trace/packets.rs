//! Records to packets: interned names, tracks described when they are first used, spans as pairs of begin and end,
//! flows between the two ends of a transfer and between a flag and who waited for it. Memory is bounded by the
//! requests that are followed at one time and the actors that appear.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use supernode_actors::config::Fidelity;
use supernode_actors::layout::mix;
use supernode_actors::time::{PS_PER_NS, Ps};
use supernode_actors::trace::{Limit, Place, Record, Stage, What};
use supernode_topology::{ActorId, Machine};

use super::bandwidth::Bandwidth;
use super::events::{self, Key};
use super::tracks::{Counted, STREAMS, Stream, shown_address, stream_name};
use super::wire::Out;
use crate::scenario::Scenario;

/// What the first packet says of the file, as JSON in a track's description.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    pub format: String,
    pub version: u32,
    pub program: String,
    pub machine: String,
    pub model: String,
    pub seed: u64,
    pub fidelity: String,
}

impl Header {
    pub fn of(scenario: &Scenario) -> Self {
        Self {
            format: FORMAT.into(),
            version: VERSION,
            program: env!("CARGO_PKG_VERSION").into(),
            machine: scenario.machine.clone(),
            model: scenario.model.clone(),
            seed: scenario.seed,
            fidelity: match scenario.fidelity.level {
                Fidelity::Message => "message",
                Fidelity::Step => "step",
            }
            .into(),
        }
    }
}

pub const FORMAT: &str = "supernode trace";
pub const VERSION: u32 = 2;

/// Fields of Perfetto's messages.
const PACKET: u32 = 1;
const TIMESTAMP: u32 = 8;
const SEQUENCE: u32 = 10;
const TRACK_EVENT: u32 = 11;
const INTERNED: u32 = 12;
const SEQUENCE_FLAGS: u32 = 13;
const TRACK_DESCRIPTOR: u32 = 60;
/// Of interned data.
const EVENT_NAMES: u32 = 2;
const ANNOTATION_STRINGS: u32 = 29;
pub(super) const BEGIN: u64 = 1;
pub(super) const END: u64 = 2;
pub(super) const INSTANT: u64 = 3;
const COUNTER: u64 = 4;

/// Sends of one die that a later flag may be traced back to.
const SENDS_KEPT: usize = 6;

/// Requests at one time whose marks are kept together.
#[derive(Debug)]
pub(super) struct Followed {
    pub(super) track: u64,
    pub(super) arrived_ps: Ps,
    /// End of the last stage.
    pub(super) since_ps: Ps,
}

/// A send that has gone out: whose, and when its first flag left.
type SendKey = (Stage, Place);

/// A word of an annotation, interned when it is first used.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Word {
    Actor(u32),
    Limit(u64),
    Effect(String),
}

/// Makes packets of records.
#[derive(Debug)]
pub struct Writer {
    machine: Arc<Machine>,
    out: Out,
    next_track: u64,
    /// By actor and stream, 0 while not described.
    streams: Vec<[u64; STREAMS]>,
    counters: BTreeMap<(u32, Counted), u64>,
    places: BTreeMap<String, u64>,
    pub(super) requests_track: u64,
    pub(super) followed: BTreeMap<u64, Followed>,
    sends: BTreeMap<u32, VecDeque<(SendKey, Ps)>>,
    words: BTreeMap<Word, u64>,
    /// Names of events beside those that every file has.
    names: BTreeMap<String, u64>,
    /// Faults in force, by part and number: their tracks.
    faults: BTreeMap<(u32, u64), u64>,
    bandwidth: Bandwidth,
    /// Requests that arrived outside are not followed.
    pub(super) window_ps: (Ps, Ps),
    pub spans: u64,
}

impl Writer {
    pub fn new(machine: Arc<Machine>, header: &Header, window_ps: (Ps, Ps)) -> Self {
        let actors = machine.actor_count() as usize;
        let mut w = Self {
            machine,
            out: Out::default(),
            next_track: 1,
            streams: vec![[0; STREAMS]; actors],
            counters: BTreeMap::new(),
            places: BTreeMap::new(),
            requests_track: 0,
            followed: BTreeMap::new(),
            sends: BTreeMap::new(),
            words: BTreeMap::new(),
            names: BTreeMap::new(),
            faults: BTreeMap::new(),
            bandwidth: Bandwidth::default(),
            window_ps,
            spans: 0,
        };
        w.head(header);
        w
    }

    /// The packets so far that were not taken yet: whole packets only.
    pub fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.out.0
    }

    fn packet(&mut self, content: impl FnOnce(&mut Out)) {
        self.out.message(PACKET, |p| {
            content(p);
            p.uint(SEQUENCE, 1);
        });
    }

    /// Says what the file is, and all names.
    fn head(&mut self, header: &Header) {
        let text = serde_json::to_string(header).expect("a header is plain data");
        let track = self.next_track;
        self.next_track += 1;
        self.packet(|p| {
            p.uint(SEQUENCE_FLAGS, 1);
            p.message(TRACK_DESCRIPTOR, |d| {
                d.uint(1, track);
                d.bytes(2, b"about this trace");
                d.bytes(14, text.as_bytes());
            });
            p.message(INTERNED, |i| {
                let entry = |i: &mut Out, field, iid: usize, name: &str| {
                    i.message(field, |e| {
                        e.uint(1, iid as u64);
                        e.bytes(2, name.as_bytes());
                    });
                };
                for (n, name) in events::CATEGORIES.iter().enumerate() {
                    entry(i, 1, n + 1, name);
                }
                let names = events::all().into_iter().map(events::name);
                let extra = events::EXTRA.iter().map(|n| (*n).to_string());
                for (n, name) in names.chain(extra).enumerate() {
                    entry(i, EVENT_NAMES, n + 1, &name);
                }
                for (n, name) in events::KEYS.iter().enumerate() {
                    entry(i, 3, n + 1, name);
                }
            });
        });
    }

    pub(super) fn describe(&mut self, parent: u64, name: &str, counts: Option<&str>) -> u64 {
        let track = self.next_track;
        self.next_track += 1;
        self.packet(|p| {
            p.message(TRACK_DESCRIPTOR, |d| {
                d.uint(1, track);
                d.bytes(2, name.as_bytes());
                if parent != 0 {
                    d.uint(5, parent);
                }
                if let Some(unit) = counts {
                    d.message(8, |c| {
                        c.uint(3, 2);
                        c.bytes(6, unit.as_bytes());
                    });
                }
            });
        });
        track
    }

    /// The track of an address, below those of what it is part of.
    fn place(&mut self, address: &str) -> u64 {
        if let Some(&track) = self.places.get(address) {
            return track;
        }
        let (parent, name) = match address.rsplit_once('/') {
            Some((parent, name)) => (self.place(parent), name),
            None => (0, address),
        };
        let track = self.describe(parent, name, None);
        self.places.insert(address.to_string(), track);
        track
    }

    fn stream(&mut self, actor: u32, stream: Stream) -> u64 {
        let known = self.streams[actor as usize][stream as usize];
        if known != 0 {
            return known;
        }
        let address = shown_address(&self.machine, actor);
        let parent = self.place(&address);
        let track = self.describe(parent, stream_name(stream), None);
        self.streams[actor as usize][stream as usize] = track;
        track
    }

    /// The number under which a word is interned.
    fn word(&mut self, word: Word) -> u64 {
        if let Some(&iid) = self.words.get(&word) {
            return iid;
        }
        let iid = self.words.len() as u64 + 1;
        match &word {
            Word::Actor(actor) => {
                let text = shown_address(&self.machine, *actor);
                self.intern(ANNOTATION_STRINGS, iid, &text);
            }
            Word::Limit(limit) => self.intern(ANNOTATION_STRINGS, iid, limit_name(*limit)),
            Word::Effect(text) => self.intern(ANNOTATION_STRINGS, iid, text),
        }
        self.words.insert(word, iid);
        iid
    }

    pub(super) fn address(&mut self, actor: u32) -> u64 {
        self.word(Word::Actor(actor))
    }

    /// The number of an event's name that only this file has.
    fn name(&mut self, text: &str) -> u64 {
        if let Some(&iid) = self.names.get(text) {
            return iid;
        }
        let iid = events::GIVEN + self.names.len() as u64;
        self.intern(EVENT_NAMES, iid, text);
        self.names.insert(text.to_string(), iid);
        iid
    }

    fn intern(&mut self, field: u32, iid: u64, text: &str) {
        self.packet(|p| {
            p.uint(SEQUENCE_FLAGS, 2);
            p.message(INTERNED, |i| {
                i.message(field, |e| {
                    e.uint(1, iid);
                    e.bytes(2, text.as_bytes());
                });
            });
        });
    }

    /// One event; `notes` adds annotations.
    pub(super) fn event(
        &mut self,
        kind: u64,
        ps: Ps,
        track: u64,
        named: Option<(u64, usize)>,
        flow: Option<u64>,
        notes: impl FnOnce(&mut Notes<'_>),
    ) {
        self.packet(|p| {
            p.uint(TIMESTAMP, ps / PS_PER_NS);
            p.message(TRACK_EVENT, |e| {
                e.uint(9, kind);
                e.uint(11, track);
                if let Some((name, category)) = named {
                    e.uint(3, category as u64 + 1);
                    e.uint(10, name);
                }
                if let Some(flow) = flow {
                    e.fixed64(47, flow);
                }
                notes(&mut Notes(e));
            });
            // An end refers to no names.
            if kind != END {
                p.uint(SEQUENCE_FLAGS, 2);
            }
        });
    }

    pub(super) fn span(
        &mut self,
        track: u64,
        what: What,
        (start_ps, end_ps): (Ps, Ps),
        flow: Option<u64>,
        notes: impl FnOnce(&mut Notes<'_>),
    ) {
        self.spans += 1;
        let named = Some((events::number(what), events::category(what)));
        self.event(BEGIN, start_ps, track, named, flow, |n| {
            n.uint(Key::Ps, end_ps - start_ps);
            n.some(Key::StartSubPs, start_ps % PS_PER_NS);
            notes(n);
        });
        self.event(END, end_ps, track, None, None, |_| ());
    }

    /// Writes one record.
    pub fn record(&mut self, r: &Record) {
        match r.what {
            What::Mark(mark) => self.mark(r, mark),
            What::Counter(c) => {
                let track = self.counter(r.actor, Counted::Of(c));
                self.count(track, r.start_ps, r.a);
            }
            What::Fault => self.fault(r),
            What::FaultOver => {
                if let Some(track) = self.faults.remove(&(r.actor, r.a)) {
                    self.event(END, r.at_ps, track, None, None, |_| ());
                }
            }
            What::Uplinks => self.carried(r, r.b == 1),
            _ => self.operator(r),
        }
    }

    /// Writes what is known at the end only: the last of the counters that are means over time.
    pub fn finish(&mut self) {
        for (actor, out, at_ps, mb_per_s) in self.bandwidth.finish() {
            let track = self.counter(actor, Counted::Bandwidth { out });
            self.count(track, at_ps, mb_per_s);
        }
    }

    /// The track of a counter, below its actor.
    fn counter(&mut self, actor: u32, what: Counted) -> u64 {
        if let Some(&track) = self.counters.get(&(actor, what)) {
            return track;
        }
        let (name, unit) = what.name();
        let address = shown_address(&self.machine, actor);
        let parent = self.place(&address);
        let track = self.describe(parent, name, Some(unit));
        self.counters.insert((actor, what), track);
        track
    }

    fn count(&mut self, track: u64, at_ps: Ps, value: u64) {
        self.packet(|p| {
            p.uint(TIMESTAMP, at_ps / PS_PER_NS);
            p.message(TRACK_EVENT, |e| {
                e.uint(9, COUNTER);
                e.uint(11, track);
                e.uint(30, value);
            });
        });
    }

    /// A link carried bytes.
    fn carried(&mut self, r: &Record, out: bool) {
        let closed = self
            .bandwidth
            .carried(r.actor, out, r.at_ps, (r.start_ps, r.end_ps), r.a);
        for (at_ps, mb_per_s) in closed {
            let track = self.counter(r.actor, Counted::Bandwidth { out });
            self.count(track, at_ps, mb_per_s);
        }
    }

    /// A fault strikes a part: a span that is open until it is over, on a track of its own, as several may overlap.
    fn fault(&mut self, r: &Record) {
        let (number, kind) = (r.a & 0xffff_ffff, r.a >> 32);
        let text = events::effect(kind, r.b);
        let name = self.name(&text);
        let word = self.word(Word::Effect(text));
        let address = self.machine.address(ActorId(r.actor));
        let parent = self.place(&address);
        let track = self.describe(parent, "faults", None);
        self.faults.insert((r.actor, number), track);
        self.spans += 1;
        let named = Some((name, events::FAULT));
        self.event(BEGIN, r.at_ps, track, named, None, |n| {
            n.some(Key::StartSubPs, r.at_ps % PS_PER_NS);
            n.uint(Key::Fault, number);
            n.interned(Key::Effect, word);
        });
    }

    fn operator(&mut self, r: &Record) {
        match r.what {
            What::TransferOut | What::PhaseOut => self.carried(r, true),
            What::TransferIn | What::PhaseIn => self.carried(r, false),
            _ => {}
        }
        let (what, a, b) = (r.what, r.a, r.b);
        // A wait of no time is no span.
        if r.start_ps == r.end_ps && what == What::Stage(Stage::WaitMoeStream) {
            return;
        }
        let track = self.stream(r.actor, Stream::of(what, r.place.part));
        let waited = events::collects(what).then(|| a.checked_sub(1)).flatten();
        let waited_for = waited.map(|actor| self.address(actor as u32));
        let limit = match what {
            What::Send(_) => self.word(Word::Limit(b)),
            _ => 0,
        };
        let flow = match what {
            What::TransferOut | What::TransferIn => Some(b),
            _ => None,
        };
        let (start_ps, place) = (r.start_ps, r.place);
        self.span(track, what, (r.start_ps, r.end_ps), flow, |n| {
            if place.run > 0 {
                n.uint(Key::Run, place.run.into());
            }
            match what {
                What::Stage(_) | What::Send(_) | What::PhaseOut | What::PhaseIn => {
                    n.uint(Key::Layer, place.layer.into());
                    n.some(Key::Microbatch, place.part.into());
                }
                _ => {}
            }
            match what {
                What::Stage(Stage::Experts) if b > 0 => {
                    n.uint(Key::Expert, a);
                    n.uint(Key::ExpertTokens, b & 0xffff_ffff);
                    n.uint(Key::Tokens, b >> 32);
                }
                What::Send(_) => {
                    n.uint(Key::Bytes, a);
                    n.interned(Key::HeldUpBy, limit);
                }
                What::PhaseOut | What::PhaseIn => {
                    n.uint(Key::Bytes, a);
                    n.uint(Key::Messages, b);
                }
                What::TransferOut | What::TransferIn => n.uint(Key::Bytes, a),
                What::Step | What::GroupStep => {
                    n.uint(Key::Requests, a);
                    n.some(Key::Drawn, b);
                }
                What::Batch | What::GroupBatch => {
                    n.uint(Key::Tokens, a);
                    n.some(Key::Drawn, b);
                }
                _ => {}
            }
            if let Some(iid) = waited_for {
                n.interned(Key::WaitedFor, iid);
                n.uint(Key::WaitedPs, b.saturating_sub(start_ps));
            }
        });
        match what {
            What::Send(stage) => {
                let sends = self.sends.entry(r.actor).or_default();
                sends.push_back(((stage, r.place), r.end_ps));
                if sends.len() > SENDS_KEPT {
                    sends.pop_front();
                }
            }
            What::Stage(stage) => {
                if let Some(source) = waited
                    && source as u32 != r.actor
                {
                    self.arrow(source as u32, track, (stage, r.place), r.actor, b);
                }
            }
            _ => {}
        }
    }

    /// From the flag that came last to who waited for it.
    fn arrow(&mut self, source: u32, track: u64, key: SendKey, actor: u32, at_ps: Ps) {
        let sent = self.sends.get(&source);
        let Some(&(_, sent_ps)) = sent.and_then(|s| s.iter().rev().find(|s| s.0 == key)) else {
            return;
        };
        let (stage, place) = key;
        let at =
            u64::from(place.run) << 32 | u64::from(place.layer) << 16 | u64::from(place.part) << 8;
        let flow = mix(mix(at | stage as u64) ^ (u64::from(source) << 32 | u64::from(actor)));
        let from = self.stream(source, Stream::of(What::Send(stage), place.part));
        for (i, track, ps) in [(0, from, sent_ps), (1, track, at_ps)] {
            let named = Some((events::extra(i), events::FLAG));
            self.event(INSTANT, ps, track, named, Some(flow), |_| ());
        }
    }
}

pub fn limit_name(limit: u64) -> &'static str {
    match limit {
        l if l == Limit::Lanes as u64 => "lanes",
        l if l == Limit::Sio as u64 => "sio",
        _ => "cores",
    }
}

/// Annotations of an event.
pub(super) struct Notes<'a>(&'a mut Out);

impl Notes<'_> {
    fn note(&mut self, key: Key, value: impl FnOnce(&mut Out)) {
        self.0.message(4, |a| {
            a.uint(1, key as u64 + 1);
            value(a);
        });
    }

    pub(super) fn uint(&mut self, key: Key, v: u64) {
        self.note(key, |a| a.uint(3, v));
    }

    /// Left out when it is 0.
    pub(super) fn some(&mut self, key: Key, v: u64) {
        if v > 0 {
            self.uint(key, v);
        }
    }

    pub(super) fn interned(&mut self, key: Key, iid: u64) {
        self.note(key, |a| a.uint(17, iid));
    }
}
