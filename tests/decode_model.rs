//! What decode's parts and switches do to a step, on small machines, and that step fidelity says the same as message fidelity.

use supernode::report::Report;
use supernode::run::Prepared;
use supernode::scenario::Loader;
use supernode_actors::launch::Flow;

fn run(sets: &[&str], more: &[&str]) -> Report {
    let mut loader = Loader::new();
    for set in sets.iter().chain(more) {
        loader.set(set).unwrap();
    }
    Prepared::new(loader.load().unwrap())
        .unwrap()
        .run(1, &mut |_| Flow::Continue)
        .unwrap()
}

/// All requests begin together and stay in step, each step message by message.
const STEPS: [&str; 6] = [
    "workload.kind=closed",
    "workload.phase=decode",
    "workload.prompt_tokens=4096",
    "workload.output_tokens=3",
    "fidelity.level=message",
    "decode.mtp_acceptance=0",
];

/// Mean time of a step, in milliseconds, on 32 dies with `batch` requests per NPU.
fn step_ms(batch: u32, more: &[&str]) -> f64 {
    steps(batch, more).itl_ms.mean
}

fn steps(batch: u32, more: &[&str]) -> Report {
    let (concurrency, requests) = (
        format!("workload.concurrency_per_npu={batch}"),
        format!("workload.requests={}", batch * 16),
    );
    let mini = [
        "machine=mini",
        "decode.npus_per_instance=16",
        &concurrency,
        &requests,
    ];
    run(&[&STEPS[..], &mini].concat(), more)
}

#[test]
fn no_part_that_gets_faster_makes_a_step_longer() {
    // A fifth faster, one by one: efficiencies up, times down.
    let parts = [
        "gemm.int8_efficiency=0.96",
        "gemm.bf16_efficiency=0.9",
        "gemm.stream_efficiency=1.0",
        "mla.compute_efficiency=0.785",
        "vector.memory_efficiency=1.0",
        "overhead.operator_us=4.0",
        "streams.core_pull=2.3",
        "dispatch.startup_us=20.8",
        "dispatch.token_us=0.128",
        "dispatch.flag_ns=80",
        "dispatch.assemble_us=6.4",
        "combine.startup_us=13.6",
        "combine.sum_us=3.2",
    ];
    for microbatch in ["true", "false", "auto"] {
        let microbatch = format!("decode.microbatch={microbatch}");
        let before = step_ms(64, &[&microbatch]);
        let mut shorter = 0;
        for part in parts {
            let after = step_ms(64, &[&microbatch, &format!("operators.{part}")]);
            assert!(
                after <= before * 1.001,
                "{part}, {microbatch}: {before} to {after} ms"
            );
            shorter += u32::from(after < before * 0.999);
        }
        assert!(shorter >= 6, "{microbatch}: only {shorter} of them matter");
    }
}

#[test]
fn auto_takes_the_faster_of_one_microbatch_and_two() {
    let mut taken = [0, 0];
    // 64 dies; a dispatch that takes so much longer to start as flags of 320 dies do makes both streams about as long.
    for (batch, skew, start) in [(2, "0", "26"), (96, "0", "90"), (96, "1.07", "90")] {
        let skew = format!("experts.skew={skew}");
        let start = format!("operators.dispatch.startup_us={start}");
        let requests = format!("workload.requests={}", batch * 32);
        let of = |microbatch: &str| {
            let set = format!("decode.microbatch={microbatch}");
            let dies = ["machine=mini4", "decode.npus_per_instance=32", &requests];
            step_ms(batch, &[&dies[..], &[&skew, &start, &set]].concat())
        };
        let (auto, on, off) = (of("auto"), of("true"), of("false"));
        taken[usize::from(on < off)] += 1;
        assert!(
            auto <= on.min(off) * 1.01,
            "{batch} per NPU, {skew}, {start}: {auto} ms where two take {on} and one {off}"
        );
    }
    assert!(
        taken[0] > 0 && taken[1] > 0,
        "both ways are the faster one: {taken:?}"
    );
}

#[test]
fn redundant_experts_take_load_off_the_busiest_die() {
    let skewed = |redundant: &str| {
        let r = steps(64, &["experts.skew=1.07", redundant]);
        (r.experts.load_max_over_mean, r.itl_ms.mean)
    };
    let (none, some) = (
        skewed("experts.redundant=0"),
        skewed("experts.redundant=64"),
    );
    assert!(some.0 < 0.9 * none.0, "load {none:?}, {some:?}");
    assert!(some.1 < 0.99 * none.1, "time {none:?}, {some:?}");
}

#[test]
fn few_copies_of_the_shared_expert_hold_everybody_up() {
    let with = |copies: &str| {
        let r = steps(64, &["experts.balance=perfect", copies]);
        (r.experts.load_max_over_mean, r.itl_ms.mean)
    };
    let (few, many) = (
        with("experts.shared_replicas=4"),
        with("experts.shared_replicas=32"),
    );
    assert!(few.0 > 1.2 * many.0, "load {few:?}, {many:?}");
    assert!(few.1 > 1.01 * many.1, "time {few:?}, {many:?}");
}

