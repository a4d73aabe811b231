//! Bad input is answered with one clear message and exit code 2: no panic, no backtrace.

mod common;

use common::{file, gzip, refused, supernode, text};
use tempfile::tempdir;

const GOOD: &str =
    "{\"timestamp\": 0, \"input_length\": 600, \"output_length\": 3, \"hash_ids\": [0, 1]}\n";

#[test]
fn zero_and_absurd_sizes_are_refused_with_the_range() {
    for (set, expected) in [
        (
            "prefill.instances=0",
            "prefill.instances = 0: expected a whole number from 1",
        ),
        (
            "decode.npus_per_instance=0",
            "decode.npus_per_instance = 0: expected",
        ),
        (
            "decode.max_batch_per_npu=0",
            "decode.max_batch_per_npu = 0: expected",
        ),
        (
            "prefill.batch_tokens_per_npu=0",
            "prefill.batch_tokens_per_npu = 0: expected",
        ),
        (
            "prefill.instances=4000000000",
            "prefill.instances = 4000000000: expected",
        ),
        (
            "prefill.instances=99999999999",
            "prefill.instances = 99999999999",
        ),
        ("cache.block_tokens=0", "cache.block_tokens = 0: expected"),
        (
            "cache.dram_gb_per_node=-5",
            "cache.dram_gb_per_node = -5: expected",
        ),
        ("slo.ttft_ms=nan", "slo.ttft_ms = NaN: expected"),
        (
            "decode.mtp_acceptance=1.2",
            "decode.mtp_acceptance = 1.2: expected a number from 0 to 1",
        ),
        ("workload.speed=1e300", "workload.speed = "),
        (
            "workload.requests=99999999999",
            "workload.requests = 99999999999: expected",
        ),
        (
            "workload.output_tokens=0",
            "workload.output_tokens = 0: expected",
        ),
    ] {
        refused(&["run", "--set", set], &[expected]);
    }
}

#[test]
fn a_workload_that_lacks_what_it_needs_says_what() {
    refused(
        &["run", "--set", "workload.kind=open"],
        &["workload.kind", "workload.rate_per_s"],
    );
    refused(
        &[
            "run",
            "--set",
            "workload.kind=open",
            "--set",
            "workload.rate_per_s=3",
        ],
        &["--requests or --for"],
    );
    refused(
        &["run", "--set", "workload.kind=closed"],
        &["workload.concurrency_per_npu"],
    );
    refused(
        &[
            "run",
            "--set",
            "workload.kind=closed",
            "--set",
            "workload.concurrency_per_npu=4",
            "--for",
            "3s",
        ],
        &["workload.duration_s", "workload.requests"],
    );
    refused(
        &[
            "run",
            "--set",
            "workload.prompt_tokens={dist=\"lognormal\"}",
        ],
        &["workload.prompt_tokens", "needs mean"],
    );
}

#[test]
fn a_line_that_does_not_parse_is_named_with_what_was_expected() {
    let dir = tempdir().unwrap();
    for (name, content, expected) in [
        ("a.jsonl", format!("{GOOD}{{\"timestamp\": 3, oops\n"), &["a.jsonl:2:18: not a JSON object", "expected"][..]),
        ("b.jsonl", GOOD.replace("600", "\"many\""), &["b.jsonl:1:18: input_length: found \"many\", expected a whole number of tokens"]),
        ("c.jsonl", GOOD.replace("output_length", "output"), &["c.jsonl:1:", "output_length: missing, expected"]),
        ("d.jsonl", GOOD.replace("[0, 1]", "[0, -1]"), &["d.jsonl:1:", "hash_ids: found the id -1, expected"]),
        ("e.jsonl", GOOD.replace("[0, 1]", "[0, 1, 2]"), &["e.jsonl:1: hash_ids: found 3 ids for 600 tokens, expected at most 2"]),
        ("f.jsonl", GOOD.replace(": 0,", ": -7,"), &["f.jsonl:1: timestamp: found -7, expected"]),
        ("g.jsonl", GOOD.replace("600", "-600"), &["g.jsonl:1:", "input_length: found -600"]),
        ("h.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,374,44\nnoon,1,2\n".into(), &["h.csv:3:1: TIMESTAMP: found noon, expected a time"]),
        ("i.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,x,44\n".into(), &["i.csv:2:24: ContextTokens: found x, expected a whole number of tokens"]),
        ("j.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,374\n".into(), &["j.csv:2:1: found 2 fields, expected 3"]),
        ("k.csv", "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n-1,GPT-4,1,2,3,API log\n".into(), &["k.csv:2:1: Timestamp: found -1, expected seconds"]),
        ("l.txt", "hello, world\n".into(), &["l.txt is of no known format", "hello, world", "Mooncake", "Azure", "BurstGPT", "ServeGen"]),
        ("m.jsonl", "{\"client_id\": 1}\n".into(), &["m.jsonl:1:", "missing field", "ServeGen client"]),
    ] {
        let path = file(&dir, name, content);
        refused(&["run", "--workload", &path], expected);
        refused(&["workload", "describe", &path], expected);
    }
}

