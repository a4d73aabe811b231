//! A CloudMatrix384 has the parts that are published of it, one by one, and other machines follow from their counts.

use supernode_topology::{Machine, Part};

fn machine(name: &str) -> Machine {
    Machine::builtin(name).unwrap()
}

fn count(machine: &Machine, pattern: &str) -> usize {
    machine.select(pattern).unwrap().len()
}

#[test]
fn cloudmatrix384_has_every_published_part() {
    let m = machine("cloudmatrix384");
    assert_eq!(
        (m.node_count(), m.npu_count(), m.die_count(), m.cpu_count()),
        (48, 384, 768, 192)
    );
    assert_eq!(
        (m.planes(), m.l2_chips_per_plane(), m.rack_count()),
        (7, 16, 12)
    );
    // 768 x 7 die lanes, 192 x 7 CPU lanes, 48 x 7 x 16 uplinks, 384 die-to-die links.
    let kinds: Vec<(&str, u64)> = m
        .inventory()
        .iter()
        .map(|(kind, count, _)| (*kind, *count))
        .collect();
    assert_eq!(
        kinds,
        [
            ("die", 768),
            ("cpu", 192),
            ("die lane", 5_376),
            ("cpu lane", 1_344),
            ("uplink", 5_376),
            ("sio", 384),
            ("rdma port", 768),
            ("vpc port", 48),
        ]
    );
    assert_eq!(m.actor_count(), 14_256);
}

#[test]
fn patterns_count_the_same_parts_as_the_inventory() {
    let m = machine("cloudmatrix384");
    assert_eq!(count(&m, "node*/npu*/die*"), 768);
    assert_eq!(count(&m, "node*/cpu*"), 192);
    assert_eq!(count(&m, "**/die*/ub*"), 5_376);
    assert_eq!(count(&m, "**/cpu*/ub*"), 1_344);
    assert_eq!(count(&m, "**/up*"), 5_376);
    assert_eq!(count(&m, "**/sio"), 384);
    assert_eq!(count(&m, "**/rdma"), 768);
    assert_eq!(count(&m, "*/vpc"), 48);
    assert_eq!(count(&m, "**"), 14_256);
    assert_eq!(count(&m, "all"), 14_256);
}

#[test]
fn every_builtin_machine_adds_up() {
    let nodes = [
        ("cloudmatrix384", 48),
        ("half", 24),
        ("mini4", 4),
        ("mini", 2),
    ];
    assert_eq!(Machine::BUILTIN, nodes.map(|(name, _)| name));
    for (name, nodes) in nodes {
        let m = machine(name);
        assert_eq!(m.node_count(), nodes, "{name}");
        assert_eq!(m.spec.name, name);
        let parts: u64 = m.inventory().iter().map(|(_, count, _)| count).sum();
        assert_eq!(parts, u64::from(m.actor_count()), "{name}");
        // 16 dies with 7 lanes and a port, 4 CPUs with 7 lanes, 112 uplinks, 8 on-package links, 1 VPC port.
        assert_eq!(
            m.actor_count(),
            nodes * (16 * 9 + 4 * 8 + 112 + 8 + 1),
            "{name}"
        );
    }
    assert!(Machine::builtin("cloudmatrix385").is_none());
}

#[test]
fn groups_that_are_not_actors_are_counted_too() {
    let groups: Vec<(&str, u64)> = machine("cloudmatrix384")
        .groups()
        .iter()
        .map(|(kind, count, _)| (*kind, *count))
        .collect();
    assert_eq!(
        groups,
        [
            ("rack", 12),
            ("node", 48),
            ("npu", 384),
            ("sub-plane", 7),
            ("L1 chip", 336),
            ("L2 chip", 112)
        ]
    );
}

#[test]
fn the_inventory_says_what_each_part_is() {
    let m = machine("cloudmatrix384");
    let lines = m.inventory().into_iter().chain(m.groups());
    let text: String = lines
        .map(|(kind, count, what)| format!("{count} {kind}: {what}\n"))
        .collect();
    insta::assert_snapshot!(text, @r"
    768 die: 24 cube and 48 vector cores, 376 TFLOPS BF16, 752 TOPS INT8, 64 GB HBM at 1600 GB/s
    192 cpu: 80 cores, 512 GB DRAM at 332.8 GB/s
    5376 die lane: UB, die to L1 chip, 28 GB/s each way
    1344 cpu lane: UB, CPU to L1 chip, 22.9 GB/s each way
    5376 uplink: UB, L1 chip to L2 chip, 28 GB/s each way
    384 sio: die to die on one NPU, 270 GB/s each way
    768 rdma port: die to RoCE plane, 25 GB/s each way
    48 vpc port: node to VPC plane, 50 GB/s each way
    12 rack: 4 nodes
    48 node: 8 NPUs, 4 CPUs, 7 L1 switch chips
    384 npu: 2 dies on one package
    7 sub-plane: 16 L2 chips, one L1 chip of each node
    336 L1 chip: 36 links: lanes of its node, and uplinks
    112 L2 chip: 48 links, one to each node
    ");
}

#[test]
fn eight_supernodes_in_one_machine_load() {
    let m = Machine::from_toml(
        "base = 'cloudmatrix384'\nname = 'eight'\ncounts.nodes = 384",
        "eight.toml",
    )
    .unwrap();
    assert_eq!(m.die_count(), 6_144);
    assert_eq!(m.actor_count(), 8 * 14_256);
    assert_eq!(
        m.part(m.parse("node383/npu7/die1").unwrap()),
        Part::Die {
            node: 383,
            npu: 7,
            die: 1
        }
    );
    assert_eq!(count(&m, "plane6/l2.15"), 384);
}

#[test]
fn ids_follow_the_documented_layout() {
    let m = machine("cloudmatrix384");
    assert_eq!(
        m.parse("node12/npu3/die1").unwrap(),
        m.die(12 * 16 + 3 * 2 + 1)
    );
    assert_eq!(m.parse("node12/npu3/die1").unwrap().0, 199);
    assert_eq!(m.parse("node12/cpu2").unwrap().0, 768 + 12 * 4 + 2);
    assert_eq!(
        m.parse("node12/npu3/die1/ub4").unwrap().0,
        960 + 199 * 7 + 4
    );
    assert_eq!(
        m.parse("node12/cpu2/ub4").unwrap().0,
        960 + 5_376 + 50 * 7 + 4
    );
    assert_eq!(
        m.parse("node12/l1.4/up9").unwrap().0,
        7_680 + (12 * 7 + 4) * 16 + 9
    );
    assert_eq!(m.parse("node12/npu3/sio").unwrap().0, 13_056 + 12 * 8 + 3);
    assert_eq!(m.parse("node12/npu3/die1/rdma").unwrap().0, 13_440 + 199);
    assert_eq!(m.parse("node12/vpc").unwrap().0, 14_208 + 12);
    for id in m.actors() {
        let rebuilt = match m.part(id) {
            Part::Die { node, npu, die } => m.die((node * 8 + npu) * 2 + die),
            Part::Cpu { node, cpu } => m.cpu(node * 4 + cpu),
            Part::DieLane { die, plane } => m.die_lane(die, plane),
            Part::CpuLane { cpu, plane } => m.cpu_lane(cpu, plane),
            Part::Uplink { node, plane, chip } => m.uplink(node, plane, chip),
            Part::Sio { npu } => m.sio(npu),
            Part::Rdma { die } => m.rdma(die),
            Part::Vpc { node } => m.vpc(node),
        };
        assert_eq!(rebuilt, id);
    }
}
