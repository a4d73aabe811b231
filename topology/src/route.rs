//! Routes: which links lie between two parts on a plane, which of them are usable, and what latency and bandwidth
//! that gives on an idle machine. Over UB the rates are the measured table's, shared evenly by the sub-planes.

use std::fmt;
use std::str::FromStr;

use crate::error::TopologyError;
use crate::machine::{ActorId, Machine};
use crate::spec::UbPathSpec;

/// A network that joins parts of the machine.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Plane {
    /// Unified Bus: dies and CPUs, through L1 and L2 switch chips.
    Ub,
    /// RoCE: dies only.
    Rdma,
    /// The data-centre network: nodes, each through one card.
    Vpc,
    /// The on-package link between dies of one NPU.
    Sio,
}

impl Plane {
    pub const ALL: [Plane; 4] = [Plane::Ub, Plane::Rdma, Plane::Vpc, Plane::Sio];

    pub fn name(self) -> &'static str {
        match self {
            Plane::Ub => "ub",
            Plane::Rdma => "rdma",
            Plane::Vpc => "vpc",
            Plane::Sio => "sio",
        }
    }
}

impl fmt::Display for Plane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Plane {
    type Err = TopologyError;
    fn from_str(text: &str) -> Result<Self, TopologyError> {
        Self::ALL
            .into_iter()
            .find(|plane| plane.name() == text)
            .ok_or_else(|| TopologyError::Address {
                address: text.to_owned(),
                reason: "no such plane: expected ub, rdma, vpc or sio".to_owned(),
            })
    }
}

/// Which way data moves: a read brings it to the part that asks, a write takes it away.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Access {
    Read,
    Write,
}

/// What one transfer gets on idle UB: the row of the measured table, and its split over hops and lanes.
///
/// `latency_us = endpoints_us + 2 lane_us + switches switch_us + (2 uplink_us between nodes)`.
#[derive(Copy, Clone, PartialEq, Debug)]
pub struct UbRate {
    /// Over all lanes, large transfers.
    pub gb_per_s: f64,
    /// One lane's even share of it.
    pub lane_gb_per_s: f64,
    /// Whole transfer of `spec.ub.latency_bytes`.
    pub latency_us: f64,
    /// In the two ends together, outside of all links.
    pub endpoints_us: f64,
    /// Along one lane.
    pub lane_us: f64,
    /// In one switch chip.
    pub switch_us: f64,
    /// Along one L1-L2 link.
    pub uplink_us: f64,
    /// Switch chips on the way: 1 inside a node, 3 between nodes.
    pub switches: u32,
}

/// What kind of link a hop crosses, in the direction of the route.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum HopKind {
    /// A die's or CPU's lanes, to the L1 chips.
    LaneOut,
    /// L1 chips of the first node to L2 chips.
    UplinkOut,
    /// L2 chips to L1 chips of the last node.
    UplinkIn,
    /// L1 chips to the lanes of the last die or CPU.
    LaneIn,
    Sio,
    RdmaOut,
    RdmaIn,
    VpcOut,
    VpcIn,
}

impl HopKind {
    /// What happens on this hop, in a few words.
    pub fn description(self) -> &'static str {
        match self {
            HopKind::LaneOut => "lanes to L1 chips",
            HopKind::UplinkOut => "L1 chips to L2 chips",
            HopKind::UplinkIn => "L2 chips to L1 chips",
            HopKind::LaneIn => "L1 chips to lanes",
            HopKind::Sio => "die to die on the package",
            HopKind::RdmaOut => "RDMA port out",
            HopKind::RdmaIn => "RDMA port in",
            HopKind::VpcOut => "VPC port out",
            HopKind::VpcIn => "VPC port in",
        }
    }
}

/// One step of a route, with the links that share it.
#[derive(Clone, PartialEq, Debug)]
pub struct Hop {
    pub plane: Plane,
    pub kind: HopKind,
    /// The usable links side by side, in the order of sub-plane and chip.
    pub links: Vec<ActorId>,
    /// How many there are, usable or not.
    pub links_all: u32,
    /// Along one of these links and through the switch chip it leads to, if any.
    pub latency_us_read: f64,
    pub latency_us_write: f64,
}

