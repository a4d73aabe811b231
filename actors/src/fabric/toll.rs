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

/// What a part believes of its own side, one direction.
#[derive(Clone, Debug)]
pub struct Side {
    pub lanes: Vec<f64>,
    /// By plane, then L2 chip.
    pub chips: Vec<f64>,
    /// When it will have found out that this is no longer so.
    pub due_ps: Option<Ps>,
}

/// Brings a belief up to date once the time that finding out takes is over.
pub fn learn(
    side: &mut Side,
    lanes: &[LinkState],
    chips: &[LinkState],
    terms: &Terms,
    now: Ps,
) -> Option<Found> {
    let is: Vec<f64> = lanes
        .iter()
        .chain(chips)
        .map(|s| s.quality(terms))
        .collect();
    let believed = side.lanes.iter().chain(&side.chips);
    let (mut dead, mut worse, mut better) = (false, false, false);
    for (b, q) in believed.zip(&is) {
        dead |= *q == 0.0 && *b > 0.0;
        worse |= q < b;
        better |= q > b;
    }
    if !worse && !better {
        side.due_ps = None;
        return None;
    }
    let due = *side.due_ps.get_or_insert(
        now + if dead {
            terms.ack_ps
        } else if worse {
            terms.reweigh_ps
        } else {
            terms.probe_ps
        },
    );
    if now < due {
        return None;
    }
    side.due_ps = None;
    let n = side.lanes.len();
    side.lanes.copy_from_slice(&is[..n]);
    side.chips.copy_from_slice(&is[n..]);
    Some(if worse { Found::Worse } else { Found::Better })
}

/// What happens to a small message, which takes one lane and, to or from another node, one chip: picked by what the side
/// believes of them.
pub fn one_way(
    side: &Side,
    lanes: &[LinkState],
    chips: &[LinkState],
    crossing: Crossing,
    terms: &Terms,
    rng: &mut Rng,
) -> Toll {
    let remote = crossing.remote;
    let per_plane = chips.len() / lanes.len();
    // Each way, what is believed of it, and whether it is one.
    let ways = |p: usize| {
        let of = if remote { per_plane } else { 1 };
        (0..of).map(move |chip| (p, p * per_plane + chip))
    };
    let all: Vec<(f64, LinkState)> = (0..lanes.len())
        .flat_map(ways)
        .map(|(p, chip)| {
            if remote {
                let held = side.lanes[p] * side.chips[chip];
                (held, lanes[p].then(&chips[chip]))
            } else {
                (side.lanes[p], lanes[p])
            }
        })
        .collect();
    let mut toll = Toll::NONE;
    if all.iter().all(|(_, s)| s.factor == 0.0) {
        toll.lost = true;
        return toll;
    }
    let mut open: Vec<usize> = (0..all.len()).collect();
    loop {
        let sum: f64 = open.iter().map(|&i| all[i].0).sum();
        // Nothing that is left is believed in: all that is left is tried.
        let weight = |i: usize| if sum > 0.0 { all[i].0 } else { 1.0 };
        let total: f64 = open.iter().map(|&i| weight(i)).sum();
        let mut left = rng.f64() * total;
        let mut at = open.len() - 1;
        for (k, &i) in open.iter().enumerate() {
            left -= weight(i);
            if left < 0.0 {
                at = k;
                break;
            }
        }
        let way = all[open.swap_remove(at)].1;
        if way.factor > 0.0 {
            toll.extra_ps += way.delay_ps
                + drawn(way.jitter_ps, rng)
                + rounds(way.loss.min(0.99), 1, rng) * terms.ack_ps;
            return toll;
        }
        // No acknowledgement comes, and another way is tried.
        toll.extra_ps += terms.ack_ps;
    }
}

/// Spreads a message over planes and chips as the side believes it should, and sums up what happens to it.
pub fn spread(
    side: &Side,
    lanes: &[LinkState],
    chips: &[LinkState],
    crossing: Crossing,
    terms: &Terms,
    rng: &mut Rng,
) -> Toll {
    let Crossing { remote, bytes, .. } = crossing;
    let n = lanes.len();
    let per_plane = chips.len() / n;
    // Share of a lane's rate that gets through each plane, as it is and as it is believed to be.
    let mut rate = vec![0.0; n];
    let mut weight = vec![0.0; n];
    let (mut missed, mut delay_ps, mut jitter_ps, mut lossy) = (false, 0, 0, 0.0f64);
    for p in 0..n {
        let lane = lanes[p];
        let mut believed = side.lanes[p];
        let mut through = lane.factor;
        let (mut chip_delay, mut chip_jitter, mut chip_loss) = (0, 0, 0.0);
        if remote {
            let of = p * per_plane..(p + 1) * per_plane;
            let (is, hold) = (&chips[of.clone()], &side.chips[of]);
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
    if rate.iter().all(|r| *r == 0.0) {
        return Toll {
            lost: true,
            ..Toll::NONE
        };
    }
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
    let lossy = lossy.min(0.99);
    let on_lane = (bytes / n as u64).div_ceil(terms.packet_bytes).max(1);
    let rounds = rounds(lossy, on_lane, rng) + u64::from(missed);
    let again = if missed {
        bytes / n as u64
    } else {
        (bytes as f64 / n as f64 * lossy / (1.0 - lossy)).round() as u64
    };
    Toll {
        stretch: (n as f64 * slowest).max(1.0),
        extra_ps: delay_ps + drawn(jitter_ps, rng) + rounds * terms.ack_ps,
        resent_bytes: again,
        lost: false,
        found: None,
    }
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
