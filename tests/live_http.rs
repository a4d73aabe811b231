//! `supernode up` from a client's side: answers streamed and whole, usage, errors, clients that go away or read slowly,
//! hostile bodies, a port that is taken, and recordings that replay.
#![cfg(unix)]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{command, file, refused, text};
use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

/// DeepSeek's shape with few layers and experts: a step costs the computer little.
const MODEL: &str = r#"
name = "small"
layers = 4
dense_layers = 1
hidden = 7168
heads = 128
q_lora_rank = 1536
kv_lora_rank = 512
qk_nope_head_dim = 128
qk_rope_head_dim = 64
v_head_dim = 128
dense_intermediate = 18432
moe_intermediate = 2048
routed_experts = 32
shared_experts = 1
top_k = 8
expert_groups = 8
top_groups = 4
vocab = 129280
mtp_layers = 1
max_context = 131072
"#;

/// A scenario of four nodes in a directory of its own.
fn scenario(dir: &TempDir) -> String {
    let model = file(dir, "model.toml", MODEL);
    file(
        dir,
        "scenario.toml",
        format!(
            "machine = \"mini4\"\nmodel = \"{model}\"\n\
             [prefill]\ninstances = 1\nnpus_per_instance = 8\nredundant = 0\nshared_replicas = 16\n\
             [decode]\nnpus_per_instance = 8\n[experts]\nredundant = 0\nshared_replicas = 16\n"
        ),
    )
}

/// A machine that is up, on a port of its own.
struct Up {
    child: Child,
    address: String,
    dir: TempDir,
}

impl Up {
    fn new(args: &[&str]) -> Self {
        let dir = tempdir().unwrap();
        let scenario = scenario(&dir);
        let mut child = command()
            .args(["up", &scenario, "--listen", "127.0.0.1:0", "--json", "-"])
            .args(args)
            .current_dir(dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        let address = line
            .split("http://")
            .nth(1)
            .and_then(|rest| rest.split(',').next())
            .unwrap_or_else(|| panic!("not up: {line}"))
            .to_string();
        // What it says later is not waited for, and must not fill the pipe.
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        Self {
            child,
            address,
            dir,
        }
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> Reply {
        self.ask_with(method, path, body.as_bytes(), &[])
    }

    fn post(&self, path: &str, body: Value) -> Reply {
        self.ask("POST", path, &body.to_string())
    }

    fn ask_with(&self, method: &str, path: &str, body: &[u8], headers: &[&str]) -> Reply {
        let mut stream = self.send(method, path, body, headers);
        let mut all = Vec::new();
        // A server that has said no may close before it has read all of a body.
        let _ = stream.read_to_end(&mut all);
        Reply::of(&all)
    }

    fn send(&self, method: &str, path: &str, body: &[u8], headers: &[&str]) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let host = &self.address;
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n",
            body.len()
        );
        for h in headers {
            head.push_str(&format!("{h}\r\n"));
        }
        stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
        let _ = stream.write_all(body);
        stream
    }

    fn state(&self) -> Value {
        self.ask("GET", "/api/state", "").json()
    }

