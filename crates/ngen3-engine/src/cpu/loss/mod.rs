//! Fused linear cross entropy: the final projection and −log softmax(hidden·wteᵀ)[target] of each token.
//!
//! `hidden`: [tokens, width], after `ln_f`; `wte`: [vocab_size, width]; `targets`: [tokens]; `losses`: [tokens].
//!
//! The logits of all tokens are never formed (at 8,192 tokens they would take 1.6 GB, their gradient as much again): a block
//! of tokens at a time goes through its logits, its softmax and both of its products backward. `exact.rs` does this in f32
//! and reads easily; `bf16.rs` does the same in the order that the bf16 kernels like.

mod bf16;
mod exact;

use crate::gemm::Precision;
use crate::profile::{Part, timed};

/// The sizes of one loss, and in what precision it multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    precision: Precision,
    sizes: bf16::Shape,
}

/// Where gradients go.
pub struct Gradients<'a> {
    /// What they are multiplied by.
    pub weight: f32,
    /// `[tokens, width]`: set.
    pub dhidden: &'a mut [f32],
    /// `[vocab_size, width]`: added to.
    pub dwte: &'a mut [f32],
}

impl Shape {
    /// A pass of `tokens` tokens.
    pub fn new(precision: Precision, tokens: usize, width: usize, vocab_size: usize) -> Self {
        Self { precision, sizes: bf16::Shape { tokens, width, vocab_size } }
    }

    /// f32s that [`pack_wte`] fills.
    pub fn packed_wte(&self) -> usize {
        match self.precision {
            Precision::F32 => 0,
            Precision::Bf16 => self.sizes.packed_wte(),
        }
    }

    /// f32s that [`run`] needs besides.
    pub fn scratch(&self) -> usize {
        match self.precision {
            Precision::F32 => exact::scratch(self.sizes.tokens, self.sizes.width, self.sizes.vocab_size),
            Precision::Bf16 => self.sizes.scratch(),
        }
    }
}

/// Lays out the embeddings as [`run`] reads them; to be called when they have changed.
pub fn pack_wte(shape: Shape, wte: &[f32], packed: &mut [f32]) {
    let _timed = timed(Part::Loss);
    match shape.precision {
        Precision::F32 => {}
        Precision::Bf16 => bf16::pack_wte(shape.sizes, wte, packed),
    }
}

