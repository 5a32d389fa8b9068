//! Products of int8 operands, for forward-only models: half the bytes of bf16, and twice the products per instruction.
//!
//! Each row of either operand, viewed as [rows, k], is x ≈ scale·q with q = round(x/scale) and scale = max|x|/127: symmetric,
//! per token and per output (Yao et al. 2022, ZeroQuant). An element of the product is scale·scale'·Σ q·q'. The sum is an
//! integer of at most 127²·k, exact in i32. A cell holds four consecutive elements along k. `vpdpbusd` multiplies four unsigned
//! bytes by four signed ones, so the left operand is stored as q + 128, and the sums of each column start at −128·Σ q'.
//!
//! [`PackedA`] has separate rows, [`PackedB`] panels of [`NR`]; either can be the weight. [`tile_plain`] is the kernel in plain
//! Rust: the tests compare with it, and it runs on processors with neither AVX512-VNNI nor NEON.

#[cfg(target_arch = "aarch64")]
mod neon;

use rayon::prelude::*;

use super::kernel::{MR, NR};
use super::pack::{GROUP, cells, packed_len, panels as pack_panels};
use super::packed_a;
use super::product::{MC, for_each_block};
use super::workspace::with_workspace;
use crate::base::memory::padded;
use crate::gemm::operation::Accumulate;
use crate::gemm::view::{Mat, MatMut};
use ngen3_engine::Error;
use ngen3_simd::simd;

/// Elements per cell.
const P: usize = 4;

/// Columns per task: half as many as in bf16, where a product takes twice as long.
const NC: usize = 4 * NR;

/// Longest row whose sum of products always fits in an i32: 127²·k < 2³¹.
const MOST: usize = 1 << 17;

/// Checks that a teacher of this width can run in int8. The longest rows of its products are `times` the width.
///
/// # Errors
/// [`Error::Input`] if the width is too large.
pub fn check_width(width: usize, times: usize) -> Result<(), Error> {
    let most = MOST / times;
    if width > most {
        return Err(Error::Input(format!("teacher too wide for int8: expected width ≤ {most}, got {width}")));
    }
    Ok(())
}

/// Returns true if the kernels for AVX512-VNNI or NEON run: the processor has the instructions, and `NGEN3_SIMD` forces no narrower
/// path.
pub fn available() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        ngen3_simd::avx512() && std::arch::is_x86_feature_detected!("avx512vnni")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        ngen3_simd::path() == ngen3_simd::Path::Neon
    }
}

/// Left operand `[rows, k]`: rows of cells of q + 128, padded so that a tile may begin at any row.
#[derive(Clone, Copy)]
pub struct PackedA<'a> {
    /// `[rows]`
    scales: &'a [f32],
    cells: &'a [u32],
    rows: usize,
    depth: usize,
    stride: usize,
}

impl<'a> PackedA<'a> {
    /// Length in f32 of the packed operand, scales included.
    pub fn len(rows: usize, k: usize) -> usize {
        padded(Self::padded_rows(rows)) + Self::padded_rows(rows) * packed_a::stride::<P>(k)
    }

    fn padded_rows(rows: usize) -> usize {
        rows + MR - 1
    }

    /// Number of rows.
    pub fn n_rows(self) -> usize {
        self.rows
    }

    /// Quantises `a` and packs it into `to`, on all threads.
    pub fn lay_out(a: Mat<'_>, to: &'a mut [f32]) -> Self {
        assert_eq!(to.len(), Self::len(a.n_rows(), a.cols()), "length of the packed left operand");
        let (depth, stride) = (cells::<P>(a.cols()), packed_a::stride::<P>(a.cols()));
        let (scales, rows) = to.split_at_mut(padded(Self::padded_rows(a.n_rows())));
        // Padding rows give zeros, whatever the memory held.
        scales[a.n_rows()..].fill(0.0);
        let rows = rows.par_chunks_mut(stride).zip(&mut scales[..a.n_rows()]);
        rows.enumerate().with_min_len(GROUP * MR).for_each(|(i, (row, scale))| {
            let row: &mut [u8] = bytemuck::cast_slice_mut(&mut row[..depth]);
            *scale = quantise(a.row(i), row);
            row.iter_mut().for_each(|q| *q ^= 128);
        });
        Self::of(a.n_rows(), a.cols(), to)
    }

