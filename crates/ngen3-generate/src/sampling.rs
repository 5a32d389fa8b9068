//! Sampling of the next token from a model's logits.
//!
//! The order is that of `transformers`: repetition penalty, temperature, `top_k`, `top_p`, `min_p`, then a draw from the softmax
//! of the tokens that are left. `logits` are `[vocab_size]`, as a decoder returns them.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use ngen3_engine::Error;
use ngen3_simd::top_k::{Scratch, choose};
use ngen3_simd::{exp, max, simd};

/// Sampling settings. The default samples from the model's own distribution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divisor of the logits; 0 takes the most likely token (greedy).
    pub temperature: f32,
    /// Keeps the `top_k` most likely tokens; 0 disables it.
    pub top_k: usize,
    /// Keeps the fewest most likely tokens with a total probability of at least `top_p` (Holtzman et al. 2019); 1 disables it.
    pub top_p: f32,
    /// Keeps tokens with probability ≥ `min_p` × the most likely token's (Nguyen et al. 2024); 0 disables it.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens that occurred before (CTRL, Keskar et al. 2019); 1 disables
    /// it.
    pub repetition_penalty: f32,
    /// Random seed.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, seed: 0 }
    }
}

impl Sampling {
    /// Checks the range of each setting.
    ///
    /// # Errors
    /// [`Error::Input`] naming the first that is out of range.
    pub fn validate(&self) -> Result<(), Error> {
        let Self { temperature, top_p, min_p, repetition_penalty, .. } = *self;
        let checks = [
            (
                "temperature",
                temperature,
                temperature >= 0.0 && temperature.is_finite(),
                "0 (greedy) or a positive number",
            ),
            ("top_p", top_p, top_p > 0.0 && top_p <= 1.0, "above 0 and at most 1"),
            ("min_p", min_p, (0.0..=1.0).contains(&min_p), "between 0 and 1"),
            (
                "repetition_penalty",
                repetition_penalty,
                repetition_penalty > 0.0 && repetition_penalty.is_finite(),
                "a positive number",
            ),
        ];
        match checks.into_iter().find(|(_, _, valid, _)| !valid) {
            None => Ok(()),
            Some((name, value, _, range)) => Err(Error::Input(format!("{name}: expected {range}, got {value}"))),
        }
    }
}

/// Number of most likely tokens that `top_p` tries before it tries the whole vocabulary.
const FEW: usize = 1024;

/// Samples tokens with one random stream.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    random: ChaCha8Rng,
    /// `[vocab_size]`: logits after the repetition penalty; unused without one.
    penalised: Vec<f32>,
    /// Tokens to draw from, in ascending order; empty if any token may be drawn.
    ids: Vec<u32>,
    /// Unnormalised probabilities of these tokens: 1 for the most likely one, 0 for excluded ones.
    weights: Vec<f32>,
    /// Reordered weights, to find the largest.
    scratch: Vec<f32>,
    /// Working memory of the search for the most likely tokens.
    top_k: Scratch,
}

impl Sampler {
    /// Creates a sampler with the random stream `stream` of `sampling.seed`; each sample of a batch uses its own.
    ///
    /// # Errors
    /// As [`Sampling::validate`].
    pub fn new(sampling: Sampling, stream: u64) -> Result<Self, Error> {
        sampling.validate()?;
        let mut random = ChaCha8Rng::seed_from_u64(sampling.seed);
        random.set_stream(stream);
        let (ids, weights, top_k) = Default::default();
        Ok(Self { sampling, random, penalised: Vec::new(), ids, weights, scratch: Vec::new(), top_k })
    }

    /// Samples the next token. `history` holds the prompt and the tokens generated so far, for the repetition penalty.
    ///
    /// # Errors
    /// [`Error::Input`] if a logit is NaN or +∞, or no logit is finite.
    pub fn sample(&mut self, logits: &[f32], history: &[u32]) -> Result<u32, Error> {
        if self.sampling.repetition_penalty == 1.0 {
            return self.choose(logits);
        }
        let mut penalised = std::mem::take(&mut self.penalised);
        self.penalise(logits, history, &mut penalised);
        let token = self.choose(&penalised);
        self.penalised = penalised;
        token
    }