/// A usable sub-plane of a UB route.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SubPlane {
    pub plane: u32,
    /// The L2 chips that both nodes reach; empty inside a node, where none is needed.
    pub l2_chips: Vec<u32>,
}

/// The way between two parts on one plane. Figures are for an idle machine; `from` is the part that reads or writes.
#[derive(Clone, PartialEq, Debug)]
pub struct Route {
    pub from: ActorId,
    pub to: ActorId,
    pub plane: Plane,
    pub same_node: bool,
    /// The usable sub-planes, in order; empty on planes other than UB.
    pub sub_planes: Vec<SubPlane>,
    pub hops: Vec<Hop>,
    /// In the two ends together, outside of all hops.
    pub endpoints_us_read: f64,
    pub endpoints_us_write: f64,
    /// Endpoints and hops: the measured latency of a small transfer.
    pub latency_us_read: f64,
    pub latency_us_write: f64,
    /// Large transfers, over all usable links.
    pub gb_per_s_read: f64,
    pub gb_per_s_write: f64,
}

/// An end of a UB route.
#[derive(Copy, Clone, PartialEq, Eq)]
enum End {
    Die(u32),
    Cpu(u32),
}

impl Machine {
    /// What one transfer between two dies or CPUs gets on idle UB. Between CPUs the NPU–CPU rows hold.
    pub fn ub_rate(&self, npu_to_npu: bool, same_node: bool, access: Access) -> UbRate {
        let ub = &self.spec.ub;
        let path: &UbPathSpec = match (npu_to_npu, access) {
            (true, Access::Read) => &ub.npu_npu_read,
            (true, Access::Write) => &ub.npu_npu_write,
            (false, Access::Read) => &ub.npu_cpu_read,
            (false, Access::Write) => &ub.npu_cpu_write,
        };
        let (gb_per_s, latency_us) = match same_node {
            true => (path.intra_gb_per_s, path.intra_latency_us),
            false => (path.inter_gb_per_s, path.inter_latency_us),
        };
        let (switch_us, lane_us) = (ub.switch_hop_ns / 1e3, ub.lane_ns / 1e3);
        UbRate {
            gb_per_s,
            lane_gb_per_s: gb_per_s / f64::from(self.planes()),
            latency_us,
            endpoints_us: path.intra_latency_us - switch_us - 2.0 * lane_us,
            lane_us,
            switch_us,
            uplink_us: (path.inter_latency_us - path.intra_latency_us - 2.0 * switch_us) / 2.0,
            switches: if same_node { 1 } else { 3 },
        }
    }

    /// The route between two dies or CPUs on a plane, over the links that `is_down` does not name. A die or CPU that
    /// is down ends the route too.
    ///
    /// Over UB a sub-plane is usable when both lanes are up and, between nodes, some L2 chip is reached from both. It
    /// then carries its share of the measured bandwidth, or what its remaining uplinks can.
    pub fn route(
        &self,
        from: ActorId,
        to: ActorId,
        plane: Plane,
        is_down: &dyn Fn(ActorId) -> bool,
    ) -> Result<Route, TopologyError> {
        let error = |reason: String| TopologyError::Route {
            plane: match plane {
                Plane::Ub => "UB",
                Plane::Rdma => "RDMA",
                Plane::Vpc => "VPC",
                Plane::Sio => "die-to-die",
            },
            from: self.address(from),
            to: self.address(to),
            reason,
        };
        let ends = (self.end(from).map_err(error)?, self.end(to).map_err(error)?);
        if from == to {
            return Err(error(
                "both ends are the same part, so nothing has to be sent".to_owned(),
            ));
        }
        if let Some(end) = [from, to].into_iter().find(|end| is_down(*end)) {
            return Err(error(format!("{} is down", self.address(end))));
        }
        match plane {
            Plane::Ub => self.route_ub(from, to, ends, is_down).map_err(error),
            Plane::Rdma => match ends {
                (End::Die(a), End::Die(b)) => {
                    let ports = [
                        (HopKind::RdmaOut, self.rdma(a)),
                        (HopKind::RdmaIn, self.rdma(b)),
                    ];
                    let rdma = &self.spec.rdma;
                    self.route_ports(
                        from,
                        to,
                        plane,
                        &ports,
                        rdma.gb_per_s,
                        rdma.latency_us,
                        is_down,
                    )
                    .map_err(error)
                }
                _ => Err(error("CPUs have no RDMA port: use ub or vpc".to_owned())),
            },
            Plane::Vpc => {
                let (a, b) = (self.node_of(from), self.node_of(to));
                // Within a node as well, a message turns round at the node's port.
                let ports = [
                    (HopKind::VpcOut, self.vpc(a)),
                    (HopKind::VpcIn, self.vpc(b)),
                ];
                let vpc = &self.spec.vpc;
                self.route_ports(
                    from,
                    to,
                    plane,
                    &ports,
                    vpc.gb_per_s,
                    vpc.latency_us,
                    is_down,
                )
                .map_err(error)
            }
            Plane::Sio => match ends {
                (End::Die(a), End::Die(b)) if self.npu_of_die(a) == self.npu_of_die(b) => {
                    let ports = [(HopKind::Sio, self.sio(self.npu_of_die(a)))];
                    let sio = &self.spec.sio;
                    self.route_ports(
                        from,
                        to,
                        plane,
                        &ports,
                        sio.gb_per_s,
                        sio.latency_us,
                        is_down,
                    )
                    .map_err(error)
                }
                _ => Err(error(
                    "only the dies of one NPU are joined by it: use ub".to_owned(),
                )),
            },
        }
    }

