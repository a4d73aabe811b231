//! Every part has one address that leads back to it; groups and patterns select what they say, each part once; what
//! names nothing is answered with what there is, and with something that does exist.

use std::collections::BTreeSet;

use proptest::prelude::*;
use supernode_topology::{ActorId, Machine, Part};

fn cloudmatrix() -> Machine {
    Machine::builtin("cloudmatrix384").unwrap()
}

fn addresses(m: &Machine, pattern: &str) -> Vec<String> {
    m.select(pattern)
        .unwrap()
        .iter()
        .map(|id| m.address(*id))
        .collect()
}

fn error(pattern: &str) -> String {
    cloudmatrix().select(pattern).unwrap_err().to_string()
}

#[test]
fn each_form_of_the_design_names_its_part() {
    let m = cloudmatrix();
    for (address, part) in [
        (
            "node12/npu3/die1",
            Part::Die {
                node: 12,
                npu: 3,
                die: 1,
            },
        ),
        ("node12/cpu2", Part::Cpu { node: 12, cpu: 2 }),
        ("node12/npu3/die1/ub4", Part::DieLane { die: 199, plane: 4 }),
        ("node12/cpu2/ub4", Part::CpuLane { cpu: 50, plane: 4 }),
        ("node12/npu3/sio", Part::Sio { npu: 99 }),
        ("node12/npu3/die1/rdma", Part::Rdma { die: 199 }),
        (
            "node12/l1.4/up9",
            Part::Uplink {
                node: 12,
                plane: 4,
                chip: 9,
            },
        ),
        ("node12/vpc", Part::Vpc { node: 12 }),
    ] {
        let id = m.parse(address).unwrap();
        assert_eq!(m.part(id), part);
        assert_eq!(m.address(id), address);
        assert_eq!(m.node_of(id), 12);
    }
    assert_eq!(
        (m.rack_of(11), m.rack_of(12), m.npu_of_die(199)),
        (2, 3, 99)
    );
}

#[test]
fn a_group_means_its_chips_links_or_its_nodes_parts() {
    let m = cloudmatrix();
    for (group, expected) in [
        // 16 dies, 4 CPUs, their lanes and ports, 8 on-package links, 112 uplinks, 1 VPC port
        ("node12", 16 + 4 + 20 * 7 + 16 + 8 + 112 + 1),
        ("node12/npu3", 2 + 2 * 7 + 2 + 1),
        ("rack3", 4 * 297),
        // 16 die lanes, 4 CPU lanes, 16 uplinks
        ("node12/l1.4", 36),
        ("plane4", 48 * 36),
        ("plane4/l2.9", 48),
    ] {
        assert_eq!(m.select(group).unwrap().len(), expected, "{group}");
    }
    let rack: BTreeSet<u32> = m
        .select("rack3")
        .unwrap()
        .iter()
        .map(|id| m.node_of(*id))
        .collect();
    assert_eq!(rack, BTreeSet::from([12, 13, 14, 15]));
    let l2 = addresses(&m, "plane4/l2.9");
    assert_eq!(
        (l2[0].as_str(), l2[47].as_str()),
        ("node0/l1.4/up9", "node47/l1.4/up9")
    );
}

#[test]
fn a_die_is_itself_and_its_links_are_below_it() {
    let m = Machine::builtin("mini").unwrap();
    assert_eq!(addresses(&m, "node1/npu3/die1"), ["node1/npu3/die1"]);
    let links: Vec<String> = (0..7)
        .map(|plane| format!("node1/npu3/die1/ub{plane}"))
        .collect();
    assert_eq!(
        addresses(&m, "node1/npu3/die1/*"),
        [&links[..], &["node1/npu3/die1/rdma".to_owned()]].concat()
    );
    assert_eq!(m.select("node1/npu3/die1/**").unwrap().len(), 9);
    assert_eq!(m.select("node1/cpu0/**").unwrap().len(), 8);
}

