//! f32 products of any size on any processor, with the kernels of the `gemm` crate.
//!
//! The crate detects the processor's vectors itself. If `NGEN3_SIMD` forces a path, the product compiled for that path replaces
//! the crate's choice.

use std::sync::OnceLock;

use gemm_common::Parallelism;
use ngen3_simd::Path;

use super::operation::{Accumulate, Threads};
use super::view::{Mat, MatMut};

/// Signature of the crate's product: sizes (m, n, k); destination, its strides, and whether to accumulate; both operands with
/// their strides; factors of the destination and of the product; conjugations (unused for f32); threads.
type Product = unsafe fn(
    usize,
    usize,
    usize,
    *mut f32,
    isize,
    isize,
    bool,
    *const f32,
    isize,
    isize,
    *const f32,
    isize,
    isize,
    f32,
    f32,
    bool,
    bool,
    bool,
    Parallelism,
);

/// Instantiates the crate's product for one set of its micro-kernels, with `$lanes` f32 per vector. The crate's own instances are
/// private.
macro_rules! product {
    ($name:ident, $kernels:ident, $simd:ty, $lanes:literal) => {
        /// # Safety
        /// Every element that the sizes and strides of the three operands address is valid, and the destination overlaps no
        /// operand.
        ///
        /// # Panics
        /// If the processor lacks these vectors.
        #[expect(clippy::too_many_arguments, reason = "the crate's own signature")]
        unsafe fn $name(
            m: usize,
            n: usize,
            k: usize,
            c: *mut f32,
            c_col_stride: isize,
            c_row_stride: isize,
            add: bool,
            a: *const f32,
            a_col_stride: isize,
            a_row_stride: isize,
            b: *const f32,
            b_col_stride: isize,
            b_row_stride: isize,
            alpha: f32,
            beta: f32,
            conj_c: bool,
            conj_a: bool,
            conj_b: bool,
            parallelism: Parallelism,
        ) {
            use gemm_common::simd::MixedSimd;
            use gemm_f32::microkernel::$kernels::f32::{H_M, H_N, H_UKR, MR_DIV_N, NR, UKR};
            let simd = <$simd as MixedSimd<f32, f32, f32, f32>>::try_new().expect("a path that was detected");
            // SAFETY: the caller upholds the crate's requirements, which are the same.
            unsafe {
                gemm_common::gemm::gemm_basic_generic::<_, f32, $lanes, { MR_DIV_N * $lanes }, NR, MR_DIV_N, H_M, H_N>(
                    simd,
                    m,
                    n,
                    k,
                    c,
                    c_col_stride,
                    c_row_stride,
                    add,
                    a,
                    a_col_stride,
                    a_row_stride,
                    b,
                    b_col_stride,
                    b_row_stride,
                    alpha,
                    beta,
                    conj_c,
                    conj_a,
                    conj_b,
                    #[inline(always)]
                    |a, b, c| a * b + c,
                    &UKR,
                    &H_UKR,
                    false,
                    parallelism,
                );
            }
        }
    };
}

product!(scalar, scalar, gemm_common::simd::Scalar, 1);
#[cfg(target_arch = "x86_64")]
product!(avx2, fma, gemm_common::simd::V3, 8);

/// Returns the product for this process: the forced path's, or the crate's choice.
fn choice() -> Product {
    match ngen3_simd::forced() {
        Ok(Some(path)) => product_of(path),
        // The program reports an invalid NGEN3_SIMD; as everywhere else, it is ignored here.
        Ok(None) | Err(_) => gemm_f32::gemm::f32::get_gemm_fn(),
    }
}

/// Returns the product for a path. The product panics if the processor cannot run that path.
fn product_of(path: Path) -> Product {
    match path {
        Path::Scalar => scalar,
        #[cfg(target_arch = "x86_64")]
        Path::Avx2 => avx2,
        // The widest path: the crate's own choice.
        _ => gemm_f32::gemm::f32::get_gemm_fn(),
    }
}

/// Computes `c = a·b` or `c += a·b` in f32, with `a`: `[m, k]`, `b`: `[k, n]`, `c`: `[m, n]`.
///
/// # Panics
/// If the shapes do not match.
pub fn matmul_f32(c: MatMut<'_>, accumulate: Accumulate, a: Mat<'_>, b: Mat<'_>, threads: Threads) {
    static PRODUCT: OnceLock<Product> = OnceLock::new();
    matmul_by(*PRODUCT.get_or_init(choice), c, accumulate, a, b, threads);
}

