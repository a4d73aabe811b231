//! Expert balancing as deepseek-ai's EPLB does it: replicate the expert with the highest load per replica
//! until the slots are used up, then place replicas by falling load on the least-loaded rank with a free slot.

/// Copies of each expert: one each, and `extra` more for those with the highest load per copy.
pub fn replicate(load: &[f64], extra: usize) -> Vec<u32> {
    let mut copies = vec![1u32; load.len()];
    for _ in 0..extra {
        let hottest = (0..load.len())
            .max_by(|&a, &b| {
                (load[a] / f64::from(copies[a]))
                    .total_cmp(&(load[b] / f64::from(copies[b])))
                    .then(b.cmp(&a))
            })
            .expect("a model has experts");
        copies[hottest] += 1;
    }
    copies
}

/// Rank of each item, `items` being (load, kind): heaviest first, each on the least-loaded rank with a free
/// slot, and not beside a copy of the same kind where that can be helped.
pub fn place(items: &[(f64, u32)], ranks: usize, slots_per_rank: usize) -> Vec<usize> {
    assert!(
        items.len() <= ranks * slots_per_rank,
        "more expert copies than slots"
    );
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by(|&a, &b| items[b].0.total_cmp(&items[a].0).then(a.cmp(&b)));
    let mut held: Vec<Vec<u32>> = vec![Vec::new(); ranks];
    let mut load = vec![0.0f64; ranks];
    let mut rank_of = vec![0; items.len()];
    for i in order {
        let (w, kind) = items[i];
        let best = |allow_same: bool| {
            (0..ranks)
                .filter(|&r| {
                    held[r].len() < slots_per_rank && (allow_same || !held[r].contains(&kind))
                })
                .min_by(|&a, &b| load[a].total_cmp(&load[b]).then(a.cmp(&b)))
        };
        let r = best(false)
            .or_else(|| best(true))
            .expect("there are as many slots as copies");
        held[r].push(kind);
        load[r] += w;
        rank_of[i] = r;
    }
    rank_of
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_go_to_the_highest_load_per_copy() {
        assert_eq!(replicate(&[8.0, 1.0, 3.0], 3), vec![3, 1, 2]);
    }

    #[test]
    fn the_heaviest_pair_is_split_over_ranks() {
        let rank = place(&[(5.0, 0), (4.0, 1), (3.0, 2), (2.0, 3)], 2, 2);
        assert_ne!(rank[0], rank[1]);
        let load: f64 = [5.0, 4.0, 3.0, 2.0]
            .iter()
            .zip(&rank)
            .filter(|(_, r)| **r == 0)
            .map(|(w, _)| w)
            .sum();
        assert_eq!(load, 7.0);
    }
}
