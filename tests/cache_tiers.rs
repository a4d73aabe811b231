//! Context caching: what reuse is worth over the UB plane and over the VPC plane, and what each tier costs.

mod common;

use common::stdout_of;

/// Prefill of two 4-node instances' worth of prompts in a closed loop, drawn where it can be.
fn report(more: &[&str]) -> serde_json::Value {
    let mut args = vec![
        "run",
        "-q",
        "--json=-",
        "--set=machine=mini4",
        "--set=prefill.instances=1",
        "--set=workload.kind=closed",
        "--set=workload.phase=prefill",
        "--set=workload.concurrency_per_npu=8",
        "--set=workload.prompt_tokens=4096",
        "--set=workload.requests=512",
    ];
    args.extend(more);
    serde_json::from_str(&stdout_of(&args)).unwrap()
}

fn set(key: &str, value: &str) -> String {
    format!("--set={key}={value}")
}

#[test]
fn more_reuse_is_less_to_compute_and_a_sooner_first_token() {
    let runs =
        ["0", "0.25", "0.5", "0.9"].map(|share| report(&[&set("workload.reuse_share", share)]));
    let ttft = runs
        .each_ref()
        .map(|r| r["ttft_ms"]["mean"].as_f64().unwrap());
    assert!(ttft.is_sorted_by(|a, b| a > b), "{ttft:?}");
    // Whole blocks of 512 tokens are reused: 0, 2, 4 and 7 of the 8 in a prompt.
    for (r, blocks) in runs.iter().zip([0, 2, 4, 7]) {
        assert_eq!(r["cache"]["hit_blocks"].as_u64().unwrap(), 512 * blocks);
        let computed = r["prefill"]["tokens"].as_u64().unwrap();
        assert!(computed <= 512 * (4_096 - 512 * blocks), "{computed}");
    }
    // Half of the prompt computed takes about half the time, a little more for attending to the other half.
    assert!(ttft[2] < 0.65 * ttft[0], "{ttft:?}");
}

#[test]
fn the_vpc_plane_takes_longer_than_ub_by_the_bandwidth_of_a_node() {
    // One prompt at a time, so that nothing but the reads differs.
    let alone = |plane: &str| {
        report(&[
            "--set=workload.kind=open",
            "--set=workload.rate_per_s=1",
            "--set=workload.reuse_share=0.9",
            "--set=workload.prompt_tokens=16384",
            "--set=workload.requests=8",
            "--set=fidelity.level=message",
            &set("cache.plane", plane),
        ])
    };
    let (ub, vpc) = (alone("ub"), alone("vpc"));
    assert_eq!(ub["cache"]["read_bytes"], vpc["cache"]["read_bytes"]);
    let ttft = |r: &serde_json::Value| r["ttft_ms"]["p50"].as_f64().unwrap();
    let longer_ms = ttft(&vpc) - ttft(&ub);
    // 28 blocks, a GB, into the two nodes of the group at 50 GB/s each; over UB it takes a tenth of that.
    let least_ms = vpc["cache"]["read_bytes"].as_f64().unwrap() / 8.0 / 100e9 * 1e3;
    assert!(
        (0.6 * least_ms..2.0 * least_ms).contains(&longer_ms),
        "{longer_ms} against {least_ms}"
    );
}

/// Chats that come back to what they have said: each prompt shares its first blocks with others.
fn chats(dir: &tempfile::TempDir) -> String {
    let mut text = String::new();
    for i in 0..96u64 {
        let chat = i % 24;
        let ids: Vec<String> = (0..8).map(|b| (chat * 100 + b).to_string()).collect();
        let (ids, at) = (ids.join(", "), i * 400);
        text += &format!(
            "{{\"timestamp\": {at}, \"input_length\": 4100, \"output_length\": 1, \"hash_ids\": [{ids}, {}]}}\n",
            10_000 + i
        );
    }
    common::file(dir, "chats.jsonl", text)
}

#[test]
fn what_dram_cannot_hold_comes_from_the_ssds_or_is_computed_again() {
    let dir = tempfile::tempdir().unwrap();
    let file = chats(&dir);
    let run = |dram: &str, ssd: &str| {
        let args = [
            "run",
            "-q",
            "--json=-",
            "--set=machine=mini4",
            "--set=prefill.instances=1",
            "--set=decode.npus_per_instance=16",
            "--workload",
            &file,
            &set("cache.dram_gb_per_node", dram),
            &set("cache.ssd_gb_per_node", ssd),
        ];
        serde_json::from_str::<serde_json::Value>(&stdout_of(&args)).unwrap()
    };
    // 24 chats of 8 blocks of 36 MB are 6.9 GB: four nodes with a GB each hold a good half.
    let (large, tiered, small) = (run("100", "100"), run("1", "100"), run("1", "0"));
    let hits = |r: &serde_json::Value| r["cache"]["hit_blocks"].as_u64().unwrap();
    assert_eq!(hits(&large), 72 * 8);
    assert_eq!(hits(&tiered), hits(&large));
    assert!(hits(&small) < hits(&large), "{}", hits(&small));
    assert_eq!(large["cache"]["ssd_read_bytes"], 0);
    assert!(tiered["cache"]["ssd_read_bytes"].as_u64().unwrap() > 0);
    assert!(tiered["cache"]["evicted_blocks"].as_u64().unwrap() > 0);
    let ttft = |r: &serde_json::Value| r["ttft_ms"]["mean"].as_f64().unwrap();
    assert!(ttft(&large) < ttft(&tiered) && ttft(&tiered) < ttft(&small));
}
