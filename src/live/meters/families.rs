//! The histograms of a live machine: names as vLLM and SGLang have them, meanings, buckets.

use super::histogram::{self, Bounds, Histogram};

/// What is measured of each request or token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Ttft,
    Itl,
    ItlFine,
    Tpot,
    E2e,
    Queue,
    Prefill,
    Decode,
    Inference,
    PromptTokens,
    OutputTokens,
    AskedTokens,
    ComputedTokens,
}

/// Family, names it goes by, meaning, buckets; in the order of the families.
type Row = (Family, &'static [&'static str], &'static str, Bounds);

const ROWS: [Row; 13] = [
    (
        Family::Ttft,
        &["vllm:time_to_first_token_seconds"],
        "From arrival to the first token.",
        histogram::TTFT,
    ),
    (
        Family::Itl,
        // The second is the older name.
        &[
            "vllm:inter_token_latency_seconds",
            "vllm:time_per_output_token_seconds",
        ],
        "Between tokens; of tokens that come together, each its share.",
        histogram::ITL,
    ),
    (
        Family::ItlFine,
        &["sglang:inter_token_latency_seconds"],
        "Gaps between tokens in SGLang's finer buckets.",
        histogram::ITL_FINE,
    ),
    (
        Family::Tpot,
        &["vllm:request_time_per_output_token_seconds"],
        "Mean time per output token of a request.",
        histogram::ITL,
    ),
    (
        Family::E2e,
        &["vllm:e2e_request_latency_seconds"],
        "From arrival to the last token.",
        histogram::E2E,
    ),
    (
        Family::Queue,
        &["vllm:request_queue_time_seconds"],
        "From arrival to the first prefill batch.",
        histogram::E2E,
    ),
    (
        Family::Prefill,
        &["vllm:request_prefill_time_seconds"],
        "From the first prefill batch to the first token.",
        histogram::E2E,
    ),
    (
        Family::Decode,
        &["vllm:request_decode_time_seconds"],
        "From the first token to the last.",
        histogram::E2E,
    ),
    (
        Family::Inference,
        &["vllm:request_inference_time_seconds"],
        "From the first prefill batch to the last token.",
        histogram::E2E,
    ),
    (
        Family::PromptTokens,
        &["vllm:request_prompt_tokens"],
        "Prompt tokens of a request.",
        histogram::TOKENS,
    ),
    (
        Family::OutputTokens,
        &["vllm:request_generation_tokens"],
        "Tokens made for a request.",
        histogram::TOKENS,
    ),
    (
        Family::AskedTokens,
        &[
            "vllm:request_max_num_generation_tokens",
            "vllm:request_params_max_tokens",
        ],
        "Tokens that a request asked for.",
        histogram::TOKENS,
    ),
    (
        Family::ComputedTokens,
        &["vllm:request_prefill_kv_computed_tokens"],
        "Prompt tokens computed, not cached.",
        histogram::TOKENS,
    ),
];

/// A histogram of each family.
#[derive(Clone, Debug)]
pub struct Families([Histogram; ROWS.len()]);

impl Default for Families {
    fn default() -> Self {
        Self(ROWS.map(|(.., bounds)| Histogram::new(bounds)))
    }
}

impl Families {
    pub fn record(&mut self, family: Family, value: f64) {
        self.record_n(family, value, 1);
    }

    pub fn record_n(&mut self, family: Family, value: f64, n: u64) {
        self.0[family as usize].record_n(value, n);
    }

    /// Name, meaning and values of each, under each name that it goes by.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, &'static str, &Histogram)> {
        let rows = ROWS.iter().zip(&self.0);
        rows.flat_map(|((_, names, help, _), h)| names.iter().map(move |name| (*name, *help, h)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_stand_where_their_families_say() {
        for (i, (family, ..)) in ROWS.iter().enumerate() {
            assert_eq!(*family as usize, i, "{family:?}");
        }
    }
}
