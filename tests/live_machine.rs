//! A machine that stays up: what is put in from outside and recorded gives the same latencies when it is replayed in
//! a batch run, a request can be cancelled wherever it is, at once ended and all its memory given back, and a die may be
//! struck in the middle of a step of which nobody knew that it would be.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use supernode_actors::compute::Calibration;
use supernode_actors::config::{Fidelity, Serving};
use supernode_actors::fault::{Effect, Fault, Ways};
use supernode_actors::launch::{Flow, Launch, Load, Phase, Supernode};
use supernode_actors::model::ModelSpec;
use supernode_actors::request::{Delivered, Outcome, Prefix, RequestRecord, RequestSpec};
use supernode_topology::{ActorId, Machine};

const WHILE: Duration = Duration::from_secs(60);

fn launch(requests: Vec<RequestSpec>, slots: u32, level: Fidelity) -> Launch {
    let mut model = ModelSpec::builtin("deepseek-r1").unwrap();
    model.layers = 4;
    model.dense_layers = 1;
    model.routed_experts = 32;
    let mut serving = Serving::default();
    serving.prefill.instances = 2;
    serving.prefill.npus_per_instance = 4;
    serving.prefill.batch_tokens_per_npu = 2_048;
    serving.prefill.redundant = 0;
    serving.prefill.shared_replicas = 8;
    serving.decode.npus_per_instance = 8;
    serving.decode.max_batch_per_npu = slots;
    serving.experts.redundant = 0;
    serving.experts.shared_replicas = 16;
    serving.fidelity.level = level;
    Launch {
        machine: Arc::new(Machine::builtin("mini4").unwrap()),
        model,
        serving,
        calibration: Calibration::builtin(),
        experts: Default::default(),
        seed: 3,
        shards: 2,
        load: Load {
            phase: Phase::Both,
            requests,
            concurrency: None,
        },
    }
}

fn spec(id: u64, prompt_tokens: u32, output_tokens: u32, family: u64) -> RequestSpec {
    RequestSpec {
        id,
        arrival_ps: 0,
        prompt_tokens,
        output_tokens,
        prefix: Prefix::Blocks {
            block_tokens: 512,
            ids: (0..u64::from(prompt_tokens).div_ceil(512))
                .map(|b| family * 1_000 + b)
                .collect(),
        },
    }
}

fn strike_of(die: u32, effect: Effect, start_ps: u64, end_ps: Option<u64>) -> Fault {
    Fault {
        text: "a strike".into(),
        start_ps,
        end_ps,
        effect,
        ways: Ways::Both,
        parts: vec![ActorId(die)],
    }
}

/// Drives a live machine: puts each request in at its time and cancels those with a time to cancel; returns the
/// records, after checking that tokens were handed out in step with them.
fn drive(
    launch: Launch,
    mut specs: Vec<RequestSpec>,
    cancels: &[(u64, u64)],
) -> (Vec<RequestSpec>, Vec<RequestRecord>, Supernode) {
    let mut machine = Supernode::launch_live(launch).unwrap();
    let mut moments: Vec<(u64, Option<u64>)> = specs.iter().map(|s| (s.arrival_ps, None)).collect();
    moments.extend(cancels.iter().map(|&(id, at)| (at, Some(id))));
    moments.sort_by_key(|m| m.0);
    let (mut tokens, mut records, mut out) = (BTreeMap::new(), Vec::new(), Vec::new());
    let mut next = 0;
    for (at, cancel) in moments {
        machine.run_until(at, WHILE).unwrap();
        match cancel {
            Some(id) if id < next as u64 => machine.cancel(id),
            Some(_) => {}
            None => {
                specs[next].arrival_ps = machine.submit(at, specs[next].clone()).0;
                next += 1;
            }
        }
    }
    machine.run_until(u64::MAX, WHILE).unwrap();
    machine.take_deliveries(&mut out);
    for d in out {
        match d.what {
            Delivered::Tokens { count, .. } => *tokens.entry(d.request).or_insert(0) += count,
            Delivered::Ended(record) => {
                let handed_out = tokens.remove(&d.request).unwrap_or(0);
                if record.outcome == Outcome::Completed {
                    assert_eq!(handed_out, record.output_tokens, "{record:?}");
                } else {
                    assert!(handed_out <= record.output_tokens, "{record:?}");
                }
                records.push(*record);
            }
        }
    }
    assert!(tokens.is_empty(), "tokens without an end: {tokens:?}");
    assert_eq!(machine.next_event_ps(), None);
    machine.check().unwrap();
    records.sort_by_key(|r| r.id);
    (specs, records, machine)
}

fn arrivals(n: u64, every_ps: u64) -> Vec<RequestSpec> {
    (0..n)
        .map(|i| {
            let mut s = spec(
                i,
                700 + 389 * (i as u32 % 7),
                4 + 11 * (i as u32 % 5),
                i % 3,
            );
            s.arrival_ps = i * every_ps + i * i * 31;
            s
        })
        .collect()
}

#[test]
fn a_recording_replayed_in_a_batch_run_gives_the_same_latencies() {
    for level in [Fidelity::Step, Fidelity::Message] {
        let (recorded, live, _) = drive(
            launch(Vec::new(), 4, level),
            arrivals(60, 3_000_000_000),
            &[],
        );
        let mut batch = Supernode::launch(launch(recorded, 4, level)).unwrap();
        batch.run(&mut |_| Flow::Continue).unwrap();
        assert_eq!(live.len(), 60);
        assert_eq!(batch.stats().records, live);
    }
}

