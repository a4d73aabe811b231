//! One request on a small machine, where the sums can be done by hand: how many messages and bytes it makes, and how its
//! latencies hang together.

mod common;

use common::{file, stdout_of};
use serde_json::Value;

const PROMPT: u64 = 1_000;
const OUTPUT: u64 = 3;
const PREFILL_RANKS: u64 = 8;
/// The model below.
const LAYERS: u64 = 4;
const MOE_LAYERS: u64 = 3;
const TOP_K: u64 = 8;
const SHARED: u64 = 1;

/// DeepSeek's shape with four layers and 32 experts, so that it fits on a few dies.
fn model() -> String {
    include_str!("../actors/specs/deepseek-r1.toml")
        .replace("layers = 61", "layers = 4")
        .replace("dense_layers = 3", "dense_layers = 1")
        .replace("routed_experts = 256", "routed_experts = 32")
}

/// Every activation is a message, tokens come one by one, and nothing is cached.
fn run(extra: &[&str]) -> Value {
    let dir = tempfile::tempdir().expect("a temporary directory");
    file(&dir, "model.toml", model());
    let scenario = file(
        &dir,
        "s.toml",
        format!(
            "machine = \"mini\"\nmodel = \"./model.toml\"\n\
             [prefill]\ninstances = 1\nnpus_per_instance = 4\nmicrobatch = false\n\
             [decode]\ninstances = 1\nnpus_per_instance = 8\nmicrobatch = false\nmtp_tokens = 0\n\
             [cache]\nenabled = false\n[fidelity]\nlevel = \"message\"\n\
             [workload]\nkind = \"open\"\nrate_per_s = 1.0\nrequests = 1\n\
             prompt_tokens = {PROMPT}\noutput_tokens = {OUTPUT}\n"
        ),
    );
    let mut args = vec!["run", &scenario, "--json", "-"];
    args.extend(extra);
    serde_json::from_str(&stdout_of(&args)).expect("JSON")
}

fn number(report: &Value, path: &str) -> f64 {
    report.pointer(path).and_then(Value::as_f64).expect(path)
}

fn count(report: &Value, path: &str) -> u64 {
    report.pointer(path).and_then(Value::as_u64).expect(path)
}

#[test]
fn messages_and_bytes_are_those_of_the_arithmetic() {
    let report = run(&[]);
    // Each token goes to its experts and comes back, in every MoE layer; the first token comes from prefill.
    let copies = 2 * (TOP_K + SHARED) * MOE_LAYERS;
    // Before and after a layer's heads, each rank sends one share to every rank.
    let collectives = 2 * LAYERS * PREFILL_RANKS * PREFILL_RANKS;
    assert_eq!(
        count(&report, "/messages/activation"),
        copies * (PROMPT + OUTPUT - 1) + collectives
    );
    assert_eq!(count(&report, "/messages/tokens"), OUTPUT);
    assert_eq!(count(&report, "/prefill/tokens"), PROMPT);
    assert_eq!(count(&report, "/decode/tokens"), OUTPUT - 1);
    // The prompt's KV crosses two RDMA ports: 576 values of two bytes a layer and token.
    assert_eq!(count(&report, "/messages/kv_block"), 1);
    assert_eq!(
        count(&report, "/links/rdma/bytes"),
        2 * PROMPT * LAYERS * 576 * 2
    );
}

#[test]
fn latencies_are_what_clients_call_them() {
    let report = run(&[]);
    let of = |name: &str| number(&report, &format!("/{name}/mean"));
    // TPOT is what follows the first token, over the tokens after it.
    let after_first = (OUTPUT - 1) as f64 * of("tpot_ms");
    assert!((of("e2e_ms") - of("ttft_ms") - after_first).abs() < 1e-9);
    // The gaps between tokens make up the same time, the one that the KV's transfer makes among them. They are
    // measured where tokens are made, so the ways to the home may differ by a microsecond or two.
    let transfer_ms = (PROMPT * LAYERS * 576 * 2) as f64 / 25e6;
    assert!(transfer_ms > 0.1 && (of("itl_ms") - of("tpot_ms")).abs() < 0.002);
    // With the KV in place there is no gap before the first token, only the wait for it.
    let report = run(&["--set", "workload.phase=decode"]);
    let of = |name: &str| number(&report, &format!("/{name}/mean"));
    assert!((of("itl_ms") - of("tpot_ms")).abs() < 1e-6);
}