    /// Looks at the state until it is as wanted.
    fn await_state(&self, what: &str, wanted: impl Fn(&Value) -> bool) {
        let began = Instant::now();
        loop {
            let state = self.state();
            if wanted(&state) {
                return;
            }
            assert!(began.elapsed() < Duration::from_secs(20), "{what}: {state}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Presses Ctrl-C and gives the report.
    fn end(mut self) -> Value {
        let sent = Command::new("kill")
            .args(["-INT", &self.child.id().to_string()])
            .status();
        assert!(sent.unwrap().success());
        let mut said = String::new();
        let mut out = self.child.stdout.take().unwrap();
        out.read_to_string(&mut said).unwrap();
        assert!(self.child.wait().unwrap().success());
        serde_json::from_str(&said).unwrap()
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[derive(Debug)]
struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    fn of(all: &[u8]) -> Self {
        let all = text(all);
        let (head, rest) = all.split_once("\r\n\r\n").unwrap_or((&all, ""));
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|s| s.parse().ok())
            .unwrap_or(0);
        let chunked = head
            .to_ascii_lowercase()
            .contains("transfer-encoding: chunked");
        Self {
            status,
            head: head.to_ascii_lowercase(),
            body: if chunked {
                unchunk(rest)
            } else {
                rest.to_string()
            },
        }
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// The events of a stream that has ended.
    fn events(&self) -> Vec<Value> {
        let mut events: Vec<&str> = self.body.split("\n\n").collect();
        assert_eq!(events.pop(), Some(""));
        assert_eq!(events.pop(), Some("data: [DONE]"));
        events
            .iter()
            .map(|e| serde_json::from_str(e.strip_prefix("data: ").unwrap()).unwrap())
            .collect()
    }
}

fn unchunk(mut rest: &str) -> String {
    let mut whole = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        whole.push_str(&after[..size]);
        rest = &after[size + 2..];
    }
    whole
}

fn words(text: &str) -> usize {
    text.split_whitespace().count()
}

#[test]
fn answers_are_the_same_streamed_and_whole_and_usage_counts_them() {
    let up = Up::new(&["--pace", "max"]);
    let ask = |extra: Value| {
        let mut body = json!({
            "model": "small", "max_tokens": 23, "unknown": {"field": 1},
            "messages": [{"role": "user", "content": [{"type": "text", "text": "Why is the sky blue?"}]}],
        });
        for (k, v) in extra.as_object().unwrap() {
            body[k] = v.clone();
        }
        up.post("/v1/chat/completions", body)
    };
    let whole = ask(json!({}));
    assert_eq!(whole.status, 200);
    for header in [
        "x-supernode-home: node0/cpu0",
        "x-supernode-prefill: node",
        "x-request-id: ",
    ] {
        assert!(whole.head.contains(header), "{header}: {}", whole.head);
    }
    let whole = whole.json();
    let content = whole["choices"][0]["message"]["content"].as_str().unwrap();
    let usage = &whole["usage"];
    assert_eq!(
        (words(content), &usage["completion_tokens"]),
        (23, &23.into())
    );
    assert_eq!(whole["choices"][0]["finish_reason"], "length");
    let counted = up.post("/tokenize", json!({"prompt": content})).json();
    assert_eq!(counted["count"], 23);

    let streamed = ask(json!({"stream": true, "stream_options": {"include_usage": true}}));
    assert!(streamed.head.contains("text/event-stream"));
    let events = streamed.events();
    assert_eq!(
        events[0]["choices"][0]["delta"],
        json!({"role": "assistant", "content": ""})
    );
    let last = events.last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["total_tokens"], usage["total_tokens"]);
    let finish = &events[events.len() - 2]["choices"][0];
    assert_eq!(finish["finish_reason"], "length");
    let deltas = &events[1..events.len() - 2];
    assert_eq!(deltas.len(), 23, "one chunk a token");
    let joined: String = deltas
        .iter()
        .map(|e| e["choices"][0]["delta"]["content"].as_str().unwrap())
        .collect();
    assert_eq!(joined, content);

    // A stop string ends the answer before it; choices differ.
    let stop = content.split(' ').nth(9).unwrap();
    let stopped = ask(json!({"stop": [format!(" {stop}")], "n": 2})).json();
    let first = &stopped["choices"][0];
    assert_eq!(first["finish_reason"], "stop");
    let cut = first["message"]["content"].as_str().unwrap();
    assert!(content.starts_with(cut) && words(cut) <= 8, "{cut:?}");
    assert_ne!(cut, stopped["choices"][1]["message"]["content"]);
}

#[test]
fn every_form_of_prompt_is_taken_and_a_repeated_one_comes_from_the_cache() {
    let up = Up::new(&["--pace", "max"]);
    let ids: Vec<u32> = (0..1_300).collect();
    for (prompt, tokens, choices) in [
        (json!("one two three"), 3, 1),
        (json!(["one", "two three"]), 3, 2),
        (json!(ids), 1_300, 1),
        (json!([[1, 2], [3]]), 3, 2),
    ] {
        let body = json!({"prompt": prompt, "max_completion_tokens": 4, "max_tokens": 900});
        let answer = up.post("/v1/completions", body).json();
        assert_eq!(answer["usage"]["prompt_tokens"], tokens, "{prompt}");
        assert_eq!(answer["choices"].as_array().unwrap().len(), choices);
        assert_eq!(answer["usage"]["completion_tokens"], 4 * choices);
    }
    let again = || up.post("/v1/completions", json!({"prompt": ids, "max_tokens": 1}));
    let cached =
        |reply: Reply| reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"].clone();
    assert_eq!(cached(again()), 1_024);
    assert_eq!(up.post("/reset_prefix_cache", json!({})).status, 200);
    assert_eq!(cached(again()), 0);
}

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
fn a_client_that_goes_away_frees_what_its_request_held() {
    let up = Up::new(&["--pace", "1"]);
    let body = json!({"prompt": "tell me", "max_tokens": 100_000, "stream": true, "n": 3});
    let mut stream = up.send("POST", "/v1/completions", body.to_string().as_bytes(), &[]);
    let mut some = [0; 2_000];
    stream.read_exact(&mut some).unwrap();
    let waiting = up.send(
        "POST",
        "/v1/completions",
        json!({"prompt": "tell me all", "max_tokens": 100_000})
            .to_string()
            .as_bytes(),
        &[],
    );
    up.await_state("all are in", |s| s["decode"]["slots_used"] == 4);
    drop(stream);
    drop(waiting);
    up.await_state("all is given back", |s| {
        s["requests"]["cancelled"] == 4
            && s["requests"]["open"] == 0
            && s["decode"]["slots_used"] == 0
            && s["decode"]["kv_tokens"] == 0
    });
    let report = up.end();
    assert_eq!(report["requests"]["cancelled"], 4);
}

#[test]
fn a_full_machine_says_when_to_come_back() {
    let up = Up::new(&["--pace", "1", "--max-requests", "2"]);
    let long = json!({"prompt": "x", "max_tokens": 100_000, "stream": true});
    let held = up.send("POST", "/v1/completions", long.to_string().as_bytes(), &[]);
    up.await_state("one is in", |s| s["requests"]["open"] == 1);
    let two = json!({"prompt": "x", "max_tokens": 3, "n": 2});
    let reply = up.post("/v1/completions", two);
    assert_eq!(reply.status, 429);
    assert!(reply.head.contains("retry-after: 1"), "{}", reply.head);
    assert_eq!(reply.json()["error"]["type"], "rate_limit_error");
    let one = json!({"prompt": "x", "max_tokens": 3});
    assert_eq!(up.post("/v1/completions", one).status, 200);
    drop(held);
}

#[test]
fn a_slow_reader_holds_nobody_up() {
    let up = Up::new(&["--pace", "max"]);
    let long = json!({"prompt": "x", "max_tokens": 60_000, "stream": true});
    let mut slow = up.send("POST", "/v1/completions", long.to_string().as_bytes(), &[]);
    // Its 9 MB do not fit into any buffer, and it does not read.
    up.await_state("the slow one's tokens are made", |s| {
        s["requests"]["open"] == 0 && s["requests"]["completed"] == 1
    });
    for _ in 0..5 {
        let quick = json!({"prompt": "y", "max_tokens": 20, "stream": true});
        assert_eq!(up.post("/v1/completions", quick).events().len(), 21);
    }
    let mut all = Vec::new();
    slow.read_to_end(&mut all).unwrap();
    assert_eq!(Reply::of(&all).events().len(), 60_001);
}

#[test]
fn wrong_requests_are_answered_in_the_shape_of_openai() {
    let up = Up::new(&["--pace", "max"]);
    for (path, body, status, param) in [
        ("/v1/chat/completions", json!({}), 400, json!("messages")),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": 1}]}),
            400,
            json!("messages"),
        ),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
            400,
            json!("messages"),
        ),
        (
            "/v1/completions",
            json!({"prompt": "a", "model": "gpt-9"}),
            404,
            json!("model"),
        ),
        (
            "/v1/completions",
            json!({"prompt": "a", "max_tokens": 0}),
            400,
            json!("max_tokens"),
        ),
        (
            "/v1/completions",
            json!({"prompt": "a", "max_tokens": 131_072}),
            400,
            json!("messages"),
        ),
        (
            "/v1/completions",
            json!({"prompt": "a", "n": "two"}),
            400,
            json!("n"),
        ),
        (
            "/v1/completions",
            json!({"prompt": "a", "stop": [1]}),
            400,
            json!("stop"),
        ),
        (
            "/v1/completions",
            json!({"prompt": [1.5]}),
            400,
            json!("prompt"),
        ),
        (
            "/v1/completions",
            json!({"prompt": [999_999]}),
            400,
            json!("prompt"),
        ),
        (
            "/v1/completions",
            json!({"prompt": []}),
            400,
            json!("prompt"),
        ),
        (
            "/v1/completions",
            json!({"prompt": "a", "stream": "yes"}),
            400,
            json!("stream"),
        ),
        ("/v1/completions", json!([1]), 400, json!(null)),
        ("/nowhere", json!({}), 404, json!(null)),
    ] {
        let reply = up.post(path, body.clone());
        assert_eq!(reply.status, status, "{path} {body}: {}", reply.body);
        let error = &reply.json()["error"];
        assert_eq!(
            (&error["param"], &error["type"]),
            (&param, &json!("invalid_request_error")),
            "{body}"
        );
        assert!(error["message"].as_str().unwrap().len() > 10);
    }
    let put = |body: Value| up.ask("PUT", "/api/pace", &body.to_string());
    assert_eq!(put(json!({"pace": "sideways"})).status, 400);
    assert_eq!(put(json!({"pace": 0.5})).json()["set"], "0.5");
}

