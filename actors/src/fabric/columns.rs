//! What waits for each rank in one phase: a column of messages, in the order in which they were posted.

use super::outgoing::Parcel;

/// Keys of a cache line.
const LINE_KEYS: usize = 8;

/// A column for each local rank.
#[derive(Clone, Debug)]
pub struct Columns {
    /// Messages that a column has room for: an odd number of cache lines, for its end not to meet those of other columns in
    /// the same few places of a cache.
    room: usize,
    lens: Vec<u32>,
    /// Of each message, column by column.
    keys: Vec<u64>,
    units: Vec<u16>,
    /// What has been posted and is in no column yet.
    posted: Vec<Parcel>,
    /// Where each of them goes.
    places: Vec<u32>,
}

impl Columns {
    /// For so many ranks that get at most `most` messages each.
    pub fn new(ranks: usize, most: usize) -> Self {
        let room = (most.div_ceil(LINE_KEYS) | 1) * LINE_KEYS;
        Self {
            room,
            lens: vec![0; ranks],
            keys: vec![0; ranks * room],
            units: vec![0; ranks * room],
            posted: Vec::new(),
            places: Vec::new(),
        }
    }

    /// Empties all columns.
    pub fn clear(&mut self) {
        self.lens.fill(0);
        self.posted.clear();
    }

    /// Takes a row. It is put into columns together with others: row by row, with everything else that ranks do in between,
    /// the columns' ends would be far away each time.
    pub fn post(&mut self, parcels: &[Parcel]) {
        self.posted.extend_from_slice(parcels);
    }

    /// Puts each parcel that has been posted into the column of its rank, whose place is `local_of[to]`.
    #[inline]
    pub fn settle(&mut self, local_of: &[u16]) {
        if !self.posted.is_empty() {
            self.settle_all(local_of);
        }
    }

    #[inline(never)]
    fn settle_all(&mut self, local_of: &[u16]) {
        let (lens, keys, units) = (
            self.lens.as_mut_slice(),
            self.keys.as_mut_slice(),
            self.units.as_mut_slice(),
        );
        self.places.clear();
        self.places.extend(self.posted.iter().map(|p| {
            let local = usize::from(local_of[usize::from(p.to)]);
            let len = &mut lens[local];
            debug_assert!((*len as usize) < self.room);
            let place = local * self.room + *len as usize;
            *len += 1;
            keys[place] = p.key;
            place as u32
        }));
        // One after the other: the ends of all columns of keys fit in a core's first cache, or those of units.
        for (p, &place) in self.posted.iter().zip(&self.places) {
            units[place as usize] = p.units;
        }
        self.posted.clear();
    }

    /// The column of the rank in that place.
    pub fn of(&mut self, local: usize) -> Waiting<'_> {
        let room = local * self.room..(local + 1) * self.room;
        Waiting {
            keys: &mut self.keys[room.clone()],
            units: &mut self.units[room],
            len: &mut self.lens[local],
        }
    }

    /// Units that wait, of all ranks.
    pub fn all_units(&self) -> u64 {
        let columns = self.units.chunks_exact(self.room).zip(&self.lens);
        let waiting = columns.flat_map(|(column, &len)| &column[..len as usize]);
        let posted = self.posted.iter().map(|p| &p.units);
        waiting.chain(posted).map(|&units| u64::from(units)).sum()
    }
}

/// A column that may be taken from.
pub struct Waiting<'a> {
    keys: &'a mut [u64],
    units: &'a mut [u16],
    len: &'a mut u32,
}

impl<'a> Waiting<'a> {
    /// Keys and units of all messages.
    pub fn take_all(self) -> (&'a [u64], &'a [u16]) {
        let len = std::mem::take(self.len) as usize;
        (&self.keys[..len], &self.units[..len])
    }

    /// Those for which `take` says so, told key and units.
    pub fn take_if(self, mut take: impl FnMut(u64, u16) -> bool) {
        let mut kept = 0;
        for i in 0..*self.len as usize {
            let (key, units) = (self.keys[i], self.units[i]);
            if !take(key, units) {
                (self.keys[kept], self.units[kept]) = (key, units);
                kept += 1;
            }
        }
        *self.len = kept as u32;
    }
}
