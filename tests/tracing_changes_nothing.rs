//! Recording a run changes nothing in it: the digest is the same with everything recorded, and what is recorded is the
//! same on 1, 2 and 4 shards. The stages recorded add up to those of the report, to the picosecond.

use std::collections::BTreeMap;
use std::sync::Arc;

use supernode_actors::compute::Calibration;
use supernode_actors::config::{Fidelity, Serving};
use supernode_actors::launch::{Flow, Launch, Load, Phase, Supernode, Wanted};
use supernode_actors::model::ModelSpec;
use supernode_actors::request::{Prefix, RequestSpec};
use supernode_actors::stats::RunStats;
use supernode_actors::trace::{ActorSet, Record, Requests, TraceSpec, What};
use supernode_topology::Machine;

fn launch(shards: u32, level: Fidelity) -> Supernode {
    let machine = Arc::new(Machine::resolve("mini4").expect("a built-in machine"));
    let model = ModelSpec::builtin("deepseek-r1").expect("a built-in model");
    let mut serving = Serving::default();
    (serving.prefill.instances, serving.prefill.npus_per_instance) = (1, 8);
    // Small batches need small buffers: the weights of so few dies leave little room.
    serving.prefill.batch_tokens_per_npu = 1_024;
    (serving.decode.instances, serving.decode.npus_per_instance) = (1, 8);
    (serving.prefill.redundant, serving.prefill.shared_replicas) = (0, 0);
    (serving.experts.redundant, serving.experts.shared_replicas) = (0, 0);
    serving.fidelity.level = level;
    let requests = (0..6)
        .map(|id| RequestSpec {
            id,
            arrival_ps: id * 3_000_000_000,
            prompt_tokens: 700 + 300 * id as u32,
            output_tokens: 1 + id as u32,
            prefix: Prefix::Unique,
        })
        .collect();
    Supernode::launch(Launch {
        machine,
        model,
        serving,
        calibration: Calibration::builtin(),
        seed: 7,
        shards,
        load: Load {
            phase: Phase::Both,
            requests,
            concurrency: None,
        },
        experts: supernode_actors::experts::ExpertTables::default(),
    })
    .expect("it fits")
}

fn run(shards: u32, level: Fidelity, recorded: bool) -> (RunStats, Vec<Record>) {
    let mut s = launch(shards, level);
    if recorded {
        let actors = s.shared().machine.actor_count();
        s.record(Some(TraceSpec {
            actors: Some(ActorSet::new(actors, 0..actors)),
            from_ps: 0,
            until_ps: u64::MAX,
            requests: Requests::share(1.0, 0),
        }));
    }
    let mut records = Vec::new();
    s.run_recorded(&mut |_| Flow::Continue, &mut |r| {
        assert_eq!(r.lost, 0);
        records.extend(r.records);
        Wanted::All
    })
    .expect("it ends");
    assert!(s.rest().records.is_empty());
    (s.stats(), records)
}

#[test]
fn a_recorded_run_is_the_same_run_on_any_shards() {
    for level in [Fidelity::Message, Fidelity::Step] {
        let (plain, none) = run(1, level, false);
        assert!(none.is_empty());
        let (one, records) = run(1, level, true);
        assert_eq!(one, plain);
        assert!(records.len() > 1_000, "{}", records.len());
        assert!(records.is_sorted_by_key(|r| (r.at_ps, r.actor)));
        for shards in [2, 4] {
            let (stats, other) = run(shards, level, true);
            assert_eq!(stats, plain, "{shards} shards");
            let same = records.iter().zip(&other).position(|(a, b)| a != b);
            assert_eq!(
                (same, records.len()),
                (None, other.len()),
                "{shards} shards"
            );
        }
    }
}

#[test]
fn recorded_stages_add_up_to_the_report() {
    let (stats, records) = run(2, Fidelity::Message, true);
    let mut sums = [BTreeMap::new(), BTreeMap::new()];
    for r in &records {
        if let What::Stage(stage) = r.what {
            let sum: &mut (u64, u64) = sums[usize::from(stage.is_decode())]
                .entry(stage.name().to_string())
                .or_default();
            sum.0 += r.end_ps - r.start_ps;
            sum.1 += 1;
        }
    }
    assert_eq!(sums[0], stats.prefill_layer.stages);
    assert_eq!(sums[1], stats.decode_layer.stages);
    assert!(sums[1]["experts"].0 > 0);
}
