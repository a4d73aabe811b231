//! The model that is served: its dimensions, from TOML.

use serde::Deserialize;
use supernode_topology::TomlFault;

/// Dimensions of a DeepSeek-V3-architecture model. Units: elements unless said.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    pub name: String,
    pub layers: u32,
    pub dense_layers: u32,
    pub hidden: u32,
    pub heads: u32,
    pub q_lora_rank: u32,
    pub kv_lora_rank: u32,
    pub qk_nope_head_dim: u32,
    pub qk_rope_head_dim: u32,
    pub v_head_dim: u32,
    pub dense_intermediate: u32,
    pub moe_intermediate: u32,
    pub routed_experts: u32,
    pub shared_experts: u32,
    pub top_k: u32,
    pub expert_groups: u32,
    pub top_groups: u32,
    pub vocab: u32,
    pub mtp_layers: u32,
    pub max_context: u32,
}

impl ModelSpec {
    /// A model that ships with Supernode, by name.
    pub fn builtin(name: &str) -> Option<Self> {
        match name {
            "deepseek-r1" => Some(
                Self::from_toml(include_str!("../specs/deepseek-r1.toml"))
                    .expect("the built-in model file is checked by a test"),
            ),
            _ => None,
        }
    }

    pub const BUILTIN: &'static [&'static str] = &["deepseek-r1"];

    /// # Errors
    /// `line:column: ` and what is wrong with a key there, or what is wrong with a value.
    pub fn from_toml(text: &str) -> Result<Self, String> {
        let m: Self = toml::from_str(text).map_err(|e| TomlFault::new(&e, text).to_string())?;
        m.check()?;
        Ok(m)
    }

    /// Weights from the hidden vector to queries and the latent KV of one layer, without the absorbed key projection.
    pub fn attention_in_params(&self) -> f64 {
        let f = f64::from;
        let q_head = f(self.qk_nope_head_dim + self.qk_rope_head_dim);
        f(self.hidden) * f(self.q_lora_rank)
            + f(self.q_lora_rank) * f(self.heads) * q_head
            + f(self.hidden) * f(self.kv_lora_rank + self.qk_rope_head_dim)
    }

    /// Per-head projection of queries into the latent space (absorbed key up-projection).
    pub fn key_absorb_params(&self) -> f64 {
        f64::from(self.heads) * f64::from(self.qk_nope_head_dim) * f64::from(self.kv_lora_rank)
    }

    /// Per-head projection of attended latents to values.
    pub fn value_absorb_params(&self) -> f64 {
        f64::from(self.heads) * f64::from(self.v_head_dim) * f64::from(self.kv_lora_rank)
    }

    pub fn attention_out_params(&self) -> f64 {
        f64::from(self.heads) * f64::from(self.v_head_dim) * f64::from(self.hidden)
    }

    /// All attention weights of one layer.
    pub fn attention_params(&self) -> f64 {
        self.attention_in_params()
            + self.key_absorb_params()
            + self.value_absorb_params()
            + self.attention_out_params()
    }

    /// One routed (or shared) expert: gate, up and down projections.
    pub fn expert_params(&self) -> f64 {
        3.0 * f64::from(self.hidden) * f64::from(self.moe_intermediate)
    }

    pub fn dense_mlp_params(&self) -> f64 {
        3.0 * f64::from(self.hidden) * f64::from(self.dense_intermediate)
    }

    /// Latent KV values that one token leaves in one layer.
    pub fn kv_values_per_token_layer(&self) -> f64 {
        f64::from(self.kv_lora_rank + self.qk_rope_head_dim)
    }

    /// KV bytes of one token over all layers.
    pub fn kv_bytes_per_token(&self, kv: crate::config::Number) -> f64 {
        self.kv_values_per_token_layer() * kv.bytes() * f64::from(self.layers)
    }

    pub fn moe_layers(&self) -> u32 {
        self.layers - self.dense_layers
    }

    fn check(&self) -> Result<(), String> {
        let positive = [
            ("layers", self.layers),
            ("hidden", self.hidden),
            ("heads", self.heads),
            ("q_lora_rank", self.q_lora_rank),
            ("kv_lora_rank", self.kv_lora_rank),
            ("v_head_dim", self.v_head_dim),
            ("moe_intermediate", self.moe_intermediate),
            ("routed_experts", self.routed_experts),
            ("top_k", self.top_k),
            ("expert_groups", self.expert_groups),
            ("top_groups", self.top_groups),
            ("vocab", self.vocab),
            ("max_context", self.max_context),
        ];
        for (key, value) in positive {
            if value == 0 {
                return Err(format!("{key} = 0: it must be at least 1"));
            }
        }
        if self.dense_layers > self.layers {
            return Err(format!(
                "dense_layers = {} is more than layers = {}",
                self.dense_layers, self.layers
            ));
        }
        if self.top_groups > self.expert_groups
            || !self.routed_experts.is_multiple_of(self.expert_groups)
        {
            return Err(format!(
                "expert_groups = {} must divide routed_experts = {} and be at least top_groups = {}",
                self.expert_groups, self.routed_experts, self.top_groups
            ));
        }
        if self.top_k > self.routed_experts / self.expert_groups * self.top_groups {
            return Err(format!(
                "top_k = {}: at most {}, the experts of top_groups = {} groups, can be chosen",
                self.top_k,
                self.routed_experts / self.expert_groups * self.top_groups,
                self.top_groups
            ));
        }
        for (key, value, most) in [
            ("routed_experts", self.routed_experts, 1024),
            ("layers", self.layers, 1024),
            ("mtp_layers", self.mtp_layers, 1024),
            ("top_k", self.top_k, 64),
            ("shared_experts", self.shared_experts, 64),
        ] {
            if value > most {
                return Err(format!("{key} = {value}: at most {most} are supported"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_are_not_supported_are_refused_by_name() {
        let text = include_str!("../specs/deepseek-r1.toml");
        for (key, value) in [
            ("mtp_layers", u32::MAX),
            ("shared_experts", 65),
            ("layers", 1025),
            ("top_k", 65),
            ("top_k", 0),
            ("dense_layers", 62),
        ] {
            let lines = text.lines().map(|line| match line.split_once('=') {
                Some((k, _)) if k.trim() == key => format!("{key} = {value}\n"),
                _ => format!("{line}\n"),
            });
            let why = ModelSpec::from_toml(&lines.collect::<String>()).unwrap_err();
            assert!(why.starts_with(&format!("{key} = {value}")), "{why}");
        }
    }

    #[test]
    fn every_builtin_model_loads() {
        for name in ModelSpec::BUILTIN {
            assert_eq!(ModelSpec::builtin(name).unwrap().name, *name);
        }
    }
}
