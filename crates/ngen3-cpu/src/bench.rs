//! Measures this machine's matrix-product rate and memory bandwidth, to which `ngen3 bench` compares training and decoding.

use std::time::{Duration, Instant};

use rayon::prelude::*;

use crate::base::memory::Buffer;
use crate::engine::precision::{checked_precision, pool};
use crate::gemm::{Accumulate, Mat, MatMut, matmul};
use ngen3_engine::{Dtype, Error};
use ngen3_simd::{simd, sum};

/// Returns the best rate, in GFLOP/s, of the product `[m, k]·[n, k]ᵀ`, repeated for 250 ms on `threads` threads (0 = all cores).
///
/// # Errors
/// [`Error::Threads`] if the threads cannot be started; [`Error::Input`] for a dtype that the processor does not multiply.
pub fn product_gflops(dtype: Dtype, threads: usize, [m, n, k]: [usize; 3]) -> Result<f64, Error> {
    let precision = checked_precision(dtype)?;
    let pool = pool(threads)?;
    let (a, b, mut c) = (vec![1.0; m * k], vec![1.0; n * k], vec![0.0; m * n]);
    let mut best = Duration::MAX;
    pool.install(|| {
        let end = Instant::now() + Duration::from_millis(250);
        while Instant::now() < end {
            let start = Instant::now();
            matmul(precision, MatMut::new(&mut c, m, n), Accumulate::Set, Mat::new(&a, m, k), Mat::new(&b, n, k).t());
            best = best.min(start.elapsed());
        }
    });
    Ok(2.0 * (m * n * k) as f64 / best.as_secs_f64() / 1e9)
}

/// Returns the best rate, in GB/s, at which 512 MiB are read, repeated for 250 ms on `threads` threads (0 = all cores).
///
/// # Errors
/// [`Error::Threads`] if the threads cannot be started; [`Error::Memory`] if there is too little memory.
pub fn read_gbps(threads: usize) -> Result<f64, Error> {
    /// Elements: far more than caches hold.
    const LENGTH: usize = 1 << 27;
    /// Elements that a thread reads at a time.
    const PIECE: usize = 1 << 18;
    let pool = pool(threads)?;
    let mut memory = Buffer::zeros(LENGTH, "the measurement of memory bandwidth")?;
    let mut best = Duration::MAX;
    pool.install(|| {
        // Pages exist once they have been written.
        memory.par_chunks_mut(PIECE).for_each(|piece| piece.fill(1.0));
        let end = Instant::now() + Duration::from_millis(250);
        while Instant::now() < end {
            let start = Instant::now();
            let read = |piece: &[f32]| {
                simd(
                    #[inline(always)]
                    || sum(piece, |x| x),
                )
            };
            let total: f32 = memory.par_chunks(PIECE).map(read).sum();
            std::hint::black_box(total);
            best = best.min(start.elapsed());
        }
    });
    Ok((LENGTH * size_of::<f32>()) as f64 / best.as_secs_f64() / 1e9)
}
