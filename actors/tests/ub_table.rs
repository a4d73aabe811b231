//! Every row of the measured table of UB transfers (arXiv 2506.12708, Table 1) comes out of the actors within 3%:
//! latency from one message of 512 B, bandwidth from one large transfer.

use std::sync::Arc;

use supernode_actors::fault::{Effect, Fault, Ways};
use supernode_actors::launch::Supernode;
use supernode_topology::Machine;

/// (part that holds the data, read?, GB/s, µs); `node0/npu0/die0` reads or writes. The published values, not those of
/// the spec file: a slip there must show.
const ROWS: [(&str, bool, f64, f64); 8] = [
    ("node1/npu0/die0", true, 164.0, 1.9),
    ("node0/npu5/die0", true, 167.0, 1.2),
    ("node1/npu0/die0", false, 135.0, 2.1),
    ("node0/npu5/die0", false, 137.0, 1.3),
    ("node1/cpu2", true, 147.0, 1.7),
    ("node0/cpu2", true, 151.0, 1.0),
    ("node1/cpu2", false, 107.0, 1.9),
    ("node0/cpu2", false, 110.0, 1.1),
];

#[test]
fn each_row_of_the_measured_table_comes_out_of_the_actors() {
    let machine = Arc::new(Machine::builtin("cloudmatrix384").unwrap());
    let die = machine.parse("node0/npu0/die0").unwrap();
    for (holder, read, gb_per_s, us) in ROWS {
        let holder_id = machine.parse(holder).unwrap();
        let took_us = |bytes| {
            let mut quiet = Supernode::quiet(Arc::clone(&machine)).unwrap();
            quiet.copy(die, holder_id, bytes, read).unwrap() as f64 / 1e6
        };
        let latency = took_us(512);
        assert!(
            (latency / us - 1.0).abs() < 0.03,
            "{holder} read {read}: {latency} us, published {us}"
        );
        let bytes = 1u64 << 30;
        let bandwidth = bytes as f64 / took_us(bytes) / 1e3;
        assert!(
            (bandwidth / gb_per_s - 1.0).abs() < 0.03,
            "{holder} read {read}: {bandwidth} GB/s, published {gb_per_s}"
        );
    }
}

/// Microseconds that copies of so many bytes take once senders have found out that all links of `lost` are down.
fn without(lost: &str, holder: &str, read: bool, bytes: &[u64]) -> Vec<f64> {
    let machine = Arc::new(Machine::builtin("cloudmatrix384").unwrap());
    let part = |a| machine.parse(a).unwrap();
    let (die, holder) = (part("node0/npu0/die0"), part(holder));
    let mut quiet = Supernode::quiet(Arc::clone(&machine)).unwrap();
    let mut parts = machine.select(lost).unwrap();
    parts.retain(|&p| machine.is_link(p));
    quiet.inject(Fault {
        text: format!("at 0s: down {lost}"),
        start_ps: 0,
        end_ps: None,
        effect: Effect::Down,
        ways: Ways::Both,
        parts,
    });
    let mut copy = |bytes| quiet.copy(die, holder, bytes, read).unwrap() as f64 / 1e6;
    // Two that find out, one at each end.
    copy(1 << 24);
    copy(1 << 24);
    bytes.iter().map(|&b| copy(b)).collect()
}

#[test]
fn a_lost_sub_plane_costs_a_seventh_of_the_bandwidth_and_no_latency() {
    for (holder, read, gb_per_s, us) in ROWS {
        let took_us = without("plane4", holder, read, &[512, 1 << 30]);
        let bandwidth = f64::from(1 << 30) / took_us[1] / 1e3;
        let share = bandwidth / gb_per_s;
        assert!(
            (share * 7.0 / 6.0 - 1.0).abs() < 0.03,
            "{holder} read {read}: {share} of the published bandwidth"
        );
        assert!(
            (took_us[0] / us - 1.0).abs() < 0.03,
            "{holder}: {took_us:?}"
        );
        // One L2 chip of sixteen is in nobody's way.
        let took_us = without("plane4/l2.9", holder, read, &[1 << 30]);
        let share = f64::from(1 << 30) / took_us[0] / 1e3 / gb_per_s;
        assert!((share - 1.0).abs() < 0.03, "{holder} read {read}: {share}");
    }
}

#[test]
fn a_port_is_free_again_after_a_copy_and_odd_copies_are_refused() {
    let machine = Arc::new(Machine::builtin("mini4").unwrap());
    let part = |a| machine.parse(a).unwrap();
    let mut quiet = Supernode::quiet(Arc::clone(&machine)).unwrap();
    let one = quiet
        .copy(part("node0/npu0/die0"), part("node1/cpu0"), 1 << 20, true)
        .unwrap();
    let after = quiet
        .copy(part("node0/npu0/die0"), part("node1/cpu0"), 1 << 20, true)
        .unwrap();
    assert_eq!(one, after, "a port that is free again serves at once");
    assert!(
        quiet
            .copy(part("node0/cpu0"), part("node1/cpu0"), 1, true)
            .is_err()
    );
}