    /// Fills `penalised` with the logits after the repetition penalty.
    fn penalise(&self, logits: &[f32], history: &[u32], penalised: &mut Vec<f32>) {
        let penalty = self.sampling.repetition_penalty;
        penalised.clear();
        penalised.extend_from_slice(logits);
        for &token in history {
            // From the model's own logit, so that a repeated token is penalised once.
            if let Some(&logit) = logits.get(token as usize).filter(|logit| logit.is_finite()) {
                let changed = if logit > 0.0 { logit / penalty } else { logit * penalty };
                penalised[token as usize] = changed.clamp(f32::MIN, f32::MAX);
            }
        }
    }

    /// Samples a token from its logits after the penalty.
    fn choose(&mut self, logits: &[f32]) -> Result<u32, Error> {
        let best = largest_logit(logits)?;
        if self.sampling.temperature == 0.0 {
            let likeliest = logits.iter().position(|&logit| logit == best);
            return Ok(likeliest.expect("the largest logit is one of them") as u32);
        }
        self.weigh(logits, best);
        // 53 random bits: every multiple of 2⁻⁵³ below 1 is equally likely.
        let uniform = (self.random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let drawn = draw(&self.weights, uniform);
        Ok(self.ids.get(drawn).copied().unwrap_or(drawn as u32))
    }

    /// Finds the tokens to draw from and their weights. `best` is the largest logit.
    fn weigh(&mut self, logits: &[f32], best: f32) {
        let Sampling { temperature, top_k, top_p, min_p, .. } = self.sampling;
        self.ids.clear();
        self.weights.clear();
        if top_k > 0 && top_k < logits.len() {
            self.shortlist(logits, top_k);
            self.weights.extend(self.ids.iter().map(|&id| logits[id as usize]));
        } else {
            self.weights.extend_from_slice(logits);
        }
        // Relative to the largest, so that the exponential does not overflow.
        let weights = &mut self.weights;
        simd(
            #[inline(always)]
            || {
                for weight in weights {
                    let allowed = if *weight > f32::NEG_INFINITY { 1.0 } else { 0.0 };
                    *weight = exp((*weight - best) / temperature) * allowed;
                }
            },
        );
        if top_p < 1.0 {
            let wanted = f64::from(top_p) * mass(&self.weights);
            self.keep_few(logits, wanted);
            self.scratch.clone_from(&self.weights);
            let count = count_reaching(&mut self.scratch, wanted);
            keep_largest(&mut self.weights, &self.scratch[..count]);
        }
        if min_p > 0.0 {
            drop_below(&mut self.weights, min_p);
        }
    }

    /// Fills `ids` with the tokens of the `k` largest logits.
    fn shortlist(&mut self, logits: &[f32], k: usize) {
        self.ids.resize(k, 0);
        choose(logits, &mut self.ids, &mut self.top_k);
        self.ids.sort_unstable();
    }

    /// Keeps only the [`FEW`] most likely tokens of a whole vocabulary if their weights sum to `wanted`, as they usually do.
    fn keep_few(&mut self, logits: &[f32], wanted: f64) {
        if !self.ids.is_empty() || logits.len() <= FEW {
            return;
        }
        self.shortlist(logits, FEW);
        self.scratch.clear();
        self.scratch.extend(self.ids.iter().map(|&id| self.weights[id as usize]));
        if mass(&self.scratch) >= wanted {
            std::mem::swap(&mut self.weights, &mut self.scratch);
        } else {
            self.ids.clear();
        }
    }
}

/// Returns the largest logit.
///
/// # Errors
/// [`Error::Input`] if a logit is NaN or +∞, or no logit is finite.
fn largest_logit(logits: &[f32]) -> Result<f32, Error> {
    // A comparison with NaN is false.
    let (valid, best) = simd(
        #[inline(always)]
        || (logits.iter().fold(true, |valid, &logit| valid & (logit < f32::INFINITY)), max(logits)),
    );
    if !valid {
        let token = logits.iter().position(|&logit| logit.is_nan() || logit == f32::INFINITY).unwrap_or_default();
        let logit = logits[token];
        return Err(Error::Input(format!(
            "the model's logit of token {token} is {logit}: damaged weights or diverged training"
        )));
    }
    if best == f32::NEG_INFINITY {
        return Err(Error::Input("no token to sample: no logit is finite".into()));
    }
    Ok(best)
}

fn descending(a: &f32, b: &f32) -> std::cmp::Ordering {
    b.total_cmp(a)
}

/// Returns how many of the largest weights sum to `wanted`, and moves these to the front, in any order.
///
/// Bisects: either the larger half of the range is enough, or all of it is needed.
fn count_reaching(weights: &mut [f32], wanted: f64) -> usize {
    let (mut needed, mut end, mut found) = (0, weights.len(), 0.0);
    while end - needed > 1 {
        let middle = needed.midpoint(end);
        weights[needed..end].select_nth_unstable_by(middle - needed - 1, descending);
        let upper = mass(&weights[needed..middle]);
        if found + upper >= wanted {
            end = middle;
        } else {
            found += upper;
            needed = middle;
        }
    }
    end
}

/// Zeroes all weights except the `largest`; among ties for the smallest of these, lower ids are kept.
fn keep_largest(weights: &mut [f32], largest: &[f32]) {
    let smallest = largest.iter().copied().fold(f32::INFINITY, f32::min);
    let equal = |weights: &[f32]| weights.iter().filter(|&&weight| weight == smallest).count();
    drop_below(weights, smallest);
    let extra = equal(weights) - equal(largest);
    weights.iter_mut().rev().filter(|weight| **weight == smallest).take(extra).for_each(|weight| *weight = 0.0);
}

fn drop_below(weights: &mut [f32], smallest: f32) {
    simd(
        #[inline(always)]
        || weights.iter_mut().for_each(|weight| *weight = if *weight < smallest { 0.0 } else { *weight }),
    );
}

/// Sums weights in f64, in an order that does not depend on the vector width.
fn mass(weights: &[f32]) -> f64 {
    simd(
        #[inline(always)]
        || {
            let mut lanes = [0.0f64; 16];
            let (chunks, rest) = weights.as_chunks::<16>();
            for chunk in chunks {
                for (lane, &weight) in lanes.iter_mut().zip(chunk) {
                    *lane += f64::from(weight);
                }
            }
            lanes.iter().copied().chain(rest.iter().copied().map(f64::from)).sum()
        },
    )
}

/// Returns the place at which the running sum of weights exceeds `uniform`, in [0, 1), × the total.
fn draw(weights: &[f32], uniform: f64) -> usize {
    // Weights are summed in chunks, so that only one chunk is searched token by token.
    const CHUNK: usize = 1024;
    let masses: Vec<f64> = weights.chunks(CHUNK).map(mass).collect();
    let target = uniform * masses.iter().sum::<f64>();
    let mut passed = 0.0;
    let mut last = 0;
    for (chunk, mass) in masses.iter().enumerate() {
        if passed + mass <= target {
            passed += mass;
            continue;
        }
        for (token, &weight) in (chunk * CHUNK..).zip(&weights[chunk * CHUNK..]) {
            passed += f64::from(weight);
            if weight > 0.0 {
                last = token;
                if passed > target {
                    return token;
                }
            }
        }
    }
    // The two sums differ in their last bits, so the target may exceed the running sum at the very end.
    last
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Probabilities 1/2, 1/8, 1/4, 1/8.
    const LOGITS: [f32; 4] = [std::f32::consts::LN_2, -std::f32::consts::LN_2, 0.0, -std::f32::consts::LN_2];

    fn shortlist(sampling: Sampling, logits: &[f32], history: &[u32]) -> Vec<(u32, f32)> {
        let mut sampler = Sampler::new(sampling, 0).unwrap();
        let mut penalised = Vec::new();
        sampler.penalise(logits, history, &mut penalised);
        sampler.weigh(&penalised, largest_logit(&penalised).unwrap());
        let Sampler { mut ids, weights, .. } = sampler;
        if ids.is_empty() {
            ids.extend(0..weights.len() as u32);
        }
        ids.into_iter().zip(weights).filter(|&(_, weight)| weight > 0.0).collect()
    }

    #[track_caller]
    fn assert_shortlist(sampling: Sampling, history: &[u32], expected: &[(u32, f32)]) {
        let found = shortlist(sampling, &LOGITS, history);
        let tokens = |list: &[(u32, f32)]| list.iter().map(|&(token, _)| token).collect::<Vec<_>>();
        assert_eq!(tokens(&found), tokens(expected));
        for ((token, found), (_, expected)) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "token {token}: expected weight {expected}, got {found}");
        }
    }

    #[test]
    fn without_settings_every_token_has_its_probability() {
        assert_shortlist(Sampling::default(), &[0, 1], &[(0, 1.0), (1, 0.25), (2, 0.5), (3, 0.25)]);
    }

    #[test]
    fn temperature_flattens_and_sharpens() {
        let hot = Sampling { temperature: 2.0, ..Default::default() };
        assert_shortlist(hot, &[], &[(0, 1.0), (1, 0.5), (2, 0.5f32.sqrt()), (3, 0.5)]);
        let cold = Sampling { temperature: 0.5, ..Default::default() };
        assert_shortlist(cold, &[], &[(0, 1.0), (1, 0.0625), (2, 0.25), (3, 0.0625)]);
        let freezing = Sampling { temperature: f32::MIN_POSITIVE, ..Default::default() };
        assert_shortlist(freezing, &[], &[(0, 1.0), (1, 0.0), (2, 0.0), (3, 0.0)]);
    }

    #[test]
    fn top_k_keeps_k_and_the_lower_id_among_equals() {
        let top_k = |top_k| Sampling { top_k, ..Default::default() };
        assert_shortlist(top_k(1), &[], &[(0, 1.0)]);
        assert_shortlist(top_k(3), &[], &[(0, 1.0), (1, 0.25), (2, 0.5)]);
        assert_shortlist(top_k(4), &[], &[(0, 1.0), (1, 0.25), (2, 0.5), (3, 0.25)]);
        assert_shortlist(top_k(usize::MAX), &[], &[(0, 1.0), (1, 0.25), (2, 0.5), (3, 0.25)]);
    }

    #[test]
    fn top_p_keeps_the_fewest_that_reach_it() {
        let top_p = |top_p| Sampling { top_p, ..Default::default() };
        assert_shortlist(top_p(1e-9), &[], &[(0, 1.0)]);
        assert_shortlist(top_p(0.49), &[], &[(0, 1.0)]);
        assert_shortlist(top_p(0.51), &[], &[(0, 1.0), (2, 0.5)]);
        assert_shortlist(top_p(0.8), &[], &[(0, 1.0), (1, 0.25), (2, 0.5)]);
        // After top_k (4/6, 2/6), the first token alone reaches 0.6.
        assert_shortlist(Sampling { top_k: 2, top_p: 0.6, ..Default::default() }, &[], &[(0, 1.0)]);
    }

    #[test]
    fn min_p_is_relative_to_the_likeliest() {
        let min_p = |min_p| Sampling { min_p, ..Default::default() };
        assert_shortlist(min_p(0.2), &[], &[(0, 1.0), (1, 0.25), (2, 0.5), (3, 0.25)]);
        assert_shortlist(min_p(0.3), &[], &[(0, 1.0), (2, 0.5)]);
        assert_shortlist(min_p(1.0), &[], &[(0, 1.0)]);
    }

    #[test]
    fn repetition_is_penalised_once_and_whatever_the_sign() {
        let sampling = Sampling { repetition_penalty: 2.0, ..Default::default() };
        // ln 2 / 2 becomes the largest; −ln 2 · 2 = −ln 4; ids outside the vocabulary are ignored.
        let root = 0.5f32.sqrt();
        assert_shortlist(sampling, &[0, 0, 3, 3, 99], &[(0, 1.0), (1, 0.5 * root), (2, root), (3, 0.25 * root)]);
        let encouraged = Sampling { repetition_penalty: 1e-40, temperature: 0.0, ..Default::default() };
        let mut sampler = Sampler::new(encouraged, 0).unwrap();
        assert_eq!(sampler.sample(&[3.0, f32::NEG_INFINITY, 2.0], &[1, 2]).unwrap(), 2);
    }

    #[test]
    fn greedy_takes_the_likeliest_and_the_lower_id_among_equals() {
        let mut sampler = Sampler::new(Sampling { temperature: 0.0, ..Default::default() }, 0).unwrap();
        assert_eq!(sampler.sample(&[1.0, 3.0, 2.0, 3.0], &[]).unwrap(), 1);
        assert_eq!(sampler.sample(&[f32::NEG_INFINITY, -1e38], &[]).unwrap(), 1);
    }

    #[test]
    fn a_draw_falls_where_the_running_sum_says() {
        let mut weights = vec![0.0; 5000];
        (weights[2], weights[1500], weights[1501]) = (1.0, 0.5, 0.5);
        for (uniform, token) in
            [(0.0, 2), (0.4999, 2), (0.5, 1500), (0.7499, 1500), (0.75, 1501), (1.0 - f64::EPSILON / 2.0, 1501)]
        {
            assert_eq!(draw(&weights, uniform), token, "{uniform}");
        }
    }

    #[test]
    fn draws_come_as_often_as_their_probability() {
        let mut sampler = Sampler::new(Sampling { seed: 5, ..Default::default() }, 0).unwrap();
        let mut counts = [0i32; 4];
        for _ in 0..40_000 {
            counts[sampler.sample(&LOGITS, &[]).unwrap() as usize] += 1;
        }
        for (count, expected) in counts.iter().zip([20_000, 5_000, 10_000, 5_000]) {
            assert!((count - expected).abs() < 300, "{counts:?}");
        }
    }

    #[test]
    fn seed_and_stream_decide_the_draws() {
        let draws = |seed, stream| {
            let mut sampler = Sampler::new(Sampling { seed, ..Default::default() }, stream).unwrap();
            (0..50).map(|_| sampler.sample(&LOGITS, &[]).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draws(1, 0), draws(1, 0));
        assert_ne!(draws(1, 0), draws(2, 0));
        assert_ne!(draws(1, 0), draws(1, 1));
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let base = Sampling::default();
        for (sampling, message) in [
            (Sampling { temperature: -1.0, ..base }, "temperature: expected 0 (greedy) or a positive number, got -1"),
            (
                Sampling { temperature: f32::NAN, ..base },
                "temperature: expected 0 (greedy) or a positive number, got NaN",
            ),
            (
                Sampling { temperature: f32::INFINITY, ..base },
                "temperature: expected 0 (greedy) or a positive number, got inf",
            ),
            (Sampling { top_p: 0.0, ..base }, "top_p: expected above 0 and at most 1, got 0"),
            (Sampling { top_p: 1.5, ..base }, "top_p: expected above 0 and at most 1, got 1.5"),
            (Sampling { min_p: -0.1, ..base }, "min_p: expected between 0 and 1, got -0.1"),
            (Sampling { repetition_penalty: 0.0, ..base }, "repetition_penalty: expected a positive number, got 0"),
        ] {
            assert_eq!(Sampler::new(sampling, 0).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn logits_that_are_no_numbers_are_an_error() {
        let mut sampler = Sampler::new(Sampling::default(), 0).unwrap();
        let mut error = |logits: &[f32]| sampler.sample(logits, &[]).unwrap_err().to_string();
        assert!(error(&[0.0, f32::NAN]).contains("logit of token 1 is NaN"));
        assert!(error(&[f32::INFINITY]).contains("logit of token 0 is inf"));
        assert!(error(&[f32::NEG_INFINITY; 3]).contains("no token to sample"));
        assert!(error(&[]).contains("no token to sample"));
    }

    /// Candidates by a full sort of the vocabulary, in f64.
    fn reference(sampling: Sampling, logits: &[f32]) -> Vec<u32> {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).unwrap());
        if sampling.top_k > 0 {
            order.truncate(sampling.top_k);
        }
        let best = logits[order[0]];
        let weight = |&token: &usize| f64::from(((logits[token] - best) / sampling.temperature).exp());
        let total: f64 = order.iter().map(weight).sum();
        let mut kept = Vec::new();
        let mut found = 0.0;
        for token in &order {
            if sampling.top_p < 1.0 && found >= f64::from(sampling.top_p) * total {
                break;
            }
            found += weight(token);
            kept.push(*token);
        }
        kept.retain(|token| weight(token) >= f64::from(sampling.min_p));
        kept.into_iter().map(|token| token as u32).collect()
    }

    #[test]
    fn top_p_of_a_large_vocabulary_is_that_of_a_full_sort() {
        // Steep: the most likely few reach it. Flat: they do not. No two logits are equal.
        for step in [0.01, 1e-5] {
            let logits: Vec<f32> = (0..5_000).map(|token| -step * (token * 1_999 % 5_000) as f32).collect();
            for (top_k, top_p) in [(0, 0.5), (0, 0.95), (3_000, 0.9)] {
                let sampling = Sampling { top_k, top_p, ..Default::default() };
                let found: Vec<u32> = shortlist(sampling, &logits, &[]).iter().map(|&(token, _)| token).collect();
                let mut expected = reference(sampling, &logits);
                expected.sort_unstable();
                // Sums in another order may move the cut by one token.
                assert!(found.len().abs_diff(expected.len()) <= 1, "{} and {}", found.len(), expected.len());
                let alike = found.iter().filter(|token| expected.contains(token)).count();
                assert_eq!(alike, found.len().min(expected.len()), "step {step}, top_k {top_k}, top_p {top_p}");
            }
        }
    }

    proptest! {
        /// Logits on a coarse grid, so that many are equal, in a range in which the exponential does not underflow.
        #[test]
        fn the_shortlist_is_that_of_a_full_sort(
            grid in prop::collection::vec(-20i8..20, 1..400),
            top_k in 0usize..500,
            top_p in prop_oneof![Just(1.0f32), 0.001f32..1.0],
            min_p in prop_oneof![Just(0.0f32), 0.001f32..1.0],
            temperature in 0.2f32..3.0,
        ) {
            let logits: Vec<f32> = grid.iter().map(|&step| f32::from(step) / 4.0).collect();
            let sampling = Sampling { temperature, top_k, top_p, min_p, ..Default::default() };
            let mut found: Vec<u32> = shortlist(sampling, &logits, &[]).iter().map(|&(token, _)| token).collect();
            let mut expected = reference(sampling, &logits);
            found.sort_unstable();
            expected.sort_unstable();
            // Sums in another order may differ in the last bits, which can move the cut of top_p by one token.
            let close = found.len().abs_diff(expected.len()) <= 1 && found.iter().all(|token| expected.contains(token))
                || expected.iter().all(|token| found.contains(token)) && found.len() == expected.len() + 1;
            prop_assert!(found == expected || top_p < 1.0 && close, "expected {:?}, got {:?}", expected, found);
        }

        #[test]
        fn any_logits_give_a_token_that_they_allow_or_an_error(
            logits in prop::collection::vec(any::<f32>(), 0..50),
            history in prop::collection::vec(0u32..60, 0..20),
            temperature in 0.0f32..5.0,
            top_k in 0usize..60,
            top_p in 0.001f32..=1.0,
            repetition_penalty in 1e-10f32..1e10,
            seed: u64,
        ) {
            let sampling = Sampling { temperature, top_k, top_p, repetition_penalty, seed, ..Default::default() };
            if let Ok(token) = Sampler::new(sampling, 0).unwrap().sample(&logits, &history) {
                prop_assert!(logits[token as usize] > f32::NEG_INFINITY);
            }
        }
    }
}
