//! All layers but attention, each forward pass next to its backward pass.
//!
//! Tensors are row-major. A forward function returns the layer's output, a backward function the gradient of its input;
//! gradients of parameters (`dweight`, …) are accumulated. An absent bias is an empty slice, and so is the gradient of a frozen
//! parameter.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI, PI};
use std::ops::Range;

use ngen3_model::Activation;

use crate::Dropout;

/// Embeds tokens: x[t] = wte[token[t]] + wpe[position[t]]   (llm.c's `encoder_forward`).
///
/// `tokens`, `positions`: [tokens]; `wte`: [vocab_size, width]; `wpe`: [block_size, width], or empty in a model with rotary
/// positions; returns `x`: [tokens, width].
pub fn embedding_forward(tokens: &[u32], positions: &[u32], wte: &[f32], wpe: &[f32], width: usize) -> Vec<f32> {
    let mut x = Vec::with_capacity(tokens.len() * width);
    for (&token, &position) in tokens.iter().zip(positions) {
        let token = &wte[token as usize * width..][..width];
        if wpe.is_empty() {
            x.extend_from_slice(token);
            continue;
        }
        let position = &wpe[position as usize * width..][..width];
        x.extend(token.iter().zip(position).map(|(a, b)| a + b));
    }
    x
}

/// `dtable[id[t]] += dx[t]`, with tokens for `wte`, then with positions for `wpe`.
pub fn embedding_backward(ids: &[u32], dx: &[f32], width: usize, dtable: &mut [f32]) {
    if dtable.is_empty() {
        return;
    }
    let mut sums = vec![0.0; dtable.len()];
    for (&id, dx) in ids.iter().zip(dx.chunks_exact(width)) {
        for (sum, &dx) in sums[id as usize * width..].iter_mut().zip(dx) {
            *sum += f64::from(dx);
        }
    }
    add_sums(dtable, &sums);
}

/// Normalises each row: y = x̂·γ + β with x̂ = (x − mean)/√(variance + ε)   (Ba et al. 2016).
///
/// `x`, `y`: [rows, width]; `gamma`, `beta`: [width].
pub fn layernorm_forward(x: &[f32], gamma: &[f32], beta: &[f32], eps: f32) -> Vec<f32> {
    let mut y = Vec::with_capacity(x.len());
    for x in x.chunks_exact(gamma.len()) {
        let (x_hat, _) = normalized(x, eps);
        for (i, (x_hat, &gamma)) in x_hat.iter().zip(gamma).enumerate() {
            y.push((x_hat * f64::from(gamma) + at(beta, i)) as f32);
        }
    }
    y
}

/// With g = dy·γ: dx = (g − mean(g) − x̂·mean(g·x̂))/√(variance + ε),  dγ += Σ dy·x̂,  dβ += Σ dy, sums over rows.
pub fn layernorm_backward(
    x: &[f32],
    gamma: &[f32],
    eps: f32,
    dy: &[f32],
    dgamma: &mut [f32],
    dbeta: &mut [f32],
) -> Vec<f32> {
    let width = gamma.len();
    let mut dx = Vec::with_capacity(x.len());
    let (mut gamma_sums, mut beta_sums) = (vec![0.0; width], vec![0.0; width]);
    for (x, dy) in x.chunks_exact(width).zip(dy.chunks_exact(width)) {
        let (x_hat, rstd) = normalized(x, eps);
        let g: Vec<f64> = dy.iter().zip(gamma).map(|(&dy, &gamma)| f64::from(dy) * f64::from(gamma)).collect();
        let mean_g = g.iter().sum::<f64>() / width as f64;
        let mean_gx = g.iter().zip(&x_hat).map(|(g, x_hat)| g * x_hat).sum::<f64>() / width as f64;
        for i in 0..width {
            dx.push((rstd * (g[i] - mean_g - x_hat[i] * mean_gx)) as f32);
            gamma_sums[i] += f64::from(dy[i]) * x_hat[i];
            beta_sums[i] += f64::from(dy[i]);
        }
    }
    add_sums(dgamma, &gamma_sums);
    add_sums(dbeta, &beta_sums);
    dx
}

/// Returns x̂ of one row and 1/√(variance + ε).
fn normalized(x: &[f32], eps: f32) -> (Vec<f64>, f64) {
    let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / x.len() as f64;
    let variance = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / x.len() as f64;
    let rstd = 1.0 / (variance + f64::from(eps)).sqrt();
    (x.iter().map(|&x| (f64::from(x) - mean) * rstd).collect(), rstd)
}

