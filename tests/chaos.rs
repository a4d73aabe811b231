//! Random machines, workloads and fault plans: no request lost or answered twice, no token missing or repeated, all
//! memory and slots returned, bytes accounted for, no hang, and the same on one, two and four shards.

use supernode::chaos::{Case, run, run_on_shards};

/// Seeds that found a bug, each a promise since. Open: 204 (a group that restarts whole is not found again by one of its ranks), 311 (digests differ between shards).
const FOUND: [u64; 14] = [11, 12, 18, 27, 49, 90, 94, 98, 101, 102, 118, 122, 144, 298];

#[test]
fn whatever_breaks_every_request_ends_once() {
    for seed in (0..40).chain(FOUND) {
        let case = Case::new(seed);
        if let Err(why) = run(&case, 1) {
            panic!("seed {seed}: {why}\n{}\n{:#?}", case.text(), case.lines());
        }
    }
}

#[test]
fn faults_do_not_cost_determinism() {
    for seed in [3, 5, 7, 9] {
        let case = Case::new(seed);
        if let Err(why) = run_on_shards(&case) {
            panic!("seed {seed}: {why}\n{}\n{:#?}", case.text(), case.lines());
        }
    }
}
