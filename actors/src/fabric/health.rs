//! Links that are not as they should be, and what they cost what crosses them.
//!
//! A die or CPU spreads every message over its sub-planes, and what leaves the node over the L2 chips of each. It
//! believes all of them to be equally good until acknowledgements say otherwise: a stripe on a dead lane has to be
//! sent again, and one on a slow lane holds up the message. After a while (`recovery.lane_*`) it spreads by what it has
//! found; a lane given up is tried again, so that traffic comes back. The sending and the receiving part of a
//! message each bear the toll of the links on their own side.

use std::collections::BTreeMap;

use supernode_topology::{ActorId, Machine, Part};

use crate::config::Recovery;
use crate::fault::{Effect, Strike};
use crate::runtime::Rng;
use crate::time::{Ps, ps_from_s, ps_from_us};

/// One direction of a link right now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinkState {
    /// Share of its bandwidth; 0 = down.
    pub factor: f64,
    pub delay_ps: Ps,
    pub jitter_ps: Ps,
    pub loss: f64,
}

impl LinkState {
    const GOOD: Self = Self {
        factor: 1.0,
        delay_ps: 0,
        jitter_ps: 0,
        loss: 0.0,
    };

    /// How good a sender that watches its acknowledgements takes it to be.
    fn quality(&self, terms: &Terms) -> f64 {
        let late = self.delay_ps + self.jitter_ps > terms.delay_max_ps;
        if late || self.loss > terms.loss_max {
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
struct Terms {
    ack_ps: Ps,
    reweigh_ps: Ps,
    probe_ps: Ps,
    loss_max: f64,
    delay_max_ps: Ps,
    packet_bytes: u64,
    /// A node's uplinks can carry so many times what all its parts send at once at the measured rates.
    slack: f64,
}

/// What a part believes of its own side, one direction.
#[derive(Clone, Debug)]
struct Side {
    lanes: Vec<f64>,
    /// By plane, then L2 chip.
    chips: Vec<f64>,
    /// When it will have found out that this is no longer so.
    due_ps: Option<Ps>,
}

/// The unhealthy links of one shard's nodes. Empty as long as no link fault has struck.
#[derive(Clone, Debug)]
pub struct Health {
    /// By link, the faults in force with the time they struck.
    struck: BTreeMap<u32, Vec<(Strike, Ps)>>,
    /// By part and direction (out = true).
    sides: BTreeMap<(u32, bool), Side>,
    terms: Terms,
}

impl Health {
    pub fn new(machine: &Machine, r: &Recovery) -> Self {
        let ub = &machine.spec.ub;
        let up = ub.uplink_gb_per_s
            * f64::from(machine.planes())
            * f64::from(machine.l2_chips_per_plane());
        let parts = f64::from(machine.dies_per_node()) * ub.npu_npu_write.inter_gb_per_s;
        Self {
            struck: BTreeMap::new(),
            sides: BTreeMap::new(),
            terms: Terms {
                ack_ps: ps_from_us(r.lane_ack_us),
                reweigh_ps: ps_from_s(r.lane_reweigh_ms * 1e-3),
                probe_ps: ps_from_s(r.lane_probe_ms * 1e-3),
                loss_max: r.lane_loss_max,
                delay_max_ps: ps_from_us(r.lane_delay_max_us),
                packet_bytes: u64::from(r.packet_bytes.max(1)),
                slack: (up / parts).max(1.0),
            },
        }
    }

    /// Nothing is wrong and nobody believes so: the fast path.
    #[inline]
    pub fn is_clear(&self) -> bool {
        self.sides.is_empty() && self.struck.is_empty()
    }

    /// A fault strikes a link, or is over.
    pub fn strike(&mut self, link: ActorId, strike: Strike, now: Ps, machine: &Machine) {
        let of_link = self.struck.entry(link.0).or_default();
        if strike.begins {
            of_link.push((strike, now));
        } else {
            of_link.retain(|(s, _)| s.fault != strike.fault);
            if of_link.is_empty() {
                self.struck.remove(&link.0);
            }
        }
        let (planes, chips) = (machine.planes(), machine.l2_chips_per_plane());
        let sides = &mut self.sides;
        let mut touch = |part: ActorId| {
            for out in [true, false] {
                sides.entry((part.0, out)).or_insert_with(|| Side {
                    lanes: vec![1.0; planes as usize],
                    chips: vec![1.0; (planes * chips) as usize],
                    due_ps: None,
                });
            }
        };
        match machine.part(link) {
            Part::DieLane { die, .. } => touch(machine.die(die)),
            Part::CpuLane { cpu, .. } => touch(machine.cpu(cpu)),
            Part::Uplink { node, .. } => {
                for d in 0..machine.dies_per_node() {
                    touch(machine.die(node * machine.dies_per_node() + d));
                }
                for c in 0..machine.cpus_per_node() {
                    touch(machine.cpu(node * machine.cpus_per_node() + c));
                }
            }
            _ => {}
        }
    }

    /// One direction of a link at `now`.
    pub fn state(&self, link: ActorId, out: bool, now: Ps) -> LinkState {
        let mut state = LinkState::GOOD;
        for (s, since) in self.struck.get(&link.0).into_iter().flatten() {
            let hit = if out { s.ways.out() } else { s.ways.inbound() };
            if !hit {
                continue;
            }
            match s.effect {
                Effect::Slow(f) => state.factor *= f,
                Effect::Delay(ps) => state.delay_ps += ps,
                Effect::Jitter(ps) => state.jitter_ps += ps,
                Effect::Loss(p) => state.loss = 1.0 - (1.0 - state.loss) * (1.0 - p),
                Effect::Flap { period_ps, up } => {
                    let at = (now - since) % period_ps.max(1);
                    if at as f64 >= up * period_ps as f64 {
                        state.factor = 0.0;
                    }
                }
                Effect::Down => state.factor = 0.0,
                _ => {}
            }
        }
        if state.loss >= 1.0 {
            state.factor = 0.0;
        }
        state
    }

    /// What a message pays on the UB links of one side: lanes and, to or from another node, the node's uplinks.
    pub fn toll(&mut self, machine: &Machine, c: Crossing, now: Ps, rng: &mut Rng) -> Toll {
        let Crossing { part, out, .. } = c;
        if !self.sides.contains_key(&(part.0, out)) {
            return Toll::NONE;
        }
        let (lanes, chips) = self.states(machine, part, out, now);
        let terms = self.terms;
        let side = self
            .sides
            .get_mut(&(part.0, out))
            .expect("it was just there");
        let found = learn(side, &lanes, &chips, &terms, now);
        let mut toll = spread(side, &lanes, &chips, c, &terms, rng);
        toll.found = found;
        let healed = found == Some(Found::Better)
            && side.lanes.iter().chain(&side.chips).all(|q| *q == 1.0)
            && side.due_ps.is_none();
        if healed && lanes.iter().chain(&chips).all(|s| *s == LinkState::GOOD) {
            self.sides.remove(&(part.0, out));
        }
        toll
    }

    /// What a message pays on a link that is the only way of its kind (die-to-die link, RDMA or VPC port).
    pub fn port_toll(&self, link: ActorId, out: bool, bytes: u64, now: Ps, rng: &mut Rng) -> Toll {
        if !self.struck.contains_key(&link.0) {
            return Toll::NONE;
        }
        let s = self.state(link, out, now);
        if s.factor == 0.0 {
            return Toll {
                lost: true,
                ..Toll::NONE
            };
        }
        let packets = bytes.div_ceil(self.terms.packet_bytes).max(1);
        let rounds = rounds(s.loss, packets, rng);
        Toll {
            stretch: 1.0 / (s.factor * (1.0 - s.loss)),
            extra_ps: s.delay_ps + drawn(s.jitter_ps, rng) + rounds * self.terms.ack_ps,
            resent_bytes: (bytes as f64 * s.loss / (1.0 - s.loss)).round() as u64,
            lost: false,
            found: None,
        }
    }

    /// No lane of `part` lets anything through in this direction.
    pub fn is_cut_off(&self, machine: &Machine, part: ActorId, out: bool, now: Ps) -> bool {
        if !self.sides.contains_key(&(part.0, out)) {
            return false;
        }
        (0..machine.planes()).all(|p| self.state(lane(machine, part, p), out, now).factor == 0.0)
    }

    /// All lanes of a part, and its node's uplinks by plane and chip.
    fn states(
        &self,
        machine: &Machine,
        part: ActorId,
        out: bool,
        now: Ps,
    ) -> (Vec<LinkState>, Vec<LinkState>) {
        let node = machine.node_of(part);
        let lanes = (0..machine.planes())
            .map(|p| self.state(lane(machine, part, p), out, now))
            .collect();
        let chips = (0..machine.planes())
            .flat_map(|p| (0..machine.l2_chips_per_plane()).map(move |c| (p, c)))
            .map(|(p, c)| self.state(machine.uplink(node, p, c), out, now))
            .collect();
        (lanes, chips)
    }
}

fn lane(machine: &Machine, part: ActorId, plane: u32) -> ActorId {
    match machine.as_die(part) {
        Some(die) => machine.die_lane(die, plane),
        None => machine.cpu_lane(machine.as_cpu(part).expect("a die or CPU has lanes"), plane),
    }
}

/// Brings a belief up to date once the time that finding out takes is over.
fn learn(
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

/// Spreads a message over planes and chips as the side believes it should, and sums up what happens to it.
fn spread(
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

fn drawn(most_ps: Ps, rng: &mut Rng) -> Ps {
    if most_ps == 0 {
        0
    } else {
        rng.below(most_ps + 1)
    }
}

/// Times that the last of `packets` has to be sent again when each is lost with probability `loss`: drawn.
fn rounds(loss: f64, packets: u64, rng: &mut Rng) -> u64 {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Ways;

    const ACK: Ps = 50_000_000;
    const REWEIGH: Ps = 5_000_000_000;
    const PROBE: Ps = 100_000_000_000;

    fn machine() -> Machine {
        Machine::builtin("mini4").unwrap()
    }

    fn strike(fault: u32, effect: Effect, begins: bool) -> Strike {
        Strike {
            fault,
            effect,
            ways: Ways::Both,
            begins,
        }
    }

    fn at(h: &mut Health, m: &Machine, die: u32, remote: bool, now: Ps) -> Toll {
        let c = Crossing {
            part: m.die(die),
            out: true,
            remote,
            bytes: 7 << 20,
        };
        h.toll(m, c, now, &mut Rng::new(1, 1))
    }

    #[test]
    fn a_dead_lane_costs_a_timeout_and_then_a_seventh() {
        let m = machine();
        let mut h = Health::new(&m, &Recovery::default());
        h.strike(m.die_lane(3, 2), strike(0, Effect::Down, true), 0, &m);
        let first = at(&mut h, &m, 3, false, 10);
        assert!(first.extra_ps >= h.terms.ack_ps && first.resent_bytes > 0);
        let later = at(&mut h, &m, 3, false, 10 + ACK);
        assert_eq!(later.found, Some(Found::Worse));
        assert!((later.stretch - 7.0 / 6.0).abs() < 1e-9 && later.extra_ps == 0);
        assert_eq!(at(&mut h, &m, 4, false, 10), Toll::NONE);
        // Back after a probe, and then as if nothing had been.
        h.strike(
            m.die_lane(3, 2),
            strike(0, Effect::Down, false),
            1 << 40,
            &m,
        );
        let then = 1 << 40;
        assert!(at(&mut h, &m, 3, false, then).stretch > 1.1);
        let back = at(&mut h, &m, 3, false, then + PROBE);
        assert_eq!((back.found, back.stretch), (Some(Found::Better), 1.0));
    }

    #[test]
    fn a_slow_lane_holds_the_stripe_up_until_it_is_given_less() {
        let m = machine();
        let mut h = Health::new(&m, &Recovery::default());
        h.strike(m.die_lane(0, 4), strike(0, Effect::Slow(0.25), true), 0, &m);
        assert!((at(&mut h, &m, 0, false, 0).stretch - 4.0).abs() < 1e-9);
        let later = at(&mut h, &m, 0, false, REWEIGH);
        assert!((later.stretch - 7.0 / 6.25).abs() < 1e-9);
    }

    #[test]
    fn one_l2_chip_of_sixteen_is_hardly_missed() {
        let m = machine();
        let mut h = Health::new(&m, &Recovery::default());
        h.strike(m.uplink(0, 1, 9), strike(0, Effect::Down, true), 0, &m);
        assert_eq!(at(&mut h, &m, 0, false, 0), Toll::NONE);
        assert!(at(&mut h, &m, 0, true, 0).extra_ps >= h.terms.ack_ps);
        let later = at(&mut h, &m, 0, true, ACK);
        assert_eq!((later.stretch, later.extra_ps), (1.0, 0));
    }

    #[test]
    fn a_part_without_lanes_is_cut_off() {
        let m = machine();
        let mut h = Health::new(&m, &Recovery::default());
        for p in 0..m.planes() {
            h.strike(m.die_lane(0, p), strike(p, Effect::Down, true), 0, &m);
        }
        assert!(at(&mut h, &m, 0, false, 0).lost);
        assert!(h.is_cut_off(&m, m.die(0), true, 5) && !h.is_cut_off(&m, m.die(1), true, 5));
    }

    #[test]
    fn loss_resends_in_rounds() {
        let mut rng = Rng::new(7, 7);
        let mean = |loss: f64, packets: u64, rng: &mut Rng| {
            (0..2_000).map(|_| rounds(loss, packets, rng)).sum::<u64>() as f64 / 2_000.0
        };
        // One packet: geometric with mean loss / (1 - loss).
        assert!((mean(0.2, 1, &mut rng) - 0.25).abs() < 0.05);
        assert_eq!(mean(0.0, 1_000, &mut rng), 0.0);
        // The last of many takes longer.
        assert!(mean(0.2, 1_000, &mut rng) > 4.0);
    }
}
