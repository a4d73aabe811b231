//! How tokens choose experts: a popularity per layer, and draws of `top_k` distinct experts a token.

use crate::runtime::Rng;

/// Popularity of one layer's experts.
#[derive(Clone, Debug)]
pub struct Routing {
    experts: u32,
    top_k: u32,
    /// Probability of each expert to be among a token's choices; sums to `top_k`.
    include: Vec<f64>,
    /// Alias table when popularity is not equal: 16 bits of threshold over the entry and its alias.
    alias: Option<Vec<(u32, u16)>>,
}

impl Routing {
    /// Tokens that choose `top_k` distinct experts so that expert `e` gets its share of `load` (any unit). A token
    /// chooses an expert once at most, so no share can pass `1 / top_k`: what is above goes to the others.
    pub fn new(load: &[f64], top_k: u32) -> Self {
        let n = load.len();
        let include = inclusion(load, top_k);
        let even = include
            .iter()
            .all(|p| (p * n as f64 / f64::from(top_k) - 1.0).abs() < 1e-9);
        let alias = (!even).then(|| alias_table(&draw_shares(&include)));
        Self {
            experts: n as u32,
            top_k,
            include,
            alias,
        }
    }

    /// Probability of each expert to be among a token's choices.
    pub fn include(&self) -> &[f64] {
        &self.include
    }

    pub fn is_even(&self) -> bool {
        self.alias.is_none()
    }

    /// Adds the choices of `tokens` tokens to `counts[expert]`.
    pub fn draw(&self, tokens: u32, rng: &mut Rng, counts: &mut [u32]) {
        debug_assert_eq!(counts.len(), self.experts as usize);
        // Above this many tokens per die, counts are drawn expert by expert (binomials) instead of token by token.
        const TOKEN_BY_TOKEN: u32 = 1024;
        if tokens > TOKEN_BY_TOKEN {
            return self.draw_many(tokens, rng, counts);
        }
        match &self.alias {
            None if self.experts == 256 && self.top_k == 8 => draw_even_256(tokens, rng, counts),
            None => self.draw_with(tokens, rng, counts, |rng, n| rng.below(u64::from(n)) as u32),
            Some(table) if table.len() <= 256 && self.top_k == 8 => {
                draw_alias_8(table, tokens, rng, counts);
            }
            Some(table) => self.draw_with(tokens, rng, counts, |rng, _| {
                pick(table, rng.next_u64() as u32)
            }),
        }
    }

    fn draw_with(
        &self,
        tokens: u32,
        rng: &mut Rng,
        counts: &mut [u32],
        mut pick: impl FnMut(&mut Rng, u32) -> u32,
    ) {
        for _ in 0..tokens {
            let mut chosen = [0u64; 16];
            let mut left = self.top_k;
            while left > 0 {
                let e = pick(rng, self.experts);
                let (word, bit) = ((e >> 6) as usize, 1u64 << (e & 63));
                if chosen[word] & bit == 0 {
                    chosen[word] |= bit;
                    counts[e as usize] += 1;
                    left -= 1;
                }
            }
        }
    }

    /// Many tokens at once: each expert's count is binomial with its inclusion probability; the sum is then
    /// brought to `tokens * top_k` by single steps over experts in turn.
    fn draw_many(&self, tokens: u32, rng: &mut Rng, counts: &mut [u32]) {
        let want = i64::from(tokens) * i64::from(self.top_k);
        let n = f64::from(tokens);
        let mut drawn = vec![0i64; self.experts as usize];
        let mut sum = 0;
        for (d, &p) in drawn.iter_mut().zip(&self.include) {
            *d = (n * p + (n * p * (1.0 - p)).sqrt() * rng.normal(0.0, 1.0))
                .round()
                .clamp(0.0, n) as i64;
            sum += *d;
        }
        let start = rng.below(u64::from(self.experts)) as usize;
        let mut i = start;
        while sum != want {
            let step = (want - sum).signum();
            let d = &mut drawn[i % self.experts as usize];
            if (0..=i64::from(tokens)).contains(&(*d + step)) && (*d > 0 || step > 0) {
                *d += step;
                sum += step;
            }
            i += 1;
        }
        for (c, d) in counts.iter_mut().zip(drawn) {
            *c += d as u32;
        }
    }
}

