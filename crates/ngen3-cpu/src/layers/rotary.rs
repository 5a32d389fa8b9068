//! Rotary position embedding (Su et al. 2021): turns each pair of elements of a query or key by an angle that grows with its
//! position, so that a score depends on the distance between query and key.
//!
//! Pairs are elements i and i + head_width/2 of a head, as in Hugging Face's models ("rotate half"). At position p, pair i turns
//! by p·inv_freq[i]:  a' = a·cos − b·sin,  b' = b·cos + a·sin.  `qkv`: [tokens, row], whose first heads, queries and keys, are
//! turned in place; the rest, the values, is not touched. Nothing is saved: the backward pass turns the gradients back.

use std::sync::{Arc, Mutex, PoisonError};

use ngen3_simd::simd;
use rayon::prelude::*;

use crate::base::profile::{Part, timed};

/// Rows per task.
const ROWS: usize = 32;
/// Fewest positions in the table.
const FIRST: usize = 256;

/// Cosines and sines of all angles.
#[derive(Debug)]
pub struct Rotary {
    /// Radians per position of each pair, `[pairs]`; pairs = head_width/2.
    inv_freq: Vec<f32>,
    attention_factor: f32,
    /// `[positions, 2, pairs]`: the cosines of a position, then its sines, times the attention factor. It grows with the positions
    /// in use, since a model's context may be far longer than any text that it sees.
    table: Mutex<Arc<Vec<f32>>>,
}

impl Rotary {
    /// `inv_freq`: `[head_width/2]`, radians per position. `attention_factor` scales queries and keys (YaRN, Peng et al. 2023); 1
    /// otherwise.
    pub fn new(inv_freq: Vec<f32>, attention_factor: f32) -> Self {
        Self { inv_freq, attention_factor, table: Mutex::default() }
    }

    /// Returns a table that holds these positions.
    fn table(&self, positions: &[u32]) -> Arc<Vec<f32>> {
        let current = || self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let row = 2 * self.inv_freq.len();
        let needed = positions.iter().max().map_or(0, |&last| last as usize + 1);
        let table = Arc::clone(&current());
        if needed * row <= table.len() {
            return table;
        }
        let (known, mut grown) = (table.len(), table.to_vec());
        grown.resize(needed.next_power_of_two().max(FIRST) * row, 0.0);
        let new = grown[known..].par_chunks_mut(row).enumerate();
        new.for_each(|(index, angles)| self.angles(known / row + index, angles));
        let grown = Arc::new(grown);
        // The lock is not held while other threads work.
        *current() = Arc::clone(&grown);
        grown
    }

    /// Computes the cosines and sines of a position, `[2, pairs]`.
    fn angles(&self, position: usize, out: &mut [f32]) {
        let (cos, sin) = out.split_at_mut(self.inv_freq.len());
        for ((cos, sin), frequency) in cos.iter_mut().zip(sin).zip(&self.inv_freq) {
            // Models are trained with angles rounded to f32, so the same rounding matters far from the start.
            let (s, c) = f64::from(position as f32 * frequency).sin_cos();
            (*cos, *sin) = (c as f32 * self.attention_factor, s as f32 * self.attention_factor);
        }
    }

    /// Turns the first `heads` heads of each row of `qkv`, whose tokens have these positions, in place.
    pub fn forward(&self, positions: &[u32], heads: usize, qkv: &mut [f32]) {
        self.turn(positions, heads, qkv, 1.0);
    }

    /// Replaces the gradients of [`Rotary::forward`]'s outputs in `dqkv` by those of its inputs.
    pub fn backward(&self, positions: &[u32], heads: usize, dqkv: &mut [f32]) {
        self.turn(positions, heads, dqkv, -1.0);
    }

    /// `direction`: 1 forward, −1 back. The transpose of a rotation is the rotation back.
    fn turn(&self, positions: &[u32], heads: usize, qkv: &mut [f32], direction: f32) {
        let _timed = timed(Part::Attention);
        let pairs = self.inv_freq.len();
        if positions.is_empty() || pairs == 0 {
            return;
        }
        let (row, table) = (qkv.len() / positions.len(), self.table(positions));
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
            let rotary = Rotary::new(inv_freq.clone(), factor);
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
    fn the_table_grows_with_the_positions_in_use() {
        let rotary = Rotary::new(inv_freq(3), 1.0);
        let turned = |rotary: &Rotary, position: u32| {
            let mut row = random(6, 1);
            rotary.forward(&[position], 1, &mut row);
            row
        };
        let positions = [0, FIRST as u32 - 1, FIRST as u32, 70_000, 5];
        let found = positions.map(|position| turned(&rotary, position));
        assert_eq!(rotary.table(&[1]).len(), 6 * 131_072);
        assert_eq!(found, positions.map(|position| turned(&Rotary::new(inv_freq(3), 1.0), position)));
    }

    #[test]
    fn scores_depend_on_the_distance_alone() {
        let (pairs, rotary) = (32, Rotary::new(inv_freq(32), 1.0));
        let score = |query: u32, key: u32| {
            let mut both = random(4 * pairs, 1);
            rotary.forward(&[query, key], 1, &mut both);
            dot(&both[..2 * pairs], &both[2 * pairs..])
        };
        assert!((score(40, 3) - score(1_537, 1_500)).abs() < 1e-3);
        assert!((score(40, 3) - score(41, 3)).abs() > 1e-3);
    }
}
