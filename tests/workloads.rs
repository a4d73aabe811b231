//! Workloads as a scenario asks for them: what is read, drawn, scaled and cut, and what is said about it.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;
use std::time::Instant;

use supernode::scenario::{Format, Loader, Scenario};
use supernode::workload::{self, Profile, Recipe, Wanted, Workload, generate};
use supernode_actors::launch::Phase;
use supernode_actors::model::ModelSpec;
use supernode_actors::request::Prefix;
use supernode_actors::time::{PS_PER_S, s_from_ps};

fn scenario(sets: &[&str]) -> Scenario {
    let mut loader = Loader::new();
    for set in sets {
        loader.set(set).unwrap();
    }
    loader.load().unwrap()
}

fn build(sets: &[&str]) -> Workload {
    workload::build(&scenario(sets), &ModelSpec::builtin("deepseek-r1").unwrap()).unwrap()
}

fn arrivals_s(w: &Workload) -> Vec<f64> {
    w.load
        .requests
        .iter()
        .map(|r| s_from_ps(r.arrival_ps))
        .collect()
}

fn noted(w: &Workload, part: &str) -> bool {
    w.notes.iter().any(|n| n.contains(part))
}

/// A Mooncake trace of `n` requests, `per_bucket` of them at the same 3-second tick.
fn bucketed(dir: &tempfile::TempDir, n: u64, per_bucket: u64) -> String {
    let mut text = String::new();
    for i in 0..n {
        writeln!(
            text,
            "{{\"timestamp\": {}, \"input_length\": 1000, \"output_length\": 9, \"hash_ids\": [0, {}]}}",
            i / per_bucket * 3_000,
            i + 1
        )
        .unwrap();
    }
    let path = dir.path().join("bucketed.jsonl");
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn the_default_workload_is_the_one_that_its_recipe_makes() {
    let w = build(&[]);
    assert_eq!((w.load.phase, w.load.concurrency), (Phase::Both, None));
    assert!((2_000..10_000).contains(&w.load.requests.len()));
    let span_s = arrivals_s(&w).last().copied().unwrap();
    assert!((60.0..120.0).contains(&span_s), "{span_s}");
    assert!(w.load.requests.iter().all(|r| matches!(
        r.prefix,
        Prefix::Blocks {
            block_tokens: 512,
            ..
        }
    )));

    let mut made = Vec::new();
    let recipe = Recipe {
        profile: Profile::Conversation,
        seed: 1,
        requests: 3_000,
        rate_per_s: 30.0,
    };
    generate::generate(&recipe, &mut made).unwrap();
    let mut shipped = Vec::new();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios/workloads/default.jsonl.gz");
    let packed = std::fs::File::open(file).unwrap();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(packed), &mut shipped).unwrap();
    assert!(
        made == shipped,
        "scenarios/workloads/default.jsonl.gz is not what `supernode workload generate` makes"
    );
}

#[test]
fn equal_seeds_give_equal_workloads() {
    let sets = [
        "workload.kind=open",
        "workload.rate_per_s=100",
        "workload.requests=2000",
        "workload.prompt_tokens={mean=900}",
    ];
    let with_seed = |seed: &str| build(&[&sets[..], &[seed]].concat()).load.requests;
    assert_eq!(with_seed("seed=4"), with_seed("seed=4"));
    assert_ne!(with_seed("seed=4"), with_seed("seed=5"));
}

#[test]
fn rounded_arrivals_are_spread_and_the_report_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let file = format!("workload.file={}", bucketed(&dir, 600, 20));
    let w = build(&[&file]);
    assert!(
        noted(&w, "are rounded to 3 s: spread evenly"),
        "{:?}",
        w.notes
    );
    let times = arrivals_s(&w);
    let distinct: BTreeSet<u64> = times.iter().map(|t| (t * 1e6) as u64).collect();
    assert!(distinct.len() > 590, "{}", distinct.len());
    // Twenty in each three seconds, as before.
    for bucket in 0..30 {
        let inside = times
            .iter()
            .filter(|t| (**t / 3.0) as i32 == bucket)
            .count();
        assert_eq!(inside, 20, "bucket {bucket}");
    }
    let off = build(&[&file, "workload.spread=off"]);
    assert!(noted(&off, "played so"), "{:?}", off.notes);
    assert_eq!(arrivals_s(&off)[..21], [&[0.0; 20][..], &[3.0]].concat());
}

