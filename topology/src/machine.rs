//! The parts of a machine and their ids. Ids are dense and their layout is plain arithmetic on the counts, so that
//! callers can keep per-actor state in arrays; nothing here depends on what is up or down.

use serde::{Deserialize, Serialize};

use crate::spec::MachineSpec;

/// One part of a machine that is an actor: a die, a CPU or a link. Dense, from 0 to `Machine::actor_count()`.
///
/// Layout: dies (node-major), CPUs (node-major), die lanes (`die * planes + plane`), CPU lanes
/// (`cpu * planes + plane`), uplinks (`(node * planes + plane) * chips + chip`), die-to-die links (per NPU),
/// RDMA ports (per die), VPC ports (per node).
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct ActorId(pub u32);

/// What an actor is, and where.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Part {
    /// `npu` counts within the node, `die` within the NPU.
    Die { node: u32, npu: u32, die: u32 },
    /// `cpu` counts within the node.
    Cpu { node: u32, cpu: u32 },
    /// A die's UB lane to its node's L1 chip of this sub-plane; `die` counts over the machine.
    DieLane { die: u32, plane: u32 },
    /// A CPU's UB lane; `cpu` counts over the machine.
    CpuLane { cpu: u32, plane: u32 },
    /// The link from a node's L1 chip to an L2 chip of the same sub-plane.
    Uplink { node: u32, plane: u32, chip: u32 },
    /// The on-package link of an NPU, which counts over the machine.
    Sio { npu: u32 },
    /// The RDMA port of a die, which counts over the machine.
    Rdma { die: u32 },
    /// The VPC port of a node.
    Vpc { node: u32 },
}

/// A machine: its specification, and where each kind of part begins among the ids.
#[derive(Clone, Debug)]
pub struct Machine {
    pub spec: MachineSpec,
    cpus_at: u32,
    die_lanes_at: u32,
    cpu_lanes_at: u32,
    uplinks_at: u32,
    sio_at: u32,
    rdma_at: u32,
    vpc_at: u32,
    actors: u32,
}

impl Machine {
    /// `spec` has been checked: no count is zero, and all parts together fit a u32.
    pub(crate) fn new(spec: MachineSpec) -> Self {
        let c = &spec.counts;
        let npus = c.nodes * c.npus_per_node;
        let dies = npus * c.dies_per_npu;
        let cpus = c.nodes * c.cpus_per_node;
        let cpus_at = dies;
        let die_lanes_at = cpus_at + cpus;
        let cpu_lanes_at = die_lanes_at + dies * c.planes;
        let uplinks_at = cpu_lanes_at + cpus * c.planes;
        let sio_at = uplinks_at + c.nodes * c.planes * c.l2_chips_per_plane;
        let rdma_at = sio_at + npus;
        let vpc_at = rdma_at + dies;
        let actors = vpc_at + c.nodes;
        Self {
            spec,
            cpus_at,
            die_lanes_at,
            cpu_lanes_at,
            uplinks_at,
            sio_at,
            rdma_at,
            vpc_at,
            actors,
        }
    }

    pub fn node_count(&self) -> u32 {
        self.spec.counts.nodes
    }
    pub fn npu_count(&self) -> u32 {
        self.node_count() * self.npus_per_node()
    }
    pub fn die_count(&self) -> u32 {
        self.cpus_at
    }
    pub fn cpu_count(&self) -> u32 {
        self.die_lanes_at - self.cpus_at
    }
    pub fn actor_count(&self) -> u32 {
        self.actors
    }
    /// Racks that hold the L2 chips.
    pub fn switch_rack_count(&self) -> u32 {
        self.spec.counts.switch_racks
    }

    /// The switch rack of an L2 chip, given by its number within its sub-plane.
    pub fn switch_rack_of(&self, chip: u32) -> u32 {
        let counts = &self.spec.counts;
        (u64::from(chip) * u64::from(counts.switch_racks) / u64::from(counts.l2_chips_per_plane))
            as u32
    }

    /// Racks that hold nodes; the last may be part empty. Switch racks are not counted.
    pub fn rack_count(&self) -> u32 {
        self.node_count().div_ceil(self.spec.counts.nodes_per_rack)
    }
    /// UB sub-planes.
    pub fn planes(&self) -> u32 {
        self.spec.counts.planes
    }
    pub fn l2_chips_per_plane(&self) -> u32 {
        self.spec.counts.l2_chips_per_plane
    }
    pub fn npus_per_node(&self) -> u32 {
        self.spec.counts.npus_per_node
    }
    pub fn dies_per_npu(&self) -> u32 {
        self.spec.counts.dies_per_npu
    }
    pub fn dies_per_node(&self) -> u32 {
        self.npus_per_node() * self.dies_per_npu()
    }
    pub fn cpus_per_node(&self) -> u32 {
        self.spec.counts.cpus_per_node
    }

