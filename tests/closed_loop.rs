//! What a closed loop measures is what the pool keeps up: figures that agree with each other, whatever fills and
//! drains around them.

use supernode::report::Report;
use supernode::run::Prepared;
use supernode::scenario::Loader;
use supernode_actors::launch::Flow;

/// On four nodes: one decode instance of two nodes and one prefill instance of one.
fn run(sets: &[&str]) -> Report {
    let small = [
        "machine=mini4",
        "prefill.instances=1",
        "prefill.npus_per_instance=8",
        "prefill.redundant=0",
        "prefill.shared_replicas=16",
        "prefill.batch_tokens_per_npu=2048",
        "decode.npus_per_instance=8",
        "decode.max_batch_per_npu=8",
        "experts.redundant=0",
        "experts.shared_replicas=16",
        "experts.balance=perfect",
        "workload.kind=closed",
        "workload.prompt_tokens=256",
    ];
    let mut loader = Loader::new();
    for set in small.iter().chain(sets) {
        loader.set(set).unwrap();
    }
    Prepared::new(loader.load().unwrap())
        .unwrap()
        .run(1, &mut |_| Flow::Continue)
        .unwrap()
}

const DECODE: [&str; 4] = [
    "workload.phase=decode",
    "workload.concurrency_per_npu=8",
    "workload.output_tokens=120",
    "decode.instances=1",
];

#[test]
fn decode_throughput_is_the_batch_over_the_time_per_token() {
    let r = run(&DECODE);
    // All fit in memory: nobody waits for a slot, only for the step that is running.
    assert!(r.ttft_ms.max < 3.0 * r.decode.step_ms, "{:?}", r.ttft_ms);
    let expected = 8.0 / (r.tpot_ms.mean * 1e-3);
    let got = r.decode.tokens_per_s_per_npu;
    assert!((got / expected - 1.0).abs() < 0.03, "{got} for {expected}");
}

#[test]
fn a_second_decode_instance_leaves_what_one_npu_does_as_it_was() {
    let one = run(&DECODE);
    let two = run(&[&DECODE[..3], &["decode.instances=2"]].concat());
    assert_eq!(two.decode.npus, 2 * one.decode.npus);
    let ratio = two.decode.tokens_per_s_per_npu / one.decode.tokens_per_s_per_npu;
    assert!((ratio - 1.0).abs() < 0.02, "{ratio}");
}

#[test]
fn a_prefill_pool_is_never_busier_than_all_the_time() {
    let r = run(&[
        "workload.phase=prefill",
        "workload.concurrency_per_npu=16",
        "workload.output_tokens=1",
    ]);
    assert!(
        (0.9..=1.0).contains(&r.prefill.busy_share),
        "{}",
        r.prefill.busy_share
    );
    // Nothing but prompts is done: what the pool made over the whole run is near what it keeps up.
    let whole = r.workload.served.prompt_tokens_per_s / f64::from(r.prefill.npus);
    let kept_up = r.prefill.tokens_per_s_per_npu;
    assert!((whole / kept_up - 1.0).abs() < 0.1, "{whole}, {kept_up}");
}
