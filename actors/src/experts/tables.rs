//! What files say of experts: their loads, and where their copies are.

/// Empty where no file was given.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExpertTables {
    /// Load (any unit) by MoE layer and expert.
    pub load: Option<Vec<Vec<f64>>>,
    pub placement: Option<Placement>,
}

/// Where a placement map puts the copies of each expert.
#[derive(Clone, Debug, PartialEq)]
pub struct Placement {
    /// Ranks of the group that it was made for.
    pub ranks: u32,
    /// Ranks that hold each expert, by MoE layer and expert; at least one each.
    pub holders: Vec<Vec<Vec<u16>>>,
}

impl Placement {
    /// Routed experts on the rank that has most of them in any layer.
    pub fn experts_per_rank_max(&self) -> u32 {
        let mut most = 0;
        for layer in &self.holders {
            let mut held = vec![0; self.ranks as usize];
            for &rank in layer.iter().flatten() {
                held[usize::from(rank)] += 1;
            }
            most = most.max(held.into_iter().max().unwrap_or(0));
        }
        most
    }
}
