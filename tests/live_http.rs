//! `supernode up` from a client's side: answers streamed and whole, usage, errors, clients that go away or read slowly,
//! hostile bodies.
#![cfg(unix)]

mod common;

use std::io::Read;

use common::live::{Reply, Up, words};
use serde_json::{Value, json};

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
        "fault": "slow node1/npu0/die0/ub1 x0.9", "for": "1ms", "in": "2ms", "match": "node0/**", "requests": "1%", "limit": "9kB",
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
            if body.is_empty() {
                break;
            }
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
            "/api/faults",
            "/api/trace/start",
        ][i % 6];
        let reply = up.ask_with("POST", path, &body, &[]);
        let shown = String::from_utf8_lossy(&body);
        assert!(
            matches!(reply.status, 200 | 400 | 404 | 409),
            "{path}: {shown}: {reply:?}"
        );
    }
    let deep = "[".repeat(100_000);
    assert_eq!(up.ask("POST", "/v1/completions", &deep).status, 400);
    // A body that says it is too large is not waited for; one that does not say so is read no further than it may be.
    for path in ["/v1/chat/completions", "/tokenize", "/api/faults"] {
        let mut stream = up.send("POST", path, b"", &["Content-Length: 34603008"]);
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 413", "{path}");
    }
    let huge = format!("{:x}\r\n{}\r\n0\r\n\r\n", 33 << 20, " ".repeat(33 << 20));
    let head = ["Transfer-Encoding: chunked"];
    let reply = up.ask_with("POST", "/v1/completions", huge.as_bytes(), &head);
    // The connection may be gone before the answer is read.
    assert!(matches!(reply.status, 413 | 0), "{reply:?}");
    assert_eq!(up.ask("GET", "/health", "").status, 200);
    up.end();
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
