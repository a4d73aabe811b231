//! Traces: files that Perfetto opens, that are the same whatever the shards, and that answer where the time went, to
//! the picosecond. Causes that were planted are found first.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::{file, refused, stdout_of, supernode, text};
use supernode::run::{Extras, Prepared, Recording};
use supernode::rundir::RunDir;
use supernode::scenario::Loader;
use supernode::trace::ask::path::{StepSpans, roots};
use supernode::trace::ask::{request, step};
use supernode::trace::{Header, Read, Sink, TraceOptions};
use supernode_actors::launch::Flow;
use supernode_actors::time::Ps;
use supernode_actors::trace::What;
use tempfile::{TempDir, tempdir};

/// A small machine, a few requests, every message routed.
const SMALL: &[&str] = &[
    "machine=mini4",
    "prefill.instances=1",
    "prefill.npus_per_instance=8",
    // Small batches need small buffers: the weights of so few dies leave little room.
    "prefill.batch_tokens_per_npu=1024",
    "prefill.redundant=0",
    "prefill.shared_replicas=0",
    "decode.npus_per_instance=8",
    "experts.redundant=0",
    "experts.shared_replicas=0",
    "fidelity.level=message",
    "workload.kind=open",
    "workload.rate_per_s=300",
    "workload.prompt_tokens=700",
    "workload.output_tokens=3",
    "workload.requests=4",
];

/// A loaded decode group: every die has the same requests.
const DECODE: &[&str] = &[
    "workload.kind=closed",
    "workload.phase=decode",
    "workload.concurrency_per_npu=16",
    "workload.requests=128",
    "workload.prompt_tokens=2000",
];

fn keep(dir: &TempDir, name: &str, more: &[&str]) -> String {
    let out = dir.path().join(name).display().to_string();
    let mut args = vec!["run", "-q", "--out", &out];
    args.extend(SMALL.iter().flat_map(|set| ["--set", set]));
    args.extend(more);
    let ran = supernode(&args);
    assert!(ran.status.success(), "{}", text(&ran.stderr));
    out
}

fn trace_of(run: &str) -> Read {
    Read::open(&Path::new(run).join("trace.pftrace")).unwrap()
}

