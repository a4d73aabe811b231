//! A machine file that cannot be built is answered with its name, the key, the value and what would be accepted.

use std::path::Path;

use supernode_topology::{Machine, MachineFile, MachineSpec};

fn error(text: &str) -> String {
    Machine::from_toml(text, "my.toml").unwrap_err().to_string()
}

/// CloudMatrix384 with one more line in a section.
fn with(section: &str, line: &str) -> String {
    error(&format!("base = 'cloudmatrix384'\n[{section}]\n{line}\n"))
}

#[test]
fn a_value_out_of_range_is_named_with_what_is_accepted() {
    for (section, line, expected) in [
        (
            "counts",
            "nodes = 0",
            "my.toml: counts.nodes = 0: expected a whole number from 1 to 16384",
        ),
        (
            "counts",
            "nodes = 16385",
            "my.toml: counts.nodes = 16385: expected a whole number from 1 to 16384",
        ),
        (
            "counts",
            "planes = 0",
            "my.toml: counts.planes = 0: expected a whole number from 1 to 1024",
        ),
        (
            "counts",
            "nodes = 16384",
            "my.toml: counts = 4866048 parts in all: expected at most 4000000 dies, CPUs and links together: \
             lower counts.nodes or the parts per node",
        ),
        (
            "die",
            "hbm_gb = 0",
            "my.toml: die.hbm_gb = 0: expected a number above 0, at most 1e9",
        ),
        (
            "die",
            "hbm_gb = -64",
            "my.toml: die.hbm_gb = -64: expected a number above 0, at most 1e9",
        ),
        (
            "die",
            "hbm_gb = nan",
            "my.toml: die.hbm_gb = NaN: expected a number above 0, at most 1e9",
        ),
        (
            "die",
            "hbm_gb = inf",
            "my.toml: die.hbm_gb = inf: expected a number above 0, at most 1e9",
        ),
        (
            "cpu",
            "cores = 0",
            "my.toml: cpu.cores = 0: expected a number above 0, at most 1e9",
        ),
        (
            "vpc",
            "gb_per_s = 1e10",
            "my.toml: vpc.gb_per_s = 10000000000: expected a number above 0, at most 1e9",
        ),
        (
            "counts",
            "planes = 4",
            "my.toml: ub.npu_npu_read.inter_gb_per_s = 164: expected at most 112, the sum of a die's 4 lanes \
             (counts.planes x ub.lane_gb_per_s)",
        ),
        (
            "cpu",
            "ub_gb_per_s = 150",
            "my.toml: ub.npu_cpu_read.intra_gb_per_s = 151: expected at most 150, the rate of a CPU (cpu.ub_gb_per_s)",
        ),
        (
            "ub",
            "switch_hop_ns = 900",
            "my.toml: ub.npu_npu_read.inter_latency_us = 1.9: expected more than 3.000, intra_latency_us and two more \
             switch chips (ub.switch_hop_ns)",
        ),
        (
            "ub.npu_cpu_read",
            "intra_latency_us = 0.3",
            "my.toml: ub.npu_cpu_read.intra_latency_us = 0.3: expected more than 0.300, one switch chip and two lanes \
             (ub.switch_hop_ns, ub.lane_ns)",
        ),
    ] {
        assert_eq!(with(section, line), expected, "[{section}] {line}");
    }
}

#[test]
fn a_wrong_key_or_type_is_named_with_file_line_and_column() {
    let unknown = with("die", "hbm_tb = 1");
    assert!(
        unknown.starts_with("my.toml:3:1: unknown field `hbm_tb`, expected one of `aic_cores`,"),
        "{unknown}"
    );
    for (section, line, expected) in [
        (
            "counts",
            "nodes = -3",
            "my.toml:3:9: nodes: invalid value: integer `-3`, expected a whole number of 1 or more",
        ),
        (
            "counts",
            "nodes = 2.5",
            "my.toml:3:9: nodes: invalid type: floating point `2.5`, expected a whole number of 1 or more",
        ),
        (
            "die",
            "hbm_gb = 'big'",
            "my.toml:3:10: hbm_gb: invalid type: string \"big\", expected a number",
        ),
        (
            "ub",
            "npu_npu_read = 3",
            "my.toml:3:16: npu_npu_read: invalid type: integer `3`, expected a table",
        ),
    ] {
        assert_eq!(with(section, line), expected, "[{section}] {line}");
    }
    let syntax = error("name = 'x'\n[counts\n");
    assert!(syntax.starts_with("my.toml:2:"), "{syntax}");
    assert!(!syntax.contains('\n'), "{syntax:?}");
}

#[test]
fn a_file_without_a_base_has_to_give_every_key() {
    assert_eq!(
        error("name = 'small'\n[counts]\nnodes = 2\n"),
        "my.toml: `counts.npus_per_node` is missing: give it, or set `base` to a built-in machine \
         (cloudmatrix384, half, mini4, mini)"
    );
    assert!(error("").starts_with("my.toml: `name` is missing"));
    assert_eq!(
        error("base = 'mega'"),
        "my.toml: base = \"mega\": expected a built-in machine: cloudmatrix384, half, mini4, mini"
    );
    assert_eq!(
        error("base = 'mini'\nname = ' '"),
        "my.toml: name = \" \": expected 1 to 100 printable characters"
    );
}

#[test]
fn a_base_supplies_what_a_file_does_not_give() {
    let base = Machine::builtin("mini").unwrap().spec;
    let derived = Machine::from_toml("base = 'mini'\n[die]\nhbm_gb = 128\n", "my.toml")
        .unwrap()
        .spec;
    let mut expected = base;
    expected.die.hbm_gb = 128.0;
    assert_eq!(derived, expected);
}

#[test]
fn a_specification_written_out_loads_to_the_same_machine() {
    let spec = Machine::builtin("cloudmatrix384").unwrap().spec;
    let written = toml::to_string(&spec).unwrap();
    assert_eq!(Machine::from_toml(&written, "written").unwrap().spec, spec);
    let schema = schemars::schema_for!(MachineSpec).to_value().to_string();
    assert!(schema.contains("npu_cpu_write") && schema.contains("l2_chips_per_plane"));
    assert!(
        schemars::schema_for!(MachineFile)
            .to_value()
            .to_string()
            .contains("\"base\"")
    );
}

#[test]
fn a_machine_is_found_by_name_or_by_path() {
    assert_eq!(Machine::resolve("mini4").unwrap().node_count(), 4);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("machines/half.toml");
    assert_eq!(
        Machine::resolve(path.to_str().unwrap())
            .unwrap()
            .node_count(),
        24
    );
    let error = Machine::resolve("cloudmatrix").unwrap_err().to_string();
    assert!(
        error.starts_with(
            "machine `cloudmatrix`: not a built-in machine (cloudmatrix384, half, mini4, mini), \
             and not a readable file: "
        ),
        "{error}"
    );
}

#[test]
fn every_figure_of_a_builtin_machine_has_its_source_beside_it() {
    // The rows of the measured table have theirs above them, all in one.
    let table = [
        "inter_gb_per_s",
        "intra_gb_per_s",
        "inter_latency_us",
        "intra_latency_us",
    ];
    let text = Machine::builtin_toml("cloudmatrix384").unwrap();
    for line in text
        .lines()
        .filter(|line| line.contains(" = ") && !line.starts_with('#'))
    {
        let (key, rest) = line.split_once('=').unwrap();
        if key.trim() != "name" && !table.contains(&key.trim()) {
            assert!(
                rest.contains("# source: ") || rest.contains("# assumed: "),
                "{line}"
            );
        }
    }
}
