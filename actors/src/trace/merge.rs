//! Puts what the shards recorded into one order that does not depend on how many there are: by time, then by actor.
//! All records of an actor come from its own shard, in order, so a stable sort is enough.

use super::Record;
use crate::time::Ps;

/// Records whose place is not final yet.
#[derive(Debug, Default)]
pub struct Merge {
    waiting: Vec<Record>,
    /// Records that did not fit into a shard's recorder.
    pub lost: u64,
}

impl Merge {
    /// Where shards put theirs, each all of its own at once.
    pub fn inbox(&mut self) -> &mut Vec<Record> {
        &mut self.waiting
    }

    /// Everything recorded before `before_ps`, in order: no shard will record anything earlier.
    pub fn take(&mut self, before_ps: Ps) -> Vec<Record> {
        self.waiting.sort_by_key(|r| (r.at_ps, r.actor));
        let n = self.waiting.partition_point(|r| r.at_ps < before_ps);
        let rest = self.waiting.split_off(n);
        std::mem::replace(&mut self.waiting, rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::{Place, What};

    #[test]
    fn the_order_does_not_depend_on_which_shard_comes_first() {
        let record = |at_ps, actor, a| Record {
            at_ps,
            start_ps: at_ps,
            end_ps: at_ps,
            actor,
            what: What::Step,
            place: Place::default(),
            a,
            b: 0,
        };
        let even = [
            record(1, 0, 0),
            record(5, 2, 0),
            record(5, 2, 1),
            record(9, 0, 0),
        ];
        let odd = [record(2, 1, 0), record(5, 1, 7), record(7, 3, 0)];
        let merged = |shards: [&[Record]; 2]| {
            let mut m = Merge::default();
            shards.iter().for_each(|s| m.inbox().extend_from_slice(s));
            let mut all = m.take(6);
            assert!(all.iter().all(|r| r.at_ps < 6));
            all.extend(m.take(Ps::MAX));
            all
        };
        let all = merged([&even, &odd]);
        assert_eq!(all, merged([&odd, &even]));
        assert_eq!(all.len(), 7);
        assert!(all.is_sorted_by_key(|r| (r.at_ps, r.actor, r.a)));
    }
}