    /// The die of this index, `node * dies_per_node + npu * dies_per_npu + die`.
    pub fn die(&self, index: u32) -> ActorId {
        debug_assert!(index < self.die_count(), "die {index}");
        ActorId(index)
    }
    /// The CPU of this index, `node * cpus_per_node + cpu`.
    pub fn cpu(&self, index: u32) -> ActorId {
        debug_assert!(index < self.cpu_count(), "cpu {index}");
        ActorId(self.cpus_at + index)
    }
    pub fn die_lane(&self, die: u32, plane: u32) -> ActorId {
        debug_assert!(
            die < self.die_count() && plane < self.planes(),
            "lane {plane} of die {die}"
        );
        ActorId(self.die_lanes_at + die * self.planes() + plane)
    }
    pub fn cpu_lane(&self, cpu: u32, plane: u32) -> ActorId {
        debug_assert!(
            cpu < self.cpu_count() && plane < self.planes(),
            "lane {plane} of CPU {cpu}"
        );
        ActorId(self.cpu_lanes_at + cpu * self.planes() + plane)
    }
    /// The link from a node's L1 chip to an L2 chip of the same sub-plane.
    pub fn uplink(&self, node: u32, plane: u32, chip: u32) -> ActorId {
        debug_assert!(
            node < self.node_count() && plane < self.planes() && chip < self.l2_chips_per_plane()
        );
        ActorId(self.uplinks_at + (node * self.planes() + plane) * self.l2_chips_per_plane() + chip)
    }
    /// The on-package link of an NPU, counted over the machine.
    pub fn sio(&self, npu: u32) -> ActorId {
        debug_assert!(npu < self.npu_count(), "npu {npu}");
        ActorId(self.sio_at + npu)
    }
    /// The RDMA port of a die.
    pub fn rdma(&self, die: u32) -> ActorId {
        debug_assert!(die < self.die_count(), "die {die}");
        ActorId(self.rdma_at + die)
    }
    /// The VPC port of a node.
    pub fn vpc(&self, node: u32) -> ActorId {
        debug_assert!(node < self.node_count(), "node {node}");
        ActorId(self.vpc_at + node)
    }

    /// Every actor, in the order of ids.
    pub fn actors(&self) -> impl ExactSizeIterator<Item = ActorId> + use<> {
        (0..self.actors).map(ActorId)
    }
    /// The index of a die, if this is one.
    pub fn as_die(&self, id: ActorId) -> Option<u32> {
        (id.0 < self.cpus_at).then_some(id.0)
    }
    /// The index of a CPU, if this is one.
    pub fn as_cpu(&self, id: ActorId) -> Option<u32> {
        (self.cpus_at..self.die_lanes_at)
            .contains(&id.0)
            .then(|| id.0 - self.cpus_at)
    }
    pub fn is_link(&self, id: ActorId) -> bool {
        id.0 >= self.die_lanes_at
    }

    /// What an actor is. Panics on an id of another machine, which only a bug can bring here.
    pub fn part(&self, id: ActorId) -> Part {
        assert!(
            id.0 < self.actors,
            "actor {} of a machine of {}",
            id.0,
            self.actors
        );
        let (planes, chips) = (self.planes(), self.l2_chips_per_plane());
        let id = id.0;
        if id < self.cpus_at {
            let (npu, die) = (id / self.dies_per_npu(), id % self.dies_per_npu());
            Part::Die {
                node: npu / self.npus_per_node(),
                npu: npu % self.npus_per_node(),
                die,
            }
        } else if id < self.die_lanes_at {
            let cpu = id - self.cpus_at;
            Part::Cpu {
                node: cpu / self.cpus_per_node(),
                cpu: cpu % self.cpus_per_node(),
            }
        } else if id < self.cpu_lanes_at {
            let lane = id - self.die_lanes_at;
            Part::DieLane {
                die: lane / planes,
                plane: lane % planes,
            }
        } else if id < self.uplinks_at {
            let lane = id - self.cpu_lanes_at;
            Part::CpuLane {
                cpu: lane / planes,
                plane: lane % planes,
            }
        } else if id < self.sio_at {
            let link = id - self.uplinks_at;
            Part::Uplink {
                node: link / chips / planes,
                plane: link / chips % planes,
                chip: link % chips,
            }
        } else if id < self.rdma_at {
            Part::Sio {
                npu: id - self.sio_at,
            }
        } else if id < self.vpc_at {
            Part::Rdma {
                die: id - self.rdma_at,
            }
        } else {
            Part::Vpc {
                node: id - self.vpc_at,
            }
        }
    }

