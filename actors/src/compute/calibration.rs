//! Operator efficiencies and overheads, as the TOML file states them (with their sources).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
        int8_efficiency: f64,
        bf16_efficiency: f64,
        weight_stream_efficiency: f64
    }
);
table!(
    Mla,
    MlaSet {
        compute_efficiency: f64,
        memory_efficiency: f64,
        prefill_compute_efficiency: f64
    }
);
table!(
    Vector,
    VectorSet {
        memory_efficiency: f64
    }
);
table!(
    Overhead,
    OverheadSet {
        operator_us: f64,
        sampling_passes: f64,
        host_gap_us: f64
    }
);
table!(
    Layer,
    LayerSet {
        attention_operators: f64,
        gate_operators: f64,
        mlp_operators: f64,
        dense_mlp_operators: f64,
        prefill_operators: f64,
    }
);
table!(
    Streams,
    StreamsSet {
        attention_aic: f64,
        attention_aiv: f64,
        moe_aic: f64,
        moe_aiv: f64
    }
);
table!(
    Head,
    HeadSet {
        tensor_parallel_dies: u32,
        bytes_per_weight: f64
    }
);
table!(
    Dispatch,
    DispatchSet {
        startup_us: f64,
        token_us: f64,
        issue_ns: f64,
        flag_ns: f64,
        barrier_us: f64,
        assemble_passes: f64,
        assemble_us: f64,
    }
);
table!(
    Combine,
    CombineSet {
        startup_us: f64,
        issue_ns: f64,
        flag_ns: f64,
        barrier_us: f64,
        sum_passes: f64,
        sum_us: f64,
    }
);
table!(
    Wire,
    WireSet {
        dispatch_bytes_int8: u32,
        dispatch_scale_bytes: u32,
        flag_bytes: u32,
        control_bytes: u32,
    }
);
table!(
    PrefillOps,
    PrefillOpsSet {
        collective_startup_us: f64,
        vector_passes: f64
    }
);
table!(
    Memory,
    MemorySet {
        workspace_share: f64
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
        let c: Self = toml::from_str(text).map_err(|e| {
            let before = &text[..e.span().map_or(0, |s| s.start.min(text.len()))];
            let line = before.bytes().filter(|b| *b == b'\n').count() + 1;
            let why: Vec<&str> = e.message().split_whitespace().collect();
            format!("line {line}: {}", why.join(" "))
        })?;
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
            (
                "gemm.weight_stream_efficiency",
                self.gemm.weight_stream_efficiency,
            ),
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
