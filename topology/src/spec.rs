//! The machine file: which parts there are and what each can do. Plain data with units in the names; the figures
//! themselves live in `machines/*.toml`, each with its source. A file may name a built-in `base` and give only what differs.

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A value of the machine file that another file can override, whole or in part.
pub(crate) trait Setting: Sized {
    /// What a file says of it.
    type Patch: DeserializeOwned;
    fn patch(&mut self, patch: Self::Patch);
    /// The value, when a file gives all of it; else the first key that is missing.
    fn complete(patch: Option<Self::Patch>, key: &str) -> Result<Self, String>;
    /// Visits every number, with its key.
    fn numbers(&self, key: &str, visit: &mut dyn FnMut(&str, f64));
}

macro_rules! leaf {
    ($($ty:ty => |$self:ident, $key:ident, $visit:ident| $numbers:expr),+ $(,)?) => {$(
        impl Setting for $ty {
            type Patch = $ty;
            fn patch(&mut self, patch: $ty) { *self = patch; }
            fn complete(patch: Option<$ty>, key: &str) -> Result<Self, String> {
                patch.ok_or_else(|| key.to_owned())
            }
            fn numbers(&$self, $key: &str, $visit: &mut dyn FnMut(&str, f64)) { $numbers }
        }
    )+};
}

leaf! {
    u32 => |self, key, visit| visit(key, f64::from(*self)),
    f64 => |self, key, visit| visit(key, *self),
    String => |self, _key, _visit| (),
}

fn join(key: &str, field: &str) -> String {
    if key.is_empty() {
        field.to_owned()
    } else {
        format!("{key}.{field}")
    }
}

macro_rules! section {
    (
        $(#[$doc:meta])* $name:ident, $patch:ident {
            $($(#[$field_doc:meta])* $field:ident: $ty:ty),+ $(,)?
        }
        $(file only { $($(#[$extra_doc:meta])* $extra:ident: $extra_ty:ty),+ $(,)? })?
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields)]
        pub struct $name { $($(#[$field_doc])* pub $field: $ty),+ }

        $(#[$doc])*
        #[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields, default)]
        pub struct $patch {
            $($($(#[$extra_doc])* pub(crate) $extra: Option<$extra_ty>,)+)?
            $($(#[$field_doc])* pub(crate) $field: Option<<$ty as Setting>::Patch>),+
        }

        impl Setting for $name {
            type Patch = $patch;
            fn patch(&mut self, patch: $patch) {
                $(if let Some(value) = patch.$field { self.$field.patch(value); })+
            }
            fn complete(patch: Option<$patch>, key: &str) -> Result<Self, String> {
                let patch = patch.unwrap_or_default();
                Ok(Self { $($field: Setting::complete(patch.$field, &join(key, stringify!($field)))?),+ })
            }
            fn numbers(&self, key: &str, visit: &mut dyn FnMut(&str, f64)) {
                $(self.$field.numbers(&join(key, stringify!($field)), visit);)+
            }
        }
    };
}

section! {
    /// A machine of the CloudMatrix kind: nodes of NPUs and CPUs, joined by Unified Bus (UB) through two tiers of
    /// switch chips, with an RDMA and a VPC plane beside it.
    MachineSpec, MachineFile {
        name: String,
        counts: Counts,
        die: DieSpec,
        cpu: CpuSpec,
        ub: UbSpec,
        sio: SioSpec,
        rdma: RdmaSpec,
        vpc: VpcSpec,
        storage: StorageSpec,
    }
    file only {
        /// A built-in machine that supplies every key this file does not give.
        base: String,
    }
}

section! {
    /// How many of each part.
    Counts, CountsFile {
        nodes: u32,
        npus_per_node: u32,
        dies_per_npu: u32,
        cpus_per_node: u32,
        nodes_per_rack: u32,
        /// Racks that hold nothing but L2 chips, a like share of each sub-plane's.
        switch_racks: u32,
        /// UB sub-planes: every die and CPU has one lane into each, every node one L1 chip in each.
        planes: u32,
        /// L2 chips of one sub-plane: every L1 chip has one uplink to each.
        l2_chips_per_plane: u32,
    }
}

section! {
    /// One NPU die. Peak rates; what operators achieve of them is the serving model's business.
    DieSpec, DieFile {
        /// Cube (matrix) cores.
        aic_cores: u32,
        /// Vector cores.
        aiv_cores: u32,
        bf16_tflops: f64,
        int8_tops: f64,
        hbm_gb: f64,
        hbm_gb_per_s: f64,
    }
}

section! {
    /// One CPU, and the memory of its node.
    CpuSpec, CpuFile {
        cores: u32,
        /// DRAM of all CPUs of one node together.
        dram_gb_per_node: f64,
        /// Peak DRAM bandwidth of one CPU.
        dram_gb_per_s: f64,
        /// UB bandwidth of one CPU each way, over all its lanes.
        ub_gb_per_s: f64,
    }
}

section! {
    /// The Unified Bus: nominal link rates, and the transfers measured over it.
    UbSpec, UbFile {
        /// One lane of a die, each way.
        lane_gb_per_s: f64,
        /// One L1-L2 link, each way.
        uplink_gb_per_s: f64,
        /// Time in one switch chip.
        switch_hop_ns: f64,
        /// Time along one lane, between a die or CPU and its L1 chip.
        lane_ns: f64,
        /// Transfer size at which the latencies of the table were measured.
        latency_bytes: u32,
        npu_npu_read: UbPathSpec,
        npu_npu_write: UbPathSpec,
        npu_cpu_read: UbPathSpec,
        npu_cpu_write: UbPathSpec,
    }
}

section! {
    /// One row of the measured table: one die, one way, over all lanes.
    UbPathSpec, UbPathFile {
        /// Between nodes, large transfers.
        inter_gb_per_s: f64,
        /// Inside a node, large transfers.
        intra_gb_per_s: f64,
        inter_latency_us: f64,
        intra_latency_us: f64,
    }
}

section! {
    /// The on-package link between the dies of one NPU, each way.
    SioSpec, SioFile { gb_per_s: f64, latency_us: f64 }
}

section! {
    /// The RDMA port of a die, each way.
    RdmaSpec, RdmaFile { gb_per_s: f64, latency_us: f64 }
}

section! {
    /// The VPC port of a node, each way.
    VpcSpec, VpcFile { gb_per_s: f64, latency_us: f64 }
}

section! {
    /// Storage behind the machine.
    StorageSpec, StorageFile {
        /// From object storage, for the whole machine.
        object_store_gb_per_s: f64,
        ssd_gb_per_s_per_node: f64,
        ssd_latency_us: f64,
        /// All CPUs of a node together, reads and writes.
        dram_gb_per_s_per_node: f64,
    }
}