#[test]
fn a_trace_adds_up_to_the_report_and_to_each_request() {
    let dir = tempdir().unwrap();
    let out = keep(&dir, "run", &["--trace-requests", "100%"]);
    let run = RunDir::open(Path::new(&out)).unwrap();
    let trace = trace_of(&out);
    assert!(trace.slices.len() > 5_000);
    assert!((trace.bytes as f64) < 100.0 * trace.slices.len() as f64);

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

#[test]
fn a_file_that_is_no_whole_trace_is_told_so() {
    let dir = tempdir().unwrap();
    let out = keep(&dir, "run", &["--trace-limit", "100kB"]);
    let whole = std::fs::read(format!("{out}/trace.pftrace")).unwrap();
    let ask = |name: &str, bytes: &[u8], expected: &[&str]| {
        let path = file(&dir, name, bytes);
        for question in ["request", "step", "top"] {
            refused(&["trace", question, &path], expected);
        }
    };
    ask(
        "cut",
        &whole[..whole.len() - 3],
        &["truncated", "trace the run again"],
    );
    ask("empty", b"", &["is empty"]);
    ask(
        "text",
        b"{\"traceEvents\": []}",
        &["not a trace of Supernode"],
    );
    ask("head", &whole[..40], &["not a trace of Supernode"]);
    let at = whole
        .windows(12)
        .position(|w| w == b"\"version\":1,")
        .unwrap();
    let mut other = whole.clone();
    other[at + 10] = b'7';
    ask("other", &other, &["version 7", "reads version 1"]);
    refused(&["trace", "top", "nowhere.pftrace"], &["nowhere.pftrace"]);
    refused(&["run", "--trace-match", "node0"], &["--trace FILE"]);
    refused(
        &["run", "--trace", "/tmp", "--requests", "1"],
        &["--trace", "is a directory"],
    );
    let to = dir.path().join("t").display().to_string();
    refused(
        &["run", "--trace", &to, "--trace-match", "node77"],
        &["--trace-match", "node77"],
    );
}

#[cfg(unix)]
#[test]
fn a_full_disk_does_not_end_the_run() {
    if !Path::new("/dev/full").exists() {
        println!("skipped: there is no /dev/full");
        return;
    }
    let mut args = vec!["run", "--trace", "/dev/full"];
    args.extend(SMALL.iter().flat_map(|set| ["--set", set]));
    let ran = supernode(&args);
    let said = text(&ran.stderr);
    assert_eq!(ran.status.code(), Some(1), "{said}");
    assert!(
        said.contains("cannot write all of the trace to /dev/full"),
        "{said}"
    );
    assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    assert!(text(&ran.stdout).contains("goodput"));
}

/// Traces a loaded decode group in which something is wrong.
fn planted(dir: &TempDir, name: &str, more: &[&str], fault: Option<&str>) -> PathBuf {
    let path = dir.path().join(name);
    let mut loader = Loader::new();
    for set in SMALL.iter().chain(DECODE).chain(more) {
        loader.set(set).unwrap();
    }
    let mut prepared = Prepared::new(loader.load().unwrap()).unwrap();
    if let Some(line) = fault {
        prepared.break_parts(&[], &[line.to_string()]).unwrap();
    }
    let options = TraceOptions {
        pattern: None,
        from_ps: 0,
        until_ps: Ps::MAX,
        requests: 0.0,
        bytes_max: 1 << 30,
    };
    let header = Header::of(&prepared.scenario);
    let machine = prepared.machine.clone();
    let spec = options.spec(&machine, 1).unwrap();
    let mut sink = Sink::create(&path, machine, &header, &options).unwrap();
    let mut take = |recorded| sink.take(recorded);
    let extras = Extras {
        recording: Some(Recording {
            spec,
            take: &mut take,
        }),
        ..Extras::default()
    };
    prepared
        .run_with(2, extras, &mut |_| Flow::Continue)
        .unwrap();
    sink.finish().unwrap();
    path
}

/// What the second step waited for most; the path is whole.
fn first_cause(path: &Path) -> String {
    let trace = Read::open(path).unwrap();
    let roots = roots(&trace);
    assert_eq!(roots.len(), 1);
    let spans = StepSpans::of(&trace, &roots, 0, 2);
    assert_eq!(spans.ranks.len(), 16);
    let found = step::of(&spans, 2);
    assert_eq!(found.broken, None);
    let whole = spans.whole.unwrap();
    // Before the path begins, the root's word goes round; after it, the ranks' go back.
    assert!(found.path_ps <= whole.ps() && found.path_ps * 100 > whole.ps() * 97);
    assert_eq!(found.path_ps, found.stages_ps.values().sum::<Ps>());
    for c in found.causes.iter().take(3) {
        println!("{} {} {}", c.what, c.excess_ps / 1_000_000, c.stage);
    }
    found.causes[0].what.clone()
}

#[test]
fn planted_causes_are_found_first() {
    let dir = tempdir().unwrap();
    let throttled = planted(
        &dir,
        "throttled",
        &[],
        Some("at 1us: throttle node0/npu3/die1 x0.5"),
    );
    assert_eq!(first_cause(&throttled), "die node0/npu3/die1");
    // One expert gets a sixth of all tokens, and nobody balances.
    let loads: String = (0..58)
        .flat_map(|layer| (0..256).map(move |e| (layer, e)))
        .map(|(layer, e)| format!("{layer},{e},{}\n", if e == 100 { 50 } else { 1 }))
        .collect();
    let loads = file(&dir, "loads.csv", format!("layer,expert,load\n{loads}"));
    let load_file = format!("experts.load_file={loads}");
    let hot = planted(&dir, "hot", &[&load_file, "experts.balance=none"], None);
    let cause = first_cause(&hot);
    assert!(cause.starts_with("expert 100 on node0/"), "{cause}");
}

#[test]
fn a_diff_ranks_the_part_that_was_slowed_first_and_a_page_needs_nothing_else() {
    let dir = tempdir().unwrap();
    let (a, b) = (
        keep(&dir, "a", &[]),
        dir.path().join("b").display().to_string(),
    );
    let mut args = vec!["run", "-q", "--out", &b];
    args.extend(SMALL.iter().flat_map(|set| ["--set", set]));
    args.extend(["--fault", "at 1us: throttle node1/npu3/die1 x0.4"]);
    let ran = supernode(&args);
    assert!(ran.status.success(), "{}", text(&ran.stderr));
    let diff = stdout_of(&["trace", "diff", &a, &b, "--json"]);
    let diff: serde_json::Value = serde_json::from_str(&diff).unwrap();
    assert_eq!(diff["actors"][0]["actor"], "node1/npu3/die1", "{diff:#}");
    let page = stdout_of(&["report", &a, "--html", "-"]);
    assert!(page.starts_with("<!doctype html>") && page.trim_end().ends_with("</html>"));
    for never in ["http://", "https://", "src=", "<link", "@import", "NaN"] {
        assert!(!page.contains(never), "{never}");
    }
    assert!(page.contains("node1/npu3/die1") && page.contains("timeline of decode step"));
}
