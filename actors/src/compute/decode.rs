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

impl MicrobatchLoad {
    /// The same requests with one token each: what a draft layer computes after its first pass, and what every
    /// draft's head does.
    pub fn one_token_each(self) -> Self {
        Self {
            tokens: self.requests,
            ..self
        }
    }
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

/// Time of the parts of one layer's attention.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct AttentionParts {
    /// Hidden state to queries in latent space and the new latent KV.
    pub prolog_s: f64,
    /// Attention over the latent cache.
    pub core_s: f64,
    /// Attended latents to values, and output projection.
    pub output_s: f64,
    /// Norms, quantisation and residuals on the vector cores, and the overhead of each operator.
    pub rest_s: f64,
}

impl AttentionParts {
    pub fn sum_s(&self) -> f64 {
        self.prolog_s + self.core_s + self.output_s + self.rest_s
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
    /// Dies that the vocabulary head is sharded over.
    head_dies: f64,
    /// Rate at which they exchange hidden states and logits.
    wire_bytes_per_s: f64,
}

impl DecodeTimes {
    /// `ranks`: dies of the instance; `wire_gb_per_s`: what a die writes to another of its node.
    pub fn new(
        roof: Roofline,
        model: &ModelSpec,
        kv: Number,
        ranks: u32,
        wire_gb_per_s: f64,
    ) -> Self {
        let s = &roof.cal.streams;
        let share = |aic, aiv| Share::cores(aic, aiv, s.core_pull, &roof.peaks);
        Self {
            model: model.clone(),
            kv_bytes_per_token_layer: model.kv_values_per_token_layer() * kv.bytes(),
            attention_share: share(s.attention_aic, s.attention_aiv),
            moe_share: share(s.moe_aic, s.moe_aiv),
            head_dies: f64::from(roof.cal.head.tensor_parallel_dies.clamp(1, ranks.max(1))),
            wire_bytes_per_s: wire_gb_per_s * 1e9,
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

    /// Attention of one layer, part by part.
    pub fn attention_parts(&self, load: MicrobatchLoad, share: Share) -> AttentionParts {
        if load.tokens == 0 {
            return AttentionParts::default();
        }
        let (m, r) = (&self.model, &self.roof);
        let f = f64::from;
        let t = f(load.tokens);
        let heads = f(m.heads);
        let q_head = f(m.qk_nope_head_dim + m.qk_rope_head_dim);
        let (hidden, latent) = (f(m.hidden), f(m.kv_lora_rank));
        let prolog_s = r.gemm_s(
            t,
            hidden,
            f(m.q_lora_rank + m.kv_lora_rank + m.qk_rope_head_dim),
            share,
        ) + r.gemm_s(t, f(m.q_lora_rank), heads * q_head, share)
            + r.gemm_bf16_s(t, f(m.qk_nope_head_dim), latent, heads, share);
        let flops = 2.0
            * heads
            * load.context_sum as f64
            * (t / f(load.requests.max(1)))
            * f(2 * m.kv_lora_rank + m.qk_rope_head_dim);
        let queries = t * heads * f(2 * m.kv_lora_rank + m.qk_rope_head_dim) * 2.0;
        let kv = load.context_sum as f64 * self.kv_bytes_per_token_layer;
        let core_s = r.attention_s(flops, kv + queries, share);
        let output_s = r.gemm_bf16_s(t, latent, f(m.v_head_dim), heads, share)
            + r.gemm_s(t, heads * f(m.v_head_dim), hidden, share);
        let vector_bytes = t * hidden * 2.0 * r.cal.layer.attention_vector_passes;
        let overhead_s = r.cal.layer.attention_operators * r.cal.overhead.operator_us * 1e-6;
        AttentionParts {
            prolog_s,
            core_s,
            output_s,
            rest_s: r.vector_s(vector_bytes, share) + overhead_s,
        }
    }

    pub fn attention_ps(&self, load: MicrobatchLoad, share: Share) -> Ps {
        ps_from_s(self.attention_parts(load, share).sum_s())
    }

    /// Router of one MoE layer.
    pub fn gate_ps(&self, tokens: u32, share: Share) -> Ps {
        if tokens == 0 {
            return 0;
        }
        let (hidden, experts) = (
            f64::from(self.model.hidden),
            f64::from(self.model.routed_experts),
        );
        ps_from_s(
            self.roof
                .gemm_bf16_s(f64::from(tokens), hidden, experts, 1.0, share),
        ) + self.roof.overhead_ps(self.roof.cal.layer.gate_operators)
    }

    /// Experts of one die on the tokens that arrived, by expert slot.
    pub fn experts_ps(&self, tokens_per_slot: &[u32], share: Share) -> Ps {
        let (hidden, inner) = (
            f64::from(self.model.hidden),
            f64::from(self.model.moe_intermediate),
        );
        let (mut time_s, mut tokens) = (0.0, 0u32);
        for &n in tokens_per_slot.iter().filter(|&&n| n > 0) {
            time_s += self.roof.gemm_s(f64::from(n), hidden, 2.0 * inner, share)
                + self.roof.gemm_s(f64::from(n), inner, hidden, share);
            tokens += n;
        }
        if tokens == 0 {
            return 0;
        }
        // SwiGLU and quantisation: read gate and up in BF16, write one INT8 value.
        let swiglu_bytes = f64::from(tokens) * inner * 5.0;
        ps_from_s(time_s + self.roof.vector_s(swiglu_bytes, share))
            + self.roof.overhead_ps(self.roof.cal.layer.mlp_operators)
    }

    /// All dense layers: the whole die serves the whole batch in turn.
    pub fn dense_layers_ps(&self, load: MicrobatchLoad) -> Ps {
        if load.tokens == 0 {
            return 0;
        }
        let t = f64::from(load.tokens);
        let (hidden, inner) = (
            f64::from(self.model.hidden),
            f64::from(self.model.dense_intermediate),
        );
        let mlp_s = self.roof.gemm_s(t, hidden, 2.0 * inner, Share::WHOLE)
            + self.roof.gemm_s(t, inner, hidden, Share::WHOLE)
            + self.roof.vector_s(t * inner * 5.0, Share::WHOLE);
        let mlp = ps_from_s(mlp_s)
            + self
                .roof
                .overhead_ps(self.roof.cal.layer.dense_mlp_operators);
        Ps::from(self.model.dense_layers) * (self.attention_ps(load, Share::WHOLE) + mlp)
    }

    /// Vocabulary head and sampling. The head is sharded over the dies of a node: they gather each other's hidden
    /// states, and send logits back to where the tokens are.
    pub fn head_ps(&self, tokens: u32) -> Ps {
        if tokens == 0 {
            return 0;
        }
        let tp = self.head_dies;
        let t = f64::from(tokens);
        let (hidden, vocab) = (f64::from(self.model.hidden), f64::from(self.model.vocab));
        let gemm = self
            .roof
            .gemm_bf16_s(t * tp, hidden, vocab / tp, 1.0, Share::WHOLE);
        let wire_bytes = t * (tp - 1.0) * (hidden + vocab / tp) * 2.0;
        let logits = t * vocab * 2.0 * self.roof.cal.head.sampling_passes;
        ps_from_s(
            gemm + wire_bytes / self.wire_bytes_per_s + self.roof.vector_s(logits, Share::WHOLE),
        ) + self.roof.overhead_ps(self.roof.cal.head.operators)
    }

    /// Projection that joins hidden state and embedding before a multi-token-prediction layer.
    pub fn mtp_join_ps(&self, tokens: u32) -> Ps {
        if tokens == 0 {
            return 0;
        }
        let hidden = f64::from(self.model.hidden);
        ps_from_s(
            self.roof
                .gemm_s(f64::from(tokens), 2.0 * hidden, hidden, Share::WHOLE),
        ) + self.roof.overhead_ps(self.roof.cal.head.join_operators)
    }

    pub fn host_gap_ps(&self) -> Ps {
        ps_from_us(self.roof.cal.overhead.host_gap_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::roofline::tests::roof;
    use proptest::prelude::*;

    fn times() -> DecodeTimes {
        let model = ModelSpec::builtin("deepseek-r1").unwrap();
        DecodeTimes::new(roof(), &model, Number::Bf16, 320, 137.0)
    }

    fn load(requests: u32, tokens_each: u32, context: u32) -> MicrobatchLoad {
        MicrobatchLoad {
            requests,
            tokens: requests * tokens_each,
            context_sum: u64::from(requests) * u64::from(context),
        }
    }

    #[test]
    fn the_attention_core_of_a_microbatch_is_the_sum_that_can_be_done_by_hand() {
        // 54.8 GFLOP at 246 TFLOPS on 16 of 24 cube cores: 334 us.
        let t = times();
        let core_us = t
            .attention_parts(load(24, 2, 4_096), t.attention_share)
            .core_s
            * 1e6;
        assert!((core_us - 334.0).abs() < 2.0, "{core_us}");
    }

    proptest! {
        #[test]
        fn more_work_is_never_faster(requests in 1u32..128, each in 1u32..4, context in 1u32..65_536) {
            let t = times();
            let a = |r, e, c| t.attention_ps(load(r, e, c), Share::WHOLE);
            prop_assert!(a(requests + 1, each, context) >= a(requests, each, context));
            prop_assert!(a(requests, each + 1, context) >= a(requests, each, context));
            prop_assert!(a(requests, each, context + 64) >= a(requests, each, context));
            prop_assert!(t.head_ps(requests + 1) >= t.head_ps(requests));
        }

        #[test]
        fn few_tokens_cost_more_on_several_experts_than_on_one(tokens in 2u32..128, slots in 2u32..32) {
            // Below a tile's rows weights bound the time, and each expert's are streamed: more of them are more to read.
            let t = times();
            let apart = vec![tokens.div_ceil(slots); slots as usize];
            prop_assert!(t.experts_ps(&apart, Share::WHOLE) > t.experts_ps(&[tokens], Share::WHOLE));
        }
    }
}