fn matmul_by(product: Product, c: MatMut<'_>, accumulate: Accumulate, a: Mat<'_>, b: Mat<'_>, threads: Threads) {
    let (m, n, k) = (c.rows, c.cols, a.cols);
    assert_eq!((a.rows, b.rows, b.cols), (m, k, n), "shape mismatch: expected [m, k]·[k, n] = [m, n]");
    let parallelism = match threads {
        Threads::One => Parallelism::None,
        Threads::All => Parallelism::Rayon(rayon::current_num_threads()),
    };
    // The kernels store whole columns. `c` is row-major, so they compute the transposed product: cᵀ = bᵀ·aᵀ.
    //
    // SAFETY: the product comes from `choice` or `product_of` and panics if this processor lacks its vectors. The constructors
    // checked that every element (i, j) of the three views lies inside its slice, the shapes match, and the borrows keep `c`
    // from overlapping `a` and `b`.
    unsafe {
        product(
            n,
            m,
            k,
            c.data,
            c.row_stride as isize,
            1,
            accumulate == Accumulate::Add,
            b.data.as_ptr(),
            b.row_stride as isize,
            b.col_stride as isize,
            a.data.as_ptr(),
            a.row_stride as isize,
            a.col_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::testing::{random, skip};
    use crate::gemm::reference::matmul_reference;

    #[test]
    fn products_of_odd_shapes_match_three_loops_on_every_path() {
        for &path in Path::TARGET {
            if path.is_available() {
                check(product_of(path), path);
            } else {
                skip(&format!("products on {}", path.name()));
            }
        }
    }

    fn check(product: Product, path: Path) {
        for (m, n, k) in [(1, 1, 1), (5, 97, 12), (17, 3, 31), (64, 33, 129), (130, 257, 65), (1, 40, 9), (9, 1, 40)] {
            let (a, b) = (random(m * k, 1), random(k * n, 2));
            let (at, bt) = (random(m * k, 3), random(k * n, 4));
            let views = [
                (Mat::new(&a, m, k), Mat::new(&b, k, n)),
                (Mat::new(&a, m, k), Mat::new(&bt, n, k).t()),
                (Mat::new(&at, k, m).t(), Mat::new(&b, k, n)),
                (Mat::new(&at, k, m).t(), Mat::new(&bt, n, k).t()),
            ];
            for (a, b) in views {
                for (accumulate, threads) in [(Accumulate::Set, Threads::One), (Accumulate::Add, Threads::All)] {
                    let start = random(m * (n + 3), 5);
                    let mut c = start.clone();
                    let end = (m - 1) * (n + 3) + n;
                    matmul_by(product, MatMut::strided(&mut c[..end], m, n, n + 3), accumulate, a, b, threads);
                    let expected = matmul_reference(a, b);
                    for (at, (&found, &before)) in c.iter().zip(&start).enumerate() {
                        let (i, j) = (at / (n + 3), at % (n + 3));
                        if j >= n {
                            assert_eq!(found, before, "the gap between rows was written");
                            continue;
                        }
                        let kept = if accumulate == Accumulate::Add { f64::from(before) } else { 0.0 };
                        let expected = expected[i * n + j] + kept;
                        assert!(
                            (f64::from(found) - expected).abs() < 1e-4,
                            "{path:?} {m}x{n}x{k}: expected {expected}, got {found}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn the_widest_path_is_the_crates_own_choice() {
        let widest = Path::TARGET.iter().rfind(|path| path.is_available()).expect("scalar code runs everywhere");
        let (a, b) = (random(70 * 300, 1), random(300 * 50, 2));
        let (a, b) = (Mat::new(&a, 70, 300), Mat::new(&b, 300, 50));
        let bits = |product| {
            let mut c = vec![f32::NAN; 70 * 50];
            matmul_by(product, MatMut::new(&mut c, 70, 50), Accumulate::Set, a, b, Threads::All);
            c.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        assert_eq!(bits(product_of(*widest)), bits(gemm_f32::gemm::f32::get_gemm_fn()));
    }

    #[test]
    fn what_is_forced_is_what_multiplies() {
        match ngen3_simd::forced() {
            Ok(Some(forced)) => {
                assert!(std::ptr::fn_addr_eq(choice(), product_of(forced)), "{forced:?} forced");
                for narrow in
                    [Path::Scalar, Path::Avx2].into_iter().filter(|&path| path != forced && path.is_available())
                {
                    assert!(!std::ptr::fn_addr_eq(choice(), product_of(narrow)), "{narrow:?} with {forced:?} forced");
                }
            }
            _ => assert!(std::ptr::fn_addr_eq(choice(), gemm_f32::gemm::f32::get_gemm_fn())),
        }
    }
}