/// Scales each row to a root mean square of 1: y = x̂·γ with x̂ = x/√(mean(x²) + ε)   (Zhang & Sennrich 2019).
///
/// `x`, `y`: [rows, width]; `gamma`: [width].
pub fn rmsnorm_forward(x: &[f32], gamma: &[f32], eps: f32) -> Vec<f32> {
    let mut y = Vec::with_capacity(x.len());
    for x in x.chunks_exact(gamma.len()) {
        let r = rrms(x, eps);
        y.extend(x.iter().zip(gamma).map(|(&x, &gamma)| (f64::from(x) * r * f64::from(gamma)) as f32));
    }
    y
}

/// With g = dy·γ: dx = (g − x̂·mean(g·x̂))/√(mean(x²) + ε),  dγ += Σ dy·x̂, sum over rows.
pub fn rmsnorm_backward(x: &[f32], gamma: &[f32], eps: f32, dy: &[f32], dgamma: &mut [f32]) -> Vec<f32> {
    let width = gamma.len();
    let (mut dx, mut gamma_sums) = (Vec::with_capacity(x.len()), vec![0.0; width]);
    for (x, dy) in x.chunks_exact(width).zip(dy.chunks_exact(width)) {
        let r = rrms(x, eps);
        let x_hat: Vec<f64> = x.iter().map(|&x| f64::from(x) * r).collect();
        let g: Vec<f64> = dy.iter().zip(gamma).map(|(&dy, &gamma)| f64::from(dy) * f64::from(gamma)).collect();
        let mean = g.iter().zip(&x_hat).map(|(g, x_hat)| g * x_hat).sum::<f64>() / width as f64;
        for i in 0..width {
            dx.push((r * (g[i] - x_hat[i] * mean)) as f32);
            gamma_sums[i] += f64::from(dy[i]) * x_hat[i];
        }
    }
    add_sums(dgamma, &gamma_sums);
    dx
}

/// Returns 1/√(mean(x²) + ε) of one row.
fn rrms(x: &[f32], eps: f32) -> f64 {
    let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / x.len() as f64;
    1.0 / (mean + f64::from(eps)).sqrt()
}

/// Rotates the pair (xᵢ, xᵢ₊ₙ), n half the width, of a query or key by position·fᵢ, and scales it   (Su et al. 2021).
///
/// `x`: [head_width], changed in place; `frequencies`: [head_width / 2], radians per position; a `direction` of 1 is the forward
/// pass, -1 the backward pass, which turns the gradient back.
pub fn rotate(x: &mut [f32], position: u32, frequencies: &[f32], scale: f32, direction: f64) {
    let (first, second) = x.split_at_mut(frequencies.len());
    for ((a, b), &frequency) in first.iter_mut().zip(second).zip(frequencies) {
        // The angle is rounded as PyTorch rounds it.
        let (sin, cos) = f64::from(position as f32 * frequency).sin_cos();
        let (sin, cos) = (f64::from(scale) * direction * sin, f64::from(scale) * cos);
        let (x, y) = (f64::from(*a), f64::from(*b));
        (*a, *b) = ((x * cos - y * sin) as f32, (y * cos + x * sin) as f32);
    }
}

/// SwiGLU: y = silu(gate)·up with silu(x) = x·sigmoid(x)   (Shazeer 2020).
///
/// `x`: [rows, 2·width], each row the gate and then up; returns `y`: [rows, width].
pub fn swiglu_forward(x: &[f32], width: usize) -> Vec<f32> {
    let mut y = Vec::with_capacity(x.len() / 2);
    for row in x.chunks_exact(2 * width) {
        let (gate, up) = row.split_at(width);
        y.extend(gate.iter().zip(up).map(|(&gate, &up)| (silu(f64::from(gate)).0 * f64::from(up)) as f32));
    }
    y
}

/// dgate = dy·up·silu'(gate),  dup = dy·silu(gate)
pub fn swiglu_backward(x: &[f32], width: usize, dy: &[f32]) -> Vec<f32> {
    let mut dx = Vec::with_capacity(x.len());
    for (row, dy) in x.chunks_exact(2 * width).zip(dy.chunks_exact(width)) {
        let (gate, up) = row.split_at(width);
        let slope = |gate: f32| silu(f64::from(gate)).1;
        dx.extend(dy.iter().zip(gate.iter().zip(up)).map(|(&dy, (&g, &up))| (f64::from(dy * up) * slope(g)) as f32));
        dx.extend(dy.iter().zip(gate).map(|(&dy, &gate)| (f64::from(dy) * silu(f64::from(gate)).0) as f32));
    }
    dx
}

/// Returns silu(x) and silu'(x).
fn silu(x: f64) -> (f64, f64) {
    let sigmoid = 1.0 / (1.0 + (-x).exp());
    (x * sigmoid, sigmoid * (1.0 + x * (1.0 - sigmoid)))
}