#[test]
fn an_empty_trace_is_refused() {
    let dir = tempdir().unwrap();
    for (name, content, expected) in [
        ("empty.jsonl", Vec::new(), "is empty"),
        ("blank.jsonl", b"\n\n  \n".to_vec(), "is empty"),
        ("empty.gz", gzip(b""), "is empty"),
        (
            "header.csv",
            b"TIMESTAMP,ContextTokens,GeneratedTokens\n".to_vec(),
            "has no requests",
        ),
        (
            "nothing.jsonl",
            GOOD.replace(": 3,", ": 0,").into_bytes(),
            "all of its 1 requests have no input or no output tokens",
        ),
    ] {
        let path = file(&dir, name, content);
        refused(&["run", "--workload", &path], &[name, expected]);
    }
    let dir_path = dir.path().join("folder");
    std::fs::create_dir(&dir_path).unwrap();
    refused(
        &["run", "--workload", dir_path.to_str().unwrap()],
        &["folder", "chunk-N-trace.csv"],
    );
}

#[test]
fn a_cut_that_leaves_nothing_is_refused() {
    let dir = tempdir().unwrap();
    let path = file(
        &dir,
        "t.jsonl",
        format!("{GOOD}{}", GOOD.replace(": 0,", ": 9000,")),
    );
    refused(
        &["run", "--workload", &path, "--set", "workload.start_s=100"],
        &["workload.start_s = 100", "9.0 s"],
    );
}

#[test]
fn a_missing_file_is_named() {
    for args in [
        &["run", "nowhere/scenario.toml"][..],
        &["run", "--workload", "nowhere/trace.jsonl"],
        &["workload", "describe", "nowhere/trace.jsonl"],
        &["run", "--set", "model=nowhere/model.toml"],
        &["run", "--set", "machine=nowhere/machine.toml"],
        &["topology", "--machine", "nowhere/machine.toml"],
    ] {
        refused(args, &["nowhere/", "No such file"]);
    }
    refused(&["run", "--set", "model=gpt-9"], &["gpt-9", "deepseek-r1"]);
    refused(
        &["run", "--set", "machine=cray"],
        &["cray", "cloudmatrix384"],
    );
    let dir = tempdir().unwrap();
    refused(&["run", dir.path().to_str().unwrap()], &["directory"]);
}

#[test]
fn a_truncated_or_foreign_file_is_named() {
    let dir = tempdir().unwrap();
    let mut packed = gzip(GOOD.repeat(5_000).as_bytes());
    packed.truncate(packed.len() / 2);
    let path = file(&dir, "half.jsonl.gz", &packed);
    refused(
        &["run", "--workload", &path],
        &["half.jsonl.gz", "truncated"],
    );
    let path = file(&dir, "head.gz", [0x1f, 0x8b, 8]);
    refused(&["run", "--workload", &path], &["head.gz", "truncated"]);
    let path = file(&dir, "t.xz", b"\xfd7zXZ\0rest");
    refused(&["run", "--workload", &path], &["t.xz is xz data", "xz -d"]);
    let path = file(&dir, "noise.jsonl", [b'{', 0xff, 0xfe, 0x00, b'\n']);
    refused(
        &["run", "--workload", &path],
        &["noise.jsonl:1:2: not UTF-8"],
    );
    let path = file(&dir, "noise.toml", [0xff, 0xfe, 0x00]);
    refused(&["run", &path], &["noise.toml is not UTF-8"]);
    // A trace in the place of the scenario.
    let path = file(&dir, "trace.jsonl", GOOD);
    refused(&["run", &path], &["trace.jsonl:1:"]);
}

#[test]
fn an_unknown_address_is_named() {
    refused(
        &["topology", "list", "node99"],
        &["node99", "node0 to node47"],
    );
    refused(&["topology", "list", "node[1"], &["node[1"]);
    refused(
        &["topology", "route", "node0/npu0/die0", "node0/npu9/die0"],
        &["npu9"],
    );
    refused(
        &["topology", "route", "node0/npu0/die0", "node1"],
        &["node1", "one part is wanted"],
    );
    refused(
        &[
            "topology",
            "route",
            "node0/npu0/die0",
            "node1/npu0/die0",
            "--avoid",
            "plane9",
        ],
        &["plane9"],
    );
    refused(
        &[
            "topology",
            "route",
            "node0/npu0/die0",
            "node1/npu0/die0",
            "--avoid",
            "node1/l1.*",
        ],
        &["no UB route"],
    );
}