#[test]
fn patterns_select_what_they_say() {
    let m = cloudmatrix();
    assert_eq!(addresses(&m, "node{1,4}/vpc"), ["node1/vpc", "node4/vpc"]);
    assert_eq!(
        addresses(&m, "node4{6..99}/cpu3"),
        ["node46/cpu3", "node47/cpu3"]
    );
    assert_eq!(
        addresses(&m, "node0/npu{0..1}/die*"),
        [
            "node0/npu0/die0",
            "node0/npu0/die1",
            "node0/npu1/die0",
            "node0/npu1/die1"
        ]
    );
    for (pattern, expected) in [
        ("node{0..7}/npu*/die*/ub{1,4}", 8 * 16 * 2),
        ("node1*/vpc", 11),
        ("**/ub4", 48 * 20),
        ("**/l1.4", 48 * 36),
        ("**/up9", 48 * 7),
        ("node5/**", 297),
        ("*/cpu0", 48),
        ("**/cpu0", 48),
        ("plane*/l2.0", 7 * 48),
        ("rack{0,1}", 8 * 297),
        ("*", 14_256),
        ("**/die1/**", 384 * 9),
    ] {
        assert_eq!(m.select(pattern).unwrap().len(), expected, "{pattern}");
    }
}

#[test]
fn an_unknown_address_is_answered_with_what_there_is() {
    for (pattern, expected) in [
        (
            "node48",
            "node48: this machine has node0 to node47; did you mean node47?",
        ),
        (
            "node12/npu9/die1",
            "node12/npu9/die1: no `npu9`: node12 has npu0 to npu7; did you mean node12/npu7/die1?",
        ),
        (
            "node12/gpu3/die1",
            "node12/gpu3/die1: no `gpu3`: node12 has npu0 to npu7, cpu0 to cpu3, l1.0 to l1.6, vpc; \
             did you mean node12/npu3/die1?",
        ),
        (
            "node12/l1.7",
            "node12/l1.7: no `l1.7`: node12 has l1.0 to l1.6; did you mean node12/l1.6?",
        ),
        (
            "plane4/l2.16",
            "plane4/l2.16: no `l2.16`: plane4 has l2.0 to l2.15; did you mean plane4/l2.15?",
        ),
        (
            "Node12/vpc",
            "Node12/vpc: no `Node12`: this machine has node0 to node47, plane0 to plane6, rack0 to rack11; \
             did you mean node12/vpc?",
        ),
        (
            "node012",
            "node012: this machine has node0 to node47; did you mean node12?",
        ),
        (
            "node12/vpc/ub0",
            "node12/vpc/ub0: node12/vpc has nothing below it; did you mean node12/vpc?",
        ),
        (
            "rack3/node12",
            "rack3/node12: rack3 has no addresses below it; its nodes are addressed as node12 and on; \
             did you mean rack3?",
        ),
        (
            "npu3/die1",
            "npu3/die1: no `npu3`: this machine has node0 to node47, plane0 to plane6, rack0 to rack11; \
             did you mean **/npu3/die1?",
        ),
        (
            "node12/npu{8..9}/die{0,1}",
            "node12/npu{8..9}/die{0,1}: no `npu{8..9}`: node12 has npu0 to npu7; did you mean node12/npu*/die{0,1}?",
        ),
        (
            "node12/npu3/die1/ub7",
            "node12/npu3/die1/ub7: no `ub7`: node12/npu3/die1 has ub0 to ub6; did you mean node12/npu3/die1/ub6?",
        ),
        (
            "**/ub9",
            "**/ub9: no `ub9`: this machine, over all depths, has ub0 to ub6; did you mean **/ub6?",
        ),
        (
            "**/sx",
            "**/sx: no `sx`: this machine, over all depths, has node0 to node47, plane0 to plane6, rack0 to rack11, \
             npu0 to npu7, cpu0 to cpu3, l1.0 to l1.6, vpc, die0 to die1, sio, ub0 to ub6, rdma, up0 to up15, \
             l2.0 to l2.15; did you mean **/sio?",
        ),
        ("", "\"\": an address is wanted, such as node0/npu0/die0"),
        (
            "node{1,4",
            "node{1,4: `{` in `node{1,4` is not closed before the end of the segment: write {1,4} or {0..7}",
        ),
    ] {
        assert_eq!(error(pattern), expected);
    }
}

