//! Taking a rank's arrivals off rows that are close: where ranks have one slot, as in dispatch and combine of decode.

use std::ops::Range;

use super::row::{close_ps, close_units};
use super::serving::{CloseColumn, INDEX_BITS, Inbox, Receipt, message_hash, put};
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
        let room = self.len + shape.ranks();
        if self.keys.len() < room {
            self.keys.resize(room, 0);
        }
        let (node, npu) = (shape.node_of_rank[me], shape.npu_of_rank[me]);
        let before = self.len;
        if let Some(sources) = column.sources {
            units.fill(0);
            // From the last before the rank's own to the first after it.
            let (below, above) = sources.split_at(sources.partition_point(|&s| s <= rank));
            for &s in below.iter().rev().chain(above.iter().rev()) {
                let s = usize::from(s);
                let near = shape.node_of_rank[s] == node;
                self.take(s..s + 1, shape.npu_of_rank[s] == npu, near, column, units);
            }
        } else {
            self.take(me..me + 1, true, true, column, units);
            shape.in_arrival_order(me, |ranks, from| {
                if from != node {
                    return self.take(ranks, false, false, column, units);
                }
                for s in ranks.rev() {
                    self.take(s..s + 1, shape.npu_of_rank[s] == npu, true, column, units);
                }
            });
        }
        for &(s, n) in column.heavy {
            units[usize::from(s)] = n;
        }
        let (mut got, mut near) = (Receipt::default(), 0);
        for run in shape.runs.iter().filter(|run| run.node == node) {
            for s in run.ranks.clone() {
                if shape.npu_of_rank[s] != npu {
                    near += u64::from(units[s]);
                } else if units[s] > 0 {
                    got.add(&direct(s, column, units[s].into()));
                }
            }
        }
        let all: u64 = units.iter().map(|&u| u64::from(u)).sum();
        let on_lanes = all - got.units;
        self.busy_ps += between_ps * (on_lanes - near) + inside_ps * near;
        self.bytes += on_lanes * u64::from(unit_bytes);
        got.units = all;
        got.messages += (self.len - before) as u32;
        got
    }

    /// Sources from the last to the first: units of all, and keys of those whose messages cross the lanes.
    #[inline(always)]
    fn take(
        &mut self,
        sources: Range<usize>,
        direct: bool,
        near: bool,
        column: CloseColumn<'_>,
        units: &mut [u16],
    ) {
        let keys = self.keys.as_mut_slice();
        let (mut j, base_ps) = (self.len, self.base_ps);
        let lines = &column.lines[sources.clone()];
        let from_ps = &column.from_ps[sources.clone()];
        let units = &mut units[sources.clone()];
        let rows = lines.iter().zip(from_ps).zip(units);
        for (((line, from_ps), u), s) in rows.zip(sources).rev() {
            let close = line[column.column];
            *u = close_units(close);
            let after_ps = from_ps.wrapping_sub(base_ps) + close_ps(close);
            let key = after_ps << INDEX_BITS | (s as u64) << 1 | u64::from(near);
            put(keys, j, key);
            j += usize::from(!direct & (close != 0));
        }
        self.len = j;
    }
}

/// What a source on the same package sends: its word says when the last byte is in.
fn direct(source: usize, column: CloseColumn<'_>, units: u64) -> Receipt {
    let at_ps = column.from_ps[source] + close_ps(column.lines[source][column.column]);
    Receipt {
        complete_ps: at_ps,
        hash: message_hash(at_ps, source, units),
        messages: 1,
        units,
    }
}
