//! Rounds operands and packs them into cells of `P` elements along k.
//!
//! Small products (`strided.rs`) read rows of cells, made [`along`] the rows or [`down`] the columns. Large products read
//! panels. A panel holds `R` rows of an operand viewed as [rows, k] (B is viewed transposed) as `[k/P, R]` cells: for each cell
//! along k, that cell of all `R` rows. Rows past the end and the missing half of an odd last cell are zeros, which add nothing
//! to a product.

use rayon::prelude::*;

#[cfg(any(target_arch = "x86_64", test))]
use super::kernel;
use crate::gemm::view::Mat;

/// Panels per packing task.
pub const GROUP: usize = 4;

/// Number of cells of `P` elements for `k` elements.
pub const fn cells<const P: usize>(k: usize) -> usize {
    k.div_ceil(P)
}

/// Rounds `x` to the nearest bf16 (ties to even), in the high half of the result. NaN stays NaN.
#[inline(always)]
fn round(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7FFF + (bits >> 16 & 1));
    let kept = if x.is_nan() { bits | 0x0040_0000 } else { rounded };
    kept & 0xFFFF_0000
}

/// Packs two consecutive elements along k into a cell of bf16, the first in the low half.
#[inline(always)]
pub fn pair(first: f32, second: f32) -> u32 {
    round(first) >> 16 | round(second)
}

/// Packs `P` consecutive elements along k into a cell. P = 1 ignores `second`.
#[inline(always)]
pub fn cell<const P: usize>(first: f32, second: f32) -> u32 {
    if P == 2 { pair(first, second) } else { first.to_bits() }
}

/// Rounds `x` as a product with `P` elements per cell does: to bf16 for P = 2, not at all for P = 1.
#[inline(always)]
pub fn rounded<const P: usize>(x: f32) -> f32 {
    if P == 2 { f32::from_bits(round(x)) } else { x }
}

/// Number of cells of `[rows, k]` packed in panels of `R` rows.
pub fn packed_len<const P: usize, const R: usize>(rows: usize, k: usize) -> usize {
    rows.div_ceil(R) * R * cells::<P>(k)
}

/// Packs `source`, `[rows, k]`, into panels of `R` rows, on all threads.
pub fn pack<const P: usize, const R: usize>(source: Mat<'_>, packed: &mut [u32]) {
    assert_eq!(packed.len(), packed_len::<P, R>(source.rows, source.cols), "cells of the packed panels");
    let group = GROUP * R;
    packed.par_chunks_mut(group * cells::<P>(source.cols).max(1)).enumerate().for_each(|(i, to)| {
        panels::<P, R>(source, i * group, to);
    });
}

/// Packs rows `first_row..` of `source`, `[rows, k]`, into `panels` of `R` rows, each `[k/P, R]`.
///
/// # Panics
/// If the panels are not whole or start past the last row, or neither the rows nor the columns of the source are contiguous.
pub fn panels<const P: usize, const R: usize>(source: Mat<'_>, first_row: usize, panels: &mut [u32]) {
    let panel = source.cols.div_ceil(P) * R;
    if panel == 0 {
        return;
    }
    let source = rows_of_panels(source, first_row, panels.len(), panel, R);
    #[cfg(target_arch = "x86_64")]
    if kernel::available() {
        // SAFETY: the features were checked above; the panels have room for the source's rows.
        unsafe { x86::panels::<P, R>(source, panels) };
        return;
    }
    for (i, panel) in panels.chunks_exact_mut(panel).enumerate() {
        panel_plain::<P, R>(source.rows(i * R..((i + 1) * R).min(source.rows)), panel);
    }
}

