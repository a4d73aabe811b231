//! Scenario files that build on others: the same runs as if all were in one file, and clear words where it cannot be.

mod common;

use std::path::Path;

use common::{SMALL, file, refused, stdout_of};
use serde_json::Value;
use supernode::audit::Claims;
use supernode::scenario::Loader;
use tempfile::{TempDir, tempdir};

/// The small scenario, and one that builds on it from another directory.
fn built() -> (TempDir, String) {
    let dir = tempdir().unwrap();
    file(&dir, "small.toml", SMALL);
    std::fs::create_dir(dir.path().join("own")).unwrap();
    let own = "base = \"../small.toml\"\nseed = 5\n[decode]\nmtp_tokens = 0\n[workload]\noutput_tokens = 20\n";
    let path = file(&dir, "own/own.toml", own);
    (dir, path)
}

fn digest(args: &[&str]) -> String {
    let args = [args, &["--json", "-"]].concat();
    let json: Value = serde_json::from_str(&stdout_of(&args)).unwrap();
    json["digest"].as_str().unwrap().to_string()
}

#[test]
fn a_run_on_a_base_is_that_of_one_file_and_is_kept_whole() {
    let (dir, own) = built();
    let out = dir.path().join("out").display().to_string();
    let ran = digest(&["run", &own, "--out", &out]);
    let small = dir.path().join("small.toml").display().to_string();
    let sets = ["seed=5", "decode.mtp_tokens=0", "workload.output_tokens=20"];
    let sets: Vec<&str> = sets.iter().flat_map(|s| ["--set", s]).collect();
    let flat = [&["run", small.as_str()][..], &sets].concat();
    assert_eq!(ran, digest(&flat));
    assert_ne!(ran, digest(&["run", &small]));
    // What is kept of it needs no other file.
    let kept = std::fs::read_to_string(format!("{out}/scenario.toml")).unwrap();
    assert!(!kept.contains("base ="), "{kept}");
    let alone = tempdir().unwrap();
    assert_eq!(ran, digest(&["run", &file(&alone, "s.toml", kept)]));
    // And a sweep goes over it as over any.
    let args = ["sweep", &own, "--set", "seed=1,5", "--json", "-"];
    let swept: Value = serde_json::from_str(&stdout_of(&args)).unwrap();
    assert!(swept.to_string().contains(&ran), "{swept:#}");
}

#[test]
fn a_base_that_cannot_be_is_refused_with_file_key_value_and_remedy() {
    let dir = tempdir().unwrap();
    file(&dir, "b.toml", "seed = 1\nbase = \"a.toml\"\n");
    file(&dir, "range.toml", "\n[decode]\nmtp_acceptance = 3\n");
    file(&dir, "slip.toml", "[decode]\nmtp = 3\n");
    file(&dir, "noise.toml", [0xff, 0xfe]);
    for (content, expected) in [
        (
            "base = \"nowhere.toml\"\n",
            &[
                "a.toml:1:8: base = \"nowhere.toml\": ",
                "nowhere.toml: No such file",
                "as seen from the directory",
            ][..],
        ),
        ("base = \".\"\n", &["a.toml:1:8: base = \".\"", "directory"]),
        (
            "seed = 2\nbase = 3\n",
            &["a.toml:2:8: base = 3: expected the path"],
        ),
        (
            "base = { file = 1 }\n",
            &["a.toml:1:8: base = { file = 1 }: expected the path"],
        ),
        (
            "base = \"\"\n",
            &["a.toml:1:8: base = \"\": expected the path"],
        ),
        (
            "base = \"b.toml\"\n",
            &[
                "b.toml:2:8: base = \"a.toml\": ",
                "leave out one of the bases",
            ],
        ),
        (
            "base = \"./a.toml\"\n",
            &["a.toml:1:8: base = \"./a.toml\": ", "leave out"],
        ),
        (
            "base = \"noise.toml\"\n",
            &["a.toml:1:8: ", "noise.toml is not UTF-8"],
        ),
        // What is wrong in a base is said of the base.
        (
            "base = \"range.toml\"\n",
            &["range.toml:3: decode.mtp_acceptance = 3: expected"],
        ),
        (
            "base = \"slip.toml\"\n",
            &["slip.toml:2:1: unknown key decode.mtp"],
        ),
        (
            "[decode]\nbase = \"b.toml\"\n",
            &["a.toml:2:1: unknown key decode.base"],
        ),
    ] {
        let path = file(&dir, "a.toml", content);
        refused(&["run", &path], expected);
        refused(&["sweep", &path, "--set", "seed=1,2"], expected);
    }
    refused(
        &["run", "--set", "base=a.toml"],
        &["unknown key base: only scenario files build on others"],
    );
}

