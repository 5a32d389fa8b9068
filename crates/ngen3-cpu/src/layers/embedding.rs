//! Token and position embeddings: x[t] = wte[token[t]] + wpe[position[t]]   (`encoder` in llm.c).
//!
//! `tokens` and `positions`: [tokens]; `wte`: [vocab_size, width]; `wpe`: [block_size, width], or empty in a model with rotary
//! positions; `x`: [tokens, width].

use rayon::prelude::*;

use crate::base::profile::{Part, timed};
use crate::gemm::Canvas;
use crate::gemm::tiles::panels_a;

/// Columns per task of the backward pass.
const COLUMNS: usize = 32;

/// Embeddings, `[vocab_size, width]`, that are read row by row.
#[derive(Clone, Copy)]
pub enum Table<'a> {
    Plain(&'a [f32]),
    /// Packed in bf16 (`gemm/tiles/panels_a.rs`).
    Panels(&'a [u32]),
}

impl<'a> Table<'a> {
    /// Copies the row of a token to `row`, `[width]`.
    #[inline(always)]
    pub fn copy_row(self, token: u32, row: &mut [f32]) {
        match self {
            Self::Plain(table) => row.copy_from_slice(&table[token as usize * row.len()..][..row.len()]),
            Self::Panels(panels) => panels_a::copy_row(panels, token as usize, row),
        }
    }

    /// Returns the whole table.
    ///
    /// # Panics
    /// If it is packed.
    pub fn plain(self) -> &'a [f32] {
        match self {
            Self::Plain(table) => table,
            Self::Panels(_) => panic!("packed embeddings are read row by row"),
        }
    }
}

/// Computes `x` from the two tables.
pub fn forward(tokens: &[u32], positions: &[u32], wte: Table<'_>, wpe: &[f32], x: &mut [f32]) {
    let _timed = timed(Part::Embedding);
    let width = x.len() / tokens.len();
    x.par_chunks_mut(width).zip(tokens.par_iter().zip(positions)).for_each(|(x, (&token, &position))| {
        wte.copy_row(token, x);
        if !wpe.is_empty() {
            let position = &wpe[position as usize * width..][..width];
            x.iter_mut().zip(position).for_each(|(x, p)| *x += p);
        }
    });
}

/// Accumulates `dwte[token[t]] += dx[t]` and `dwpe[position[t]] += dx[t]`.
pub fn backward(tokens: &[u32], positions: &[u32], dx: &[f32], dwte: &mut [f32], dwpe: &mut [f32]) {
    let _timed = timed(Part::Embedding);
    if !dwpe.is_empty() {
        scatter(positions, dx, 1.0, dwpe);
    }
    scatter(tokens, dx, 1.0, dwte);
}

/// Accumulates `dwte[token[t]] += scale·dx[t]`.
pub fn scatter(tokens: &[u32], dx: &[f32], scale: f32, dwte: &mut [f32]) {
    let width = dx.len() / tokens.len();
    add_rows(width, dwte, || tokens.iter().zip(dx.chunks_exact(width)).map(|(&token, dx)| (token, scale, dx)));
}

/// Accumulates `dwte[token[i]] += scale[i]·dx[i / k]`: each row of `dx` is added to k rows of `dwte`.
pub fn scatter_scaled(tokens: &[u32], scales: &[f32], k: usize, dx: &[f32], dwte: &mut [f32]) {
    let width = dx.len() * k / tokens.len();
    let rows = || dx.chunks_exact(width).flat_map(|dx| std::iter::repeat_n(dx, k));
    add_rows(width, dwte, || tokens.iter().zip(scales).zip(rows()).map(|((&token, &scale), dx)| (token, scale, dx)));
}

/// Adds scaled rows to the rows of `dwte` given by their tokens.
///
/// Each task owns some columns and takes the rows in order, so the bits do not depend on the number of threads.
fn add_rows<'a, I: Iterator<Item = (u32, f32, &'a [f32])>>(
    width: usize,
    dwte: &mut [f32],
    rows: impl Fn() -> I + Sync,
) {
    let dwte = Canvas::new(dwte, width);
    (0..width).into_par_iter().step_by(COLUMNS).for_each(|first| {
        let columns = first..(first + COLUMNS).min(width);
        for (token, scale, dx) in rows() {
            // SAFETY: `first` is a different multiple of COLUMNS in each task, so no two tasks share a column.
            let dwte = unsafe { dwte.row(token as usize, columns.clone()) };
            for (d, &dx) in dwte.iter_mut().zip(&dx[columns.clone()]) {
                *d += scale * dx;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::testing::{check_gradient, dot, random};

    #[test]
    fn backward_matches_finite_differences_with_repeated_tokens() {
        for (seq_len, width, vocab) in [(5, 12, 7), (1, 3, 2), (4, 100, 97)] {
            let tokens: Vec<u32> = (0..3 * seq_len as u32).map(|t| t * t % vocab as u32).collect();
            let positions: Vec<u32> = (0..tokens.len()).map(|t| (t % seq_len) as u32 + 2).collect();
            let (wte, wpe) = (random(vocab * width, 1), random((seq_len + 3) * width, 2));
            let dx = random(tokens.len() * width, 3);
            let loss = |wte: &[f32], wpe: &[f32]| {
                let mut x = vec![f32::NAN; tokens.len() * width];
                forward(&tokens, &positions, Table::Plain(wte), wpe, &mut x);
                dot(&x, &dx)
            };
            let (mut dwte, mut dwpe) = (vec![0.0; wte.len()], vec![0.0; wpe.len()]);
            backward(&tokens, &positions, &dx, &mut dwte, &mut dwpe);
            check_gradient(&wte, &dwte, |wte| loss(wte, &wpe));
            check_gradient(&wpe, &dwpe, |wpe| loss(&wte, wpe));
        }
    }
}
