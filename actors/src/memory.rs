//! What is in the HBM of a die: weights by kind, communication buffers, workspace, and what that leaves for KV.

use crate::compute::Calibration;
use crate::config::{Balance, Number, Serving};
use crate::model::ModelSpec;

/// HBM of one die of a pool, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DieMemory {
    pub hbm_bytes: f64,
    /// Experts a die holds in each layer, shared ones among them.
    pub experts_per_die: u32,
    /// The same without redundant experts.
    pub experts_least: u32,
    /// Attention of all layers, the multi-token-prediction layer's too.
    pub attention_bytes: f64,
    pub dense_bytes: f64,
    pub experts_bytes: f64,
    /// Embedding and vocabulary head, sharded.
    pub head_bytes: f64,
    /// Windows that other ranks write dispatched and combined tokens into: ranks x tokens x message.
    pub buffers_bytes: f64,
    /// New experts beside the old ones while EPLB moves weights.
    pub staging_bytes: f64,
    /// Layers of experts that this has room for.
    pub staged_layers: u32,
    /// Layers of experts that a plan is for.
    pub moe_layers: u32,
    /// Activations and the runtime.
    pub workspace_bytes: f64,
    /// Weights could take half of what they do: they are in BF16.
    pub weights_can_shrink: bool,
}

/// What the memory of a die depends on besides model and precision.
#[derive(Clone, Copy, Debug)]
pub struct DieUse {
    pub hbm_gb: f64,
    pub ranks: u32,
    pub experts_per_die: u32,
    /// The same without redundant experts.
    pub experts_least: u32,
    /// Tokens of its own that a die dispatches at once, both microbatches together.
    pub tokens_max: u64,
    pub decode: bool,
}

/// Bytes of a model's weights, by kind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WeightBytes {
    /// Attention of all layers, the multi-token-prediction layer's too.
    pub attention: f64,
    /// The dense layers' MLPs.
    pub dense: f64,
    /// One expert of one layer.
    pub expert: f64,
    /// A die's shard of the embedding and the vocabulary head.
    pub head_shard: f64,
}

impl WeightBytes {
    pub fn new(model: &ModelSpec, weights: Number, cal: &Calibration) -> Self {
        let f = f64::from;
        let w = weights.bytes();
        let absorbed = model.key_absorb_params() + model.value_absorb_params();
        let projections = model.attention_params() - absorbed;
        // The absorbed projections, embedding and head stay BF16 in every precision.
        let per_layer = projections * w + absorbed * Number::Bf16.bytes();
        Self {
            attention: per_layer * f(model.layers + model.mtp_layers),
            dense: model.dense_mlp_params() * f(model.dense_layers) * w,
            expert: model.expert_params() * w,
            head_shard: 2.0 * f(model.hidden) * f(model.vocab) * Number::Bf16.bytes()
                / f(cal.head.tensor_parallel_dies),
        }
    }
}

impl DieMemory {
    pub fn new(model: &ModelSpec, serving: &Serving, cal: &Calibration, u: DieUse) -> Self {
        let f = f64::from;
        let weights = WeightBytes::new(model, serving.precision.weights, cal);
        let expert = weights.expert;
        let dispatch = match serving.precision.dispatch {
            Number::Int8 => f(cal.wire.dispatch_bytes_int8),
            Number::Bf16 => f(model.hidden) * 2.0 + f(cal.wire.dispatch_scale_bytes),
        };
        let combine = f(model.hidden) * Number::Bf16.bytes();
        let e = &serving.experts;
        let moves = u.decode && e.balance == Balance::Eplb && e.eplb_interval_s > 0.0;
        let staged_layers = if moves { e.eplb_layers_at_once } else { 0 };
        Self {
            hbm_bytes: u.hbm_gb * 1e9,
            experts_per_die: u.experts_per_die,
            experts_least: u.experts_least,
            attention_bytes: weights.attention,
            dense_bytes: weights.dense,
            experts_bytes: expert * f(u.experts_per_die) * f(model.moe_layers() + model.mtp_layers),
            head_bytes: weights.head_shard,
            buffers_bytes: f(u.ranks) * u.tokens_max as f64 * (dispatch + combine),
            staging_bytes: f(staged_layers) * f(u.experts_per_die) * expert,
            staged_layers,
            moe_layers: model.moe_layers(),
            workspace_bytes: u.hbm_gb * 1e9 * cal.memory.workspace_share,
            weights_can_shrink: serving.precision.weights == Number::Bf16,
        }
    }

