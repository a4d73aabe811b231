//! Operator times of a decode step on one die: attention stream, MoE stream, dense layers, head.

use crate::config::Number;
use crate::model::ModelSpec;
use crate::time::{Ps, ps_from_s, ps_from_us};

use super::{Roofline, Share};

/// What one microbatch holds on one die.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MicrobatchLoad {
    pub requests: u32,
    /// Tokens computed: requests x (1 + speculative tokens).
    pub tokens: u32,
    /// Context tokens summed over its requests.
    pub context_sum: u64,
}

impl std::ops::Add for MicrobatchLoad {
    type Output = Self;

    fn add(self, o: Self) -> Self {
        Self {
            requests: self.requests + o.requests,
            tokens: self.tokens + o.tokens,
            context_sum: self.context_sum + o.context_sum,
        }
    }
}

/// Decode times, for one model on one die with one precision.
#[derive(Clone, Debug)]
pub struct DecodeTimes {
    pub roof: Roofline,
    model: ModelSpec,
    kv_bytes_per_token_layer: f64,
    /// Shares of the two streams while microbatches run.
    pub attention_share: Share,
    pub moe_share: Share,
}

impl DecodeTimes {
    pub fn new(roof: Roofline, model: &ModelSpec, kv: Number) -> Self {
        let s = &roof.cal.streams;
        let attention_share = Share::cores(s.attention_aic, s.attention_aiv, &roof.peaks);
        let moe_share = Share::cores(s.moe_aic, s.moe_aiv, &roof.peaks);
        Self {
            model: model.clone(),
            kv_bytes_per_token_layer: model.kv_values_per_token_layer() * kv.bytes(),
            attention_share,
            moe_share,
            roof,
        }
    }

    /// On a die with so much of its clock and memory bandwidth left.
    pub fn slowed(&self, clock: f64, hbm: f64) -> Self {
        Self {
            roof: self.roof.slowed(clock, hbm),
            ..self.clone()
        }
    }

    /// Attention of one layer: projections from hidden to latents and heads, attention over the
    /// latent cache, value up-projection and output projection.
    pub fn attention_ps(&self, load: MicrobatchLoad, share: Share) -> Ps {
        if load.tokens == 0 {
            return 0;
        }
        let m = &self.model;
        let t = f64::from(load.tokens);
        let prolog = self.roof.gemm_s(t, m.attention_in_params(), share)
            + self.roof.gemm_bf16_s(t, m.key_absorb_params(), share);
        let tokens_per_request = t / f64::from(load.requests.max(1));
        let flops = 2.0
            * f64::from(m.heads)
            * load.context_sum as f64
            * tokens_per_request
            * f64::from(2 * m.kv_lora_rank + m.qk_rope_head_dim);
        let core = self.roof.attention_s(
            flops,
            load.context_sum as f64 * self.kv_bytes_per_token_layer,
            share,
        );
        let output = self.roof.gemm_bf16_s(t, m.value_absorb_params(), share)
            + self.roof.gemm_s(t, m.attention_out_params(), share);
        ps_from_s(prolog + core + output)
            + self
                .roof
                .overhead_ps(self.roof.cal.layer.attention_operators)
    }

    /// Router of one MoE layer.
    pub fn gate_ps(&self, tokens: u32, share: Share) -> Ps {
        if tokens == 0 {
            return 0;
        }
        let params = f64::from(self.model.hidden) * f64::from(self.model.routed_experts);
        ps_from_s(self.roof.gemm_bf16_s(f64::from(tokens), params, share))
            + self.roof.overhead_ps(self.roof.cal.layer.gate_operators)
    }

    /// Experts of one die on the tokens that arrived, by expert slot.
    pub fn experts_ps(&self, tokens_per_slot: &[u32], share: Share) -> Ps {
        let params = self.model.expert_params();
        let (mut time_s, mut tokens) = (0.0, 0u32);
        for &n in tokens_per_slot.iter().filter(|&&n| n > 0) {
            time_s += self.roof.gemm_s(f64::from(n), params, share);
            tokens += n;
        }
        if tokens == 0 {
            return 0;
        }
        // SwiGLU and quantisation: read gate and up in BF16, write one INT8 value.
        let swiglu_bytes = f64::from(tokens) * f64::from(self.model.moe_intermediate) * 5.0;
        ps_from_s(time_s + self.roof.vector_s(swiglu_bytes, share))
            + self.roof.overhead_ps(self.roof.cal.layer.mlp_operators)
    }

    /// All dense layers: the whole die serves the whole batch in turn.
    pub fn dense_layers_ps(&self, load: MicrobatchLoad) -> Ps {
        if load.tokens == 0 {
            return 0;
        }
        let mlp = ps_from_s(self.roof.gemm_s(
            f64::from(load.tokens),
            self.model.dense_mlp_params(),
            Share::WHOLE,
        )) + self
            .roof
            .overhead_ps(self.roof.cal.layer.dense_mlp_operators);
        Ps::from(self.model.dense_layers) * (self.attention_ps(load, Share::WHOLE) + mlp)
    }

    /// Vocabulary head (sharded over a few dies that gather each other's tokens) and sampling.
    pub fn head_ps(&self, tokens: u32) -> Ps {
        if tokens == 0 {
            return 0;
        }
        let tp = f64::from(self.roof.cal.head.tensor_parallel_dies.max(1));
        let params = f64::from(self.model.hidden) * f64::from(self.model.vocab) / tp;
        let gemm = self
            .roof
            .gemm_bf16_s(f64::from(tokens) * tp, params, Share::WHOLE);
        let logits = f64::from(tokens)
            * f64::from(self.model.vocab)
            * 4.0
            * self.roof.cal.overhead.sampling_passes;
        ps_from_s(gemm + self.roof.vector_s(logits, Share::WHOLE)) + self.roof.overhead_ps(3.0)
    }

    /// Projection that joins hidden state and embedding before a multi-token-prediction layer.
    pub fn mtp_join_ps(&self, tokens: u32) -> Ps {
        if tokens == 0 {
            return 0;
        }
        let params = 2.0 * f64::from(self.model.hidden) * f64::from(self.model.hidden);
        ps_from_s(self.roof.gemm_s(f64::from(tokens), params, Share::WHOLE))
            + self.roof.overhead_ps(2.0)
    }

    pub fn host_gap_ps(&self) -> Ps {
        ps_from_us(self.roof.cal.overhead.host_gap_us)
    }
}
