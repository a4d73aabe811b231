//! `supernode up` from the side of who runs it: what can be looked at, who gets in, a port that is taken, recordings
//! that replay.
#![cfg(unix)]

mod common;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use common::live::{Reply, Up, scenario};
use common::{refused, stdout_of};
use serde_json::{Value, json};
use tempfile::tempdir;

#[test]
fn what_clients_look_at_is_there() {
    let up = Up::new(&["--pace", "max"]);
    for path in [
        "/health",
        "/ping",
        "/version",
        "/metrics",
        "/v1/models",
        "/api/series",
        "/api/slow",
        "/api/map",
        "/api/openapi.json",
        "/",
    ] {
        let reply = up.ask("GET", path, "");
        assert_eq!(reply.status, 200, "{path}: {}", reply.body);
        assert!(path == "/health" || path == "/ping" || !reply.body.is_empty());
    }
    assert_eq!(up.ask("HEAD", "/metrics", "").status, 200);
    let models = up.ask("GET", "/v1/models", "").json();
    assert_eq!(models["data"][0]["max_model_len"], 131_072);
    up.post("/v1/completions", json!({"prompt": "a", "max_tokens": 30}));
    let metrics = up.ask("GET", "/metrics", "").body;
    for sample in [
        "vllm:time_to_first_token_seconds_count{model_name=\"small\",engine=\"0\"} 1",
        "vllm:generation_tokens_total{model_name=\"small\",engine=\"0\"} 30",
        "vllm:request_success_total{model_name=\"small\",engine=\"0\",finished_reason=\"length\"} 1",
    ] {
        assert!(metrics.contains(sample), "{sample}\n{metrics}");
    }
    let series = |text: &str| text.lines().filter(|l| !l.starts_with('#')).count();
    for _ in 0..5 {
        up.post(
            "/v1/completions",
            json!({"prompt": "b c d", "max_tokens": 7}),
        );
    }
    let later = up.ask("GET", "/metrics", "").body;
    assert_eq!(series(&metrics), series(&later), "series are bounded");
    let hot = up
        .ask("GET", "/api/actors?match=node0/**&sort=service&limit=5", "")
        .json();
    assert_eq!(hot["actors"].as_array().unwrap().len(), 5);
    assert!(
        hot["actors"][0]["actor"]
            .as_str()
            .unwrap()
            .starts_with("node0/")
    );
}

