//! Matrix products: `C = A·B` or `C += A·B` over strided views, on one thread or on all of the pool.
//!
//! [`Mat`] and [`MatMut`] are views that know their bounds, so that [`matmul`] is safe: a transpose is a view
//! ([`Mat::t`]), never a copy. The f32 kernels are the `gemm` crate's, for AVX-512, AVX2, NEON or plain code, whichever the
//! processor has or `NGEN3_SIMD` forces; `tiles/` holds our own.

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

#[cfg(test)]
mod tests {
    use std::process::Command;

    use ngen3_simd::Path;

    use crate::base::testing::skip;

    /// Runs this folder's tests again for each path that this process does not take: a process takes one.
    #[test]
    fn every_path_passes_the_tests_of_products() {
        if ngen3_simd::forced() != Ok(None) {
            return;
        }
        for &path in Path::TARGET.iter().filter(|&&path| path != ngen3_simd::path()) {
            if !path.is_available() {
                skip(&format!("products on {}", path.name()));
                continue;
            }
            let tests = std::env::current_exe().expect("the tests' own program");
            let found =
                Command::new(tests).args(["gemm::", "--skip", "every_path"]).env("NGEN3_SIMD", path.name()).output();
            let found = found.expect("the tests' own program starts");
            let said = String::from_utf8_lossy(&found.stdout);
            assert!(found.status.success(), "{path:?}: {said}{}", String::from_utf8_lossy(&found.stderr));
            assert!(!said.contains("\nrunning 0 tests"), "{path:?}: {said}");
        }
    }
}
