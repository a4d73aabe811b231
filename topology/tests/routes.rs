//! Routes take every link that is up and none that is down, and give the measured latencies and bandwidths.

use std::collections::BTreeSet;

use proptest::prelude::*;
use supernode_topology::{ActorId, HopKind, Machine, Plane, Route};

fn cloudmatrix() -> Machine {
    Machine::builtin("cloudmatrix384").unwrap()
}

fn up(_: ActorId) -> bool {
    false
}

fn route(m: &Machine, from: &str, to: &str, plane: Plane, down: &[&str]) -> Result<Route, String> {
    let down: BTreeSet<ActorId> = down
        .iter()
        .flat_map(|pattern| m.select(pattern).unwrap())
        .collect();
    let (from, to) = (m.parse(from).unwrap(), m.parse(to).unwrap());
    m.route(from, to, plane, &|id| down.contains(&id))
        .map_err(|error| error.to_string())
}

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-9
}

#[test]
fn every_row_of_the_measured_table_comes_out_of_a_route() {
    let m = cloudmatrix();
    // from, to: GB/s read and write, latency read and write
    for (from, to, gb_per_s, latency_us) in [
        (
            "node0/npu0/die0",
            "node1/npu5/die1",
            (164.0, 135.0),
            (1.9, 2.1),
        ),
        (
            "node0/npu0/die0",
            "node0/npu5/die1",
            (167.0, 137.0),
            (1.2, 1.3),
        ),
        ("node0/npu0/die0", "node47/cpu3", (147.0, 107.0), (1.7, 1.9)),
        ("node0/npu0/die0", "node0/cpu0", (151.0, 110.0), (1.0, 1.1)),
    ] {
        let r = route(&m, from, to, Plane::Ub, &[]).unwrap();
        assert!(
            near(r.gb_per_s_read, gb_per_s.0) && near(r.gb_per_s_write, gb_per_s.1),
            "{from} {to}: {r:?}"
        );
        assert_eq!(
            (r.latency_us_read, r.latency_us_write),
            latency_us,
            "{from} {to}"
        );
        let read: f64 = r.hops.iter().map(|hop| hop.latency_us_read).sum();
        let write: f64 = r.hops.iter().map(|hop| hop.latency_us_write).sum();
        assert!(
            near(r.endpoints_us_read + read, latency_us.0),
            "{from} {to}"
        );
        assert!(
            near(r.endpoints_us_write + write, latency_us.1),
            "{from} {to}"
        );
        assert!(r.endpoints_us_read > 0.0 && r.endpoints_us_write > 0.0);
        assert!(
            r.hops
                .iter()
                .all(|hop| hop.latency_us_read > 0.0 && hop.latency_us_write > 0.0)
        );
    }
}

#[test]
fn between_nodes_all_7_sub_planes_and_16_l2_chips_are_used() {
    let r = route(
        &cloudmatrix(),
        "node3/npu1/die0",
        "node9/npu4/die1",
        Plane::Ub,
        &[],
    )
    .unwrap();
    assert_eq!(r.sub_planes.len(), 7);
    assert!(
        r.sub_planes
            .iter()
            .all(|sub| sub.l2_chips == (0..16).collect::<Vec<_>>())
    );
    let hops: Vec<(HopKind, usize)> = r
        .hops
        .iter()
        .map(|hop| (hop.kind, hop.links.len()))
        .collect();
    let expected = [
        (HopKind::LaneOut, 7),
        (HopKind::UplinkOut, 112),
        (HopKind::UplinkIn, 112),
        (HopKind::LaneIn, 7),
    ];
    assert_eq!(hops, expected);
}

#[test]
fn inside_a_node_no_uplink_is_used() {
    let m = cloudmatrix();
    let r = route(&m, "node3/npu1/die0", "node3/cpu2", Plane::Ub, &["**/up*"]).unwrap();
    assert_eq!(r.hops.len(), 2);
    assert_eq!(r.sub_planes.len(), 7);
    assert!(r.same_node && near(r.gb_per_s_read, 151.0));
}

#[test]
fn a_lost_sub_plane_costs_a_seventh_of_the_bandwidth() {
    let m = cloudmatrix();
    for down in [
        "plane4",
        "node3/l1.4",
        "node9/l1.4",
        "node3/npu1/die0/ub4",
        "node9/npu4/die1/ub4",
        "node9/l1.4/*",
    ] {
        let r = route(&m, "node3/npu1/die0", "node9/npu4/die1", Plane::Ub, &[down]).unwrap();
        let planes: Vec<u32> = r.sub_planes.iter().map(|sub| sub.plane).collect();
        assert_eq!(planes, [0, 1, 2, 3, 5, 6], "{down}");
        assert!(
            near(r.gb_per_s_read, 164.0 * 6.0 / 7.0),
            "{down}: {}",
            r.gb_per_s_read
        );
        assert_eq!(r.latency_us_read, 1.9);
    }
}

