//! Taking a rank's arrivals off rows that are close: where ranks have one slot, as in dispatch and combine of decode.

use std::ops::Range;

use super::row::{Close, LINE_CLOSE, close_key, close_ps, close_units};
use super::serving::{CloseColumn, Inbox, Receipt, message_hash, put};
use super::shape::Shape;
use crate::time::Ps;

impl Inbox {
    /// As `gather`, all of a phase: `unit_bytes` and `unit_ps` are what a unit has of bytes, and how long it takes from
    /// another node and from inside.
    pub fn gather_close(
        &mut self,
        shape: &Shape,
        rank: u16,
        column: CloseColumn<'_>,
        (unit_bytes, [between_ps, inside_ps]): (u32, [Ps; 2]),
        units: &mut [u16],
    ) -> Receipt {
        let me = usize::from(rank);
        self.keys.make_room(self.len + shape.ranks());
        let (node, npu) = (shape.node_of_rank[me], shape.npu_of_rank[me]);
        let before = self.len;
        let direct = |s: usize| shape.npu_of_rank[s] == npu;
        if let Some(sources) = column.sources {
            units.fill(0);
            // From the last before the rank's own to the first after it.
            let (below, above) = sources.split_at(sources.partition_point(|&s| s <= rank));
            for &s in below.iter().rev().chain(above.iter().rev()) {
                let s = usize::from(s);
                if shape.node_of_rank[s] == node {
                    self.take(s..s + 1, true, direct, column, units);
                } else {
                    self.take(s..s + 1, false, |_| false, column, units);
                }
            }
        } else {
            self.take(me..me + 1, true, direct, column, units);
            shape.in_arrival_order(me, |ranks, from| {
                if from == node {
                    self.take(ranks, true, direct, column, units);
                } else {
                    self.take(ranks, false, |_| false, column, units);
                }
            });
        }
        for &(s, n) in column.heavy {
            units[usize::from(s)] = n;
        }
        let (mut got, mut near) = (Receipt::default(), 0);
        for run in shape.runs.iter().filter(|run| run.node == node) {
            for s in run.ranks.clone() {
                if !direct(s) {
                    near += u64::from(units[s]);
                } else if units[s] > 0 {
                    got.add(&over_package(s, column, units[s].into()));
                }
            }
        }
        // Of at most `Board::CELLS_MAX` sources.
        let all = u64::from(units.iter().map(|&u| u32::from(u)).sum::<u32>());
        let on_lanes = all - got.units;
        self.busy_ps += between_ps * (on_lanes - near) + inside_ps * near;
        self.bytes += on_lanes * u64::from(unit_bytes);
        got.units = all;
        got.messages += (self.len - before) as u32;
        got
    }

    /// Sources from the last to the first: units of all, and keys of messages that cross the lanes.
    #[inline(always)]
    fn take(
        &mut self,
        sources: Range<usize>,
        near: bool,
        direct: impl Fn(usize) -> bool,
        column: CloseColumn<'_>,
        units: &mut [u16],
    ) {
        let (keys, mut j) = (self.keys.slots(), self.len);
        let column_of = column.column % LINE_CLOSE;
        let mut one = |line: &[Close; LINE_CLOSE], row_key: u64, s: usize| {
            let close = line[column_of];
            put(keys, j, row_key + close_key(close) + u64::from(near));
            j += usize::from(!direct(s) & (close != 0));
            close_units(close)
        };
        // Four at a time: a third of what each would cost is the loop itself.
        let (lines, fours) = column.lines[sources.clone()].as_rchunks::<4>();
        let (of_row, of_fours) = column.keys[sources.clone()].as_rchunks::<4>();
        let (units, of_four) = units[sources.clone()].as_rchunks_mut::<4>();
        let mut end = sources.end;
        for ((lines, row_keys), units) in fours.iter().zip(of_fours).zip(of_four).rev() {
            for i in (0..4).rev() {
                units[i] = one(&lines[i], row_keys[i], end - 4 + i);
            }
            end -= 4;
        }
        for ((line, row_key), u) in lines.iter().zip(of_row).zip(units).rev() {
            end -= 1;
            *u = one(line, *row_key, end);
        }
        self.len = j;
    }
}

/// What a source on the same package sends: its word says when the last byte is in.
fn over_package(source: usize, column: CloseColumn<'_>, units: u64) -> Receipt {
    let at_ps = column.from_ps[source] + close_ps(column.lines[source][column.column]);
    Receipt {
        complete_ps: at_ps,
        hash: message_hash(at_ps, source, units),
        messages: 1,
        units,
    }
}
