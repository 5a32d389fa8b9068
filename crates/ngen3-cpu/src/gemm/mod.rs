//! Matrix products: `C = A·B` or `C += A·B` over strided views, on one thread or on all of the pool.
//!
//! [`Mat`] and [`MatMut`] are views that know their bounds, so that [`matmul`] is safe: a transpose is a view
//! ([`Mat::t`]), never a copy. The f32 kernels are the `gemm` crate's, which picks AVX-512, AVX2, NEON or plain code
//! when the program runs; `tiles/` holds our own.

mod operation;
mod portable;
#[cfg(test)]
mod reference;
pub mod tiles;
mod view;

pub use operation::{Accumulate, Precision, Threads};
pub use portable::matmul_f32;
pub use view::{Canvas, Mat, MatMut};

/// `c = a·b` or `c += a·b` in the given precision, on all threads; shapes as in [`matmul_f32`].
///
/// # Panics
/// If the shapes do not agree.
pub fn matmul(precision: Precision, c: MatMut<'_>, accumulate: Accumulate, a: Mat<'_>, b: Mat<'_>) {
    match precision {
        Precision::F32 => matmul_f32(c, accumulate, a, b, Threads::All),
        Precision::Bf16 => tiles::matmul::<2>(c, accumulate, a, b),
    }
}

/// `c = start + a·b`, where `start` fills the part of `c` that it is given, whose first row and column it is told.
///
/// # Panics
/// If the shapes do not agree.
pub fn matmul_onto(
    precision: Precision,
    mut c: MatMut<'_>,
    a: Mat<'_>,
    b: Mat<'_>,
    start: impl Fn(&mut MatMut<'_>, usize, usize) + Sync,
) {
    match precision {
        Precision::F32 => {
            c.par_row_blocks(|block, row| start(block, row, 0));
            matmul_f32(c, Accumulate::Add, a, b, Threads::All);
        }
        Precision::Bf16 => tiles::matmul_onto::<2>(c, a, b, start),
    }
}
