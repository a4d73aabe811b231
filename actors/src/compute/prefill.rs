//! Operator times of a prefill batch on one die: attention in the three stages SP, TP, SP, and the experts.

use crate::config::Number;
use crate::model::ModelSpec;
use crate::time::{Ps, ps_from_s};

use super::{Roofline, Share};

/// What one microbatch of a batch holds over the whole instance.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PrefillLoad {
    /// New tokens of all prompts in it.
    pub tokens: u64,
    /// Over its new tokens, the sum of the context each attends to (itself included).
    pub attended_sum: f64,
    /// Prompts that end in it and so need a first token.
    pub finishing: u32,
    /// Context tokens (cached or from earlier chunks) whose latents must be expanded as well.
    pub context_tokens: u64,
}

/// Prefill times for one model on the dies of one instance.
#[derive(Clone, Debug)]
pub struct PrefillTimes {
    pub roof: Roofline,
    model: ModelSpec,
    kv: Number,
    /// Dies of the instance.
    pub ranks: u32,
}

impl PrefillTimes {
    pub fn new(roof: Roofline, model: &ModelSpec, kv: Number, ranks: u32) -> Self {
        Self {
            roof,
            model: model.clone(),
            kv,
            ranks,
        }
    }

    /// On a die with so much of its clock and memory bandwidth left.
    pub fn slowed(&self, clock: f64, hbm: f64) -> Self {
        Self {
            roof: self.roof.slowed(clock, hbm),
            ..self.clone()
        }
    }

    fn per_rank(&self, tokens: u64) -> f64 {
        tokens as f64 / f64::from(self.ranks)
    }

    /// Stage 1, sequence-parallel: hidden to query and KV latents, on this die's share of the tokens.
    pub fn latents_ps(&self, load: PrefillLoad) -> Ps {
        let m = &self.model;
        let params =
            f64::from(m.hidden) * f64::from(m.q_lora_rank + m.kv_lora_rank + m.qk_rope_head_dim);
        ps_from_s(
            self.roof
                .gemm_s(self.per_rank(load.tokens), params, Share::WHOLE),
        )
    }

    /// Stage 2, tensor-parallel: this die's heads over all tokens of the microbatch: query up-projection,
    /// key and value up-projection (of old context too), causal attention.
    pub fn heads_ps(&self, load: PrefillLoad) -> Ps {
        let m = &self.model;
        let heads = f64::from(m.heads) / f64::from(self.ranks);
        let q_head = f64::from(m.qk_nope_head_dim + m.qk_rope_head_dim);
        let q_params = f64::from(m.q_lora_rank) * heads * q_head;
        let kv_params =
            f64::from(m.kv_lora_rank) * heads * f64::from(m.qk_nope_head_dim + m.v_head_dim);
        let tokens = load.tokens as f64;
        let up = self.roof.gemm_s(tokens, q_params, Share::WHOLE)
            + self
                .roof
                .gemm_s(tokens + load.context_tokens as f64, kv_params, Share::WHOLE);
        let flops = 2.0 * heads * (q_head + f64::from(m.v_head_dim)) * load.attended_sum;
        let core = flops
            / (self.roof.peaks.bf16_tflops * 1e12 * self.roof.cal.mla.prefill_compute_efficiency);
        ps_from_s(up + core)
    }

    /// Stage 3, sequence-parallel: output projection on this die's share of the tokens.
    pub fn output_ps(&self, load: PrefillLoad) -> Ps {
        ps_from_s(self.roof.gemm_s(
            self.per_rank(load.tokens),
            self.model.attention_out_params(),
            Share::WHOLE,
        ))
    }

    /// Element-wise work of one layer on the vector cores, and the overheads of its kernels.
    pub fn vector_ps(&self, load: PrefillLoad) -> Ps {
        let bytes = self.per_rank(load.tokens) * f64::from(self.model.hidden) * 2.0;
        ps_from_s(
            self.roof
                .vector_s(bytes * self.roof.cal.prefill.vector_passes, Share::WHOLE),
        ) + self.roof.overhead_ps(self.roof.cal.layer.prefill_operators)
    }

    /// Experts of one die on the tokens that arrived, by expert slot.
    pub fn experts_ps(&self, tokens_per_slot: &[u32]) -> Ps {
        let params = self.model.expert_params();
        let time_s: f64 = tokens_per_slot
            .iter()
            .filter(|&&n| n > 0)
            .map(|&n| self.roof.gemm_s(f64::from(n), params, Share::WHOLE))
            .sum();
        let tokens: f64 = tokens_per_slot.iter().map(|&n| f64::from(n)).sum();
        let swiglu_bytes = tokens * f64::from(self.model.moe_intermediate) * 5.0;
        ps_from_s(time_s + self.roof.vector_s(swiglu_bytes, Share::WHOLE))
    }

    /// Dense MLP of one layer on this die's share of the tokens.
    pub fn dense_mlp_ps(&self, load: PrefillLoad) -> Ps {
        ps_from_s(self.roof.gemm_s(
            self.per_rank(load.tokens),
            self.model.dense_mlp_params(),
            Share::WHOLE,
        ))
    }

    /// First tokens: vocabulary head and sampling for the prompts that end here.
    pub fn head_ps(&self, finishing: u32) -> Ps {
        if finishing == 0 {
            return 0;
        }
        let params =
            f64::from(self.model.hidden) * f64::from(self.model.vocab) / f64::from(self.ranks);
        ps_from_s(
            self.roof
                .gemm_bf16_s(f64::from(finishing), params, Share::WHOLE),
        ) + self.roof.overhead_ps(3.0)
    }

    /// Bytes one die sends to each other die in the all-gather before stage 2: query and KV latents in BF16
    /// (KV in its own precision) of its share of the tokens.
    pub fn gather_bytes(&self, load: PrefillLoad) -> u64 {
        let per_token = f64::from(self.model.q_lora_rank) * 2.0
            + self.model.kv_values_per_token_layer() * self.kv.bytes();
        (self.per_rank(load.tokens) * per_token) as u64
    }

    /// Bytes one die sends to each other die in the all-to-all after stage 2: its heads' outputs in BF16,
    /// for that die's share of the tokens.
    pub fn scatter_bytes(&self, load: PrefillLoad) -> u64 {
        let per_token = f64::from(self.model.heads) / f64::from(self.ranks)
            * f64::from(self.model.v_head_dim)
            * 2.0;
        (self.per_rank(load.tokens) * per_token) as u64
    }
}
