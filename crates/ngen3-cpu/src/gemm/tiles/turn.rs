//! Transposes packed weights: from panels for x·Wᵀ to panels for dy·W, in bf16.
//!
//! A panel for x·Wᵀ has, for each pair of inputs, that pair of [`NR`] outputs; a panel for dy·W has, for each pair of outputs, that
//! pair of [`NR`] inputs. Blocks of [`NR`] x [`NR`] weights are transposed in registers.

use rayon::prelude::*;

#[cfg(any(target_arch = "x86_64", test))]
use super::kernel;
use super::kernel::NR;
use super::pack::{cells, packed_len};

/// Fills `to`, panels of `[outputs, inputs]` for products that sum over the outputs, from `panels` of the same weight for products
/// that sum over the inputs, on all threads.
///
/// # Panics
/// If a length does not match.
pub fn turn(panels: &[u32], outputs: usize, inputs: usize, to: &mut [u32]) {
    assert_eq!(panels.len(), packed_len::<2, NR>(outputs, inputs), "cells of the packed weight");
    assert_eq!(to.len(), packed_len::<2, NR>(inputs, outputs), "cells of the transposed weight");
    if panels.is_empty() {
        return;
    }
    let (depth, to_depth) = (cells::<2>(inputs), cells::<2>(outputs));
    to.par_chunks_mut(NR * to_depth).enumerate().for_each(|(j, to)| {
        // Cells of the panel's inputs in each panel of outputs.
        let first = j * NR / 2;
        let here = (depth - first).min(NR / 2);
        for (i, panel) in panels.chunks_exact(NR * depth).enumerate() {
            let from = &panel[first * NR..][..here * NR];
            let to = &mut to[i * NR / 2 * NR..];
            let pairs = (to.len() / NR).min(NR / 2);
            let to = &mut to[..pairs * NR];
            #[cfg(target_arch = "x86_64")]
            if here == NR / 2 && pairs == NR / 2 && kernel::available() {
                // SAFETY: the features were checked; both blocks have NR/2 x NR cells.
                unsafe { x86::block(from, to) };
                continue;
            }
            block_plain(from, to);
        }
    });
}

/// Transposes one block of up to NR/2 x [`NR`] cells; what `from` lacks is zero.
fn block_plain(from: &[u32], to: &mut [u32]) {
    let at = |output: usize, input: usize| {
        let cell = from.get(input / 2 * NR + output).copied().unwrap_or(0);
        cell >> (16 * (input % 2)) & 0xFFFF
    };
    for (pair, to) in to.chunks_exact_mut(NR).enumerate() {
        for (input, to) in to.iter_mut().enumerate() {
            *to = at(2 * pair, input) | at(2 * pair + 1, input) << 16;
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::NR;
    use crate::gemm::tiles::pack::turned;

    /// # Safety
    /// The processor has AVX-512F and BW; both blocks have NR/2 x NR cells.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub unsafe fn block(from: &[u32], to: &mut [u32]) {
        // 16-bit lanes of two rows side by side: the first row's n-th, the second row's n-th.
        let low = _mm512_set_epi16(
            47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33,
            1, 32, 0,
        );
        let high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
        for half in 0..NR / 16 {
            let mut rows = [_mm512_setzero_si512(); 16];
            for (w, row) in rows.iter_mut().enumerate() {
                // SAFETY: row `w` has NR cells.
                *row = unsafe { _mm512_loadu_si512(from.as_ptr().add(w * NR + half * 16).cast()) };
            }
            // Row r: the inputs of output 16·half + r, two in each cell.
            let outputs = turned(rows);
            for pair in 0..8 {
                let (a, b) = (outputs[2 * pair], outputs[2 * pair + 1]);
                // SAFETY: row `8·half + pair` of `to` has NR cells.
                unsafe {
                    let to = to.as_mut_ptr().add((half * 8 + pair) * NR);
                    _mm512_storeu_si512(to.cast(), _mm512_permutex2var_epi16(a, low, b));
                    _mm512_storeu_si512(to.add(16).cast(), _mm512_permutex2var_epi16(a, high, b));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::testing::{random, skip};
    use crate::gemm::Mat;
    use crate::gemm::tiles::pack::pack;

    #[test]
    fn turned_panels_equal_those_packed_from_the_transpose() {
        if !kernel::available() {
            skip("vector transposition of packed weights against the plain version");
        }
        for (outputs, inputs) in [(1, 1), (32, 32), (5, 7), (64, 96), (33, 31), (70, 130), (97, 64), (2, 200)] {
            let w = random(outputs * inputs, 1);
            let w = Mat::new(&w, outputs, inputs);
            let mut panels = vec![1; packed_len::<2, NR>(outputs, inputs)];
            pack::<2, NR>(w, &mut panels);
            let mut expected = vec![2; packed_len::<2, NR>(inputs, outputs)];
            let mut found = vec![3; expected.len()];
            pack::<2, NR>(w.t(), &mut expected);
            turn(&panels, outputs, inputs, &mut found);
            assert_eq!(found, expected, "{outputs} x {inputs}");
        }
    }
}
