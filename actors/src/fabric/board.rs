//! Where the messages of collective phases (dispatch, combine, gathers) meet, for the ranks of one group that
//! live on one shard. A source posts all its messages of a phase at once; each rank's lanes serve what was
//! posted for it, in order of arrival, when the last flag of the phase is due. The result is the one that
//! routing each message by itself gives: a test compares the two.

use super::link::Direction;
use super::paths::{BothReaches, PerByte};
use crate::message::Parcel;
use crate::time::Ps;

/// What a phase's source says beside its parcels.
#[derive(Clone, Copy, Debug)]
pub struct PhaseSend {
    pub channel: u8,
    pub phase: u32,
    pub source: u16,
    pub unit_bytes: u32,
    pub flags_from_ps: Ps,
    pub flag_ps: Ps,
}

impl PhaseSend {
    pub fn tag(&self) -> u8 {
        (self.channel << 1) | (self.phase & 1) as u8
    }
}

/// A phase in which every source has posted: the rank's flags are all in at `at_ps`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrived {
    pub rank: u16,
    pub at_ps: Ps,
}

/// What a rank got in one phase.
#[derive(Clone, Debug, Default)]
pub struct Receipt {
    /// When the last byte was in (and all flags).
    pub complete_ps: Ps,
    /// A hash over every message: source, count and time of arrival.
    pub hash: u64,
    pub messages: u32,
    pub units: u32,
}

#[derive(Clone, Debug, Default)]
struct Tag {
    phase: u32,
    unit_bytes: u32,
    /// Serialisation of one unit, from inside the node and from another.
    inside_ps: Ps,
    between_ps: Ps,
    flag_ps: Ps,
    flags_from_ps: Vec<Ps>,
    posted: u32,
}

#[derive(Clone, Debug, Default)]
struct Inbox {
    parcels: Vec<Parcel>,
    /// Per tag: last byte so far, hash, messages, units.
    got: Vec<Receipt>,
    /// Per tag: units by `slot * ranks + source`.
    counts: Vec<Vec<u16>>,
}

/// The boards of one group on one shard.
#[derive(Clone, Debug)]
pub struct Board {
    ranks: u32,
    slots_per_rank: u32,
    node_of_rank: Vec<u32>,
    /// Ranks that live on this shard, and where each is in `inboxes`.
    pub local: Vec<u16>,
    index_of: Vec<u16>,
    /// How many sources a phase waits for.
    pub expected: u32,
    cost: BothReaches,
    tags: Vec<Tag>,
    inboxes: Vec<Inbox>,
}

impl Board {
    pub fn new(
        node_of_rank: &[u32],
        slots_per_rank: u32,
        channels: u32,
        local: Vec<u16>,
        cost: BothReaches,
    ) -> Self {
        let ranks = node_of_rank.len() as u32;
        let mut index_of = vec![u16::MAX; ranks as usize];
        for (i, &r) in local.iter().enumerate() {
            index_of[r as usize] = i as u16;
        }
        let n_tags = 2 * channels as usize;
        let tag = Tag {
            flags_from_ps: vec![0; ranks as usize],
            ..Tag::default()
        };
        let inbox = Inbox {
            parcels: Vec::new(),
            got: vec![Receipt::default(); n_tags],
            counts: vec![vec![0; (ranks * slots_per_rank) as usize]; n_tags],
        };
        Self {
            ranks,
            slots_per_rank,
            node_of_rank: node_of_rank.to_vec(),
            inboxes: vec![inbox; local.len()],
            local,
            index_of,
            expected: ranks,
            cost,
            tags: vec![tag; n_tags],
        }
    }

    pub fn is_local(&self, rank: u16) -> bool {
        self.index_of[rank as usize] != u16::MAX
    }

    /// Takes what one source posts; when it is the last source of the phase, says when each local rank's
    /// last flag arrives. The order of posts does not matter.
    pub fn post(&mut self, send: &PhaseSend, parcels: &[Parcel], arrived: &mut Vec<Arrived>) {
        let tag = send.tag() as usize;
        let t = &mut self.tags[tag];
        if t.posted == 0 {
            t.phase = send.phase;
            t.flags_from_ps.fill(0);
            t.unit_bytes = send.unit_bytes;
            t.inside_ps = self.cost.inside.per_byte.ps(u64::from(send.unit_bytes));
            t.between_ps = self.cost.between.per_byte.ps(u64::from(send.unit_bytes));
            t.flag_ps = send.flag_ps;
        }
        assert_eq!(
            t.phase, send.phase,
            "a rank ran two phases ahead of another"
        );
        t.flags_from_ps[send.source as usize] = send.flags_from_ps;
        t.posted += 1;
        for p in parcels {
            self.inboxes[self.index_of[p.rank as usize] as usize]
                .parcels
                .push(*p);
        }
        if t.posted == self.expected {
            t.posted = 0;
            for &rank in &self.local {
                let at_ps = self.last_flag_ps(tag, rank);
                arrived.push(Arrived { rank, at_ps });
            }
        }
    }

