//! Decides, slice by slice, whether the shards are spread over the executors or all run on one. Either way gives the
//! same results; which is faster depends on how much work a window holds.

use super::executor::Tally;

/// Wall time of a barrier between threads that are awake, with the exchange of a batch.
const BARRIER_NS: f64 = 3_000.0;
/// Spreading must promise at least this much to be tried, and show it to be kept.
const GAIN_LEAST: f64 = 1.1;
/// Weight of the last slice in the gain that is shown: a core that is lent to others for some milliseconds is not yet a
/// reason to do without it.
const GAIN_WEIGHT: f64 = 0.25;
/// Slices to stay together after spreading did not pay: doubled each time, up to the last of these.
const STAY_FIRST: u32 = 4;
const STAY_MOST: u32 = 256;

/// Of the wall time between two words of a shard to the other: much less than a window is worth, much more than a word.
const WORD_NS: f64 = 2_000.0;
const EVENTS_PER_WORD_MOST: f64 = 64.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Placement {
    /// All shards on one executor.
    Together,
    Spread,
}

pub(super) struct Pace {
    placement: Placement,
    /// Never changes: there is one executor, or the user fixed their number.
    fixed: bool,
    /// Of spreading: first as promised, then as shown.
    gain: f64,
    stay: u32,
    stay_next: u32,
    events_per_word: u64,
}

impl Pace {
    pub fn fixed(placement: Placement) -> Self {
        Self {
            placement,
            fixed: true,
            gain: 1.0,
            stay: 0,
            stay_next: STAY_FIRST,
            events_per_word: 1,
        }
    }

    pub fn adaptive() -> Self {
        Self {
            placement: Placement::Together,
            fixed: false,
            gain: 1.0,
            stay: 0,
            stay_next: STAY_FIRST,
            events_per_word: 1,
        }
    }

    pub fn placement(&self) -> Placement {
        self.placement
    }

    pub fn events_per_word(&self) -> u64 {
        self.events_per_word
    }

    /// Learns from a slice: its tally, summed over executors, and its wall time.
    pub fn learn(&mut self, tally: &Tally, wall_ns: u64) {
        if tally.windows == 0 || tally.events == 0 {
            return;
        }
        let spent_ns = match self.placement {
            Placement::Together => wall_ns,
            Placement::Spread => tally.busy_ns,
        };
        let event_ns = (spent_ns.max(1) as f64) / tally.events as f64;
        self.events_per_word = (WORD_NS / event_ns).clamp(1.0, EVENTS_PER_WORD_MOST) as u64;
        if self.fixed {
            return;
        }
        match self.placement {
            Placement::Together => {
                self.stay = self.stay.saturating_sub(1);
                if self.stay > 0 {
                    return;
                }
                let wall = wall_ns as f64;
                let spread = wall * tally.critical as f64 / tally.events as f64
                    + tally.windows as f64 * BARRIER_NS;
                self.gain = wall / spread;
                if self.gain > GAIN_LEAST {
                    tracing::debug!(
                        predicted_gain = self.gain,
                        "shards are spread over the executors"
                    );
                    self.placement = Placement::Spread;
                }
            }
            Placement::Spread => {
                let gain = tally.busy_ns as f64 / wall_ns.max(1) as f64;
                self.gain += GAIN_WEIGHT * (gain - self.gain);
                tracing::debug!(gain, shown = self.gain, "a slice with shards spread");
                if self.gain < GAIN_LEAST {
                    tracing::debug!(stay = self.stay_next, "shards are run together");
                    self.placement = Placement::Together;
                    self.stay = self.stay_next;
                    self.stay_next = (2 * self.stay_next).min(STAY_MOST);
                } else {
                    self.stay_next = STAY_FIRST;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(windows: u64, events: u64, critical: u64, busy_ns: u64) -> Tally {
        Tally {
            windows,
            events,
            critical,
            busy_ns,
            ..Tally::default()
        }
    }

    #[test]
    fn sparse_windows_are_run_together() {
        let mut pace = Pace::adaptive();
        // 100 ns of work per window: a barrier costs thirty times that.
        pace.learn(&tally(10_000, 20_000, 10_000, 0), 1_000_000);
        assert_eq!(pace.placement(), Placement::Together);
    }

    #[test]
    fn rich_windows_are_spread_until_it_does_not_pay() {
        let mut pace = Pace::adaptive();
        // 100 us of work per window, evenly split.
        pace.learn(&tally(100, 200_000, 100_000, 0), 10_000_000);
        assert_eq!(pace.placement(), Placement::Spread);
        let good = tally(100, 200_000, 0, 18_000_000);
        let bad = tally(100, 200_000, 0, 10_000_000);
        pace.learn(&good, 10_000_000);
        // One slice in which the other core was away.
        pace.learn(&bad, 10_000_000);
        assert_eq!(pace.placement(), Placement::Spread);
        let mut slices = 0;
        while pace.placement() == Placement::Spread && slices < 20 {
            pace.learn(&bad, 10_000_000);
            slices += 1;
        }
        assert!((2..20).contains(&slices), "{slices} slices that do not pay");
        // And not at once again.
        pace.learn(&tally(100, 200_000, 100_000, 0), 10_000_000);
        assert_eq!(pace.placement(), Placement::Together);
    }

    #[test]
    fn work_of_one_shard_alone_is_not_spread() {
        let mut pace = Pace::adaptive();
        pace.learn(&tally(100, 200_000, 195_000, 0), 10_000_000);
        assert_eq!(pace.placement(), Placement::Together);
    }
}
