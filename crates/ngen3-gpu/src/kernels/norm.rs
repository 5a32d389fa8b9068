//! LayerNorm and RMSNorm (Ba et al. 2016; Zhang & Sennrich 2019), of rows or of the heads within rows.

use super::MAX_GROUPS;
use crate::device::{Kernel, Recorder, View, read, write};

/// Rows that are normalised each by itself.
#[derive(Clone, Copy, Debug)]
pub struct Rows {
    /// Number of tokens.
    pub tokens: usize,
    /// Rows per token.
    pub heads: usize,
    /// Width of a row.
    pub width: usize,
    /// Elements from one token to the next.
    pub stride: usize,
    /// First element of the first row.
    pub first: usize,
}

impl Rows {
    /// One row per token, without gaps.
    pub fn plain(tokens: usize, width: usize) -> Self {
        Self { tokens, heads: 1, width, stride: width, first: 0 }
    }

    /// Number of rows.
    pub fn count(self) -> usize {
        self.tokens * self.heads
    }

    /// Checks that the rows lie within a memory.
    pub(super) fn check(self, view: View<'_>) {
        let Self { tokens, heads, width, stride, first } = self;
        assert!(tokens > 0 && first + heads * width <= stride, "{self:?}");
        assert!(tokens * stride <= view.len, "{self:?} in {} of {}", view.len, view.buffer.what());
    }

    /// Parameters of the kernels.
    pub(super) fn immediates(self) -> [u32; 5] {
        [self.count(), self.width, self.heads, self.stride, self.first].map(|size| size as u32)
    }
}

/// The norm: RMSNorm, or LayerNorm with an optional β.
#[derive(Clone, Copy)]
pub struct Norm<'a> {
    /// True for RMSNorm.
    pub rms: bool,
    /// `[width]`
    pub gamma: View<'a>,
    /// `[width]`
    pub beta: Option<View<'a>>,
    /// ε
    pub eps: f32,
}

/// Destination of the gradient.
#[derive(Clone, Copy)]
pub enum Gradient<'a> {
    /// dx += gradient, given dy.
    Add {
        /// Gradient of the output.
        dy: View<'a>,
    },
    /// dx = gradient, given dy.
    Set {
        /// Gradient of the output.
        dy: View<'a>,
    },
    /// dx holds dy, and is replaced.
    InPlace,
}

/// Records y = norm(x) and `stats`, `[rows, 2]`.
///
/// # Panics
/// If a length is wrong.
pub fn forward(recorder: &mut Recorder<'_>, norm: Norm<'_>, rows: Rows, x: View<'_>, y: View<'_>, stats: View<'_>) {
    rows.check(x);
    let bindings = [read(x), read(norm.gamma), read(norm.beta.unwrap_or(norm.gamma)), write(y), write(stats)];
    dispatch(recorder, norm, rows, [0, 0], y, stats, &bindings);
}

/// Records the gradient of the input, given `x` and `stats` of the forward pass.
///
/// # Panics
/// If a length is wrong.
pub fn backward(
    recorder: &mut Recorder<'_>,
    norm: Norm<'_>,
    rows: Rows,
    x: View<'_>,
    stats: View<'_>,
    gradient: Gradient<'_>,
    dx: View<'_>,
) {
    rows.check(x);
    let (mode, dy) = match gradient {
        Gradient::Set { dy } => (0, dy),
        Gradient::Add { dy } => (1, dy),
        Gradient::InPlace => (2, x),
    };
    rows.check(dy);
    dispatch(
        recorder,
        norm,
        rows,
        [1, mode],
        dx,
        stats,
        &[read(x), read(norm.gamma), read(dy), write(dx), write(stats)],
    );
}

