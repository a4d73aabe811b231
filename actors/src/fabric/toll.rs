//! What links that are not as they should be add to a message, and what its sender learns from that.

use crate::runtime::Rng;
use crate::time::Ps;
use supernode_topology::ActorId;

/// One direction of a link right now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinkState {
    /// Share of its bandwidth; 0 = down.
    pub factor: f64,
    pub delay_ps: Ps,
    pub jitter_ps: Ps,
    pub loss: f64,
    /// Of the way back, on which acknowledgements come: how much later they are at the most, and how many are lost.
    pub ack_late_ps: Ps,
    pub ack_loss: f64,
}

impl LinkState {
    pub const GOOD: Self = Self {
        factor: 1.0,
        delay_ps: 0,
        jitter_ps: 0,
        loss: 0.0,
        ack_late_ps: 0,
        ack_loss: 0.0,
    };

    /// This link and then another.
    pub fn then(&self, next: &Self) -> Self {
        let loss = |a: f64, b: f64| 1.0 - (1.0 - a) * (1.0 - b);
        Self {
            factor: self.factor.min(next.factor),
            delay_ps: self.delay_ps + next.delay_ps,
            jitter_ps: self.jitter_ps + next.jitter_ps,
            loss: loss(self.loss, next.loss),
            ack_late_ps: self.ack_late_ps + next.ack_late_ps,
            ack_loss: loss(self.ack_loss, next.ack_loss),
        }
    }

    /// Share of packets that are sent again, because they or their acknowledgements are lost.
    pub fn resent(&self) -> f64 {
        1.0 - (1.0 - self.loss) * (1.0 - self.ack_loss)
    }

    /// How good a sender that watches its acknowledgements takes it to be.
    pub fn quality(&self, terms: &Terms) -> f64 {
        let late = self.delay_ps + self.jitter_ps + self.ack_late_ps > terms.delay_max_ps;
        if late || self.resent() > terms.loss_max {
            0.0
        } else {
            self.factor
        }
    }
}

/// A message at one end of its way over UB.
#[derive(Clone, Copy, Debug)]
pub struct Crossing {
    /// The die or CPU at this end.
    pub part: ActorId,
    /// It is sent from there; otherwise it is received.
    pub out: bool,
    /// The other end is on another node.
    pub remote: bool,
    pub bytes: u64,
}

/// What the links on one side add to a message.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Toll {
    /// Serialisation takes so many times as long.
    pub stretch: f64,
    pub extra_ps: Ps,
    /// Bytes that were sent in vain, and again.
    pub resent_bytes: u64,
    /// There is no way at all: it does not get through.
    pub lost: bool,
    /// A lane or chip was found to be bad, or good again, by this message.
    pub found: Option<Found>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    Worse,
    Better,
}

impl Toll {
    pub const NONE: Self = Self {
        stretch: 1.0,
        extra_ps: 0,
        resent_bytes: 0,
        lost: false,
        found: None,
    };

    /// Serialisation time under this toll.
    pub fn ps(&self, ps: Ps) -> Ps {
        if self.stretch == 1.0 {
            ps
        } else {
            (ps as f64 * self.stretch).round() as Ps
        }
    }
}

/// Time-outs and limits by which senders judge their lanes.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    pub ack_ps: Ps,
    pub reweigh_ps: Ps,
    pub probe_ps: Ps,
    pub loss_max: f64,
    pub delay_max_ps: Ps,
    pub packet_bytes: u64,
    /// A node's uplinks can carry so many times what all its parts send at once at the measured rates.
    pub slack: f64,
}

/// How a message that is spread over planes and chips fares: all but what is drawn for each.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    stretch: f64,
    delay_ps: Ps,
    jitter_ps: Ps,
    lossy: f64,
    /// A stripe goes where nothing gets through.
    missed: bool,
    lost: bool,
}

