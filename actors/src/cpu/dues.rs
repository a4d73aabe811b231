//! When something is to be heard of the open requests of a home.

use std::collections::{BTreeMap, BTreeSet};

use super::open::Open;
use crate::time::Ps;

/// Times and ids, so that neither what is late nor what is due next takes a look at every open request. An entry may be
/// earlier than its request is due, never later; it is put right when its time comes.
#[derive(Debug, Default)]
pub struct Dues {
    at: BTreeSet<(Ps, u64)>,
}

impl Dues {
    /// A request is due at a time, perhaps sooner than it was before.
    pub fn set(&mut self, due_ps: Ps, id: u64) {
        if due_ps != Ps::MAX {
            self.at.insert((due_ps, id));
        }
    }

    /// Takes out those that are due by `now`, in the order of their ids.
    pub fn late(&mut self, now: Ps, open: &BTreeMap<u64, Open>) -> BTreeSet<u64> {
        let mut late = BTreeSet::new();
        while let Some(&(due_ps, id)) = self.at.first().filter(|(due_ps, _)| *due_ps <= now) {
            self.at.remove(&(due_ps, id));
            match open.get(&id) {
                Some(o) if o.due_ps <= now => {
                    late.insert(id);
                }
                Some(o) => self.set(o.due_ps, id),
                None => {}
            }
        }
        late
    }

    /// When the next one is due.
    pub fn next(&mut self, open: &BTreeMap<u64, Open>) -> Option<Ps> {
        while let Some(&(due_ps, id)) = self.at.first() {
            let due = open.get(&id).map(|o| o.due_ps);
            if due == Some(due_ps) {
                return Some(due_ps);
            }
            self.at.remove(&(due_ps, id));
            if let Some(due_ps) = due {
                self.set(due_ps, id);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Prefix, RequestSpec};
    use proptest::prelude::*;

    fn spec(id: u64) -> RequestSpec {
        RequestSpec {
            id,
            arrival_ps: 0,
            prompt_tokens: 1,
            output_tokens: 1,
            prefix: Prefix::Unique,
        }
    }

    /// What a look at all open requests gives.
    fn looked_through(now: Ps, open: &BTreeMap<u64, Open>) -> (BTreeSet<u64>, Option<Ps>) {
        let (late, rest): (Vec<_>, Vec<_>) = open.iter().partition(|(_, o)| o.due_ps <= now);
        let next = rest.iter().map(|(_, o)| o.due_ps).min();
        (
            late.into_iter().map(|(id, _)| *id).collect(),
            next.filter(|ps| *ps != Ps::MAX),
        )
    }

    proptest! {
        #[test]
        fn what_is_late_and_what_is_next_is_what_a_look_at_all_gives(
            steps in prop::collection::vec((0u64..12, 0u64..4, 0u64..50), 1..200),
        ) {
            let (mut open, mut dues, mut now) = (BTreeMap::new(), Dues::default(), 0);
            for (id, what, by) in steps {
                let due_ps = now + by;
                match what {
                    // Put in, or due sooner or later than before: sooner is always said.
                    0 | 1 => {
                        let o = open
                            .entry(id)
                            .or_insert_with(|| Open::new(spec(id), None, now));
                        if what == 0 || due_ps < o.due_ps {
                            dues.set(due_ps, id);
                        }
                        o.due_ps = due_ps;
                    }
                    2 => {
                        open.remove(&id);
                    }
                    _ => {
                        now += by;
                        let (late, next) = looked_through(now, &open);
                        prop_assert_eq!(&dues.late(now, &open), &late);
                        for id in late {
                            open.remove(&id);
                        }
                        prop_assert_eq!(dues.next(&open), next);
                    }
                }
            }
        }
    }
}
