//! Trace files that are cut off, foreign or of another version are told so in one line; what was written when the disk
//! was full is a valid trace.

mod common;

use std::path::Path;

use common::traced::{SMALL, keep, sets, small};
use common::{file, refused, supernode, text};
use supernode::trace::Read;
use tempfile::tempdir;

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
        .position(|w| w == b"\"version\":2,")
        .unwrap();
    let mut other = whole.clone();
    other[at + 10] = b'7';
    ask("other", &other, &["version 7", "reads version 2"]);
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

#[test]
fn a_trace_without_the_leader_of_a_group_says_how_to_get_its_steps() {
    let dir = tempdir().unwrap();
    let out = keep(&dir, "run", &["--trace-match", "node3/**"]);
    refused(&["trace", "step", &out], &["no steps", "--trace-match"]);
}

#[cfg(unix)]
#[test]
fn a_full_disk_does_not_end_the_run() {
    if !Path::new("/dev/full").exists() {
        println!("skipped: there is no /dev/full");
        return;
    }
    let small = small();
    let mut args = vec!["run", "--trace", "/dev/full"];
    args.extend(small.iter().map(String::as_str));
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

/// A limit on the size of files is what a disk looks like that has room for so much.
#[cfg(unix)]
#[test]
fn what_found_room_on_a_full_disk_is_a_valid_trace() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("t.pftrace").display().to_string();
    let args = sets(SMALL).join(" ");
    let me = env!("CARGO_BIN_EXE_supernode");
    // In blocks of 512 bytes or 1 kB, as the shell has it.
    let line = format!("trap '' XFSZ; ulimit -f 400; exec {me} run -q --trace {path} {args}");
    let ran = std::process::Command::new("sh")
        .args(["-c", &line])
        .output()
        .unwrap();
    let said = text(&ran.stderr);
    assert_eq!(ran.status.code(), Some(1), "{said}");
    assert!(said.contains("cannot write all of the trace to"), "{said}");
    assert!(said.contains("what is there is a valid trace"), "{said}");
    assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    let trace = Read::open(Path::new(&path)).unwrap();
    assert!(
        trace.slices.len() > 100 && trace.bytes <= 400 * 1024,
        "{}",
        trace.bytes
    );
}
