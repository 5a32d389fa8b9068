//! Rounding and laying out operands in cells of `P` elements along k.
//!
//! Small products (`strided.rs`) read rows of cells: [`along`] each row, or [`down`] the columns. Large ones read
//! panels. A panel is `R` rows of an operand seen as [rows, k] (B is seen transposed): for each cell of `P` elements along k,
//! that cell of each of the `R` rows, `[k/P, R]`. Rows past the end and an odd last k are zeros, which add nothing to a product.

use rayon::prelude::*;

use super::kernel;
use crate::gemm::view::Mat;

/// Panels that one task packs.
pub const GROUP: usize = 4;

/// Cells in which `k` elements are packed, `P` in each.
pub const fn cells<const P: usize>(k: usize) -> usize {
    k.div_ceil(P)
}

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

/// Cells that `rows` rows of length `k` take, packed in panels of `R` rows.
pub fn packed_len<const P: usize, const R: usize>(rows: usize, k: usize) -> usize {
    rows.div_ceil(R) * R * cells::<P>(k)
}

/// Rounds and lays out `[rows, k]` as panels of `R` rows, on all threads.
pub fn pack<const P: usize, const R: usize>(source: Mat<'_>, packed: &mut [u32]) {
    assert_eq!(packed.len(), packed_len::<P, R>(source.rows, source.cols), "packed panels");
    let group = GROUP * R;
    packed.par_chunks_mut(group * cells::<P>(source.cols).max(1)).enumerate().for_each(|(i, to)| {
        panels::<P, R>(source, i * group, to);
    });
}

/// Packs rows `first_row..` of `source`, `[rows, k]`, into `panels` of `R` rows, each `[k/P, R]`.
///
/// # Panics
/// If the panels are not whole or start past the rows, or the source has neither contiguous rows nor contiguous columns.
pub fn panels<const P: usize, const R: usize>(source: Mat<'_>, first_row: usize, panels: &mut [u32]) {
    let panel = source.cols.div_ceil(P) * R;
    if panel == 0 {
        return;
    }
    assert_eq!(panels.len() % panel, 0, "panels of {R} rows");
    assert!(source.row_stride == 1 || source.col_stride == 1, "rows or columns that are contiguous");
    let source = source.rows(first_row..(first_row + panels.len() / panel * R).min(source.rows));
    assert!(source.rows.div_ceil(R) == panels.len() / panel, "as many panels as the rows fill");
    #[cfg(target_arch = "x86_64")]
    if kernel::available() {
        // SAFETY: the features were just detected; the panels have room for the source's rows.
        unsafe { x86::panels::<P, R>(source, panels) };
        return;
    }
    for (i, panel) in panels.chunks_exact_mut(panel).enumerate() {
        panel_plain::<P, R>(source.rows(i * R..((i + 1) * R).min(source.rows)), panel);
    }
}

/// The cells of each row of `source`, `[rows, k]`, in `to`, `[rows, k/P]`.
///
/// # Panics
/// If `to` has another length, or the rows are not contiguous.
pub fn along<const P: usize>(source: Mat<'_>, to: &mut [u32]) {
    assert_eq!(to.len(), source.rows * source.cols.div_ceil(P), "cells along the rows");
    assert!(source.col_stride == 1, "rows that are contiguous");
    #[cfg(target_arch = "x86_64")]
    if kernel::available() {
        // SAFETY: the features were just detected; the lengths were just checked.
        return unsafe { x86::along::<P>(source, to) };
    }
    along_plain::<P>(source, to);
}

/// Cells of `P` neighbours in each column of `source`, `[k, cols]`, in `to`, `[k/P, cols]`.
///
/// # Panics
/// If `to` has another length, or the rows are not contiguous.
pub fn down<const P: usize>(source: Mat<'_>, to: &mut [u32]) {
    assert_eq!(to.len(), source.rows.div_ceil(P) * source.cols, "cells down the columns");
    assert!(source.col_stride == 1, "rows that are contiguous");
    #[cfg(target_arch = "x86_64")]
    if kernel::available() {
        // SAFETY: the features were just detected; the lengths were just checked.
        return unsafe { x86::down::<P>(source, to) };
    }
    down_plain::<P>(source, to);
}

fn along_plain<const P: usize>(source: Mat<'_>, to: &mut [u32]) {
    for (i, to) in to.chunks_exact_mut(source.cols.div_ceil(P).max(1)).enumerate() {
        for (to, x) in to.iter_mut().zip(source.row(i).chunks(P)) {
            *to = cell::<P>(x[0], *x.get(P - 1).unwrap_or(&0.0));
        }
    }
}

