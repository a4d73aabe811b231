//! Popularity over time: what tokens choose drifts from period to period, whatever the machine does about it.
//! A pure function of seed, layer and period; what is kept here only saves computing it again.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Routing;
use crate::runtime::Rng;
use crate::time::Ps;

/// Routing of all MoE layers in one period, and the loads that the next one drifts from.
#[derive(Debug)]
struct Period {
    loads: Vec<Vec<f64>>,
    routings: Arc<Vec<Routing>>,
}

#[derive(Debug)]
pub struct Drift {
    pub period_ps: Ps,
    start: Vec<Vec<f64>>,
    skew: f64,
    correlation: f64,
    top_k: u32,
    seed: u64,
    /// The last few periods: ranks and shards are never further apart.
    recent: Mutex<BTreeMap<u32, Period>>,
}

const KEPT: usize = 4;
const STREAM: u64 = 0x6472_6966_7400_0000;

impl Drift {
    /// Loads `start` (by layer and expert) that drift every `period_ps`: their logarithms are correlated by
    /// `correlation` with those of the period before, and spread by `skew` as before.
    pub fn new(
        start: Vec<Vec<f64>>,
        period_ps: Ps,
        skew: f64,
        correlation: f64,
        top_k: u32,
        seed: u64,
    ) -> Self {
        Self {
            period_ps,
            start,
            skew,
            correlation,
            top_k,
            seed,
            recent: Mutex::new(BTreeMap::new()),
        }
    }

    pub fn period(&self, now: Ps) -> u32 {
        (now / self.period_ps) as u32
    }

    /// How tokens choose experts in a period, by MoE layer.
    pub fn routings(&self, period: u32) -> Arc<Vec<Routing>> {
        let mut recent = self.recent.lock();
        if let Some(p) = recent.get(&period) {
            return Arc::clone(&p.routings);
        }
        let (mut at, mut loads) = recent
            .range(..period)
            .next_back()
            .map_or_else(|| (0, self.start.clone()), |(n, p)| (*n, p.loads.clone()));
        while at < period {
            at += 1;
            loads = self.next(&loads, at);
        }
        let routings = Arc::new(
            loads
                .iter()
                .map(|l| Routing::new(l, self.top_k))
                .collect::<Vec<_>>(),
        );
        let kept = Period {
            loads,
            routings: Arc::clone(&routings),
        };
        recent.insert(period, kept);
        if recent.len() > KEPT {
            recent.pop_first();
        }
        routings
    }

    fn next(&self, loads: &[Vec<f64>], period: u32) -> Vec<Vec<f64>> {
        let fresh = (1.0 - self.correlation * self.correlation).sqrt() * self.skew;
        let layer = |(layer, row): (usize, &Vec<f64>)| {
            let mut rng = Rng::new(self.seed ^ STREAM ^ u64::from(period), layer as u64);
            row.iter()
                .map(|l| {
                    // A file may say that an expert has no load at all.
                    let old = l.max(1e-6).ln() * self.correlation;
                    (old + fresh * rng.normal(0.0, 1.0)).exp()
                })
                .collect()
        };
        loads.iter().enumerate().map(layer).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experts::popularity;

    fn drift() -> Drift {
        let start = vec![popularity(256, 1.0, &mut Rng::new(1, 1))];
        Drift::new(start, 1_000, 1.0, 0.8, 8, 3)
    }

    #[test]
    fn a_period_is_the_same_whoever_asks_first() {
        let (a, b) = (drift(), drift());
        for period in [0, 1, 2, 3, 4, 5, 6, 7, 2] {
            a.routings(period);
        }
        let include = |d: &Drift, p| d.routings(p)[0].include().to_vec();
        assert_eq!(include(&a, 7), include(&b, 7));
        assert_eq!(include(&a, 2), include(&b, 2));
    }

    #[test]
    fn load_stays_as_skewed_and_forgets_where_it_came_from() {
        let d = drift();
        d.routings(40);
        let recent = d.recent.lock();
        let ln = |row: &[f64]| row.iter().map(|l| l.ln()).collect::<Vec<_>>();
        let (a, b) = (ln(&d.start[0]), ln(&recent[&40].loads[0]));
        let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
        let cov = |x: &[f64], y: &[f64]| {
            let (mx, my) = (mean(x), mean(y));
            x.iter()
                .zip(y)
                .map(|(p, q)| (p - mx) * (q - my))
                .sum::<f64>()
                / x.len() as f64
        };
        let spread = cov(&b, &b).sqrt();
        assert!((0.85..1.15).contains(&spread), "{spread}");
        let r = cov(&a, &b) / (cov(&a, &a) * cov(&b, &b)).sqrt();
        assert!(r.abs() < 0.2, "{r}");
    }
}
