//! Fault plans from the command line: what they would hit, and one clear line for each that cannot be.

mod common;

use common::{file, refused, stdout_of};
use tempfile::tempdir;

#[test]
fn a_plan_says_what_it_would_hit() {
    let said = stdout_of(&[
        "fault",
        "check",
        "at 3s: crash node7",
        "from 1s: loss plane4/l2.9 2%",
    ]);
    assert!(said.contains("hits 20 dies and CPUs"), "{said}");
    assert!(said.contains("hits 48 links, both directions"), "{said}");
    assert!(said.contains("node0/l1.4/up9"), "{said}");
    let said = stdout_of(&[
        "fault",
        "check",
        "at 1s: throttle node7 x0.5",
        "at 2s: down node7/l1.0 inbound",
    ]);
    assert!(
        said.contains("hits 20 dies and CPUs, until the end"),
        "{said}"
    );
    assert!(said.contains("links, inbound, until the end"), "{said}");
    let drawn = stdout_of(&["fault", "check", "random:seed=7,rate=1e7,for=60s"]);
    assert!(drawn.contains("faults in all"), "{drawn}");
    assert!(stdout_of(&["fault", "check", "--rates"]).contains("arXiv"));
}

#[test]
fn a_plan_file_and_lines_say_the_same() {
    let dir = tempdir().unwrap();
    let plan = file(
        &dir,
        "plan.toml",
        "about = \"two faults\"\nlines = [\"at 1s: throttle node0/npu0/die0 x0.5\"]\n\n[[fault]]\nat = \"2s\"\n\
         what = \"crash\"\nwhere = \"node1/npu0/die1\"\nrestart = \"2s\"\n",
    );
    let of_file = stdout_of(&["fault", "check", &plan]);
    let of_lines = stdout_of(&[
        "fault",
        "check",
        "at 1s: throttle node0/npu0/die0 x0.5",
        "at 2s: crash node1/npu0/die1 restart 2s",
    ]);
    assert_eq!(of_file, of_lines);
}

#[test]
fn a_bad_plan_gets_one_clear_line() {
    for (line, expected) in [
        ("at 1s: crash node99", "node99: this machine has node0"),
        ("at 1s: crash node7/npu0/die1/ub4", "for dies and CPUs"),
        (
            "at 1s: slow node7/npu0/die1 x0.3",
            "its links are node7/npu0/die1/*",
        ),
        ("at -1s: crash node7", "before the run begins"),
        ("at 1s: slow plane1 x0", "factor 0"),
        ("at 1s: slow plane1 x1.5", "above 0 and below 1"),
        ("crash node7", "a `:` is missing"),
        ("at 1s: throttle node7/cpu1/ub0 x0.5", "for dies and CPUs"),
        ("at 1s: loss plane1 100%", "a share of 1"),
        ("at 1s for 0s: down plane1", "more than 0"),
        ("from 2s until 1s: down plane1", "ends before it begins"),
        ("at 1s: flap plane1 every 0s up 50%", "more than 0"),
        ("at 1s: down node1/l1.9", "node1/l1.9"),
    ] {
        refused(&["run", "--fault", line], &[line, expected]);
    }
    refused(
        &[
            "run",
            "--fault",
            "at 1s: slow node1/npu0/die1/ub4 x0.5",
            "--fault",
            "at 2s: slow node1/npu0/** x0.3",
        ],
        &["contradicts", "node1/npu0/die1/ub4"],
    );
    let dir = tempdir().unwrap();
    let plan = file(&dir, "p.toml", "[[fault]]\nat = \"1s\"\nwhat = \"crash\"\n");
    refused(&["run", "--faults", &plan], &["p.toml:1", "where"]);
    let plan = file(&dir, "p.toml", "\nlines = [\"at 1s: crush node1\"]\n");
    refused(
        &["fault", "check", &plan],
        &["p.toml:2", "did you mean crash?"],
    );
    refused(&["run", "--faults", "none.toml"], &["fault plan none.toml"]);
    refused(&["run", "--faults", "random:sede=1"], &["unknown key sede"]);
}

#[test]
fn a_plan_without_faults_changes_nothing() {
    let dir = tempdir().unwrap();
    let plan = file(&dir, "empty.toml", "about = \"nothing\"\nlines = []\n");
    let report = |more: &[&str]| {
        let args = [&["run", "--requests", "8", "--json", "-"], more].concat();
        let mut report: serde_json::Value = serde_json::from_str(&stdout_of(&args)).unwrap();
        for wall in ["wall_s", "events_per_s", "real_time_factor"] {
            report.as_object_mut().unwrap().remove(wall);
        }
        report
    };
    let without = report(&[]);
    assert_eq!(report(&["--faults", &plan]), without);
    let struck = report(&["--fault", "at 100ms: throttle node12/npu3/die1 x0.5"]);
    assert_ne!(struck["digest"], without["digest"]);
}

#[test]
fn drills_say_what_they_are_about_and_fit_the_machine() {
    let drills = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios/drills");
    let mut seen = 0;
    for entry in std::fs::read_dir(drills).unwrap() {
        let path = entry.unwrap().path().display().to_string();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("about = \""), "{path}");
        let said = stdout_of(&["fault", "check", &path]);
        assert!(said.contains("hits "), "{path}: {said}");
        seen += 1;
    }
    assert!(seen >= 8, "{seen} drills");
}