#[test]
fn a_cancelled_request_frees_its_slot_for_one_that_waits() {
    // 16 dies of 1 slot each: the 17th waits for the end of another, and gets the place of one that is cancelled.
    let long = |id| spec(id, 600, 5_000, id);
    let specs: Vec<_> = (0..17).map(long).collect();
    let (_, all, _) = drive(launch(Vec::new(), 2, Fidelity::Step), specs.clone(), &[]);
    let waiter = all.iter().max_by_key(|r| r.end_ps).unwrap().id as usize;
    let first_end = all.iter().map(|r| r.end_ps).min().unwrap();
    assert!(all[waiter].end_ps > first_end + first_end / 2);
    let second = 1_000_000_000_000;
    let others = all.iter().filter(|r| r.id != waiter as u64);
    let cancels: Vec<_> = others.map(|r| (r.id, second)).collect();
    let (_, some, _) = drive(launch(Vec::new(), 2, Fidelity::Step), specs, &cancels);
    for r in some.iter().filter(|r| r.id != waiter as u64) {
        assert_eq!(r.outcome, Outcome::Cancelled);
        assert!(r.end_ps < second + second / 10, "{r:?}");
    }
    assert_eq!(some[waiter].outcome, Outcome::Completed);
    let sooner = first_end - second;
    assert!(
        some[waiter].end_ps < all[waiter].end_ps - sooner / 2,
        "it did not get a free slot"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn a_request_can_be_cancelled_wherever_it_is(
        cancels in prop::collection::vec((0u64..40, 0u64..150_000_000_000), 1..30),
        slots in prop::sample::select(vec![2u32, 8]),
        prompt in prop::sample::select(vec![600u32, 9_000]),
    ) {
        let mut specs = arrivals(40, 1_000_000_000);
        specs.iter_mut().for_each(|s| *s = RequestSpec { arrival_ps: s.arrival_ps, ..spec(s.id, prompt, 3 + s.output_tokens, s.id % 4) });
        let (_, records, machine) = drive(launch(Vec::new(), slots, Fidelity::Step), specs, &cancels);
        prop_assert_eq!(records.len(), 40);
        for r in &records {
            let asked = cancels.iter().any(|c| c.0 == r.id);
            prop_assert!(r.outcome == Outcome::Completed || asked, "{:?}", r);
        }
        let o = machine.occupancy();
        prop_assert_eq!((o.slots_used, o.kv_tokens, o.backlog_tokens), (0, 0, 0));
    }
}

/// Until a fault is known of, the ranks of a node answer for a drawn step together; after that, each for itself.
#[test]
fn ranks_that_answer_one_by_one_take_as_long_as_a_node_together() {
    let run = |fault: Option<Fault>| {
        let (recorded, _, _) = drive(
            launch(Vec::new(), 4, Fidelity::Step),
            arrivals(60, 3_000_000_000),
            &[],
        );
        let mut machine = Supernode::launch(launch(recorded, 4, Fidelity::Step)).unwrap();
        fault.map(|f| machine.inject(f));
        machine.run(&mut |_| Flow::Continue).unwrap();
        machine.stats()
    };
    // A die that serves nobody is slower long after the last request.
    let later = strike_of(63, Effect::Throttle(0.5), 1_000_000_000_000_000, None);
    let (together, each) = (run(None), run(Some(later)));
    assert!(each.events > together.events);
    assert_eq!(together.records.len(), each.records.len());
    let mean = |s: &supernode_actors::stats::RunStats| {
        let took = s.records.iter().map(|r| (r.end_ps - r.arrival_ps) as f64);
        took.sum::<f64>() / s.records.len() as f64
    };
    let ratio = mean(&together) / mean(&each);
    assert!((ratio - 1.0).abs() < 0.005, "{ratio}");
    let ratio = together.messages.control as f64 / each.messages.control as f64;
    assert!(
        (ratio - 1.0).abs() < 0.01,
        "{ratio} of the control messages"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn a_die_may_be_struck_in_the_middle_of_a_drawn_step(
        die in 16u32..32,
        after_ps in 0u64..40_000_000_000,
        crash in any::<bool>(),
        over_after_ps in prop::sample::select(vec![3_000_000_000u64, 400_000_000_000, 20_000_000_000_000]),
    ) {
        let run = |shards| {
            let mut launched = launch(Vec::new(), 8, Fidelity::Step);
            launched.shards = shards;
            let mut machine = Supernode::launch_live(launched).unwrap();
            for s in arrivals(40, 2_000_000_000) {
                machine.run_until(s.arrival_ps, WHILE).unwrap();
                machine.submit(s.arrival_ps, s);
            }
            let now = machine.now();
            machine.run_until(now + after_ps, WHILE).unwrap();
            let at = machine.now();
            let effect = if crash { Effect::Crash } else { Effect::Hang };
            machine.inject(strike_of(die, effect, at, Some(at + over_after_ps)));
            machine.run_until(u64::MAX, WHILE).unwrap();
            let mut out = Vec::new();
            machine.take_deliveries(&mut out);
            let ended = out.into_iter().filter_map(|d| match d.what {
                Delivered::Ended(record) => Some(*record),
                Delivered::Tokens { .. } => None,
            });
            let mut records: Vec<RequestRecord> = ended.collect();
            records.sort_by_key(|r| r.id);
            (records, machine)
        };
        let (records, machine) = run(1);
        prop_assert_eq!(records.len(), 40);
        prop_assert!(records.iter().all(|r| r.outcome == Outcome::Completed));
        machine.check().unwrap();
        let (others, _) = run(2);
        prop_assert_eq!(records, others, "two shards");
    }
}