/// Applies a linear layer: y = x·Wᵀ + b.
///
/// `x`: [rows, inputs]; `weight`: [outputs, inputs]; `bias`: [outputs]; returns `y`: [rows, outputs].
pub fn linear_forward(x: &[f32], weight: &[f32], bias: &[f32], inputs: usize) -> Vec<f32> {
    let mut y = Vec::with_capacity(x.len() / inputs * (weight.len() / inputs));
    for x in x.chunks_exact(inputs) {
        for (output, weight) in weight.chunks_exact(inputs).enumerate() {
            y.push((at(bias, output) + dot(x, weight)) as f32);
        }
    }
    y
}

/// dx = dy·W,  dW += dyᵀ·x,  db += Σ dy, sum over rows.
pub fn linear_backward(
    x: &[f32],
    weight: &[f32],
    inputs: usize,
    dy: &[f32],
    dweight: &mut [f32],
    dbias: &mut [f32],
) -> Vec<f32> {
    let outputs = weight.len() / inputs;
    let mut dx = Vec::with_capacity(x.len());
    for dy in dy.chunks_exact(outputs) {
        let mut sums = vec![0.0; inputs];
        for (&dy, weight) in dy.iter().zip(weight.chunks_exact(inputs)) {
            add_scaled(&mut sums, f64::from(dy), weight);
        }
        dx.extend(sums.iter().map(|&sum| sum as f32));
    }
    for (output, dweight) in dweight.chunks_exact_mut(inputs).enumerate() {
        let mut sums = vec![0.0; inputs];
        for (x, dy) in x.chunks_exact(inputs).zip(dy.chunks_exact(outputs)) {
            add_scaled(&mut sums, f64::from(dy[output]), x);
        }
        add_sums(dweight, &sums);
    }
    for (output, dbias) in dbias.iter_mut().enumerate() {
        *dbias += dy.chunks_exact(outputs).map(|dy| f64::from(dy[output])).sum::<f64>() as f32;
    }
    dx
}

/// Low-rank adapter of some outputs of a linear layer.
#[derive(Clone)]
pub struct Adapter<'a> {
    /// `[rank, inputs]`
    pub a: &'a [f32],
    /// `[outputs, rank]`
    pub b: &'a [f32],
    /// Rows of A and columns of B.
    pub rank: usize,
    /// s = alpha/rank
    pub scale: f32,
    /// Its outputs among all of the layer's.
    pub outputs: Range<usize>,
}

impl Adapter<'_> {
    fn inputs(&self) -> usize {
        self.a.len() / self.rank
    }
}

/// Adds an adapter's output to its layer's: y += low·Bᵀ with low = s·x·Aᵀ   (Hu et al. 2021).
///
/// `x`: [rows, inputs]; `y`: [rows, width], of which the adapter's outputs are columns; returns `low`: [rows, rank], for the
/// backward pass.
pub fn lora_forward(adapter: &Adapter<'_>, x: &[f32], y: &mut [f32], width: usize) -> Vec<f32> {
    let mut low = linear_forward(x, adapter.a, &[], adapter.inputs());
    low.iter_mut().for_each(|low| *low *= adapter.scale);
    let part = linear_forward(&low, adapter.b, &[], adapter.rank);
    for (y, part) in y.chunks_exact_mut(width).zip(part.chunks_exact(adapter.outputs.len())) {
        add(&mut y[adapter.outputs.clone()], part);
    }
    low
}

/// With dlow = s·dy·B: dx += dlow·A,  dA += dlowᵀ·x,  dB += dyᵀ·low. `dy`: [rows, width].
pub fn lora_backward(
    adapter: &Adapter<'_>,
    x: &[f32],
    low: &[f32],
    dy: &[f32],
    width: usize,
    [da, db]: [&mut [f32]; 2],
    dx: &mut [f32],
) {
    let dy: Vec<f32> = dy.chunks_exact(width).flat_map(|dy| &dy[adapter.outputs.clone()]).copied().collect();
    let mut dlow = linear_backward(low, adapter.b, adapter.rank, &dy, db, &mut []);
    dlow.iter_mut().for_each(|dlow| *dlow *= adapter.scale);
    add(dx, &linear_backward(x, adapter.a, adapter.inputs(), &dlow, da, &mut []));
}

/// Merges an adapter into its layer's weight, `[width, inputs]`: W += s·B·A.
pub fn lora_merge(adapter: &Adapter<'_>, weight: &mut [f32]) {
    let inputs = adapter.inputs();
    let weight = &mut weight[adapter.outputs.start * inputs..adapter.outputs.end * inputs];
    for (weight, b) in weight.chunks_exact_mut(inputs).zip(adapter.b.chunks_exact(adapter.rank)) {
        let mut sums = vec![0.0; inputs];
        for (&b, a) in b.iter().zip(adapter.a.chunks_exact(inputs)) {
            add_scaled(&mut sums, f64::from(adapter.scale) * f64::from(b), a);
        }
        add_sums(weight, &sums);
    }
}

