//! The tree of addresses: which names there are below a place, and which actors a place stands for. Parsing, globbing
//! and printing all walk this one description of it.
//!
//! ```text
//! (machine) ─ node12 ─ npu3 ─ die1 ─ ub4, rdma
//!           │        │      └ sio
//!           │        ├ cpu2 ─ ub4
//!           │        ├ l1.4 ─ up9
//!           │        └ vpc
//!           ├ plane4 ─ l2.9
//!           └ rack3
//! ```

use std::fmt::Write;

use crate::machine::{ActorId, Machine, Part};

/// A spot in the tree: an actor, or a group of them. Indices count over the machine where the name says so.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    Machine,
    Node(u32),
    /// Counted over the machine.
    Npu(u32),
    L1 {
        node: u32,
        plane: u32,
    },
    Plane(u32),
    L2 {
        plane: u32,
        chip: u32,
    },
    Rack(u32),
    Actor(ActorId),
}

/// The names of one kind below a place: `name` alone, or `name` and an index below `count`.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Names {
    pub name: &'static str,
    pub count: Option<u32>,
}

impl Names {
    fn many(name: &'static str, count: u32) -> Self {
        Self {
            name,
            count: Some(count),
        }
    }
    fn one(name: &'static str) -> Self {
        Self { name, count: None }
    }
    /// How many there are.
    pub fn len(self) -> u32 {
        self.count.unwrap_or(1)
    }
    /// Writes the name of the one with this index over what `text` held.
    pub fn write(self, index: u32, text: &mut String) {
        text.clear();
        text.push_str(self.name);
        if self.count.is_some() {
            write!(text, "{index}").expect("a String takes all writes");
        }
    }
    pub fn nth(self, index: u32) -> String {
        let mut text = String::new();
        self.write(index, &mut text);
        text
    }
    /// The index that a plain name stands for.
    pub fn index_of(self, text: &str) -> Option<u32> {
        let digits = text.strip_prefix(self.name)?;
        let Some(count) = self.count else {
            return digits.is_empty().then_some(0);
        };
        let canonical = digits.bytes().all(|b| b.is_ascii_digit())
            && (digits == "0" || !digits.starts_with('0'));
        let index = canonical.then(|| digits.parse::<u32>().ok())??;
        (index < count).then_some(index)
    }
    /// `node0 to node47`, or the name alone.
    pub fn range(self) -> String {
        match self.len() {
            1 => self.nth(0),
            len => format!("{} to {}", self.nth(0), self.nth(len - 1)),
        }
    }
}

impl Machine {
    /// The names below a place; those of one kind are consecutive.
    pub(crate) fn names_below(&self, place: Place) -> Vec<Names> {
        match place {
            Place::Machine => vec![
                Names::many("node", self.node_count()),
                Names::many("plane", self.planes()),
                Names::many("rack", self.rack_count()),
            ],
            Place::Node(_) => vec![
                Names::many("npu", self.npus_per_node()),
                Names::many("cpu", self.cpus_per_node()),
                Names::many("l1.", self.planes()),
                Names::one("vpc"),
            ],
            Place::Npu(_) => vec![Names::many("die", self.dies_per_npu()), Names::one("sio")],
            Place::L1 { .. } => vec![Names::many("up", self.l2_chips_per_plane())],
            Place::Plane(_) => vec![Names::many("l2.", self.l2_chips_per_plane())],
            Place::Actor(id) if self.as_die(id).is_some() => {
                vec![Names::many("ub", self.planes()), Names::one("rdma")]
            }
            Place::Actor(id) if self.as_cpu(id).is_some() => vec![Names::many("ub", self.planes())],
            Place::L2 { .. } | Place::Rack(_) | Place::Actor(_) => vec![],
        }
    }

    /// The place that `names.nth(index)` is, below `place`.
    pub(crate) fn child(&self, place: Place, names: Names, index: u32) -> Place {
        match (place, names.name) {
            (Place::Machine, "node") => Place::Node(index),
            (Place::Machine, "plane") => Place::Plane(index),
            (Place::Machine, "rack") => Place::Rack(index),
            (Place::Node(node), "npu") => Place::Npu(node * self.npus_per_node() + index),
            (Place::Node(node), "cpu") => {
                Place::Actor(self.cpu(node * self.cpus_per_node() + index))
            }
            (Place::Node(node), "l1.") => Place::L1 { node, plane: index },
            (Place::Node(node), "vpc") => Place::Actor(self.vpc(node)),
            (Place::Npu(npu), "die") => Place::Actor(self.die(npu * self.dies_per_npu() + index)),
            (Place::Npu(npu), "sio") => Place::Actor(self.sio(npu)),
            (Place::L1 { node, plane }, "up") => Place::Actor(self.uplink(node, plane, index)),
            (Place::Plane(plane), "l2.") => Place::L2 { plane, chip: index },
            (Place::Actor(id), name) => {
                Place::Actor(match (self.as_die(id), self.as_cpu(id), name) {
                    (Some(die), _, "ub") => self.die_lane(die, index),
                    (Some(die), _, "rdma") => self.rdma(die),
                    (_, Some(cpu), "ub") => self.cpu_lane(cpu, index),
                    _ => unreachable!("no {name} below actor {id:?}"),
                })
            }
            (place, name) => unreachable!("no {name} below {place:?}"),
        }
    }