/// An expert that is chosen by more tokens than this is not told apart from one that all choose.
const INCLUDE_MAX: f64 = 0.98;

/// Probability of each expert to be among a token's `top_k` choices, in proportion to `load` up to
/// `INCLUDE_MAX`; the sum is `top_k`.
fn inclusion(load: &[f64], top_k: u32) -> Vec<f64> {
    let (n, k) = (load.len() as f64, f64::from(top_k));
    let loaded = load.iter().filter(|l| **l > 0.0).count() as f64;
    if loaded * INCLUDE_MAX <= k {
        return vec![k / n; load.len()];
    }
    // Each round fixes those that are too hot, so it ends.
    let mut hot = vec![false; load.len()];
    loop {
        let fixed = hot.iter().filter(|h| **h).count() as f64 * INCLUDE_MAX;
        let rest: f64 = load.iter().zip(&hot).filter(|l| !l.1).map(|l| l.0).sum();
        let per_load = (k - fixed) / rest;
        let mut again = false;
        for (l, h) in load.iter().zip(&mut hot) {
            if !*h && l * per_load > INCLUDE_MAX {
                *h = true;
                again = true;
            }
        }
        if !again {
            let p = |(l, h): (&f64, &bool)| if *h { INCLUDE_MAX } else { l * per_load };
            return load.iter().zip(&hot).map(p).collect();
        }
    }
}

/// What to draw experts with, one by one until `top_k` are distinct, so that they are included with probability
/// `include`: after `t` draws an expert of share `s` is in with `1 - (1 - s)^t`, `t` being what makes the shares sum to 1.
fn draw_shares(include: &[f64]) -> Vec<f64> {
    let at = |t: f64| include.iter().map(move |p| 1.0 - (1.0 - p).powf(1.0 / t));
    let (mut low, mut high) = (1.0, 2.0);
    while at(high).sum::<f64>() > 1.0 {
        high *= 2.0;
    }
    for _ in 0..60 {
        let mid = 0.5 * (low + high);
        if at(mid).sum::<f64>() > 1.0 {
            low = mid
        } else {
            high = mid
        }
    }
    let sum: f64 = at(high).sum();
    at(high).map(|s| s / sum).collect()
}

/// One draw from an alias table by 32 random bits: the whole part of their product with the table's length is the entry,
/// its fraction decides between the entry and its alias.
#[inline]
fn pick(table: &[(u32, u16)], random: u32) -> u32 {
    let product = u64::from(random) * table.len() as u64;
    let i = (product >> 32) as u32;
    let (threshold, alias) = table[i as usize];
    // No branch: nobody could foretell it.
    let past = u32::from(product as u32 >= threshold).wrapping_neg();
    i ^ ((i ^ u32::from(alias)) & past)
}

/// Eight distinct experts a token out of at most 256, from an alias table: eight draws from four words at once, and one
/// at a time what is then still missing.
fn draw_alias_8(table: &[(u32, u16)], tokens: u32, rng: &mut Rng, counts: &mut [u32]) {
    for _ in 0..tokens {
        let mut drawn = [0u8; 8];
        for two in drawn.chunks_exact_mut(2) {
            let r = rng.next_u64();
            two[0] = pick(table, r as u32) as u8;
            two[1] = pick(table, (r >> 32) as u32) as u8;
        }
        if distinct8(drawn) {
            for e in drawn {
                counts[usize::from(e)] += 1;
            }
            continue;
        }
        let mut chosen = [0u64; 4];
        let mut left = 8;
        // No branch here either.
        let mut take = |e: usize| {
            let word = &mut chosen[e / 64 % 4];
            let new = !(*word >> (e % 64)) & 1;
            *word |= new << (e % 64);
            counts[e] += new as u32;
            left -= new;
            left
        };
        for e in drawn {
            take(usize::from(e));
        }
        while take(pick(table, rng.next_u64() as u32) as usize) > 0 {}
    }
}

