//! Sorting the arrivals of one phase at one rank: a few hundred keys that are spread about evenly over time and often
//! almost in order already.

/// Moves up to this many places per key are cheaper than buckets.
const MOVES_PER_KEY: usize = 4;
const BUCKETS_MAX: usize = 1024;

/// Buffers that are kept between calls.
#[derive(Clone, Debug, Default)]
pub struct Sorter {
    spare: Vec<u64>,
    ends: Vec<u32>,
}

impl Sorter {
    /// Sorts `keys`.
    pub fn sort(&mut self, keys: &mut [u64]) {
        if !insertion(keys, MOVES_PER_KEY * keys.len()) {
            self.buckets(keys);
        }
    }

    /// Counts keys by time slice, moves each to its slice, and straightens out the slices by insertion.
    fn buckets(&mut self, keys: &mut [u64]) {
        let (mut least, mut most) = (u64::MAX, 0);
        for &k in keys.iter() {
            least = least.min(k);
            most = most.max(k);
        }
        let wanted = (2 * keys.len()).next_power_of_two().min(BUCKETS_MAX);
        let span_bits = 64 - (most - least).leading_zeros();
        let shift = span_bits.saturating_sub(wanted.trailing_zeros());
        let used = ((most - least) >> shift) as usize + 1;
        self.ends.clear();
        self.ends.resize(used, 0);
        for &k in keys.iter() {
            self.ends[((k - least) >> shift) as usize] += 1;
        }
        let mut sum = 0;
        for n in &mut self.ends {
            sum += *n;
            *n = sum;
        }
        self.spare.resize(keys.len(), 0);
        for &k in keys.iter().rev() {
            let end = &mut self.ends[((k - least) >> shift) as usize];
            *end -= 1;
            self.spare[*end as usize] = k;
        }
        keys.copy_from_slice(&self.spare);
        if !insertion(keys, 16 * MOVES_PER_KEY * keys.len()) {
            // Crowded into few slices.
            keys.sort_unstable();
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