/// Applies GELU to each element, GPT-2's tanh approximation or the exact one   (Hendrycks & Gimpel 2016).
pub fn gelu_forward(activation: Activation, x: &[f32]) -> Vec<f32> {
    x.iter().map(|&x| gelu(activation, f64::from(x)).0 as f32).collect()
}

/// dx = dy·gelu'(x)
pub fn gelu_backward(activation: Activation, x: &[f32], dy: &[f32]) -> Vec<f32> {
    x.iter().zip(dy).map(|(&x, &dy)| (f64::from(dy) * gelu(activation, f64::from(x)).1) as f32).collect()
}

/// Returns gelu(x) and gelu'(x).
fn gelu(activation: Activation, x: f64) -> (f64, f64) {
    match activation {
        // 0.5·x·(1 + tanh u), u = √(2/π)·(x + 0.044715·x³)
        Activation::GeluNew => {
            let factor = (2.0 / PI).sqrt();
            let t = (factor * (x + 0.044715 * x.powi(3))).tanh();
            let du = factor * (1.0 + 3.0 * 0.044715 * x.powi(2));
            (0.5 * x * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * du)
        }
        // x·Φ(x), Φ the standard normal CDF
        Activation::Gelu => {
            let phi = 0.5 * (1.0 + erf(x * FRAC_1_SQRT_2));
            let density = (-0.5 * x * x).exp() / (2.0 * PI).sqrt();
            (x * phi, phi + x * density)
        }
        Activation::Swiglu => unreachable!("SwiGLU has two inputs"),
    }
}

/// The error function, erf x = 2/√π·e^(−x²)·Σ 2ⁿ·x^(2n+1)/(2n+1)‼   (Abramowitz & Stegun 7.1.6), to 1e-15.
fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut sum, mut term, mut n) = (0.0, x, 0.0);
    while term.abs() > 1e-18 * f64::abs(sum) {
        sum += term;
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
    }
    FRAC_2_SQRT_PI * (-x * x).exp() * sum
}

/// Applies the dropout mask: to activations in the forward pass, to gradients in the backward pass   (Srivastava et al. 2014).
pub fn apply_dropout(dropout: Option<Dropout>, x: &mut [f32]) {
    let Some(dropout) = dropout else { return };
    for (i, x) in x.iter_mut().enumerate() {
        *x *= dropout.factor(i as u32);
    }
}

/// `to += from`
pub fn add(to: &mut [f32], from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
}

/// Σ a·b
pub fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// `sums += scale·row`
pub fn add_scaled(sums: &mut [f64], scale: f64, row: &[f32]) {
    sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += scale * f64::from(x));
}

fn add_sums(to: &mut [f32], sums: &[f64]) {
    to.iter_mut().zip(sums).for_each(|(to, &sum)| *to = (f64::from(*to) + sum) as f32);
}

/// Returns an element of a bias; 0 if there is none.
fn at(bias: &[f32], i: usize) -> f64 {
    bias.get(i).map_or(0.0, |&bias| f64::from(bias))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_and_gelu_have_their_published_values() {
        // Abramowitz & Stegun, table 7.1.
        for (x, expected) in [(0.0, 0.0), (0.5, 0.520_499_877_8), (1.0, 0.842_700_792_9), (2.0, 0.995_322_265_0)] {
            assert!((erf(x) - expected).abs() < 1e-10 && (erf(-x) + expected).abs() < 1e-10, "erf {x} = {}", erf(x));
        }
        assert_eq!([erf(40.0), erf(-40.0)], [1.0, -1.0]);
        assert!((erf(6.0) - 1.0).abs() < 1e-15);
        // torch.nn.functional.gelu(1.0), approximate="tanh" and "none".
        let found = [Activation::GeluNew, Activation::Gelu].map(|activation| gelu(activation, 1.0).0);
        assert!((found[0] - 0.841_191_990_6).abs() < 1e-9 && (found[1] - 0.841_344_746_1).abs() < 1e-9, "{found:?}");
        for activation in [Activation::GeluNew, Activation::Gelu] {
            for x in [-1e30, -7.0, -0.3, 0.0, 2.5, 1e30] {
                let (value, slope) = gelu(activation, x);
                let h = 1e-5 * x.abs().max(1.0);
                let expected = (gelu(activation, x + h).0 - gelu(activation, x - h).0) / (2.0 * h);
                assert!((slope - expected).abs() < 1e-8, "{activation:?} at {x}: {value}, {slope}, {expected}");
            }
        }
    }
}
