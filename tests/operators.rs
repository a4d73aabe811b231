//! Operator figures can be set one by one over the built-in ones, or come from a file, and show in what a run says.

mod common;

use common::{file, refused, stdout_of};
use supernode_actors::compute::Calibration;
use tempfile::tempdir;

const SMALL: [&str; 10] = [
    "run",
    "--json",
    "-",
    "--set",
    "machine=mini",
    "--set",
    "decode.npus_per_instance=16",
    "--requests",
    "64",
    "-q",
];

/// Mean time of a stage of a decode layer on a small machine, in microseconds.
fn dispatch_us(more: &[&str]) -> f64 {
    let mut args = SMALL.to_vec();
    for set in [
        "workload.kind=closed",
        "workload.phase=decode",
        "workload.concurrency_per_npu=8",
        "workload.output_tokens=8",
    ] {
        args.extend(["--set", set]);
    }
    args.extend(more);
    let report: serde_json::Value = serde_json::from_str(&stdout_of(&args)).unwrap();
    report["layer_us"]["decode"]["dispatch"].as_f64().unwrap()
}

#[test]
fn one_figure_set_over_the_built_in_ones_shows_in_the_run() {
    let as_built = dispatch_us(&[]);
    let slower = dispatch_us(&["--set", "operators.dispatch.startup_us=118"]);
    let built_in = Calibration::builtin().dispatch.startup_us;
    let added = 118.0 - built_in;
    // Every dispatch begins so much later, and nothing else changes.
    assert!(
        (slower - as_built - added).abs() < 0.1 * added,
        "{as_built} to {slower} us, {added} us added"
    );
}

#[test]
fn a_file_gives_all_figures_and_single_ones_win_over_it() {
    let dir = tempdir().unwrap();
    let text =
        Calibration::BUILTIN.replace("[dispatch]\nstartup_us = ", "[dispatch]\nstartup_us = 1");
    let path = file(&dir, "operators.toml", &text);
    let by_file = dispatch_us(&["--set", &format!("operators.file={path}")]);
    assert!(by_file > dispatch_us(&[]) + 50.0);
    let back = format!(
        "operators.dispatch.startup_us={}",
        Calibration::builtin().dispatch.startup_us
    );
    let both = dispatch_us(&["--set", &format!("operators.file={path}"), "--set", &back]);
    assert_eq!(both, dispatch_us(&[]));
    // A scenario names the file from where it lies.
    file(
        &dir,
        "scenario.toml",
        "[operators]\nfile = \"operators.toml\"\n",
    );
    let scenario = dir.path().join("scenario.toml");
    assert_eq!(dispatch_us(&[scenario.to_str().unwrap()]), by_file);
}

#[test]
fn wrong_figures_are_refused_by_name() {
    refused(
        &["run", "--set", "operators.gemm.int8_efficiency=1.2"],
        &["operators.gemm.int8_efficiency = 1.2", "share of peak"],
    );
    refused(
        &["run", "--set", "operators.dispatch.startup_us=-1"],
        &["operators.dispatch.startup_us = -1", "at least 0"],
    );
    refused(
        &["run", "--set", "operators.dispatch.start_us=1"],
        &["did you mean operators.dispatch.startup_us?"],
    );
    refused(
        &["run", "--set", "operators.file=nowhere.toml"],
        &["operators.file = \"nowhere.toml\": No such file"],
    );
    let dir = tempdir().unwrap();
    let path = file(&dir, "o.toml", "[gemm]\nint8 = 3\n");
    refused(
        &["run", "--set", &format!("operators.file={path}")],
        &["o.toml:2:1: unknown field `int8`"],
    );
}