/// The file that asks for what is not there is the one to mend, not the one that builds on it.
#[test]
fn a_file_that_is_missing_is_said_of_the_scenario_that_names_it() {
    let dir = tempdir().unwrap();
    for (key, toml) in [
        ("machine", "\nmachine = \"no.file\""),
        ("model", "\nmodel = \"no.file\""),
        ("machine", "\nmachine = \"there/no.toml\""),
        ("workload.file", "[workload]\nfile = \"no.file\""),
        ("experts.load_file", "[experts]\nload_file = \"no.file\""),
        (
            "experts.placement_file",
            "[experts]\nplacement_file = \"no.file\"",
        ),
        ("operators.file", "[operators]\nfile = \"no.file\""),
    ] {
        file(&dir, "base.toml", toml);
        let own = file(&dir, "own.toml", "base = \"base.toml\"\nseed = 3\n");
        let at = format!("base.toml:2: {key} = \"");
        let remedy = "as seen from the directory of the scenario file that has it";
        for command in ["run", "ops"] {
            let needs = command == "run" || matches!(key, "machine" | "model" | "operators.file");
            if needs {
                let said = refused(&[command, &own], &[&at, "expected", remedy]);
                assert!(said.contains("/no.") || said.contains("no.file"), "{said}");
            }
        }
        let set = format!("{key}=no.file");
        let says = [
            &format!("--set: {key} = \"no.file\": ")[..],
            "as seen from the directory that the command is run in",
        ];
        refused(&["run", &own, "--set", &set], &says);
    }
}

/// Two files that are sound alone, but not together: both are named, whichever has the key that is refused.
#[test]
fn a_clash_between_a_file_and_its_base_names_both() {
    let dir = tempdir().unwrap();
    let none = "[experts]\nbalance = \"none\"\n";
    let again = "\n[experts]\neplb_interval_s = 1\n";
    // Larger than any machine, in two keys; and more than the machine has.
    let many = "[decode]\ninstances = 1000\n";
    let large = "\n[decode]\nnpus_per_instance = 200000\n";
    let small = "\nmachine = \"mini4\"\n[decode]\nnpus_per_instance = 64\n";
    let drawn = "[workload]\nprompt_tokens = { dist = \"uniform\", max = 5 }\n";
    let min = "\n[workload.prompt_tokens]\nmin = 9\n";
    for (base, own, expected) in [
        (
            again,
            none,
            &[
                "base.toml:3: experts.eplb_interval_s = 1: needs experts.balance",
                "own.toml:3 sets experts.balance",
            ][..],
        ),
        (
            none,
            again,
            &[
                "own.toml:4: experts.eplb_interval_s = 1: needs experts.balance",
                "base.toml:2 sets experts.balance",
            ],
        ),
        (
            many,
            large,
            &[
                "base.toml:2: decode.instances = 1000, of 200000 NPUs each",
                "own.toml:4 sets decode.npus_per_instance",
            ],
        ),
        (
            many,
            small,
            &[
                "base.toml:2 sets decode.instances",
                "own.toml:5 sets decode.npus_per_instance",
            ],
        ),
        (
            "[workload]\nkind = \"closed\"\nconcurrency_per_npu = 1e6\n",
            "\n[decode]\ninstances = 1\n",
            &["base.toml:3: workload.concurrency_per_npu = 1000000: makes"],
        ),
        (
            drawn,
            min,
            &[
                "base.toml:2: workload.prompt_tokens.max = 5: expected",
                "own.toml:4 sets workload.prompt_tokens.min",
            ],
        ),
    ] {
        file(&dir, "base.toml", base);
        let own = file(&dir, "own.toml", format!("base = \"base.toml\"\n{own}"));
        refused(&["run", &own], expected);
    }
}

/// The scenarios of claims are the same whether they come from the program or from their files, each alone.
#[test]
fn scenarios_in_the_program_are_those_in_files() {
    let claims = Claims::builtin().unwrap();
    for name in claims.claims.iter().filter_map(|c| c.scenario.as_ref()) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(claims.place(name));
        let in_file = Loader::from_file(&path).and_then(Loader::load).unwrap();
        let built_in = claims.scenario(name).and_then(Loader::load).unwrap();
        assert_eq!(in_file, built_in, "{name}");
    }
}
