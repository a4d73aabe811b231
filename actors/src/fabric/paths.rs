//! What a path between two parts costs: latency of its first byte and picoseconds per byte, from the
//! machine's measured table.

use supernode_topology::{Machine, UbPathSpec};

use crate::time::{Ps, ps_from_us};

/// Picoseconds per byte in 1/65,536ths, so that costs are whole numbers everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PerByte(u64);

impl PerByte {
    pub fn from_gb_per_s(gb_per_s: f64) -> Self {
        Self((65_536.0 * 1e3 / gb_per_s).round() as u64)
    }

    /// Time to serialise `bytes`.
    #[inline]
    pub fn ps(self, bytes: u64) -> Ps {
        ((u128::from(bytes) * u128::from(self.0)) >> 16) as Ps
    }

    /// Serialising over `part` of `whole` equal lanes takes longer in proportion.
    pub fn over_lanes(self, part: u32, whole: u32) -> Self {
        Self(self.0 * u64::from(whole) / u64::from(part.max(1)))
    }

    /// Slower by 1/`factor`.
    pub fn slowed(self, factor: f64) -> Self {
        Self((self.0 as f64 / factor).round().min(u64::MAX as f64 / 2.0) as u64)
    }
}

/// One row and column of the measured table: large transfers and 512 B latency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathCost {
    pub per_byte: PerByte,
    /// From the first byte leaving to the first byte arriving.
    pub latency_ps: Ps,
}

impl PathCost {
    /// `latency_us` is that of a `measured_bytes` message: its own serialisation is taken off.
    pub fn new(gb_per_s: f64, latency_us: f64, measured_bytes: u64) -> Self {
        let per_byte = PerByte::from_gb_per_s(gb_per_s);
        Self {
            per_byte,
            latency_ps: ps_from_us(latency_us).saturating_sub(per_byte.ps(measured_bytes)),
        }
    }
}

/// What kind of transfer it is; `[inside a node, between nodes]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BothReaches {
    pub inside: PathCost,
    pub between: PathCost,
}

impl BothReaches {
    #[inline]
    pub fn at(&self, same_node: bool) -> PathCost {
        if same_node { self.inside } else { self.between }
    }
}

/// Costs of every kind of transfer on a machine.
#[derive(Clone, Debug)]
pub struct Paths {
    pub npu_npu_read: BothReaches,
    pub npu_npu_write: BothReaches,
    pub npu_cpu_read: BothReaches,
    pub npu_cpu_write: BothReaches,
    pub sio: PathCost,
    pub rdma: PathCost,
    pub vpc: PathCost,
}

impl Paths {
    /// The machine's measured table. Latencies are those of an empty message: its own serialisation comes on top.
    pub fn new(machine: &Machine) -> Self {
        let s = &machine.spec;
        let bytes = u64::from(s.ub.latency_bytes);
        let row = |p: &UbPathSpec| BothReaches {
            inside: PathCost::new(p.intra_gb_per_s, p.intra_latency_us, bytes),
            between: PathCost::new(p.inter_gb_per_s, p.inter_latency_us, bytes),
        };
        Self {
            npu_npu_read: row(&s.ub.npu_npu_read),
            npu_npu_write: row(&s.ub.npu_npu_write),
            npu_cpu_read: row(&s.ub.npu_cpu_read),
            npu_cpu_write: row(&s.ub.npu_cpu_write),
            sio: PathCost::new(s.sio.gb_per_s, s.sio.latency_us, 0),
            rdma: PathCost::new(s.rdma.gb_per_s, s.rdma.latency_us, 0),
            vpc: PathCost::new(s.vpc.gb_per_s, s.vpc.latency_us, 0),
        }
    }

    /// The least time in which anything reaches another node.
    pub fn least_between_ps(&self) -> Ps {
        [
            self.npu_npu_read,
            self.npu_npu_write,
            self.npu_cpu_read,
            self.npu_cpu_write,
        ]
        .iter()
        .map(|r| r.between.latency_ps)
        .chain([self.rdma.latency_ps, self.vpc.latency_ps])
        .min()
        .expect("there are paths")
        .max(1)
    }
}