    /// Adds the actors that a place stands for: all links of a chip, all parts of a node, an NPU or a rack, all links
    /// of a sub-plane; an actor stands for itself alone.
    pub(crate) fn members(&self, place: Place, out: &mut Vec<ActorId>) {
        match place {
            Place::Machine => out.extend(self.actors()),
            Place::Rack(rack) => {
                let per_rack = self.spec.counts.nodes_per_rack;
                let first = rack * per_rack;
                for node in first..(first + per_rack).min(self.node_count()) {
                    self.members(Place::Node(node), out);
                }
            }
            Place::Node(node) => {
                for npu in 0..self.npus_per_node() {
                    self.members(Place::Npu(node * self.npus_per_node() + npu), out);
                }
                for cpu in self.cpus_of(node) {
                    out.push(self.cpu(cpu));
                    out.extend((0..self.planes()).map(|plane| self.cpu_lane(cpu, plane)));
                }
                for plane in 0..self.planes() {
                    out.extend(self.uplinks_of(node, plane));
                }
                out.push(self.vpc(node));
            }
            Place::Npu(npu) => {
                for die in npu * self.dies_per_npu()..(npu + 1) * self.dies_per_npu() {
                    out.extend([self.die(die), self.rdma(die)]);
                    out.extend((0..self.planes()).map(|plane| self.die_lane(die, plane)));
                }
                out.push(self.sio(npu));
            }
            Place::L1 { node, plane } => {
                out.extend(self.dies_of(node).map(|die| self.die_lane(die, plane)));
                out.extend(self.cpus_of(node).map(|cpu| self.cpu_lane(cpu, plane)));
                out.extend(self.uplinks_of(node, plane));
            }
            Place::Plane(plane) => {
                for node in 0..self.node_count() {
                    self.members(Place::L1 { node, plane }, out);
                }
            }
            Place::L2 { plane, chip } => {
                out.extend((0..self.node_count()).map(|node| self.uplink(node, plane, chip)));
            }
            Place::Actor(id) => out.push(id),
        }
    }

    /// Adds the actors that a place and everything below it stand for.
    pub(crate) fn subtree(&self, place: Place, out: &mut Vec<ActorId>) {
        self.members(place, out);
        // A group holds whatever is below it; a die or CPU is an actor with links of its own below.
        if let Place::Actor(_) = place {
            for names in self.names_below(place) {
                for index in 0..names.len() {
                    self.members(self.child(place, names, index), out);
                }
            }
        }
    }

    fn dies_of(&self, node: u32) -> std::ops::Range<u32> {
        node * self.dies_per_node()..(node + 1) * self.dies_per_node()
    }
    fn cpus_of(&self, node: u32) -> std::ops::Range<u32> {
        node * self.cpus_per_node()..(node + 1) * self.cpus_per_node()
    }
    fn uplinks_of(&self, node: u32, plane: u32) -> impl Iterator<Item = ActorId> + '_ {
        (0..self.l2_chips_per_plane()).map(move |chip| self.uplink(node, plane, chip))
    }

    /// The path of a place, as people type it.
    pub(crate) fn place_name(&self, place: Place) -> String {
        match place {
            Place::Machine => "this machine".to_owned(),
            Place::Node(node) => format!("node{node}"),
            Place::Npu(npu) => format!(
                "node{}/npu{}",
                npu / self.npus_per_node(),
                npu % self.npus_per_node()
            ),
            Place::L1 { node, plane } => format!("node{node}/l1.{plane}"),
            Place::Plane(plane) => format!("plane{plane}"),
            Place::L2 { plane, chip } => format!("plane{plane}/l2.{chip}"),
            Place::Rack(rack) => format!("rack{rack}"),
            Place::Actor(id) => match self.part(id) {
                Part::Die { node, npu, die } => format!("node{node}/npu{npu}/die{die}"),
                Part::Cpu { node, cpu } => format!("node{node}/cpu{cpu}"),
                Part::DieLane { die, plane } => {
                    format!("{}/ub{plane}", self.address(self.die(die)))
                }
                Part::CpuLane { cpu, plane } => {
                    format!("{}/ub{plane}", self.address(self.cpu(cpu)))
                }
                Part::Uplink { node, plane, chip } => format!("node{node}/l1.{plane}/up{chip}"),
                Part::Sio { npu } => format!("{}/sio", self.place_name(Place::Npu(npu))),
                Part::Rdma { die } => format!("{}/rdma", self.address(self.die(die))),
                Part::Vpc { node } => format!("node{node}/vpc"),
            },
        }
    }
}
