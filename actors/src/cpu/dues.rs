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
