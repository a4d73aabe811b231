//! Least-recently-used sets of keys, each with a capacity in entries, that share one index: what is in one is mostly in the
//! other too, and each look at an index is a cache line that is far away. Nothing in it depends on hash order.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
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
/// Of a key that is in another set only.
const OUT: u32 = u32::MAX - 1;

/// Neighbours in a set's order of use.
#[derive(Clone, Copy, Debug)]
struct Links {
    older: u32,
    newer: u32,
}

impl Links {
    const NOT_IN: Self = Self {
        older: OUT,
        newer: OUT,
    };

    fn is_in(self) -> bool {
        self.older != OUT
    }
}

#[derive(Clone, Copy, Debug)]
struct Node<const SETS: usize> {
    key: u64,
    links: [Links; SETS],
}

#[derive(Clone, Copy, Debug)]
struct Ends {
    capacity: usize,
    len: usize,
    oldest: u32,
    newest: u32,
}

/// `SETS` sets of keys, each in order of last use.
#[derive(Debug)]
pub struct Lru<const SETS: usize> {
    index: HashMap<u64, u32, BuildHasherDefault<Mixed>>,
    nodes: Vec<Node<SETS>>,
    /// Nodes of no set.
    unused: Vec<u32>,
    sets: [Ends; SETS],
}

impl<const SETS: usize> Lru<SETS> {
    pub fn new(capacities: [usize; SETS]) -> Self {
        Self {
            index: HashMap::default(),
            nodes: Vec::new(),
            unused: Vec::new(),
            sets: capacities.map(|capacity| Ends {
                capacity,
                len: 0,
                oldest: NONE,
                newest: NONE,
            }),
        }
    }

    pub fn capacity(&self, set: usize) -> usize {
        self.sets[set].capacity
    }

    pub fn clear(&mut self, set: usize) {
        while self.sets[set].len > 0 {
            self.drop_oldest(set);
        }
    }

    pub fn len(&self, set: usize) -> usize {
        self.sets[set].len
    }

    /// Whether any set has it.
    pub fn holds(&self, key: u64) -> bool {
        self.index.contains_key(&key)
    }

    pub fn contains(&self, set: usize, key: u64) -> bool {
        let node = self.index.get(&key).map(|&i| &self.nodes[i as usize]);
        node.is_some_and(|n| n.links[set].is_in())
    }

    /// Marks a key as just used in a set; whether it is there.
    pub fn touch(&mut self, set: usize, key: u64) -> bool {
        let Some(&i) = self.index.get(&key) else {
            return false;
        };
        let is_in = self.nodes[i as usize].links[set].is_in();
        if is_in {
            self.unlink(set, i);
            self.link_newest(set, i);
        }
        is_in
    }

    /// Puts a key into a set as just used; returns the key that had to go for it, if any (the key itself when
    /// nothing fits).
    pub fn insert(&mut self, set: usize, key: u64) -> Option<u64> {
        if self.sets[set].capacity == 0 {
            return Some(key);
        }
        let i = match self.index.entry(key) {
            Entry::Occupied(at) => *at.get(),
            Entry::Vacant(at) => {
                let node = Node {
                    key,
                    links: [Links::NOT_IN; SETS],
                };
                let i = if let Some(i) = self.unused.pop() {
                    self.nodes[i as usize] = node;
                    i
                } else {
                    self.nodes.push(node);
                    self.nodes.len() as u32 - 1
                };
                *at.insert(i)
            }
        };
        let mut gone = None;
        if self.nodes[i as usize].links[set].is_in() {
            self.unlink(set, i);
        } else if self.sets[set].len == self.sets[set].capacity {
            gone = Some(self.drop_oldest(set));
        }
        self.link_newest(set, i);
        gone
    }

    /// Takes the key out of a set that was used longest ago.
    fn drop_oldest(&mut self, set: usize) -> u64 {
        let i = self.sets[set].oldest;
        self.unlink(set, i);
        let node = self.nodes[i as usize];
        if node.links.iter().all(|l| !l.is_in()) {
            self.index.remove(&node.key);
            self.unused.push(i);
        }
        node.key
    }

    fn unlink(&mut self, set: usize, i: u32) {
        let links = &mut self.nodes[i as usize].links[set];
        let Links { older, newer } = std::mem::replace(links, Links::NOT_IN);
        let ends = &mut self.sets[set];
        ends.len -= 1;
        match older {
            NONE => ends.oldest = newer,
            o => self.nodes[o as usize].links[set].newer = newer,
        }
        match newer {
            NONE => ends.newest = older,
            n => self.nodes[n as usize].links[set].older = older,
        }
    }

    fn link_newest(&mut self, set: usize, i: u32) {
        let ends = &mut self.sets[set];
        ends.len += 1;
        let older = std::mem::replace(&mut ends.newest, i);
        self.nodes[i as usize].links[set] = Links { older, newer: NONE };
        match older {
            NONE => ends.oldest = i,
            o => self.nodes[o as usize].links[set].newer = i,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// A list kept in order of use for each set is the reference.
        #[test]
        fn the_least_recently_used_key_goes_first(
            capacities in [0usize..6, 0usize..12],
            ops in prop::collection::vec((0usize..2, 0u32..12, 0u64..16), 0..300),
        ) {
            let mut lru = Lru::new(capacities);
            let mut lists: [Vec<u64>; 2] = Default::default();
            for (set, what, key) in ops {
                let list = &mut lists[set];
                let had = list.iter().position(|k| *k == key);
                if what == 0 {
                    list.clear();
                    lru.clear(set);
                } else {
                    if let Some(i) = had {
                        list.remove(i);
                        list.push(key);
                    }
                    if what < 7 {
                        let mut gone = None;
                        if had.is_none() {
                            list.push(key);
                            if list.len() > capacities[set] {
                                gone = Some(list.remove(0));
                            }
                        }
                        prop_assert_eq!(lru.insert(set, key), gone);
                    } else {
                        prop_assert_eq!(lru.touch(set, key), had.is_some());
                    }
                }
                for (set, list) in lists.iter().enumerate() {
                    prop_assert_eq!(lru.len(set), list.len());
                    for key in 0..16 {
                        prop_assert_eq!(lru.contains(set, key), list.contains(&key));
                    }
                }
                for key in 0..16 {
                    prop_assert_eq!(lru.holds(key), lists.iter().any(|l| l.contains(&key)));
                }
            }
        }
    }
}