impl Spread {
    /// `believed` of lanes, then of chips, by which the sender spreads.
    pub fn new(
        believed: &[f64],
        lanes: &[LinkState],
        chips: &[LinkState],
        remote: bool,
        terms: &Terms,
    ) -> Self {
        let n = lanes.len();
        let per_plane = chips.len() / n;
        let (lanes_held, chips_held) = believed.split_at(n);
        // Share of a lane's rate that gets through each plane, as it is and as it is believed to be.
        let mut rate = vec![0.0; n];
        let mut weight = vec![0.0; n];
        let (mut missed, mut delay_ps, mut jitter_ps, mut lossy) = (false, 0, 0, 0.0f64);
        for p in 0..n {
            let lane = lanes[p];
            let mut believed = lanes_held[p];
            let mut through = lane.factor;
            let (mut chip_delay, mut chip_jitter, mut chip_loss) = (0, 0, 0.0);
            if remote {
                let of = p * per_plane..(p + 1) * per_plane;
                let (is, hold) = (&chips[of.clone()], &chips_held[of]);
                let sum: f64 = hold.iter().sum();
                // All given up: all are tried.
                let share = |c: usize| {
                    if sum > 0.0 {
                        hold[c] / sum
                    } else {
                        1.0 / per_plane as f64
                    }
                };
                let mut slowest = f64::INFINITY;
                for (c, chip) in is.iter().enumerate() {
                    let w = share(c);
                    if w == 0.0 {
                        continue;
                    }
                    if chip.factor == 0.0 {
                        missed |= believed > 0.0;
                        continue;
                    }
                    slowest = slowest.min(chip.factor / (w * per_plane as f64));
                    chip_delay = chip_delay.max(chip.delay_ps);
                    chip_jitter = chip_jitter.max(chip.jitter_ps);
                    chip_loss += w * chip.loss;
                }
                through *= if slowest.is_finite() {
                    (terms.slack * slowest).min(1.0)
                } else {
                    0.0
                };
                believed *= (terms.slack * sum / per_plane as f64).min(1.0);
            }
            rate[p] = through;
            weight[p] = believed;
            if believed > 0.0 {
                missed |= through == 0.0;
                delay_ps = delay_ps.max(lane.delay_ps + chip_delay);
                jitter_ps = jitter_ps.max(lane.jitter_ps + chip_jitter);
                lossy = lossy.max(1.0 - (1.0 - lane.loss) * (1.0 - chip_loss));
            }
        }
        let live: f64 = (0..n).filter(|&p| rate[p] > 0.0).map(|p| weight[p]).sum();
        // Nothing that is believed in is up: whatever is up is tried.
        let alive = rate.iter().filter(|r| **r > 0.0).count() as f64;
        let share = |p: usize| {
            if live > 0.0 {
                weight[p] / live
            } else {
                1.0 / alive
            }
        };
        let slowest = (0..n)
            .filter(|&p| rate[p] > 0.0)
            .map(|p| share(p) / rate[p])
            .fold(0.0, f64::max);
        Self {
            stretch: (n as f64 * slowest).max(1.0),
            delay_ps,
            jitter_ps,
            lossy: lossy.min(0.99),
            missed,
            lost: rate.iter().all(|r| *r == 0.0),
        }
    }

    /// What it is for a message of `bytes` over `lanes` lanes.
    pub fn toll(&self, lanes: usize, bytes: u64, terms: &Terms, rng: &mut Rng) -> Toll {
        if self.lost {
            return Toll {
                lost: true,
                ..Toll::NONE
            };
        }
        let on_lane = (bytes / lanes as u64).div_ceil(terms.packet_bytes).max(1);
        let rounds = rounds(self.lossy, on_lane, rng) + u64::from(self.missed);
        let again = if self.missed {
            bytes / lanes as u64
        } else {
            (bytes as f64 / lanes as f64 * self.lossy / (1.0 - self.lossy)).round() as u64
        };
        Toll {
            stretch: self.stretch,
            extra_ps: self.delay_ps + drawn(self.jitter_ps, rng) + rounds * terms.ack_ps,
            resent_bytes: again,
            lost: false,
            found: None,
        }
    }
}

