//! On small random machines with random workloads, at both fidelities: every request ends exactly once with all
//! its tokens in order, slots and memory are given back, and bytes sent are bytes delivered. The checks are part of
//! the program (`Supernode::run` makes them at a quiet end); these tests look for inputs that break them.

use std::sync::Arc;

use proptest::prelude::*;
use supernode::chaos::{small_machine, small_model, some_prefix};
use supernode_actors::compute::Calibration;
use supernode_actors::config::{Balance, Fidelity, KvPlane, Microbatch, Serving};
use supernode_actors::experts::ExpertTables;
use supernode_actors::launch::{Ended, Flow, Launch, Load, Phase, Supernode};
use supernode_actors::request::{Outcome, RequestSpec};
use supernode_actors::runtime::Transport;

#[derive(Clone, Debug)]
struct Case {
    nodes: u32,
    planes: u32,
    l2_chips: u32,
    serving: Serving,
    load: Load,
    seed: u64,
}

fn requests() -> impl Strategy<Value = Vec<RequestSpec>> {
    let one = (
        0u64..2_000_000_000_000,
        1u32..6_000,
        1u32..60,
        0u64..3,
        0u64..4,
    );
    prop::collection::vec(one, 1..25).prop_map(|mut rows| {
        rows.sort_by_key(|r| r.0);
        rows.into_iter()
            .enumerate()
            .map(
                |(id, (arrival_ps, prompt_tokens, output_tokens, kind, family))| RequestSpec {
                    id: id as u64,
                    arrival_ps,
                    prompt_tokens,
                    output_tokens,
                    prefix: some_prefix(kind, prompt_tokens, family),
                },
            )
            .collect()
    })
}

prop_compose! {
    fn case()(
        requests in requests(),
        machine in (4u32..7, 1u32..8, 1u32..5),
        groups in (1u32..3, 1u32..4, 1u32..3, 1u32..5),
        batch in 2u32..9,
        budget in 256u32..5_000,
        switches in (any::<bool>(), any::<bool>(), any::<bool>(), 0u32..3),
        balance in prop::sample::select(vec![Balance::None, Balance::Eplb, Balance::Perfect]),
        skew in prop::sample::select(vec![0.0, 0.8]),
        plane in prop::sample::select(vec![KvPlane::Rdma, KvPlane::Ub, KvPlane::Vpc]),
        microbatch in prop::sample::select(vec![Microbatch::On, Microbatch::Off, Microbatch::Auto]),
        concurrency in prop::option::of(1u32..12),
        dram_gb in prop::sample::select(vec![0.1, 1.0, 100.0]),
        seed in any::<u64>(),
    ) -> Case {
        let mut s = Serving::default();
        (s.prefill.instances, s.prefill.npus_per_instance) = (groups.0, groups.1);
        (s.decode.instances, s.decode.npus_per_instance) = (groups.2, groups.3);
        s.prefill.batch_tokens_per_npu = budget;
        s.prefill.microbatch = switches.0;
        (s.prefill.redundant, s.prefill.shared_replicas) = (4, 4);
        (s.experts.redundant, s.experts.shared_replicas) = (4, 4);
        s.experts.balance = balance;
        s.experts.skew = skew;
        s.decode.max_batch_per_npu = batch;
        s.decode.microbatch = microbatch;
        s.decode.mtp_tokens = switches.3;
        s.cache.enabled = switches.1;
        s.cache.dram_gb_per_node = dram_gb;
        s.cache.ssd_gb_per_node = if switches.2 { 10.0 } else { 0.0 };
        s.kv_transfer.plane = plane;
        let (nodes, planes, l2_chips) = machine;
        Case { nodes, planes, l2_chips, serving: s, load: Load { phase: Phase::Both, requests, concurrency }, seed }
    }
}

/// (digest, outcomes) of a run that ended quietly.
fn run(case: &Case, level: Fidelity, shards: u32, transport: Transport) -> u64 {
    let mut serving = case.serving.clone();
    serving.fidelity.level = level;
    let launch = Launch {
        machine: Arc::new(small_machine(case.nodes, case.planes, case.l2_chips)),
        model: small_model(),
        serving,
        calibration: Calibration::builtin(),
        seed: case.seed,
        shards,
        load: case.load.clone(),
        experts: ExpertTables::default(),
    };
    let mut s = Supernode::launch_with(launch, transport, None).unwrap();
    assert_eq!(s.run(&mut |_| Flow::Continue).unwrap(), Ended::Quiet);
    let stats = s.stats();
    assert_eq!(stats.records.len(), case.load.requests.len());
    for (record, spec) in stats.records.iter().zip(&case.load.requests) {
        assert_eq!(record.id, spec.id);
        assert_eq!(record.outcome, Outcome::Completed);
        assert_eq!(record.output_tokens, spec.output_tokens);
        assert!(
            record.first_token_ps > record.arrival_ps && record.end_ps >= record.first_token_ps
        );
    }
    stats.digest
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_and_shards_do_not_matter(case in case()) {
        for level in [Fidelity::Message, Fidelity::Step] {
            let one = run(&case, level, 1, Transport::Memory);
            prop_assert_eq!(run(&case, level, 2, Transport::Memory), one);
            prop_assert_eq!(run(&case, level, 4, Transport::Bytes), one);
        }
    }
}
