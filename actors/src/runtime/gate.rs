//! The barrier between executor threads, and what each of them tells the others at it. Waiting spins for a bounded
//! time, then yields: a window is worth a few microseconds, and the cores may be shared.

use std::sync::atomic::{
    AtomicBool, AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release,
};
use std::time::Duration;

use crate::time::Ps;

/// One cache line or two of its own, so that publishing does not disturb the neighbours.
#[repr(align(128))]
#[derive(Default)]
struct Padded<T>(T);

/// [`Agreed`], to be read by others. Two of them, used in turn: a fast executor may be one barrier ahead.
#[derive(Default)]
struct Said {
    next: AtomicU64,
    flight: AtomicU64,
    limit: AtomicU64,
    stop: AtomicBool,
}

#[derive(Default)]
struct Slot {
    epoch: AtomicU64,
    said: [Said; 2],
}

/// The others will not come: one of them died, or was never there.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Broken;

/// What one executor says at a barrier, or all of them together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Agreed {
    /// The earliest event queued or in flight.
    pub next: Ps,
    /// The earliest time at which something in flight can make its receiver send on.
    pub flight: Ps,
    /// Events at this time or later are left alone.
    pub limit: Ps,
    /// The slice ends here.
    pub stop: bool,
}

pub(super) struct Gate {
    slots: Vec<Padded<Slot>>,
    /// By shard, two in turn: the earliest time at which its queued events make it send to another shard.
    reach: Vec<Padded<[AtomicU64; 2]>>,
    broken: AtomicBool,
    spins: u32,
}

const YIELDS: u32 = 2_000;
const NAP: Duration = Duration::from_micros(50);

impl Gate {
    pub fn new(executors: usize, shards: usize, cores: usize) -> Self {
        Self {
            slots: (0..executors).map(|_| Padded::default()).collect(),
            reach: (0..shards).map(|_| Padded::default()).collect(),
            broken: AtomicBool::new(false),
            // With more threads than cores, spinning keeps away the one that is waited for.
            spins: if executors <= cores { 1_000 } else { 0 },
        }
    }

    pub fn break_up(&self) {
        self.broken.store(true, Release);
    }

    pub fn set_reach(&self, shard: usize, epoch: u64, reach: Ps) {
        self.reach[shard].0[(epoch & 1) as usize].store(reach, Relaxed);
    }

    pub fn reach(&self, shard: usize, epoch: u64) -> Ps {
        self.reach[shard].0[(epoch & 1) as usize].load(Relaxed)
    }

    /// Says this executor's part of `epoch`, waits for the others', and returns what they come to together.
    pub fn meet(&self, executor: usize, epoch: u64, part: Agreed) -> Result<Agreed, Broken> {
        let side = (epoch & 1) as usize;
        let mine = &self.slots[executor].0;
        mine.said[side].next.store(part.next, Relaxed);
        mine.said[side].flight.store(part.flight, Relaxed);
        mine.said[side].limit.store(part.limit, Relaxed);
        mine.said[side].stop.store(part.stop, Relaxed);
        mine.epoch.store(epoch, Release);
        let mut agreed = part;
        for (i, slot) in self.slots.iter().enumerate() {
            if i == executor {
                continue;
            }
            self.wait(&slot.0, epoch)?;
            let said = &slot.0.said[side];
            agreed.next = agreed.next.min(said.next.load(Relaxed));
            agreed.flight = agreed.flight.min(said.flight.load(Relaxed));
            agreed.limit = agreed.limit.min(said.limit.load(Relaxed));
            agreed.stop |= said.stop.load(Relaxed);
        }
        Ok(agreed)
    }

    fn wait(&self, slot: &Slot, epoch: u64) -> Result<(), Broken> {
        let mut patience = self.patience();
        while slot.epoch.load(Acquire) < epoch {
            patience.wait()?;
        }
        Ok(())
    }

    /// Whether an executor has come to the barrier `epoch`.
    pub fn has_come(&self, executor: usize, epoch: u64) -> bool {
        self.slots[executor].0.epoch.load(Acquire) >= epoch
    }

    /// For one wait for another executor.
    pub fn patience(&self) -> Patience<'_> {
        Patience {
            broken: &self.broken,
            spins: self.spins,
            tries: 0,
        }
    }
}

/// Waiting for another executor: at first awake, then less and less.
pub(super) struct Patience<'a> {
    broken: &'a AtomicBool,
    spins: u32,
    tries: u32,
}

impl Patience<'_> {
    /// Between two looks.
    pub fn wait(&mut self) -> Result<(), Broken> {
        if self.broken.load(Acquire) {
            return Err(Broken);
        }
        self.tries = self.tries.saturating_add(1);
        if self.tries <= self.spins {
            std::hint::spin_loop();
        } else if self.tries <= self.spins + YIELDS {
            std::thread::yield_now();
        } else {
            std::thread::sleep(NAP);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_executors_agree_at_every_barrier() {
        const EPOCHS: u64 = 2_000;
        let gate = Gate::new(3, 3, 2);
        std::thread::scope(|scope| {
            for me in 0..3u64 {
                let gate = &gate;
                scope.spawn(move || {
                    for epoch in 1..=EPOCHS {
                        gate.set_reach(me as usize, epoch, epoch * 10 + me);
                        let stop = epoch == EPOCHS && me == 1;
                        let part = |me| Agreed {
                            next: epoch * 5 + me,
                            flight: epoch * 7 - me,
                            limit: me,
                            stop,
                        };
                        let agreed = gate.meet(me as usize, epoch, part(me)).unwrap();
                        let stop = epoch == EPOCHS;
                        assert_eq!(
                            agreed,
                            Agreed {
                                next: epoch * 5,
                                flight: epoch * 7 - 2,
                                limit: 0,
                                stop
                            }
                        );
                        for shard in 0..3 {
                            assert_eq!(gate.reach(shard, epoch), epoch * 10 + shard as u64);
                        }
                    }
                });
            }
        });
    }

    #[test]
    fn nobody_waits_for_the_dead() {
        let gate = Gate::new(2, 2, 2);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                gate.meet(
                    0,
                    1,
                    Agreed {
                        next: 0,
                        flight: 0,
                        limit: 0,
                        stop: false,
                    },
                )
            });
            gate.break_up();
            assert_eq!(waiting.join().unwrap(), Err(Broken));
        });
    }
}