/// The ways that a small message can take: one lane and, to or from another node, one chip.
#[derive(Clone, Debug)]
pub struct OneWay {
    /// What is believed of each way.
    held: Vec<f64>,
    is: Vec<LinkState>,
    lost: bool,
}

impl OneWay {
    /// `believed` of lanes, then of chips.
    pub fn new(believed: &[f64], lanes: &[LinkState], chips: &[LinkState], remote: bool) -> Self {
        let (lanes_held, chips_held) = believed.split_at(lanes.len());
        let (held, is): (Vec<f64>, Vec<LinkState>) = if remote {
            let per_plane = chips.len() / lanes.len();
            let way = |(i, chip): (usize, &LinkState)| {
                let p = i / per_plane;
                (lanes_held[p] * chips_held[i], lanes[p].then(chip))
            };
            chips.iter().enumerate().map(way).unzip()
        } else {
            (lanes_held.to_vec(), lanes.to_vec())
        };
        Self {
            lost: is.iter().all(|s| s.factor == 0.0),
            held,
            is,
        }
    }

    /// What happens to a message: its way is picked by what is believed.
    pub fn toll(&self, terms: &Terms, rng: &mut Rng) -> Toll {
        let mut toll = Toll::NONE;
        if self.lost {
            toll.lost = true;
            return toll;
        }
        // Those not tried yet, once one was in vain.
        let mut open: Vec<u16> = Vec::new();
        let mut at = pick(&self.held, rng);
        let mut way = at;
        loop {
            let is = &self.is[way];
            if is.factor > 0.0 {
                toll.extra_ps += is.delay_ps
                    + drawn(is.jitter_ps, rng)
                    + rounds(is.loss.min(0.99), 1, rng) * terms.ack_ps;
                return toll;
            }
            // No acknowledgement comes, and another way is tried.
            toll.extra_ps += terms.ack_ps;
            if open.is_empty() {
                open.extend(0..self.is.len() as u16);
            }
            open.swap_remove(at);
            let held: Vec<f64> = open.iter().map(|&i| self.held[usize::from(i)]).collect();
            at = pick(&held, rng);
            way = usize::from(open[at]);
        }
    }
}

/// Draws one of several ways by what is believed of them; if nothing is believed in, all are alike.
fn pick(held: &[f64], rng: &mut Rng) -> usize {
    let sum: f64 = held.iter().sum();
    let total = if sum > 0.0 { sum } else { held.len() as f64 };
    let mut left = rng.f64() * total;
    for (i, &h) in held.iter().enumerate() {
        left -= if sum > 0.0 { h } else { 1.0 };
        if left < 0.0 {
            return i;
        }
    }
    held.len() - 1
}

pub fn drawn(most_ps: Ps, rng: &mut Rng) -> Ps {
    if most_ps == 0 {
        0
    } else {
        rng.below(most_ps + 1)
    }
}

/// Times that the last of `packets` has to be sent again when each is lost with probability `loss`: drawn.
pub fn rounds(loss: f64, packets: u64, rng: &mut Rng) -> u64 {
    if loss <= 0.0 {
        return 0;
    }
    let u = rng.f64();
    let (mut lost, mut round) = (loss, 0);
    // All packets are through after `round` resends with probability (1 - loss^(round + 1))^packets.
    while round < 64 && power(1.0 - lost, packets) < u {
        lost *= loss;
        round += 1;
    }
    round
}

/// By squaring, so that it is the same everywhere.
fn power(base: f64, mut exponent: u64) -> f64 {
    let (mut result, mut square) = (1.0, base);
    while exponent > 0 {
        if exponent & 1 == 1 {
            result *= square;
        }
        square *= square;
        exponent >>= 1;
    }
    result
}