#[test]
fn copies_and_speed_scale_the_rate_without_sharing_blocks_between_copies() {
    let dir = tempfile::tempdir().unwrap();
    let file = format!("workload.file={}", bucketed(&dir, 600, 20));
    let (one, four) = (build(&[&file]), build(&[&file, "workload.copies=4"]));
    assert_eq!(four.load.requests.len(), 2_400);
    assert!(noted(&four, "4 copies"), "{:?}", four.notes);
    // The same time, four times the requests in each part of it.
    let (span_one, span_four) = (arrivals_s(&one)[599], arrivals_s(&four)[2_399]);
    assert!((span_one - span_four).abs() < 3.0, "{span_one} {span_four}");
    let early = arrivals_s(&four).iter().filter(|t| **t < 45.0).count();
    assert!((1_100..1_300).contains(&early), "{early}");
    let blocks = |w: &Workload| -> BTreeSet<u64> {
        let ids = |p: &Prefix| match p {
            Prefix::Blocks { ids, .. } => ids.to_vec(),
            _ => vec![],
        };
        w.load
            .requests
            .iter()
            .flat_map(|r| ids(&r.prefix))
            .collect()
    };
    assert_eq!((blocks(&one).len(), blocks(&four).len()), (601, 2_404));
    for (i, r) in four.load.requests.iter().enumerate() {
        assert_eq!(r.id, i as u64);
    }
    let fast = build(&[&file, "workload.speed=2"]);
    for (fast, one) in arrivals_s(&fast).iter().zip(arrivals_s(&one)) {
        assert!((fast * 2.0 - one).abs() < 1e-9);
    }
}

#[test]
fn requests_and_duration_cut_the_trace() {
    let dir = tempfile::tempdir().unwrap();
    let file = format!("workload.file={}", bucketed(&dir, 600, 20));
    assert_eq!(
        build(&[&file, "workload.requests=7"]).load.requests.len(),
        7
    );
    assert_eq!(
        build(&[&file, "workload.duration_s=6"]).load.requests.len(),
        40
    );
    assert_eq!(
        build(&[&file, "workload.duration_s=6", "workload.speed=2"])
            .load
            .requests
            .len(),
        80
    );
    assert_eq!(
        build(&[&file, "workload.start_s=84"]).load.requests.len(),
        40
    );
}

#[test]
fn what_cannot_be_served_as_it_is_is_noted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("b.csv");
    let rows = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n\
                5,1,2,GPT-4,100,50,150,Conversation log\n\
                9,1,2,GPT-4,100,0,100,API log\n\
                7.5,2,2,ChatGPT,200000,60,200060,API log\n";
    std::fs::write(&path, rows).unwrap();
    let w = build(&[&format!("workload.file={}", path.display())]);
    assert_eq!(w.source.format, "burstgpt");
    assert!(noted(&w, "1 of 3 requests"), "{:?}", w.notes);
    assert!(
        noted(&w, "1 requests are longer than the 131072 tokens"),
        "{:?}",
        w.notes
    );
    let lengths: Vec<_> = w
        .load
        .requests
        .iter()
        .map(|r| (r.prompt_tokens, r.output_tokens))
        .collect();
    assert_eq!(lengths, [(100, 50), (131_072 - 60, 60)]);
    assert_eq!(arrivals_s(&w), [0.0, 2.5]);

    let path = dir.path().join("m.jsonl");
    let lines = "{\"timestamp\": 2000, \"input_length\": 10, \"output_length\": 1}\n\
                 {\"timestamp\": 1000, \"input_length\": 1500, \"output_length\": 1, \"hash_ids\": [7]}\n";
    std::fs::write(&path, lines).unwrap();
    let w = build(&[&format!("workload.file={}", path.display())]);
    assert!(
        noted(&w, "1 requests of") && noted(&w, "share no prefix"),
        "{:?}",
        w.notes
    );
    assert!(noted(&w, "fewer hash_ids than blocks"), "{:?}", w.notes);
    assert!(
        noted(&w, "not in order of arrival: sorted"),
        "{:?}",
        w.notes
    );
    assert_eq!(arrivals_s(&w), [0.0, 1.0]);
    assert_eq!(w.load.requests[1].prefix, Prefix::Unique);
    assert!(
        matches!(&w.load.requests[0].prefix, Prefix::Blocks { ids, .. } if ids.len() == 3 && ids[0] == 7)
    );
}