    /// Whether a part can be an end of a route.
    fn end(&self, id: ActorId) -> Result<End, String> {
        match (self.as_die(id), self.as_cpu(id)) {
            (Some(die), _) => Ok(End::Die(die)),
            (_, Some(cpu)) => Ok(End::Cpu(cpu)),
            _ => Err(format!(
                "{} is a link; routes join dies and CPUs",
                self.address(id)
            )),
        }
    }

    fn lane(&self, end: End, plane: u32) -> ActorId {
        match end {
            End::Die(die) => self.die_lane(die, plane),
            End::Cpu(cpu) => self.cpu_lane(cpu, plane),
        }
    }

    fn route_ub(
        &self,
        from: ActorId,
        to: ActorId,
        (a, b): (End, End),
        is_down: &dyn Fn(ActorId) -> bool,
    ) -> Result<Route, String> {
        let (node_a, node_b) = (self.node_of(from), self.node_of(to));
        let same_node = node_a == node_b;
        let mut sub_planes = Vec::new();
        let mut blocks = Vec::new();
        for plane in 0..self.planes() {
            let lanes = [self.lane(a, plane), self.lane(b, plane)];
            if let Some(lane) = lanes.into_iter().find(|lane| is_down(*lane)) {
                blocks.push(format!("{} is down", self.address(lane)));
                continue;
            }
            let chips = if same_node {
                0
            } else {
                self.l2_chips_per_plane()
            };
            let joins = |node, chip| !is_down(self.uplink(node, plane, chip));
            let l2_chips: Vec<u32> = (0..chips)
                .filter(|chip| joins(node_a, *chip) && joins(node_b, *chip))
                .collect();
            if l2_chips.is_empty() && !same_node {
                blocks.push(format!(
                    "no L2 chip of plane{plane} is reached from both nodes"
                ));
                continue;
            }
            sub_planes.push(SubPlane { plane, l2_chips });
        }
        if sub_planes.is_empty() {
            return Err(format!("no sub-plane is usable: {}", blocks.join("; ")));
        }

        let npu_to_npu = matches!((a, b), (End::Die(_), End::Die(_)));
        let read = self.ub_rate(npu_to_npu, same_node, Access::Read);
        let write = self.ub_rate(npu_to_npu, same_node, Access::Write);
        let gb_per_s = |rate: &UbRate| {
            let uplink_gb_per_s = self.spec.ub.uplink_gb_per_s;
            let of = |sub: &SubPlane| match sub.l2_chips.len() {
                0 => rate.lane_gb_per_s,
                chips => rate.lane_gb_per_s.min(chips as f64 * uplink_gb_per_s),
            };
            sub_planes.iter().map(of).sum()
        };

        let lanes = |end| {
            sub_planes
                .iter()
                .map(|sub| self.lane(end, sub.plane))
                .collect()
        };
        let uplinks = |node| {
            let of = |sub: &SubPlane| -> Vec<ActorId> {
                sub.l2_chips
                    .iter()
                    .map(|chip| self.uplink(node, sub.plane, *chip))
                    .collect()
            };
            sub_planes.iter().flat_map(of).collect()
        };
        let hop = |kind, links: Vec<ActorId>, links_all, latency: &dyn Fn(&UbRate) -> f64| Hop {
            plane: Plane::Ub,
            kind,
            links,
            links_all,
            latency_us_read: latency(&read),
            latency_us_write: latency(&write),
        };
        let planes = self.planes();
        let uplinks_all = planes * self.l2_chips_per_plane();
        let mut hops = vec![hop(HopKind::LaneOut, lanes(a), planes, &|rate| {
            rate.lane_us + rate.switch_us
        })];
        if !same_node {
            for (kind, node) in [(HopKind::UplinkOut, node_a), (HopKind::UplinkIn, node_b)] {
                hops.push(hop(kind, uplinks(node), uplinks_all, &|rate| {
                    rate.uplink_us + rate.switch_us
                }));
            }
        }
        hops.push(hop(HopKind::LaneIn, lanes(b), planes, &|rate| rate.lane_us));
        Ok(Route {
            from,
            to,
            plane: Plane::Ub,
            same_node,
            gb_per_s_read: gb_per_s(&read),
            gb_per_s_write: gb_per_s(&write),
            sub_planes,
            hops,
            endpoints_us_read: read.endpoints_us,
            endpoints_us_write: write.endpoints_us,
            latency_us_read: read.latency_us,
            latency_us_write: write.latency_us,
        })
    }