    /// The node that owns an actor; an uplink belongs to the node of its L1 chip.
    pub fn node_of(&self, id: ActorId) -> u32 {
        match self.part(id) {
            Part::Die { node, .. }
            | Part::Cpu { node, .. }
            | Part::Uplink { node, .. }
            | Part::Vpc { node } => node,
            Part::DieLane { die, .. } | Part::Rdma { die } => die / self.dies_per_node(),
            Part::CpuLane { cpu, .. } => cpu / self.cpus_per_node(),
            Part::Sio { npu } => npu / self.npus_per_node(),
        }
    }
    /// The NPU of a die, counted over the machine.
    pub fn npu_of_die(&self, die: u32) -> u32 {
        die / self.dies_per_npu()
    }
    pub fn rack_of(&self, node: u32) -> u32 {
        node / self.spec.counts.nodes_per_rack
    }

    /// The kinds of actor: name, how many, and what one is. The counts add up to `actor_count()`.
    pub fn inventory(&self) -> Vec<(&'static str, u64, String)> {
        let s = &self.spec;
        let (die, cpu, ub) = (&s.die, &s.cpu, &s.ub);
        let cpu_lane_gb_per_s = cpu.ub_gb_per_s / f64::from(self.planes());
        let kind = |name, count: u32, what| (name, u64::from(count), what);
        vec![
            kind(
                "die",
                self.die_count(),
                format!(
                    "{} cube and {} vector cores, {} TFLOPS BF16, {} TOPS INT8, {} GB HBM at {} GB/s",
                    die.aic_cores,
                    die.aiv_cores,
                    die.bf16_tflops,
                    die.int8_tops,
                    die.hbm_gb,
                    die.hbm_gb_per_s
                ),
            ),
            kind(
                "cpu",
                self.cpu_count(),
                format!(
                    "{} cores, {} GB DRAM at {} GB/s",
                    cpu.cores,
                    cpu.dram_gb_per_node / f64::from(self.cpus_per_node()),
                    cpu.dram_gb_per_s
                ),
            ),
            kind(
                "die lane",
                self.cpu_lanes_at - self.die_lanes_at,
                format!("UB, die to L1 chip, {} GB/s each way", ub.lane_gb_per_s),
            ),
            kind(
                "cpu lane",
                self.uplinks_at - self.cpu_lanes_at,
                format!("UB, CPU to L1 chip, {cpu_lane_gb_per_s:.1} GB/s each way"),
            ),
            kind(
                "uplink",
                self.sio_at - self.uplinks_at,
                format!(
                    "UB, L1 chip to L2 chip, {} GB/s each way",
                    ub.uplink_gb_per_s
                ),
            ),
            kind(
                "sio",
                self.npu_count(),
                format!("die to die on one NPU, {} GB/s each way", s.sio.gb_per_s),
            ),
            kind(
                "rdma port",
                self.die_count(),
                format!("die to RoCE plane, {} GB/s each way", s.rdma.gb_per_s),
            ),
            kind(
                "vpc port",
                self.node_count(),
                format!("node to VPC plane, {} GB/s each way", s.vpc.gb_per_s),
            ),
        ]
    }

    /// What is not an actor but can be addressed as a group: name, how many, and what one is.
    pub fn groups(&self) -> Vec<(&'static str, u64, String)> {
        let c = &self.spec.counts;
        let kind = |name, count: u32, what| (name, u64::from(count), what);
        let l1_links = self.dies_per_node() + c.cpus_per_node + c.l2_chips_per_plane;
        vec![
            kind(
                "rack",
                self.rack_count(),
                format!("{} nodes", c.nodes_per_rack),
            ),
            kind(
                "node",
                c.nodes,
                format!(
                    "{} NPUs, {} CPUs, {} L1 switch chips",
                    c.npus_per_node, c.cpus_per_node, c.planes
                ),
            ),
            kind(
                "npu",
                self.npu_count(),
                format!("{} dies on one package", c.dies_per_npu),
            ),
            kind(
                "sub-plane",
                c.planes,
                format!(
                    "{} L2 chips, one L1 chip of each node",
                    c.l2_chips_per_plane
                ),
            ),
            kind(
                "L1 chip",
                c.nodes * c.planes,
                format!("{l1_links} links: lanes of its node, and uplinks"),
            ),
            kind(
                "L2 chip",
                c.planes * c.l2_chips_per_plane,
                format!("{} links, one to each node", c.nodes),
            ),
        ]
    }
}
