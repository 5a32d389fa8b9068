//! Rounding to bf16 and laying out panels.
//!
//! A panel is `R` rows of an operand seen as [rows, k] (B is seen transposed): for each pair along k, the pair of each of the
//! `R` rows, `[k/2, R]` u32s. Rows past the end and an odd last k are zeros, which add nothing to a product.

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

/// `x` as a product of bf16 operands sees it.
#[inline(always)]
pub fn rounded(x: f32) -> f32 {
    f32::from_bits(round(x))
}

/// Packs rows `first_row..first_row + R` of `source`, `[rows, k]`, into `panel`, `[k/2, R]`.
pub fn panel<const R: usize>(source: Mat<'_>, first_row: usize, panel: &mut [u32]) {
    let rows = R.min(source.rows - first_row);
    let pairs = source.cols / 2;
    assert_eq!(panel.len(), source.cols.div_ceil(2) * R, "a panel of {R} rows");
    simd(
        #[inline(always)]
        || {
            if source.col_stride == 1 {
                for r in 0..rows {
                    let row = source.row(first_row + r);
                    let (row_pairs, odd) = row.as_chunks::<2>();
                    for (slot, &[a, b]) in panel.chunks_exact_mut(R).zip(row_pairs) {
                        slot[r] = pair(a, b);
                    }
                    if let [last] = odd {
                        panel[pairs * R + r] = pair(*last, 0.0);
                    }
                }
                for slot in panel.chunks_exact_mut(R) {
                    slot[rows..].fill(0);
                }
                return;
            }
            for (p, slot) in panel.as_chunks_mut::<R>().0.iter_mut().enumerate() {
                let first = source.column(2 * p, first_row, rows);
                let second = if 2 * p + 1 < source.cols { source.column(2 * p + 1, first_row, rows) } else { &[] };
                match (first.as_array::<R>(), second.as_array::<R>()) {
                    (Some(first), Some(second)) => {
                        for r in 0..R {
                            slot[r] = pair(first[r], second[r]);
                        }
                    }
                    _ => {
                        for (r, slot) in slot.iter_mut().enumerate() {
                            let at = |column: &[f32]| column.get(r).copied().unwrap_or(0.0);
                            *slot = pair(at(first), at(second));
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

    #[test]
    fn both_orientations_pack_the_same_with_zeros_past_the_end() {
        for (rows, k) in [(5, 7), (12, 4), (13, 1), (24, 10)] {
            let x = random(rows * k, 1);
            let mut transposed = vec![0.0; rows * k];
            for i in 0..rows * k {
                transposed[i % k * rows + i / k] = x[i];
            }
            for first in (0..rows).step_by(12) {
                let pairs = k.div_ceil(2);
                let (mut a, mut b) = (vec![1; pairs * 12], vec![2; pairs * 12]);
                panel::<12>(Mat::new(&x, rows, k), first, &mut a);
                panel::<12>(Mat::new(&transposed, k, rows).t(), first, &mut b);
                assert_eq!(a, b);
                for (i, &found) in a.iter().enumerate() {
                    let (p, r) = (i / 12, first + i % 12);
                    let at = |j: usize| if r < rows && j < k { x[r * k + j] } else { 0.0 };
                    assert_eq!(found, pair(at(2 * p), at(2 * p + 1)));
                }
            }
        }
    }
}
