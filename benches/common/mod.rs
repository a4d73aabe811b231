//! One table of all benches: each leaves its rows in the target directory and prints what is there so far.

use std::fs;
use std::path::PathBuf;

/// One line of the table.
pub struct Row {
    pub what: String,
    pub value: f64,
    pub unit: &'static str,
    /// How it stands to what it is measured against: `(name, ratio)`.
    pub against: Vec<(String, f64)>,
}

/// `cargo bench -- --quick`: just enough to see that everything runs.
#[allow(dead_code, reason = "not every bench has a short form")]
pub fn quick() -> bool {
    std::env::args().any(|a| a == "--quick" || a == "--test")
}

/// Shortest of `n` runs.
#[allow(dead_code, reason = "not every bench repeats")]
pub fn best(n: u32, mut run: impl FnMut() -> f64) -> f64 {
    (0..n).map(|_| run()).fold(f64::INFINITY, f64::min)
}

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/bench-table")
}

/// Leaves the rows of one bench, and prints those of all.
pub fn print(bench: &str, rows: &[Row]) {
    let mut text = String::new();
    for r in rows {
        let mut line = format!(
            "{:<11} {:<52} {:>12} {:<18}",
            bench,
            r.what,
            number(r.value),
            r.unit
        );
        // The first of a series has nothing to stand against.
        for (name, ratio) in r.against.iter().filter(|(_, ratio)| ratio.is_finite()) {
            line.push_str(&format!("  {} x {name}", number(*ratio)));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    let dir = directory();
    let left =
        fs::create_dir_all(&dir).and_then(|()| fs::write(dir.join(format!("{bench}.txt")), &text));
    if let Err(e) = left {
        eprintln!("{}: {e}", dir.display());
    }
    let mut files: Vec<PathBuf> = fs::read_dir(&dir)
        .map(|entries| entries.flatten().map(|e| e.path()).collect())
        .unwrap_or_default();
    files.sort();
    println!("\nbench       what {:>60} {:<18}  ratios", "value", "unit");
    for f in files {
        print!("{}", fs::read_to_string(f).unwrap_or_default());
    }
}

/// Four significant digits.
fn number(x: f64) -> String {
    match x.abs() {
        a if a >= 1_000.0 => format!("{x:.0}"),
        a if a >= 100.0 => format!("{x:.1}"),
        a if a >= 10.0 => format!("{x:.2}"),
        _ => format!("{x:.3}"),
    }
}
