//! Sorting the arrivals of one phase at one rank: a few hundred keys that are spread about evenly over time and often
//! almost in order already.

use super::serving::put;

/// Sorted by two digits of this many bits of their time: finer than the gaps between arrivals, mostly.
const DIGIT_BITS: u32 = 7;
const DIGITS: usize = 1 << DIGIT_BITS;
/// Insertion may move keys by so many places on average, where they are nearly in order.
const MOVES_PER_KEY: usize = 8;
/// So many of the first keys mostly tell that they are in no order.
const PROBE: usize = 32;

/// Buffers that are kept between calls.
#[derive(Clone, Debug, Default)]
pub struct Sorter {
    spare: Vec<u64>,
}

impl Sorter {
    /// Sorts `keys`: least digit first by their upper bits, then by insertion what these do not tell apart.
    pub fn sort(&mut self, keys: &mut [u64]) {
        if !(nearly(&keys[..keys.len().min(PROBE)]) && nearly(keys)) {
            self.by_digits(keys);
        }
        if !insertion(keys) {
            keys.sort_unstable();
        }
    }

    fn by_digits(&mut self, keys: &mut [u64]) {
        let all = keys.iter().fold(0, |all, &k| all | k);
        let low = (64 - all.leading_zeros()).saturating_sub(2 * DIGIT_BITS);
        let high = low + DIGIT_BITS;
        let digit = |k: u64, shift: u32| (k >> shift) as usize % DIGITS;
        // Counters of both digits side by side take a quarter less time than two tables.
        let mut places = [[0u32; 2]; DIGITS];
        for &k in keys.iter() {
            places[digit(k, low)][0] += 1;
            places[digit(k, high)][1] += 1;
        }
        let mut sums = [0u32; 2];
        for place in &mut places {
            let counts = *place;
            *place = sums;
            sums[0] += counts[0];
            sums[1] += counts[1];
        }
        if self.spare.len() < keys.len() {
            self.spare.resize(keys.len(), 0);
        }
        let spare = &mut self.spare[..keys.len()];
        for &k in keys.iter() {
            let place = &mut places[digit(k, low)][0];
            put(spare, *place as usize, k);
            *place += 1;
        }
        for &k in spare.iter() {
            let place = &mut places[digit(k, high)][1];
            put(keys, *place as usize, k);
            *place += 1;
        }
    }
}

/// Hardly any key is smaller than the one before it.
fn nearly(keys: &[u64]) -> bool {
    let steps_back = keys.windows(2).filter(|two| two[1] < two[0]).count();
    steps_back <= keys.len() / 32
}

/// Insertion sort that gives up after `MOVES_PER_KEY` moves a key, with all keys still there. True when they are sorted.
fn insertion(keys: &mut [u64]) -> bool {
    let (mut moves, moves_max) = (0, MOVES_PER_KEY * keys.len());
    let mut before = 0;
    for i in 0..keys.len() {
        let k = keys[i];
        if before <= k {
            before = k;
            continue;
        }
        let mut j = i;
        while j > 0 && keys[j - 1] > k {
            keys[j] = keys[j - 1];
            j -= 1;
        }
        keys[j] = k;
        moves += i - j;
        if moves > moves_max {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn keys() -> impl Strategy<Value = Vec<u64>> {
        let key = prop_oneof![0..u64::MAX, 0..1000u64, (1u64 << 40)..(1u64 << 41)];
        let mixed = prop::collection::vec(key, 0..700);
        let nearly = (0..700usize, 1..60u64).prop_map(|(n, jitter)| {
            (0..n as u64)
                .map(|i| i * 10 + (i * 7919) % (jitter * 10))
                .collect()
        });
        let crowded = (0..700usize).prop_map(|n| {
            (0..n as u64)
                .map(|i| ((i * 7919) % 500) | if i == 3 { 1 << 60 } else { 0 })
                .collect()
        });
        prop_oneof![mixed, nearly, crowded]
    }

    proptest! {
        #[test]
        fn keys_come_out_sorted(keys in keys()) {
            let (mut got, mut want) = (keys.clone(), keys);
            Sorter::default().sort(&mut got);
            want.sort_unstable();
            prop_assert_eq!(got, want);
        }
    }
}
