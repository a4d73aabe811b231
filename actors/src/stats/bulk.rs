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
        *self = Self::default();
    }
}

/// A histogram that takes down many durations at once. Their buckets are noted, and counted some hundreds at a time.
#[derive(Clone, Debug, Default)]
#[repr(C)]
pub struct BulkHist {
    /// Each of one duration.
    noted: Vec<u8>,
    /// Each of four.
    of_fours: Vec<u8>,
    /// Of what is noted.
    sum_ps: u64,
    max_ps: Ps,
    /// Everything else; `None`: nothing.
    hist: Option<Box<ActorHist>>,
}

impl BulkHist {
    /// So many durations of one visit are many: of these, the third of each four stands for all four. Waits of messages that are served
    /// one after the other are alike, and noting each took a twentieth of the time of a decode step.
    pub const MANY: usize = 64;
    /// So many are counted together.
    const NOTED_MAX: usize = 1 << 10;
    /// Durations below 17 ms have a bucket that fits a note.
    const SHORT_BITS: u32 = 24 + ActorHist::UNIT_SHIFT;

    /// One duration.
    #[inline]
    pub fn note(&mut self, ps: Ps) {
        if ps >> Self::SHORT_BITS != 0 {
            return self.hist.get_or_insert_default().record(ps);
        }
        if self.noted.len() == Self::NOTED_MAX {
            self.count();
        }
        self.noted
            .push(short_bucket((ps >> ActorHist::UNIT_SHIFT) as u32) as u8);
        self.sum_ps += ps;
        self.max_ps = self.max_ps.max(ps);
    }

    /// Those of one visit, in their order. Number, sum and longest are of all of them.
    pub fn record_all(&mut self, all_ps: &[Ps]) {
        let (mut sum_ps, mut any) = (0u64, 0u64);
        for &ps in all_ps {
            sum_ps = sum_ps.wrapping_add(ps);
            any |= ps;
        }
        let (mut fours, mut rest) = all_ps.as_chunks();
        if all_ps.len() < Self::MANY {
            (fours, rest) = (&[], all_ps);
        }
        if any >> Self::SHORT_BITS != 0 {
            return self.record_long(fours, rest);
        }
        self.sum_ps += sum_ps;
        // No duration is longer than all their bits together.
        if any > self.max_ps {
            let most = all_ps.iter().copied().max().unwrap_or(0);
            self.max_ps = self.max_ps.max(most);
        }
        let notes = |bulk: &Self| {
            let most = bulk.of_fours.len() + fours.len();
            most.max(bulk.noted.len() + rest.len())
        };
        if notes(self) > Self::NOTED_MAX {
            self.count();
        }
        note_buckets(fours, |four| four[2], &mut self.of_fours);
        note_buckets(rest, |&ps| ps, &mut self.noted);
    }

    /// Some of them too long for notes, or for their sum.
    #[cold]
    fn record_long(&mut self, fours: &[[Ps; 4]], rest: &[Ps]) {
        let hist = self.hist.get_or_insert_default();
        let all_ps = fours.as_flattened().iter().chain(rest);
        let (mut sum_ps, mut max_ps) = (hist.sum_ps, hist.max_ps);
        for &ps in all_ps {
            sum_ps += u128::from(ps);
            max_ps = max_ps.max(ps);
        }
        fours.iter().for_each(|four| hist.record_n(four[2], 4));
        rest.iter().for_each(|&ps| hist.record(ps));
        (hist.sum_ps, hist.max_ps) = (sum_ps, max_ps);
    }

    #[inline(never)]
    fn count(&mut self) {
        let hist = self.hist.get_or_insert_default();
        for (notes, each) in [(&mut self.noted, 1), (&mut self.of_fours, 4)] {
            count_notes(notes, each, hist);
            notes.clear();
        }
        hist.sum_ps += u128::from(std::mem::take(&mut self.sum_ps));
        hist.max_ps = hist.max_ps.max(self.max_ps);
    }

    /// With all that is noted counted.
    pub fn counted(&self) -> ActorHist {
        let mut all = self.clone();
        all.count();
        *all.hist.unwrap_or_default()
    }
}