fn dispatch(
    recorder: &mut Recorder<'_>,
    norm: Norm<'_>,
    rows: Rows,
    [backward, mode]: [u32; 2],
    out: View<'_>,
    stats: View<'_>,
    bindings: &[crate::device::Binding<'_>],
) {
    rows.check(out);
    stats.expect(2 * rows.count());
    norm.gamma.expect(rows.width);
    if let Some(beta) = norm.beta {
        beta.expect(rows.width);
    }
    let constants = [
        ("RMS", u32::from(norm.rms)),
        ("BETA", u32::from(norm.beta.is_some())),
        ("BACKWARD", backward),
        ("MODE", mode),
    ];
    let kernel = Kernel { name: "norm", source: include_str!("norm.wgsl"), constants: &constants };
    let immediates = [&rows.immediates()[..], &[norm.eps.to_bits()]].concat();
    recorder.dispatch(kernel, bindings, &immediates, [rows.count().min(MAX_GROUPS), 1, 1]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{close, context, numbers};

    /// Mean and 1/√(variance + ε) of a row.
    fn stats(x: &[f32], rms: bool, eps: f32) -> [f64; 2] {
        let n = x.len() as f64;
        let mean = if rms { 0.0 } else { x.iter().map(|&x| f64::from(x)).sum::<f64>() / n };
        let variance = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
        [mean, 1.0 / (variance + f64::from(eps)).sqrt()]
    }

    #[test]
    fn norms_and_their_gradients_equal_the_plain_formulas() {
        let Some(context) = context() else { return };
        let eps = 1e-3;
        for (rows, rms) in [
            (Rows::plain(1, 1), false),
            (Rows::plain(5, 131), false),
            (Rows::plain(3, 70), true),
            (Rows { tokens: 7, heads: 3, width: 10, stride: 57, first: 4 }, true),
        ] {
            let (width, len) = (rows.width, rows.tokens * rows.stride);
            let (x, dy, gamma, beta) = (numbers(1, len), numbers(2, len), numbers(3, width), numbers(4, width));
            let old = numbers(5, len);
            let upload = |values: &[f32]| context.upload("rows", values).unwrap();
            let [x_view, dy_view, gamma_view, beta_view] = [&x, &dy, &gamma, &beta].map(|values| upload(values));
            let beta_used = if rms { None } else { Some(beta_view.all()) };
            let norm = Norm { rms, gamma: gamma_view.all(), beta: beta_used, eps };
            let saved = context.buffer("statistics", 2 * rows.count()).unwrap();
            let [y, set, add, in_place] = [&old, &old, &old, &dy].map(|values| upload(values));
            let mut recorder = Recorder::new(context);
            forward(&mut recorder, norm, rows, x_view.all(), y.all(), saved.all());
            for (gradient, dx) in [
                (Gradient::Set { dy: dy_view.all() }, &set),
                (Gradient::Add { dy: dy_view.all() }, &add),
                (Gradient::InPlace, &in_place),
            ] {
                backward(&mut recorder, norm, rows, x_view.all(), saved.all(), gradient, dx.all());
            }
            drop(recorder);
            // Elements between the rows stay.
            let f64s = |values: &[f32]| values.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
            let (mut expected_y, mut expected_add, mut expected_in_place) = (f64s(&old), f64s(&old), f64s(&dy));
            for row in 0..rows.count() {
                let base = rows.first + row / rows.heads * rows.stride + row % rows.heads * width;
                let [mean, rstd] = stats(&x[base..base + width], rms, eps);
                let x_hat = |i: usize| (f64::from(x[base + i]) - mean) * rstd;
                let g = |i: usize| f64::from(dy[base + i]) * f64::from(gamma[i]);
                let mean_g = if rms { 0.0 } else { (0..width).map(g).sum::<f64>() / width as f64 };
                let mean_gx = (0..width).map(|i| g(i) * x_hat(i)).sum::<f64>() / width as f64;
                for i in 0..width {
                    expected_y[base + i] = x_hat(i) * f64::from(gamma[i]) + if rms { 0.0 } else { f64::from(beta[i]) };
                    let dx = rstd * (g(i) - mean_g - x_hat(i) * mean_gx);
                    expected_in_place[base + i] = dx;
                    expected_add[base + i] += dx;
                }
            }
            let found = |buffer: &crate::device::Buffer| context.read(buffer.all()).unwrap();
            close("y", &found(&y), &expected_y, 3e-6);
            close("dx, added", &found(&add), &expected_add, 3e-6);
            close("dx, in place", &found(&in_place), &expected_in_place, 3e-6);
            if rows.heads == 1 {
                assert_eq!(found(&set), found(&in_place), "dx, set");
            }
        }
    }
}