    /// Views the operand that [`PackedA::lay_out`] wrote.
    pub fn of(rows: usize, k: usize, laid_out: &'a [f32]) -> Self {
        let (scales, cells) = laid_out.split_at(padded(Self::padded_rows(rows)));
        let (cells, depth, stride) = (bytemuck::cast_slice(cells), self::cells::<P>(k), packed_a::stride::<P>(k));
        Self { scales, cells, rows, depth, stride }
    }

    /// Returns the tile that starts at row `first`, and the scales of its rows.
    fn tile(self, first: usize) -> (&'a [u32], &'a [f32; MR]) {
        let scales = self.scales[first..].first_chunk().expect("a tile within the padded rows");
        (&self.cells[first * self.stride..], scales)
    }
}

/// Right operand `[n, k]`, used as its transpose: panels of [`NR`] rows of cells of q.
#[derive(Clone, Copy)]
pub struct PackedB<'a> {
    /// `[n]`, padded to whole panels.
    scales: &'a [f32],
    /// `[n]`: −128·Σ q, padded to whole panels.
    starts: &'a [i32],
    panels: &'a [u32],
    n: usize,
    depth: usize,
}

/// One panel of the right operand.
#[derive(Clone, Copy)]
struct Panel<'a> {
    scales: &'a [f32; NR],
    starts: &'a [i32; NR],
    /// `[depth, NR]`
    cells: &'a [u32],
}

impl<'a> PackedB<'a> {
    /// Length in f32 of the packed operand, scales included.
    pub fn len(n: usize, k: usize) -> usize {
        2 * n.next_multiple_of(NR) + packed_len::<P, NR>(n, k)
    }

    /// Quantises `b` and packs it into `to`, on all threads.
    pub fn lay_out(b: Mat<'_>, to: &'a mut [f32]) -> Self {
        assert_eq!(to.len(), Self::len(b.n_rows(), b.cols()), "length of the packed right operand");
        let (n, depth) = (b.n_rows().next_multiple_of(NR), cells::<P>(b.cols()));
        let (scales, rest) = to.split_at_mut(n);
        let (starts, panels) = rest.split_at_mut(n);
        let (starts, panels): (&mut [i32], &mut [u32]) =
            (bytemuck::cast_slice_mut(starts), bytemuck::cast_slice_mut(panels));
        panels
            .par_chunks_mut(NR * depth)
            .zip(scales.par_chunks_mut(NR).zip(starts.par_chunks_mut(NR)))
            .enumerate()
            .for_each(|(i, (panel, (scales, starts)))| {
                let b = b.rows(i * NR..((i + 1) * NR).min(b.n_rows()));
                // Padding rows give zeros, whatever the memory held.
                scales[b.n_rows()..].fill(0.0);
                starts[b.n_rows()..].fill(0);
                with_workspace(b.n_rows() * depth, |rows| {
                    for (i, row) in rows.chunks_exact_mut(depth).enumerate() {
                        let row: &mut [u8] = bytemuck::cast_slice_mut(row);
                        scales[i] = quantise(b.row(i), row);
                        starts[i] = -128 * row.iter().map(|&q| i32::from(q as i8)).sum::<i32>();
                    }
                    // A cell of four bytes is packed like an f32.
                    pack_panels::<1, NR>(Mat::new(rows, b.n_rows(), depth), 0, panel);
                });
            });
        Self::of(b.n_rows(), b.cols(), to)
    }

    /// Views the operand that [`PackedB::lay_out`] wrote.
    pub fn of(n: usize, k: usize, laid_out: &'a [f32]) -> Self {
        let (scales, rest) = laid_out.split_at(n.next_multiple_of(NR));
        let (starts, panels) = rest.split_at(n.next_multiple_of(NR));
        let (starts, panels) = (bytemuck::cast_slice(starts), bytemuck::cast_slice(panels));
        Self { scales, starts, panels, n, depth: cells::<P>(k) }
    }

    fn panel(self, j: usize) -> Panel<'a> {
        Panel {
            scales: self.scales[j * NR..].first_chunk().expect("whole panels"),
            starts: self.starts[j * NR..].first_chunk().expect("whole panels"),
            cells: &self.panels[j * NR * self.depth..][..NR * self.depth],
        }
    }
}

