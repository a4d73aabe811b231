//! The promise: whatever goes wrong in an actor ends the run with an error that names the actor, what it was
//! handling and the virtual time; never a hang, and the same error on any number of shards.

mod common;

use std::time::Duration;

use common::{Break, Msg, config, finish, simulation};
use supernode_actors::runtime::{Flow, RuntimeConfig, RuntimeError, Simulation, Transport};

/// The error of a run in which actor 5 (node1/actor1) is told to break at 3 us, while others are busy.
fn error_of(what: Break) -> String {
    let run = |shards, executors, transport| {
        let mut sim = simulation(RuntimeConfig {
            executors: Some(executors),
            transport,
            ..config(1, 4, shards)
        });
        for actor in 0..16 {
            sim.inject(0, actor, Msg::Hop { hops: 6, value: 0 });
        }
        sim.inject(3_000_000, 5, Msg::Break(what));
        sim.inject(3_000_000, 14, Msg::Break(what));
        let error = finish(&mut sim).unwrap_err();
        assert_eq!(
            finish(&mut sim),
            Err(error.clone()),
            "a failed simulation stays failed"
        );
        error.to_string()
    };
    let want = run(1, 1, Transport::Memory);
    for (shards, executors) in [(2, 1), (2, 2), (4, 2), (4, 4)] {
        for transport in [Transport::Memory, Transport::Bytes] {
            assert_eq!(
                run(shards, executors, transport),
                want,
                "{shards} shards on {executors} executors"
            );
        }
    }
    want
}

#[test]
fn a_panic_is_named_with_actor_message_and_time() {
    let error = error_of(Break::Panic);
    assert!(
        error.starts_with(
            "node1/actor1 panicked at 3.000000 us while it handled Break(Panic): told to panic ("
        ),
        "{error}"
    );
    assert!(error.contains("common/mod.rs:"), "{error}");
}

#[test]
fn a_panic_in_absorb_names_the_sender_of_the_bulk() {
    let error = error_of(Break::PanicInAbsorb);
    assert!(
        error.starts_with(
            "node1/actor1 panicked at 3.000000 us while it handled a bulk it sent: told to panic in absorb ("
        ),
        "{error}"
    );
}

#[test]
fn a_failure_is_named() {
    assert_eq!(
        error_of(Break::Fail),
        "node1/actor1 failed at 3.000000 us: out of luck"
    );
}

#[test]
fn a_broken_promise_between_shards_is_named() {
    let run = |shards, executors| {
        let mut sim = simulation(RuntimeConfig {
            executors: Some(executors),
            ..config(1, 4, shards)
        });
        sim.inject(3_000_000, 5, Msg::Break(Break::Early));
        finish(&mut sim)
    };
    // On one shard nothing crosses, and nothing is broken.
    assert!(run(1, 1).is_ok());
    for executors in [1, 2] {
        assert_eq!(
            run(2, executors).unwrap_err().to_string(),
            "node1/actor1 promised at 3.000000 us to cause nothing on other shards before 3.001000 us, then sent \
             Hop { hops: 0, value: 9 } to node2/actor1 for 3.000999 us: the lookahead of its class is too large"
        );
    }
}

#[test]
fn a_promise_broken_through_the_own_shard_is_named() {
    assert_eq!(
        error_of(Break::EarlyThroughOwnNode),
        "node1/actor1 promised at 3.000000 us to cause nothing on other shards before 3.050000 us, then sent \
         Hop { hops: 0, value: 9 } to node1/actor1 for 3.048999 us: the lookahead of its class is too large"
    );
}

#[test]
fn a_bulk_that_acts_too_early_is_named() {
    assert_eq!(
        error_of(Break::EarlyBulk),
        "node1/actor1 promised at 3.000000 us to cause nothing on other shards before 3.001000 us, then sent \
         Hop { hops: 0, value: 3 } to node2/actor0 for 3.000000 us: the lookahead of its class is too large"
    );
}

#[test]
fn sending_into_the_past_is_named() {
    assert_eq!(
        error_of(Break::Past),
        "node1/actor1 sent Hop { hops: 0, value: 9 } to node1/actor1 at 3.000000 us for an arrival at 2.999999 us, \
         which is past or beyond the end of time"
    );
}

