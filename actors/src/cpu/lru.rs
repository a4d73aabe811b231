//! Least-recently-used set of keys with a capacity in entries. Nothing in it depends on hash order.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// Keys are well mixed already, and are their own hashes.
#[derive(Clone, Copy, Debug, Default)]
struct Mixed(u64);

impl Hasher for Mixed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes
            .iter()
            .for_each(|&b| self.0 = self.0.rotate_left(8) ^ u64::from(b));
    }

    fn write_u64(&mut self, key: u64) {
        // The topmost bit is the same in all of them, and the map looks at the uppermost ones.
        self.0 = key.rotate_left(1);
    }
}

const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Node {
    key: u64,
    older: u32,
    newer: u32,
}

/// Keys in order of last use.
#[derive(Debug)]
pub struct Lru {
    capacity: usize,
    index: HashMap<u64, u32, BuildHasherDefault<Mixed>>,
    nodes: Vec<Node>,
    oldest: u32,
    newest: u32,
}

impl Lru {
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            index: HashMap::default(),
            nodes: Vec::new(),
            oldest: NONE,
            newest: NONE,
        }
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    pub fn clear(&mut self) {
        self.index.clear();
        self.nodes.clear();
        (self.oldest, self.newest) = (NONE, NONE);
    }

    pub fn len(&self) -> usize {
        self.index.len()
    }

    pub fn contains(&self, key: u64) -> bool {
        self.index.contains_key(&key)
    }

    /// Marks a key as just used; whether it is there.
    pub fn touch(&mut self, key: u64) -> bool {
        let Some(&i) = self.index.get(&key) else {
            return false;
        };
        self.unlink(i);
        self.link_newest(i);
        true
    }

    /// Puts a key in as just used; returns the key that had to go for it, if any (the key itself when
    /// nothing fits).
    pub fn insert(&mut self, key: u64) -> Option<u64> {
        if self.touch(key) {
            return None;
        }
        if self.capacity == 0 {
            return Some(key);
        }
        let (i, gone) = if self.index.len() == self.capacity {
            let i = self.oldest;
            let gone = self.nodes[i as usize].key;
            self.unlink(i);
            self.index.remove(&gone);
            self.nodes[i as usize].key = key;
            (i, Some(gone))
        } else {
            self.nodes.push(Node {
                key,
                older: NONE,
                newer: NONE,
            });
            (self.nodes.len() as u32 - 1, None)
        };
        self.index.insert(key, i);
        self.link_newest(i);
        gone
    }

    fn unlink(&mut self, i: u32) {
        let Node { older, newer, .. } = self.nodes[i as usize];
        match older {
            NONE => self.oldest = newer,
            o => self.nodes[o as usize].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            n => self.nodes[n as usize].older = older,
        }
    }

    fn link_newest(&mut self, i: u32) {
        self.nodes[i as usize].older = self.newest;
        self.nodes[i as usize].newer = NONE;
        match self.newest {
            NONE => self.oldest = i,
            n => self.nodes[n as usize].newer = i,
        }
        self.newest = i;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// A list kept in order of use is the reference.
        #[test]
        fn the_least_recently_used_key_goes_first(
            capacity in 0usize..6,
            ops in prop::collection::vec((any::<bool>(), 0u64..10), 0..200),
        ) {
            let mut lru = Lru::new(capacity);
            let mut list: Vec<u64> = Vec::new();
            for (insert, key) in ops {
                let had = list.iter().position(|k| *k == key);
                if let Some(i) = had {
                    list.remove(i);
                    list.push(key);
                }
                if insert {
                    let mut gone = None;
                    if had.is_none() {
                        list.push(key);
                        if list.len() > capacity {
                            gone = Some(list.remove(0));
                        }
                    }
                    prop_assert_eq!(lru.insert(key), gone);
                } else {
                    prop_assert_eq!(lru.touch(key), had.is_some());
                }
                prop_assert_eq!(lru.len(), list.len());
                prop_assert!(list.iter().all(|k| lru.contains(*k)));
            }
        }
    }
}
