//! Operator efficiencies and overheads, as the TOML file states them (with their sources).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use supernode_topology::TomlFault;

/// A table of the file, and the same with every key optional: what a scenario sets over it.
macro_rules! table {
    ($name:ident, $set:ident { $($(#[$doc:meta])* $field:ident : $ty:ty),+ $(,)? }) => {
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name { $($(#[$doc])* pub $field: $ty),+ }
        impl $name {
            fn check(&self, table: &str) -> Result<(), String> {
                $( let v = self.$field as f64;
                   if !v.is_finite() || v < 0.0 {
                       return Err(format!("{table}.{} = {v}: a finite number of at least 0 is expected", stringify!($field)));
                   } )+
                Ok(())
            }
        }
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields, default)]
        pub struct $set { $($(#[$doc])* #[serde(skip_serializing_if = "Option::is_none")] pub $field: Option<$ty>),+ }
        impl $set {
            fn apply(&self, to: &mut $name) {
                $( if let Some(v) = self.$field { to.$field = v; } )+
            }
        }
    };
}

/// All tables of the file, and what a scenario sets over them.
macro_rules! tables {
    ($($table:ident : $name:ident / $set:ident),+ $(,)?) => {
        /// What `specs/operators.toml` says. Efficiencies are shares of peak (0..=1).
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct Calibration { $(pub $table: $name),+ }

        /// Operator figures of a scenario: another file, single values set over it, or both.
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields, default)]
        pub struct Operators {
            /// Operator file (TOML) with every key, instead of the built-in one.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub file: Option<String>,
            $( pub $table: $set ),+
        }

        impl Operators {
            /// The figures of `base` with what is set here over them.
            pub fn over(&self, mut base: Calibration) -> Calibration {
                $( self.$table.apply(&mut base.$table); )+
                base
            }
        }

        impl Calibration {
            fn check_tables(&self) -> Result<(), String> {
                $( self.$table.check(stringify!($table))?; )+
                Ok(())
            }
        }
    };
}

table!(
    Gemm,
    GemmSet {
        /// Share of INT8 peak that a large product reaches.
        int8_efficiency: f64,
        /// Share of BF16 peak that a large product reaches.
        bf16_efficiency: f64,
        /// Share of HBM bandwidth at which weights and activations stream.
        stream_efficiency: f64,
        /// Most rows in one tile of a product.
        tile_rows: f64,
        /// Rows that a cube unit takes at once: tiles are padded to multiples of it.
        unit_rows: f64,
    }
);
table!(
    Mla,
    MlaSet {
        /// Share of BF16 peak that decode attention reaches when bound by operations.
        compute_efficiency: f64,
        /// Share of HBM bandwidth that it reaches when bound by KV reads.
        memory_efficiency: f64,
        /// Share of BF16 peak that prefill attention reaches.
        prefill_compute_efficiency: f64,
    }
);
table!(
    Vector,
    VectorSet {
        /// Share of HBM bandwidth that element-wise kernels reach on all vector cores.
        memory_efficiency: f64,
    }
);
table!(
    Overhead,
    OverheadSet {
        /// Time of one operator beside its work.
        operator_us: f64,
        /// Time between steps in which the host launches the next one.
        host_gap_us: f64,
        /// What of the launch of a step or batch a CPU does for each layer, while the one before runs.
        layer_launch_us: f64,
    }
);
table!(
    Layer,
    LayerSet {
        /// Operators of one decode layer's attention.
        attention_operators: f64,
        /// Passes of its vector operators over the hidden states.
        attention_vector_passes: f64,
        /// Operators of the router.
        gate_operators: f64,
        /// Operators of the experts.
        mlp_operators: f64,
        /// Operators of a dense MLP.
        dense_mlp_operators: f64,
        /// Operators of prefill attention before the gather.
        prefill_latents_operators: f64,
        /// Operators of prefill attention between gather and exchange.
        prefill_heads_operators: f64,
        /// Operators of prefill attention after the exchange, router included.
        prefill_output_operators: f64,
    }
);
table!(
    Streams,
    StreamsSet {
        /// Cube cores of the attention stream while two microbatches run.
        attention_aic: f64,
        /// Vector cores of the attention stream.
        attention_aiv: f64,
        /// Cube cores of the MoE stream.
        moe_aic: f64,
        /// Vector cores of the MoE stream.
        moe_aiv: f64,
        /// Memory bandwidth that one cube core can pull, over its even share.
        core_pull: f64,
    }
);
table!(
    Head,
    HeadSet {
        /// Dies that the vocabulary head is sharded over in decode.
        tensor_parallel_dies: u32,
        /// Operators of head and sampling.
        operators: f64,
        /// Operators before a speculative layer.
        join_operators: f64,
        /// Passes of sampling over the BF16 logits.
        sampling_passes: f64,
    }
);
table!(
    Dispatch,
    DispatchSet {
        /// Start of the fused operator and its first barrier.
        startup_us: f64,
        /// Quantising one token and looking up its experts, on all vector cores.
        token_us: f64,
        /// Issuing one remote write, on all vector cores.
        issue_ns: f64,
        /// Sending and polling one rank's flag.
        flag_ns: f64,
        /// Barrier of the vector cores before flags are sent.
        barrier_us: f64,
        /// Reads and writes of each received token when it is moved to its expert's rows.
        assemble_passes: f64,
        /// Turning counts into offsets.
        assemble_us: f64,
    }
);
table!(
    Combine,
    CombineSet {
        /// Start of the fused operator.
        startup_us: f64,
        /// Issuing one remote write, on all vector cores.
        issue_ns: f64,
        /// Sending and polling one rank's flag.
        flag_ns: f64,
        /// Barrier of the vector cores before flags are sent.
        barrier_us: f64,
        /// Reads of each returned vector in the weighted sum.
        sum_passes: f64,
        /// Turning counts into offsets.
        sum_us: f64,
    }
);
table!(
    Wire,
    WireSet {
        /// Message of one token to one expert, INT8.
        dispatch_bytes_int8: u32,
        /// Scale and padding in it.
        dispatch_scale_bytes: u32,
        /// A control message.
        control_bytes: u32,
    }
);
table!(
    PrefillOps,
    PrefillOpsSet {
        /// Start of a collective over the instance.
        collective_startup_us: f64,
        /// Passes over a hidden state of one fused addition, norm and quantisation.
        norm_passes: f64,
        /// Passes of bringing values into the order of the next stage.
        relayout_passes: f64,
    }
);
table!(
    Memory,
    MemorySet {
        /// Share of HBM for activations, communication windows and the runtime.
        workspace_share: f64,
    }
);
tables! {
    gemm: Gemm / GemmSet,
    mla: Mla / MlaSet,
    vector: Vector / VectorSet,
    overhead: Overhead / OverheadSet,
    layer: Layer / LayerSet,
    streams: Streams / StreamsSet,
    head: Head / HeadSet,
    dispatch: Dispatch / DispatchSet,
    combine: Combine / CombineSet,
    wire: Wire / WireSet,
    prefill: PrefillOps / PrefillOpsSet,
    memory: Memory / MemorySet,
}

impl Calibration {
    /// The file that ships with Supernode.
    pub const BUILTIN: &'static str = include_str!("../../specs/operators.toml");

    pub fn builtin() -> Self {
        Self::from_toml(Self::BUILTIN).expect("the built-in operator file is checked by a test")
    }

    /// # Errors
    /// The TOML error (line and key), or the key whose value is out of range.
    pub fn from_toml(text: &str) -> Result<Self, String> {
        let c: Self = toml::from_str(text).map_err(|e| TomlFault::new(&e, text).to_string())?;
        c.check()?;
        Ok(c)
    }

    /// # Errors
    /// Names the first key whose value cannot be used.
    pub fn check(&self) -> Result<(), String> {
        self.check_tables()?;
        for (key, v) in [
            ("gemm.int8_efficiency", self.gemm.int8_efficiency),
            ("gemm.bf16_efficiency", self.gemm.bf16_efficiency),
            ("gemm.stream_efficiency", self.gemm.stream_efficiency),
            ("mla.compute_efficiency", self.mla.compute_efficiency),
            ("mla.memory_efficiency", self.mla.memory_efficiency),
            (
                "mla.prefill_compute_efficiency",
                self.mla.prefill_compute_efficiency,
            ),
            ("vector.memory_efficiency", self.vector.memory_efficiency),
        ] {
            if v <= 0.0 || v > 1.0 {
                return Err(format!(
                    "{key} = {v}: a share of peak above 0 and up to 1 is expected"
                ));
            }
        }
        for (key, v) in [
            ("streams.attention_aic", self.streams.attention_aic),
            ("streams.attention_aiv", self.streams.attention_aiv),
            ("streams.moe_aic", self.streams.moe_aic),
            ("streams.moe_aiv", self.streams.moe_aiv),
            ("streams.core_pull", self.streams.core_pull),
            ("gemm.tile_rows", self.gemm.tile_rows),
            ("gemm.unit_rows", self.gemm.unit_rows),
            (
                "head.tensor_parallel_dies",
                f64::from(self.head.tensor_parallel_dies),
            ),
            (
                "wire.dispatch_bytes_int8",
                f64::from(self.wire.dispatch_bytes_int8),
            ),
            ("dispatch.startup_us", self.dispatch.startup_us),
            ("combine.startup_us", self.combine.startup_us),
        ] {
            if v <= 0.0 {
                return Err(format!("{key} = {v}: more than 0 is expected"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_builtin_file_loads() {
        Calibration::builtin();
    }

    #[test]
    fn a_bad_value_is_named() {
        let bad = Calibration::BUILTIN.replace(
            "compute_efficiency = 0.654    #",
            "compute_efficiency = 1.5 #",
        );
        assert!(
            Calibration::from_toml(&bad)
                .unwrap_err()
                .contains("mla.compute_efficiency = 1.5")
        );
    }
}
