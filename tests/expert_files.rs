//! Files of expert load and placement: what is in them shows in a run, and what is wrong with them is said.

mod common;

use std::fmt::Write;

use common::{file, gzip, real_workloads, refused, stdout_of};
use tempfile::{TempDir, tempdir};

const LAYERS: usize = 58;
const EXPERTS: usize = 256;

/// A decode instance of 16 NPUs (32 dies) in a closed loop, message by message.
const DECODE: [&str; 9] = [
    "run",
    "-q",
    "--json=-",
    "--set=machine=mini",
    "--set=decode.npus_per_instance=16",
    "--set=workload.kind=closed",
    "--set=workload.phase=decode",
    "--set=workload.concurrency_per_npu=8",
    "--set=workload.output_tokens=4",
];

fn report(more: &[&str]) -> serde_json::Value {
    let mut args = DECODE.to_vec();
    args.extend(["--requests=128", "--set=fidelity.level=message"]);
    args.extend(more);
    serde_json::from_str(&stdout_of(&args)).unwrap()
}

fn imbalance(more: &[&str]) -> f64 {
    report(more)["experts"]["load_max_over_mean"]
        .as_f64()
        .unwrap()
}

fn npy(shape: &str, values: &[i32]) -> Vec<u8> {
    let header = format!("{{'descr': '<i4', 'fortran_order': False, 'shape': {shape}, }}\n");
    let mut raw = b"\x93NUMPY\x01\x00".to_vec();
    raw.extend((header.len() as u16).to_le_bytes());
    raw.extend(header.as_bytes());
    raw.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    raw
}

/// A map over `ranks` ranks: expert `e` on rank `e * ranks / 256`, and on those that `more(rank, expert)` adds.
fn map(ranks: usize, more: impl Fn(usize, usize) -> bool) -> Vec<u8> {
    let mut values = vec![0; ranks * LAYERS * EXPERTS];
    for (i, v) in values.iter_mut().enumerate() {
        let (rank, expert) = (i / (LAYERS * EXPERTS), i % EXPERTS);
        *v = i32::from(expert * ranks / EXPERTS == rank || more(rank, expert));
    }
    npy(&format!("({ranks}, {LAYERS}, {EXPERTS})"), &values)
}

fn csv(load: impl Fn(usize) -> f64) -> String {
    let mut text = "layer,expert,load\n".to_string();
    for layer in 0..LAYERS {
        for expert in 0..EXPERTS {
            writeln!(text, "{layer},{expert},{}", load(expert)).unwrap();
        }
    }
    text
}

fn set(key: &str, file: &str) -> String {
    format!("--set=experts.{key}={file}")
}

#[test]
fn loads_of_a_file_show_in_the_balance_of_a_run() {
    let dir = tempdir().unwrap();
    let even = file(&dir, "even.csv", csv(|_| 5.0));
    let hot = file(&dir, "hot.csv", csv(|e| if e == 7 { 20.0 } else { 1.0 }));
    let unbalanced = "--set=experts.balance=none";
    let even = imbalance(&[&set("load_file", &even), unbalanced]);
    let hot = imbalance(&[&set("load_file", &hot), unbalanced]);
    // 16 times the load of the others on one expert: it has 20 / 275 of 8 choices a token, 10 slots share a die.
    assert!(hot > 1.5 * even, "{hot} against {even}");
}

#[test]
fn a_placement_map_says_where_experts_are_and_stands_for_load() {
    let dir = tempdir().unwrap();
    // Expert 7 is hot, and the map has it on every rank.
    let hot = file(&dir, "hot.csv", csv(|e| if e == 7 { 20.0 } else { 1.0 }));
    let everywhere = gzip(&map(32, |_, expert| expert == 7));
    let everywhere = file(&dir, "everywhere.npy.gz", everywhere);
    let once = file(&dir, "once.npy", map(32, |_, _| false));
    let load = set("load_file", &hot);
    let spread = imbalance(&[&load, &set("placement_file", &everywhere)]);
    let alone = imbalance(&[&load, &set("placement_file", &once)]);
    assert!(alone > 1.2 * spread, "{alone} against {spread}");
    // As a load file the same map says that expert 7 has 32 times the load.
    let as_load = set("load_file", &everywhere);
    let guessed = imbalance(&[&as_load, "--set=experts.balance=none"]);
    assert!(guessed > 1.5, "{guessed}");
}

