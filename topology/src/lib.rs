//! The parts of a supernode, how they are wired, their addresses and the routes between them.
//!
//! A [`Machine`] is built from a machine file, in which a CloudMatrix384 is described by default. It knows every die,
//! CPU and link as an [`ActorId`], their addresses (`node12/npu3/die1/ub4`), the groups and patterns that select many,
//! and the routes over them. It knows nothing of time or messages: no state changes here.
//!
//! ```
//! use supernode_topology::{Machine, Plane};
//!
//! let machine = Machine::builtin("cloudmatrix384").unwrap();
//! let (die, cpu) = (machine.parse("node12/npu3/die1")?, machine.parse("node40/cpu2")?);
//! let down = machine.select("plane4")?;
//! let route = machine.route(die, cpu, Plane::Ub, &|link| down.binary_search(&link).is_ok())?;
//! assert_eq!(route.sub_planes.len(), 6);
//! assert_eq!(route.latency_us_read, 1.7);
//! # Ok::<(), supernode_topology::TopologyError>(())
//! ```

mod address;
mod error;
mod glob;
mod load;
mod machine;
mod route;
mod spec;
mod toml_fault;
mod tree;

pub use error::TopologyError;
pub use machine::{ActorId, Machine, Part};
pub use route::{Access, Hop, HopKind, Plane, Route, SubPlane, UbRate};
pub use spec::{
    Counts, CpuSpec, DieSpec, MachineFile, MachineSpec, RdmaSpec, SioSpec, StorageSpec, UbPathSpec,
    UbSpec, VpcSpec,
};
pub use toml_fault::TomlFault;
