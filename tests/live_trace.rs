//! Traces and faults of a live machine: started, stopped and fetched over its API, and a slow link that shows in
//! `/metrics` and has its name in the trace.
#![cfg(unix)]

mod common;

use common::live::Up;
use common::{refused, stdout_of};
use serde_json::{Value, json};
use supernode::trace::Read;
use supernode::trace::ask::path::{roots, steps};

/// A closed loop that keeps every decode die busy.
const LOADED: &[&str] = &[
    "--load",
    "--set",
    "workload.kind=closed",
    "--set",
    "workload.concurrency_per_npu=16",
    "--set",
    "workload.prompt_tokens=700",
    "--set",
    "workload.output_tokens=200",
];

impl Up {
    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Runs a command against this machine.
    fn tell(&self, args: &[&str]) -> String {
        stdout_of(&[args, &["--url", &self.url()]].concat())
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// Mean time per output token, in ms, over so much virtual time.
    fn tpot_ms(&self, over_s: f64) -> f64 {
        let sums = || {
            ["sum", "count"].map(|what| {
                let name = "vllm:inter_token_latency_seconds";
                self.metric(&format!(
                    "{name}_{what}{{model_name=\"small\",engine=\"0\"}}"
                ))
            })
        };
        let (from, at) = (sums(), self.metric("supernode_virtual_seconds"));
        self.until_s(at + over_s);
        let to = sums();
        1e3 * (to[0] - from[0]) / (to[1] - from[1])
    }

    /// Waits until it is so late.
    fn until_s(&self, virtual_s: f64) {
        self.await_state("time passes", |s| {
            s["virtual_s"].as_f64() >= Some(virtual_s)
        });
    }
}

#[test]
fn a_slow_link_shows_in_the_metrics_and_the_fetched_trace_names_it() {
    let up = Up::new(LOADED);
    up.until_s(2.0);
    let before = up.tpot_ms(1.0);
    up.tell(&["trace", "start", "--match", "node1/**", "--for", "2s"]);
    refused(
        &["trace", "start", "--url", &up.url()],
        &["409", "a trace is being written"],
    );
    // All lanes of one decode die: one alone is spread around in a moment.
    let part = "node1/npu3/die1/ub*";
    let said = up.tell(&["fault", "slow", part, "x0.05", "--for", "3s"]);
    assert!(said.contains("on 7 parts"), "{said}");
    let from = up.metric("supernode_virtual_seconds");
    up.until_s(from + 0.2);
    let during = up.tpot_ms(2.0);
    up.until_s(from + 3.5);
    let after = up.tpot_ms(1.0);
    println!("TPOT {before:.3} ms, {during:.3} ms while the link was slow, {after:.3} ms after");
    assert!(during > 1.1 * before, "{before} {during}");
    assert!(after < before + 0.3 * (during - before), "{before} {after}");

    let file = up.path("live.pftrace");
    let said = up.tell(&["trace", "state"]);
    assert!(
        said.contains("trace done") && said.contains("spans"),
        "{said}"
    );
    up.tell(&["trace", "fetch", &file]);
    let top = stdout_of(&["trace", "top", &file, "--json"]);
    let top: Value = serde_json::from_str(&top).unwrap();
    // Each lane that was slowed, by its own name.
    let struck: Vec<&str> = top["faults"]
        .as_array()
        .unwrap()
        .iter()
        .map(|f| f["part"].as_str().unwrap())
        .collect();
    let lanes: Vec<String> = (0..7).map(|i| format!("node1/npu3/die1/ub{i}")).collect();
    assert_eq!(struck, lanes);
    let link = "node1/npu3/die1/ub{0..6}";
    // Others wait for the die's flags, and the die for its link.
    let who = |i: usize| top["stragglers"][i]["who"].as_str().unwrap();
    assert_eq!(
        [who(0), who(1)],
        ["node1/npu3/die1", link],
        "{:#}",
        top["stragglers"]
    );
    let trace = Read::open(std::path::Path::new(&file)).unwrap();
    let roots = roots(&trace);
    let known = steps(&trace, &roots, 0);
    let step = known[known.len() / 2].to_string();
    let path = stdout_of(&["trace", "step", &file, &step, "--json"]);
    let path: Value = serde_json::from_str(&path).unwrap();
    let cause = path["causes"][0]["what"].as_str().unwrap();
    assert_eq!(cause, format!("link {link}"), "{path:#}");
}

#[test]
fn a_trace_is_started_stopped_and_fetched_and_asking_it_works() {
    let up = Up::new(&["--pace", "max"]);
    let nothing = up.ask("GET", "/api/trace", "").json();
    assert_eq!(nothing, json!({"state": "none"}));
    assert_eq!(up.ask("POST", "/api/trace/stop", "").status, 409);
    assert_eq!(up.ask("GET", "/api/trace/file", "").status, 404);
    for (body, param) in [
        (json!({"match": "node99"}), "match"),
        (json!({"requests": "many"}), "requests"),
        (json!({"limit": "0"}), "limit"),
        (json!({"limit": "1TB"}), "limit"),
        (json!({"for": "soon"}), "for"),
        (json!({"match": 7.5}), "match"),
    ] {
        let reply = up.post("/api/trace/start", body.clone());
        assert_eq!(reply.status, 400, "{body}: {reply:?}");
        assert_eq!(reply.json()["error"]["param"], param, "{body}");
    }
    let started = up.tell(&["trace", "start", "--requests", "100%", "--limit", "64MB"]);
    assert!(started.contains("trace running: all actors"), "{started}");
    let ask = json!({"prompt": "a b c ".repeat(300), "max_tokens": 9});
    let request = |n: u64| {
        let reply = up.post("/v1/completions", ask.clone());
        assert!(
            reply.head.contains(&format!("x-supernode-request: {n}")),
            "{}",
            reply.head
        );
    };
    request(0);
    request(1);
    // What there is of a trace that is being written can be read.
    let so_far = up.path("so-far.pftrace");
    let said = up.tell(&["trace", "fetch", &so_far]);
    assert!(said.contains("so far"), "{said}");
    Read::open(std::path::Path::new(&so_far)).unwrap();
    let stopped = up.post("/api/trace/stop", json!({})).json();
    assert_eq!(
        (&stopped["state"], &stopped["lost"]),
        (&json!("done"), &json!(0))
    );
    assert!(stopped["spans"].as_u64() > Some(1_000), "{stopped}");
    request(2);
    let file = up.path("whole.pftrace");
    up.tell(&["trace", "fetch", &file]);
    assert_eq!(std::fs::metadata(&file).unwrap().len(), stopped["bytes"]);
    for n in ["0", "1"] {
        let said = stdout_of(&["trace", "request", &file, n]);
        assert!(
            said.contains("TTFT") && said.contains("kv_transfer"),
            "{said}"
        );
    }
    refused(&["trace", "request", &file, "2"], &["request 2"]);

    // vLLM's routes; a trace that is done makes room for the next.
    assert_eq!(up.ask("POST", "/start_profile", "").status, 200);
    assert_eq!(up.ask("POST", "/start_profile", "").status, 409);
    request(3);
    assert_eq!(up.ask("POST", "/stop_profile", "").status, 200);
    let state = up.ask("GET", "/api/trace", "").json();
    assert_eq!(
        (&state["state"], &state["match"]),
        (&json!("done"), &Value::Null)
    );
    // It ends by itself when it has its full size.
    up.tell(&["trace", "start", "--requests", "100%", "--limit", "20kB"]);
    for n in 4..30 {
        request(n);
    }
    let state = up.ask("GET", "/api/trace", "").json();
    assert_eq!(
        (&state["state"], &state["full"]),
        (&json!("done"), &json!(true))
    );
    assert!(state["bytes"].as_u64() < Some(400_000), "{state}");
    up.end();
}