#[test]
fn hostile_bodies_are_refused_and_break_nothing() {
    let up = Up::new(&["--pace", "max"]);
    let good = json!({
        "model": "small", "messages": [{"role": "user", "content": "hi"}], "stop": ["x", "y"], "n": 2,
        "max_tokens": 2, "stream": false, "stream_options": {"include_usage": true}, "prompt": [[1, 2], [3]],
    })
    .to_string();
    let mut seed = 7u64;
    let mut draw = |n: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) as usize % n
    };
    for i in 0..300 {
        let mut body = good.clone().into_bytes();
        for _ in 0..=draw(4) {
            let at = draw(body.len());
            match draw(4) {
                0 => body[at] = draw(256) as u8,
                1 => drop(body.drain(at..(at + draw(20)).min(body.len()))),
                2 => body.truncate(at.max(1)),
                _ => body
                    .splice(at..at, b"[{\"-1e999".iter().copied())
                    .for_each(drop),
            }
        }
        let path = [
            "/v1/chat/completions",
            "/v1/completions",
            "/tokenize",
            "/detokenize",
        ][i % 4];
        let reply = up.ask_with("POST", path, &body, &[]);
        let shown = String::from_utf8_lossy(&body);
        assert!(
            matches!(reply.status, 200 | 400 | 404),
            "{path}: {shown}: {reply:?}"
        );
    }
    let deep = "[".repeat(100_000);
    assert_eq!(up.ask("POST", "/v1/completions", &deep).status, 400);
    let huge = vec![b' '; 33 << 20];
    let reply = up.ask_with("POST", "/v1/completions", &huge, &[]);
    assert!(matches!(reply.status, 413 | 0), "{reply:?}");
    assert_eq!(up.ask("GET", "/health", "").status, 200);
    up.end();
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