/// Returns the rows of `source` from `first_row` that fill `cells` cells, in panels of `height` rows, `panel` cells each.
///
/// # Panics
/// As [`panels`].
pub fn rows_of_panels(source: Mat<'_>, first_row: usize, cells: usize, panel: usize, height: usize) -> Mat<'_> {
    assert_eq!(cells % panel, 0, "expected whole panels of {height} rows");
    assert!(source.row_stride == 1 || source.col_stride == 1, "expected contiguous rows or columns");
    let rows = source.rows(first_row..(first_row + cells / panel * height).min(source.rows));
    assert!(rows.rows.div_ceil(height) == cells / panel, "expected one panel per {height} rows");
    rows
}

/// Packs `source`, `[rows, k]`, along its rows into `to`, `[rows, k/P]`.
///
/// # Panics
/// If `to` has the wrong length, or the rows are not contiguous.
pub fn along<const P: usize>(source: Mat<'_>, to: &mut [u32]) {
    assert_eq!(to.len(), source.rows * source.cols.div_ceil(P), "cells along the rows");
    assert!(source.col_stride == 1, "expected contiguous rows");
    #[cfg(target_arch = "x86_64")]
    if kernel::available() {
        // SAFETY: the features and lengths were checked above.
        return unsafe { x86::along::<P>(source, to) };
    }
    along_plain::<P>(source, to);
}

/// Packs `source`, `[k, cols]`, down its columns into `to`, `[k/P, cols]`.
///
/// # Panics
/// If `to` has the wrong length, or the rows are not contiguous.
pub fn down<const P: usize>(source: Mat<'_>, to: &mut [u32]) {
    assert_eq!(to.len(), source.rows.div_ceil(P) * source.cols, "cells down the columns");
    assert!(source.col_stride == 1, "expected contiguous rows");
    #[cfg(target_arch = "x86_64")]
    if kernel::available() {
        // SAFETY: the features and lengths were checked above.
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

/// Packs one panel in plain Rust, from a source of at most R rows.
fn panel_plain<const P: usize, const R: usize>(source: Mat<'_>, panel: &mut [u32]) {
    if source.col_stride == 1 {
        for row in 0..source.rows {
            for (slot, x) in panel[row..].iter_mut().step_by(R).zip(source.row(row).chunks(P)) {
                *slot = cell::<P>(x[0], *x.get(P - 1).unwrap_or(&0.0));
            }
        }
        panel.chunks_exact_mut(R).for_each(|cells| cells[source.rows..].fill(0));
        return;
    }
    let column = |k: usize| if k < source.cols { source.t().row(k) } else { &[] };
    for (w, cells) in panel.chunks_exact_mut(R).enumerate() {
        let second = column(P * w + P - 1).iter().chain(std::iter::repeat(&0.0));
        for ((slot, &first), &second) in cells.iter_mut().zip(column(P * w)).zip(second) {
            *slot = cell::<P>(first, second);
        }
        cells[source.rows..].fill(0);
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::turned;

#[cfg(target_arch = "x86_64")]
pub(in crate::gemm::tiles) mod x86 {
    use std::arch::x86_64::*;

    use crate::gemm::view::Mat;

    /// Mask of the first `n` of 16 lanes.
    pub fn first(n: usize) -> __mmask16 {
        ((1u32 << n.min(16)) - 1) as __mmask16
    }

    /// Rounds two vectors of f32 to one of 32 bf16, those of `low` first.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn rounded(low: __m512, high: __m512) -> __m512i {
        // SAFETY: both types are 512 bits, and every bit pattern is valid.
        unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low)) }
    }

    /// # Safety
    /// The processor has AVX-512F, BW and AVX512-BF16; each panel has `R` cells for every `P` columns of the source; the source
    /// has at most `R` rows per panel, and contiguous rows or columns.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub unsafe fn panels<const P: usize, const R: usize>(source: Mat<'_>, panels: &mut [u32]) {
        // SAFETY: the caller upholds the requirements of both, which are the same.
        unsafe {
            if source.col_stride != 1 {
                return from_columns::<P, R>(source, panels);
            }
            for (i, panel) in panels.chunks_exact_mut(R * source.cols.div_ceil(P)).enumerate() {
                from_rows::<P, R>(source.rows(i * R..((i + 1) * R).min(source.rows)), panel);
            }
        }
    }

    /// Interleaves the first 16 and the second 16 elements.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn side_by_side(halves: __m512i) -> __m512i {
        let order = _mm512_set_epi16(
            31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17,
            1, 16, 0,
        );
        _mm512_permutexvar_epi16(order, halves)
    }

    /// Returns the next 16 cells of a row with `left` elements left.
    ///
    /// # Safety
    /// The processor has AVX-512F and AVX512-BF16; `left` elements are readable at `from`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub unsafe fn cells_along<const P: usize>(from: *const f32, left: usize) -> __m512i {
        // SAFETY: the masks exclude elements past the end of the row.
        unsafe {
            let x = _mm512_maskz_loadu_ps(first(left), from);
            if P == 1 {
                return _mm512_castps_si512(x);
            }
            rounded(x, _mm512_maskz_loadu_ps(first(left.saturating_sub(16)), from.wrapping_add(16)))
        }
    }

    /// Returns 16 cells whose elements are `stride` apart: lanes `lanes` of the first, `second` of the second.
    ///
    /// # Safety
    /// The processor has AVX-512F, BW and AVX512-BF16; these lanes are readable at `from` and at `from + stride`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub unsafe fn cells_across<const P: usize>(
        from: *const f32,
        lanes: __mmask16,
        stride: usize,
        second: __mmask16,
    ) -> __m512i {
        // SAFETY: the caller promises that the lanes are readable.
        unsafe {
            let x = _mm512_maskz_loadu_ps(lanes, from);
            if P == 1 {
                return _mm512_castps_si512(x);
            }
            side_by_side(rounded(x, _mm512_maskz_loadu_ps(second, from.wrapping_add(stride))))
        }
    }

    /// # Safety
    /// The processor has AVX-512F, BW and AVX512-BF16; rows are contiguous, and `to` has one cell for each of theirs.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub unsafe fn along<const P: usize>(source: Mat<'_>, to: &mut [u32]) {
        let depth = source.cols.div_ceil(P);
        for i in 0..source.rows {
            for w in (0..depth).step_by(16) {
                let left = source.cols - w * P;
                let from = source.data.as_ptr().wrapping_add(i * source.row_stride + w * P);
                let to = to.as_mut_ptr().wrapping_add(i * depth + w);
                // SAFETY: the row has `left` elements left, and `to` has `depth - w` cells left.
                unsafe { _mm512_mask_storeu_epi32(to.cast(), first(depth - w), cells_along::<P>(from, left)) };
            }
        }
    }

    /// # Safety
    /// The processor has AVX-512F, BW and AVX512-BF16; rows are contiguous, and `to` has one cell for each of the columns'.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub unsafe fn down<const P: usize>(source: Mat<'_>, to: &mut [u32]) {
        for i in 0..source.rows.div_ceil(P) {
            for j in (0..source.cols).step_by(16) {
                let columns = first(source.cols - j);
                let second = if i * P + 1 < source.rows { columns } else { 0 };
                let from = source.data.as_ptr().wrapping_add(i * P * source.row_stride + j);
                let to = to.as_mut_ptr().wrapping_add(i * source.cols + j);
                // SAFETY: the masks exclude columns past the last and a second row that does not exist.
                unsafe {
                    let cells = cells_across::<P>(from, columns, source.row_stride, second);
                    _mm512_mask_storeu_epi32(to.cast(), columns, cells);
                }
            }
        }
    }

    /// Packs one panel in blocks of 16 rows by 16 cells: rounded along the rows, transposed in registers.
    ///
    /// # Safety
    /// As [`panels`], for one panel; rows are contiguous.
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
                    // SAFETY: the row has `left` elements left, 0 if the source has no such row.
                    *cells = unsafe { cells_along::<P>(from, left) };
                }
                let to = panel.as_mut_ptr().wrapping_add(w * R + row);
                // A loop of fixed length is unrolled, so that the cells stay in registers.
                for (i, cells) in turned(cells).into_iter().enumerate() {
                    if i >= depth - w {
                        continue;
                    }
                    // SAFETY: cell `w + i` exists in the panel, and the mask excludes lanes past its R slots.
                    unsafe { _mm512_mask_storeu_epi32(to.wrapping_add(i * R).cast(), slots, cells) };
                }
            }
        }
    }

    /// Packs panels from contiguous columns: a cell takes its elements from `P` columns. All panels advance along k together,
    /// so that a cache line of the source is read once.
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
                    // SAFETY: these columns exist in the source; the masks exclude rows past its end, a column past its last,
                    // and slots past the cell's end.
                    unsafe {
                        let cell = cells_across::<P>(from, rows, source.col_stride, second);
                        _mm512_mask_storeu_epi32(cells.as_mut_ptr().wrapping_add(row).cast(), first(R - row), cell);
                    }
                }
            }
        }
    }

    /// Transposes 16 x 16 cells: in pairs, then in fours, then in quarters of a vector.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn turned(rows: [__m512i; 16]) -> [__m512i; 16] {
        let mut pairs = [_mm512_setzero_si512(); 16];
        for i in 0..8 {
            pairs[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
            pairs[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
        }
        // fours[4·i + j] holds column j of each quarter of rows 4·i to 4·i + 3.
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

    /// Checks panels of R rows from both orientations of a matrix.
    fn check<const P: usize, const R: usize>(rows: usize, k: usize) {
        let x = random(rows * k, 1);
        let mut transposed = vec![0.0; rows * k];
        for i in 0..rows * k {
            transposed[i % k * rows + i / k] = x[i];
        }
        let whole = Mat::new(&x, rows, k);
        // From each panel to the last, so that one and several panels are packed.
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
            assert_eq!(b, expected, "{rows} x {k} from {first}, transposed");
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
            skip("vector packing against the plain version");
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
