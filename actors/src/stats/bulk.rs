//! Recording that touches little memory: what an actor measures is noted where the visit is at work anyway, and counted in
//! its histograms some visits later. They are cold by the time the actor's turn comes again, all the more with
//! hundreds of actors that take turns.

use super::ActorHist;
use crate::time::Ps;

/// Notes of an actor that wait to be counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Notes<const N: usize> {
    len: usize,
    notes: [u64; N],
}

impl<const N: usize> Default for Notes<N> {
    fn default() -> Self {
        Self {
            len: 0,
            notes: [0; N],
        }
    }
}

impl<const N: usize> Notes<N> {
    /// Takes one more. When that was the last there is room for, hands all of them out to be counted.
    #[inline]
    pub fn push(&mut self, note: u64) -> Option<[u64; N]> {
        self.notes[self.len] = note;
        self.len += 1;
        if self.len < N {
            return None;
        }
        self.len = 0;
        Some(self.notes)
    }

    /// Those that wait.
    pub fn waiting(&self) -> &[u64] {
        &self.notes[..self.len]
    }

    pub fn clear(&mut self) {
        self.len = 0;
    }
}

/// A histogram that takes down many durations at once. Their buckets are noted, and counted some hundreds at a time.
#[derive(Clone, Debug, Default)]
pub struct BulkHist {
    /// Count, sum and maximum are of all; buckets, without those noted.
    hist: ActorHist,
    noted: Vec<u8>,
}

impl BulkHist {
    /// So many are counted together.
    const NOTED_MAX: usize = 1 << 10;
    /// Durations below 17 ms have a bucket that fits a note.
    const SHORT_BITS: u32 = 24 + ActorHist::UNIT_SHIFT;

    #[inline]
    pub fn record(&mut self, ps: Ps) {
        self.hist.record(ps);
    }

    pub fn record_all(&mut self, all_ps: &[Ps]) {
        for part in all_ps.chunks(Self::NOTED_MAX) {
            self.record_part(part);
        }
    }

    fn record_part(&mut self, all_ps: &[Ps]) {
        let (mut sum, mut any) = (0u64, 0u64);
        for &ps in all_ps {
            sum = sum.wrapping_add(ps);
            any |= ps;
        }
        if any >> Self::SHORT_BITS != 0 {
            all_ps.iter().for_each(|&ps| self.hist.record(ps));
            return;
        }
        let before = self.noted.len();
        self.noted.resize(before + all_ps.len(), 0);
        for (note, &ps) in self.noted[before..].iter_mut().zip(all_ps) {
            *note = short_bucket(ps);
        }
        self.hist.count += all_ps.len() as u64;
        self.hist.sum_ps += u128::from(sum);
        // No duration is longer than all their bits together.
        if any > self.hist.max_ps {
            let most = all_ps.iter().copied().max().unwrap_or(0);
            self.hist.max_ps = self.hist.max_ps.max(most);
        }
        if self.noted.len() >= Self::NOTED_MAX {
            count_notes(&self.noted, &mut self.hist);
            self.noted.clear();
        }
    }

    /// With all that is noted counted.
    pub fn counted(&self) -> ActorHist {
        let mut hist = self.hist.clone();
        count_notes(&self.noted, &mut hist);
        hist
    }
}

/// As `ActorHist::bucket`, for less than `1 << SHORT_BITS`: a number's exponent and first three digits, as a float has them.
#[inline]
fn short_bucket(ps: Ps) -> u8 {
    const SUB: u32 = 3;
    let v = (ps >> ActorHist::UNIT_SHIFT) as u32;
    let float = (v as i32 as f32).to_bits() >> (f32::MANTISSA_DIGITS - 1 - SUB);
    let bucket = float.wrapping_sub((126 + SUB) << SUB);
    (if v < 1 << SUB { v } else { bucket }) as u8
}

/// Adds to the buckets only. Two sets of counts in turn, so that an increment need not wait for the one before it.
fn count_notes(notes: &[u8], hist: &mut ActorHist) {
    let Some(&most) = notes.iter().max() else {
        return;
    };
    let used = usize::from(most) + 1;
    if used > hist.counts.len() {
        hist.counts.resize(used, 0);
    }
    let mut turns = [[0u16; 256]; 2];
    let (pairs, rest) = notes.as_chunks::<2>();
    for pair in pairs {
        turns[0][usize::from(pair[0])] += 1;
        turns[1][usize::from(pair[1])] += 1;
    }
    for &note in rest {
        turns[0][usize::from(note)] += 1;
    }
    let [even, odd] = &turns;
    for ((count, a), b) in hist.counts[..used].iter_mut().zip(even).zip(odd) {
        *count = count.saturating_add(u32::from(*a) + u32::from(*b));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn durations_taken_down_together_are_counted_as_one_by_one(
            visits in prop::collection::vec(
                prop::collection::vec(prop_oneof![0..20_000u64, 0..1u64 << 34, 0..1u64 << 36], 0..1_300),
                0..6,
            ),
            shift in 0..30u32,
        ) {
            let (mut bulk, mut one_by_one) = (BulkHist::default(), ActorHist::default());
            for visit in visits {
                let all_ps: Vec<Ps> = visit.iter().map(|ps| ps >> shift).collect();
                bulk.record_all(&all_ps);
                all_ps.iter().for_each(|&ps| one_by_one.record(ps));
                prop_assert_eq!(&bulk.counted(), &one_by_one);
            }
        }

        #[test]
        fn a_short_duration_has_the_bucket_of_any_other(ps in 0..1u64 << BulkHist::SHORT_BITS, shift in 0..34u32) {
            let ps = ps >> shift;
            prop_assert_eq!(usize::from(short_bucket(ps)), ActorHist::bucket(ps));
        }
    }

    #[test]
    fn notes_are_handed_out_when_there_is_no_room_for_more() {
        let mut notes = Notes::<3>::default();
        assert_eq!([notes.push(1), notes.push(2)], [None, None]);
        assert_eq!(notes.waiting(), [1, 2]);
        assert_eq!(notes.push(3), Some([1, 2, 3]));
        assert_eq!(notes.waiting(), []);
    }
}