#[test]
fn an_unknown_receiver_is_named() {
    assert_eq!(
        error_of(Break::Unknown),
        "node1/actor1 sent Hop { hops: 0, value: 9 } to actor 4000000 at 3.000000 us, but there are only 16 actors"
    );
}

#[test]
fn a_full_mailbox_is_named() {
    assert_eq!(
        error_of(Break::Flood),
        "the mailbox of node1/actor1 is full at 3.000000 us: 1000 messages wait, and Hop { hops: 0, value: 9 } \
         from node1/actor1 is one more"
    );
}

#[test]
fn injecting_into_the_past_or_to_nobody_ends_the_next_run() {
    let mut sim = simulation(config(1, 4, 2));
    sim.inject(1_000, 3, Msg::Hop { hops: 0, value: 0 });
    finish(&mut sim).unwrap();
    sim.inject(999, 3, Msg::Hop { hops: 0, value: 0 });
    let error = finish(&mut sim).unwrap_err().to_string();
    assert!(
        error.starts_with(
            "the outside sent Hop { hops: 0, value: 0 } to node0/actor3 at 0.001000 us"
        ),
        "{error}"
    );

    let mut sim = simulation(config(1, 4, 2));
    sim.inject(1_000, 99, Msg::Hop { hops: 0, value: 0 });
    let error = finish(&mut sim).unwrap_err().to_string();
    assert!(
        error.contains("to actor 99 at") && error.ends_with("only 16 actors"),
        "{error}"
    );
}

#[test]
fn a_configuration_that_does_not_fit_says_what_would() {
    let refused = |change: &dyn Fn(&mut RuntimeConfig), models: usize| {
        let mut config = config(1, 4, 2);
        change(&mut config);
        let models = (0..models)
            .map(|_| common::Nodes {
                nodes: 4,
                actors: Vec::new(),
            })
            .collect();
        match Simulation::new(config, models) {
            Err(RuntimeError::Config(text)) => text,
            Err(other) => panic!("not a configuration error: {other}"),
            Ok(_) => panic!("accepted"),
        }
    };
    assert_eq!(
        refused(&|_| (), 3),
        "3 models for 2 shards: there must be one each"
    );
    assert_eq!(
        refused(&|c| c.shards = 0, 0),
        "shards = 0: it must be between 1 and 65535"
    );
    assert_eq!(
        refused(&|c| c.executors = Some(0), 2),
        "executors = 0: it must be at least 1"
    );
    assert_eq!(
        refused(&|c| c.owner = vec![0, 1, 2].into(), 2),
        "owner of actor 2 = 2: it must be below shards = 2"
    );
    assert_eq!(
        refused(&|c| c.lookahead.clear(), 2),
        "lookahead is empty: it needs one time per message class"
    );
    assert_eq!(
        refused(&|c| c.lookahead[1] = 0, 2),
        "lookahead of class 1 = 0: several shards need at least 1 ps"
    );
    assert_eq!(
        refused(&|c| c.mailbox_limit = 0, 2),
        "mailbox_limit = 0: it must be at least 1"
    );
}

#[test]
fn an_endless_instant_can_be_stopped() {
    /// Two actors that send to each other without delay, for ever.
    struct Endless;
    impl supernode_actors::runtime::Model for Endless {
        type Msg = ();
        type Bulk = ();
        fn handle(
            &mut self,
            to: u32,
            _: u32,
            (): (),
            ctx: &mut supernode_actors::runtime::Ctx<'_, Self>,
        ) {
            ctx.send_in(0, to, ());
        }
        fn absorb(&mut self, (): (), _: &mut supernode_actors::runtime::Ctx<'_, Self>) {}
        fn digest((): &()) -> u64 {
            0
        }
        fn address(&self, actor: u32) -> String {
            actor.to_string()
        }
    }
    for shards in [1, 2] {
        let config = RuntimeConfig {
            shards,
            executors: Some(shards),
            owner: (0..2).map(|a| (a % shards) as u16).collect(),
            ..RuntimeConfig::single(1, 2)
        };
        let mut sim = Simulation::new(config, (0..shards).map(|_| Endless).collect()).unwrap();
        sim.inject(5, 0, ());
        let ended = sim
            .run(None, Duration::from_millis(30), &mut |_| Flow::Stop)
            .unwrap();
        assert_eq!(ended, supernode_actors::runtime::Ended::Stopped);
        assert_eq!(sim.now(), 5);
    }
}
