//! Wall time and virtual time of a live machine: where virtual time should be, and how far behind it is.

use std::time::{Duration, Instant};

use supernode_actors::time::{PS_PER_S, Ps};

/// Virtual seconds per second on the wall.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    Times(f64),
    /// As fast as the computer can.
    Max,
}

/// Slower or faster than this is surely a slip of the keyboard.
const TIMES: std::ops::RangeInclusive<f64> = 1e-4..=1e4;

impl std::str::FromStr for Pace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "max" {
            return Ok(Self::Max);
        }
        match text.strip_suffix('x').unwrap_or(text).parse::<f64>() {
            Ok(times) if TIMES.contains(&times) => Ok(Self::Times(times)),
            _ => Err(format!(
                "{text:?}: virtual seconds per second are expected, from {} to {}, or \"max\"",
                TIMES.start(),
                TIMES.end()
            )),
        }
    }
}

impl std::fmt::Display for Pace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Times(times) => write!(f, "{times}"),
            Self::Max => f.write_str("max"),
        }
    }
}

/// A machine that is this late, on the wall, will not catch up soon: the clock lets it off, and counts what it let
/// off, so that clients see a slower machine instead of one that is later and later.
pub const LATE_MOST: Duration = Duration::from_millis(250);

/// Maps wall time to virtual time.
#[derive(Clone, Debug)]
pub struct Clock {
    pace: Pace,
    wall: Instant,
    ps: Ps,
    let_off: Duration,
}

impl Clock {
    pub fn new(pace: Pace, wall: Instant, ps: Ps) -> Self {
        Self {
            pace,
            wall,
            ps,
            let_off: Duration::ZERO,
        }
    }

    pub fn pace(&self) -> Pace {
        self.pace
    }

    /// Goes on from `reached` at another pace.
    pub fn set_pace(&mut self, pace: Pace, wall: Instant, reached: Ps) {
        *self = Self {
            let_off: self.let_off,
            ..Self::new(pace, wall, reached)
        };
    }

    /// Where virtual time should be; `None` for as far as there is something to do.
    pub fn due_ps(&self, wall: Instant) -> Option<Ps> {
        let Pace::Times(times) = self.pace else {
            return None;
        };
        let passed = wall.saturating_duration_since(self.wall).as_secs_f64();
        Some(self.ps + (passed * times * PS_PER_S as f64) as Ps)
    }

    /// When virtual time should be at `ps`.
    pub fn wall_of(&self, ps: Ps) -> Option<Instant> {
        let Pace::Times(times) = self.pace else {
            return None;
        };
        let ahead_s = ps.saturating_sub(self.ps) as f64 / PS_PER_S as f64 / times;
        // Beyond a day it does not matter when exactly.
        Some(self.wall + Duration::from_secs_f64(ahead_s.min(86_400.0)))
    }

    /// How much later than it was due something of `ps` comes about on the wall.
    pub fn behind(&self, wall: Instant, ps: Ps) -> Duration {
        self.wall_of(ps)
            .map_or(Duration::ZERO, |due| wall.saturating_duration_since(due))
    }

    /// How late the machine is, on the wall, having reached `reached`. Lets it off what is too much.
    pub fn late(&mut self, wall: Instant, reached: Ps) -> Duration {
        let late = self.behind(wall, reached);
        if late > LATE_MOST {
            let off = late - LATE_MOST;
            self.wall += off;
            self.let_off += off;
        }
        late
    }

    /// Wall time by which the machine has fallen behind for good.
    pub fn let_off(&self) -> Duration {
        self.let_off
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn virtual_time_follows_the_wall_at_its_pace() {
        let start = Instant::now();
        let mut clock = Clock::new(Pace::Times(0.1), start, 5);
        assert_eq!(clock.due_ps(start + SECOND), Some(5 + PS_PER_S / 10));
        assert_eq!(clock.wall_of(5 + PS_PER_S / 10), Some(start + SECOND));
        clock.set_pace(Pace::Times(2.0), start + SECOND, 100);
        assert_eq!(clock.due_ps(start + 2 * SECOND), Some(100 + 2 * PS_PER_S));
        clock.set_pace(Pace::Max, start, 7);
        assert_eq!(clock.due_ps(start + SECOND), None);
        assert_eq!(clock.late(start + SECOND, 7), Duration::ZERO);
    }

    #[test]
    fn a_machine_that_cannot_keep_up_is_let_off_and_that_is_counted() {
        let start = Instant::now();
        let mut clock = Clock::new(Pace::Times(1.0), start, 0);
        assert_eq!(clock.late(start + SECOND / 10, 0), SECOND / 10);
        assert_eq!(clock.let_off(), Duration::ZERO);
        assert_eq!(clock.late(start + SECOND, 0), SECOND);
        assert_eq!(clock.let_off(), SECOND - LATE_MOST);
        assert_eq!(clock.late(start + SECOND, 0), LATE_MOST);
    }

    #[test]
    fn paces_are_read_as_they_are_written() {
        for (text, pace) in [
            ("1", Pace::Times(1.0)),
            ("0.1x", Pace::Times(0.1)),
            ("max", Pace::Max),
        ] {
            assert_eq!(text.parse(), Ok(pace));
        }
        for text in ["0", "-1", "fast", "NaN", "inf", ""] {
            assert!(text.parse::<Pace>().is_err(), "{text}");
        }
    }
}