#[test]
fn only_who_may_gets_in() {
    let up = Up::new(&["--token", "secret"]);
    assert_eq!(up.ask("GET", "/api/state", "").status, 401);
    assert_eq!(up.ask("GET", "/health", "").status, 200);
    let with = |header| up.ask_with("GET", "/api/state", b"", &[header]).status;
    assert_eq!(with("Authorization: Bearer secreT"), 401);
    assert_eq!(with("Authorization: Bearer secret"), 200);

    let open = Up::new(&[]);
    let strange = open
        .send("GET", "/api/state", b"", &[])
        .local_addr()
        .is_ok();
    assert!(strange);
    let mut stream = TcpStream::connect(&open.address).unwrap();
    stream
        .write_all(b"GET /api/state HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    assert_eq!(Reply::of(&all).status, 403);
    refused(&["up", "--listen", "0.0.0.0:0"], &["0.0.0.0:0", "--token"]);
}

#[test]
fn two_machines_on_one_port_are_told_apart() {
    let up = Up::new(&[]);
    refused(
        &["up", "--listen", &up.address],
        &[&up.address, "taken", "--listen"],
    );
}

#[test]
fn a_recording_replays_with_the_same_latencies() {
    let up = Up::new(&["--pace", "1", "--record", "arrivals.jsonl"]);
    let texts = [
        "the quick brown fox ".repeat(400),
        "jumps over ".repeat(300),
    ];
    let streams: Vec<TcpStream> = (0..12)
        .map(|i| {
            std::thread::sleep(Duration::from_millis(7 * (i % 3)));
            let body =
                json!({"prompt": texts[i as usize % 2], "max_tokens": 5 + 9 * i, "stream": true});
            up.send("POST", "/v1/completions", body.to_string().as_bytes(), &[])
        })
        .collect();
    for mut stream in streams {
        stream.read_to_end(&mut Vec::new()).unwrap();
    }
    let dir = tempdir().unwrap();
    let scenario = scenario(&dir);
    let recording = up.dir.path().join("arrivals.jsonl");
    let kept = dir.path().join("arrivals.jsonl");
    let from = recording.clone();
    let live = {
        // The recording is complete once the machine is down; its directory goes with `up`.
        let mut up = up;
        let moved = std::mem::replace(&mut up.dir, tempdir().unwrap());
        let live = up.end();
        std::fs::copy(from, &kept).unwrap();
        drop(moved);
        live
    };
    let out = common::stdout_of(&[
        "run",
        &scenario,
        "--workload",
        kept.to_str().unwrap(),
        "--json",
        "-",
    ]);
    let replay: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(live["requests"]["completed"], 12);
    for figure in ["ttft_ms", "tpot_ms", "e2e_ms"] {
        assert_eq!(live[figure], replay[figure], "{figure}");
    }
}

#[test]
fn a_machine_that_cannot_keep_pace_says_so_and_by_how_much() {
    let up = Up::new(&[
        "--load",
        "--pace",
        "10000",
        "--set",
        "fidelity.level=message",
        "--set",
        "workload.kind=closed",
        "--set",
        "workload.concurrency_per_npu=8",
    ]);
    up.await_state("it falls behind", |s| {
        s["pace"]["lost_s"].as_f64() > Some(1.0) && s["pace"]["reached"].as_f64() > Some(0.0)
    });
    let pace = up.ask("GET", "/api/pace", "").json();
    assert_eq!(pace["set"], "10000");
    let reached = pace["reached"].as_f64().unwrap();
    assert!(reached > 0.0 && reached < 5_000.0, "{pace}");
    assert!(pace["late_ms"].as_f64() > Some(100.0), "{pace}");
    assert!(up.metric("supernode_pace_lost_seconds_total") > 1.0);
    assert!(up.metric("supernode_pace_late_seconds") > 0.1);
    let said = up.said();
    let line = said.lines().find(|l| l.contains("cannot keep pace 10000"));
    let line = line.unwrap_or_else(|| panic!("nothing was said: {said}"));
    for part in [" ms behind", " s lost so far", " virtual seconds a second"] {
        assert!(line.contains(part), "{line}");
    }
    assert!(!line.contains("running at 0.00"), "{line}");
    let status = stdout_of(&["status", "--url", &format!("http://{}", up.address)]);
    assert!(status.contains("s lost for good"), "{status}");

    // At a pace that it can keep, it is on time again.
    let slower = up.ask("PUT", "/api/pace", &json!({"pace": 0.0001}).to_string());
    assert_eq!(slower.status, 200);
    up.await_state("it is on time", |s| {
        s["pace"]["late_ms"].as_f64() < Some(100.0)
    });
}

/// What an expression of Prometheus selects: names with the labels they must have.
fn selected(expression: &str) -> Vec<(String, Vec<(String, String)>)> {
    let starts = expression
        .match_indices("vllm:")
        .map(|(at, _)| &expression[at..]);
    let all = starts.map(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':');
        let (name, rest) = rest.split_at(end.unwrap_or(rest.len()));
        let labels = rest.strip_prefix('{').and_then(|r| r.split_once('}'));
        let labels = labels
            .map_or("", |l| l.0)
            .split(',')
            .filter(|l| !l.is_empty());
        let pair = |label: &str| {
            let (key, value) = label.split_once('=').expect("a label has a value");
            let value = value.trim_start_matches('~').trim_matches('"');
            (key.trim().to_string(), value.to_string())
        };
        (name.to_string(), labels.map(pair).collect())
    });
    all.collect()
}

