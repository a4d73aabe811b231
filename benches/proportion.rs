//! How cost grows: machines from half a supernode to eight, each with as many requests for its size and with twice as many.
//! CPU seconds of open-loop serving at step fidelity and of decode at message fidelity, and how long launching takes.

#[path = "common/mod.rs"]
mod common;
#[path = "common/scenario.rs"]
mod scenario;

use std::fs;
use std::path::Path;
use std::time::Instant;

use common::{Row, quick};
use scenario::{cpu_s, prepared, run};

/// Nodes of a supernode, its prefill instances, and requests a second at which they are about 70% busy.
const NODES: u32 = 48;
const PREFILL: u32 = 6;
const RATE_PER_S: u32 = 130;

/// A machine of `halves` half supernodes, one decode instance of 160 NPUs for every two.
struct Size {
    halves: u32,
    keys: Vec<String>,
}

impl Size {
    fn new(halves: u32, dir: &Path) -> Self {
        let file = dir.join(format!("{halves}.toml"));
        let nodes = halves * NODES / 2;
        let text = format!(
            "base = \"cloudmatrix384\"\nname = \"{nodes} nodes\"\n[counts]\nnodes = {nodes}\n"
        );
        fs::write(&file, text).expect("it can be written");
        let decode_npus = if halves == 1 { 80 } else { 160 };
        let keys = vec![
            format!("machine={}", file.display()),
            format!("prefill.instances={}", halves * PREFILL / 2),
            format!("decode.instances={}", halves.div_ceil(2)),
            format!("decode.npus_per_instance={decode_npus}"),
        ];
        Self { halves, keys }
    }

    fn name(&self) -> String {
        format!("{} supernodes", f64::from(self.halves) / 2.0)
    }

    /// CPU seconds of a run with more keys set, launch included.
    fn cost_s(&self, more: &[String]) -> f64 {
        let keys: Vec<&str> = self.keys.iter().chain(more).map(String::as_str).collect();
        let started = Instant::now();
        let before = cpu_s();
        let (report, _) = run(prepared(&keys), 1);
        assert_eq!(report.requests.completed, report.requests.offered);
        match (before, cpu_s()) {
            (Some(before), Some(after)) => after - before,
            _ => started.elapsed().as_secs_f64(),
        }
    }

    /// Open loop, at step fidelity.
    fn serving_s(&self, requests: u32) -> f64 {
        self.cost_s(&[
            "workload.kind=open".into(),
            format!("workload.rate_per_s={}", self.halves * RATE_PER_S / 2),
            "workload.prompt_tokens=4096".into(),
            "workload.output_tokens=256".into(),
            format!("workload.requests={requests}"),
        ])
    }

    /// Full batches, message by message.
    fn decode_s(&self, requests: u32) -> f64 {
        self.cost_s(&[
            "fidelity.level=message".into(),
            "workload.kind=closed".into(),
            "workload.phase=decode".into(),
            "workload.concurrency_per_npu=96".into(),
            "workload.prompt_tokens=4096".into(),
            "workload.output_tokens=2".into(),
            format!("workload.requests={requests}"),
        ])
    }

    /// Seconds until all actors are ready, reading of files and drawing of expert loads included.
    fn launch_s(&self) -> f64 {
        let mut keys: Vec<&str> = self.keys.iter().map(String::as_str).collect();
        keys.extend([
            "workload.kind=open",
            "workload.rate_per_s=1",
            "workload.requests=1",
        ]);
        let started = Instant::now();
        let launched = prepared(&keys).launch_live(1).expect("it is launched");
        let took_s = started.elapsed().as_secs_f64();
        drop(launched);
        took_s
    }
}

fn main() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (sizes, each): (&[u32], u32) = if quick() {
        (&[1, 2], 20)
    } else {
        (&[1, 2, 4, 8, 16], 4_000)
    };
    let mut rows = Vec::new();
    let mut row = |what: String, value, against: Option<(&str, f64)>| {
        let unit = if against.is_some() {
            "s of CPU time"
        } else {
            "s"
        };
        rows.push(Row {
            what,
            value,
            unit,
            against: against
                .map(|(name, r)| (name.to_owned(), r))
                .into_iter()
                .collect(),
        });
    };
    let (mut serving_before, mut decode_before) = (f64::NAN, f64::NAN);
    for &halves in sizes {
        let size = Size::new(halves, dir.path());
        let name = size.name();
        row(format!("{name}: launch"), size.launch_s(), None);
        let requests = halves * each / 2;
        let once = size.serving_s(requests);
        row(
            format!("{name}: serving {requests} requests"),
            once,
            Some(("half the size", once / serving_before)),
        );
        let twice = size.serving_s(2 * requests);
        row(
            format!("{name}: serving {} requests", 2 * requests),
            twice,
            Some(("half the requests", twice / once)),
        );
        let requests = if quick() { 20 } else { halves * 7_680 };
        let decode = size.decode_s(requests);
        row(
            format!("{name}: decode of {requests} requests"),
            decode,
            Some(("half the size", decode / decode_before)),
        );
        (serving_before, decode_before) = (once, decode);
    }
    common::print("proportion", &rows);
}
