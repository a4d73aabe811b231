//! The promise: what happens depends on the scenario and the seed, never on shards, threads or transport.

mod common;

use std::time::Duration;

use common::{Msg, State, config, finish, simulation, states};
use proptest::prelude::*;
use supernode_actors::runtime::{Ended, Flow, RuntimeConfig, Transport};

/// All that must be the same.
fn outcome(config: &RuntimeConfig, kicks: &[(u64, u32)], hops: u32) -> (u64, u64, u64, Vec<State>) {
    let mut sim = simulation(config.clone());
    for &(time, to) in kicks {
        sim.inject(
            time,
            to % config.owner.len() as u32,
            Msg::Hop { hops, value: time },
        );
    }
    assert_eq!(finish(&mut sim), Ok(Ended::Finished));
    (sim.digest(), sim.events(), sim.now(), states(&sim, config))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_number_of_shards_executors_and_either_transport_give_the_same_history(
        seed: u64,
        nodes in 4..9u32,
        kicks in prop::collection::vec((0..5_000u64, 0..36u32), 1..12),
        hops in 1..24u32,
    ) {
        let base = config(seed, nodes, 1);
        let want = outcome(&base, &kicks, hops);
        prop_assert!(want.1 >= kicks.len() as u64);
        for shards in [2, 3, 4] {
            for executors in [None, Some(1), Some(2)] {
                for transport in [Transport::Memory, Transport::Bytes] {
                    let config = RuntimeConfig { executors, transport, ..config(seed, nodes, shards) };
                    let got = outcome(&config, &kicks, hops);
                    prop_assert_eq!(&got, &want, "shards {}, executors {:?}, {:?}", shards, executors, transport);
                }
            }
        }
    }

    #[test]
    fn stopping_and_going_on_changes_nothing(
        seed: u64,
        kicks in prop::collection::vec((0..5_000u64, 0..36u32), 1..12),
        stops in prop::collection::vec(1..40_000u64, 0..6),
        executors in 1..3usize,
    ) {
        let want = outcome(&config(seed, 5, 1), &kicks, 20);
        let config = RuntimeConfig { executors: Some(executors), ..config(seed, 5, 2) };
        let mut sim = simulation(config.clone());
        for &(time, to) in &kicks {
            sim.inject(time, to % config.owner.len() as u32, Msg::Hop { hops: 20, value: time });
        }
        let mut until = 0;
        for step in stops {
            until += step;
            let ended = sim.run(Some(until), Duration::ZERO, &mut |_| Flow::Continue).unwrap();
            prop_assert!(ended == Ended::Finished || sim.now() == until);
        }
        finish(&mut sim).unwrap();
        prop_assert_eq!((sim.digest(), sim.events(), states(&sim, &config)), (want.0, want.1, want.3));
    }
}

#[test]
fn another_seed_is_another_history() {
    let kicks = [(0, 0), (0, 5)];
    let of = |seed| outcome(&config(seed, 4, 2), &kicks, 20).0;
    assert_eq!(of(1), of(1));
    assert_ne!(of(1), of(2));
}

#[test]
fn an_observer_that_stops_and_goes_on_changes_nothing() {
    let kicks: Vec<_> = (0..8_000).map(|i| (i * 500, i as u32 % 16)).collect();
    let want = outcome(&config(7, 4, 1), &kicks, 200);
    for (shards, executors) in [(1, 1), (2, 1), (2, 2)] {
        let config = RuntimeConfig {
            executors: Some(executors),
            ..config(7, 4, shards)
        };
        let mut sim = simulation(config.clone());
        for &(time, to) in &kicks {
            sim.inject(
                time,
                to,
                Msg::Hop {
                    hops: 200,
                    value: time,
                },
            );
        }
        let mut seen = 0;
        let mut stops = 0;
        while sim
            .run(None, Duration::ZERO, &mut |report| {
                assert!(report.events >= seen);
                seen = report.events;
                Flow::Stop
            })
            .unwrap()
            == Ended::Stopped
        {
            stops += 1;
        }
        assert!(stops > 0, "the run is too short to be stopped");
        assert_eq!((sim.digest(), sim.events()), (want.0, want.1));
    }
}

#[test]
fn events_injected_at_until_take_part() {
    let run = |pause: Option<u64>| {
        let mut sim = simulation(config(3, 4, 2));
        sim.inject(0, 1, Msg::Hop { hops: 30, value: 0 });
        if let Some(until) = pause {
            sim.run(Some(until), Duration::from_secs(1), &mut |_| Flow::Continue)
                .unwrap();
        }
        sim.inject(12_000, 6, Msg::Hop { hops: 30, value: 1 });
        finish(&mut sim).unwrap();
        (sim.digest(), sim.events())
    };
    assert_eq!(run(Some(12_000)), run(None));
    assert_eq!(run(Some(5_000)), run(None));
}

#[test]
fn until_stops_exactly_before_its_time() {
    let mut sim = simulation(config(3, 4, 2));
    for time in [10, 20, 30] {
        sim.inject(time, 1, Msg::Hop { hops: 0, value: 0 });
    }
    let mut run = |until| {
        let ended = sim
            .run(until, Duration::from_secs(1), &mut |_| Flow::Continue)
            .unwrap();
        (ended, sim.events())
    };
    assert_eq!(run(Some(20)), (Ended::Until, 1));
    assert_eq!(run(Some(21)), (Ended::Until, 2));
    assert_eq!(run(Some(31)), (Ended::Finished, 3));
    assert_eq!(run(None), (Ended::Finished, 3));
}

#[test]
fn the_profile_counts_every_event_by_kind() {
    let mut sim = simulation(RuntimeConfig {
        profile: true,
        ..config(3, 4, 2)
    });
    sim.inject(0, 1, Msg::Hop { hops: 40, value: 0 });
    finish(&mut sim).unwrap();
    let profile = sim.profile();
    assert_eq!(
        profile.iter().map(|k| k.kind).collect::<Vec<_>>(),
        ["follower", "leader"]
    );
    assert_eq!(profile.iter().map(|k| k.events).sum::<u64>(), sim.events());
    assert!(profile.iter().all(|k| k.wall_ns > 0));
}
