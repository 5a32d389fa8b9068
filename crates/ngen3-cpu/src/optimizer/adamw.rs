//! AdamW (Loshchilov & Hutter 2019) fused with gradient clipping, in one pass over the parameters.
//!
//! m = β₁·m + (1 − β₁)·g,  v = β₂·v + (1 − β₂)·g²,
//! p = p·(1 − lr·decay) − lr·m̂/(√v̂ + ε),  m̂ = m/(1 − β₁ᵗ),  v̂ = v/(1 − β₂ᵗ).

use rayon::prelude::*;

use super::arrays::Arrays;
use ngen3_engine::AdamW;
use ngen3_simd::{LANES, simd};

/// Elements per task.
const CHUNK: usize = 1 << 14;

/// Returns Σ g² in f64, in which the squares are exact. The order of summation does not depend on the number of threads; another
/// division of the gradients, as among ranks, changes its last bits, hardly ever those of the norm in f32.
pub fn square_sum(grads: &[f32]) -> f64 {
    // A tree of fixed shape adds up the partial sums of at most CHUNK squares.
    if grads.len() <= CHUNK {
        return simd(
            #[inline(always)]
            || {
                let mut lanes = [0.0f64; LANES];
                let (chunks, rest) = grads.as_chunks::<LANES>();
                for chunk in chunks.iter().map(|chunk| &chunk[..]).chain([rest]) {
                    for (lane, &g) in lanes.iter_mut().zip(chunk) {
                        *lane += f64::from(g) * f64::from(g);
                    }
                }
                lanes.iter().sum()
            },
        );
    }
    let chunks = grads.len().div_ceil(CHUNK);
    let (left, right) = grads.split_at(chunks / 2 * CHUNK);
    let (left, right) = rayon::join(|| square_sum(left), || square_sum(right));
    left + right
}

/// Updates one tensor in place with gradients scaled by `clip`, then zeroes the gradients. `decays` enables weight decay.
pub fn update(adamw: &AdamW, decays: bool, clip: f32, arrays: Arrays<'_>) {
    let Arrays { params, grads, exp_avg, exp_avg_sq } = arrays;
    let AdamW { step, lr, beta1, beta2, eps, weight_decay, .. } = *adamw;
    let correction = |beta: f32| 1.0 - f64::from(beta).powf(step as f64);
    let step_size = (f64::from(lr) / correction(beta1)) as f32;
    let inv_root_correction2 = (1.0 / correction(beta2).sqrt()) as f32;
    let keep = if decays { 1.0 - lr * weight_decay } else { 1.0 };
    params
        .par_chunks_mut(CHUNK)
        .zip(grads.par_chunks_mut(CHUNK))
        .zip(exp_avg.par_chunks_mut(CHUNK).zip(exp_avg_sq.par_chunks_mut(CHUNK)))
        .for_each(|((params, grads), (exp_avg, exp_avg_sq))| {
            simd(
                #[inline(always)]
                || {
                    for (((p, g), m), v) in params.iter_mut().zip(grads).zip(exp_avg).zip(exp_avg_sq) {
                        let grad = *g * clip;
                        *m = beta1 * *m + (1.0 - beta1) * grad;
                        *v = beta2 * *v + (1.0 - beta2) * grad * grad;
                        *p = *p * keep - step_size * *m / ((*v).sqrt() * inv_root_correction2 + eps);
                        *g = 0.0;
                    }
                },
            );
        });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::testing::random;

    #[test]
    fn three_updates_match_the_formula_in_f64() {
        let n = CHUNK + 77;
        for decays in [true, false] {
            let mut params = random(n, 1);
            let (mut exp_avg, mut exp_avg_sq) = (vec![0.0; n], vec![0.0; n]);
            let mut expected: Vec<[f64; 3]> = params.iter().map(|&p| [f64::from(p), 0.0, 0.0]).collect();
            for step in 1..=3 {
                let adamw =
                    AdamW { step, lr: 0.1, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_clip: 1.0 };
                let mut grads = random(n, 10 + step);
                for ([p, m, v], &g) in expected.iter_mut().zip(&grads) {
                    let g = f64::from(g) * 0.5;
                    *m = 0.9 * *m + 0.1 * g;
                    *v = 0.95 * *v + 0.05 * g * g;
                    let (m_hat, v_hat) =
                        (*m / (1.0 - 0.9f64.powf(step as f64)), *v / (1.0 - 0.95f64.powf(step as f64)));
                    let decay = if decays { 0.1 } else { 0.0 };
                    *p = *p * (1.0 - 0.1 * decay) - 0.1 * m_hat / (v_hat.sqrt() + 1e-8);
                }
                let arrays = Arrays {
                    params: &mut params,
                    grads: &mut grads,
                    exp_avg: &mut exp_avg,
                    exp_avg_sq: &mut exp_avg_sq,
                };
                update(&adamw, decays, 0.5, arrays);
                assert!(grads.iter().all(|&g| g == 0.0), "gradients are cleared");
            }
            for (&found, [expected, ..]) in params.iter().zip(&expected) {
                assert!((f64::from(found) - expected).abs() < 1e-5, "expected {expected}, got {found}");
            }
        }
    }

    #[test]
    fn the_sum_of_squares_is_that_of_the_whole() {
        for n in [1, 100, 3 * CHUNK + 5] {
            let grads = random(n, 3);
            let exact = grads.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>();
            assert!((square_sum(&grads) / exact - 1.0).abs() < 1e-6);
        }
    }
}
