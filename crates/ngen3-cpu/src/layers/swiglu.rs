//! Gated MLP activation SwiGLU (Shazeer 2020): y = silu(gate)·up, with silu(x) = x·σ(x).
//!
//! `x`: [tokens, 2·inner], gate then up in each row, as one product of both projections computes them; `y`: [tokens, inner];
//! saved for the backward pass: `x`.

use rayon::prelude::*;

use crate::base::profile::{Part, timed};
use ngen3_simd::{exp2, simd};

/// Elements of `y` per task, about.
const CHUNK: usize = 1 << 13;

/// Rows per task.
fn rows(inner: usize) -> usize {
    (CHUNK / inner).max(1)
}

/// Computes `y`. `inner` is the width of its rows.
pub fn forward(inner: usize, x: &[f32], y: &mut [f32]) {
    let _timed = timed(Part::Gelu);
    let rows = rows(inner);
    x.par_chunks(rows * 2 * inner).zip(y.par_chunks_mut(rows * inner)).for_each(|(x, y)| {
        simd(
            #[inline(always)]
            || {
                for (x, y) in x.chunks_exact(2 * inner).zip(y.chunks_exact_mut(inner)) {
                    let (gate, up) = x.split_at(inner);
                    for ((y, &gate), &up) in y.iter_mut().zip(gate).zip(up) {
                        *y = silu(gate).0 * up;
                    }
                }
            },
        );
    });
}

/// Computes `dx`, `[tokens, 2·inner]`, from `dy`:  dgate = dy·up·silu'(gate),  dup = dy·silu(gate).
pub fn backward(inner: usize, x: &[f32], dy: &[f32], dx: &mut [f32]) {
    let _timed = timed(Part::Gelu);
    let rows = rows(inner);
    let wide = rows * 2 * inner;
    x.par_chunks(wide).zip(dy.par_chunks(rows * inner)).zip(dx.par_chunks_mut(wide)).for_each(|((x, dy), dx)| {
        simd(
            #[inline(always)]
            || {
                let rows = x.chunks_exact(2 * inner).zip(dy.chunks_exact(inner)).zip(dx.chunks_exact_mut(2 * inner));
                for ((x, dy), dx) in rows {
                    let ((gate, up), (dgate, dup)) = (x.split_at(inner), dx.split_at_mut(inner));
                    let inputs = gate.iter().zip(up).zip(dy);
                    for ((dgate, dup), ((&gate, &up), &dy)) in dgate.iter_mut().zip(dup).zip(inputs) {
                        let (value, slope) = silu(gate);
                        *dgate = dy * up * slope;
                        *dup = dy * value;
                    }
                }
            },
        );
    });
}

/// Returns value and derivative of x·σ(x).
#[inline(always)]
fn silu(x: f32) -> (f32, f32) {
    // Beyond ±87, σ is 0 or 1 in f32, and factors of the far side would overflow.
    let x = if x < -87.0 { -87.0 } else { x };
    let inner = if x > 87.0 { 87.0 } else { x };
    let e = exp2(-std::f32::consts::LOG2_E * inner);
    let sigmoid = 1.0 / (1.0 + e);
    // 1 − σ = e·σ, without cancellation.
    (x * sigmoid, sigmoid + inner * sigmoid * (e * sigmoid))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::testing::{check_gradient, dot, random};

    /// silu and its derivative in f64.
    fn definition(x: f32) -> (f64, f64) {
        let x = f64::from(x);
        let sigmoid = 1.0 / (1.0 + (-x).exp());
        (x * sigmoid, sigmoid * (1.0 + x * (1.0 - sigmoid)))
    }

    #[test]
    fn value_and_slope_match_the_definition() {
        let gate: Vec<f32> = (-2_000..=2_000).map(|i| i as f32 / 100.0).collect();
        // Rows of one pair, so that each gate has its own up.
        let x: Vec<f32> = gate.iter().flat_map(|&gate| [gate, 1.5]).collect();
        let (mut y, mut dx) = (vec![f32::NAN; gate.len()], vec![f32::NAN; x.len()]);
        forward(1, &x, &mut y);
        backward(1, &x, &vec![2.0; gate.len()], &mut dx);
        for ((&gate, &y), dx) in gate.iter().zip(&y).zip(dx.chunks_exact(2)) {
            let (value, slope) = definition(gate);
            let near = |found: f32, expected: f64| {
                let error = (f64::from(found) - expected).abs();
                assert!(error < 1e-6 * expected.abs().max(1.0), "at {gate}: expected {expected}, got {found}");
            };
            near(y, 1.5 * value);
            near(dx[0], 3.0 * slope);
            near(dx[1], 2.0 * value);
        }
    }

    #[test]
    fn rows_of_odd_widths_match_the_definition_and_finite_differences() {
        for (tokens, inner) in [(5, 12), (1, 3), (3, 9_001), (67, 129), (2_100, 5)] {
            let (x, dy) = (random(tokens * 2 * inner, 1), random(tokens * inner, 2));
            let run = |x: &[f32]| {
                let mut y = vec![f32::NAN; tokens * inner];
                forward(inner, x, &mut y);
                y
            };
            for (y, x) in run(&x).chunks_exact(inner).zip(x.chunks_exact(2 * inner)) {
                for (i, &y) in y.iter().enumerate() {
                    let expected = definition(x[i]).0 * f64::from(x[inner + i]);
                    assert!((f64::from(y) - expected).abs() < 1e-6, "expected {expected}, got {y}");
                }
            }
            let mut dx = vec![f32::NAN; x.len()];
            backward(inner, &x, &dy, &mut dx);
            check_gradient(&x, &dx, |x| dot(&run(x), &dy));
        }
    }

    #[test]
    fn far_inputs_stay_finite() {
        let x = [-3e38, 1.0, -100.0, 1.0, 100.0, 1.0, 3e38, 1.0];
        let (mut y, mut dx) = ([f32::NAN; 4], [f32::NAN; 8]);
        forward(1, &x, &mut y);
        backward(1, &x, &[1.0; 4], &mut dx);
        assert!(y[0].abs() < 1e-30 && y[1].abs() < 1e-30 && y[2] == 100.0 && y[3] == 3e38, "{y:?}");
        assert!(dx[0].abs() < 1e-30 && dx[2].abs() < 1e-30 && dx[4] == 1.0 && dx[6] == 1.0, "{dx:?}");
    }
}
