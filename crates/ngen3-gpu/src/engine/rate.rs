//! The rate of matrix products, for `bench` and for choosing a device.

use std::time::{Duration, Instant};

use ngen3_engine::Error;

use crate::device::{Context, Recorder};
use crate::kernels::product::{Epilogue, Form, Matrix, product};

/// Products that are submitted together, so that their start does not count.
const TOGETHER: usize = 4;

/// Repeats the product `[m, k]·[n, k]ᵀ` for a quarter of a second and returns the best rate, in GFLOP/s.
///
/// # Errors
/// [`Error::Memory`]; [`Error::Device`].
pub fn product_gflops(context: &Context, [m, k, n]: [usize; 3]) -> Result<f64, Error> {
    let [a, b, c] = [m * k, n * k, m * n].map(|len| context.buffer("a product", len));
    let (a, b, c) = (a?, b?, c?);
    let (start, mut best) = (Instant::now(), Duration::MAX);
    // The first time compiles the kernel.
    for round in 0.. {
        let begun = Instant::now();
        let mut recorder = Recorder::new(context);
        for _ in 0..TOGETHER {
            let [a, b, c] = [(&a, k), (&b, k), (&c, n)].map(|(buffer, columns)| Matrix::new(buffer.all(), columns));
            product(&mut recorder, Form::Nt, [m, n, k], 1.0, a, b, c, Epilogue::Set(None));
        }
        drop(recorder);
        context.read(c.first(1))?;
        if round > 0 {
            best = best.min(begun.elapsed());
            if start.elapsed() > Duration::from_millis(250) {
                break;
            }
        }
    }
    Ok((2 * TOGETHER * m * k * n) as f64 / best.as_secs_f64() / 1e9)
}