#[test]
fn one_part_is_wanted_where_a_group_is_given() {
    let m = cloudmatrix();
    assert_eq!(
        m.parse("node12").unwrap_err().to_string(),
        "node12: one part is wanted, and this selects 297 (node12/npu0/die0, …)"
    );
    assert_eq!(m.parse("node12/npu3/s*").unwrap(), m.sio(99));
}

/// Small machines of every shape.
fn machines() -> impl Strategy<Value = Machine> {
    let counts = (
        1..14u32,
        1..4u32,
        1..4u32,
        1..4u32,
        1..5u32,
        1..4u32,
        1..12u32,
    );
    counts.prop_map(|(nodes, npus, dies, cpus, rack, planes, chips)| {
        let text = format!(
            "base = 'mini'\nub.lane_gb_per_s = 200\n[counts]\nnodes = {nodes}\nnpus_per_node = {npus}\n\
             dies_per_npu = {dies}\ncpus_per_node = {cpus}\nnodes_per_rack = {rack}\nplanes = {planes}\n\
             l2_chips_per_plane = {chips}\n"
        );
        Machine::from_toml(&text, "random").unwrap()
    })
}

/// All names under which a pattern may catch an actor: its own, and those of its groups.
fn names(m: &Machine, id: ActorId) -> Vec<String> {
    let node = m.node_of(id);
    let npu = |npu: u32| format!("node{node}/npu{}", npu % m.npus_per_node());
    let mut names = vec![
        m.address(id),
        format!("node{node}"),
        format!("rack{}", m.rack_of(node)),
    ];
    match m.part(id) {
        Part::Die { .. } => names.push(npu(m.npu_of_die(id.0))),
        Part::Rdma { die } => names.push(npu(m.npu_of_die(die))),
        Part::Sio { npu: index } => names.push(npu(index)),
        Part::DieLane { die, plane } => {
            names.extend([
                npu(m.npu_of_die(die)),
                format!("node{node}/l1.{plane}"),
                format!("plane{plane}"),
            ]);
        }
        Part::CpuLane { plane, .. } => {
            names.extend([format!("node{node}/l1.{plane}"), format!("plane{plane}")])
        }
        Part::Uplink { plane, chip, .. } => {
            let l2 = format!("plane{plane}/l2.{chip}");
            names.extend([
                format!("node{node}/l1.{plane}"),
                format!("plane{plane}"),
                l2,
            ]);
        }
        Part::Cpu { .. } | Part::Vpc { .. } => {}
    }
    names
}

/// Patterns without braces, written out from one with them.
fn unfold(pattern: &str) -> Vec<String> {
    let Some((before, rest)) = pattern.split_once('{') else {
        return vec![pattern.to_owned()];
    };
    let (inside, after) = rest.split_once('}').unwrap();
    let items = inside
        .split(',')
        .flat_map(|item| match item.split_once("..") {
            Some((low, high)) => (low.parse::<u32>().unwrap()..=high.parse().unwrap())
                .map(|number| number.to_string())
                .collect(),
            None => vec![item.to_owned()],
        });
    items
        .flat_map(|item| unfold(&format!("{before}{item}{after}")))
        .collect()
}

fn text_matches(pattern: &[u8], text: &[u8]) -> bool {
    match pattern.split_first() {
        None => text.is_empty(),
        Some((b'*', rest)) => (0..=text.len()).any(|skip| text_matches(rest, &text[skip..])),
        Some((first, rest)) => text.first() == Some(first) && text_matches(rest, &text[1..]),
    }
}

