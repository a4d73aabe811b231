//! Instructions per message of the hot path, counted by callgrind: the same on a noisy machine as on a quiet one. Two runs
//! that differ by some rounds of the all-to-all; start-up cancels out. Skipped where valgrind is not installed.

#[path = "common/mod.rs"]
mod common;
#[path = "peers/phases.rs"]
mod phases;

use std::process::Command;

use common::Row;

const DIES: u32 = 64;
const FEW: u32 = 2;
const MORE: u32 = 12;

/// Instructions of this program while it runs so many rounds; `None` without valgrind.
fn instructions(rounds: u32) -> Option<f64> {
    let me = std::env::current_exe().ok()?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(me)
        .args(["child", &rounds.to_string()])
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text.lines().find(|l| l.contains("Collected :"))?;
    line.split_whitespace().last()?.parse().ok()
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, word, rounds] = arguments.as_slice()
        && word == "child"
    {
        phases::run(DIES, rounds.parse().expect("a number"), 1);
        return;
    }
    let (Some(few), Some(more)) = (instructions(FEW), instructions(MORE)) else {
        println!("instructions: valgrind did not count, nothing is measured");
        return;
    };
    let messages = f64::from(DIES * DIES * (MORE - FEW));
    let row = Row {
        what: format!("all-to-all of {DIES} dies"),
        value: (more - few) / messages,
        unit: "instr./message",
        against: Vec::new(),
    };
    common::print("instructions", &[row]);
}
