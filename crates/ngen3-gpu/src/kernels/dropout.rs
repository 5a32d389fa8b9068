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

/// y = x·mask: of activations in the forward pass, of gradients in the backward pass.
///
/// # Panics
/// If the lengths differ.
pub fn apply(recorder: &mut Recorder<'_>, x: View<'_>, mask: Mask, y: View<'_>) {
    y.expect(x.len);
    let source = concat!(include_str!("mask.wgsl"), include_str!("dropout.wgsl"));
    let Mask([threshold, scale, key_0, key_1]) = mask;
    let immediates = [x.len as u32, threshold, scale, key_0, key_1];
    let kernel = Kernel { name: "dropout", source, constants: &[] };
    recorder.dispatch(kernel, &[read(x), write(y)], &immediates, groups(x.len));
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
            apply(&mut Recorder::new(context), from.all(), Mask::new(dropout), to.all());
            let factor = |i| dropout.map_or(1.0, |dropout| dropout.factor(i as u32));
            let expected: Vec<f32> = x.iter().enumerate().map(|(i, x)| x * factor(i)).collect();
            assert_eq!(context.read(to.all()).unwrap(), expected, "p = {p}");
        }
    }
}