    /// A route over one port after the other, which share the latency evenly.
    #[expect(
        clippy::too_many_arguments,
        reason = "private; the three planes of ports differ in just these"
    )]
    fn route_ports(
        &self,
        from: ActorId,
        to: ActorId,
        plane: Plane,
        ports: &[(HopKind, ActorId)],
        gb_per_s: f64,
        latency_us: f64,
        is_down: &dyn Fn(ActorId) -> bool,
    ) -> Result<Route, String> {
        if let Some((_, port)) = ports.iter().find(|(_, port)| is_down(*port)) {
            return Err(format!("{} is down", self.address(*port)));
        }
        let hop_us = latency_us / ports.len() as f64;
        let hop = |(kind, port): &(HopKind, ActorId)| Hop {
            plane,
            kind: *kind,
            links: vec![*port],
            links_all: 1,
            latency_us_read: hop_us,
            latency_us_write: hop_us,
        };
        Ok(Route {
            from,
            to,
            plane,
            same_node: self.node_of(from) == self.node_of(to),
            sub_planes: Vec::new(),
            hops: ports.iter().map(hop).collect(),
            endpoints_us_read: 0.0,
            endpoints_us_write: 0.0,
            latency_us_read: latency_us,
            latency_us_write: latency_us,
            gb_per_s_read: gb_per_s,
            gb_per_s_write: gb_per_s,
        })
    }
}

impl Machine {
    /// The links of one path over UB, in order: lane, two uplinks between nodes, lane. `None` if an end is not a die or
    /// CPU, or the sub-plane or chip is out of range; inside a node `chip` is not used.
    pub fn ub_path(
        &self,
        from: ActorId,
        to: ActorId,
        plane: u32,
        chip: u32,
    ) -> Option<Vec<ActorId>> {
        let (a, b) = (self.end(from).ok()?, self.end(to).ok()?);
        if plane >= self.planes() || chip >= self.l2_chips_per_plane() {
            return None;
        }
        let (node_a, node_b) = (self.node_of(from), self.node_of(to));
        let mut path = vec![self.lane(a, plane)];
        if node_a != node_b {
            path.extend([
                self.uplink(node_a, plane, chip),
                self.uplink(node_b, plane, chip),
            ]);
        }
        path.push(self.lane(b, plane));
        Some(path)
    }
}
