//! The roofline of one die, and the share of it that a stream holds.

use crate::time::{Ps, ps_from_us};

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

/// Shares (0..=1) of a die's cube cores, vector cores and memory bandwidth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    pub cube: f64,
    pub vector: f64,
    /// Bandwidth goes with the cube cores: they issue the loads.
    pub memory: f64,
}

impl Share {
    pub const WHOLE: Self = Self {
        cube: 1.0,
        vector: 1.0,
        memory: 1.0,
    };

    pub fn cores(aic: f64, aiv: f64, peaks: &DiePeaks) -> Self {
        Self {
            cube: aic / peaks.aic_cores,
            vector: aiv / peaks.aiv_cores,
            memory: aic / peaks.aic_cores,
        }
    }
}

/// Operator times on one die. All results in seconds unless the name says otherwise.
#[derive(Clone, Debug)]
pub struct Roofline {
    pub peaks: DiePeaks,
    pub cal: Calibration,
    /// Bytes of one matrix weight, and whether products run on the INT8 units.
    pub weight_bytes: f64,
    pub int8: bool,
}

impl Roofline {
    /// `m` rows through `params` weights (a dense product): operations `2 m params`, bytes `params x weight_bytes`.
    pub fn gemm_s(&self, m: f64, params: f64, share: Share) -> f64 {
        self.product_s(
            2.0 * m * params,
            params * self.weight_bytes,
            self.int8,
            share,
        )
    }

    /// As `gemm_s` for weights that stay BF16.
    pub fn gemm_bf16_s(&self, m: f64, params: f64, share: Share) -> f64 {
        self.product_s(
            2.0 * m * params,
            params * self.cal.head.bytes_per_weight,
            false,
            share,
        )
    }

    fn product_s(&self, ops: f64, bytes: f64, int8: bool, share: Share) -> f64 {
        if ops == 0.0 {
            return 0.0;
        }
        let rate = if int8 {
            self.peaks.int8_tops * self.cal.gemm.int8_efficiency
        } else {
            self.peaks.bf16_tflops * self.cal.gemm.bf16_efficiency
        } * 1e12
            * share.cube;
        let bandwidth =
            self.peaks.hbm_gb_per_s * 1e9 * self.cal.gemm.weight_stream_efficiency * share.memory;
        (ops / rate).max(bytes / bandwidth)
    }

    /// Attention core: BF16 operations against KV bytes read.
    pub fn attention_s(&self, flops: f64, bytes: f64, share: Share) -> f64 {
        let rate = self.peaks.bf16_tflops * 1e12 * self.cal.mla.compute_efficiency * share.cube;
        let bandwidth =
            self.peaks.hbm_gb_per_s * 1e9 * self.cal.mla.memory_efficiency * share.memory;
        (flops / rate).max(bytes / bandwidth)
    }

    /// Vector cores moving `bytes` (reads plus writes).
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
            &mut c.gemm.weight_stream_efficiency,
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
