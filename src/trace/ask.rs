//! Questions answered from a trace.

pub mod path;
pub mod request;
pub mod step;
pub mod top;

use std::collections::BTreeMap;

/// Median of some times, 0 of none.
fn median(mut of: Vec<u64>) -> u64 {
    of.sort_unstable();
    of.get(of.len() / 2).copied().unwrap_or(0)
}

/// Order of addresses: numbers by value.
pub fn address_key(address: &str) -> Vec<(String, u64)> {
    let part = |p: &str| {
        let digits = p.trim_start_matches(|c: char| !c.is_ascii_digit());
        let name = p[..p.len() - digits.len()].to_string();
        (name, digits.parse().unwrap_or(0))
    };
    address.split('/').map(part).collect()
}

/// Sums by name, largest first.
fn ranked(sums: BTreeMap<String, u64>) -> Vec<(String, u64)> {
    let mut all: Vec<_> = sums.into_iter().collect();
    all.sort_by_key(|(name, sum)| (std::cmp::Reverse(*sum), name.clone()));
    all
}
