//! Running the built command and looking at what it says.
#![allow(dead_code)]

#[cfg(unix)]
pub mod live;
#[cfg(unix)]
pub mod streams;
pub mod traced;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Four nodes, decode only, over in a fraction of a second.
pub const SMALL: &str = "
machine = \"mini4\"
[prefill]
instances = 1
npus_per_instance = 8
redundant = 0
shared_replicas = 16
[decode]
npus_per_instance = 8
max_batch_per_npu = 8
[experts]
redundant = 0
shared_replicas = 16
balance = \"perfect\"
[workload]
kind = \"closed\"
phase = \"decode\"
prompt_tokens = 256
output_tokens = 40
concurrency_per_npu = 4
";

/// A model of 30 experts that are small enough for any die to hold a few more.
pub const FEW_LAYERS: &str = "\
name = \"few\"\nlayers = 3\ndense_layers = 1\nhidden = 7168\nheads = 128\nq_lora_rank = 1536\nkv_lora_rank = 512\n\
qk_nope_head_dim = 128\nqk_rope_head_dim = 64\nv_head_dim = 128\ndense_intermediate = 18432\n\
moe_intermediate = 2048\nrouted_experts = 30\nshared_experts = 1\ntop_k = 4\nexpert_groups = 2\ntop_groups = 2\n\
vocab = 129280\nmtp_layers = 1\nmax_context = 131072\n";

/// The small scenario, and the setting that gives it the model of few layers.
pub fn few_layers(dir: &tempfile::TempDir) -> (String, String) {
    let model = format!("--set=model={}", file(dir, "model.toml", FEW_LAYERS));
    (file(dir, "small.toml", SMALL), model)
}

/// The command, with nothing of the caller's environment that changes what it says.
pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_supernode"));
    command
        .env_remove("RUST_LOG")
        .env_remove("COLUMNS")
        .env("RUST_BACKTRACE", "1")
        .stdin(Stdio::null());
    command
}

pub fn supernode(args: &[&str]) -> Output {
    command().args(args).output().expect("the command starts")
}

pub fn stdout_of(args: &[&str]) -> String {
    let out = supernode(args);
    assert!(out.status.success(), "{args:?}: {}", text(&out.stderr));
    text(&out.stdout)
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// A wrong input ends with exit code 2 and one message on standard error that has all of `expected`.
pub fn refused(args: &[&str], expected: &[&str]) -> String {
    let out = supernode(args);
    let said = text(&out.stderr);
    assert_eq!(out.status.code(), Some(2), "{args:?}: {said}");
    assert!(
        out.stdout.is_empty(),
        "{args:?} printed {}",
        text(&out.stdout)
    );
    for never in ["panicked", "backtrace", "stack", "src/", "Error("] {
        assert!(!said.contains(never), "{args:?}: {said}");
    }
    assert_eq!(
        said.trim_end().lines().count(),
        1,
        "{args:?}: one line: {said}"
    );
    assert!(said.starts_with("supernode: "), "{args:?}: {said}");
    for part in expected {
        assert!(said.contains(part), "{args:?}: {part:?} is not in: {said}");
    }
    said
}

/// Writes a file into a temporary directory and gives its path as text.
pub fn file(dir: &tempfile::TempDir, name: &str, content: impl AsRef<[u8]>) -> String {
    let path = dir.path().join(name);
    std::fs::write(&path, content).expect("a temporary file");
    path.display().to_string()
}

pub fn gzip(content: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(content).expect("memory");
    packed.finish().expect("memory")
}

/// The folder of real traces: SUPERNODE_WORKLOADS, or `shared/workloads` beside this repository. Tests that need
/// it say so and pass where it is absent.
pub fn real_workloads() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/workloads");
    let dir = std::env::var_os("SUPERNODE_WORKLOADS").map_or(beside, PathBuf::from);
    if dir.is_dir() {
        return Some(dir);
    }
    println!(
        "skipped: there is no {} (SUPERNODE_WORKLOADS names the folder of real traces)",
        dir.display()
    );
    None
}
