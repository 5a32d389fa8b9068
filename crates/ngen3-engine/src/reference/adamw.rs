//! AdamW (Loshchilov & Hutter 2019) as in PyTorch: `clip_grad_norm_`, then `AdamW.step`.

use crate::AdamW;

/// Returns Σ g².
pub fn square_sum(grads: &[f32]) -> f64 {
    grads.iter().map(|&g| f64::from(g).powi(2)).sum()
}

/// Returns the factor that clips gradients of this norm, min(1, grad_clip/(norm + 1e-6)).
pub fn clip_factor(adamw: &AdamW, norm: f32) -> f32 {
    if adamw.grad_clip > 0.0 { (adamw.grad_clip / (norm + 1e-6)).min(1.0) } else { 1.0 }
}

/// Updates one parameter tensor, given its slice of each flat array. Gradients are multiplied by `clip` first; weight decay
/// applies if `decays`:
///
/// m = β₁·m + (1 − β₁)·g,  v = β₂·v + (1 − β₂)·g²,  m̂ = m/(1 − β₁ᵗ),  v̂ = v/(1 − β₂ᵗ),
/// p = p·(1 − lr·decay) − lr·m̂/(√v̂ + ε).
pub fn adamw_update(
    adamw: &AdamW,
    decays: bool,
    clip: f32,
    params: &mut [f32],
    grads: &[f32],
    exp_avg: &mut [f32],
    exp_avg_sq: &mut [f32],
) {
    let [lr, beta1, beta2, eps, decay] =
        [adamw.lr, adamw.beta1, adamw.beta2, adamw.eps, adamw.weight_decay].map(f64::from);
    let keep = if decays { 1.0 - lr * decay } else { 1.0 };
    let [correction1, correction2] = [beta1, beta2].map(|beta| 1.0 - beta.powf(adamw.step as f64));
    for (((p, &g), m), v) in params.iter_mut().zip(grads).zip(exp_avg).zip(exp_avg_sq) {
        let g = f64::from(g) * f64::from(clip);
        *m = (beta1 * f64::from(*m) + (1.0 - beta1) * g) as f32;
        *v = (beta2 * f64::from(*v) + (1.0 - beta2) * g * g) as f32;
        let (m_hat, v_hat) = (f64::from(*m) / correction1, f64::from(*v) / correction2);
        *p = (f64::from(*p) * keep - lr * m_hat / (v_hat.sqrt() + eps)) as f32;
    }
}
