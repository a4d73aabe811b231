//! The shape of a group as its collective phases see it: which ranks share a node or a package, in which order a
//! source sends, and which ranks live on this shard.

use std::ops::Range;

/// Ranks of a group that follow each other on one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    pub ranks: Range<usize>,
    pub node: u32,
}

/// How a group lies on the machine, seen from one shard.
#[derive(Clone, Debug)]
pub struct Shape {
    pub slots: usize,
    pub node_of_rank: Vec<u32>,
    /// Ranks with the same number share a package: between them activations take the die-to-die link.
    pub npu_of_rank: Vec<u32>,
    pub runs: Vec<Run>,
    /// Ranks that live on this shard, in order, and where each is in that list.
    pub local: Vec<u16>,
    index_of: Vec<u16>,
    /// By shard: its ranks, in pieces.
    pub of_shard: Vec<Vec<Range<usize>>>,
    /// No node appears in two runs.
    pub runs_are_nodes: bool,
}

impl Shape {
    /// The group as shard `here` sees it.
    pub fn new(
        node_of_rank: Vec<u32>,
        npu_of_rank: Vec<u32>,
        shard_of_rank: &[usize],
        here: usize,
        slots: usize,
    ) -> Self {
        let local: Vec<u16> = (0..node_of_rank.len())
            .filter(|&r| shard_of_rank[r] == here)
            .map(|r| r as u16)
            .collect();
        let shards = shard_of_rank
            .iter()
            .max()
            .map_or(1, |s| s + 1)
            .max(here + 1);
        let mut of_shard: Vec<Vec<Range<usize>>> = vec![Vec::new(); shards];
        for (rank, &shard) in shard_of_rank.iter().enumerate() {
            match of_shard[shard].last_mut() {
                Some(piece) if piece.end == rank => piece.end = rank + 1,
                _ => of_shard[shard].push(rank..rank + 1),
            }
        }
        let mut runs: Vec<Run> = Vec::new();
        for (rank, &node) in node_of_rank.iter().enumerate() {
            match runs.last_mut() {
                Some(run) if run.node == node => run.ranks.end = rank + 1,
                _ => runs.push(Run {
                    ranks: rank..rank + 1,
                    node,
                }),
            }
        }
        let mut nodes: Vec<u32> = runs.iter().map(|r| r.node).collect();
        nodes.sort_unstable();
        nodes.dedup();
        let mut index_of = vec![u16::MAX; node_of_rank.len()];
        for (i, &r) in local.iter().enumerate() {
            index_of[r as usize] = i as u16;
        }
        Self {
            slots,
            runs_are_nodes: nodes.len() == runs.len(),
            node_of_rank,
            npu_of_rank,
            runs,
            local,
            index_of,
            of_shard,
        }
    }

    pub fn ranks(&self) -> usize {
        self.node_of_rank.len()
    }

    /// Where a local rank is among the local ones.
    pub fn index(&self, rank: u16) -> usize {
        debug_assert!(self.is_local(rank));
        usize::from(self.index_of[rank as usize])
    }

    pub fn is_local(&self, rank: u16) -> bool {
        self.index_of[rank as usize] != u16::MAX
    }

    /// Calls `each` with runs that follow each other and are all on `rank`'s node or all on others, in the order in which
    /// `rank` sends to them: from the rank after its own to the last, then from the first to the one before its own.
    pub fn in_sending_order(&self, rank: usize, mut each: impl FnMut(&[Run])) {
        let own = self
            .runs
            .iter()
            .position(|r| r.ranks.contains(&rank))
            .expect("every rank is in a run");
        let node = self.runs[own].node;
        let piece = |ranks| [Run { ranks, node }];
        let after = rank + 1..self.runs[own].ranks.end;
        let before = self.runs[own].ranks.start..rank;
        if !after.is_empty() {
            each(&piece(after));
        }
        for runs in [&self.runs[own + 1..], &self.runs[..own]] {
            runs.chunk_by(|a, b| (a.node == node) == (b.node == node))
                .for_each(&mut each);
        }
        if !before.is_empty() {
            each(&piece(before));
        }
    }

    /// As `in_sending_order`, the other way round: the order in which messages of sources that start together reach
    /// `rank`. Each piece is to be gone through from its end; one of other nodes may be of several.
    pub fn in_arrival_order(&self, rank: usize, mut each: impl FnMut(Range<usize>, u32)) {
        let own = self
            .runs
            .iter()
            .position(|r| r.ranks.contains(&rank))
            .expect("every rank is in a run");
        let after = rank + 1..self.runs[own].ranks.end;
        let before = self.runs[own].ranks.start..rank;
        let node = self.runs[own].node;
        if !before.is_empty() {
            each(before, node);
        }
        if self.runs_are_nodes {
            // All other nodes are reached at the same cost.
            let others = [
                0..self.runs[own].ranks.start,
                self.runs[own].ranks.end..self.ranks(),
            ];
            for ranks in others.into_iter().filter(|r| !r.is_empty()) {
                let other = self.node_of_rank[ranks.start];
                each(ranks, other);
            }
            if !after.is_empty() {
                each(after, node);
            }
            return;
        }
        for run in self.runs[..own]
            .iter()
            .rev()
            .chain(self.runs[own + 1..].iter().rev())
        {
            each(run.ranks.clone(), run.node);
        }
        if !after.is_empty() {
            each(after, node);
        }
    }
}