/// Writes q of a row to `to`, padded with zeros, and returns its scale. The scale is not finite if any element is not.
fn quantise(row: &[f32], to: &mut [u8]) -> f32 {
    /// Adding 1.5·2²³ rounds to an integer, ties to even, whose lowest byte is the lowest byte of the sum.
    const ROUND: f32 = 12_582_912.0;
    assert!(row.len() <= MOST, "expected a row of at most {MOST} elements, got {}", row.len());
    simd(
        #[inline(always)]
        || {
            // Without the sign, bit patterns order like the values, with infinity and NaN largest.
            let largest = row.iter().map(|x| x.to_bits() & 0x7FFF_FFFF).max().map_or(0.0, f32::from_bits);
            let inverse = if largest > f32::MIN_POSITIVE * 127.0 { 127.0 / largest } else { 0.0 };
            let (values, past) = to.split_at_mut(row.len());
            values.iter_mut().zip(row).for_each(|(q, x)| *q = (x * inverse + ROUND).to_bits() as u8);
            past.fill(0);
            largest / 127.0
        },
    )
}

/// Computes `c = start + a·bᵀ` on all threads, with integer sums scaled to f32. `start(tile, row, col)` fills the tile of `c` at
/// `(row, col)` first.
///
/// # Panics
/// If the shapes do not match.
pub fn product_onto(
    c: MatMut<'_>,
    a: PackedA<'_>,
    b: PackedB<'_>,
    start: impl Fn(&mut MatMut<'_>, usize, usize) + Sync,
) {
    assert_eq!((c.rows, c.cols), (a.rows, b.n), "shape mismatch: expected [m, k]·[n, k]ᵀ = [m, n]");
    for_each_block(c, (MC, NC), |c, rows, cols| {
        for j in (0..c.cols).step_by(NR) {
            for i in (0..c.rows).step_by(MR) {
                // SAFETY: the tile lies within this block, which belongs to this task alone.
                let mut tile = unsafe { c.part(i..(i + MR).min(c.rows), j..(j + NR).min(c.cols)) };
                start(&mut tile, rows + i, cols + j);
                self::tile((a, rows + i), (b, (cols + j) / NR), &mut tile, Accumulate::Add);
            }
        }
    });
}

/// Computes one tile of `c`, at most [`MR`] x [`NR`], from the rows of `a` from `first` and one panel of `b`.
///
/// # Panics
/// If `a` has no such tile, or `b` no such panel.
pub fn tile(
    (a, first): (PackedA<'_>, usize),
    (b, panel): (PackedB<'_>, usize),
    c: &mut MatMut<'_>,
    accumulate: Accumulate,
) {
    assert!(c.rows <= MR && c.cols <= NR, "a tile of {} x {}", c.rows, c.cols);
    let (a_depth, b_depth) = (a.depth, b.depth);
    let (stride, (a, scales), b) = (a.stride, a.tile(first), b.panel(panel));
    assert!(b_depth == a_depth && a.len() >= MR * stride, "depth mismatch: a {a_depth}, b {b_depth}");
    #[cfg(target_arch = "x86_64")]
    if available() {
        // SAFETY: the features and lengths were checked above.
        return unsafe { x86::tile(a, stride, scales, b, c, accumulate) };
    }
    #[cfg(target_arch = "aarch64")]
    if available() {
        let sums = neon::sums(a, stride, b.cells);
        for (i, (sums, &scale)) in sums.iter().zip(scales).enumerate().take(c.rows) {
            put(sums, scale, b.scales, c.row_mut(i), accumulate);
        }
        return;
    }
    simd(
        #[inline(always)]
        || tile_plain(a, stride, scales, b, c, accumulate),
    );
}

#[inline(always)]
fn tile_plain(a: &[u32], stride: usize, scales: &[f32; MR], b: Panel<'_>, c: &mut MatMut<'_>, accumulate: Accumulate) {
    for (i, scale) in scales.iter().enumerate().take(c.rows) {
        let mut sums = *b.starts;
        for (a, b) in a[i * stride..].iter().zip(b.cells.as_chunks::<NR>().0) {
            for (sum, b) in sums.iter_mut().zip(b) {
                let products = a.to_le_bytes().into_iter().zip(b.to_le_bytes());
                let products = products.map(|(a, b)| i32::from(a) * i32::from(b as i8));
                *sum = sum.wrapping_add(products.sum());
            }
        }
        put(&sums, *scale, b.scales, c.row_mut(i), accumulate);
    }
}

/// Scales a row's sums, and stores them in `c` or adds them to it.
#[inline(always)]
fn put(sums: &[i32; NR], scale: f32, columns: &[f32; NR], c: &mut [f32], accumulate: Accumulate) {
    for ((c, &sum), column) in c.iter_mut().zip(sums).zip(columns) {
        let product = sum as f32 * column * scale;
        *c = if accumulate == Accumulate::Add { *c + product } else { product };
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Accumulate, MR, MatMut, NR, Panel};
    use crate::gemm::tiles::kernel::x86::{prefetch, store};

    /// # Safety
    /// The processor has AVX-512F and AVX512-VNNI; `a` is MR rows, `stride` apart, of at least the depth of `b`; `c` is at most
    /// MR x NR.
    #[target_feature(enable = "avx512f,avx512vnni")]
    pub unsafe fn tile(
        a: &[u32],
        stride: usize,
        scales: &[f32; MR],
        b: Panel<'_>,
        c: &mut MatMut<'_>,
        accumulate: Accumulate,
    ) {
        if accumulate == Accumulate::Add {
            prefetch(c);
        }
        // SAFETY: `at_a` and `at_b` point to cell k of A's first row and to row k of B's panel.
        unsafe {
            let starts = [0, 16].map(|at| _mm512_loadu_si512(b.starts.as_ptr().add(at).cast()));
            let mut sums = [starts; MR];
            let (mut at_a, mut at_b) = (a.as_ptr(), b.cells.as_ptr());
            for _ in 0..b.cells.len() / NR {
                let (b0, b1) = (_mm512_loadu_si512(at_b.cast()), _mm512_loadu_si512(at_b.add(16).cast()));
                for (i, sums) in sums.iter_mut().enumerate() {
                    let a = _mm512_set1_epi32(*at_a.add(i * stride) as i32);
                    sums[0] = _mm512_dpbusd_epi32(sums[0], a, b0);
                    sums[1] = _mm512_dpbusd_epi32(sums[1], a, b1);
                }
                at_a = at_a.add(1);
                at_b = at_b.add(NR);
            }
            let columns = [0, 16].map(|at| _mm512_loadu_ps(b.scales.as_ptr().add(at)));
            let mut products = [[_mm512_setzero_ps(); 2]; MR];
            for i in 0..MR {
                let scale = _mm512_set1_ps(scales[i]);
                for half in 0..2 {
                    let sum = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[i][half]), columns[half]);
                    products[i][half] = _mm512_mul_ps(sum, scale);
                }
            }
            store(products, c, accumulate);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::testing::{random, skip};

    #[test]
    fn past_the_last_row_are_zeros_whatever_was_there() {
        let (a, b) = (random(12 * 7, 1), random(33 * 7, 2));
        let (mut packed_a, mut packed_b) = (vec![0.0; PackedA::len(12, 7)], vec![f32::NAN; PackedB::len(33, 7)]);
        let packed_a = PackedA::lay_out(Mat::new(&a, 12, 7), &mut packed_a);
        let packed_b = PackedB::lay_out(Mat::new(&b, 33, 7), &mut packed_b);
        let mut c = vec![f32::NAN; MR * NR];
        tile((packed_a, 0), (packed_b, 1), &mut MatMut::new(&mut c, MR, NR), Accumulate::Set);
        for row in c.chunks_exact(NR) {
            assert!(row[0] != 0.0 && row[1..].iter().all(|&c| c == 0.0), "{row:?}");
        }
    }

    #[test]
    fn a_tile_may_begin_at_any_row() {
        let (a, b) = (random(13 * 7, 1), random(32 * 7, 2));
        let (mut packed_a, mut packed_b) = (vec![f32::NAN; PackedA::len(13, 7)], vec![f32::NAN; PackedB::len(32, 7)]);
        let packed_a = PackedA::lay_out(Mat::new(&a, 13, 7), &mut packed_a);
        let packed_b = PackedB::lay_out(Mat::new(&b, 32, 7), &mut packed_b);
        let rows = |first: usize| {
            let mut c = vec![f32::NAN; MR * NR];
            tile((packed_a, first), (packed_b, 0), &mut MatMut::new(&mut c, MR, NR), Accumulate::Set);
            c
        };
        assert_eq!(rows(0)[NR..], rows(1)[..(MR - 1) * NR]);
        assert!(rows(12)[NR..].iter().all(|&c| c == 0.0), "past the last row");
    }

    /// Returns the values that the quantised row represents.
    fn rounded(row: &[f32]) -> Vec<f64> {
        let largest = row.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let step = f64::from(largest / 127.0);
        row.iter()
            .map(|x| if largest > 0.0 { (x * (127.0 / largest)).round_ties_even() as f64 * step } else { 0.0 })
            .collect()
    }

    fn product(
        a: &[f32],
        b: &[f32],
        m: usize,
        n: usize,
        k: usize,
        start: impl Fn(usize, usize) -> f32 + Sync,
    ) -> Vec<f32> {
        let (mut packed_a, mut packed_b) = (vec![f32::NAN; PackedA::len(m, k)], vec![f32::NAN; PackedB::len(n, k)]);
        let packed_a = PackedA::lay_out(Mat::new(a, m, k), &mut packed_a);
        let packed_b = PackedB::lay_out(Mat::new(b, n, k), &mut packed_b);
        let mut c = vec![f32::NAN; m * n];
        product_onto(MatMut::new(&mut c, m, n), packed_a, packed_b, |tile, row, col| {
            for i in 0..tile.rows {
                tile.row_mut(i).iter_mut().enumerate().for_each(|(j, c)| *c = start(row + i, col + j));
            }
        });
        c
    }

    #[test]
    fn products_of_odd_shapes_match_three_loops_over_rounded_operands() {
        for (m, n, k) in [(1, 1, 1), (5, 97, 12), (17, 3, 31), (200, 33, 129), (13, 270, 301)] {
            let (a, b) = (random(m * k, 1), random(n * k, 2));
            let start = |i: usize, j: usize| i as f32 - j as f32;
            let found = product(&a, &b, m, n, k, start);
            for i in 0..m {
                for j in 0..n {
                    let (a, b) = (rounded(&a[i * k..][..k]), rounded(&b[j * k..][..k]));
                    let expected = f64::from(start(i, j)) + a.iter().zip(&b).map(|(a, b)| a * b).sum::<f64>();
                    let found = f64::from(found[i * n + j]);
                    assert!(
                        (found - expected).abs() < 1e-5 * expected.abs().max(1.0),
                        "{m}x{n}x{k}: expected {expected}, got {found}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_vector_kernel_equals_its_plain_twin() {
        if !available() {
            skip("int8 vector tiles against the plain version");
        }
        for (m, n, k) in [(12, 32, 36), (1, 1, 1), (5, 17, 256), (12, 15, 9), (7, 16, 515), (11, 31, 8)] {
            let (a, b) = (random(m * k, 1), random(n * k, 2));
            let (mut packed_a, mut packed_b) = (vec![0.0; PackedA::len(m, k)], vec![0.0; PackedB::len(n, k)]);
            let packed_a = PackedA::lay_out(Mat::new(&a, m, k), &mut packed_a);
            let packed_b = PackedB::lay_out(Mat::new(&b, n, k), &mut packed_b);
            for accumulate in [Accumulate::Set, Accumulate::Add] {
                let stride = n + 3;
                let (mut found, mut expected) = (random(m * stride, 3), random(m * stride, 3));
                tile((packed_a, 0), (packed_b, 0), &mut MatMut::strided(&mut found, m, n, stride), accumulate);
                let (cells, scales) = packed_a.tile(0);
                let c = &mut MatMut::strided(&mut expected, m, n, stride);
                tile_plain(cells, packed_a.stride, scales, packed_b.panel(0), c, accumulate);
                assert_eq!(found, expected, "{m}x{n}x{k}");
            }
        }
    }

    #[test]
    fn the_largest_sums_are_exact_and_what_is_not_finite_is_not_hidden() {
        let row = vec![-1.0; MOST];
        let sum = product(&row, &row, 1, 1, MOST, |_, _| 0.0)[0];
        assert!((sum / MOST as f32 - 1.0).abs() < 1e-6, "{sum}");
        for strange in [f32::NAN, f32::INFINITY] {
            let found = product(&[1.0, strange, 0.0, 0.0], &[1.0, 1.0], 2, 1, 2, |_, _| 0.0);
            assert!(!found[0].is_finite() && found[1] == 0.0, "{found:?}");
        }
        // Subnormal numbers.
        let found = product(&[1e-40, -1e-40], &[1.0, -1.0], 1, 1, 2, |_, _| 0.0)[0];
        assert!(found.abs() < 1e-37, "{found}");
    }
}
