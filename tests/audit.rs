//! `supernode audit` at reduced size: verdicts, what they say, and how the command ends.

mod common;

use common::{SMALL, command, file, refused, stdout_of, text};
use serde_json::Value;
use tempfile::{TempDir, tempdir};

/// A throughput that is claimed to be `published`, and claims of the other kinds.
fn claims(published: f64) -> String {
    format!(
        "tolerance = 0.05
[[claim]]
name = \"throughput\"
says = \"decode throughput\"
source = \"made up\"
unit = \"tokens/s per NPU\"
published = {published}
scenario = \"small.toml\"
figure = \"decode.tokens_per_s_per_npu\"
beside = [\"decode.mtp_tokens=0\"]
[[claim]]
name = \"tpot\"
says = \"time per output token\"
source = \"made up\"
unit = \"ms\"
at_most = 1000
scenario = \"small.toml\"
figure = \"tpot_ms.mean\"
[[claim]]
name = \"within\"
says = \"the most that keeps a limit that all keep\"
source = \"made up\"
published = {published}
scenario = \"small.toml\"
figure = \"decode.tokens_per_s_per_npu\"
axis = \"workload.concurrency_per_npu=2,4\"
where = \"tpot_ms.mean<1000\"
[[claim]]
name = \"degree\"
says = \"sixteen dies, 17 experts on each\"
source = \"made up\"
scenario = \"small.toml\"
[[claim.exactly]]
figure = \"decode.ep_degree\"
is = 16
[[claim.exactly]]
figure = \"decode.experts_per_die\"
is = 17
[[claim]]
name = \"scales\"
says = \"two instances do twice as much\"
source = \"made up\"
[[claim.scales]]
scenario = \"small.toml\"
axis = \"decode.instances=1,2\"
same = [\"decode.tokens_per_s_per_npu\"]
proportional = [\"decode.npus\"]
[[claim]]
name = \"open\"
says = \"something else\"
source = \"made up\"
open = \"nobody knows how\"
[[examined]]
scenario = \"small.toml\"
figure = \"decode.tokens_per_s_per_npu\"
until_s = 0.4
[[resource]]
name = \"cube cores\"
machine = [\"die.int8_tops\", \"die.bf16_tflops\"]
[[resource]]
name = \"HBM\"
machine = [\"die.hbm_gb_per_s\"]
[[resource]]
name = \"fixed times\"
operators = [\"*_us\", \"*_ns\"]
"
    )
}

fn audited(published: f64) -> (TempDir, String) {
    let dir = tempdir().unwrap();
    file(&dir, "small.toml", SMALL);
    let path = file(&dir, "claims.toml", claims(published));
    (dir, path)
}

/// What the small scenario does.
fn throughput() -> f64 {
    let dir = tempdir().unwrap();
    let scenario = file(&dir, "small.toml", SMALL);
    let json: Value = serde_json::from_str(&stdout_of(&["run", &scenario, "--json", "-"])).unwrap();
    json["decode"]["tokens_per_s_per_npu"].as_f64().unwrap()
}

fn json_of(args: &[&str]) -> Value {
    let args = [&["audit"][..], args, &["--json", "-"]].concat();
    serde_json::from_str(&stdout_of(&args)).expect("JSON alone on standard output")
}

fn row<'a>(audit: &'a Value, claim: &str) -> &'a Value {
    let rows = audit["claims"].as_array().unwrap();
    rows.iter().find(|r| r["claim"] == claim).unwrap()
}

#[test]
fn claims_that_come_out_hold() {
    let made = throughput();
    let (_dir, path) = audited(made * 1.04);
    let audit = json_of(&["--file", &path, "--brief"]);
    for claim in ["throughput", "tpot", "within", "degree", "scales"] {
        assert_eq!(row(&audit, claim)["verdict"], "holds", "{audit:#}");
    }
    let r = row(&audit, "throughput");
    assert_eq!(r["came_out"], made);
    assert!((r["difference"].as_f64().unwrap() - (1.0 / 1.04 - 1.0)).abs() < 1e-9);
    // Another setting is shown beside it, and decides nothing.
    let beside = &r["beside"][0];
    assert_eq!(beside["set"], "decode.mtp_tokens=0");
    let slower = beside["came_out"].as_f64().unwrap();
    assert!(
        slower < made,
        "{slower} without speculation, {made} with it"
    );
    assert_eq!(row(&audit, "open")["verdict"], "open");
    assert_eq!(row(&audit, "open")["why"], "nobody knows how");
    // The best point is the larger batch, and it is said which that was.
    let within = row(&audit, "within")["why"].as_str().unwrap();
    assert!(
        within.contains("workload.concurrency_per_npu = 4"),
        "{within}"
    );
    assert_eq!(audit["examined"].as_array().unwrap().len(), 0);
}

#[test]
fn a_claim_that_does_not_come_out_fails_the_audit() {
    let (_dir, path) = audited(throughput() * 1.06);
    let out = command()
        .args(["audit", "--file", &path, "--brief"])
        .output()
        .unwrap();
    let said = text(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(
        said.contains("2 of 6 claims do not hold: throughput, within"),
        "{said}"
    );
    let table = text(&out.stdout);
    assert_eq!(table.matches("FAILS").count(), 2, "{table}");
    assert!(table.contains("-5.7%"), "{table}");
    // Alone, the others do.
    stdout_of(&["audit", "tpot", "degree", "--file", &path, "--brief"]);
}

#[test]
fn an_examined_claim_says_what_bounds_it_and_what_would_turn_it() {
    let made = throughput();
    // Just outside the tolerance: a little more throughput and it would hold.
    let (_dir, path) = audited(made * 1.055);
    let out = command()
        .args(["audit", "throughput", "--file", &path, "--json", "-"])
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(1), "{}", text(&out.stderr));
    assert!(!out.stdout.is_empty(), "{}", text(&out.stderr));
    let audit: Value = serde_json::from_slice(&out.stdout).unwrap();
    // Kernels of a microsecond or two, a few hundred a step: their overhead counts.
    let overhead = "operators.overhead.operator_us";
    assert!(turns(&audit, "throughput", overhead).is_some(), "{audit:#}");
    let examined = &audit["examined"][0];
    let share = |resource: &str| {
        let all = examined["bounds"].as_array().unwrap();
        let found = all.iter().find(|b| b["resource"] == resource).unwrap();
        found["share"].as_f64().unwrap()
    };
    assert!(share("HBM") > 0.5, "{examined:#}");
    let sum = share("HBM") + share("cube cores") + share("fixed times");
    assert!((0.7..1.1).contains(&sum), "{sum}");
    let of_limit = examined["of_limit"].as_f64().unwrap();
    assert!((0.3..1.0).contains(&of_limit), "{of_limit}");
    let moves = examined["moves"].as_array().unwrap();
    let operator_us = moves.iter().find(|m| m["key"] == overhead).unwrap();
    let by = |way: &str| operator_us[way].as_f64().unwrap();
    assert!(by("less") > 0.0 && by("more") < 0.0, "{operator_us:#}");
    assert!(!operator_us["why_assumed"].as_str().unwrap().is_empty());
    // Every assumed figure is there, those that move nothing too.
    assert!(moves.len() > 20, "{}", moves.len());
    let last = moves.last().unwrap();
    assert_eq!(
        (last["less"].as_f64(), last["more"].as_f64()),
        (Some(0.0), Some(0.0))
    );
    // But for what only matters where load drifts or plans are made anew.
    let of = |start: &str| {
        let key = |m: &Value| m["key"].as_str().unwrap().starts_with(start);
        moves.iter().filter(|m| key(m)).count()
    };
    assert_eq!((of("experts.drift_"), of("experts.eplb_")), (0, 0));
}

/// What a claim comes out as with an assumed figure moved, if that turns it.
fn turns(audit: &Value, claim: &str, key: &str) -> Option<(String, f64)> {
    let by = row(audit, claim)["turned"]["by"].as_array().unwrap();
    let turn = by.iter().find(|t| t["key"] == key)?;
    Some((turn["value"].to_string(), turn["came_out"].as_f64()?))
}

/// A limit that is a little missed by the larger batch is kept by it with less overhead: the throughput that a claim of
/// the best batch then has is that of another batch, which no move at its own says.
#[test]
fn what_turns_a_claim_of_a_best_point_is_found_by_running_it() {
    let dir = tempdir().unwrap();
    let small = file(&dir, "small.toml", SMALL);
    let at_4 = |set: &[&str]| -> Value {
        let set = set.iter().flat_map(|s| ["--set", s]);
        let mut args = vec!["run", &small, "--json", "-"];
        args.extend(["--set", "workload.concurrency_per_npu=4"]);
        args.extend(set);
        serde_json::from_str(&stdout_of(&args)).unwrap()
    };
    let made = at_4(&[]);
    let tpot = made["tpot_ms"]["mean"].as_f64().unwrap();
    let throughput = made["decode"]["tokens_per_s_per_npu"].as_f64().unwrap();
    let text = claims(throughput).replace(
        "tpot_ms.mean<1000",
        &format!("tpot_ms.mean<{}", tpot * 0.999),
    );
    let path = file(&dir, "claims.toml", text);
    let out = command()
        .args(["audit", "within", "--file", &path, "--json", "-"])
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(1), "{}", common::text(&out.stderr));
    let audit: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(row(&audit, "within")["verdict"], "fails");
    let (value, came_out) = turns(&audit, "within", "operators.overhead.operator_us").unwrap();
    let moved = at_4(&[&format!("operators.overhead.operator_us={value}")]);
    assert_eq!(moved["decode"]["tokens_per_s_per_npu"], came_out);
    assert!(came_out > throughput, "{came_out} {throughput}");
    // More of it does not, and far fewer were run than there are assumed figures.
    let not_by = row(&audit, "within")["turned"]["not_by"]
        .as_array()
        .unwrap();
    let by = row(&audit, "within")["turned"]["by"].as_array().unwrap();
    assert!(not_by.len() + by.len() < 20, "{by:?} {not_by:?}");
}

/// What the throughput of the small scenario does with one assumed figure a fifth smaller and larger.
fn moves_of(audit: &Value, key: &str) -> (f64, f64) {
    let moves = audit["examined"][0]["moves"].as_array().unwrap();
    let found = moves.iter().find(|m| m["key"] == key).unwrap();
    let by = |way: &str| found[way].as_f64().unwrap();
    (by("less"), by("more"))
}

/// How skewed expert load is was assumed too, and is moved from what it is in the scenario. So is what more of does
/// nothing: a third of the cores with 3.2 times their even share pull all that memory gives, with 2.6 times they do not.
#[test]
fn skew_and_what_is_capped_are_moved_both_ways() {
    let (_dir, path) = audited(throughput());
    let mut args = vec!["throughput", "--file", &path];
    for set in [
        "experts.balance=eplb",
        "experts.skew=0.5",
        "experts.drift_s=0.1",
        "decode.microbatch=true",
        "operators.streams.core_pull=3.2",
    ] {
        args.extend(["--set", set]);
    }
    let out = command()
        .args(["audit"])
        .args(&args)
        .args(["--json", "-"])
        .output()
        .unwrap();
    let audit: Value = serde_json::from_slice(&out.stdout).unwrap();
    let moves = audit["examined"][0]["moves"].as_array().unwrap();
    let skew = moves.iter().find(|m| m["key"] == "experts.skew").unwrap();
    assert_eq!(skew["value"], 0.5, "{skew:#}");
    assert!(skew["why_assumed"].as_str().unwrap().contains("mean"));
    let (less, more) = moves_of(&audit, "experts.skew");
    assert!(less.abs() > 1e-4 && more.abs() > 1e-4, "{less} {more}");
    let (less, more) = moves_of(&audit, "operators.streams.core_pull");
    assert!(less < -1e-3 && more == 0.0, "{less} {more}");
    // Load drifts here: how far is moved too.
    let drift = moves
        .iter()
        .find(|m| m["key"] == "experts.drift_correlation")
        .unwrap();
    assert_eq!(drift["value"], 0.8, "{drift:#}");
    let (less, more) = moves_of(&audit, "experts.drift_correlation");
    assert!(less != 0.0 && more != 0.0, "{less} {more}");
}

/// The machine of a scenario is what is moved, whatever file it is from: with memory of less bandwidth, more of the time is
/// memory's, and an assumption of that file is among those that are tried.
#[test]
fn the_machine_that_a_scenario_names_is_the_one_that_is_moved() {
    let hbm_share = |machine: &str| {
        let dir = tempdir().unwrap();
        file(&dir, "own.toml", machine);
        let own = SMALL.replace("machine = \"mini4\"", "machine = \"own.toml\"");
        assert_ne!(own, SMALL);
        file(&dir, "small.toml", own);
        // A claim that nothing comes near to: no claim is run again.
        let path = file(&dir, "claims.toml", claims(1e6));
        let out = command()
            .args(["audit", "throughput", "--file", &path, "--json", "-"])
            .output()
            .unwrap();
        assert_eq!(out.status.code(), Some(1), "{}", text(&out.stderr));
        let audit: Value = serde_json::from_slice(&out.stdout).unwrap();
        let examined = audit["examined"][0].clone();
        let bounds = examined["bounds"].as_array().unwrap();
        let hbm = bounds.iter().find(|b| b["resource"] == "HBM").unwrap();
        (hbm["share"].as_f64().unwrap(), examined)
    };
    let (as_it_is, _) = hbm_share("base = \"mini4\"\nname = \"own\"\n");
    let slow = "base = \"mini4\"\nname = \"own\"\n[die]\nhbm_gb_per_s = 800 # assumed: half\n";
    let (slower, examined) = hbm_share(slow);
    assert!(slower > 1.1 * as_it_is, "{slower} {as_it_is}");
    assert!(slower < 1.0, "{slower}");
    let moves = examined["moves"].as_array().unwrap();
    let hbm = moves
        .iter()
        .find(|m| m["key"] == "machine die.hbm_gb_per_s")
        .unwrap();
    assert_eq!(
        (&hbm["value"], &hbm["why_assumed"]),
        (&800.0.into(), &"half".into())
    );
    assert!(hbm["more"].as_f64().unwrap() > 0.05, "{hbm:#}");
}

/// What a claim sets itself, or stands beside it, is what its figures are of, whatever else is set in all runs.
#[test]
fn what_is_set_beside_a_claim_goes_over_what_is_set_in_all() {
    let (_dir, path) = audited(throughput());
    let beside = |set: &[&str]| {
        let args = ["throughput", "--file", &path, "--brief"];
        row(&json_of(&[&args, set].concat()), "throughput")["beside"][0]["came_out"].clone()
    };
    let set = ["--set", "decode.mtp_tokens=1", "--set", "seed=1"];
    assert_eq!(beside(&set), beside(&[]));
    let audit = json_of(&[&["throughput", "--file", &path, "--brief"], &set[..]].concat());
    let command = row(&audit, "throughput")["commands"][0].as_str().unwrap();
    let end = "small.toml --set decode.mtp_tokens=1 --set seed=1";
    assert!(command.ends_with(end), "{command}");
}

#[test]
fn what_is_set_holds_for_all_scenarios() {
    let made = throughput();
    let (_dir, path) = audited(made);
    let audit = json_of(&[
        "tpot",
        "degree",
        "--file",
        &path,
        "--brief",
        "--set",
        "decode.mtp_tokens=0",
    ]);
    let with = json_of(&["tpot", "--file", &path, "--brief"]);
    let tpot = |a: &Value| row(a, "tpot")["came_out"].as_f64().unwrap();
    assert!(tpot(&audit) > 1.3 * tpot(&with));
}

#[test]
fn bad_input_is_refused_with_the_reason() {
    let dir = tempdir().unwrap();
    let claims = |text: &str| file(&dir, "c.toml", text);
    refused(
        &["audit", "decode-thruput"],
        &["unknown claim", "did you mean decode-throughput?"],
    );
    refused(&["audit", "--file", "nowhere.toml"], &["nowhere.toml"]);
    refused(&["audit", "--set", "decode.max=1"], &["unknown key"]);
    refused(
        &["audit", "--json", "/nowhere/a.json"],
        &["there is no directory /nowhere"],
    );
    let bad = claims("tolerance = 0.1\nclaim = 3\n");
    refused(&["audit", "--file", &bad], &["c.toml:2:9: "]);
    let head = "tolerance = 0.1\n[[claim]]\nname = \"x\"\nsays = \"\"\nsource = \"\"\n";
    let bad = claims(head);
    refused(
        &["audit", "--file", &bad],
        &["claim x: expected one of figure, exactly, scales, open"],
    );
    let figure = "published = 1\nfigure = \"decode.steps\"\n";
    let bad = claims(&format!("{head}{figure}"));
    refused(&["audit", "--file", &bad], &["claim x: expected scenario"]);
    let bad = claims(&format!("{head}{figure}scenario = \"none.toml\"\n"));
    refused(&["audit", "--file", &bad], &["none.toml"]);
}

#[test]
fn the_built_in_claims_and_their_scenarios_can_be_read() {
    let claims = supernode::audit::Claims::builtin().unwrap();
    assert!((claims.tolerance - 0.05).abs() < 1e-12);
    for claim in [
        "prefill-throughput",
        "prefill-efficiency",
        "decode-throughput",
        "decode-tpot",
        "decode-efficiency",
        "decode-15ms",
        "decode-batch-8",
        "ep320",
        "scale-independently",
        "int8-accuracy",
        "against-nvidia",
    ] {
        assert!(claims.claims.iter().any(|c| c.name == claim), "{claim}");
    }
}
