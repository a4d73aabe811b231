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

/// Keys of one rank's arrivals, and what sorting them needs, in one piece of memory that is kept. Apart from each other, the
/// three came to lie so in some runs that they were in each other's way in the first-level cache: a sort then took
/// twice the time, as chance would have it at each start.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    /// Places by digit, then room for keys, then as much to sort them into.
    words: Vec<u64>,
    room: usize,
}

impl Keys {
    /// Room for `room` keys in all; those that are there stay.
    pub fn make_room(&mut self, room: usize) {
        if room > self.room || self.words.is_empty() {
            self.room = room;
            self.words.resize(DIGITS + 2 * room, 0);
        }
    }

    /// All the room for keys.
    #[inline]
    pub fn slots(&mut self) -> &mut [u64] {
        &mut self.words[DIGITS..][..self.room]
    }

    /// Sorts the first `len` keys: least digit first by their upper bits, then by insertion what these do not tell apart.
    /// Returns them, and words for whatever comes next, at least as many.
    pub fn sort(&mut self, len: usize) -> (&[u64], &mut [u64]) {
        let (places, rest) = self.words.split_at_mut(DIGITS);
        let (keys, spare) = rest.split_at_mut(self.room);
        let keys = &mut keys[..len];
        if !(nearly(&keys[..len.min(PROBE)]) && nearly(keys)) {
            by_digits(keys, &mut spare[..len], places);
        }
        if !insertion(keys) {
            keys.sort_unstable();
        }
        (keys, spare)
    }
}

/// One word of `places` counts both digits, the lower one in its lower half.
fn by_digits(keys: &mut [u64], spare: &mut [u64], places: &mut [u64]) {
    const HALF: u32 = u64::BITS / 2;
    let Some(places) = places.first_chunk_mut::<DIGITS>() else {
        return;
    };
    let all = keys.iter().fold(0, |all, &k| all | k);
    let low = (64 - all.leading_zeros()).saturating_sub(2 * DIGIT_BITS);
    let high = low + DIGIT_BITS;
    let digit = |k: u64, shift: u32| (k >> shift) as usize % DIGITS;
    places.fill(0);
    for &k in keys.iter() {
        places[digit(k, low)] += 1;
        places[digit(k, high)] += 1 << HALF;
    }
    let mut sums = 0;
    for place in places.iter_mut() {
        sums += std::mem::replace(place, sums);
    }
    for &k in keys.iter() {
        let place = &mut places[digit(k, low)];
        put(spare, *place as u32 as usize, k);
        *place += 1;
    }
    for &k in spare.iter() {
        let place = &mut places[digit(k, high)];
        put(keys, (*place >> HALF) as usize, k);
        *place += 1 << HALF;
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

    #[test]
    fn keys_stay_when_more_room_is_made() {
        let mut keys = Keys::default();
        keys.make_room(2);
        keys.slots().copy_from_slice(&[9, 4]);
        keys.make_room(700);
        keys.make_room(3);
        assert_eq!(keys.sort(2).0, [4, 9]);
        assert_eq!(keys.slots().len(), 700);
    }

    proptest! {
        #[test]
        fn keys_come_out_sorted(keys in keys()) {
            let mut sorted = Keys::default();
            sorted.make_room(keys.len());
            sorted.slots().copy_from_slice(&keys);
            let mut want = keys;
            want.sort_unstable();
            prop_assert_eq!(sorted.sort(want.len()).0, want);
        }
    }
}
