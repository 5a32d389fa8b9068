//! Dropout: [`Mask`], which other kernels apply too, and [`apply`].

use ngen3_engine::Dropout;

use super::groups;
use crate::device::{Kernel, Recorder, View, read, write};

/// The parameters of `mask.wgsl`'s `dropout_factor`.
#[derive(Clone, Copy, Debug)]
pub struct Mask(pub [u32; 4]);

impl Mask {
    /// Drops nothing.
    pub const NONE: Self = Self([0, 1f32.to_bits(), 0, 0]);

    /// Returns the mask of a site.
    pub fn new(dropout: Option<Dropout>) -> Self {
        dropout.map_or(Self::NONE, |dropout| {
            let (threshold, scale, [key_0, key_1]) = dropout.parts();
            Self([threshold, scale.to_bits(), key_0, key_1])
        })
    }
}

/// Records y = x·mask: of gradients in the backward pass. With a residual, y = residual + x·mask: the end of a branch.
///
/// # Panics
/// If the lengths differ.
pub fn apply(recorder: &mut Recorder<'_>, x: View<'_>, mask: Mask, residual: Option<View<'_>>, y: View<'_>) {
    y.expect(x.len);
    if let Some(residual) = residual {
        residual.expect(x.len);
    }
    let source = concat!(include_str!("mask.wgsl"), include_str!("dropout.wgsl"));
    let Mask([threshold, scale, key_0, key_1]) = mask;
    let immediates = [x.len as u32, threshold, scale, key_0, key_1];
    let constants = [("RESIDUAL", u32::from(residual.is_some()))];
    let kernel = Kernel { name: "dropout", source, constants: &constants };
    recorder.dispatch(kernel, &[read(x), read(residual.unwrap_or(x)), write(y)], &immediates, groups(x.len));
}

#[cfg(test)]
mod tests {
    use ngen3_engine::DropoutSite;

    use super::*;
    use crate::kernels::testing::{context, numbers};

    #[test]
    fn masks_are_those_of_every_engine() {
        let Some(context) = context() else { return };
        let x = numbers(1, 70_001);
        for p in [0.0, 0.1, 0.7] {
            let dropout = Dropout::new(p, 5, DropoutSite::MlpProjection(2));
            let (from, to) = (context.upload("x", &x).unwrap(), context.buffer("y", x.len()).unwrap());
            apply(&mut Recorder::new(context), from.all(), Mask::new(dropout), None, to.all());
            let factor = |i| dropout.map_or(1.0, |dropout| dropout.factor(i as u32));
            let expected: Vec<f32> = x.iter().enumerate().map(|(i, x)| x * factor(i)).collect();
            assert_eq!(context.read(to.all()).unwrap(), expected, "p = {p}");
            apply(&mut Recorder::new(context), from.all(), Mask::new(dropout), Some(from.all()), to.all());
            let expected: Vec<f32> = x.iter().zip(&expected).map(|(x, y)| x + y).collect();
            let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-6;
            assert!(context.read(to.all()).unwrap().iter().zip(&expected).all(close), "with a residual, p = {p}");
        }
    }
}
