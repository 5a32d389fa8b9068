//! The updates: AdamW (Loshchilov & Hutter 2019) and Muon (Jordan et al. 2024), and the norm of the gradients.

use std::ops::Range;

use ngen3_engine::{AdamW, Muon};

use super::groups;
use super::product::{Epilogue, Form, Matrix, product};
use crate::device::{Kernel, Recorder, View, read, write};

/// Sums of squares of a range: [`square_sum`] leaves as many.
pub const PARTIALS: usize = 256;

/// Records Σ x² of a range, as [`PARTIALS`] parts from `at` on in `partials`.
///
/// # Panics
/// If a range is out of bounds.
pub fn square_sum(recorder: &mut Recorder<'_>, x: View<'_>, range: Range<usize>, partials: View<'_>, at: usize) {
    assert!(range.end <= x.len && at + PARTIALS <= partials.len, "{range:?} of {}", x.len);
    let kernel = Kernel { name: "square_sum", source: include_str!("square_sum.wgsl"), constants: &[] };
    let immediates = [range.start, range.len(), at].map(|size| size as u32);
    recorder.dispatch(kernel, &[read(x), write(partials)], &immediates, [PARTIALS, 1, 1]);
}

/// Parameters, gradients and both moments, as long as each other.
#[derive(Clone, Copy)]
pub struct Arrays<'a> {
    /// Parameters.
    pub params: View<'a>,
    /// Gradients, which an update zeroes.
    pub grads: View<'a>,
    /// First moment, or Muon's average.
    pub exp_avg: View<'a>,
    /// Second moment.
    pub exp_avg_sq: View<'a>,
}

/// Records an update of a range with AdamW. The gradients are multiplied by `clip` first.
///
/// # Panics
/// If the range is out of bounds.
pub fn adamw(
    recorder: &mut Recorder<'_>,
    adamw: &AdamW,
    decays: bool,
    clip: f32,
    arrays: Arrays<'_>,
    range: Range<usize>,
) {
    let Arrays { params, grads, exp_avg, exp_avg_sq } = arrays;
    assert!(range.end <= params.len, "{range:?} of {}", params.len);
    [grads, exp_avg, exp_avg_sq].iter().for_each(|array| array.expect(params.len));
    let [lr, beta1, beta2, decay] = [adamw.lr, adamw.beta1, adamw.beta2, adamw.weight_decay].map(f64::from);
    let [correction1, correction2] = [beta1, beta2].map(|beta| 1.0 - beta.powf(adamw.step as f64));
    let keep = if decays { 1.0 - lr * decay } else { 1.0 };
    let values = [
        f64::from(clip),
        beta1,
        beta2,
        1.0 - beta1,
        1.0 - beta2,
        lr / correction1,
        1.0 / correction2.sqrt(),
        f64::from(adamw.eps),
        keep,
    ];
    let immediates: Vec<u32> = [range.start as u32, range.len() as u32]
        .into_iter()
        .chain(values.map(|value| (value as f32).to_bits()))
        .collect();
    let kernel = Kernel { name: "adamw", source: include_str!("adamw.wgsl"), constants: &[] };
    let bindings = [write(params), write(grads), write(exp_avg), write(exp_avg_sq)];
    recorder.dispatch(kernel, &bindings, &immediates, groups(range.len()));
}