    /// When the last of all ranks' flags reaches `rank`: flags leave a source one after the other, in rank
    /// order from its own rank on, its own last.
    fn last_flag_ps(&self, tag: usize, rank: u16) -> Ps {
        let t = &self.tags[tag];
        let (n, d) = (self.ranks as usize, rank as usize);
        let node = self.node_of_rank[d];
        let mut last = t.flags_from_ps[d] + t.flag_ps * n as Ps;
        let (inside, between) = (self.cost.inside.latency_ps, self.cost.between.latency_ps);
        for (s, (&from, &source_node)) in t.flags_from_ps.iter().zip(&self.node_of_rank).enumerate()
        {
            let place = if d >= s { d - s } else { d + n - s };
            let latency = if source_node == node { inside } else { between };
            if s != d && from != 0 {
                last = last.max(from + place as Ps * t.flag_ps + latency);
            }
        }
        last
    }

    /// The source whose flag was the last to reach `rank`. To be asked before anything of the phase after the next is
    /// posted: at the latest when the rank has collected this one.
    pub fn last_flag_from(&self, channel: u8, phase: u32, rank: u16) -> u16 {
        let t = &self.tags[((channel << 1) | (phase & 1) as u8) as usize];
        let (n, d) = (self.ranks as usize, rank as usize);
        let arrival = |s: usize| {
            let from = t.flags_from_ps[s];
            if s == d {
                return from + t.flag_ps * n as Ps;
            }
            let place = if d > s { d - s } else { d + n - s };
            let same_node = self.node_of_rank[s] == self.node_of_rank[d];
            from + place as Ps * t.flag_ps + self.cost.at(same_node).latency_ps
        };
        (0..n).max_by_key(|&s| arrival(s)).unwrap_or(d) as u16
    }

    /// Lets `rank`'s lanes serve all that has reached them by `now_ps`.
    pub fn serve(&mut self, rank: u16, now_ps: Ps, lanes: &mut Direction) {
        let inbox = &mut self.inboxes[self.index_of[rank as usize] as usize];
        let node = self.node_of_rank[rank as usize];
        let ranks = self.ranks as usize;
        inbox
            .parcels
            .sort_unstable_by_key(|p| (p.at_ps, p.source, p.slot));
        let due = inbox.parcels.partition_point(|p| p.at_ps <= now_ps);
        for p in &inbox.parcels[..due] {
            let t = &self.tags[p.tag as usize];
            let source = (p.source & SOURCE) as usize;
            let end_ps = if p.source & DIRECT != 0 {
                p.at_ps
            } else {
                let unit = if self.node_of_rank[source] == node {
                    t.inside_ps
                } else {
                    t.between_ps
                };
                lanes
                    .serve(
                        p.at_ps,
                        unit * Ps::from(p.count),
                        u64::from(t.unit_bytes) * u64::from(p.count),
                    )
                    .end_ps
            };
            let got = &mut inbox.got[p.tag as usize];
            got.complete_ps = got.complete_ps.max(end_ps);
            got.hash = (got.hash.rotate_left(7)
                ^ end_ps
                ^ (u64::from(p.source) << 40)
                ^ (u64::from(p.count) << 52))
                .wrapping_mul(0x9e37_79b9_7f4a_7c15);
            got.messages += 1;
            got.units += u32::from(p.count);
            inbox.counts[p.tag as usize][p.slot as usize * ranks + source] += p.count;
        }
        inbox.parcels.drain(..due);
    }

    /// Takes what `rank` got in a phase; `counts(slot, source)` are added to `out[slot * ranks + source]`.
    pub fn take(&mut self, rank: u16, channel: u8, phase: u32, out: &mut [u16]) -> Receipt {
        let tag = PhaseSend {
            channel,
            phase,
            source: 0,
            unit_bytes: 0,
            flags_from_ps: 0,
            flag_ps: 0,
        }
        .tag() as usize;
        let inbox = &mut self.inboxes[self.index_of[rank as usize] as usize];
        for (o, c) in out.iter_mut().zip(&mut inbox.counts[tag]) {
            *o = std::mem::take(c);
        }
        std::mem::take(&mut inbox.got[tag])
    }

    pub fn ranks(&self) -> u32 {
        self.ranks
    }

    pub fn slots_per_rank(&self) -> u32 {
        self.slots_per_rank
    }

    /// Nothing is left on the board: true at the end of every quiet run.
    pub fn is_clear(&self) -> bool {
        self.tags.iter().all(|t| t.posted == 0) && self.inboxes.iter().all(|i| i.parcels.is_empty())
    }

    /// Marks a parcel as not crossing the rank's lanes: over the die-to-die link or in place.
    pub fn direct(source: u16) -> u16 {
        source | DIRECT
    }

    pub fn per_byte(&self, same_node: bool) -> PerByte {
        self.cost.at(same_node).per_byte
    }
}

const DIRECT: u16 = 1 << 15;
const SOURCE: u16 = DIRECT - 1;
