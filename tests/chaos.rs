//! Random machines, workloads and fault plans: no request lost or answered twice, no token missing or repeated, all
//! memory and slots returned, bytes accounted for, no hang, and the same on one, two and four shards.

use supernode::chaos::{Case, run, run_on_shards};

/// Seeds that found a bug, each a promise since. Among them: 360, 691 and 903, a prefill root that forgot at each look
/// that its batch had not got on; 644, one that took prompts before it had its weights; 359, 693, 816 and 851, tokens
/// lost on their way to a CPU whose lanes were all down; 710 and 921, flags of a step that others had given up, read by a
/// die that had hung; 1885, what a die that sent nothing says of a step that others had given up.
const FOUND: [u64; 29] = [
    11, 12, 18, 27, 49, 90, 94, 98, 101, 102, 118, 122, 144, 204, 298, 359, 360, 644, 691, 693,
    708, 710, 788, 816, 851, 870, 903, 921, 1_885,
];

#[test]
fn whatever_breaks_every_request_ends_once() {
    // From 1,000 on, experts move while parts fail.
    for seed in (0..40).chain(1_000..1_030).chain(FOUND) {
        let case = Case::new(seed);
        if let Err(why) = run(&case, 1) {
            panic!("seed {seed}: {why}\n{}\n{:#?}", case.text(), case.lines());
        }
    }
}

#[test]
fn faults_do_not_cost_determinism() {
    // 311: the flags of a die at reduced clock leave it at a pace of their own.
    for seed in [3, 5, 7, 9, 311] {
        let case = Case::new(seed);
        if let Err(why) = run_on_shards(&case) {
            panic!("seed {seed}: {why}\n{}\n{:#?}", case.text(), case.lines());
        }
    }
}