#[test]
fn a_lost_l1_chip_cuts_traffic_inside_its_node_too() {
    let r = route(
        &cloudmatrix(),
        "node3/npu1/die0",
        "node3/npu2/die0",
        Plane::Ub,
        &["node3/l1.4"],
    )
    .unwrap();
    assert_eq!(r.sub_planes.len(), 6);
}

#[test]
fn a_lost_l2_chip_leaves_the_other_15_and_the_bandwidth() {
    let r = route(
        &cloudmatrix(),
        "node3/npu1/die0",
        "node9/npu4/die1",
        Plane::Ub,
        &["plane4/l2.9"],
    )
    .unwrap();
    for sub in &r.sub_planes {
        assert_eq!(sub.l2_chips.contains(&9), sub.plane != 4);
        assert_eq!(sub.l2_chips.len(), if sub.plane == 4 { 15 } else { 16 });
    }
    assert!(near(r.gb_per_s_read, 164.0));
}

#[test]
fn too_few_uplinks_bound_the_bandwidth_of_a_sub_plane() {
    let m = Machine::from_toml("base = 'mini'\nub.uplink_gb_per_s = 10", "slow.toml").unwrap();
    // Plane 0 keeps two uplinks of 10 GB/s, below its share of 164 / 7 = 23.4 GB/s.
    let down = ["node0/l1.0/up{2..15}"];
    let r = route(&m, "node0/npu0/die0", "node1/npu0/die0", Plane::Ub, &down).unwrap();
    assert!(
        near(r.gb_per_s_read, 164.0 * 6.0 / 7.0 + 20.0),
        "{}",
        r.gb_per_s_read
    );
}

#[test]
fn a_part_that_is_cut_off_is_told_by_what() {
    let m = cloudmatrix();
    let (a, b) = ("node0/npu0/die0", "node1/npu0/die0");
    let cut = route(
        &m,
        a,
        b,
        Plane::Ub,
        &["node0/npu0/die0/ub{0..5}", "node1/l1.6/*"],
    )
    .unwrap_err();
    assert!(
        cut.starts_with(
            "no UB route from node0/npu0/die0 to node1/npu0/die0: no sub-plane is usable: "
        ),
        "{cut}"
    );
    assert!(
        cut.contains("node0/npu0/die0/ub0 is down; node0/npu0/die0/ub1 is down"),
        "{cut}"
    );
    assert!(
        cut.ends_with("no L2 chip of plane6 is reached from both nodes"),
        "{cut}"
    );
    for (from, to, plane, down, expected) in [
        (
            a,
            b,
            Plane::Ub,
            b,
            "no UB route from node0/npu0/die0 to node1/npu0/die0: node1/npu0/die0 is down",
        ),
        (a, b, Plane::Rdma, "**/rdma", "node0/npu0/die0/rdma is down"),
        (a, b, Plane::Vpc, "node1/vpc", "node1/vpc is down"),
        (
            a,
            "node0/npu0/die1",
            Plane::Sio,
            "**/sio",
            "node0/npu0/sio is down",
        ),
        (
            a,
            b,
            Plane::Sio,
            "node9/vpc",
            "only the dies of one NPU are joined by it: use ub",
        ),
        (
            a,
            "node1/cpu0",
            Plane::Rdma,
            "node9/vpc",
            "CPUs have no RDMA port: use ub or vpc",
        ),
        (
            a,
            a,
            Plane::Ub,
            "node9/vpc",
            "both ends are the same part, so nothing has to be sent",
        ),
        (
            a,
            "node1/vpc",
            Plane::Ub,
            "node9/vpc",
            "node1/vpc is a link; routes join dies and CPUs",
        ),
    ] {
        let error = route(&m, from, to, plane, &[down]).unwrap_err();
        assert!(error.ends_with(expected), "{plane} {down}: {error}");
    }
}

