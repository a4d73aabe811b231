//! How far one of two shards has come, told to the other while both run: the other need not stop at the end of its
//! window when it knows more by then. It takes no barrier and no lock.

use std::sync::atomic::{AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};

use crate::time::Ps;

/// What a shard says of itself from time to time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Said {
    /// Nothing that waits in its queue makes it send to the other shard before this.
    pub reach: Ps,
    /// Parcels of the other that it has taken in, and that `reach` speaks of.
    pub taken: u64,
}

/// The words of one shard, on cache lines of their own. It alone writes them.
#[repr(align(128))]
#[derive(Default)]
pub(super) struct Lead {
    reach: AtomicU64,
    taken: AtomicU64,
    /// How often something was said.
    version: AtomicU64,
    /// The version of the other's words with which it could not go on; 0 while it can.
    stuck_with: AtomicU64,
}

impl Lead {
    /// Parcels sent before are there for whoever reads this.
    pub fn say(&self, said: Said) {
        // In this order: who reads the new `taken` also reads the new `reach`. The other way round is harmless,
        // as parcels not known to be taken are reckoned with by their sender.
        self.reach.store(said.reach, Release);
        self.taken.store(said.taken, Release);
        let version = self.version.load(Relaxed);
        self.version.store(version + 1, Release);
    }

    /// The last words, or later ones than the version that is returned with them.
    pub fn read(&self) -> (u64, Said) {
        let version = self.version.load(Acquire);
        let taken = self.taken.load(Acquire);
        let reach = self.reach.load(Acquire);
        (version, Said { reach, taken })
    }

    pub fn version(&self) -> u64 {
        self.version.load(Relaxed)
    }

    /// It can do nothing with the other's words of this version; 0: it goes on.
    pub fn set_stuck(&self, version: u64) {
        if self.stuck_with.load(Relaxed) != version {
            self.stuck_with.store(version, Release);
        }
    }

    pub fn stuck_with(&self) -> u64 {
        self.stuck_with.load(Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_was_said_together_or_speaks_of_fewer_parcels() {
        const LAST: u64 = 100_000;
        let lead = Lead::default();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for i in 1..=LAST {
                    lead.say(Said {
                        reach: 10 * i,
                        taken: i,
                    });
                }
            });
            let mut version = 0;
            while version < LAST {
                let (v, said) = lead.read();
                assert!(v >= version, "words are not taken back");
                assert!(said.taken >= v, "at least what that version said");
                assert!(
                    said.reach >= 10 * said.taken,
                    "no reach of before a parcel was taken"
                );
                version = v;
            }
        });
    }
}
