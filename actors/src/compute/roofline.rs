//! The roofline of one die, and the share of it that a stream holds.

use crate::time::{Ps, ps_from_us};

use supernode_topology::DieSpec;

use super::Calibration;

/// Peaks of one die.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DiePeaks {
    pub aic_cores: f64,
    pub aiv_cores: f64,
    pub bf16_tflops: f64,
    pub int8_tops: f64,
    pub hbm_gb_per_s: f64,
    pub hbm_gb: f64,
}

impl DiePeaks {
    pub fn of(die: &DieSpec) -> Self {
        Self {
            aic_cores: f64::from(die.aic_cores),
            aiv_cores: f64::from(die.aiv_cores),
            bf16_tflops: die.bf16_tflops,
            int8_tops: die.int8_tops,
            hbm_gb_per_s: die.hbm_gb_per_s,
            hbm_gb: die.hbm_gb,
        }
    }
}

/// Shares (0..=1) of a die's cube cores, vector cores and memory bandwidth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    pub cube: f64,
    pub vector: f64,
    /// Of the memory bandwidth, what these cube cores can pull.
    pub memory: f64,
}

impl Share {
    pub const WHOLE: Self = Self {
        cube: 1.0,
        vector: 1.0,
        memory: 1.0,
    };

    /// What a stream on so many cores has. Each cube core pulls at most `core_pull` times its even share of the
    /// memory bandwidth.
    pub fn cores(aic: f64, aiv: f64, core_pull: f64, peaks: &DiePeaks) -> Self {
        let cube = (aic / peaks.aic_cores).min(1.0);
        Self {
            cube,
            vector: (aiv / peaks.aiv_cores).min(1.0),
            memory: (cube * core_pull).min(1.0),
        }
    }
}

/// A dense product: `m` rows of `k` values through a matrix of `k` by `n`, `heads` of them side by side.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Product {
    pub m: f64,
    pub k: f64,
    pub n: f64,
    pub heads: f64,
    /// On the INT8 units, with INT8 weights and activations; else BF16. Results are BF16 in either case.
    pub int8: bool,
}

impl Product {
    pub fn ops(&self) -> f64 {
        2.0 * self.m * self.k * self.n * self.heads
    }

    fn value_bytes(&self) -> f64 {
        if self.int8 { 1.0 } else { 2.0 }
    }

    pub fn weight_bytes(&self) -> f64 {
        self.k * self.n * self.heads * self.value_bytes()
    }

    /// Weights and activations in, results out, each once.
    pub fn bytes(&self) -> f64 {
        let rows = self.m * self.heads * (self.k * self.value_bytes() + self.n * 2.0);
        self.weight_bytes() + rows
    }
}

/// Operator times on one die. All results in seconds unless the name says otherwise.
#[derive(Clone, Debug)]
pub struct Roofline {
    pub peaks: DiePeaks,
    pub cal: Calibration,
    /// Weights are INT8, and their products run on the INT8 units.
    pub int8: bool,
}

impl Roofline {
    /// `m` rows through `k` by `n` weights in the precision of the scenario.
    pub fn gemm_s(&self, m: f64, k: f64, n: f64, share: Share) -> f64 {
        let heads = 1.0;
        let int8 = self.int8;
        self.product_s(
            Product {
                m,
                k,
                n,
                heads,
                int8,
            },
            share,
        )
    }

    /// As `gemm_s` for weights that stay BF16, `heads` products side by side.
    pub fn gemm_bf16_s(&self, m: f64, k: f64, n: f64, heads: f64, share: Share) -> f64 {
        let int8 = false;
        self.product_s(
            Product {
                m,
                k,
                n,
                heads,
                int8,
            },
            share,
        )
    }

    /// The larger of operations over rate and bytes over bandwidth. Rows go through the cube cores in tiles, so
    /// those of a last, partly filled tile cost as if it were full.
    pub fn product_s(&self, p: Product, share: Share) -> f64 {
        if p.m == 0.0 {
            return 0.0;
        }
        let rate = if p.int8 {
            self.peaks.int8_tops * self.cal.gemm.int8_efficiency
        } else {
            self.peaks.bf16_tflops * self.cal.gemm.bf16_efficiency
        } * 1e12
            * share.cube;
        let ops = p.ops() / p.m * self.padded(p.m);
        (ops / rate).max(p.bytes() / self.stream_bytes_per_s(share))
    }

    /// Rows as tiles take them: as few tiles of at most `tile_rows` as can be, all of the same height, which is a
    /// multiple of what the cube unit takes at once.
    fn padded(&self, m: f64) -> f64 {
        let g = &self.cal.gemm;
        let tiles = (m / g.tile_rows).ceil();
        tiles * (m / tiles / g.unit_rows).ceil() * g.unit_rows
    }

    fn stream_bytes_per_s(&self, share: Share) -> f64 {
        self.peaks.hbm_gb_per_s * 1e9 * self.cal.gemm.stream_efficiency * share.memory
    }

