//! Virtual time: picoseconds since the start of the run.

/// Virtual time or a duration, in picoseconds. `u64` picoseconds last for 213 days.
pub type Ps = u64;

pub const PS_PER_NS: Ps = 1_000;
pub const PS_PER_US: Ps = 1_000_000;
pub const PS_PER_MS: Ps = 1_000_000_000;
pub const PS_PER_S: Ps = 1_000_000_000_000;

/// Seconds (any sign; negatives and NaN become 0) to picoseconds, rounded to the nearest.
pub fn ps_from_s(seconds: f64) -> Ps {
    (seconds * PS_PER_S as f64).round() as Ps
}

/// Microseconds to picoseconds, rounded to the nearest.
pub fn ps_from_us(us: f64) -> Ps {
    (us * PS_PER_US as f64).round() as Ps
}

pub fn s_from_ps(ps: Ps) -> f64 {
    ps as f64 / PS_PER_S as f64
}

pub fn ms_from_ps(ps: Ps) -> f64 {
    ps as f64 / PS_PER_MS as f64
}

pub fn us_from_ps(ps: Ps) -> f64 {
    ps as f64 / PS_PER_US as f64
}
