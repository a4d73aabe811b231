//! The published traces read as their authors and the collection's README describe them. The data is not part
//! of this repository: where it is absent the tests say so and pass.

mod common;

use common::{command, real_workloads, stdout_of, text};
use serde_json::Value;

fn describe(path: &str) -> Value {
    serde_json::from_str(&stdout_of(&["workload", "describe", "--json", path])).expect("JSON")
}

/// Asserts that a figure is the published one, in the precision that was published.
fn near(d: &Value, pointer: &str, published: f64, within: f64) {
    let got = d
        .pointer(pointer)
        .and_then(Value::as_f64)
        .unwrap_or(f64::NAN);
    assert!(
        (got - published).abs() <= within,
        "{pointer}: {got}, published {published}"
    );
}

#[test]
fn mooncake_conversation_has_its_published_rate_lengths_and_sharing() {
    let Some(dir) = real_workloads() else { return };
    let d = describe(
        dir.join("mooncake/conversation_trace.jsonl.gz")
            .to_str()
            .unwrap(),
    );
    assert_eq!(d["format"], "mooncake");
    assert_eq!(d["requests"], 12_031);
    near(&d, "/span_s", 3_537.0, 1.0);
    near(&d, "/requests_per_s", 3.40, 0.01);
    near(&d, "/inter_arrival_cv", 3.03, 0.01);
    near(&d, "/rounded_to_s", 3.0, 0.0);
    near(&d, "/input_tokens/mean", 12_035.0, 0.5);
    near(&d, "/input_tokens/p50", 6_909.0, 0.5);
    near(&d, "/input_tokens/max", 126_195.0, 0.0);
    near(&d, "/output_tokens/p99", 1_119.0, 1.0);
    near(&d, "/prefix/blocks", 288_500.0, 0.0);
    near(&d, "/prefix/unique_blocks", 182_790.0, 0.0);
    near(&d, "/prefix/hit_blocks_share", 0.366, 0.0005);
    near(&d, "/prefix/hit_tokens_share", 0.374, 0.0005);
}

#[test]
fn mooncake_synthetic_has_its_published_rate_lengths_and_sharing() {
    let Some(dir) = real_workloads() else { return };
    let d = describe(
        dir.join("mooncake/synthetic_trace.jsonl.gz")
            .to_str()
            .unwrap(),
    );
    assert_eq!(d["requests"], 3_993);
    near(&d, "/requests_per_s", 3.91, 0.01);
    near(&d, "/inter_arrival_cv", 1.01, 0.005);
    assert!(d["rounded_to_s"].is_null(), "its times are fine");
    near(&d, "/input_tokens/max", 191_378.0, 0.0);
    near(&d, "/prefix/hit_tokens_share", 0.651, 0.0005);
    near(&d, "/prefix/requests_without_hit_share", 0.554, 0.0005);
}

#[test]
fn azure_traces_have_their_published_rate_and_lengths() {
    let Some(dir) = real_workloads() else { return };
    for (name, rows, rate, cv, input, output) in [
        ("conv", 19_366, 5.53, 1.09, 1_155.0, 211.0),
        ("code", 8_819, 2.57, 13.15, 2_048.0, 28.0),
    ] {
        let file = dir.join(format!("azure-2023/AzureLLMInferenceTrace_{name}.csv.gz"));
        let d = describe(file.to_str().unwrap());
        assert_eq!(
            (&d["format"], &d["requests"]),
            (&"azure".into(), &rows.into())
        );
        near(&d, "/requests_per_s", rate, 0.005);
        near(&d, "/inter_arrival_cv", cv, 0.005);
        near(&d, "/input_tokens/mean", input, 0.5);
        near(&d, "/output_tokens/mean", output, 0.5);
        assert!(d["prefix"].is_null());
        assert!(d["rounded_to_s"].is_null());
    }
}

#[test]
fn the_servegen_day_has_its_requests_and_lengths_in_both_forms() {
    let Some(dir) = real_workloads() else { return };
    let packed = dir.join("servegen-deepseek-r1/clients.jsonl.gz");
    let d = describe(packed.to_str().unwrap());
    assert_eq!(d["format"], "servegen");
    assert_eq!(d["requests"], 1_383_669);
    near(&d, "/requests_per_s", 16.0, 0.05);
    // Drawn, so near: 1.4 million draws.
    near(&d, "/input_tokens/mean", 1_268.0, 10.0);
    near(&d, "/input_tokens/p10", 18.0, 0.0);
    near(&d, "/input_tokens/p50", 208.0, 2.0);
    near(&d, "/input_tokens/p99", 23_423.0, 300.0);
    near(&d, "/output_tokens/mean", 1_527.0, 5.0);
    near(&d, "/output_tokens/p50", 792.0, 3.0);
    near(&d, "/output_tokens/p99", 12_607.0, 150.0);

    // The upstream files unpacked: the same clients, the same draws.
    let unpacked = tempfile::tempdir().unwrap();
    let tar = std::process::Command::new("tar")
        .arg("-xzf")
        .arg(dir.join("servegen-deepseek-r1/deepseek-r1.orig.tar.gz"))
        .arg("-C")
        .arg(unpacked.path())
        .status();
    if !tar.is_ok_and(|s| s.success()) {
        println!("skipped the upstream form: there is no tar");
        return;
    }
    let upstream = describe(unpacked.path().join("deepseek-r1").to_str().unwrap());
    for key in ["requests", "input_tokens", "output_tokens"] {
        assert_eq!(upstream[key], d[key], "{key}");
    }
    near(
        &upstream,
        "/inter_arrival_cv",
        d["inter_arrival_cv"].as_f64().unwrap(),
        1e-9,
    );
}

#[test]
fn a_trace_packed_or_not_reads_the_same() {
    let Some(dir) = real_workloads() else { return };
    let packed = std::fs::read(dir.join("azure-2023/AzureLLMInferenceTrace_code.csv.gz")).unwrap();
    let mut plain = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&packed[..]), &mut plain).unwrap();
    let tmp = tempfile::tempdir().unwrap();
    std::fs::write(tmp.path().join("t"), plain).unwrap();
    std::fs::write(tmp.path().join("t.gz"), packed).unwrap();
    let of = |name: &str| {
        let out = command()
            .current_dir(&tmp)
            .args(["workload", "describe", name])
            .output()
            .unwrap();
        text(&out.stdout).replacen(name, "", 1)
    };
    assert_eq!(of("t"), of("t.gz"));
}