/// Eight distinct bytes of a 64-bit word are one token's choice; words with a repeated byte are drawn again.
fn draw_even_256(tokens: u32, rng: &mut Rng, counts: &mut [u32]) {
    let counts: &mut [u32; 256] = counts.try_into().expect("256 experts");
    for _ in 0..tokens {
        loop {
            let b = rng.next_u64().to_le_bytes();
            if distinct8(b) {
                for e in b {
                    counts[e as usize] += 1;
                }
                break;
            }
        }
    }
}

/// Whether eight bytes are all different (about 89% of random words are).
#[inline]
fn distinct8(b: [u8; 8]) -> bool {
    // Turned by one to four bytes, each byte meets each other one: where two are the same, a byte of the difference is
    // zero, and only then does taking 1 from every byte borrow into the top bit of one that had none.
    const ONES: u64 = 0x0101_0101_0101_0101;
    let x = u64::from_le_bytes(b);
    let mut same = 0;
    for bytes in 1..=4 {
        let differ = x ^ x.rotate_left(8 * bytes);
        same |= differ.wrapping_sub(ONES) & !differ;
    }
    same & (ONES << 7) == 0
}

fn alias_table(share: &[f64]) -> Vec<(u32, u16)> {
    let n = share.len();
    let mut p: Vec<f64> = share.iter().map(|s| s * n as f64).collect();
    let mut table: Vec<(u32, u16)> = (0..n).map(|i| (u32::MAX, i as u16)).collect();
    let (mut small, mut large): (Vec<usize>, Vec<usize>) = (0..n).partition(|&i| p[i] < 1.0);
    while let (Some(s), Some(&l)) = (small.pop(), large.last()) {
        table[s] = ((p[s] * f64::from(u32::MAX)) as u32, l as u16);
        p[l] -= 1.0 - p[s];
        if p[l] < 1.0 {
            large.pop();
            small.push(l);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experts::popularity;

    fn rng() -> Rng {
        Rng::new(7, 7)
    }

    #[test]
    fn every_token_chooses_top_k_experts() {
        for tokens in [0, 1, 48, 5000] {
            for skew in [0.0, 0.8, 5.0] {
                let load = popularity(256, skew, &mut rng());
                let mut counts = vec![0; 256];
                Routing::new(&load, 8).draw(tokens, &mut rng(), &mut counts);
                assert_eq!(counts.iter().sum::<u32>(), tokens * 8);
                assert!(counts.iter().all(|&c| c <= tokens));
            }
        }
    }

    #[test]
    fn experts_get_their_share_of_the_load() {
        // Token by token, and in large counts: the hottest of 256 is chosen by about a third of all tokens.
        for per_draw in [500, 5_000] {
            let load = popularity(256, 1.07, &mut rng());
            let sum: f64 = load.iter().sum();
            let r = Routing::new(&load, 8);
            let mut rng = rng();
            let mut counts = vec![0; 256];
            let draws = 400_000 / per_draw;
            for _ in 0..draws {
                r.draw(per_draw, &mut rng, &mut counts);
            }
            for (l, &c) in load.iter().zip(&counts) {
                let want = l / sum * 8.0 * f64::from(per_draw * draws);
                let off = (f64::from(c) - want).abs();
                assert!(off < 0.02 * want + 5.0 * want.sqrt(), "{c} against {want}");
            }
        }
    }

    #[test]
    fn an_expert_is_chosen_once_a_token_at_most() {
        let mut load = vec![1.0; 64];
        load[5] = 1e6;
        let mut counts = vec![0; 64];
        Routing::new(&load, 4).draw(1_000, &mut rng(), &mut counts);
        assert!((900..=1_000).contains(&counts[5]), "{}", counts[5]);
        assert_eq!(counts.iter().sum::<u32>(), 4_000);
    }

    #[test]
    fn even_draws_are_even() {
        let mut counts = vec![0; 256];
        let mut rng = rng();
        let r = Routing::new(&[1.0; 256], 8);
        for _ in 0..100 {
            r.draw(1000, &mut rng, &mut counts);
        }
        let (min, max) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        // 3,125 expected, standard deviation 55.
        assert!(*min > 2850 && *max < 3400, "{min} {max}");
    }
}
