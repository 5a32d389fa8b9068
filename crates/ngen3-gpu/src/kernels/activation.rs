//! The MLP's activation: GELU, exact or with tanh (Hendrycks & Gimpel 2016), or SwiGLU (Shazeer 2020).

use ngen3_model::Activation;

use super::groups;
use crate::device::{Kernel, Recorder, View, read, write};

/// Records hidden = activation(fc). `fc`: `[rows, fc_width]`; `hidden`: `[rows, width]`.
///
/// # Panics
/// If a length is wrong.
pub fn forward(recorder: &mut Recorder<'_>, activation: Activation, width: usize, fc: View<'_>, hidden: View<'_>) {
    fc.expect(hidden.len * inputs(activation));
    dispatch(recorder, activation, 0, width, hidden.len, &[read(fc), read(fc), write(hidden)]);
}

/// Records dfc, given the gradient of the output.
///
/// # Panics
/// If a length is wrong.
pub fn backward(
    recorder: &mut Recorder<'_>,
    activation: Activation,
    width: usize,
    fc: View<'_>,
    dhidden: View<'_>,
    dfc: View<'_>,
) {
    fc.expect(dhidden.len * inputs(activation));
    dfc.expect(fc.len);
    dispatch(recorder, activation, 1, width, dhidden.len, &[read(fc), read(dhidden), write(dfc)]);
}

fn inputs(activation: Activation) -> usize {
    if activation == Activation::Swiglu { 2 } else { 1 }
}

fn dispatch(
    recorder: &mut Recorder<'_>,
    activation: Activation,
    backward: u32,
    width: usize,
    len: usize,
    bindings: &[crate::device::Binding<'_>],
) {
    assert!(len.is_multiple_of(width), "{len} elements in rows of {width}");
    let kind = match activation {
        Activation::GeluNew => 0,
        Activation::Gelu => 1,
        Activation::Swiglu => 2,
    };
    let constants = [("KIND", kind), ("BACKWARD", backward)];
    let kernel = Kernel { name: "activation", source: include_str!("activation.wgsl"), constants: &constants };
    recorder.dispatch(kernel, bindings, &[(len / width) as u32, width as u32], groups(len));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{close, context, numbers};

    /// erf by its series (Abramowitz & Stegun 7.1.6).
    fn erf(x: f64) -> f64 {
        if x.abs() > 6.0 {
            return x.signum();
        }
        let (mut sum, mut term, mut n) = (0.0, x, 0.0);
        while f64::abs(term) > 1e-18 * f64::abs(sum) {
            sum += term;
            n += 1.0;
            term *= 2.0 * x * x / (2.0 * n + 1.0);
        }
        std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum
    }

    fn plain(activation: Activation, x: f64) -> f64 {
        match activation {
            Activation::GeluNew => {
                0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
            }
            Activation::Gelu => 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)),
            Activation::Swiglu => x / (1.0 + (-x).exp()),
        }
    }

    /// Slope by central differences.
    fn slope(activation: Activation, x: f64) -> f64 {
        let h = 1e-5 * x.abs().max(1.0);
        (plain(activation, x + h) - plain(activation, x - h)) / (2.0 * h)
    }

    #[test]
    fn activations_and_their_gradients_equal_the_plain_formulas() {
        let Some(context) = context() else { return };
        for activation in [Activation::GeluNew, Activation::Gelu, Activation::Swiglu] {
            let (rows, width) = (3, 401);
            let mut fc: Vec<f32> = numbers(1, rows * width * inputs(activation)).iter().map(|x| 6.0 * x).collect();
            fc[..4].copy_from_slice(&[0.0, -30.0, 30.0, 1e4]);
            let dy = numbers(2, rows * width);
            let upload = |values: &[f32]| context.upload("fc", values).unwrap();
            let (fc_view, dy_view) = (upload(&fc), upload(&dy));
            let (hidden, dfc) = (context.buffer("hidden", dy.len()).unwrap(), context.buffer("dfc", fc.len()).unwrap());
            let mut recorder = Recorder::new(context);
            forward(&mut recorder, activation, width, fc_view.all(), hidden.all());
            backward(&mut recorder, activation, width, fc_view.all(), dy_view.all(), dfc.all());
            drop(recorder);
            let (mut y, mut dx) = (vec![0.0; dy.len()], vec![0.0; fc.len()]);
            for i in 0..dy.len() {
                let d = f64::from(dy[i]);
                if activation == Activation::Swiglu {
                    let at = i / width * 2 * width + i % width;
                    let (gate, up) = (f64::from(fc[at]), f64::from(fc[at + width]));
                    y[i] = plain(activation, gate) * up;
                    (dx[at], dx[at + width]) = (d * up * slope(activation, gate), d * plain(activation, gate));
                } else {
                    y[i] = plain(activation, f64::from(fc[i]));
                    dx[i] = d * slope(activation, f64::from(fc[i]));
                }
            }
            // The large inputs apart, so that they do not widen the tolerance of the others.
            let (found_y, found_dx) = (context.read(hidden.all()).unwrap(), context.read(dfc.all()).unwrap());
            close(&format!("{activation:?}"), &found_y[4..], &y[4..], 1e-6);
            close(&format!("{activation:?}, large"), &found_y[..4], &y[..4], 1e-6);
            close(&format!("{activation:?}, gradient"), &found_dx[..width], &dx[..width], 3e-6);
            close(&format!("{activation:?}, gradient of the rest"), &found_dx[width..], &dx[width..], 3e-6);
        }
    }
}