#[test]
fn synthetic_prompts_are_cached_as_far_as_asked() {
    let sets = [
        "workload.kind=open",
        "workload.rate_per_s=10",
        "workload.requests=20",
        "workload.prompt_tokens=4096",
    ];
    let cold = build(&sets);
    assert!(
        cold.load
            .requests
            .iter()
            .all(|r| r.prefix == Prefix::Unique && r.prompt_tokens == 4_096)
    );
    let warm = build(&[&sets[..], &["workload.reuse_share=0.5"]].concat());
    assert!(
        warm.load
            .requests
            .iter()
            .all(|r| r.prefix == Prefix::Cached { tokens: 2_048 })
    );
}

#[test]
fn a_closed_loop_holds_its_concurrency_over_the_pool_of_its_phase() {
    let w = build(&[
        "workload.kind=closed",
        "workload.concurrency_per_npu=96",
        "workload.phase=decode",
    ]);
    assert_eq!(
        (w.load.phase, w.load.concurrency),
        (Phase::Decode, Some(96 * 160))
    );
    assert_eq!(w.load.requests.len(), 4 * 96 * 160);
    let w = build(&[
        "workload.kind=closed",
        "workload.concurrency_per_npu=4",
        "workload.phase=prefill",
        "workload.requests=100",
    ]);
    assert_eq!(
        (w.load.phase, w.load.concurrency, w.load.requests.len()),
        (Phase::Prefill, Some(4 * 96), 100)
    );
    assert!(noted(&w, "do not fill the 384 places"), "{:?}", w.notes);
}

#[test]
fn keys_that_do_nothing_are_noted() {
    let w = build(&[
        "workload.rate_per_s=3",
        "workload.concurrency_per_npu=3",
        "workload.reuse_share=0.5",
    ]);
    for key in ["rate_per_s", "concurrency_per_npu", "reuse_share"] {
        assert!(
            noted(
                &w,
                &format!("workload.{key} is not used by workload.kind = \"trace\"")
            ),
            "{:?}",
            w.notes
        );
    }
    assert!(build(&[]).notes.is_empty(), "{:?}", build(&[]).notes);
}

#[test]
fn generated_profiles_have_their_rate_and_chained_prefixes() {
    for (profile, rate) in [
        (Profile::Conversation, 30.0),
        (Profile::Code, 80.0),
        (Profile::Reasoning, 12.0),
    ] {
        let mut text = Vec::new();
        generate::generate(
            &Recipe {
                profile,
                seed: 3,
                requests: 6_000,
                rate_per_s: rate,
            },
            &mut text,
        )
        .unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("g.jsonl");
        std::fs::write(&path, text).unwrap();
        let trace = workload::read(Some(&path), Format::Auto, &Wanted::everything(1)).unwrap();
        let d = workload::describe::describe(&trace);
        assert!(
            (d.requests_per_s / rate - 1.0).abs() < 0.1,
            "{profile:?}: {}",
            d.requests_per_s
        );
        assert!(
            d.prefix.unwrap().hit_tokens_share > 0.2,
            "{profile:?}: {:?}",
            d.prefix
        );
        // Prefix-chained: an id always has the same predecessor.
        let mut before = std::collections::BTreeMap::new();
        for row in &trace.rows {
            let ids = row.ids.as_deref().unwrap();
            assert_eq!(ids.len() as u32, row.prompt_tokens.div_ceil(512));
            for (i, id) in ids.iter().enumerate() {
                let previous = i.checked_sub(1).map(|p| ids[p]);
                assert_eq!(
                    *before.entry(*id).or_insert(previous),
                    previous,
                    "{profile:?}"
                );
            }
        }
        // Even from start to end: the first half of the requests takes half of the time.
        let half = trace.rows[3_000].at_s / trace.rows[5_999].at_s;
        assert!((0.45..0.55).contains(&half), "{profile:?}: {half}");
    }
}

