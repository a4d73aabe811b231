//! Every actor in its place: the load dealt over homes, boards for groups, the actors of each shard, and what is put
//! into the machine before it runs.

use std::collections::VecDeque;
use std::sync::Arc;

use supernode_topology::ActorId;

use super::{Load, Phase};
use crate::beats::Beats;
use crate::cpu::{Cpu, Home, Source, Store, WeightStore};
use crate::die::Die;
use crate::fabric::{Board, Fabric, Health, Shape};
use crate::fault::Body;
use crate::layout::{Group, Layout, Role};
use crate::message::Msg;
use crate::meter::Meter;
use crate::object_store::ObjectStore;
use crate::request::RequestSpec;
use crate::runtime::Actor;
use crate::tally::Tally;
use crate::time::Ps;
use crate::trace::Recorder;
use crate::world::{Shared, World};

/// The actors of all shards, by shard.
pub(super) fn worlds(load: &Load, shared: &Arc<Shared>) -> Vec<World> {
    let mut homes = deal(load, shared);
    let shards = 0..shared.shards;
    shards
        .map(|shard| world(shard, &mut homes, shared))
        .collect()
}

fn world(shard: u32, homes: &mut [Option<Source>], shared: &Arc<Shared>) -> World {
    let machine = &shared.machine;
    let here = |node: u32| Layout::shard_of_node(node, shared.shards) == shard;
    let dies = (0..machine.die_count())
        .map(|d| here(shared.node_of_die(d)).then(|| Box::new(Die::new(d, shared))))
        .collect();
    let cpus = (0..machine.cpu_count())
        .map(|c| {
            here(c / machine.cpus_per_node()).then(|| {
                let source = homes[c as usize].take();
                Box::new(Cpu {
                    index: c,
                    home: Home::new(c, source.expect("each CPU is on one shard")),
                    store: Store::new(c, shared),
                    weights: WeightStore::new(c, shared),
                    body: Body::default(),
                    beats: Beats::default(),
                })
            })
        })
        .collect();
    let health = Health::new(machine, &shared.serving.recovery);
    let parts = machine.die_count() + machine.cpu_count();
    let weights = shared.weights.as_ref().filter(|_| shard == 0);
    let latency_ps = shared.paths.vpc.latency_ps;
    World {
        shared: Arc::clone(shared),
        dies,
        cpus,
        object_store: weights.map(|w| ObjectStore::new(w.object_store, latency_ps)),
        fabric: Fabric::new(machine, boards(shared, shard), health),
        tally: Tally::default(),
        meters: vec![Meter::default(); parts as usize],
        trace: Recorder::default(),
        struck: false,
    }
}

/// The shard of each actor.
pub(super) fn owners(shared: &Shared) -> Arc<[u16]> {
    let (machine, shards) = (&shared.machine, shared.shards);
    let of_machine = (0..machine.actor_count())
        .map(|a| Layout::shard_of_node(machine.node_of(ActorId(a)), shards) as u16);
    // Object storage is the actor after all those of the machine.
    of_machine
        .chain(shared.weights.as_ref().map(|_| 0))
        .collect()
}

/// What happens without a cause inside the machine: the first arrival at each home, loads of weights, switches.
pub(super) fn starts(worlds: &[World], shared: &Shared) -> Vec<(Ps, Actor, Msg)> {
    let mut starts = weight_starts(shared);
    let mut arrivals: Vec<(u32, Ps)> = worlds
        .iter()
        .flat_map(|w| w.cpus.iter().flatten())
        .filter_map(|c| {
            let at = c.home.first_arrival_ps()?;
            Some((shared.cpu_actor(c.index), at))
        })
        .collect();
    arrivals.sort_unstable();
    starts.extend(
        arrivals
            .into_iter()
            .map(|(cpu, at)| (at, cpu, Msg::Arrival)),
    );
    starts
}

fn weight_starts(shared: &Shared) -> Vec<(Ps, Actor, Msg)> {
    let Some(plan) = &shared.weights else {
        return Vec::new();
    };
    let roles = shared.layout.roles.iter().enumerate();
    let serving = roles.filter(|(_, role)| **role != Role::Idle);
    let dies: Vec<Actor> = serving.map(|(d, _)| shared.die_actor(d as u32)).collect();
    let homes = shared.layout.homes.iter();
    let homes: Vec<Actor> = homes.map(|&c| shared.cpu_actor(c)).collect();
    let mut starts = Vec::new();
    let mut all = |at_ps: Ps, to: &[Actor], msg: Msg| {
        starts.extend(to.iter().map(|&actor| (at_ps, actor, msg.clone())));
    };
    if plan.loads_at_start {
        all(0, &dies, Msg::LoadModel { model: 0 });
    }
    if let Some(switch) = plan.switch {
        all(switch.at_ps, &homes, Msg::SwitchModel);
        all(switch.drained_ps, &homes, Msg::DrainOver);
        all(switch.over_ps, &dies, Msg::SwitchOver);
        all(switch.over_ps, &homes, Msg::SwitchOver);
    }
    starts
}

/// Deals the load over the homes: requests in turn, and streams of a closed loop in turn.
fn deal(load: &Load, shared: &Shared) -> Vec<Option<Source>> {
    let homes = shared.layout.homes.len();
    let mut queues: Vec<VecDeque<RequestSpec>> = vec![VecDeque::new(); homes];
    match load.concurrency {
        None => {
            for r in &load.requests {
                queues[r.id as usize % homes].push_back(r.clone());
            }
            queues.into_iter().map(|q| Some(Source::Open(q))).collect()
        }
        Some(streams) => {
            let used = homes.min(streams.max(1) as usize);
            for (i, r) in load.requests.iter().enumerate() {
                queues[i % used].push_back(r.clone());
            }
            let dies: Vec<u32> = shared
                .layout
                .decode
                .iter()
                .flat_map(|g| g.dies.iter().copied())
                .collect();
            let mut of_home: Vec<Vec<Option<u32>>> = vec![Vec::new(); homes];
            for s in 0..streams as usize {
                let die =
                    (shared.phase == Phase::Decode).then(|| shared.die_actor(dies[s % dies.len()]));
                of_home[s % used].push(die);
            }
            queues
                .into_iter()
                .zip(of_home)
                .map(|(requests, streams)| Some(Source::Closed { requests, streams }))
                .collect()
        }
    }
}

/// A board for each group, as `shard` sees it.
fn boards(shared: &Shared, shard: u32) -> Vec<Board> {
    let machine = &shared.machine;
    let make = |group: &Group, slots: u32, channels: u32| {
        let shard_of_rank: Vec<usize> = group
            .node_of_rank
            .iter()
            .map(|&node| Layout::shard_of_node(node, shared.shards) as usize)
            .collect();
        let shape = Shape::new(
            group.node_of_rank.clone(),
            group.dies.iter().map(|&d| machine.npu_of_die(d)).collect(),
            &shard_of_rank,
            shard as usize,
            slots as usize,
        );
        Board::new(shape, channels, shared.paths.npu_npu_write)
    };
    let slots =
        |e: &Option<crate::experts::ExpertLayers>| e.as_ref().map_or(1, |e| e.slots_per_rank);
    shared
        .layout
        .prefill
        .iter()
        .map(|g| make(g, slots(&shared.prefill_experts), 2))
        .chain(
            shared
                .layout
                .decode
                .iter()
                .map(|g| make(g, slots(&shared.decode_experts), 1)),
        )
        .collect()
}
