//! Operator times of a prefill batch on one die: attention in the three stages SP, TP, SP, and the experts.

use crate::config::Number;
use crate::model::ModelSpec;
use crate::time::{Ps, ps_from_s, ps_from_us};

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

    fn seconds(&self, gemm_s: f64, vector_bytes: f64, operators: f64) -> Ps {
        ps_from_s(gemm_s + self.roof.vector_s(vector_bytes, Share::WHOLE))
            + self.roof.overhead_ps(operators)
    }

    /// Bytes of one fused addition, norm and quantisation of `tokens` hidden states.
    fn norm_bytes(&self, tokens: f64) -> f64 {
        tokens * f64::from(self.model.hidden) * 2.0 * self.roof.cal.prefill.norm_passes
    }

    /// Bytes of reading and writing `values` BF16 values of each of `tokens` tokens once.
    fn relayout_bytes(&self, tokens: f64, values: f64) -> f64 {
        tokens * values * 2.0 * self.roof.cal.prefill.relayout_passes
    }

    fn latent_values(&self) -> f64 {
        let m = &self.model;
        f64::from(m.q_lora_rank + m.kv_lora_rank + m.qk_rope_head_dim)
    }

    /// Stage 1, sequence-parallel: hidden to query and KV latents, on this die's share of the tokens.
    pub fn latents_ps(&self, load: PrefillLoad) -> Ps {
        let t = self.per_rank(load.tokens);
        let hidden = f64::from(self.model.hidden);
        let gemm = self
            .roof
            .gemm_s(t, hidden, self.latent_values(), Share::WHOLE);
        let bytes = self.norm_bytes(t) + self.relayout_bytes(t, self.latent_values());
        self.seconds(gemm, bytes, self.roof.cal.layer.prefill_latents_operators)
    }

    /// Stage 2, tensor-parallel: this die's heads over all tokens of the microbatch: query up-projection,
    /// key and value up-projection (of old context too), causal attention.
    pub fn heads_ps(&self, load: PrefillLoad) -> Ps {
        let m = &self.model;
        let f = f64::from;
        let heads = f(m.heads) / f(self.ranks);
        let q_head = f(m.qk_nope_head_dim + m.qk_rope_head_dim);
        let kv_head = f(m.qk_nope_head_dim + m.v_head_dim);
        let tokens = load.tokens as f64;
        let all = tokens + load.context_tokens as f64;
        let up = self
            .roof
            .gemm_s(tokens, f(m.q_lora_rank), heads * q_head, Share::WHOLE)
            + self
                .roof
                .gemm_s(all, f(m.kv_lora_rank), heads * kv_head, Share::WHOLE);
        let flops = 2.0 * heads * (q_head + f(m.v_head_dim)) * load.attended_sum;
        let bytes =
            self.relayout_bytes(tokens, heads * q_head) + self.relayout_bytes(all, heads * kv_head);
        self.seconds(
            up + self.roof.prefill_attention_s(flops),
            bytes,
            self.roof.cal.layer.prefill_heads_operators,
        )
    }

    /// Stage 3, sequence-parallel: output projection on this die's share of the tokens; then the norm before the
    /// MLP, and the router.
    pub fn output_ps(&self, load: PrefillLoad) -> Ps {
        let m = &self.model;
        let f = f64::from;
        let t = self.per_rank(load.tokens);
        let attended = f(m.heads) * f(m.v_head_dim);
        let gemm = self.roof.gemm_s(t, attended, f(m.hidden), Share::WHOLE)
            + self
                .roof
                .gemm_bf16_s(t, f(m.hidden), f(m.routed_experts), 1.0, Share::WHOLE);
        let bytes = self.relayout_bytes(t, attended) + self.norm_bytes(t);
        self.seconds(gemm, bytes, self.roof.cal.layer.prefill_output_operators)
    }

    fn mlp_s(&self, tokens: f64, inner: f64) -> f64 {
        let hidden = f64::from(self.model.hidden);
        self.roof.gemm_s(tokens, hidden, 2.0 * inner, Share::WHOLE)
            + self.roof.gemm_s(tokens, inner, hidden, Share::WHOLE)
            + self.roof.vector_s(tokens * inner * 5.0, Share::WHOLE)
    }

    /// Experts of one die on the tokens that arrived, by expert slot.
    pub fn experts_ps(&self, tokens_per_slot: &[u32]) -> Ps {
        let inner = f64::from(self.model.moe_intermediate);
        let time_s: f64 = tokens_per_slot
            .iter()
            .filter(|&&n| n > 0)
            .map(|&n| self.mlp_s(f64::from(n), inner))
            .sum();
        if time_s == 0.0 {
            return 0;
        }
        ps_from_s(time_s) + self.roof.overhead_ps(self.roof.cal.layer.mlp_operators)
    }

    /// Dense MLP of one layer on this die's share of the tokens.
    pub fn dense_mlp_ps(&self, load: PrefillLoad) -> Ps {
        let inner = f64::from(self.model.dense_intermediate);
        ps_from_s(self.mlp_s(self.per_rank(load.tokens), inner))
            + self
                .roof
                .overhead_ps(self.roof.cal.layer.dense_mlp_operators)
    }

    /// Quantising `tokens` tokens and laying a copy for each of `copies` experts out for the wire.
    pub fn dispatch_ps(&self, tokens: u32, copies: u32, message_bytes: u32) -> Ps {
        let per_token =
            f64::from(self.model.hidden) * 2.0 + f64::from(copies) * f64::from(message_bytes);
        ps_from_us(self.roof.cal.dispatch.startup_us)
            + ps_from_s(
                self.roof
                    .vector_s(f64::from(tokens) * per_token, Share::WHOLE),
            )
    }

    /// First tokens: vocabulary head and sampling for the prompts that end here.
    pub fn head_ps(&self, finishing: u32) -> Ps {
        if finishing == 0 {
            return 0;
        }
        let (hidden, vocab) = (f64::from(self.model.hidden), f64::from(self.model.vocab));
        ps_from_s(self.roof.gemm_bf16_s(
            f64::from(finishing),
            hidden,
            vocab / f64::from(self.ranks),
            1.0,
            Share::WHOLE,
        )) + self.roof.overhead_ps(self.roof.cal.head.operators)
    }

    /// Bytes one die sends to each other die in the all-gather before stage 2: query and KV latents in BF16
    /// (KV in its own precision) of its share of the tokens, and the KV of its share of old context.
    pub fn gather_bytes(&self, load: PrefillLoad) -> u64 {
        let kv = self.model.kv_values_per_token_layer() * self.kv.bytes();
        let per_token = f64::from(self.model.q_lora_rank) * 2.0 + kv;
        (self.per_rank(load.tokens) * per_token + self.per_rank(load.context_tokens) * kv) as u64
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::roofline::tests::roof;

    #[test]
    fn cached_context_is_gathered_and_expanded_like_new_tokens() {
        let model = ModelSpec::builtin("deepseek-r1").unwrap();
        let t = PrefillTimes::new(roof(), &model, Number::Bf16, 32);
        let load = |context_tokens| PrefillLoad {
            tokens: 32_000,
            context_tokens,
            ..PrefillLoad::default()
        };
        // Of 1,000 new tokens a die sends query latents (1,536) and KV (576), of as many old ones KV, all BF16.
        assert_eq!(t.gather_bytes(load(0)), 1_000 * (1_536 + 576) * 2);
        let old = t.gather_bytes(load(32_000)) - t.gather_bytes(load(0));
        assert_eq!(old, 1_000 * 576 * 2);
        assert!(t.heads_ps(load(32_000)) > t.heads_ps(load(0)));
        assert_eq!(t.scatter_bytes(load(32_000)), t.scatter_bytes(load(0)));
    }
}
