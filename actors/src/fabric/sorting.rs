//! Sorting the arrivals of one phase at one rank: a few hundred keys that are spread about evenly over time and often
//! almost in order already.

/// Sorted by two digits of this many bits of their time: finer than the gaps between arrivals, mostly.
const DIGIT_BITS: u32 = 7;
const DIGITS: usize = 1 << DIGIT_BITS;
/// Insertion may move keys by so many places on average, where they are nearly in order.
const MOVES_PER_KEY: usize = 8;

/// Buffers that are kept between calls.
#[derive(Clone, Debug, Default)]
pub struct Sorter {
    spare: Vec<u64>,
}

impl Sorter {
    /// Sorts `keys`: least digit first by their upper bits, then by insertion what these do not tell apart.
    pub fn sort(&mut self, keys: &mut [u64]) {
        let (mut all, mut steps_back, mut before) = (0, 0, 0);
        for &k in keys.iter() {
            all |= k;
            steps_back += usize::from(k < before);
            before = k;
        }
        if steps_back == 0 {
            return;
        }
        if steps_back > keys.len() / 32 {
            self.by_digits(keys, 64 - all.leading_zeros());
        }
        if !insertion(keys, MOVES_PER_KEY * keys.len()) {
            keys.sort_unstable();
        }
    }

    fn by_digits(&mut self, keys: &mut [u64], bits: u32) {
        let shift = bits.saturating_sub(2 * DIGIT_BITS);
        let low = |k: u64| (k >> shift) as usize % DIGITS;
        let high = |k: u64| (k >> (shift + DIGIT_BITS)) as usize % DIGITS;
        let (mut lows, mut highs) = ([0u32; DIGITS], [0u32; DIGITS]);
        for &k in keys.iter() {
            lows[low(k)] += 1;
            highs[high(k)] += 1;
        }
        let (mut low_sum, mut high_sum) = (0, 0);
        for (l, h) in lows.iter_mut().zip(&mut highs) {
            (low_sum, *l) = (low_sum + *l, low_sum);
            (high_sum, *h) = (high_sum + *h, high_sum);
        }
        self.spare.resize(keys.len(), 0);
        for &k in keys.iter() {
            let at = &mut lows[low(k)];
            self.spare[*at as usize] = k;
            *at += 1;
        }
        for &k in &self.spare {
            let at = &mut highs[high(k)];
            keys[*at as usize] = k;
            *at += 1;
        }
    }
}

/// Insertion sort that gives up after `moves_max` moves, with all keys still there. True when they are sorted.
fn insertion(keys: &mut [u64], moves_max: usize) -> bool {
    let mut moves = 0;
    for i in 1..keys.len() {
        let k = keys[i];
        if keys[i - 1] <= k {
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
