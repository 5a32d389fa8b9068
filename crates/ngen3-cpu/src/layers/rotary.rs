//! Rotary position embedding (Su et al. 2021): turns each pair of elements of a query or key by an angle that grows with its
//! position, so that a score depends on the distance between query and key.
//!
//! Pairs are elements i and i + head_width/2 of a head, as in Hugging Face's models ("rotate half"). At position p, pair i turns
//! by p·inv_freq[i]:  a' = a·cos − b·sin,  b' = b·cos + a·sin.  `qkv`: [tokens, row], whose first heads, queries and keys, are
//! turned in place; the rest, the values, is not touched. Nothing is saved: the backward pass turns the gradients back.

use ngen3_engine::Error;
use ngen3_simd::simd;
use rayon::prelude::*;

use crate::base::memory::Buffer;
use crate::base::profile::{Part, timed};

/// Rows per task.
const ROWS: usize = 32;

/// Cosines and sines of all angles.
#[derive(Debug)]
pub struct Rotary {
    /// Pairs of a head, head_width/2.
    pairs: usize,
    /// `[positions, 2, pairs]`: the cosines of a position, then its sines, times the attention factor.
    table: Buffer,
}

impl Rotary {
    /// Computes the table for positions 0 to `positions` − 1. `inv_freq`: `[head_width/2]`, radians per position.
    /// `attention_factor` scales queries and keys (YaRN, Peng et al. 2023); 1 otherwise.
    ///
    /// # Errors
    /// [`Error::Memory`] if the table does not fit in memory.
    pub fn new(inv_freq: &[f32], attention_factor: f32, positions: usize) -> Result<Self, Error> {
        let pairs = inv_freq.len();
        let mut table = Buffer::zeros(positions.saturating_mul(2 * pairs), "the table of rotary positions")?;
        table.par_chunks_mut((2 * pairs).max(1)).enumerate().for_each(|(position, row)| {
            let (cos, sin) = row.split_at_mut(pairs);
            for ((cos, sin), frequency) in cos.iter_mut().zip(sin).zip(inv_freq) {
                // Models are trained with angles rounded to f32, so the same rounding matters far from the start.
                let (s, c) = f64::from(position as f32 * frequency).sin_cos();
                (*cos, *sin) = (c as f32 * attention_factor, s as f32 * attention_factor);
            }
        });
        Ok(Self { pairs, table })
    }

    /// Turns the first `heads` heads of each row of `qkv`, whose tokens have these positions, in place.
    ///
    /// # Panics
    /// If a position is outside the table.
    pub fn forward(&self, positions: &[u32], heads: usize, qkv: &mut [f32]) {
        self.turn(positions, heads, qkv, 1.0);
    }

    /// Replaces the gradients of [`Rotary::forward`]'s outputs in `dqkv` by those of its inputs.
    ///
    /// # Panics
    /// If a position is outside the table.
    pub fn backward(&self, positions: &[u32], heads: usize, dqkv: &mut [f32]) {
        self.turn(positions, heads, dqkv, -1.0);
    }

    /// `direction`: 1 forward, −1 back. The transpose of a rotation is the rotation back.
    fn turn(&self, positions: &[u32], heads: usize, qkv: &mut [f32], direction: f32) {
        let _timed = timed(Part::Attention);
        if positions.is_empty() || self.pairs == 0 {
            return;
        }
        let (pairs, row, table) = (self.pairs, qkv.len() / positions.len(), &*self.table);
        qkv.par_chunks_mut(ROWS * row).zip(positions.par_chunks(ROWS)).for_each(|(qkv, positions)| {
            simd(
                #[inline(always)]
                || {
                    for (qkv, &position) in qkv.chunks_exact_mut(row).zip(positions) {
                        let (cos, sin) = table[position as usize * 2 * pairs..][..2 * pairs].split_at(pairs);
                        for head in qkv[..heads * 2 * pairs].chunks_exact_mut(2 * pairs) {
                            let (a, b) = head.split_at_mut(pairs);
                            for (((a, b), &cos), &sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                                let sin = direction * sin;
                                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                            }
                        }
                    }
                },
            );
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::testing::{check_gradient, dot, random};

    /// Frequencies of Llama: θ^(−2i/head_width).
    fn inv_freq(pairs: usize) -> Vec<f32> {
        (0..pairs).map(|i| 10_000f32.powf(-(i as f32) / pairs as f32)).collect()
    }

    #[test]
    fn pairs_turn_by_position_times_frequency_and_back_in_the_gradient() {
        // Tokens, pairs, heads, columns after them, factor.
        for (tokens, pairs, heads, rest, factor) in [(5, 4, 3, 8, 1.0), (1, 1, 1, 0, 1.0), (70, 17, 2, 5, 1.3)] {
            let inv_freq = inv_freq(pairs);
            let rotary = Rotary::new(&inv_freq, factor, 2 * tokens + 3).expect("little memory");
            // Out of order and repeated, as in several sequences.
            let positions: Vec<u32> = (0..tokens).map(|t| ((t * 7 + 2) % (2 * tokens + 3)) as u32).collect();
            let row = heads * 2 * pairs + rest;
            let (qkv, dout) = (random(tokens * row, 1), random(tokens * row, 2));
            let run = |qkv: &[f32]| {
                let mut turned = qkv.to_vec();
                rotary.forward(&positions, heads, &mut turned);
                turned
            };
            let turned = run(&qkv);
            for (token, &position) in positions.iter().enumerate() {
                let [x, y] = [&qkv, &turned].map(|all| &all[token * row..(token + 1) * row]);
                for (head, i) in (0..heads).flat_map(|head| (0..pairs).map(move |i| (head, i))) {
                    let angle = f64::from(position) * f64::from(inv_freq[i]);
                    let at = [head * 2 * pairs + i, head * 2 * pairs + pairs + i];
                    let [a, b] = at.map(|at| f64::from(x[at]));
                    let expected = [a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()];
                    for (found, expected) in at.map(|at| f64::from(y[at])).into_iter().zip(expected) {
                        let expected = expected * f64::from(factor);
                        assert!((found - expected).abs() < 2e-5, "position {position}: {found} instead of {expected}");
                    }
                }
                assert_eq!(x[heads * 2 * pairs..], y[heads * 2 * pairs..]);
            }
            let mut dqkv = dout.clone();
            rotary.backward(&positions, heads, &mut dqkv);
            check_gradient(&qkv, &dqkv, |qkv| dot(&run(qkv), &dout));
        }
    }

    #[test]
    fn scores_depend_on_the_distance_alone() {
        let (pairs, rotary) = (32, Rotary::new(&inv_freq(32), 1.0, 2_000).expect("little memory"));
        let score = |query: u32, key: u32| {
            let mut both = random(4 * pairs, 1);
            rotary.forward(&[query, key], 1, &mut both);
            dot(&both[..2 * pairs], &both[2 * pairs..])
        };
        assert!((score(40, 3) - score(1_537, 1_500)).abs() < 1e-3);
        assert!((score(40, 3) - score(41, 3)).abs() > 1e-3);
    }
}
