//! Links that are not as they should be, and what they cost what crosses them.
//!
//! A die or CPU spreads every message over its sub-planes, and what leaves the node over the L2 chips of each. It
//! believes all of them to be equally good until acknowledgements say otherwise: a stripe on a dead lane has to be
//! sent again, and one on a slow lane holds up the message. After a while (`recovery.lane_*`) it spreads by what it has
//! found; a lane given up is tried again, so that traffic comes back. The sending and the receiving part of a
//! message each bear the toll of the links on their own side.

use std::collections::BTreeSet;

use supernode_topology::{ActorId, Machine, Part};

use super::side::{Side, View};
use super::toll::{Crossing, LinkState, Terms, Toll, drawn, rounds};
use crate::config::Recovery;
use crate::fault::{Effect, Strike};
use crate::runtime::Rng;
use crate::time::{Ps, ps_from_s, ps_from_us};

/// The unhealthy links of one shard's nodes.
#[derive(Clone, Debug)]
pub struct Health {
    /// By link from `first_link` on, the faults in force with the time they struck; empty until the first strikes.
    struck: Vec<Vec<(Strike, Ps)>>,
    first_link: u32,
    /// Faults in force, over all links.
    strikes: u32,
    /// Of parts that have met a fault, by part and direction (in, out); empty until the first strikes.
    sides: Vec<Option<Box<Side>>>,
    /// Sides that are there.
    open: u32,
    /// Ports, with the direction, that were found to let nothing through.
    lost: BTreeSet<(ActorId, bool)>,
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
            struck: Vec::new(),
            first_link: machine.die_count() + machine.cpu_count(),
            strikes: 0,
            sides: Vec::new(),
            open: 0,
            lost: BTreeSet::new(),
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
        self.open == 0 && self.strikes == 0
    }

    /// A fault strikes a link, or is over.
    pub fn strike(&mut self, link: ActorId, strike: Strike, now: Ps, machine: &Machine) {
        let first_link = self.first_link;
        self.struck
            .resize_with((machine.actor_count() - first_link) as usize, Vec::new);
        self.sides.resize(2 * first_link as usize, None);
        let of_link = &mut self.struck[(link.0 - first_link) as usize];
        let before = of_link.len() as u32;
        if strike.begins {
            of_link.push((strike, now));
        } else {
            of_link.retain(|(s, _)| s.fault != strike.fault);
        }
        self.strikes = self.strikes - before + of_link.len() as u32;
        self.lost.retain(|(port, _)| *port != link);
        match machine.part(link) {
            Part::DieLane { die, .. } => self.touch(machine.die(die), machine),
            Part::CpuLane { cpu, .. } => self.touch(machine.cpu(cpu), machine),
            Part::Uplink { node, .. } => {
                let (dies, cpus) = (machine.dies_per_node(), machine.cpus_per_node());
                for d in node * dies..(node + 1) * dies {
                    self.touch(machine.die(d), machine);
                }
                for c in node * cpus..(node + 1) * cpus {
                    self.touch(machine.cpu(c), machine);
                }
            }
            _ => {}
        }
    }

    /// A link of this part has changed.
    fn touch(&mut self, part: ActorId, machine: &Machine) {
        let planes = machine.planes() as usize;
        let chips = planes * machine.l2_chips_per_plane() as usize;
        for side in &mut self.sides[2 * part.0 as usize..][..2] {
            match side {
                Some(side) => side.forget(),
                None => {
                    *side = Some(Box::new(Side::new(planes, chips)));
                    self.open += 1;
                }
            }
        }
    }

    /// The faults in force on a link.
    fn of_link(&self, link: ActorId) -> &[(Strike, Ps)] {
        self.struck
            .get((link.0 - self.first_link) as usize)
            .map_or(&[], Vec::as_slice)
    }

    /// One direction of a link at `now`, and until when it stays so if no fault strikes it or ends.
    fn state(&self, link: ActorId, out: bool, now: Ps) -> (LinkState, Ps) {
        let (mut state, mut until_ps) = (LinkState::GOOD, Ps::MAX);
        for (s, since) in self.of_link(link) {
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
                    let period_ps = period_ps.max(1);
                    let at_ps = (now - since) % period_ps;
                    let up_ps = (up * period_ps as f64).ceil() as Ps;
                    let turns_ps = if at_ps >= up_ps {
                        state.factor = 0.0;
                        period_ps
                    } else {
                        up_ps
                    };
                    until_ps = until_ps.min(now + turns_ps - at_ps);
                }
                Effect::Down => state.factor = 0.0,
                _ => {}
            }
        }
        if state.loss >= 1.0 {
            state.factor = 0.0;
        }
        (state, until_ps)
    }

    /// What a message pays on the UB links of one side: lanes and, to or from another node, the node's uplinks.
    pub fn toll(&mut self, machine: &Machine, c: Crossing, now: Ps, rng: &mut Rng) -> Toll {
        self.toll_of(machine, c, now, |side, terms| {
            side.spread(c.remote, c.bytes, terms, rng)
        })
    }

    /// As `toll`, for a small message: it takes one lane and, to or from another node, one chip.
    pub fn small_toll(&mut self, machine: &Machine, c: Crossing, now: Ps, rng: &mut Rng) -> Toll {
        self.toll_of(machine, c, now, |side, terms| {
            side.one_way(c.remote, terms, rng)
        })
    }

    fn toll_of(
        &mut self,
        machine: &Machine,
        c: Crossing,
        now: Ps,
        pay: impl FnOnce(&mut Side, &Terms) -> Toll,
    ) -> Toll {
        let terms = self.terms;
        let Some(side) = self.side(machine, c.part, c.out, now) else {
            return Toll::NONE;
        };
        let found = side.learn(&terms, now);
        let mut toll = pay(side, &terms);
        toll.found = found;
        if side.is_as_new() {
            self.sides[index(c.part, c.out)] = None;
            self.open -= 1;
        }
        toll
    }

    /// One direction of a part's links, if it has met a fault; how they are is known.
    fn side(&mut self, machine: &Machine, part: ActorId, out: bool, now: Ps) -> Option<&mut Side> {
        let at = index(part, out);
        if !self.sides.get(at)?.as_ref()?.knows(now) {
            let view = self.view(machine, part, out, now);
            let terms = self.terms;
            self.sides[at].as_mut()?.look(view, &terms);
        }
        self.sides[at].as_deref_mut()
    }

    /// What a message pays on a link that is the only way of its kind (die-to-die link, RDMA or VPC port).
    pub fn port_toll(&self, link: ActorId, out: bool, bytes: u64, now: Ps, rng: &mut Rng) -> Toll {
        if self.of_link(link).is_empty() {
            return Toll::NONE;
        }
        let (s, _) = self.state(link, out, now);
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

    /// What is sent over a port that lets nothing through comes back unacknowledged: how long its sender waits for that,
    /// once, if it did not know.
    pub fn finds_lost(&mut self, port: ActorId, out: bool) -> Option<Ps> {
        self.lost.insert((port, out)).then_some(self.terms.ack_ps)
    }

    /// No lane of `part` lets anything through in this direction.
    pub fn is_cut_off(&mut self, machine: &Machine, part: ActorId, out: bool, now: Ps) -> bool {
        self.side(machine, part, out, now)
            .is_some_and(|side| side.is_cut_off())
    }

    /// How all lanes of a part are, and its node's uplinks.
    fn view(&self, machine: &Machine, part: ActorId, out: bool, now: Ps) -> View {
        let node = machine.node_of(part);
        let (mut until_ps, mut struck) = (Ps::MAX, false);
        let mut both_ways = |link: ActorId| {
            if self.of_link(link).is_empty() {
                return LinkState::GOOD;
            }
            struck = true;
            let ((mut s, until), (back, back_until)) =
                (self.state(link, out, now), self.state(link, !out, now));
            until_ps = until_ps.min(until).min(back_until);
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
        View {
            lanes,
            chips,
            until_ps,
            struck,
        }
    }
}

/// Of a part's side among those of all.
fn index(part: ActorId, out: bool) -> usize {
    2 * part.0 as usize + usize::from(out)
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

    /// Some fault on some lane or uplink of node 0.
    fn some_strike(m: &Machine, fault: u32, rng: &mut Rng) -> (ActorId, Strike) {
        let plane = rng.below(u64::from(m.planes())) as u32;
        let link = match rng.below(3) {
            0 => m.uplink(
                0,
                plane,
                rng.below(u64::from(m.l2_chips_per_plane())) as u32,
            ),
            1 => m.cpu_lane(0, plane),
            _ => m.die_lane(rng.below(2) as u32, plane),
        };
        let share = rng.f64();
        let effect = match rng.below(6) {
            0 => Effect::Slow(share),
            1 => Effect::Delay(rng.below(5_000_000)),
            2 => Effect::Jitter(rng.below(5_000_000)),
            3 => Effect::Loss(share / 100.0),
            4 => Effect::Flap {
                period_ps: 1 + rng.below(20_000_000_000),
                up: share,
            },
            _ => Effect::Down,
        };
        let ways = [Ways::Both, Ways::Out, Ways::In][rng.below(3) as usize];
        let strike = strike(fault, effect, true);
        (link, Strike { ways, ..strike })
    }

    #[test]
    fn what_is_kept_is_what_a_fresh_look_gives() {
        let m = machine();
        let mut rng = Rng::new(5, 5);
        let mut kept = Health::new(&m, &Recovery::default());
        let mut fresh = kept.clone();
        let (mut draws, mut draws_fresh) = (Rng::new(6, 6), Rng::new(6, 6));
        let (mut now, mut on, mut paid, mut found) = (0, Vec::new(), 0, 0);
        for round in 0..30_000 {
            now += rng.below(2 * crate::time::PS_PER_MS);
            if rng.below(100) == 0 {
                let (link, strike) = if on.len() > 12 || rng.below(3) == 0 && !on.is_empty() {
                    let (link, strike) = on.swap_remove(rng.below(on.len() as u64) as usize);
                    let begins = false;
                    (link, Strike { begins, ..strike })
                } else {
                    on.push(some_strike(&m, round, &mut rng));
                    on[on.len() - 1]
                };
                kept.strike(link, strike, now, &m);
                fresh.strike(link, strike, now, &m);
            }
            for side in fresh.sides.iter_mut().flatten() {
                side.forget();
            }
            let part = [m.die(0), m.die(1), m.cpu(0)][rng.below(3) as usize];
            let c = Crossing {
                part,
                out: rng.below(2) == 0,
                remote: rng.below(2) == 0,
                bytes: rng.below(1 << 22),
            };
            let how = [Health::toll, Health::small_toll][rng.below(2) as usize];
            let toll = how(&mut kept, &m, c, now, &mut draws);
            assert_eq!(toll, how(&mut fresh, &m, c, now, &mut draws_fresh), "{c:?}");
            let cut_off = kept.is_cut_off(&m, part, c.out, now);
            assert_eq!(cut_off, fresh.is_cut_off(&m, part, c.out, now));
            paid += u32::from(toll != Toll::NONE);
            found += u32::from(toll.found.is_some());
        }
        assert_eq!(draws, draws_fresh);
        assert!(paid > 10_000 && found > 500, "{paid} paid, {found} found");
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
