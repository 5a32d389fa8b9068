//! Muon (Jordan et al. 2024) as `torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"`, without its rounding to bf16.

use crate::Muon;

/// Updates one matrix, `[rows, columns]`, given its slice of each flat array. Gradients are multiplied by `clip` first:
///
/// m = μ·m + (1 − μ)·g,  u = orthogonalised(μ·m + (1 − μ)·g)   (Nesterov's momentum),
/// p = p·(1 − lr·decay) − lr·0.2·√max(rows, columns)·u.
pub fn muon_update(muon: &Muon, clip: f32, columns: usize, params: &mut [f32], grads: &[f32], average: &mut [f32]) {
    let [lr, momentum, decay] = [muon.lr, muon.momentum, muon.weight_decay].map(f64::from);
    let mut u = Vec::with_capacity(params.len());
    for (&g, m) in grads.iter().zip(average) {
        let g = f64::from(g) * f64::from(clip);
        *m = (momentum * f64::from(*m) + (1.0 - momentum) * g) as f32;
        u.push(momentum * f64::from(*m) + (1.0 - momentum) * g);
    }
    let rows = params.len() / columns;
    let step_size = f64::from(muon.step_size(rows, columns));
    for (p, u) in params.iter_mut().zip(orthogonalised(u, rows, columns)) {
        *p = (f64::from(*p) * (1.0 - lr * decay) - step_size * u) as f32;
    }
}

/// Brings the singular values of `x`, `[rows, columns]`, near 1: Newton–Schulz steps on x/‖x‖, of which each applies an odd
/// polynomial to the singular values.
fn orthogonalised(mut x: Vec<f64>, rows: usize, columns: usize) -> Vec<f64> {
    let norm = x.iter().map(|x| x * x).sum::<f64>().sqrt().max(f64::from(Muon::EPS));
    x.iter_mut().for_each(|x| *x /= norm);
    let [a, b, c] = Muon::COEFFICIENTS.map(f64::from);
    for _ in 0..Muon::STEPS {
        // (x·xᵀ)·x = x·(xᵀ·x): the smaller of the two squares is used.
        x = if rows <= columns {
            let gram = product(&x, &transposed(&x, columns), columns);
            product(&polynomial(&gram, rows, [a, b, c]), &x, rows)
        } else {
            let gram = product(&transposed(&x, columns), &x, rows);
            product(&x, &polynomial(&gram, columns, [a, b, c]), columns)
        };
    }
    x
}

/// Returns a·1 + b·gram + c·gram², of `gram`: `[n, n]`.
fn polynomial(gram: &[f64], n: usize, [a, b, c]: [f64; 3]) -> Vec<f64> {
    let mut sum = product(gram, gram, n);
    for (i, (sum, &gram)) in sum.iter_mut().zip(gram).enumerate() {
        *sum = b * gram + c * *sum + if i % (n + 1) == 0 { a } else { 0.0 };
    }
    sum
}

/// Returns x·y for `x`: `[_, inner]`, `y`: `[inner, _]`.
fn product(x: &[f64], y: &[f64], inner: usize) -> Vec<f64> {
    let columns = y.len() / inner;
    let mut out = vec![0.0; x.len() / inner * columns];
    for (out, x) in out.chunks_exact_mut(columns).zip(x.chunks_exact(inner)) {
        for (x, y) in x.iter().zip(y.chunks_exact(columns)) {
            out.iter_mut().zip(y).for_each(|(out, y)| *out += x * y);
        }
    }
    out
}

fn transposed(x: &[f64], columns: usize) -> Vec<f64> {
    (0..columns).flat_map(|j| x.iter().skip(j).step_by(columns).copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn singular_values_end_near_one_in_any_orientation() {
        for (rows, columns) in [(1, 1), (1, 9), (7, 3), (6, 6), (5, 23)] {
            let x: Vec<f64> = (0..rows * columns).map(|i| ((i * i + 3) % 17) as f64 - 8.1).collect();
            let u = orthogonalised(x.clone(), rows, columns);
            let ut = orthogonalised(transposed(&x, columns), columns, rows);
            for (i, u) in transposed(&u, columns).iter().enumerate() {
                assert!((u - ut[i]).abs() < 1e-9, "the transposed of the transposed");
            }
            // The sum of the squared singular values.
            let squares = u.iter().map(|u| u * u).sum::<f64>() / rows.min(columns) as f64;
            assert!((0.4..1.5).contains(&squares), "{rows} x {columns}: {squares}");
        }
        assert_eq!(orthogonalised(vec![0.0; 6], 2, 3), [0.0; 6], "no gradient, no update");
    }
}
