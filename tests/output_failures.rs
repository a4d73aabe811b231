//! Results that cannot be delivered: a reader that left is no error, a full disk is, and neither is a panic.
#![cfg(unix)]

mod common;

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

use common::{command, text};
use tempfile::tempdir;

const PRINTERS: [&[&str]; 5] = [
    &["schema"],
    &["topology"],
    &["topology", "list", "**"],
    &["workload", "describe"],
    &["workload", "generate", "--requests", "2000"],
];

#[test]
fn a_reader_that_leaves_early_ends_the_command_quietly() {
    for args in PRINTERS {
        let mut child = command()
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::with_capacity(1, child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert!(!line.is_empty());
        let out = child.wait_with_output().unwrap();
        assert_eq!(
            (out.status.code(), text(&out.stderr)),
            (Some(0), String::new()),
            "{args:?}"
        );
    }
}

#[test]
fn a_full_disk_is_reported() {
    if !Path::new("/dev/full").exists() {
        println!("skipped: there is no /dev/full");
        return;
    }
    for args in PRINTERS
        .into_iter()
        .chain([&["--help"][..], &["--version"]])
    {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let out = command().args(args).stdout(full).output().unwrap();
        let said = text(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{args:?}: {said}");
        assert!(
            said.contains("cannot write to standard output") && said.contains("No space left"),
            "{args:?}: {said}"
        );
        assert!(!said.contains("panicked"), "{args:?}: {said}");
    }
    for path in ["/dev/full", "full.gz"] {
        let dir = tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/full", dir.path().join("full.gz")).unwrap();
        let out = command()
            .current_dir(dir.path())
            .args(["workload", "generate", "--requests", "5000", "--out", path])
            .output()
            .unwrap();
        let said = text(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{said}");
        assert!(
            said.contains(path) && said.contains("No space left"),
            "{said}"
        );
    }
}

#[test]
fn standard_error_that_is_gone_is_no_panic() {
    let full = || OpenOptions::new().write(true).open("/dev/full");
    if full().is_err() {
        println!("skipped: there is no /dev/full");
        return;
    }
    for args in [&["run", "nowhere.toml"][..], &["fly"]] {
        let out = command()
            .args(args)
            .stderr(full().unwrap())
            .output()
            .unwrap();
        assert_eq!(out.status.code(), Some(2), "{args:?}");
    }
}
