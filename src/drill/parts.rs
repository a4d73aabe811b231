//! Losses of every kind of part, by what the part does in serving.

use supernode_actors::layout::{Layout, Role};
use supernode_actors::runtime::Rng;
use supernode_topology::Machine;

use super::Drill;
use crate::fault::time_text;

/// What a die, and a node all of whose dies are alike, is there for.
const ROLES: [&str; 3] = ["prefill", "decode", "idle"];

fn role_of(layout: &Layout, die: u32) -> usize {
    match layout.roles[die as usize] {
        Role::Prefill { .. } => 0,
        Role::Decode { .. } => 1,
        Role::Idle => 2,
    }
}

/// Up to `samples` parts of each kind, drawn by `seed`, each lost for good from `at_ps` on.
pub fn one_of_each(
    machine: &Machine,
    layout: &Layout,
    samples: u32,
    seed: u64,
    at_ps: u64,
) -> Vec<Drill> {
    let at = time_text(at_ps);
    let mut rng = Rng::new(seed, 0x6472_696c_6c73);
    let mut drills = Vec::new();
    for (kind, word, mut addresses) in kinds(machine, layout) {
        for _ in 0..samples.min(addresses.len() as u32) {
            let i = rng.below(addresses.len() as u64) as usize;
            let address = addresses.swap_remove(i);
            let line = format!("at {at}: {word} {address}");
            drills.push(Drill::of_line(&kind, line));
        }
    }
    drills
}

type Kind = (String, &'static str, Vec<String>);

/// Each kind, the word for its loss, and all parts of the kind.
fn kinds(m: &Machine, layout: &Layout) -> Vec<Kind> {
    let mut kinds: Vec<Kind> = Vec::new();
    for (role, name) in ROLES.into_iter().enumerate() {
        let roots: Vec<u32> = match role {
            0 => layout.prefill.iter().map(|g| g.root()).collect(),
            1 => layout.decode.iter().map(|g| g.root()).collect(),
            _ => Vec::new(),
        };
        let is = |die: &u32| role_of(layout, *die) == role;
        let dies: Vec<u32> = (0..m.die_count()).filter(is).collect();
        let others = dies.iter().copied().filter(|d| !roots.contains(d));
        let nodes: Vec<u32> = (0..m.node_count())
            .filter(|n| (0..m.dies_per_node()).all(|d| is(&(n * m.dies_per_node() + d))))
            .collect();
        let per_node = |n: u32| {
            nodes
                .iter()
                .flat_map(move |node| (0..n).map(move |i| node * n + i))
                .collect::<Vec<u32>>()
        };
        let (npus, cpus) = (per_node(m.npus_per_node()), per_node(m.cpus_per_node()));
        let npu = |n: &u32| {
            let (node, npu) = (n / m.npus_per_node(), n % m.npus_per_node());
            format!("node{node}/npu{npu}/*")
        };
        let crash: [(&str, Vec<String>); 5] = [
            (
                "first die",
                roots.iter().map(|&d| m.address(m.die(d))).collect(),
            ),
            ("die", others.map(|d| m.address(m.die(d))).collect()),
            ("NPU", npus.iter().map(npu).collect()),
            ("CPU", cpus.iter().map(|&c| m.address(m.cpu(c))).collect()),
            ("node", nodes.iter().map(|n| format!("node{n}")).collect()),
        ];
        let lanes = |of: &[u32], lane: &dyn Fn(u32, u32) -> String| -> Vec<String> {
            let planes = |d: &u32| (0..m.planes()).map(|p| lane(*d, p)).collect::<Vec<_>>();
            of.iter().flat_map(planes).collect()
        };
        let chips = |n: u32, p: u32| (0..m.l2_chips_per_plane()).map(move |c| (n, p, c));
        let uplinks = nodes
            .iter()
            .flat_map(|&n| (0..m.planes()).flat_map(move |p| chips(n, p)));
        let down: [(&str, Vec<String>); 7] = [
            (
                "die's UB lane",
                lanes(&dies, &|d, p| m.address(m.die_lane(d, p))),
            ),
            (
                "CPU's UB lane",
                lanes(&cpus, &|c, p| m.address(m.cpu_lane(c, p))),
            ),
            (
                "UB uplink",
                uplinks
                    .map(|(n, p, c)| m.address(m.uplink(n, p, c)))
                    .collect(),
            ),
            ("L1 chip", lanes(&nodes, &|n, p| format!("node{n}/l1.{p}"))),
            (
                "SIO link",
                npus.iter().map(|&n| m.address(m.sio(n))).collect(),
            ),
            (
                "RDMA link",
                dies.iter().map(|&d| m.address(m.rdma(d))).collect(),
            ),
            (
                "VPC link",
                nodes.iter().map(|&n| m.address(m.vpc(n))).collect(),
            ),
        ];
        let all = [("crash", &crash[..]), ("down", &down[..])];
        for (word, of_word) in all {
            for (kind, addresses) in of_word {
                kinds.push((format!("{name} {kind}"), word, addresses.clone()));
            }
        }
    }
    let planes: Vec<String> = (0..m.planes()).map(|p| format!("plane{p}")).collect();
    let chips = |p: u32| (0..m.l2_chips_per_plane()).map(move |c| format!("plane{p}/l2.{c}"));
    kinds.push((
        "L2 chip".into(),
        "down",
        (0..m.planes()).flat_map(chips).collect(),
    ));
    kinds.push(("sub-plane".into(), "down", planes));
    kinds
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Plan;
    use supernode_actors::config::Serving;

    #[test]
    fn every_kind_of_part_has_a_loss_that_can_be() {
        let machine = Machine::builtin("cloudmatrix384").unwrap();
        let layout = Layout::new(&machine, &Serving::default(), true, true).unwrap();
        let drills = one_of_each(&machine, &layout, 2, 1, 5_000_000_000_000);
        // Two each of 12 kinds in three roles and two of switches, but for roots: idle dies have none, decode one.
        assert_eq!(drills.len(), 2 * (3 * 12 + 2) - 3);
        let mut lines: Vec<String> = drills.iter().map(|d| d.lines[0].clone()).collect();
        for line in &lines {
            let plan = Plan::read(&[], std::slice::from_ref(line), &machine, 1.0).unwrap();
            assert!(
                !plan.resolve(&machine).unwrap()[0].parts.is_empty(),
                "{line}"
            );
        }
        assert!(lines[0].starts_with("at 5s: crash node"), "{}", lines[0]);
        lines.sort();
        lines.dedup();
        assert_eq!(lines.len(), drills.len());
        let again = one_of_each(&machine, &layout, 2, 1, 5_000_000_000_000);
        assert_eq!(again, drills);
        assert_ne!(
            one_of_each(&machine, &layout, 2, 2, 5_000_000_000_000),
            drills
        );
    }
}