#[test]
fn a_layout_that_does_not_fit_is_refused_with_the_sum() {
    let refused =
        |set: &str, expected: &[&str]| refused(&["run", "--requests", "2", "--set", set], expected);
    refused(
        "machine=mini",
        &[
            "prefill.instances",
            "6 x 16",
            "1 x 160",
            "256 NPUs",
            "`mini` has 16",
        ],
    );
    refused(
        "decode.npus_per_instance=100000",
        &["1 x 100000", "`cloudmatrix384` has 384"],
    );
    // More experts than the dies can hold, by number and by memory.
    refused(
        "experts.redundant=100000",
        &[
            "experts.redundant = 100000 and experts.shared_replicas = 32: 256 routed experts",
            "320 dies",
            "314 experts a die",
            "lower experts.redundant",
        ],
    );
    // Tokens of a layer that the model lacks.
    let dir = tempdir().unwrap();
    let model = include_str!("../actors/specs/deepseek-r1.toml");
    let without = model.replace("mtp_layers = 1", "mtp_layers = 0");
    assert_ne!(model, without);
    let without = file(&dir, "m.toml", without);
    refused(
        &format!("model={without}"),
        &["decode.mtp_tokens = 1: expected 0", "m.toml\" has no layer"],
    );
    // Only what is on the machine is counted, and named.
    let decode = [
        "run",
        "--set",
        "workload.phase=decode",
        "--set",
        "decode.npus_per_instance=385",
    ];
    let said = common::refused(&decode, &["1 x 385 need 385 NPUs"]);
    assert!(!said.contains("prefill"), "{said}");
    refused(
        "decode.npus_per_instance=1",
        &[
            "decode die does not fit in its 64 GB of HBM",
            "160 experts a layer",
            "434.9 GB",
            "raise decode.npus_per_instance (fewer experts a die)",
        ],
    );
    refused(
        "cache.nodes=1000",
        &["cache.nodes = 1000", "expected 1 to 48, the nodes of"],
    );
}

/// The machine counts tokens, ranks and slots in 16 bits: what does not fit must not be cut off in silence.
#[test]
fn sizes_beyond_what_the_actors_count_are_refused_with_the_most_that_fits() {
    let refused =
        |set: &str, expected: &[&str]| refused(&["run", "--requests", "2", "--set", set], expected);
    refused(
        "prefill.batch_tokens_per_npu=262141",
        &["prefill.batch_tokens_per_npu = 262141", "at most 262140"],
    );
    refused(
        "decode.max_batch_per_npu=65536",
        &["decode.max_batch_per_npu = 65536", "at most 65534"],
    );
    let dir = tempdir().unwrap();
    let machine = file(
        &dir,
        "large.toml",
        "base = \"mini\"\n[counts]\nnodes = 9000\n",
    );
    let large = |sets: &[&str], expected: &[&str]| {
        let machine = format!("machine={machine}");
        let mut args = vec!["run", "--requests", "2", "--set", &machine];
        args.extend(sets.iter().flat_map(|s| ["--set", s]));
        common::refused(&args, expected)
    };
    large(
        &["prefill.npus_per_instance=2049", "prefill.instances=1"],
        &["prefill.npus_per_instance = 2049", "at most 2048"],
    );
    large(
        &["prefill.npus_per_instance=1", "prefill.instances=65535"],
        &["prefill.instances = 65535", "at most 65535 together"],
    );
}

#[test]
fn more_shards_than_nodes_are_refused() {
    refused(
        &["run", "--requests", "2", "--shards", "100"],
        &["shards = 100", "48 nodes"],
    );
}

#[test]
fn wrong_options_are_usage_errors() {
    for args in [
        &[][..],
        &["fly"],
        &["run", "--colour"],
        &["run", "--shards", "0"],
        &["run", "--speed", "fast"],
        &["run", "--for", "yesterday"],
        &["run", "--requests", "0"],
        &["run", "--seed", "-1"],
        &["run", "--fidelity", "perfect"],
        &["workload", "generate", "--rate", "nan"],
        &["workload", "generate", "--kind", "nonsense"],
        &[
            "topology",
            "route",
            "node0/npu0/die0",
            "node1/npu0/die0",
            "--plane",
            "astral",
        ],
    ] {
        let out = supernode(args);
        assert_eq!(out.status.code(), Some(2), "{args:?}");
        assert!(out.stdout.is_empty() && !out.stderr.is_empty(), "{args:?}");
        assert!(!text(&out.stderr).contains("panicked"), "{args:?}");
    }
    let negative = supernode(&["run", "--seed", "-1"]);
    assert!(text(&negative.stderr).contains("invalid value '-1' for '--seed"));
    refused(
        &["run", "--json", "nowhere/r.json"],
        &["--json nowhere/r.json", "no directory nowhere"],
    );
}

#[test]
fn a_wrong_log_filter_is_refused() {
    let out = common::command()
        .args(["schema"])
        .env("RUST_LOG", "supernode=loud")
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).contains("RUST_LOG"));
}