#[test]
fn the_other_planes_go_through_their_ports() {
    let m = cloudmatrix();
    let (die, far_die, far_cpu) = ("node0/npu4/die0", "node1/npu3/die1", "node1/cpu3");
    for (to, plane, ports, gb_per_s) in [
        (
            far_die,
            Plane::Rdma,
            vec!["node0/npu4/die0/rdma", "node1/npu3/die1/rdma"],
            25.0,
        ),
        (far_cpu, Plane::Vpc, vec!["node0/vpc", "node1/vpc"], 50.0),
        (
            "node0/cpu0",
            Plane::Vpc,
            vec!["node0/vpc", "node0/vpc"],
            50.0,
        ),
        ("node0/npu4/die1", Plane::Sio, vec!["node0/npu4/sio"], 270.0),
    ] {
        let r = route(&m, die, to, plane, &[]).unwrap();
        let taken: Vec<String> = r
            .hops
            .iter()
            .flat_map(|hop| &hop.links)
            .map(|id| m.address(*id))
            .collect();
        assert_eq!(taken, ports);
        assert_eq!((r.gb_per_s_read, r.gb_per_s_write), (gb_per_s, gb_per_s));
        let hops_us: f64 = r.hops.iter().map(|hop| hop.latency_us_read).sum();
        assert!(near(hops_us, r.latency_us_read) && r.latency_us_read > 0.0);
    }
}

#[test]
fn planes_are_read_by_name() {
    for plane in Plane::ALL {
        assert_eq!(plane.to_string().parse::<Plane>().unwrap(), plane);
    }
    let error = "infiniband".parse::<Plane>().unwrap_err().to_string();
    assert_eq!(
        error,
        "infiniband: no such plane: expected ub, rdma, vpc or sio"
    );
}

/// Small machines of every shape. Links are wide, so that even one carries the measured rates.
fn machines() -> impl Strategy<Value = Machine> {
    (1..5u32, 1..4u32, 1..4u32, 1..4u32, 1..5u32, 1..6u32).prop_map(|(nodes, npus, dies, cpus, planes, chips)| {
        let text = format!(
            "base = 'mini'\nub.lane_gb_per_s = 200\nub.uplink_gb_per_s = 200\n[counts]\nnodes = {nodes}\nnpus_per_node = {npus}\n\
             dies_per_npu = {dies}\ncpus_per_node = {cpus}\nplanes = {planes}\nl2_chips_per_plane = {chips}\n"
        );
        Machine::from_toml(&text, "random").unwrap()
    })
}

proptest! {
    /// The reference tries every single path, link by link.
    #[test]
    fn routes_take_all_links_of_paths_that_are_up_and_no_others(
        m in machines(),
        ends in any::<(prop::sample::Index, prop::sample::Index)>(),
        down_share in 0.0..0.9f64,
        coins in prop::collection::vec(0.0..1.0f64, 400),
    ) {
        let ends_count = (m.die_count() + m.cpu_count()) as usize;
        let from = ActorId(ends.0.index(ends_count) as u32);
        let to = ActorId(ends.1.index(ends_count) as u32);
        prop_assume!(from != to);
        let down = |id: ActorId| m.is_link(id) && coins[id.0 as usize % coins.len()] < down_share;

        let same_node = m.node_of(from) == m.node_of(to);
        let chips = if same_node { 1 } else { m.l2_chips_per_plane() };
        let mut links = BTreeSet::new();
        let mut planes = BTreeSet::new();
        for (plane, chip) in (0..m.planes()).flat_map(|plane| (0..chips).map(move |chip| (plane, chip))) {
            let path = m.ub_path(from, to, plane, chip).unwrap();
            prop_assert_eq!(path.len(), if same_node { 2 } else { 4 });
            if !path.iter().any(|link| down(*link)) {
                links.extend(path);
                planes.insert(plane);
            }
        }

        match m.route(from, to, Plane::Ub, &down) {
            Err(_) => prop_assert!(links.is_empty()),
            Ok(r) => {
                let taken: Vec<ActorId> = r.hops.iter().flat_map(|hop| hop.links.iter().copied()).collect();
                prop_assert_eq!(taken.len(), links.len(), "no link twice");
                prop_assert_eq!(taken.into_iter().collect::<BTreeSet<_>>(), links);
                let used: BTreeSet<u32> = r.sub_planes.iter().map(|sub| sub.plane).collect();
                prop_assert_eq!(&used, &planes);
                prop_assert!(r.hops.iter().all(|hop| hop.links.len() <= hop.links_all as usize));
                let idle = m.route(from, to, Plane::Ub, &up).unwrap();
                let share = planes.len() as f64 / f64::from(m.planes());
                prop_assert!(near(r.gb_per_s_read, idle.gb_per_s_read * share));
                prop_assert!(near(r.gb_per_s_write, idle.gb_per_s_write * share));
            }
        }
    }
}