#[test]
fn precision_shows_in_the_stages_that_it_concerns() {
    let four_nodes = [
        "machine=mini4",
        "decode.npus_per_instance=32",
        "workload.concurrency_per_npu=2",
        "workload.requests=64",
        "decode.microbatch=false",
        "experts.balance=perfect",
    ];
    let base = [&STEPS[..], &four_nodes].concat();
    let stage = |r: &Report, name: &str| r.layer_us.decode[name];
    let int8 = run(&base, &[]);
    // Few tokens: weights are streamed, and those of experts are twice as many bytes.
    let weights = run(&base, &["precision.weights=bf16"]);
    let fixed_us = 15.0;
    let ratio = (stage(&weights, "experts") - fixed_us) / (stage(&int8, "experts") - fixed_us);
    assert!((1.9..2.05).contains(&ratio), "experts {ratio}");
    let attention = stage(&weights, "attention") / stage(&int8, "attention");
    assert!((1.3..2.0).contains(&attention), "attention {attention}");
    // Activations on the wire: twice the bytes out to the experts, the same back.
    let wire = run(&base, &["precision.dispatch=bf16"]);
    let sent = |r: &Report| r.links["die_lane"].bytes as f64;
    let (out, back) = (7_680.0, 14_336.0);
    let grown = sent(&wire) / sent(&int8);
    assert!(
        (grown / ((2.0 * out - 512.0 + back) / (out + back)) - 1.0).abs() < 0.02,
        "bytes {grown}"
    );
    assert!(stage(&wire, "dispatch") > stage(&int8, "dispatch"));
    assert_eq!(stage(&wire, "experts"), stage(&int8, "experts"));
    // KV: attention of 128 heads over one latent is bound by operations, so half the bytes leave its time as it is, and
    // twice the context fits.
    let kv = run(&base, &["precision.kv=int8"]);
    assert_eq!(stage(&kv, "attention"), stage(&int8, "attention"));
}

#[test]
fn speculative_tokens_gain_more_at_small_batches() {
    let tokens_per_s = |batch: u32, k: &str| {
        let more = [k, "decode.mtp_acceptance=0.7", "workload.output_tokens=40"];
        let fixed = ["experts.balance=perfect", "fidelity.level=step"];
        let r = steps(batch, &[&more[..], &fixed].concat());
        r.decode.tokens_per_s_per_npu
    };
    let gain =
        |batch: u32, from: &str, to: &str| tokens_per_s(batch, to) / tokens_per_s(batch, from);
    let (zero, one, two) = (
        "decode.mtp_tokens=0",
        "decode.mtp_tokens=1",
        "decode.mtp_tokens=2",
    );
    let (small, large) = (gain(2, zero, one), gain(96, zero, one));
    // 1.7 tokens a step, less the work of a second token and a draft layer.
    assert!((1.3..1.7).contains(&small), "{small}");
    assert!(
        (1.0..small).contains(&large),
        "{large}, {small} at a small batch"
    );
    // A second draft is kept in half of the steps (0.7 x 0.7), and adds less.
    let second = gain(2, one, two);
    assert!((1.0..small).contains(&second), "{second}");
}

/// TPOT of one scenario at both fidelities: mean and 99th percentile.
fn both_fidelities(sets: &[&str]) -> [(f64, f64); 2] {
    let (message, step) = (
        run(sets, &["fidelity.level=message"]),
        run(sets, &["fidelity.level=step"]),
    );
    assert_eq!(message.requests.completed, step.requests.completed);
    assert!(step.fidelity.step_steps > 2 * step.fidelity.message_steps);
    let of = |r: &Report| (r.tpot_ms.mean, r.tpot_ms.p99);
    [of(&message), of(&step)]
}

fn assert_near(sets: &[&str]) {
    let [message, step] = both_fidelities(sets);
    let off = |a: f64, b: f64| (b / a - 1.0).abs();
    assert!(off(message.0, step.0) < 0.02, "mean {message:?} {step:?}");
    assert!(off(message.1, step.1) < 0.02, "p99 {message:?} {step:?}");
}

#[test]
fn step_fidelity_says_what_message_fidelity_says_of_a_full_batch() {
    assert_near(&[
        "machine=mini",
        "decode.npus_per_instance=16",
        "workload.kind=closed",
        "workload.phase=decode",
        "workload.concurrency_per_npu=32",
        "workload.prompt_tokens=4096",
        "workload.output_tokens=80",
        "workload.requests=1024",
    ]);
}

#[test]
fn step_fidelity_says_what_message_fidelity_says_of_a_batch_that_comes_and_goes() {
    // Enough requests that the 99th percentile is not that of one or two of them, and other arrivals with each seed.
    let seeded = |seed: &str| {
        assert_near(&[
            seed,
            "machine=mini4",
            "prefill.instances=1",
            "prefill.npus_per_instance=16",
            "decode.npus_per_instance=16",
            "workload.kind=open",
            "workload.rate_per_s=40",
            "workload.prompt_tokens=512",
            "workload.output_tokens=50",
            "workload.requests=600",
        ]);
    };
    std::thread::scope(|s| {
        for seed in ["seed=1", "seed=2"] {
            s.spawn(move || seeded(seed));
        }
    });
}
