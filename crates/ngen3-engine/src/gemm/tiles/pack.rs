//! Rounding and laying out panels.
//!
//! A panel is `R` rows of an operand seen as [rows, k] (B is seen transposed): for each cell of `P` elements along k, that cell of
//! each of the `R` rows, `[k/P, R]`. Rows past the end and an odd last k are zeros, which add nothing to a product.

use super::super::Mat;
use crate::cpu::simd::simd;

/// The nearest bf16 (ties to even) of `x`, in the high half; NaN stays NaN.
#[inline(always)]
fn round(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7FFF + (bits >> 16 & 1));
    let kept = if x.is_nan() { bits | 0x0040_0000 } else { rounded };
    kept & 0xFFFF_0000
}

/// Two neighbours along k as one u32, the first in the low half.
#[inline(always)]
pub fn pair(first: f32, second: f32) -> u32 {
    round(first) >> 16 | round(second)
}

/// `P` neighbours along k as one cell; with P = 1 the second is nothing.
#[inline(always)]
pub fn cell<const P: usize>(first: f32, second: f32) -> u32 {
    if P == 2 { pair(first, second) } else { first.to_bits() }
}

/// `x` as a product with `P` elements in a cell sees it.
#[inline(always)]
pub fn rounded<const P: usize>(x: f32) -> f32 {
    if P == 2 { f32::from_bits(round(x)) } else { x }
}

/// Cells of a row that are rounded before they are turned.
const BLOCK: usize = 16;

/// Packs rows `first_row..first_row + R` of `source`, `[rows, k]`, into `panel`, `[k/P, R]`.
pub fn panel<const P: usize, const R: usize>(source: Mat<'_>, first_row: usize, panel: &mut [u32]) {
    let rows = R.min(source.rows - first_row);
    assert_eq!(panel.len(), source.cols.div_ceil(P) * R, "a panel of {R} rows");
    simd(
        #[inline(always)]
        || {
            if source.col_stride == 1 {
                // Rows are rounded a block at a time, which vectorises, and only then turned.
                let mut block = [[0u32; BLOCK]; R];
                for (b, panel) in panel.chunks_mut(BLOCK * R).enumerate() {
                    for (r, cells) in block.iter_mut().enumerate().take(rows) {
                        let row = source.row(first_row + r);
                        let row = &row[b * BLOCK * P..row.len().min((b + 1) * BLOCK * P)];
                        let (neighbours, odd) = row.as_chunks::<P>();
                        for (cell_of, x) in cells.iter_mut().zip(neighbours) {
                            *cell_of = cell::<P>(x[0], x[P - 1]);
                        }
                        if let [last, ..] = odd {
                            cells[neighbours.len()] = cell::<P>(*last, 0.0);
                        }
                    }
                    for (i, slot) in panel.as_chunks_mut::<R>().0.iter_mut().enumerate() {
                        for (slot, cells) in slot.iter_mut().zip(&block) {
                            *slot = cells[i];
                        }
                    }
                }
                return;
            }
            for (w, slot) in panel.as_chunks_mut::<R>().0.iter_mut().enumerate() {
                let last = w * P + P - 1;
                let first = source.column(w * P, first_row, rows);
                let second = if last < source.cols { source.column(last, first_row, rows) } else { &[] };
                match (first.as_array::<R>(), second.as_array::<R>()) {
                    (Some(first), Some(second)) => {
                        for r in 0..R {
                            slot[r] = cell::<P>(first[r], second[r]);
                        }
                    }
                    _ => {
                        for (r, slot) in slot.iter_mut().enumerate() {
                            let at = |column: &[f32]| column.get(r).copied().unwrap_or(0.0);
                            *slot = cell::<P>(at(first), at(second));
                        }
                    }
                }
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::random;

    #[test]
    fn rounds_to_the_nearest_and_ties_to_even() {
        for (x, expected) in [
            (1.0, 0x3F80),
            (f32::from_bits(0x3F80_8000), 0x3F80),
            (f32::from_bits(0x3F81_8000), 0x3F82),
            (f32::from_bits(0x3F80_8001), 0x3F81),
            (-0.0, 0x8000),
            (f32::INFINITY, 0x7F80),
            (f32::MAX, 0x7F80),
        ] {
            assert_eq!(pair(x, 0.0), expected, "{x}");
            assert_eq!(pair(0.0, x), expected << 16, "{x}");
        }
        for bits in [0x7FFF_FFFF, 0x7F80_0001, 0xFFC0_0000] {
            assert!(f32::from_bits(pair(f32::from_bits(bits), 0.0) << 16).is_nan(), "{bits:x}");
        }
    }

    /// Panels of 12 rows from both orientations of a matrix.
    fn check<const P: usize>(rows: usize, k: usize) {
        let x = random(rows * k, 1);
        let mut transposed = vec![0.0; rows * k];
        for i in 0..rows * k {
            transposed[i % k * rows + i / k] = x[i];
        }
        for first in (0..rows).step_by(12) {
            let cells = k.div_ceil(P);
            let (mut a, mut b) = (vec![1; cells * 12], vec![2; cells * 12]);
            panel::<P, 12>(Mat::new(&x, rows, k), first, &mut a);
            panel::<P, 12>(Mat::new(&transposed, k, rows).t(), first, &mut b);
            assert_eq!(a, b);
            for (i, &found) in a.iter().enumerate() {
                let (w, r) = (i / 12, first + i % 12);
                let at = |j: usize| if r < rows && j < k { x[r * k + j] } else { 0.0 };
                assert_eq!(found, if P == 2 { pair(at(2 * w), at(2 * w + 1)) } else { at(w).to_bits() });
            }
        }
    }

    #[test]
    fn both_orientations_pack_the_same_with_zeros_past_the_end() {
        for (rows, k) in [(5, 7), (12, 4), (13, 1), (24, 10)] {
            check::<1>(rows, k);
            check::<2>(rows, k);
        }
    }
}