fn down_plain<const P: usize>(source: Mat<'_>, to: &mut [u32]) {
    for (i, to) in to.chunks_exact_mut(source.cols.max(1)).enumerate() {
        let second = P * i + P - 1;
        for (j, (to, &x)) in to.iter_mut().zip(source.row(P * i)).enumerate() {
            *to = cell::<P>(x, if second < source.rows { source.row(second)[j] } else { 0.0 });
        }
    }
}

/// One panel without vector instructions, for a source of at most R rows.
fn panel_plain<const P: usize, const R: usize>(source: Mat<'_>, panel: &mut [u32]) {
    let at = |row: usize, k: usize| {
        let exists = row < source.rows && k < source.cols;
        if exists { source.data[row * source.row_stride + k * source.col_stride] } else { 0.0 }
    };
    for (w, cells) in panel.chunks_exact_mut(R).enumerate() {
        for (row, slot) in cells.iter_mut().enumerate() {
            *slot = cell::<P>(at(row, P * w), at(row, P * w + P - 1));
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use crate::gemm::view::Mat;

    /// The lanes of 16 that stand before `n`.
    fn first(n: usize) -> __mmask16 {
        ((1u32 << n.min(16)) - 1) as __mmask16
    }

    /// Two vectors of f32 as one of 32 bf16, those of `low` first.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn rounded(low: __m512, high: __m512) -> __m512i {
        // SAFETY: the same 512 bits under another name.
        unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low)) }
    }

    /// # Safety
    /// The processor has AVX-512F, BW and AVX512-BF16; each of `panels` is `R` cells for each `P` columns of the source, which has at
    /// most `R` rows for each, and either its rows or its columns are contiguous.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub unsafe fn panels<const P: usize, const R: usize>(source: Mat<'_>, panels: &mut [u32]) {
        // SAFETY: what this function asks of its caller is what these two ask.
        unsafe {
            if source.col_stride != 1 {
                return from_columns::<P, R>(source, panels);
            }
            for (i, panel) in panels.chunks_exact_mut(R * source.cols.div_ceil(P)).enumerate() {
                from_rows::<P, R>(source.rows(i * R..((i + 1) * R).min(source.rows)), panel);
            }
        }
    }

    /// Element i of the first 16 and of the second 16, side by side.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn side_by_side(halves: __m512i) -> __m512i {
        let order = _mm512_set_epi16(
            31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17,
            1, 16, 0,
        );
        _mm512_permutexvar_epi16(order, halves)
    }

    /// The next 16 cells of a row of which `left` elements are left.
    ///
    /// # Safety
    /// The processor has AVX-512F and AVX512-BF16; `left` elements stand at `from`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn cells_along<const P: usize>(from: *const f32, left: usize) -> __m512i {
        // SAFETY: the masks leave out what is past the end of the row.
        unsafe {
            let x = _mm512_maskz_loadu_ps(first(left), from);
            if P == 1 {
                return _mm512_castps_si512(x);
            }
            rounded(x, _mm512_maskz_loadu_ps(first(left.saturating_sub(16)), from.wrapping_add(16)))
        }
    }

    /// 16 cells of neighbours that stand `stride` apart: lanes `lanes` of the first, `second` of the second.
    ///
    /// # Safety
    /// The processor has AVX-512F, BW and AVX512-BF16; these lanes stand at `from` and `stride` after it.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn cells_across<const P: usize>(
        from: *const f32,
        lanes: __mmask16,
        stride: usize,
        second: __mmask16,
    ) -> __m512i {
        // SAFETY: the caller promises the lanes.
        unsafe {
            let x = _mm512_maskz_loadu_ps(lanes, from);
            if P == 1 {
                return _mm512_castps_si512(x);
            }
            side_by_side(rounded(x, _mm512_maskz_loadu_ps(second, from.wrapping_add(stride))))
        }
    }

    /// # Safety
    /// The processor has AVX-512F, BW and AVX512-BF16; rows are contiguous, and `to` is as long as their cells.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub unsafe fn along<const P: usize>(source: Mat<'_>, to: &mut [u32]) {
        let depth = source.cols.div_ceil(P);
        for i in 0..source.rows {
            for w in (0..depth).step_by(16) {
                let left = source.cols - w * P;
                let from = source.data.as_ptr().wrapping_add(i * source.row_stride + w * P);
                let to = to.as_mut_ptr().wrapping_add(i * depth + w);
                // SAFETY: so many elements are left of the row, and so many cells of `to`.
                unsafe { _mm512_mask_storeu_epi32(to.cast(), first(depth - w), cells_along::<P>(from, left)) };
            }
        }
    }

    /// # Safety
    /// The processor has AVX-512F, BW and AVX512-BF16; rows are contiguous, and `to` is as long as the columns' cells.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub unsafe fn down<const P: usize>(source: Mat<'_>, to: &mut [u32]) {
        for i in 0..source.rows.div_ceil(P) {
            for j in (0..source.cols).step_by(16) {
                let columns = first(source.cols - j);
                let second = if i * P + 1 < source.rows { columns } else { 0 };
                let from = source.data.as_ptr().wrapping_add(i * P * source.row_stride + j);
                let to = to.as_mut_ptr().wrapping_add(i * source.cols + j);
                // SAFETY: the masks leave out columns past the last and a row that the source has not.
                unsafe {
                    let cells = cells_across::<P>(from, columns, source.row_stride, second);
                    _mm512_mask_storeu_epi32(to.cast(), columns, cells);
                }
            }
        }
    }

    /// 16 rows by 16 cells at a time: rounded along the rows, turned in registers.
    ///
    /// # Safety
    /// As [`panels`], of one; rows are contiguous.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn from_rows<const P: usize, const R: usize>(source: Mat<'_>, panel: &mut [u32]) {
        let depth = source.cols.div_ceil(P);
        for row in (0..R).step_by(16) {
            let slots = first(R - row);
            for w in (0..depth).step_by(16) {
                let left = source.cols - w * P;
                let mut cells = [_mm512_setzero_si512(); 16];
                for (i, cells) in cells.iter_mut().enumerate() {
                    let left = if row + i < source.rows { left } else { 0 };
                    let from = source.data.as_ptr().wrapping_add((row + i) * source.row_stride + w * P);
                    // SAFETY: so many elements are left of the row, none of a row that the source has not.
                    *cells = unsafe { cells_along::<P>(from, left) };
                }
                let to = panel.as_mut_ptr().wrapping_add(w * R + row);
                // A loop of fixed length, so that it is unrolled and the cells stay in registers.
                for (i, cells) in turned(cells).into_iter().enumerate() {
                    if i >= depth - w {
                        continue;
                    }
                    // SAFETY: cell `w + i` is one of the panel's, and the mask leaves out what is past its R slots.
                    unsafe { _mm512_mask_storeu_epi32(to.wrapping_add(i * R).cast(), slots, cells) };
                }
            }
        }
    }

    /// Neighbours along k come from two columns, or one; of all panels in turn, so that a cache line of the source is read once.
    ///
    /// # Safety
    /// As [`panels`]; columns are contiguous.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn from_columns<const P: usize, const R: usize>(source: Mat<'_>, panels: &mut [u32]) {
        let depth = source.cols.div_ceil(P);
        for w in 0..depth {
            let column = source.data.as_ptr().wrapping_add(w * P * source.col_stride);
            for (i, panel) in panels.chunks_exact_mut(R * depth).enumerate() {
                let cells = &mut panel[w * R..][..R];
                for row in (0..R).step_by(16) {
                    let rows = first(source.rows.saturating_sub(i * R + row));
                    let from = column.wrapping_add(i * R + row);
                    let second = if w * P + 1 < source.cols { rows } else { 0 };
                    // SAFETY: these columns are the source's, the masks leave out rows past its end and a column past its last,
                    // and slots past the cell's end.
                    unsafe {
                        let cell = cells_across::<P>(from, rows, source.col_stride, second);
                        _mm512_mask_storeu_epi32(cells.as_mut_ptr().wrapping_add(row).cast(), first(R - row), cell);
                    }
                }
            }
        }
    }

    /// The transpose of 16 x 16 cells: in pairs, in fours, then whole quarters of a vector.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn turned(rows: [__m512i; 16]) -> [__m512i; 16] {
        let mut pairs = [_mm512_setzero_si512(); 16];
        for i in 0..8 {
            pairs[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
            pairs[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
        }
        // fours[4·i + j] holds column j of each quarter, of rows 4·i to 4·i + 3.
        let mut fours = [_mm512_setzero_si512(); 16];
        for i in 0..4 {
            let [a, b, c, d] = [0, 1, 2, 3].map(|j| pairs[4 * i + j]);
            fours[4 * i] = _mm512_unpacklo_epi64(a, c);
            fours[4 * i + 1] = _mm512_unpackhi_epi64(a, c);
            fours[4 * i + 2] = _mm512_unpacklo_epi64(b, d);
            fours[4 * i + 3] = _mm512_unpackhi_epi64(b, d);
        }
        let mut columns = [_mm512_setzero_si512(); 16];
        for j in 0..4 {
            let [a, b, c, d] = [0, 1, 2, 3].map(|i| fours[4 * i + j]);
            let (ab_even, ab_odd) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xDD>(a, b));
            let (cd_even, cd_odd) = (_mm512_shuffle_i32x4::<0x88>(c, d), _mm512_shuffle_i32x4::<0xDD>(c, d));
            columns[j] = _mm512_shuffle_i32x4::<0x88>(ab_even, cd_even);
            columns[8 + j] = _mm512_shuffle_i32x4::<0xDD>(ab_even, cd_even);
            columns[4 + j] = _mm512_shuffle_i32x4::<0x88>(ab_odd, cd_odd);
            columns[12 + j] = _mm512_shuffle_i32x4::<0xDD>(ab_odd, cd_odd);
        }
        columns
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::testing::{random, skip};

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

    /// Panels of R rows from both orientations of a matrix.
    fn check<const P: usize, const R: usize>(rows: usize, k: usize) {
        let x = random(rows * k, 1);
        let mut transposed = vec![0.0; rows * k];
        for i in 0..rows * k {
            transposed[i % k * rows + i / k] = x[i];
        }
        let whole = Mat::new(&x, rows, k);
        // All panels from each on, so that one and several are packed.
        for first in (0..rows).step_by(R) {
            let cells = k.div_ceil(P) * R;
            let mut expected = vec![3; (rows - first).div_ceil(R) * cells];
            for (i, panel) in expected.chunks_exact_mut(cells).enumerate() {
                let row = first + i * R;
                panel_plain::<P, R>(whole.rows(row..(row + R).min(rows)), panel);
            }
            let (mut a, mut b) = (vec![1; expected.len()], vec![2; expected.len()]);
            panels::<P, R>(whole, first, &mut a);
            panels::<P, R>(Mat::new(&transposed, k, rows).t(), first, &mut b);
            assert_eq!(a, expected, "{rows} x {k} from {first}");
            assert_eq!(b, expected, "{rows} x {k} from {first}, turned");
            for (i, &found) in expected.iter().enumerate() {
                let (w, r) = (i % cells / R, first + i / cells * R + i % R);
                let at = |j: usize| if r < rows && j < k { x[r * k + j] } else { 0.0 };
                assert_eq!(found, if P == 2 { pair(at(2 * w), at(2 * w + 1)) } else { at(w).to_bits() });
            }
        }
    }

    fn check_rows_of_cells<const P: usize>(rows: usize, cols: usize) {
        let x = random(rows * (cols + 3), 2);
        let source = Mat::strided(&x, rows, cols, cols + 3);
        let (n, m) = (rows * cols.div_ceil(P), rows.div_ceil(P) * cols);
        let (mut found, mut expected) = (vec![1; n], vec![2; n]);
        along::<P>(source, &mut found);
        along_plain::<P>(source, &mut expected);
        assert_eq!(found, expected, "{rows} x {cols} along");
        let (mut found, mut expected) = (vec![1; m], vec![2; m]);
        down::<P>(source, &mut found);
        down_plain::<P>(source, &mut expected);
        assert_eq!(found, expected, "{rows} x {cols} down");
    }

    #[test]
    fn rows_of_cells_equal_those_of_the_plain_twins() {
        if !kernel::available() {
            skip("rows of cells against their plain twins");
        }
        for (rows, cols) in [(1, 1), (5, 7), (3, 33), (8, 64), (2, 16), (17, 31), (64, 96)] {
            check_rows_of_cells::<1>(rows, cols);
            check_rows_of_cells::<2>(rows, cols);
        }
    }

    #[test]
    fn both_orientations_pack_the_same_with_zeros_past_the_end() {
        for (rows, k) in [(5, 7), (12, 4), (13, 1), (24, 10), (32, 64), (33, 31), (70, 33), (12, 16), (1, 100)] {
            check::<1, 8>(rows, k);
            check::<1, 12>(rows, k);
            check::<2, 12>(rows, k);
            check::<1, 32>(rows, k);
            check::<2, 32>(rows, k);
        }
    }
}