#[test]
fn every_expression_of_vllms_dashboards_finds_its_series() {
    let up = Up::new(&["--pace", "max"]);
    for i in 0..6 {
        let text = "a b c ".repeat(400 * (1 + i % 2));
        let body = json!({"prompt": text, "max_tokens": 20 + i});
        assert_eq!(up.post("/v1/completions", body).status, 200);
    }
    let metrics = up.ask("GET", "/metrics", "").body;
    // Series by name: labels as they stand in braces, and value.
    let mut series: BTreeMap<&str, Vec<(&str, f64)>> = BTreeMap::new();
    for line in metrics.lines().filter(|l| !l.starts_with('#')) {
        let (left, value) = line.rsplit_once(' ').unwrap();
        let (name, labels) = left.split_once('{').unwrap_or((left, ""));
        let row = (labels.trim_end_matches('}'), value.parse().unwrap());
        series.entry(name).or_default().push(row);
    }
    let expressions = include_str!("data/vllm_dashboards.txt");
    let expressions = expressions.lines().filter(|l| !l.starts_with('#'));
    let mut seen = 0;
    for e in expressions {
        let selected = selected(e);
        assert!(!selected.is_empty(), "{e}");
        for (name, labels) in selected {
            let rows = series
                .get(name.as_str())
                .unwrap_or_else(|| panic!("no {name} for {e}"));
            let found: Vec<f64> = rows
                .iter()
                .filter(|(have, _)| {
                    labels.iter().all(|(key, value)| {
                        let value = value.replace("$model_name", "small");
                        let value = value.replace("$Deployment_id", "small");
                        have.contains(&format!("{key}=\"{value}\""))
                    })
                })
                .map(|row| row.1)
                .collect();
            assert!(!found.is_empty(), "no {name} with {labels:?} for {e}");
            // A rate over nothing divided by nothing is no data.
            let may_be_zero = [
                "vllm:num_requests_running",
                "vllm:num_requests_waiting",
                "vllm:kv_cache_usage_perc",
            ];
            assert!(
                may_be_zero.contains(&name.as_str()) || found.iter().any(|v| *v > 0.0),
                "{name} is always 0: {e}"
            );
            // Labels that are grouped by.
            for by in e
                .match_indices("by")
                .map(|(at, _)| e[at + 2..].trim_start())
            {
                let Some(keys) = by.strip_prefix('(').and_then(|r| r.split_once(')')) else {
                    continue;
                };
                for key in keys.0.split(',') {
                    let label = format!("{}=\"", key.trim());
                    assert!(
                        rows.iter().all(|(have, _)| have.contains(&label)),
                        "{name} by {key}: {e}"
                    );
                }
            }
            seen += 1;
        }
    }
    assert!(seen > 67, "{seen}");
}

#[test]
fn the_openapi_document_names_every_route_and_each_is_there() {
    let up = Up::new(&["--pace", "max"]);
    let document = up.ask("GET", "/api/openapi.json", "").json();
    let mut named = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods
            .as_object()
            .unwrap()
            .keys()
            .filter(|k| *k != "parameters")
        {
            let asked = path.replace("{id}", "0");
            let reply = up.ask(&method.to_uppercase(), &asked, "{}");
            assert!(reply.status > 0, "{method} {path}");
            assert!(
                !reply.body.contains("there is nothing here"),
                "{method} {path}: {reply:?}"
            );
            assert_ne!(reply.status, 405, "{method} {path}");
            named.push(format!("{method} {path}"));
        }
    }
    // Routes as they stand in the source.
    let src = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/live");
    let mut routes = 0;
    for name in ["control.rs", "faults.rs", "traces.rs"] {
        let text = std::fs::read_to_string(src.join(name)).unwrap();
        for route in text.split(".route(\"").skip(1) {
            let (path, rest) = route.split_once('"').unwrap();
            let method = rest
                .split_once("web::")
                .unwrap()
                .1
                .split_once('(')
                .unwrap()
                .0;
            let route = format!("{method} {path}");
            if path != "/api/openapi.json" {
                assert!(named.contains(&route), "{route} is not in the document");
                routes += 1;
            }
        }
    }
    assert_eq!(routes, named.len(), "{named:?}");
}
