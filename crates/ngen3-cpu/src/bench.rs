//! Measures this machine's matrix-product rate, to which `ngen3 bench` compares a training step.

use std::time::{Duration, Instant};

use crate::gemm::{Accumulate, Mat, MatMut, matmul};
use ngen3_engine::{Dtype, Error};

use crate::engine::precision::{pool, precision};

/// Returns the best rate, in GFLOP/s, of the product `[m, k]·[n, k]ᵀ`, repeated for 250 ms on `threads` threads (0 = all cores).
///
/// # Errors
/// [`Error::Threads`] if the threads cannot be started.
pub fn product_gflops(dtype: Dtype, threads: usize, [m, n, k]: [usize; 3]) -> Result<f64, Error> {
    let precision = precision(dtype);
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
