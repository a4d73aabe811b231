//! Traces: files that are the same whatever the shards, that add up to the report and to every request, to the
//! picosecond, and that show what was wrong with which part, and how much there was to do.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use common::traced::{keep, trace_of};
use common::{refused, stdout_of};
use supernode::rundir::RunDir;
use supernode::trace::Read;
use supernode::trace::ask::request;
use supernode::trace::events::Key;
use supernode_actors::time::{PS_PER_MS, Ps};
use supernode_actors::trace::{Mark, What};
use tempfile::tempdir;

#[test]
fn a_trace_adds_up_to_the_report_and_to_each_request() {
    let dir = tempdir().unwrap();
    let out = keep(&dir, "run", &["--trace-requests", "100%"]);
    let run = RunDir::open(Path::new(&out)).unwrap();
    let trace = trace_of(&out);
    assert!(trace.slices.len() > 5_000);
    assert!((trace.bytes as f64) < 100.0 * trace.slices.len() as f64);
    // Each word is in the file once: everything else refers to it by number.
    let bytes = std::fs::read(format!("{out}/trace.pftrace")).unwrap();
    for word in [
        "waited_ps",
        "expert_tokens",
        "start_sub_ps",
        "held_up_by",
        "prompt_tokens",
    ] {
        let times = bytes.windows(word.len()).filter(|w| *w == word.as_bytes());
        assert_eq!(times.count(), 1, "{word}");
    }

    // By die and stage, what actors measured of themselves; over all dies, what the report says.
    let mut sums: BTreeMap<(String, &str, &str), u64> = BTreeMap::new();
    for s in &trace.slices {
        if let What::Stage(stage) = s.what {
            let pool = if stage.is_decode() {
                "decode"
            } else {
                "prefill"
            };
            let die = trace.actor(s.track).to_string();
            *sums.entry((die, pool, stage.name())).or_default() += s.ps();
        }
    }
    let report = run.report().unwrap();
    let mut total: BTreeMap<(String, String), (u64, u64)> = BTreeMap::new();
    for row in run.stages().unwrap() {
        let key = (row.address.clone(), row.pool.as_str(), row.stage.as_str());
        let got = sums
            .iter()
            .find(|(k, _)| (k.0.as_str(), k.1, k.2) == (&key.0, key.1, key.2));
        assert_eq!(got.map_or(0, |g| *g.1), row.sum_ps, "{key:?}");
        let t = total.entry((row.pool, row.stage)).or_default();
        *t = (t.0 + row.sum_ps, t.1 + row.count);
    }
    for ((pool, stage), (sum, n)) in &total {
        let us = report["layer_us"][pool][stage].as_f64().unwrap();
        let got = *sum as f64 / 1e6 / *n as f64;
        assert!((us - got).abs() <= 1e-9 * us, "{pool} {stage}: {us} {got}");
    }
    assert!(total.len() >= 15);

    // Stages of a request follow each other, and end where the home says.
    let rows = run.requests().unwrap();
    assert_eq!(request::ids(&trace).len(), rows.len());
    for row in rows {
        let path = request::of(&trace, row.id).unwrap();
        assert_eq!(path.arrival_ps, row.arrival_ps);
        let sum = |stages: &[request::StageOf]| stages.iter().map(|s| s.ps).sum::<Ps>();
        assert_eq!(path.ttft_ps, Some(row.first_token_ps - row.arrival_ps));
        assert_eq!(Some(sum(&path.ttft)), path.ttft_ps);
        assert_eq!(path.total_ps, Some(row.end_ps - row.arrival_ps));
        assert_eq!(Some(sum(&path.total)), path.total_ps);
        let mut at = 0;
        for s in &path.total {
            assert_eq!(s.start_ps, at, "{s:?}");
            at += s.ps;
        }
        assert_eq!(path.complete, Some(true));
        // Some tokens come two at a time.
        assert!((1..=2).contains(&path.steps) && path.steps_seen == path.steps);
    }
    let said = stdout_of(&["trace", "request", &out, "2"]);
    for part in [
        "TTFT",
        "batch_wait",
        "kv_transfer",
        "decode_step",
        "attention",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    refused(
        &["trace", "request", &out, "99"],
        &["request 99", "0, 1, 2, 3"],
    );
    let top = stdout_of(&["trace", "top", &out]);
    assert!(
        top.contains("hot links") && top.contains("stragglers"),
        "{top}"
    );
}

#[test]
fn the_bytes_of_a_trace_do_not_depend_on_shards() {
    let dir = tempdir().unwrap();
    let read = |run: &str| std::fs::read(format!("{run}/trace.pftrace")).unwrap();
    let more = |shards: &'static str| ["--shards", shards, "--trace-match", "node1/**"];
    let one = keep(&dir, "one", &more("1"));
    let two = keep(&dir, "two", &more("2"));
    let four = keep(&dir, "four", &more("4"));
    assert!(read(&one) == read(&two) && read(&one) == read(&four));
    // Only what was asked for: actors by address.
    let trace = trace_of(&one);
    let of_actors = trace
        .slices
        .iter()
        .filter(|s| !matches!(s.what, What::Mark(_)));
    assert!(of_actors.clone().count() > 1_000);
    assert!(
        of_actors
            .clone()
            .all(|s| trace.actor(s.track).starts_with("node1/"))
    );
    // By time, and by share of requests.
    let from_to = ["--trace-window", "170ms..180ms", "--trace-requests", "0%"];
    let short = trace_of(&keep(&dir, "short", &from_to));
    assert!(!short.slices.is_empty());
    let (from, to) = (170_000_000_000, 180_000_000_000);
    assert!(
        short
            .slices
            .iter()
            .all(|s| s.end_ps >= from && s.start_ps < to)
    );
    // By size.
    let limited = keep(&dir, "limited", &["--trace-limit", "200kB"]);
    let trace = trace_of(&limited);
    assert!((150_000..400_000).contains(&trace.bytes), "{}", trace.bytes);
    assert_eq!(request::ids(&trace).len(), 4);
}

/// Stages of every request that ended follow each other without gaps, and add up to what its home says.
fn requests_add_up(run: &RunDir, trace: &Read) {
    let sum = |stages: &[request::StageOf]| stages.iter().map(|s| s.ps).sum::<Ps>();
    let rows = run.requests().unwrap();
    assert_eq!(request::ids(trace).len(), rows.len());
    for row in rows {
        let path = request::of(trace, row.id).unwrap();
        let complete = row.outcome == "completed";
        assert_eq!(path.complete, Some(complete), "request {}", row.id);
        assert_eq!(path.total_ps, Some(row.end_ps - row.arrival_ps));
        assert_eq!(Some(sum(&path.total)), path.total_ps);
        if complete {
            assert_eq!(path.ttft_ps, Some(row.first_token_ps - row.arrival_ps));
            let mut first = trace.slices.iter().filter(|s| {
                s.what == What::Mark(Mark::FirstToken) && s.notes.count(Key::Request) == row.id
            });
            assert_eq!(
                first.next().and_then(|s| s.notes.uint(Key::TtftPs)),
                path.ttft_ps
            );
        }
        assert_eq!(
            path.ttft_ps.unwrap_or(0),
            sum(&path.ttft),
            "request {}",
            row.id
        );
        let mut at = 0;
        for s in &path.total {
            assert_eq!(s.start_ps, at, "{s:?}");
            at += s.ps;
        }
    }
}

#[test]
fn the_simulator_says_where_its_own_time_goes() {
    let small = common::traced::small();
    let mut args: Vec<&str> = vec!["run", "--profile"];
    args.extend(small.iter().map(String::as_str));
    let ran = common::command()
        .args(&args)
        .env("RUST_LOG", "supernode=debug,supernode_actors=debug")
        .output()
        .unwrap();
    let said = common::text(&ran.stdout);
    for part in ["handled by", "prefill die", "decode die", "in actors"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let log = common::text(&ran.stderr);
    for part in ["launched", "slice{shards=", "windows=", "ran seconds="] {
        assert!(log.contains(part), "{part}: {log}");
    }
}

/// Chats whose turns find the blocks of the turns before.
const CHATS: &[&str] = &[
    "--set",
    "workload.kind=trace",
    "--set",
    "workload.output_tokens=40",
    "--set",
    "workload.requests=24",
    "--set",
    "fidelity.level=step",
    "--trace-requests",
    "100%",
];

#[test]
fn requests_add_up_with_faults_and_with_blocks_that_were_cached() {
    let dir = tempdir().unwrap();
    // Three chats of eight turns: a turn's first blocks are those of the turn before.
    let lines: String = (0..24u64)
        .map(|i| {
            let (chat, turn) = (i % 3, i / 3);
            let blocks: Vec<String> = (0..=turn).map(|b| (chat * 100 + b).to_string()).collect();
            format!(
                "{{\"timestamp\": {}, \"input_length\": {}, \"output_length\": 40, \"hash_ids\": [{}]}}\n",
                i * 300,
                512 * (turn + 1),
                blocks.join(", ")
            )
        })
        .collect();
    let file = common::file(&dir, "chats.jsonl", lines);
    let mut more = vec!["--workload", &file];
    more.extend(CHATS);
    let cached = keep(&dir, "cached", &more);
    let run = RunDir::open(Path::new(&cached)).unwrap();
    let hits = run.report().unwrap()["cache"]["hit_blocks"]
        .as_u64()
        .unwrap();
    assert!(hits > 10, "{hits}");
    let trace = trace_of(&cached);
    let read = |s: &&supernode::trace::Slice| s.what == What::Mark(Mark::BlocksRead) && s.ps() > 0;
    assert!(trace.slices.iter().filter(read).count() > 10);
    requests_add_up(&run, &trace);

    // A decode die and a home die on the way: their requests begin again.
    more.extend([
        "--fault",
        "at 1400ms: crash node1/npu1/die0 restart 2s",
        "--fault",
        "at 2500ms: crash node1/cpu2 restart 1s",
    ]);
    let faulty = keep(&dir, "faulty", &more);
    let run = RunDir::open(Path::new(&faulty)).unwrap();
    let trace = trace_of(&faulty);
    let retried = |s: &&supernode::trace::Slice| s.what == What::Mark(Mark::Retried);
    assert!(trace.slices.iter().filter(retried).count() > 0);
    requests_add_up(&run, &trace);
}

#[test]
fn faults_are_spans_on_the_parts_they_hit_and_counters_say_how_much_there_is_to_do() {
    let dir = tempdir().unwrap();
    let faults = [
        "--fault",
        "at 5ms for 20ms: throttle node1/npu3/die1 x0.4",
        "--fault",
        "at 10ms for 5ms: hbm_slow node1/npu3/die1 x0.8",
        "--fault",
        "at 12ms: slow node0/npu0/die0/ub4 x0.3",
    ];
    let out = keep(&dir, "run", &faults);
    let trace = trace_of(&out);
    let faults: Vec<_> = trace.faults().collect();
    let ms = |from, to| (from * PS_PER_MS, to * PS_PER_MS);
    let last_ps = trace.slices.iter().map(|s| s.end_ps).max().unwrap();
    let expected = [
        ("node1/npu3/die1", "throttle x0.4", ms(5, 25)),
        ("node1/npu3/die1", "hbm_slow x0.8", ms(10, 15)),
        (
            "node0/npu0/die0/ub4",
            "slow x0.3",
            (12 * PS_PER_MS, last_ps),
        ),
    ];
    assert_eq!(faults, expected);
    let top = stdout_of(&["trace", "top", &out]);
    for part in ["node0/npu0/die0/ub4", "slow x0.3", "throttle x0.4"] {
        assert!(top.contains(part), "{part}: {top}");
    }

    let counters: BTreeSet<&str> = trace
        .counted
        .iter()
        .map(|c| trace.stream(c.track))
        .collect();
    let expected = [
        "KV memory",
        "bandwidth in",
        "bandwidth out",
        "batch size",
        "claims waiting",
        "prompts waiting",
    ];
    assert_eq!(counters, BTreeSet::from(expected));
    // What the curve of a link's bandwidth has below it is what its spans carried.
    let mut carried: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for s in &trace.slices {
        let way = match s.what {
            What::PhaseOut | What::TransferOut => "bandwidth out",
            What::PhaseIn | What::TransferIn => "bandwidth in",
            _ => continue,
        };
        let bytes = s.notes.count(Key::Bytes);
        *carried.entry((trace.actor(s.track), way)).or_default() += bytes;
    }
    assert!(carried.len() > 60);
    for ((link, way), bytes) in carried {
        is_below_the_curve(&trace, link, way, bytes);
    }
}

/// What the curve of a link's bandwidth has below it is about so many bytes.
fn is_below_the_curve(trace: &Read, link: &str, way: &str, bytes: u64) {
    let of = |c: &&supernode::trace::Counted| {
        trace.actor(c.track) == link && trace.stream(c.track) == way
    };
    let curve: Vec<_> = trace.counted.iter().filter(of).collect();
    let pieces = curve.windows(2);
    let shown: f64 = pieces
        .map(|w| (w[1].at_ps - w[0].at_ps) as f64 / 1e6 * w[0].value as f64)
        .sum();
    assert_eq!(curve.last().map(|c| c.value), Some(0), "{link} {way}");
    let most = (bytes as f64 - shown).abs();
    // Megabytes a second are whole numbers: up to 500 bytes of each stretch are not seen.
    assert!(
        most <= 0.02 * bytes as f64 + 500.0 * 400.0,
        "{link} {way}: {bytes} {shown}"
    );
}

#[test]
fn counters_show_what_crosses_the_links_between_switches() {
    let dir = tempdir().unwrap();
    // A decode group over two nodes; prompts' blocks go to CPUs of all three nodes.
    let more = ["--set", "decode.npus_per_instance=16"];
    let out = keep(&dir, "run", &more);
    let (trace, run) = (trace_of(&out), RunDir::open(Path::new(&out)).unwrap());
    let rows = run.actors().unwrap();
    let uplinks: Vec<_> = rows.iter().filter(|r| r.kind == "uplink").collect();
    let nodes: BTreeSet<&str> = uplinks.iter().map(|r| r.address.as_str()).collect();
    assert_eq!(nodes.len(), 3, "{nodes:?}");
    for r in uplinks {
        let way = if r.side == "up" {
            "bandwidth out"
        } else {
            "bandwidth in"
        };
        is_below_the_curve(&trace, &r.address, way, r.bytes * u64::from(r.count));
    }
    // One lane or uplink of a part selects the track that stands for all of them.
    for link in ["node1/l1.4/up9", "node1/npu3/die1/ub4"] {
        let out = keep(&dir, "one", &["--trace-match", link, more[0], more[1]]);
        let trace = trace_of(&out);
        let tracks: BTreeSet<&str> = trace.counted.iter().map(|c| trace.actor(c.track)).collect();
        assert_eq!(tracks.len(), 1, "{tracks:?}");
        let (part, _) = link.rsplit_once('/').unwrap();
        assert!(
            tracks.iter().all(|t| t.starts_with(&part[..8])),
            "{tracks:?}"
        );
    }
}
