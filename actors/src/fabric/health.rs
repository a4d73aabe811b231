//! Links that are not as they should be, and what they cost what crosses them.
//!
//! A die or CPU spreads every message over its sub-planes, and what leaves the node over the L2 chips of each. It
//! believes all of them to be equally good until acknowledgements say otherwise: a stripe on a dead lane has to be
//! sent again, and one on a slow lane holds up the message. After a while (`recovery.lane_*`) it spreads by what it has
//! found; a lane given up is tried again, so that traffic comes back. The sending and the receiving part of a
//! message each bear the toll of the links on their own side.

use std::collections::BTreeMap;

use supernode_topology::{ActorId, Machine, Part};

use super::toll::{Crossing, LinkState, Side, Terms, Toll, drawn, learn, one_way, rounds, spread};
use crate::config::Recovery;
use crate::fault::{Effect, Strike};
use crate::runtime::Rng;
use crate::time::{Ps, ps_from_s, ps_from_us};

/// How a message crosses the lanes and chips of a side.
type Way = fn(&Side, &[LinkState], &[LinkState], Crossing, &Terms, &mut Rng) -> Toll;

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
        self.toll_of(machine, c, now, rng, spread)
    }

    /// As `toll`, for a small message: it takes one lane and, to or from another node, one chip.
    pub fn small_toll(&mut self, machine: &Machine, c: Crossing, now: Ps, rng: &mut Rng) -> Toll {
        self.toll_of(machine, c, now, rng, one_way)
    }

    fn toll_of(
        &mut self,
        machine: &Machine,
        c: Crossing,
        now: Ps,
        rng: &mut Rng,
        how: Way,
    ) -> Toll {
        let key = (c.part.0, c.out);
        if !self.sides.contains_key(&key) {
            return Toll::NONE;
        }
        let (lanes, chips) = self.states(machine, c.part, c.out, now);
        let terms = self.terms;
        let side = self.sides.get_mut(&key).expect("it was just there");
        let found = learn(side, &lanes, &chips, &terms, now);
        let mut toll = how(side, &lanes, &chips, c, &terms, rng);
        toll.found = found;
        let trusted = side.lanes.iter().chain(&side.chips).all(|q| *q == 1.0);
        if trusted && !self.is_struck(machine, c.part) {
            self.sides.remove(&key);
        }
        toll
    }

    /// A fault is in force on a lane of this part, or on an uplink of its node.
    fn is_struck(&self, machine: &Machine, part: ActorId) -> bool {
        let node = machine.node_of(part);
        let struck = |link: ActorId| self.struck.contains_key(&link.0);
        let chips = machine.l2_chips_per_plane();
        (0..machine.planes()).any(|p| {
            struck(lane(machine, part, p)) || (0..chips).any(|c| struck(machine.uplink(node, p, c)))
        })
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
        let both_ways = |link: ActorId| {
            if !self.struck.contains_key(&link.0) {
                return LinkState::GOOD;
            }
            let (mut s, back) = (self.state(link, out, now), self.state(link, !out, now));
            s.ack_late_ps = back.delay_ps + back.jitter_ps;
            s.ack_loss = if back.factor == 0.0 { 1.0 } else { back.loss };
            s
        };
        let lanes = (0..machine.planes())
            .map(|p| both_ways(lane(machine, part, p)))
            .collect();
        let chips = (0..machine.planes())
            .flat_map(|p| (0..machine.l2_chips_per_plane()).map(move |c| (p, c)))
            .map(|(p, c)| both_ways(machine.uplink(node, p, c)))
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

#[cfg(test)]
mod tests {
    use super::super::toll::Found;
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

    fn small(h: &mut Health, m: &Machine, die: u32, now: Ps, rng: &mut Rng) -> Toll {
        let c = Crossing {
            part: m.die(die),
            out: true,
            remote: true,
            bytes: 64,
        };
        h.small_toll(m, c, now, rng)
    }

    #[test]
    fn a_small_message_bears_what_the_lane_it_takes_does() {
        let m = machine();
        let mut rng = Rng::new(3, 3);
        let mut h = Health::new(&m, &Recovery::default());
        h.strike(
            m.die_lane(0, 1),
            strike(0, Effect::Delay(9_000_000), true),
            0,
            &m,
        );
        let extra: Vec<Ps> = (0..70)
            .map(|_| small(&mut h, &m, 0, 0, &mut rng).extra_ps)
            .collect();
        let late = extra.iter().filter(|&&e| e == 9_000_000).count();
        assert!((3..=20).contains(&late), "one lane of seven: {late} of 70");
        assert_eq!(extra.iter().filter(|&&e| e == 0).count(), 70 - late);
        // Found out by acknowledgements, and not taken any more.
        let later = |h: &mut Health, rng: &mut Rng| small(h, &m, 0, REWEIGH, rng).extra_ps;
        assert!((0..70).all(|_| later(&mut h, &mut rng) == 0));
    }

    #[test]
    fn a_small_message_on_a_dead_lane_is_sent_again_on_another() {
        let m = machine();
        let mut rng = Rng::new(4, 4);
        let mut h = Health::new(&m, &Recovery::default());
        for p in 0..m.planes() - 1 {
            h.strike(m.die_lane(0, p), strike(p, Effect::Down, true), 0, &m);
        }
        let tolls: Vec<Toll> = (0..40).map(|_| small(&mut h, &m, 0, 0, &mut rng)).collect();
        assert!(
            tolls
                .iter()
                .all(|t| !t.lost && t.extra_ps.is_multiple_of(ACK))
        );
        assert!(tolls.iter().any(|t| t.extra_ps >= ACK));
        h.strike(
            m.die_lane(0, m.planes() - 1),
            strike(9, Effect::Down, true),
            0,
            &m,
        );
        assert!(small(&mut h, &m, 0, 0, &mut rng).lost);
    }

    #[test]
    fn a_lane_whose_way_back_is_bad_is_judged_bad() {
        let m = machine();
        let mut h = Health::new(&m, &Recovery::default());
        let inbound = Strike {
            ways: Ways::In,
            ..strike(0, Effect::Loss(0.1), true)
        };
        h.strike(m.die_lane(0, 1), inbound, 0, &m);
        assert_eq!(at(&mut h, &m, 0, false, 0).stretch, 1.0);
        let later = at(&mut h, &m, 0, false, ACK.max(REWEIGH));
        assert!((later.stretch - 7.0 / 6.0).abs() < 1e-9, "{later:?}");
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
