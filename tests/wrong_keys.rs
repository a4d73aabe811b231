//! Keys of scenario files, and of others in TOML, that are unknown, of the wrong type or there twice are answered with their place and
//! what would be accepted.

mod common;

use common::{file, refused};
use tempfile::tempdir;

#[test]
fn an_unknown_key_is_named_with_the_nearest_known_one() {
    let dir = tempdir().unwrap();
    let scenario = file(
        &dir,
        "s.toml",
        "seed = 1\n\n[prefill]\ninstances = 6\nnpu_per_instance = 16\n",
    );
    refused(
        &["run", &scenario],
        &[
            "s.toml:5:1: unknown key prefill.npu_per_instance",
            "did you mean prefill.npus_per_instance?",
            "[prefill] accepts ",
        ],
    );
    let scenario = file(&dir, "t.toml", "[prefil]\ninstances = 6\n");
    refused(
        &["run", &scenario],
        &[
            "t.toml:1:2: unknown key prefil",
            "did you mean prefill?",
            "a scenario accepts ",
        ],
    );
    refused(
        &["run", "--set", "decode.max_batch=96"],
        &[
            "--set decode.max_batch=96: unknown key",
            "max_batch_per_npu",
        ],
    );
    refused(
        &["run", "--set", "ttft_ms=96"],
        &["did you mean slo.ttft_ms?"],
    );
    refused(
        &["run", "--set", "seed"],
        &["--set seed: expected key=value"],
    );
    refused(&["run", "--set", "seed="], &["expected a value"]);
}

#[test]
fn a_wrong_type_is_named_with_its_place_and_what_is_expected() {
    let dir = tempdir().unwrap();
    for (content, place, expected) in [
        (
            "[prefill]\ninstances = \"six\"\n",
            "s.toml:2:13: prefill.instances = \"six\": ",
            "a whole number from 1 to 1000000",
        ),
        (
            "[decode]\nmtp_acceptance = true\n",
            "s.toml:2:18: decode.mtp_acceptance",
            "expected a number",
        ),
        (
            "[cache]\nenabled = 1\n",
            "s.toml:2:11: cache.enabled",
            "expected true or false",
        ),
        (
            "[experts]\nbalance = \"best\"\n",
            "s.toml:2:11: experts.balance",
            "`none`, `eplb`, `perfect`",
        ),
        (
            "[prefill]\ninstances = -1\n",
            "s.toml:2:13: prefill.instances",
            "whole number",
        ),
        (
            "prefill = 3\n",
            "s.toml:1:1: prefill: ",
            "a table of keys, such as [prefill]",
        ),
        // Not the values of the keys in their order.
        (
            "decode = [1, 160, 96, \"auto\", 1, 0.7]\n",
            "s.toml:1:1: decode: ",
            "a table of keys, such as [decode]",
        ),
        (
            "[[operators.gemm]]\nint8_efficiency = 0.5\n",
            "s.toml:1:13: operators.gemm: ",
            "a table of keys, such as [operators.gemm]",
        ),
        (
            "seed = 9223372036854775808\n",
            "s.toml:1:8: seed = 9223372036854775808: ",
            "a whole number from 0 to 9223372036854775807",
        ),
        ("seed = \n", "s.toml:1:8", ""),
        ("[prefill\n", "s.toml:1:", ""),
        (
            "prefill.instances = -1\n",
            "s.toml:1:21: prefill.instances = -1: ",
            "a whole number from 1 to 1000000",
        ),
        (
            "[workload]\nprompt_tokens = \"long\"\n",
            "s.toml:2:17: workload.prompt_tokens = \"long\": ",
            "or a table such as { dist",
        ),
    ] {
        let scenario = file(&dir, "s.toml", content);
        refused(&["run", &scenario], &[place, expected]);
    }
    refused(
        &["run", "--set", "decode.max_batch_per_npu=lots"],
        &["--set decode.max_batch_per_npu", "lots", "whole number"],
    );
    refused(
        &["run", "--set", "decode=[1, 160]"],
        &["--set decode = [1, 160]: expected a key of this section, such as decode."],
    );
    refused(
        &["run", "--set", "experts.balance=best"],
        &["best", "`eplb`"],
    );
}

/// Each number says what it takes, whatever was given instead.
#[test]
fn numbers_of_rebalancing_say_their_range() {
    let dir = tempdir().unwrap();
    for (key, range) in [
        ("eplb_layers_at_once", "a whole number from 1 to 10000"),
        (
            "eplb_plan_bytes_per_slot",
            "a whole number from 1 to 1048576",
        ),
        (
            "eplb_load_bytes_per_slot",
            "a whole number from 1 to 1048576",
        ),
        ("redundant", "a whole number from 0 to 1000000"),
        ("plan_tokens", "a whole number from 0 to 4294967295"),
    ] {
        for wrong in ["\"8\"", "1.5", "-1", "true", "99999999999"] {
            let says = format!("experts.{key} = {wrong}: expected {range}");
            let scenario = file(&dir, "s.toml", format!("[experts]\n{key} = {wrong}\n"));
            refused(&["run", &scenario], &["s.toml:2:", &says]);
            refused(
                &["run", "--set", &format!("experts.{key}={wrong}")],
                &[&says],
            );
        }
    }
    let often = "expected 0 (never) or a number from 0.01 to 31536000";
    for key in ["eplb_interval_s", "drift_s"] {
        for wrong in ["\"8\"", "-1", "1e-3", "inf"] {
            let says = format!("experts.{key} = ");
            let set = format!("experts.{key}={wrong}");
            refused(&["run", "--set", &set], &[&says, often]);
        }
    }
}

#[test]
fn a_key_that_is_there_twice_is_named() {
    let dir = tempdir().unwrap();
    for (content, says) in [
        ("seed = 1\nseed = 2\n", "s.toml:2:1: duplicate key seed: "),
        (
            "[decode]\nmtp_tokens = 1\n[experts]\nskew = 1\n\n skew = 2\n",
            "s.toml:6:2: duplicate key experts.skew: ",
        ),
        (
            "[operators.gemm]\nint8_efficiency = 0.5\nint8_efficiency = 0.5\n",
            "s.toml:3:1: duplicate key operators.gemm.int8_efficiency: ",
        ),
        (
            "decode.mtp_tokens = 1\ndecode.mtp_tokens = 2\n",
            "s.toml:2:8: duplicate key decode.mtp_tokens: ",
        ),
        (
            "[decode]\nmtp_tokens = 1\n[decode]\nmtp_acceptance = 1\n",
            "s.toml:3:2: duplicate key decode: ",
        ),
        (
            "[workload]\nprompt_tokens = { mean = 1, mean = 2 }\n",
            "s.toml:2:29: duplicate key mean: ",
        ),
    ] {
        let scenario = file(&dir, "s.toml", content);
        refused(&["run", &scenario], &[says, "keep one of the lines"]);
    }
    let machine = "base = \"mini4\"\nname = \"own\"\n[die]\nhbm_gb = 64\nhbm_gb = 65\n";
    let machine = file(&dir, "m.toml", machine);
    let says = "m.toml:5:1: duplicate key hbm_gb: ";
    refused(&["run", "--set", &format!("machine={machine}")], &[says]);
    let twice = file(&dir, "t.toml", "name = \"x\"\nname = \"y\"\n");
    let says = "t.toml:2:1: duplicate key name: ";
    refused(&["run", "--set", &format!("model={twice}")], &[says]);
    refused(
        &["run", "--set", &format!("operators.file={twice}")],
        &[says],
    );
    refused(&["run", "--faults", &twice], &[says]);
    refused(&["audit", "--file", &twice], &[says]);
}
