//! Micro-kernels in f32 for vectors narrower than those of AVX-512: the tiles of `kernel.rs` and `strassen.rs`, in parts.
//!
//! A part has up to six rows by [`COLUMNS`] columns. Its sums stay in registers for the whole depth: 12 of the 16 that AVX2 has, 24
//! of the 32 of NEON. `avx2.rs` and `neon.rs` hold [`COLUMNS`] numbers in vectors and say how they are added; the rest is the same.

#[cfg(target_arch = "x86_64")]
use super::avx2::{Columns, load, multiply_add, put, zero};
#[cfg(target_arch = "aarch64")]
use super::neon::{Columns, load, multiply_add, put, zero};
use super::shape::{COLUMNS, MR, NR, Rows};
use super::strassen::tables::Place;
use crate::gemm::operation::Accumulate;
use crate::gemm::view::MatMut;

/// Adds `a·b` to `sums`, with `a`: S rows of `depth` elements, `down` apart, their elements `along` apart; `b`: `depth` rows of
/// [`NR`], of which [`COLUMNS`] are read. Always inlined, so that constant strides stay constants.
///
/// # Safety
/// Call it only from a function compiled for the vectors; these elements are readable.
#[inline(always)]
unsafe fn add<const S: usize>(
    sums: &mut [Columns; S],
    mut a: *const f32,
    (down, along): (usize, usize),
    mut b: *const f32,
    depth: usize,
) {
    // SAFETY: the caller promises these elements.
    unsafe {
        for _ in 0..depth {
            let row = load(b);
            for (i, sums) in sums.iter_mut().enumerate() {
                *sums = multiply_add(&*a.add(i * down), row, *sums);
            }
            a = a.wrapping_add(along);
            b = b.wrapping_add(NR);
        }
    }
}

/// Adds `weight·sums` to up to [`COLUMNS`] columns of a row, or sets them.
///
/// # Safety
/// Call it only from a function compiled for the vectors; `columns` elements at `to` are valid.
#[inline(always)]
unsafe fn store(sums: Columns, weight: f32, to: *mut f32, columns: usize, accumulate: Accumulate) {
    // SAFETY: the caller promises these elements.
    unsafe {
        if columns >= COLUMNS {
            let start = if accumulate == Accumulate::Add { load(to) } else { zero() };
            put(multiply_add(&weight, sums, start), to);
            return;
        }
        let mut row = [0.0f32; COLUMNS];
        put(sums, row.as_mut_ptr());
        for (j, sum) in row.iter().enumerate().take(columns) {
            let to = to.add(j);
            *to = sum.mul_add(weight, if accumulate == Accumulate::Add { *to } else { 0.0 });
        }
    }
}

/// Computes `c = a·b` or `c += a·b` for `c` of at most R x [`NR`], S rows at a time: see [`super::kernel::tile`].
///
/// # Safety
/// The processor has AVX2 and FMA, or NEON; `a` has R rows of f32 as deep as `b`, together or apart; S divides R.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
pub unsafe fn tile<const R: usize, const S: usize>(
    a: &[u32],
    rows: Rows,
    b: &[u32],
    c: &mut MatMut<'_>,
    accumulate: Accumulate,
) {
    let (a, b, depth) = (a.as_ptr().cast::<f32>(), b.as_ptr().cast::<f32>(), b.len() / NR);
    for row in (0..c.rows.min(R)).step_by(S) {
        for col in (0..c.cols).step_by(COLUMNS) {
            let b = b.wrapping_add(col);
            // SAFETY: the caller promises the operands; these rows and columns exist in `c`.
            unsafe {
                let mut sums = [zero(); S];
                // Two calls, so that the panel's strides are compile-time constants in one of them.
                match rows {
                    Rows::Together => add(&mut sums, a.wrapping_add(row), (1, MR), b, depth),
                    _ => add(&mut sums, a.wrapping_add(rows.at(row, 0)), (rows.at(1, 0), 1), b, depth),
                }
                for (i, sums) in sums.into_iter().enumerate() {
                    if row + i < c.rows {
                        let to = c.data.add((row + i) * c.row_stride + col);
                        store(sums, 1.0, to, c.cols - col, accumulate);
                    }
                }
            }
        }
    }
}

/// See [`super::strassen::product`].
///
/// # Safety
/// The processor has AVX2 and FMA, or NEON; `a` and `b` are equally deep, `c` is R x NR; S divides R.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
pub unsafe fn product<const R: usize, const S: usize>(a: &[f32], b: &[f32], c: &mut [f32], accumulate: Accumulate) {
    for row in (0..R).step_by(S) {
        for col in (0..NR).step_by(COLUMNS) {
            // SAFETY: the caller promises the operands.
            unsafe {
                let mut sums = [zero(); S];
                add(&mut sums, a.as_ptr().wrapping_add(row), (1, R), b.as_ptr().wrapping_add(col), b.len() / NR);
                for (i, sums) in sums.into_iter().enumerate() {
                    store(sums, 1.0, c.as_mut_ptr().add((row + i) * NR + col), COLUMNS, accumulate);
                }
            }
        }
    }
}

/// See [`super::strassen::product_onto`].
///
/// # Safety
/// The processor has AVX2 and FMA, or NEON; `b` is whole squares of NR x NR; `e` has a tile for each; the places lie in `c`.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
pub unsafe fn product_onto(e: &[f32], stride: usize, b: &[f32], c: &mut [f32], width: usize, places: &[Place; 2]) {
    const S: usize = MR / 2;
    for row in (0..MR).step_by(S) {
        for col in (0..NR).step_by(COLUMNS) {
            // SAFETY: the caller promises a tile of `e` for each square of `b`.
            let sums = unsafe {
                let mut sums = [zero(); S];
                for tile in 0..b.len() / (NR * NR) {
                    let a = e.as_ptr().add(tile * stride + row * NR);
                    add(&mut sums, a, (NR, 1), b.as_ptr().add(tile * NR * NR + col), NR);
                }
                sums
            };
            for place in places {
                for (i, &sums) in sums.iter().enumerate() {
                    if row + i < place.rows && col < place.cols {
                        // SAFETY: the row lies in `c`, with the place's columns.
                        unsafe {
                            let to = c.as_mut_ptr().add(place.at + (row + i) * width + col);
                            store(sums, place.weight, to, place.cols - col, Accumulate::Add);
                        }
                    }
                }
            }
        }
    }
}
