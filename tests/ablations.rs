//! What each feature is worth, at reduced size: that it goes the right way. Sizes on the whole machine are in
//! docs/ablations.md.

mod common;

use common::stdout_of;
use serde_json::Value;

fn report(base: &[&str], more: &[&str]) -> Value {
    let mut args = vec!["run", "-q", "--json=-", "--set=machine=mini4"];
    args.extend(base);
    args.extend(more);
    serde_json::from_str(&stdout_of(&args)).unwrap()
}

fn f(r: &Value, path: &str) -> f64 {
    r.pointer(path).and_then(Value::as_f64).unwrap()
}

/// 32 NPUs that decode at 2,048 tokens of context.
fn decode(more: &[&str]) -> Value {
    let base = [
        "--set=decode.npus_per_instance=32",
        "--set=workload.kind=closed",
        "--set=workload.phase=decode",
        "--set=workload.prompt_tokens=2048",
        "--set=workload.output_tokens=24",
    ];
    report(&base, more)
}

/// 16 NPUs that prefill.
fn prefill(more: &[&str]) -> Value {
    let base = [
        "--set=prefill.instances=1",
        "--set=workload.kind=closed",
        "--set=workload.phase=prefill",
        "--set=workload.concurrency_per_npu=16",
        "--set=workload.prompt_tokens=4096",
        "--set=workload.requests=768",
    ];
    report(&base, more)
}

#[test]
fn a_speculative_token_gains_more_where_batches_are_small() {
    let gain = |batch: &str| {
        let batch = format!("--set=workload.concurrency_per_npu={batch}");
        let of = |tokens: &str| {
            let tokens = format!("--set=decode.mtp_tokens={tokens}");
            let r = decode(&[&batch, &tokens]);
            f(&r, "/decode/tokens_per_s_per_npu")
        };
        of("1") / of("0")
    };
    let (small, large) = (gain("8"), gain("96"));
    assert!(
        small > 1.2,
        "at most 1.7, less what verifying costs: {small}"
    );
    assert!(small > large, "{small} {large}");
}

#[test]
fn two_microbatches_hide_dispatch_and_combine_of_prefill() {
    let of = |on: &str| {
        let set = format!("--set=prefill.microbatch={on}");
        f(&prefill(&[&set]), "/prefill/tokens_per_s_per_npu")
    };
    let (on, off) = (of("true"), of("false"));
    assert!((1.05..1.5).contains(&(on / off)), "{on} {off}");
}

#[test]
fn eight_bit_weights_are_faster_and_leave_room_for_kv() {
    let of = |number: &str| {
        let set = format!("--set=precision.weights={number}");
        decode(&[&set, "--set=workload.concurrency_per_npu=8"])
    };
    let (int8, bf16) = (of("int8"), of("bf16"));
    let tokens = |r| f(r, "/decode/tokens_per_s_per_npu");
    assert!(
        tokens(&int8) > 1.1 * tokens(&bf16),
        "{} {}",
        tokens(&int8),
        tokens(&bf16)
    );
    let kv = |r| f(r, "/memory/decode/kv_bytes");
    // Five experts of 44 MB in 59 layers, and attention, once more.
    assert!(kv(&int8) > kv(&bf16) + 13e9, "{} {}", kv(&int8), kv(&bf16));
}

#[test]
fn perfect_balance_is_what_no_plan_can_beat() {
    // 16 and 64 dies of several experts each, with few tokens.
    for (npus, drafts, redundant, shared) in [("8", "0", "0", "0"), ("32", "1", "32", "32")] {
        let sets = [
            format!("--set=decode.npus_per_instance={npus}"),
            format!("--set=decode.mtp_tokens={drafts}"),
            format!("--set=experts.redundant={redundant}"),
            format!("--set=experts.shared_replicas={shared}"),
        ];
        let requests = format!("--requests={}", 2 * npus.parse::<u32>().unwrap());
        let step_ms = |balance: &str| {
            let balance = format!("--set=experts.balance={balance}");
            let mut more: Vec<&str> = sets.iter().map(String::as_str).collect();
            more.extend([
                balance.as_str(),
                &requests,
                "--set=experts.skew=0",
                "--set=fidelity.level=message",
                "--set=workload.concurrency_per_npu=2",
                "--set=workload.output_tokens=8",
            ]);
            f(&decode(&more), "/decode/step_ms")
        };
        let (perfect, eplb) = (step_ms("perfect"), step_ms("eplb"));
        assert!(perfect < eplb, "EP of {npus} NPUs: {perfect} {eplb}");
    }
}
