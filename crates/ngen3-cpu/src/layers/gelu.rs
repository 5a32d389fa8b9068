//! Gaussian error linear unit (Hendrycks & Gimpel 2016), as GPT-2's tanh approximation and exact.
//!
//! Tanh (`gelu_new`): gelu(x) = 0.5·x·(1 + tanh(u)), u = √(2/π)·(x + 0.044715·x³). Since 0.5·(1 + tanh u) = σ(2u), this is
//! x·σ(2u). Exact (`gelu`): x·Φ(x), with the standard normal CDF Φ.
//!
//! `x`, `y`: any shape, elementwise; saved for the backward pass: `x`.

use ngen3_model::Activation;
use rayon::prelude::*;

use crate::base::profile::{Part, timed};
use ngen3_simd::{exp, exp2, simd};

/// Elements per task.
const CHUNK: usize = 1 << 13;

/// Computes `y = gelu(x)`.
pub fn forward(activation: Activation, x: &[f32], y: &mut [f32]) {
    let _timed = timed(Part::Gelu);
    x.par_chunks(CHUNK).zip(y.par_chunks_mut(CHUNK)).for_each(|(x, y)| {
        simd(
            #[inline(always)]
            || match activation {
                Activation::GeluNew => map(
                    x,
                    y,
                    #[inline(always)]
                    |x, _| gelu_new(x).0,
                ),
                Activation::Gelu => map(
                    x,
                    y,
                    #[inline(always)]
                    |x, _| gelu_exact(x).0,
                ),
                Activation::Swiglu => unreachable!("swiglu.rs computes it"),
            },
        );
    });
}

/// Replaces `dy` by `dx = dy·gelu'(x)`.
pub fn backward(activation: Activation, x: &[f32], dy: &mut [f32]) {
    let _timed = timed(Part::Gelu);
    x.par_chunks(CHUNK).zip(dy.par_chunks_mut(CHUNK)).for_each(|(x, dy)| {
        simd(
            #[inline(always)]
            || match activation {
                Activation::GeluNew => map(
                    x,
                    dy,
                    #[inline(always)]
                    |x, dy| dy * gelu_new(x).1,
                ),
                Activation::Gelu => map(
                    x,
                    dy,
                    #[inline(always)]
                    |x, dy| dy * gelu_exact(x).1,
                ),
                Activation::Swiglu => unreachable!("swiglu.rs computes it"),
            },
        );
    });
}

#[inline(always)]
fn map(x: &[f32], y: &mut [f32], f: impl Fn(f32, f32) -> f32) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = f(x, *y);
    }
}

/// Returns value and derivative of the tanh approximation.
#[inline(always)]
fn gelu_new(x: f32) -> (f32, f32) {
    // 2u = x·(LINEAR + CUBIC·x²).
    const LINEAR: f32 = 2.0 * 0.797_884_6; // 2·√(2/π)
    const CUBIC: f32 = LINEAR * 0.044715;
    // Beyond ±10, σ(2u) is 0 or 1 in f32, and x³ could overflow.
    let inner = if x > 10.0 { 10.0 } else { x };
    let inner = if inner < -10.0 { -10.0 } else { inner };
    let square = inner * inner;
    let e = exp2(-std::f32::consts::LOG2_E * inner * (LINEAR + CUBIC * square));
    let sigmoid = 1.0 / (1.0 + e);
    let value = x * sigmoid;
    // 1 − σ = e·σ, without cancellation.
    (value, sigmoid + value * (e * sigmoid) * (LINEAR + 3.0 * CUBIC * square))
}

/// Returns value and derivative of x·Φ(x), with erf by Abramowitz & Stegun 7.1.26 (error below 1.5e-7).
#[inline(always)]
fn gelu_exact(x: f32) -> (f32, f32) {
    const INV_SQRT_2PI: f32 = 0.398_942_3;
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let mut p = 1.061_405_4;
    p = p * t - 1.453_152_1;
    p = p * t + 1.421_413_8;
    p = p * t - 0.284_496_72;
    p = p * t + 0.254_829_6;
    let gauss = exp(-z * z);
    let tail = 0.5 * p * t * gauss; // Φ(−|x|)
    let phi = if x > 0.0 { 1.0 - tail } else { tail };
    (x * phi, phi + x * INV_SQRT_2PI * gauss)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// erf by its Taylor series in f64, exact to 1e-12 for |x| ≤ 4.
    fn erf(x: f64) -> f64 {
        let (mut term, mut total) = (x, x);
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            total += term / f64::from(2 * n + 1);
        }
        total * 2.0 / std::f64::consts::PI.sqrt()
    }

    fn reference(activation: Activation, x: f64) -> f64 {
        match activation {
            Activation::GeluNew => {
                let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
                0.5 * x * (1.0 + u.tanh())
            }
            Activation::Gelu => 0.5 * x * (1.0 + erf(x / 2f64.sqrt())),
            Activation::Swiglu => unreachable!("not a GELU"),
        }
    }

    #[test]
    fn value_and_slope_match_the_definition() {
        let x: Vec<f32> = (-400..=400).map(|i| i as f32 / 100.0).collect();
        for activation in [Activation::GeluNew, Activation::Gelu] {
            let (mut y, mut dy) = (vec![0.0; x.len()], vec![2.0; x.len()]);
            forward(activation, &x, &mut y);
            backward(activation, &x, &mut dy);
            for ((&x, &y), &dy) in x.iter().zip(&y).zip(&dy) {
                let x = f64::from(x);
                assert!((f64::from(y) - reference(activation, x)).abs() < 1e-6, "{activation:?}({x}) = {y}");
                let slope = (reference(activation, x + 1e-5) - reference(activation, x - 1e-5)) / 2e-5;
                assert!((f64::from(dy) - 2.0 * slope).abs() < 3e-6, "{activation:?}'({x}) = {dy} / 2");
            }
        }
    }

    #[test]
    fn far_inputs_stay_finite() {
        let x = [-1e20, -100.0, 100.0, 1e10];
        for activation in [Activation::GeluNew, Activation::Gelu] {
            let mut y = [0.0; 4];
            forward(activation, &x, &mut y);
            assert!(y[0].abs() < 1e-10 && y[1].abs() < 1e-10 && y[2] == 100.0 && y[3] == 1e10, "{activation:?}: {y:?}");
        }
    }
}