    /// Attention core over latents: BF16 operations against KV bytes read.
    pub fn attention_s(&self, flops: f64, bytes: f64, share: Share) -> f64 {
        let rate = self.peaks.bf16_tflops * 1e12 * self.cal.mla.compute_efficiency * share.cube;
        let bandwidth =
            self.peaks.hbm_gb_per_s * 1e9 * self.cal.mla.memory_efficiency * share.memory;
        (flops / rate).max(bytes / bandwidth)
    }

    /// Attention core of prefill, over keys and values of full width.
    pub fn prefill_attention_s(&self, flops: f64) -> f64 {
        flops / (self.peaks.bf16_tflops * 1e12 * self.cal.mla.prefill_compute_efficiency)
    }

    /// Vector cores moving `bytes` (reads plus writes): they share the memory bandwidth evenly.
    pub fn vector_s(&self, bytes: f64, share: Share) -> f64 {
        bytes / (self.peaks.hbm_gb_per_s * 1e9 * self.cal.vector.memory_efficiency * share.vector)
    }

    /// The die at `clock` (0..=1] of its cores' clock and `hbm` (0..=1] of its memory's bandwidth. A slower clock slows
    /// all that cores do: products, element-wise work, the loads they issue, the start of operators.
    pub fn slowed(&self, clock: f64, hbm: f64) -> Self {
        let mut r = self.clone();
        r.peaks.bf16_tflops *= clock;
        r.peaks.int8_tops *= clock;
        r.peaks.hbm_gb_per_s *= hbm;
        let c = &mut r.cal;
        for efficiency in [
            &mut c.gemm.stream_efficiency,
            &mut c.mla.memory_efficiency,
            &mut c.vector.memory_efficiency,
        ] {
            *efficiency *= clock;
        }
        let (d, k) = (&mut c.dispatch, &mut c.combine);
        for cost in [
            &mut c.overhead.operator_us,
            &mut d.startup_us,
            &mut d.token_us,
            &mut d.issue_ns,
            &mut d.flag_ns,
            &mut d.barrier_us,
            &mut d.assemble_us,
            &mut k.startup_us,
            &mut k.issue_ns,
            &mut k.flag_ns,
            &mut k.barrier_us,
            &mut k.sum_us,
            &mut c.prefill.collective_startup_us,
        ] {
            *cost /= clock;
        }
        r
    }

    pub fn overhead_ps(&self, operators: f64) -> Ps {
        ps_from_us(self.cal.overhead.operator_us * operators)
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A die of the built-in machine, weights in INT8.
    pub fn roof() -> Roofline {
        Roofline {
            peaks: DiePeaks {
                aic_cores: 24.0,
                aiv_cores: 48.0,
                bf16_tflops: 376.0,
                int8_tops: 752.0,
                hbm_gb_per_s: 1600.0,
                hbm_gb: 64.0,
            },
            cal: Calibration::builtin(),
            int8: true,
        }
    }

    #[test]
    fn a_full_tile_is_not_padded_and_none_is_padded_by_more_than_a_unit() {
        let r = roof();
        for tiles in 1..20 {
            let m = f64::from(tiles) * r.cal.gemm.tile_rows;
            assert_eq!(r.padded(m), m);
        }
        assert_eq!(r.padded(1.0), 16.0);
        // 427 rows are four tiles of 107, each taken as 112.
        assert_eq!(r.padded(427.0), 448.0);
    }

    proptest! {
        #[test]
        fn more_rows_are_never_faster(m in 1u32..10_000, more in 1u32..2_000, k in 64u32..8_192, n in 64u32..8_192, int8: bool) {
            let r = roof();
            let t = |m: u32| r.product_s(Product { m: f64::from(m), k: f64::from(k), n: f64::from(n), heads: 1.0, int8 }, Share::WHOLE);
            prop_assert!(t(m + more) >= t(m));
        }

        #[test]
        fn fewer_cores_are_never_faster(aic in 1u32..24, m in 1u32..4_000) {
            let r = roof();
            let t = |aic: u32| {
                let share = Share::cores(f64::from(aic), f64::from(2 * aic), r.cal.streams.core_pull, &r.peaks);
                r.gemm_s(f64::from(m), 7_168.0, 4_096.0, share)
            };
            prop_assert!(t(aic) >= t(aic + 1));
        }

        #[test]
        fn no_product_beats_the_peaks(m in 1u32..10_000, k in 64u32..8_192, n in 64u32..8_192) {
            let r = roof();
            let p = Product { m: f64::from(m), k: f64::from(k), n: f64::from(n), heads: 1.0, int8: true };
            let t = r.product_s(p, Share::WHOLE);
            prop_assert!(p.ops() / t <= 752e12 * r.cal.gemm.int8_efficiency * 1.000_001);
            prop_assert!(p.bytes() / t <= 1_600e9);
        }
    }
}