/// Working memory of Muon.
#[derive(Clone, Copy)]
pub struct Scratch<'a> {
    /// Two of the largest matrix.
    pub matrices: [View<'a>; 2],
    /// Two squares of its shorter side.
    pub squares: [View<'a>; 2],
    /// [`PARTIALS`] numbers.
    pub partials: View<'a>,
}

/// Records an update with Muon of one matrix, `shape`, from `first` on. The gradients are multiplied by `clip` first.
///
/// # Panics
/// If the matrix or the working memory is too short.
pub fn muon(
    recorder: &mut Recorder<'_>,
    muon: &Muon,
    clip: f32,
    arrays: Arrays<'_>,
    first: usize,
    [rows, columns]: [usize; 2],
    scratch: Scratch<'_>,
) {
    let Arrays { params, grads, exp_avg, .. } = arrays;
    let Scratch { matrices: [mut u, mut other], squares: [gram, polynomial], partials } = scratch;
    let (len, n) = (rows * columns, rows.min(columns));
    assert!(first + len <= params.len && len <= u.len.min(other.len), "[{rows}, {columns}]");
    let stages = [0, 1, 2, 3].map(|stage| [("STAGE", stage)]);
    let step =
        |recorder: &mut Recorder<'_>, stage: usize, views: [View<'_>; 3], sizes: [usize; 3], values: [f32; 3]| {
            let kernel = Kernel { name: "muon", source: include_str!("muon.wgsl"), constants: &stages[stage] };
            let immediates: Vec<u32> =
                sizes.map(|size| size as u32).into_iter().chain(values.map(f32::to_bits)).collect();
            recorder.dispatch(kernel, &views.map(write), &immediates, groups(sizes[1]));
        };
    let momentum = muon.momentum;
    step(recorder, 0, [grads, exp_avg, u], [first, len, 0], [clip, momentum, 1.0 - momentum]);
    square_sum(recorder, u, 0..len, partials, 0);
    step(recorder, 1, [partials, other, u], [0, len, PARTIALS], [Muon::EPS, 0.0, 0.0]);
    for _ in 0..Muon::STEPS {
        let (x, square) = (Matrix::new(u, columns), |view| Matrix::new(view, n));
        let set = Epilogue::Set(None);
        // (x·xᵀ)·x = x·(xᵀ·x): the smaller of the two squares is used.
        let (form, inner) = if rows <= columns { (Form::Nt, columns) } else { (Form::Tn, rows) };
        product(recorder, form, [n, n, inner], 1.0, x, x, square(gram), set);
        product(recorder, Form::Nn, [n, n, n], 1.0, square(gram), square(gram), square(polynomial), set);
        step(recorder, 2, [gram, partials, polynomial], [0, n * n, n], Muon::COEFFICIENTS);
        let to = Matrix::new(other, columns);
        if rows <= columns {
            product(recorder, Form::Nn, [rows, columns, n], 1.0, square(polynomial), x, to, set);
        } else {
            product(recorder, Form::Nn, [rows, columns, n], 1.0, x, square(polynomial), to, set);
        }
        (u, other) = (other, u);
    }
    let keep = (1.0 - f64::from(muon.lr) * f64::from(muon.weight_decay)) as f32;
    step(recorder, 3, [params, other, u], [first, len, 0], [keep, muon.step_size(rows, columns), 0.0]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{close, context, numbers};

    #[test]
    fn adamw_and_the_norm_equal_the_plain_formulas() {
        let Some(context) = context() else { return };
        let (len, range) = (3_001, 64..2_999);
        let [params, grads, exp_avg] = [1, 2, 3].map(|seed| numbers(seed, len));
        let exp_avg_sq: Vec<f32> = numbers(4, len).iter().map(|x| x.abs()).collect();
        let hyper = AdamW { step: 3, lr: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_clip: 1.0 };
        for decays in [false, true] {
            let views = [&params, &grads, &exp_avg, &exp_avg_sq].map(|x| context.upload("arrays", x).unwrap());
            let partials = context.buffer("partial sums", 2 * PARTIALS).unwrap();
            let [params_view, grads_view, exp_avg_view, exp_avg_sq_view] = views.each_ref().map(|view| view.all());
            let arrays =
                Arrays { params: params_view, grads: grads_view, exp_avg: exp_avg_view, exp_avg_sq: exp_avg_sq_view };
            let mut recorder = Recorder::new(context);
            square_sum(&mut recorder, grads_view, range.clone(), partials.all(), PARTIALS);
            adamw(&mut recorder, &hyper, decays, 0.7, arrays, range.clone());
            drop(recorder);
            let mut expected = [&params, &grads, &exp_avg, &exp_avg_sq]
                .map(|array| array.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
            let mut squares = 0.0;
            for i in range.clone() {
                let [p, g, m, v] = expected.each_mut().map(|array| &mut array[i]);
                squares += *g * *g;
                let clipped = *g * 0.7;
                *m = 0.9 * *m + 0.1 * clipped;
                *v = 0.95 * *v + 0.05 * clipped * clipped;
                let (m_hat, v_hat) = (*m / (1.0 - 0.9f64.powi(3)), *v / (1.0 - 0.95f64.powi(3)));
                *p = *p * if decays { 0.999 } else { 1.0 } - 1e-2 * m_hat / (v_hat.sqrt() + 1e-8);
                *g = 0.0;
            }
            for (view, expected) in views.iter().zip(&expected) {
                close("an array", &context.read(view.all()).unwrap(), expected, 1e-6);
            }
            let found: f64 = context.read(partials.all()).unwrap().iter().map(|&x| f64::from(x)).sum();
            assert!((found / squares - 1.0).abs() < 1e-6, "{found}, not {squares}");
        }
    }
}
