//! Operators that stay on one die: attention over the latent cache, and INT8 products.

use supernode_actors::compute::{DiePeaks, Product, Roofline, Share};

use super::Row;
use super::phases::Bench;

/// Requests, heads on the die, and tokens of each request, for attention bound by operations and by memory: with all
/// heads on one die each KV byte is used often enough to be bound by operations, with 16 of them it is not.
const MLA: [(&str, f64, f64); 2] = [
    ("all heads, two tokens", 1.0, 2.0),
    ("an eighth of the heads, one token", 0.125, 1.0),
];
/// Bound by operations: TFLOPS; by memory: GB/s (arXiv 2506.12708).
const MLA_TFLOPS: f64 = 246.0;
const MLA_GB_PER_S: f64 = 1_346.0;
const MLA_REQUESTS: f64 = 48.0;

/// The corners of what was measured (arXiv 2506.12708): M, N, K.
const GEMM: [(u32, u32, u32); 4] = [
    (2_048, 4_096, 4_096),
    (2_048, 7_168, 8_192),
    (7_168, 4_096, 4_096),
    (7_168, 7_168, 8_192),
];
/// Share of INT8 peak over all of them, in percent.
const GEMM_PERCENT: [f64; 2] = [77.4, 82.7];

pub fn rows(bench: &Bench) -> Vec<Row> {
    let roof = Roofline {
        peaks: DiePeaks::of(&bench.machine.spec.die),
        int8: true,
        cal: bench.calibration.clone(),
    };
    let mut rows = attention(bench, &roof);
    rows.extend(GEMM.map(|(m, n, k)| {
        let product = Product {
            m: f64::from(m),
            k: f64::from(k),
            n: f64::from(n),
            heads: 1.0,
            int8: true,
        };
        let tops = product.ops() / roof.product_s(product, Share::WHOLE) / 1e12;
        let mut row = Row::new(
            "gemm",
            format!("M {m}, N {n}, K {k}"),
            "% of INT8 peak",
            100.0 * tops / roof.peaks.int8_tops,
        );
        row.published = Some(GEMM_PERCENT);
        row
    }));
    rows
}

fn attention(bench: &Bench, roof: &Roofline) -> Vec<Row> {
    let m = &bench.model;
    let context = MLA_REQUESTS * f64::from(bench.prompt_tokens);
    let bytes = context * m.kv_values_per_token_layer() * 2.0;
    let mut rows = Vec::new();
    for (what, heads, tokens) in MLA {
        let heads = heads * f64::from(m.heads);
        let flops =
            2.0 * heads * context * tokens * f64::from(2 * m.kv_lora_rank + m.qk_rope_head_dim);
        let s = roof.attention_s(flops, bytes, Share::WHOLE);
        let name = format!(
            "{what}, {} requests of {} tokens",
            MLA_REQUESTS, bench.prompt_tokens
        );
        rows.push(if heads == f64::from(m.heads) {
            Row::new("mla", name, "TFLOPS", flops / s / 1e12).published(Some(MLA_TFLOPS))
        } else {
            Row::new("mla", name, "GB/s", bytes / s / 1e9).published(Some(MLA_GB_PER_S))
        });
    }
    rows
}
