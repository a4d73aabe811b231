//! What a source posts of a phase: for each (rank, slot) when the first byte gets there, and how many units it is.
//!
//! Boards of several hundred ranks are what a simulation of decode touches most, so where ranks have one slot a message takes four
//! bytes: [`Close`], its time counted from when the row began. What does not fit is said beside (`heavy`), or, where
//! a row takes too long for such times, the whole row is in words of eight bytes ([`Cell`]).

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::shape::Shape;
use crate::time::Ps;

/// Arrival (low 48 bits of the time in ps) and number of units of one message; 0 when there is none.
pub type Cell = u64;

/// Cells of a cache line.
pub const LINE_CELLS: usize = 8;

pub const COUNT_BITS: u32 = 16;
const COUNT: u64 = (1 << COUNT_BITS) - 1;
/// Times in cells are told apart over this span: 281 s.
pub const TIME: u64 = u64::MAX >> COUNT_BITS;

#[inline]
pub fn cell(at_ps: Ps, units: u64) -> Cell {
    (at_ps << COUNT_BITS) | units
}

#[inline]
pub fn units_of(cell: Cell) -> u64 {
    cell & COUNT
}

/// Time of a cell after `base_ps`.
#[inline]
pub fn after(base_ps: Ps, cell: Cell) -> Ps {
    (cell >> COUNT_BITS).wrapping_sub(base_ps) & TIME
}

/// The same of a row that began not long before: arrival after that, and units; 0 when there is no message.
pub type Close = u32;

/// Close cells of a cache line.
pub const LINE_CLOSE: usize = 16;

const CLOSE_COUNT_BITS: u32 = 4;
/// That many units or more, which are said beside.
pub const HEAVY: u64 = (1 << CLOSE_COUNT_BITS) - 1;
/// A row may take so long: 268 us.
const CLOSE_PS: Ps = 1 << (Close::BITS - CLOSE_COUNT_BITS);

/// Units of a message, at most [`HEAVY`].
#[inline]
pub fn close_units(close: Close) -> u16 {
    close as u16 & HEAVY as u16
}

/// Its time after the row began.
#[inline]
pub fn close_ps(close: Close) -> Ps {
    Ps::from(close >> CLOSE_COUNT_BITS)
}

/// Its time after the row began, where keys of arrivals have their times: above `COUNT_BITS`.
#[inline]
pub(super) fn close_key(close: Close) -> u64 {
    u64::from(close & !(HEAVY as Close)) << (COUNT_BITS - CLOSE_COUNT_BITS)
}

/// How a message is put into a word: its units in the lower bits, its time above.
pub(super) trait Pack: Copy {
    type Word: Copy + Default;
    const UNITS_BITS: u32;
    /// More units than this are said beside.
    const UNITS_MAX: u64;
    /// Times of a row can be reckoned with as words have them.
    const IN_WORDS: bool;

    /// A time in its place, not cut to the word.
    fn bits(self, at_ps: Ps) -> u64;

    fn cut(bits: u64) -> Self::Word;

    /// The word of a message that there is.
    #[inline]
    fn word(self, at_ps: Ps, units: u64) -> Self::Word {
        Self::cut(self.bits(at_ps) | units.min((1 << Self::UNITS_BITS) - 1))
    }
}

/// Into a [`Cell`].
#[derive(Clone, Copy, Debug)]
pub(super) struct IntoCell;

impl Pack for IntoCell {
    type Word = Cell;
    const UNITS_BITS: u32 = COUNT_BITS;
    const UNITS_MAX: u64 = COUNT;
    const IN_WORDS: bool = false;

    #[inline]
    fn bits(self, at_ps: Ps) -> u64 {
        at_ps << COUNT_BITS
    }

    #[inline]
    fn cut(bits: u64) -> Cell {
        bits
    }
}

/// Into a [`Close`], of a row that begins at `from_ps`.
#[derive(Clone, Copy, Debug)]
pub(super) struct IntoClose {
    from_ps: Ps,
}

impl IntoClose {
    pub fn new(from_ps: Ps) -> Self {
        Self { from_ps }
    }

    /// Whether messages that are there at `last_ps` have a word.
    pub fn reaches(self, last_ps: Ps) -> bool {
        last_ps - self.from_ps < CLOSE_PS
    }
}

impl Pack for IntoClose {
    type Word = Close;
    const UNITS_BITS: u32 = CLOSE_COUNT_BITS;
    const UNITS_MAX: u64 = HEAVY - 1;
    const IN_WORDS: bool = true;

    #[inline]
    fn bits(self, at_ps: Ps) -> u64 {
        (at_ps - self.from_ps) << CLOSE_COUNT_BITS
    }

    #[inline]
    fn cut(bits: u64) -> Close {
        bits as Close
    }
}

/// One source's messages of a phase to some ranks, in their order. Nothing at all when it sends none of them anything.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Times of `close` count from here.
    pub(super) from_ps: Ps,
    pub(super) close: Vec<Close>,
    /// Of `close`: ranks that get `HEAVY` units or more, and how many.
    pub(super) heavy: Vec<(u16, u16)>,
    /// In place of `close`: by `rank * slots + slot`.
    pub(super) wide: Vec<Cell>,
}

impl Row {
    pub fn is_empty(&self) -> bool {
        self.close.is_empty() && self.wide.is_empty()
    }

    pub fn clear(&mut self) {
        self.close.clear();
        self.heavy.clear();
        self.wide.clear();
    }

    /// Makes `part` what the ranks of a shard get of this row, which is for all ranks.
    pub fn of_shard(&self, shape: &Shape, shard: usize, part: &mut Self) {
        part.clear();
        part.from_ps = self.from_ps;
        if self.is_empty() {
            return;
        }
        let slots = shape.slots;
        for piece in &shape.of_shard[shard] {
            if self.wide.is_empty() {
                part.close.extend_from_slice(&self.close[piece.clone()]);
            } else {
                let cells = &self.wide[piece.start * slots..piece.end * slots];
                part.wide.extend_from_slice(cells);
            }
        }
        part.heavy.extend_from_slice(&self.heavy);
    }

    /// What the local ranks of `shape` get of this row, which is for them, in cells.
    pub(super) fn cells(&self, shape: &Shape) -> Cow<'_, [Cell]> {
        if !self.wide.is_empty() {
            return Cow::from(&self.wide);
        }
        let cell_of = |&c: &Close| wide_of(self.from_ps, c, u64::from(close_units(c)));
        let mut cells: Vec<Cell> = self.close.iter().map(cell_of).collect();
        for &(rank, units) in self.heavy.iter().filter(|(rank, _)| shape.is_local(*rank)) {
            let i = shape.index(rank);
            cells[i] = wide_of(self.from_ps, self.close[i], u64::from(units));
        }
        Cow::from(cells)
    }
}

/// The cell of a message in a row that began at `from_ps`.
pub(super) fn wide_of(from_ps: Ps, close: Close, units: u64) -> Cell {
    if close == 0 {
        0
    } else {
        cell(from_ps + close_ps(close), units)
    }
}