fn path_matches(pattern: &[&str], path: &[&str]) -> bool {
    match pattern.split_first() {
        None => path.is_empty(),
        Some((&"**", rest)) => (0..=path.len()).any(|skip| path_matches(rest, &path[skip..])),
        Some((first, rest)) => {
            path.first()
                .is_some_and(|name| text_matches(first.as_bytes(), name.as_bytes()))
                && path_matches(rest, &path[1..])
        }
    }
}

/// The reference: every actor, every name it goes by, every pattern that braces stand for.
fn select_one_by_one(m: &Machine, pattern: &str) -> Vec<ActorId> {
    let patterns = unfold(pattern);
    let patterns: Vec<Vec<&str>> = patterns
        .iter()
        .map(|pattern| pattern.split('/').collect())
        .collect();
    let caught = |name: &String| {
        let path: Vec<&str> = name.split('/').collect();
        patterns.iter().any(|pattern| path_matches(pattern, &path))
    };
    m.actors()
        .filter(|id| names(m, *id).iter().any(caught))
        .collect()
}

/// Turns a name into a pattern, one choice for each segment.
fn blur(name: &str, choices: &[(u8, u32)]) -> String {
    let mut segments = Vec::new();
    for (segment, (choice, number)) in name.split('/').zip(choices) {
        let kind = segment.trim_end_matches(|c: char| c.is_ascii_digit());
        let number = number % 12;
        match choice % 9 {
            0 => segments.push("*".to_owned()),
            1 => segments.push("**".to_owned()),
            2 => segments.extend(["**".to_owned(), segment.to_owned()]),
            3 => segments.push(format!("{kind}*")),
            4 => segments.push(format!("{kind}{{{number}..{}}}", number + 3)),
            5 => segments.push(format!("{{{segment},{kind}{number},x}}")),
            6 => segments.push(format!("{kind}{{{number},0..1}}*")),
            _ => segments.push(segment.to_owned()),
        }
    }
    segments.join("/")
}

proptest! {
    #[test]
    fn every_address_leads_back_to_its_part(m in machines()) {
        let mut seen = BTreeSet::new();
        for id in m.actors() {
            let address = m.address(id);
            prop_assert_eq!(m.parse(&address).unwrap(), id);
            prop_assert!(seen.insert(address), "no address twice");
        }
    }

    #[test]
    fn patterns_select_what_matching_every_name_one_by_one_selects(
        m in machines(),
        actor in any::<prop::sample::Index>(),
        name in any::<prop::sample::Index>(),
        choices in prop::collection::vec(any::<(u8, u32)>(), 4),
    ) {
        let actor = ActorId(actor.index(m.actor_count() as usize) as u32);
        let names = names(&m, actor);
        let pattern = blur(&names[name.index(names.len())], &choices);
        let expected = select_one_by_one(&m, &pattern);
        match m.select(&pattern) {
            Ok(found) => prop_assert_eq!(found, expected, "{}", pattern),
            Err(error) => prop_assert!(expected.is_empty(), "{}", error),
        }
    }

    /// Whatever is typed: an answer or one line, never a panic; and what is suggested exists.
    #[test]
    fn anything_typed_gets_parts_or_one_line(
        text in prop_oneof![
            any::<String>(),
            "(node|plane|rack|l1\\.|npu|Npu|x)[0-9]{0,3}(/(npu|die|l2\\.|cp|ub|up|sio|vpc|\\*|\\*\\*)[0-9{},.]{0,4}){0,5}",
        ],
    ) {
        let m = Machine::builtin("mini").unwrap();
        match m.select(&text) {
            Ok(found) => prop_assert!(!found.is_empty() && found.is_sorted()),
            Err(error) => {
                let message = error.to_string();
                prop_assert!(!message.contains(['\n', '\r']), "{:?}", message);
                if let Some((_, nearest)) = message.rsplit_once("did you mean ") {
                    let nearest = nearest.strip_suffix('?').unwrap();
                    prop_assert!(m.select(nearest).is_ok(), "{} suggests {}", text, nearest);
                }
            }
        }
        let _ = m.parse(&text);
    }
}