/// Appends the buckets of durations below `1 << SHORT_BITS`, step by step: a processor takes each for several at a time.
fn note_buckets<T>(all: &[T], ps_of: impl Fn(&T) -> Ps, noted: &mut Vec<u8>) {
    const TOGETHER: usize = 64;
    if all.len() < 4 {
        let unit_of = |one| (ps_of(one) >> ActorHist::UNIT_SHIFT) as u32;
        noted.extend(all.iter().map(|one| short_bucket(unit_of(one)) as u8));
        return;
    }
    let (mut units, mut buckets) = ([0u32; TOGETHER], [0u8; TOGETHER]);
    for part in all.chunks(TOGETHER) {
        let units = &mut units[..part.len()];
        for (unit, one) in units.iter_mut().zip(part) {
            *unit = (ps_of(one) >> ActorHist::UNIT_SHIFT) as u32;
        }
        for unit in units.iter_mut() {
            *unit = short_bucket(*unit);
        }
        let buckets = &mut buckets[..part.len()];
        for (bucket, unit) in buckets.iter_mut().zip(units) {
            *bucket = *unit as u8;
        }
        noted.extend_from_slice(buckets);
    }
}

/// As `ActorHist::bucket`, of less than `1 << 24` units: a number's exponent and first three digits, as a float has them.
#[inline]
fn short_bucket(unit: u32) -> u32 {
    const SUB: u32 = 3;
    let float = (unit as i32 as f32).to_bits() >> (f32::MANTISSA_DIGITS - 1 - SUB);
    let bucket = float.wrapping_sub((126 + SUB) << SUB);
    if unit < 1 << SUB { unit } else { bucket }
}

/// Adds to the number of durations and to the buckets: `each` for each note. Four sets of counts in turn, so that an
/// increment need not wait for the one before it.
fn count_notes(notes: &[u8], each: u32, hist: &mut ActorHist) {
    let used = match notes.iter().fold(0, |most, &note| most.max(note)) {
        0 if notes.is_empty() => return,
        most => usize::from(most) + 1,
    };
    hist.count += u64::from(each) * notes.len() as u64;
    if used > hist.counts.len() {
        hist.counts.resize(used, 0);
    }
    let mut turns = [[0u16; 256]; 4];
    let (fours, rest) = notes.as_chunks::<4>();
    for four in fours {
        for (turn, &note) in turns.iter_mut().zip(four) {
            turn[usize::from(note)] += 1;
        }
    }
    for &note in rest {
        turns[0][usize::from(note)] += 1;
    }
    let [a, b, c, d] = &turns;
    for (i, count) in hist.counts[..used].iter_mut().enumerate() {
        // Of one visit more than `NOTED_MAX`, as many as a rank has cells in a phase at most.
        let notes = u32::from(a[i] + b[i] + c[i] + d[i]);
        *count = count.saturating_add(each * notes);
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
                prop_oneof![
                    prop::collection::vec(prop_oneof![0..20_000u64, 0..1u64 << 34, 0..1u64 << 36], 0..1_300),
                    prop::collection::vec(prop_oneof![0..20_000u64, 0..1u64 << 34, 0..1u64 << 36], 1),
                ],
                0..9,
            ),
            shift in 0..30u32,
        ) {
            let (mut bulk, mut one_by_one) = (BulkHist::default(), ActorHist::default());
            let mut all = ActorHist::default();
            for visit in visits {
                let all_ps: Vec<Ps> = visit.iter().map(|ps| ps >> shift).collect();
                match all_ps.as_slice() {
                    [one] => bulk.note(*one),
                    many => bulk.record_all(many),
                }
                for four in all_ps.chunks(4) {
                    match four {
                        [_, _, third, _] if all_ps.len() >= BulkHist::MANY => one_by_one.record_n(*third, 4),
                        few => few.iter().for_each(|&ps| one_by_one.record(ps)),
                    }
                }
                all_ps.iter().for_each(|&ps| all.record(ps));
            }
            let counted = bulk.counted();
            prop_assert_eq!(&counted.counts, &one_by_one.counts);
            let known = |h: &ActorHist| (h.count, h.sum_ps, h.max_ps);
            prop_assert_eq!(known(&counted), known(&all));
        }

        #[test]
        fn a_short_duration_has_the_bucket_of_any_other(ps in 0..1u64 << BulkHist::SHORT_BITS, shift in 0..34u32) {
            let ps = ps >> shift;
            let unit = (ps >> ActorHist::UNIT_SHIFT) as u32;
            prop_assert_eq!(short_bucket(unit) as usize, ActorHist::bucket(ps));
        }
    }

    #[test]
    fn notes_are_handed_out_when_there_is_no_room_for_more() {
        let mut notes = Notes::<3>::default();
        assert_eq!([notes.push(1), notes.push(2)], [None, None]);
        assert_eq!(notes.waiting(), [1, 2]);
        assert_eq!(notes.push(3), Some([1, 2, 3]));
        assert!(notes.waiting().is_empty());
    }
}