    pub fn used_bytes(&self) -> f64 {
        self.attention_bytes
            + self.dense_bytes
            + self.experts_bytes
            + self.head_bytes
            + self.buffers_bytes
            + self.staging_bytes
            + self.workspace_bytes
    }

    /// One expert of all layers.
    pub fn one_expert_bytes(&self) -> f64 {
        self.experts_bytes / f64::from(self.experts_per_die.max(1))
    }

    /// What to do about experts on the move, if fewer of them at once would make a die fit that lacks `lacking` bytes.
    fn fewer_at_once(&self, lacking: f64) -> Option<String> {
        let layers = f64::from(self.staged_layers);
        let fit = layers - (lacking / self.staging_bytes * layers).floor() - 1.0;
        if self.staged_layers == 0 || fit < 1.0 {
            return None;
        }
        // More than all are never on the move.
        let most = fit.min(f64::from(self.moe_layers));
        Some(format!(
            "lower experts.eplb_layers_at_once from {} to at most {most}",
            self.staged_layers
        ))
    }

    /// What is left for KV, in a die of "prefill" or "decode".
    ///
    /// # Errors
    /// When nothing is left: the sum, and what to change.
    pub fn kv_bytes(&self, who: &str) -> Result<f64, String> {
        let gb = |bytes: f64| bytes / 1e9;
        let left = self.hbm_bytes - self.used_bytes();
        if left > 0.0 {
            return Ok(left);
        }
        // Twice the NPUs: half the experts on each, and twice the ranks to hear from.
        let npus = if self.experts_bytes > self.buffers_bytes {
            format!("raise {who}.npus_per_instance (fewer experts a die)")
        } else {
            format!("lower {who}.npus_per_instance (buffers for fewer ranks)")
        };
        let mut remedies: Vec<String> = self.fewer_at_once(-left).into_iter().collect();
        let redundant = self.experts_per_die.saturating_sub(self.experts_least);
        if f64::from(redundant) * self.one_expert_bytes() > -left {
            let copies = if who == "decode" { "experts" } else { who };
            remedies.push(format!("lower {copies}.redundant (fewer experts a die)"));
        }
        remedies.push(npus);
        if self.weights_can_shrink {
            remedies.push("set precision.weights = \"int8\"".into());
        }
        if self.buffers_bytes > -left {
            let batch = if who == "decode" {
                "max_batch_per_npu"
            } else {
                "batch_tokens_per_npu"
            };
            remedies.push(format!("lower {who}.{batch} (smaller buffers)"));
        }
        Err(format!(
            "a {who} die does not fit in its {} GB of HBM: attention {:.1} + dense layers {:.1} + {} experts a layer {:.1} + \
             head {:.1} + communication buffers {:.1} + experts on the move {:.1} + workspace {:.1} = {:.1} GB; \
             {}",
            gb(self.hbm_bytes),
            gb(self.attention_bytes),
            gb(self.dense_bytes),
            self.experts_per_die,
            gb(self.experts_bytes),
            gb(self.head_bytes),
            gb(self.buffers_bytes),
            gb(self.staging_bytes),
            gb(self.workspace_bytes),
            gb(self.used_bytes()),
            remedies.join(", or ")
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(change: impl Fn(&mut Serving), experts_per_die: u32, ranks: u32) -> DieMemory {
        let model = ModelSpec::builtin("deepseek-r1").unwrap();
        let mut serving = Serving::default();
        change(&mut serving);
        let u = DieUse {
            hbm_gb: 64.0,
            ranks,
            experts_per_die,
            experts_least: experts_per_die.min(9),
            tokens_max: 96,
            decode: true,
        };
        DieMemory::new(&model, &serving, &Calibration::builtin(), u)
    }

    #[test]
    fn weights_are_those_of_the_model() {
        // 256 + 1 experts of 44 MB in 58 layers and the prediction layer, and each part of the rest once: 671 GB with
        // 8 bits a weight, 14 GB of which the prediction layer's own.
        let m = memory(|_| {}, 257, 1);
        let absorbed = 62.0 * 128.0 * 256.0 * 512.0;
        let sum = m.attention_bytes - absorbed
            + m.dense_bytes
            + m.experts_bytes
            + m.head_bytes * 16.0 / 2.0;
        assert!((sum / 1e9 - 684.0).abs() < 5.0, "{}", sum / 1e9);
    }

    #[test]
    fn each_key_shows_where_it_should() {
        let int8 = memory(|_| {}, 10, 32);
        let bf16 = memory(|s| s.precision.weights = Number::Bf16, 10, 32);
        assert_eq!(bf16.experts_bytes, 2.0 * int8.experts_bytes);
        assert_eq!(bf16.buffers_bytes, int8.buffers_bytes);
        assert!(int8.kv_bytes("decode").is_ok());
        // Advice that would not be enough is not given.
        let why = memory(|_| {}, 30, 32).kv_bytes("decode").unwrap_err();
        assert!(
            why.contains("; lower experts.redundant (fewer experts a die), or raise"),
            "{why}"
        );
        assert!(!why.contains("batch"), "{why}");
        let why = bf16.kv_bytes("decode").unwrap_err();
        assert!(!why.contains("redundant"), "{why}");
        assert!(why.contains("10 experts a layer 52.0"), "{why}");
        assert!(why.contains("raise decode.npus_per_instance"), "{why}");
        // Where buffers are what does not fit, more dies would make them larger.
        let mut crowded = memory(|_| {}, 1, 320);
        crowded.buffers_bytes = 57.7e9;
        let why = crowded.kv_bytes("prefill").unwrap_err();
        assert!(why.contains("lower prefill.batch_tokens_per_npu"), "{why}");
        assert!(why.contains("lower prefill.npus_per_instance"), "{why}");
        // 32 ranks x 96 tokens x (7.5 KB + 14 KB).
        assert_eq!(int8.buffers_bytes, 32.0 * 96.0 * (7_680.0 + 14_336.0));
        let wide = memory(|s| s.precision.dispatch = Number::Bf16, 10, 32);
        assert!(wide.buffers_bytes > int8.buffers_bytes);
        let moving = memory(|s| s.experts.eplb_interval_s = 60.0, 10, 32);
        assert_eq!(int8.staging_bytes, 0.0);
        assert!(moving.staging_bytes > 3e9);
        // What would fit of them, and never more layers than there are.
        assert_eq!(moving.fewer_at_once(1e15), None);
        let at_once = |layers: u32, experts: u32| {
            let change = |s: &mut Serving| {
                s.experts.eplb_interval_s = 60.0;
                s.experts.eplb_layers_at_once = layers;
            };
            memory(change, experts, 32)
        };
        let why = at_once(10_000, 1).kv_bytes("decode").unwrap_err();
        let advice = "lower experts.eplb_layers_at_once from 10000 to at most 58, or raise";
        assert!(why.contains(advice), "{why}");
        let why = at_once(58, 10).kv_bytes("decode").unwrap_err();
        let most = why.split_once("to at most ").unwrap().1;
        let most: u32 = most.split_once(',').unwrap().0.parse().unwrap();
        assert!(at_once(most, 10).kv_bytes("decode").is_ok());
        assert!(at_once(most + 1, 10).kv_bytes("decode").is_err());
        assert_eq!(
            memory(|_| {}, 1, 320).experts_bytes * 10.0,
            int8.experts_bytes
        );
    }
}