#[test]
fn a_hundred_thousand_requests_are_made_in_a_moment() {
    let started = Instant::now();
    let w = build(&[
        "workload.kind=open",
        "workload.rate_per_s=1000",
        "workload.requests=200000",
        "workload.prompt_tokens={mean=900}",
    ]);
    assert_eq!(w.load.requests.len(), 200_000);
    assert!(
        w.load
            .requests
            .windows(2)
            .all(|p| p[0].arrival_ps <= p[1].arrival_ps)
    );
    assert!((w.load.requests[199_999].arrival_ps as f64 / PS_PER_S as f64 - 200.0).abs() < 2.0);
    let took = started.elapsed();
    assert!(took.as_secs_f64() < 5.0, "{took:?}");
}

#[test]
fn arrivals_beyond_virtual_time_and_copies_beyond_memory_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.jsonl");
    let line =
        |ms: &str| format!("{{\"timestamp\": {ms}, \"input_length\": 9, \"output_length\": 9}}\n");
    std::fs::write(&path, line("0") + &line("1e300")).unwrap();
    let file = format!("workload.file={}", path.display());
    let model = ModelSpec::builtin("deepseek-r1").unwrap();
    let refused = |sets: &[&str]| {
        workload::build(&scenario(sets), &model)
            .unwrap_err()
            .to_string()
    };
    let said = refused(&[&file]);
    assert!(
        said.contains("t.jsonl: its last request arrives after"),
        "{said}"
    );
    let said = refused(&[
        "workload.kind=open",
        "workload.rate_per_s=0.000001",
        "workload.requests=1000",
    ]);
    assert!(said.contains("virtual time ends"), "{said}");
    std::fs::write(&path, line("0").repeat(6_000)).unwrap();
    let said = refused(&[&file, "workload.copies=10000"]);
    assert!(
        said.contains("workload.copies = 10000: makes more than 50000000 requests"),
        "{said}"
    );
}

/// Bytes of each format, to damage.
const SAMPLES: [&str; 4] = [
    "{\"timestamp\": 0, \"input_length\": 600, \"output_length\": 3, \"hash_ids\": [0, 1]}\n{\"timestamp\": 27, \"input_length\": 60, \"output_length\": 3, \"hash_ids\": [0]}\n",
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n",
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,472,18,490,Conversation log\n45,ChatGPT,1087,230,1317,API log\n",
    "{\"client_id\":0,\"trace\":[[0,0.1,1.0,\"Gamma\",0.9,2.0],[600,0.0,0.0,null,null,null]],\"dataset\":{\"0\":{\"input_tokens\":[[5,1.0]],\"output_tokens\":[[7,1.0]]}}}\n",
];

proptest::proptest! {
    #[test]
    fn damaged_files_are_read_or_refused_but_never_panic(
        sample in 0usize..4,
        edits in proptest::collection::vec((proptest::prelude::any::<proptest::sample::Index>(), proptest::prelude::any::<u8>(), 0u8..3), 1..6),
        packed: bool,
    ) {
        let mut bytes = SAMPLES[sample].as_bytes().to_vec();
        for (at, byte, how) in edits {
            let at = at.index(bytes.len().max(1)).min(bytes.len().saturating_sub(1));
            match how {
                0 if !bytes.is_empty() => bytes[at] = byte,
                1 => bytes.insert(at, b"0123456789-.,:e[]{}\"\n"[usize::from(byte) % 21]),
                _ if !bytes.is_empty() => { bytes.remove(at); }
                _ => {}
            }
        }
        if packed {
            use std::io::Write;
            let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gz.write_all(&bytes).unwrap();
            bytes = gz.finish().unwrap();
        }
        match workload::read_bytes("damaged", &bytes, Format::Auto, &Wanted { rows: 1_000, ..Wanted::everything(1) }) {
            Ok(trace) => proptest::prop_assert!(!trace.rows.is_empty()),
            Err(e) => proptest::prop_assert!(e.to_string().contains("damaged"), "{}", e),
        }
    }
}