fn wrong(dir: &TempDir, key: &str, name: &str, content: &[u8], expected: &[&str]) {
    let path = file(dir, name, content);
    let set = set(key, &path);
    let mut args = DECODE.to_vec();
    args.push(&set);
    let mut all = vec![name, key];
    all.extend(expected);
    refused(&args, &all);
}

#[test]
fn what_is_wrong_in_a_file_is_said_with_its_name() {
    let dir = tempdir().unwrap();
    let whole = csv(|_| 1.0);
    let cut = &whole[..whole.len() - 10];
    wrong(
        &dir,
        "load_file",
        "cut.csv",
        cut.as_bytes(),
        &["no load for layer 57, expert 255"],
    );
    let twice = format!("{whole}0,3,1\n");
    wrong(
        &dir,
        "load_file",
        "twice.csv",
        twice.as_bytes(),
        &["line 14850", "a second time"],
    );
    let layer = whole.replace("57,255", "58,255");
    wrong(
        &dir,
        "load_file",
        "layer.csv",
        layer.as_bytes(),
        &["\"58\" is not 0 to 57"],
    );
    let negative = csv(|e| if e == 9 { -1.0 } else { 1.0 });
    wrong(
        &dir,
        "load_file",
        "minus.csv",
        negative.as_bytes(),
        &["layer 0, expert 9: load -1"],
    );
    let few = csv(|e| f64::from(u8::from(e < 4)));
    wrong(
        &dir,
        "load_file",
        "few.csv",
        few.as_bytes(),
        &["4 experts have any load", "8 different"],
    );
    wrong(
        &dir,
        "placement_file",
        "text.npy",
        b"layer",
        &["not a NumPy array"],
    );
    let flat = npy("(2, 3)", &[0; 6]);
    wrong(
        &dir,
        "placement_file",
        "flat.npy",
        &flat,
        &["shape [2, 3]", "58, 256]"],
    );
    wrong(
        &dir,
        "load_file",
        "flat2.npy",
        &flat,
        &["shape [2, 3]", "[58, 256]"],
    );
    let empty = npy("(1, 58, 256)", &[0; LAYERS * EXPERTS]);
    wrong(
        &dir,
        "placement_file",
        "none.npy",
        &empty,
        &["layer 0: no rank holds expert 0"],
    );
    let two = npy("(1, 58, 256)", &[2; LAYERS * EXPERTS]);
    wrong(
        &dir,
        "placement_file",
        "two.npy",
        &two,
        &["rank 0, layer 0, expert 0 is 2"],
    );
    let ranks = map(48, |_, _| false);
    let needs = [
        "48 ranks",
        "decode instance 32",
        "set prefill.npus_per_instance or decode.npus_per_instance to 24",
    ];
    wrong(&dir, "placement_file", "ranks.npy", &ranks, &needs);
}

#[test]
fn maps_of_production_are_read_as_they_are() {
    let Some(dir) = real_workloads() else { return };
    let dir = dir.join("expert-placement");
    let Ok(files) = std::fs::read_dir(&dir) else {
        println!("skipped: there is no {}", dir.display());
        return;
    };
    for path in files.map(|f| f.unwrap().path()) {
        let name = path.display().to_string();
        if !name.ends_with(".npy.gz") {
            continue;
        }
        let mut more = vec![set("load_file", &name)];
        if name.contains("32_d") || name.contains("_32devices") {
            more.push(set("placement_file", &name));
        }
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        assert!(imbalance(&more) >= 1.0, "{name}");
    }
}