/// Fills `losses` and, where asked, the gradients of their sum. `wte` comes plain and packed.
pub fn run(
    shape: Shape,
    hidden: &[f32],
    wte: (&[f32], &[f32]),
    targets: &[u32],
    losses: &mut [f32],
    gradients: Option<Gradients<'_>>,
    scratch: &mut [f32],
) {
    let _timed = timed(Part::Loss);
    match shape.precision {
        Precision::F32 => exact::run(hidden, wte.0, targets, losses, gradients, scratch),
        Precision::Bf16 => bf16::run(shape.sizes, hidden, wte, targets, losses, gradients, scratch),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::{check_gradient, random};

    /// The definition, in f64.
    fn reference(hidden: &[f32], wte: &[f32], targets: &[u32]) -> Vec<f64> {
        let width = hidden.len() / targets.len();
        hidden
            .chunks_exact(width)
            .zip(targets)
            .map(|(h, &target)| {
                let logit = |w: &[f32]| h.iter().zip(w).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
                let logits: Vec<f64> = wte.chunks_exact(width).map(logit).collect();
                let largest = logits.iter().fold(f64::MIN, |a, &b| a.max(b));
                let sum = logits.iter().map(|l| (l - largest).exp()).sum::<f64>();
                sum.ln() + largest - logits[target as usize]
            })
            .collect()
    }

    struct Case {
        shape: Shape,
        hidden: Vec<f32>,
        wte: Vec<f32>,
        targets: Vec<u32>,
    }

    impl Case {
        fn new(precision: Precision, tokens: usize, width: usize, vocab_size: usize) -> Self {
            Self {
                shape: Shape::new(precision, tokens, width, vocab_size),
                hidden: random(tokens * width, 1),
                // Logits of a spread that does not grow with the width.
                wte: random(vocab_size * width, 2).iter().map(|w| w * 3.0 / (width as f32).sqrt()).collect(),
                targets: (0..tokens as u32).map(|t| t * 31 % vocab_size as u32).collect(),
            }
        }

        /// Losses, and with them the gradients of half their sum, where asked.
        fn run(&self, with_gradients: bool) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
            let mut packed = vec![f32::NAN; self.shape.packed_wte()];
            pack_wte(self.shape, &self.wte, &mut packed);
            let mut losses = vec![f32::NAN; self.targets.len()];
            let (mut dhidden, mut dwte) = (vec![f32::NAN; self.hidden.len()], vec![0.0; self.wte.len()]);
            let gradients = Gradients { weight: 0.5, dhidden: &mut dhidden, dwte: &mut dwte };
            let gradients = with_gradients.then_some(gradients);
            let mut scratch = vec![f32::NAN; self.shape.scratch()];
            run(self.shape, &self.hidden, (&self.wte, &packed), &self.targets, &mut losses, gradients, &mut scratch);
            (losses, dhidden, dwte)
        }
    }

    #[test]
    fn exact_losses_and_gradients_match_the_definition() {
        for (tokens, width, vocab_size) in [(5, 12, 97), (1, 3, 2), (1030, 4, 301)] {
            let case = Case::new(Precision::F32, tokens, width, vocab_size);
            let (losses, dhidden, dwte) = case.run(true);
            let Case { hidden, wte, targets, .. } = &case;
            for (found, expected) in losses.iter().zip(reference(hidden, wte, targets)) {
                assert!((f64::from(*found) - expected).abs() < 1e-4, "{found}, not {expected}");
            }
            assert_eq!(losses, case.run(false).0);
            if tokens < 100 {
                let loss = |hidden: &[f32], wte: &[f32]| 0.5 * reference(hidden, wte, targets).iter().sum::<f64>();
                check_gradient(hidden, &dhidden, |hidden| loss(hidden, wte));
                check_gradient(wte, &dwte, |wte| loss(hidden, wte));
            }
        }
    }

    #[test]
    fn bf16_follows_the_exact_loss_over_segments_blocks_and_odd_sizes() {
        let distance = |a: &[f32], b: &[f32]| {
            let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
            norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
        };
        for (tokens, width, vocab_size) in [(5, 12, 97), (1, 3, 2), (70, 33, 7001), (33, 5000, 50)] {
            let case = Case::new(Precision::Bf16, tokens, width, vocab_size);
            let (losses, dhidden, dwte) = case.run(true);
            let exact = Case::new(Precision::F32, tokens, width, vocab_size).run(true);
            assert_eq!(losses, case.run(false).0);
            for (found, expected) in losses.iter().zip(&exact.0) {
                assert!((found - expected).abs() < 0.02, "{found}, not {expected}");
            }
            let (dh, dw) = (distance(&dhidden, &exact.1), distance(&dwte, &exact.2));
            assert!(dh < 0.02 && dw < 0.02, "{tokens} x {width} x {vocab_size}: {dh}, {dw}");
        }
    }

    #[test]
    fn huge_logits_do_not_overflow() {
        let case = Case {
            hidden: vec![300.0, -300.0],
            wte: vec![300.0, 0.0, 0.0, 300.0, 1.0, 1.0],
            targets: vec![1],
            shape: Shape::new(Precision::F32, 1, 2, 3),
        };
        assert!((case.run(true).0[0] - 180_000.0).abs() < 1.0);
        // In bf16 a loss is cut off at 80 nats, and the gradient still points away from the wrong word.
        let case = Case { shape: Shape::new(Precision::Bf16, 1, 2, 3), ..case };
        let (losses, dhidden, _) = case.run(true);
        assert!((79.0..82.0).contains(&losses[0]) && dhidden[0] > 0.0 && dhidden[1] < 0.0, "{losses:?} {dhidden:?}");
    }
}
