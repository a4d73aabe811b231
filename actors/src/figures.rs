//! What each actor measured of itself in a run, gathered over the shards. Parts that carry equal shares are one entry
//! that says how many it stands for: the lanes of a die or CPU, the links of a node's L1 chips.

use supernode_topology::{ActorId, Machine};

use crate::fabric::{Border, Direction, Fabric};
use crate::layout::Role;
use crate::meter::{Meter, StageSum};
use crate::stats::ActorHist;
use crate::time::Ps;
use crate::world::{Shared, World};

/// One actor, or one direction of a link.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ActorFigures {
    /// The first of `count` actors with neighbouring ids that all have these figures.
    pub first: u32,
    pub count: u32,
    /// "up" or "down" for links, "prefill", "decode" or "" for dies and CPUs.
    pub side: &'static str,
    /// Of each. A message that is spread over all lanes counts on each of them.
    pub messages: u64,
    pub bytes: u64,
    pub lost_bytes: u64,
    /// Time at work, out of the run's.
    pub busy_ps: Ps,
    pub queue: ActorHist,
    pub service: ActorHist,
    pub transfer: ActorHist,
    /// By stage; empty for all but dies.
    pub stages: Vec<StageSum>,
    pub expert_tokens: u64,
}

/// Of all actors that did anything, in the order of their ids.
pub fn figures(worlds: &[World], shared: &Shared) -> Vec<ActorFigures> {
    let m = &shared.machine;
    let mut all = Vec::new();
    for die in 0..m.die_count() {
        all.push(of_die(worlds, shared, die));
    }
    for cpu in 0..m.cpu_count() {
        let actor = shared.cpu_actor(cpu);
        let meter = meter_of(worlds, shared, actor);
        let lanes = [m.cpu_lane(cpu, 0)];
        all.push(ActorFigures {
            bytes: bytes_of(worlds, shared, &lanes),
            busy_ps: meter.busy_ps,
            ..of_meter(actor, "", meter)
        });
    }
    let planes = m.planes();
    let mut links: Vec<(ActorId, u32)> = Vec::new();
    links.extend((0..m.die_count()).map(|d| (m.die_lane(d, 0), planes)));
    links.extend((0..m.cpu_count()).map(|c| (m.cpu_lane(c, 0), planes)));
    let per_node = planes * m.l2_chips_per_plane();
    links.extend((0..m.node_count()).map(|n| (m.uplink(n, 0, 0), per_node)));
    links.extend((0..m.npu_count()).map(|n| (m.sio(n), 1)));
    links.extend((0..m.die_count()).map(|d| (m.rdma(d), 1)));
    links.extend((0..m.node_count()).map(|n| (m.vpc(n), 1)));
    for (first, count) in links {
        let world = &worlds[shared.shard_of(first.0)];
        let link = world.fabric.peek(first);
        for (side, d) in [("up", &link.up), ("down", &link.down)] {
            all.push(of_direction(first, count, side, d));
        }
        if count == per_node && is_uplink(m, first) {
            let node = m.node_of(first) as usize;
            let n = all.len();
            uplinks(&mut all[n - 2..], worlds, m, node, per_node);
        }
    }
    all.retain(|f| f.messages > 0 || f.bytes > 0 || f.busy_ps > 0);
    all
}

fn is_uplink(m: &Machine, id: ActorId) -> bool {
    matches!(m.part(id), supernode_topology::Part::Uplink { .. })
}

/// L1-L2 links pass traffic on without queueing, so all that is known of them is what crossed their node's border.
fn uplinks(both: &mut [ActorFigures], worlds: &[World], m: &Machine, node: usize, per_node: u32) {
    let Border { up, down } = Fabric::border(worlds.iter().map(|w| &w.fabric), node);
    for (f, crossed) in both.iter_mut().zip([up, down]) {
        f.messages = crossed.messages / u64::from(m.l2_chips_per_plane());
        f.bytes = crossed.bytes / u64::from(per_node);
        f.busy_ps = (f.bytes as f64 * 1e3 / m.spec.ub.uplink_gb_per_s) as Ps;
    }
}

fn meter_of(worlds: &[World], shared: &Shared, actor: u32) -> Meter {
    worlds[shared.shard_of(actor)].meters[actor as usize].counted()
}

fn of_meter(actor: u32, side: &'static str, m: Meter) -> ActorFigures {
    ActorFigures {
        first: actor,
        count: 1,
        side,
        messages: m.handled,
        queue: m.queue,
        service: m.service,
        transfer: m.transfer,
        stages: m.stages,
        expert_tokens: m.expert_tokens,
        ..ActorFigures::default()
    }
}

fn of_die(worlds: &[World], shared: &Shared, die: u32) -> ActorFigures {
    let m = &shared.machine;
    let actor = shared.die_actor(die);
    let meter = meter_of(worlds, shared, actor);
    let (side, group) = match shared.layout.roles[die as usize] {
        Role::Idle => ("", None),
        Role::Prefill { group, .. } => ("prefill", Some(&shared.layout.prefill[group as usize])),
        Role::Decode { group, .. } => ("decode", Some(&shared.layout.decode[group as usize])),
    };
    // While its group is in a step or batch, a die works for the share of time that it worked in those that were
    // simulated message by message.
    let group_busy_ps = group.map_or(0, |g| {
        meter_of(worlds, shared, shared.die_actor(g.root())).group_busy_ps
    });
    let share = match meter.stepped_ps {
        0 => 1.0,
        stepped => meter.busy_ps as f64 / stepped as f64,
    };
    let ports = [m.die_lane(die, 0), m.rdma(die)];
    ActorFigures {
        bytes: bytes_of(worlds, shared, &ports),
        busy_ps: (group_busy_ps as f64 * share.min(1.0)) as Ps,
        ..of_meter(actor, side, meter)
    }
}

/// Bytes in and out of a part's ports.
fn bytes_of(worlds: &[World], shared: &Shared, ports: &[ActorId]) -> u64 {
    ports
        .iter()
        .map(|&p| {
            let link = worlds[shared.shard_of(p.0)].fabric.peek(p);
            link.up.bytes + link.down.bytes
        })
        .sum()
}

fn of_direction(first: ActorId, count: u32, side: &'static str, d: &Direction) -> ActorFigures {
    ActorFigures {
        first: first.0,
        count,
        side,
        messages: d.messages,
        bytes: d.bytes / u64::from(count),
        lost_bytes: d.lost_bytes / u64::from(count),
        busy_ps: d.busy_ps,
        queue: d.queue(),
        service: d.service(),
        ..ActorFigures::default()
    }
}
