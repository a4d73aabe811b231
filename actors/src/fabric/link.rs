//! A link actor's state machine: full duplex, first come first served, one direction independent of the
//! other. A message's first byte arrives, waits for its turn, and occupies the link for its serialisation time.

use crate::stats::{ActorHist, BulkHist, Notes};
use crate::time::Ps;

/// One direction of a link.
#[derive(Clone, Debug, Default)]
#[repr(C, align(64))]
pub struct Direction {
    /// When everything accepted so far has passed.
    pub free_ps: Ps,
    pub busy_ps: Ps,
    pub bytes: u64,
    pub messages: u64,
    pub lost_bytes: u64,
    /// Bytes of messages that got through, sent more than once.
    pub resent_bytes: u64,
    queue: BulkHist,
    /// Visits whose time on the wire is not in `service` yet: four cache lines with what comes before, of which a visit
    /// touches two or three.
    recent: Notes<19>,
    service: ActorHist,
}

/// A visit in a word: messages in the lower bits, the mean of their times on the wire above.
const MESSAGES_BITS: u32 = 20;

/// When a message had the link to itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    pub start_ps: Ps,
    pub end_ps: Ps,
}

impl Direction {
    /// Serves a message whose first byte is there at `at_ps` and that takes `ps` to serialise.
    #[inline]
    pub fn serve(&mut self, at_ps: Ps, ps: Ps, bytes: u64) -> Served {
        let start_ps = at_ps.max(self.free_ps);
        self.free_ps = start_ps + ps;
        self.busy_ps += ps;
        self.bytes += bytes;
        self.messages += 1;
        self.queue.note(start_ps - at_ps);
        self.passed(ps, 1);
        Served {
            start_ps,
            end_ps: self.free_ps,
        }
    }

    /// Takes down what was served in one visit, in the order of service.
    pub fn served(&mut self, free_ps: Ps, busy_ps: Ps, bytes: u64, waits_ps: &[Ps]) {
        let messages = waits_ps.len() as u64;
        self.free_ps = free_ps;
        self.busy_ps += busy_ps;
        self.bytes += bytes;
        self.messages += messages;
        self.queue.record_all(waits_ps);
        self.passed(busy_ps, messages);
    }

    /// `messages` were on the wire for `busy_ps` together.
    #[inline]
    pub fn passed(&mut self, busy_ps: Ps, messages: u64) {
        let Some(mean_ps) = busy_ps.checked_div(messages) else {
            return;
        };
        if messages >> MESSAGES_BITS != 0 || mean_ps >> (u64::BITS - MESSAGES_BITS) != 0 {
            return self.service.record_n(mean_ps, messages as u32);
        }
        if let Some(recent) = self.recent.push(mean_ps << MESSAGES_BITS | messages) {
            count_visits(&recent, &mut self.service);
        }
    }

    /// Time that messages waited for their turn: number, sum and longest of all; of visits of [`BulkHist::MANY`] messages and
    /// more, one of four in their order stands for the four.
    pub fn queue(&self) -> ActorHist {
        self.queue.counted()
    }

    /// Time on the wire. Of what was served in one visit, each message's is the mean of that visit.
    pub fn service(&self) -> ActorHist {
        let mut service = self.service.clone();
        count_visits(self.recent.waiting(), &mut service);
        service
    }
}

#[inline(never)]
fn count_visits(visits: &[u64], service: &mut ActorHist) {
    for &visit in visits {
        let messages = visit & ((1 << MESSAGES_BITS) - 1);
        service.record_n(visit >> MESSAGES_BITS, messages as u32);
    }
}

/// A link: out of its die (up) and into it (down); for an uplink, towards the L2 chip (up) and from it (down);
/// for a die-to-die link, from die 0 (up) and from die 1 (down).
#[derive(Clone, Debug, Default)]
pub struct Link {
    pub up: Direction,
    pub down: Direction,
}
