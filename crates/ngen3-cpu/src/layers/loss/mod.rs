//! Fused linear cross-entropy: the final projection and −log softmax(hidden·wteᵀ)[target] of each token.
//!
//! `hidden`: [tokens, width], after `ln_f`; `wte`: [vocab_size, width]; `targets`: [tokens]; `losses`: [tokens].
//!
//! The logits of all tokens are never formed (8,192 tokens would take 1.6 GB, and as much again for the gradient). Instead, one
//! block of tokens at a time goes through logits, softmax and both backward products. `plain.rs` does this with f32 products on
//! any processor and is the easiest to read. `fused.rs` does it in an order that suits our own kernels. `strassen/` computes
//! f32 gradients with 7/8 of the multiplications. `distill.rs` adds a teacher's logits. `tiling.rs` is shared by these three.

mod distill;
mod fused;
mod gradients;
mod plain;
mod soft_targets;
mod strassen;
mod tiling;

use crate::base::memory::Buffer;
use crate::base::profile::{Part, timed};
use crate::gemm::{Precision, tiles};
use crate::layers::embedding::Table;
use distill::Head;
use ngen3_engine::{Error, Quant};

pub use distill::Losses;
pub use gradients::{Gradients, Wanted};
pub use soft_targets::{Distill, Teacher};
pub use tiling::Sizes;

/// Elements per cell of an operand.
const F32: usize = 1;
const BF16: usize = 2;

/// Sizes and algorithm of one loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    algorithm: Algorithm,
    sizes: Sizes,
    wanted: Wanted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Algorithm {
    Plain,
    /// f32 without gradients.
    FusedF32,
    FusedBf16,
    /// f32 with gradients.
    Strassen,
}

impl Shape {
    /// Chooses the algorithm. Without gradients, a token's loss does not depend on the other tokens of the pass.
    pub fn new(precision: Precision, sizes: Sizes, wanted: Wanted) -> Self {
        let backward = wanted != Wanted::Losses;
        let algorithm = match precision {
            Precision::F32 if tiles::kernel::available_f32() && backward => Algorithm::Strassen,
            Precision::F32 if tiles::kernel::available_f32() => Algorithm::FusedF32,
            Precision::F32 => Algorithm::Plain,
            Precision::Bf16 => Algorithm::FusedBf16,
        };
        Self { algorithm, sizes, wanted }
    }

    /// Returns the shape without its number of tokens, on which the packed embeddings do not depend.
    pub fn for_any_tokens(self) -> Self {
        Self { sizes: Sizes { tokens: 0, ..self.sizes }, ..self }
    }

    fn in_f32(&self) -> fused::FusedTiling<F32> {
        fused::FusedTiling::new(self.sizes, Wanted::Losses)
    }

    fn in_bf16(&self) -> fused::FusedTiling<BF16> {
        fused::FusedTiling::new(self.sizes, self.wanted)
    }

    /// Length in f32 of the packed embeddings: see [`pack_wte`].
    pub fn packed_wte(&self) -> usize {
        match self.algorithm {
            Algorithm::Plain => 0,
            Algorithm::FusedF32 => self.in_f32().packed_wte(),
            Algorithm::FusedBf16 => self.in_bf16().packed_wte(),
            Algorithm::Strassen => strassen::packed_wte(self.sizes),
        }
    }

    /// Length in f32 of the scratch memory of [`run`].
    pub fn scratch(&self) -> usize {
        let Sizes { tokens, width, vocab_size } = self.sizes;
        match self.algorithm {
            Algorithm::Plain => plain::scratch(tokens, width, vocab_size),
            Algorithm::FusedF32 => self.in_f32().scratch(),
            Algorithm::FusedBf16 => self.in_bf16().scratch(),
            Algorithm::Strassen => strassen::scratch(self.sizes),
        }
    }
}

/// Packs the embeddings, `[vocab_size, width]`, as [`run`] reads them. Call it whenever they have changed.
pub fn pack_wte(shape: Shape, wte: &[f32], packed: &mut [f32]) {
    let _timed = timed(Part::Loss);
    match shape.algorithm {
        Algorithm::Plain => {}
        Algorithm::FusedF32 => shape.in_f32().pack_wte(wte, packed),
        Algorithm::FusedBf16 => shape.in_bf16().pack_wte(wte, packed),
        Algorithm::Strassen => strassen::pack_wte(shape.sizes, wte, packed),
    }
}

/// Fills `losses` and, if the shape has gradients, the gradients of their sum. `wte` is given as a table and packed.
///
/// # Panics
/// If `gradients` does not match the shape, or in f32 the table is not plain.
pub fn run(
    shape: Shape,
    hidden: &[f32],
    wte: (Table<'_>, &[f32]),
    targets: &[u32],
    losses: &mut [f32],
    gradients: Option<Gradients<'_>>,
    scratch: &mut [f32],
) {
    let _timed = timed(Part::Loss);
    let wanted = match &gradients {
        None => Wanted::Losses,
        Some(Gradients { dwte: None, .. }) => Wanted::Dhidden,
        Some(_) => Wanted::All,
    };
    assert_eq!(wanted, shape.wanted, "gradients requested and planned");
    match (shape.algorithm, gradients) {
        (Algorithm::Plain, gradients) => plain::run(hidden, wte.0.plain(), targets, losses, gradients, scratch),
        (Algorithm::FusedBf16, gradients) => {
            fused::run(shape.in_bf16(), hidden, wte, targets, losses, gradients, scratch)
        }
        (Algorithm::Strassen, Some(gradients)) => {
            strassen::run(shape.sizes, hidden, wte, targets, losses, gradients, scratch);
        }
        (Algorithm::FusedF32 | Algorithm::Strassen, _) => {
            fused::run(shape.in_f32(), hidden, wte, targets, losses, None, scratch)
        }
    }
}

/// Length in f32 to which the `memory` of [`distill`] grows with a teacher of this width.
pub fn distill_numbers(precision: Precision, sizes: Sizes, teacher_width: usize, quant: Quant) -> usize {
    let head = Some(Head { width: teacher_width, vocab_size: sizes.vocab_size, quant });
    match precision {
        Precision::F32 => distill::numbers::<F32>(sizes, head),
        Precision::Bf16 => distill::numbers::<BF16>(sizes, head),
    }
}

/// Fills the distillation losses and, if requested, the gradients of their weighted sum. `memory` grows as needed.
///
/// # Errors
/// [`Error::Memory`] if it cannot be allocated.
#[expect(clippy::too_many_arguments, reason = "the operands of the loss, each of which the caller has at hand")]
pub fn distill(
    precision: Precision,
    sizes: Sizes,
    hidden: &[f32],
    wte: &[f32],
    targets: &[u32],
    distill: &Distill<'_>,
    losses: Losses<'_>,
    gradients: Option<Gradients<'_>>,
    memory: &mut Buffer,
) -> Result<(), Error> {
    let _timed = timed(Part::Loss);
    match precision {
        Precision::F32 => distill::run::<F32>(sizes, hidden, wte, targets, distill, losses, gradients, memory),
        Precision::Bf16 => distill::run::<BF16>(sizes, hidden, wte, targets, distill, losses, gradients, memory),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::testing::{check_gradient, random};

    /// Returns the losses by their definition, in f64.
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
        fn new(algorithm: Algorithm, tokens: usize, width: usize, vocab_size: usize) -> Self {
            Self {
                shape: Shape { algorithm, sizes: Sizes { tokens, width, vocab_size }, wanted: Wanted::All },
                hidden: random(tokens * width, 1),
                // The spread of the logits does not grow with the width.
                wte: random(vocab_size * width, 2).iter().map(|w| w * 3.0 / (width as f32).sqrt()).collect(),
                targets: (0..tokens as u32).map(|t| t * 31 % vocab_size as u32).collect(),
            }
        }

        /// Returns the losses and, if requested, the gradients of half their sum.
        fn run(&self, with_gradients: bool) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
            self.run_with(with_gradients, true)
        }

        fn run_with(&self, with_gradients: bool, with_dwte: bool) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
            let wanted = match (with_gradients, with_dwte) {
                (false, _) => Wanted::Losses,
                (true, false) => Wanted::Dhidden,
                (true, true) => Wanted::All,
            };
            let shape = Shape { wanted, ..self.shape };
            let mut packed = vec![f32::NAN; shape.packed_wte()];
            pack_wte(shape, &self.wte, &mut packed);
            let mut losses = vec![f32::NAN; self.targets.len()];
            let (mut dhidden, mut dwte) = (vec![f32::NAN; self.hidden.len()], vec![0.0; self.wte.len()]);
            let gradients = Gradients { weight: 0.5, dhidden: &mut dhidden, dwte: with_dwte.then_some(&mut dwte[..]) };
            let gradients = with_gradients.then_some(gradients);
            let mut scratch = vec![f32::NAN; shape.scratch()];
            run(
                shape,
                &self.hidden,
                (Table::Plain(&self.wte), &packed),
                &self.targets,
                &mut losses,
                gradients,
                &mut scratch,
            );
            (losses, dhidden, dwte)
        }
    }

    #[test]
    fn losses_and_gradients_in_f32_match_the_definition() {
        for (tokens, width, vocab_size) in [(5, 12, 97), (1, 3, 2), (1030, 4, 301)] {
            for algorithm in [Algorithm::Plain, Algorithm::FusedF32, Algorithm::Strassen] {
                let case = Case::new(algorithm, tokens, width, vocab_size);
                let (losses, dhidden, dwte) = case.run(algorithm != Algorithm::FusedF32);
                let Case { hidden, wte, targets, .. } = &case;
                for (found, expected) in losses.iter().zip(reference(hidden, wte, targets)) {
                    assert!((f64::from(*found) - expected).abs() < 1e-5, "expected {expected}, got {found}");
                }
                if algorithm == Algorithm::Plain {
                    assert_eq!(losses, case.run(false).0);
                }
                if tokens < 100 && algorithm != Algorithm::FusedF32 {
                    let loss = |hidden: &[f32], wte: &[f32]| 0.5 * reference(hidden, wte, targets).iter().sum::<f64>();
                    check_gradient(hidden, &dhidden, |hidden| loss(hidden, wte));
                    check_gradient(wte, &dwte, |wte| loss(hidden, wte));
                }
            }
        }
    }

    #[test]
    fn the_fused_algorithms_follow_the_plain_one_over_segments_blocks_and_odd_sizes() {
        let distance = |a: &[f32], b: &[f32]| {
            let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
            norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
        };
        for (tokens, width, vocab_size) in
            [(5, 12, 97), (1, 3, 2), (70, 33, 7001), (33, 5000, 50), (300, 700, 130), (65, 1, 2), (3, 2, 25)]
        {
            let plain = Case::new(Algorithm::Plain, tokens, width, vocab_size).run(true);
            for (algorithm, loss_tolerance, tolerance) in [
                (Algorithm::FusedBf16, 0.02, 0.02),
                (Algorithm::FusedF32, 2e-5, 2e-5),
                (Algorithm::Strassen, 2e-5, 2e-5),
            ] {
                let case = Case::new(algorithm, tokens, width, vocab_size);
                let with_gradients = algorithm != Algorithm::FusedF32;
                let (losses, dhidden, dwte) = case.run(with_gradients);
                if algorithm == Algorithm::FusedBf16 {
                    assert_eq!(losses, case.run(false).0);
                }
                for (found, expected) in losses.iter().zip(&plain.0) {
                    assert!((found - expected).abs() < loss_tolerance, "expected {expected}, got {found}");
                }
                if !with_gradients {
                    continue;
                }
                let (dh, dw) = (distance(&dhidden, &plain.1), distance(&dwte, &plain.2));
                assert!(
                    dh < tolerance && dw < tolerance,
                    "{algorithm:?} {tokens} x {width} x {vocab_size}: {dh}, {dw}"
                );
            }
        }
    }

    #[test]
    fn a_token_that_is_known_loses_no_precision_to_one_that_is_a_surprise() {
        let mut case = Case::new(Algorithm::Plain, 128, 32, 500);
        // Some logits are nearly equal, others so far apart that losses reach 50 nats.
        for (t, hidden) in case.hidden.chunks_exact_mut(32).enumerate() {
            let scale = if t % 3 == 0 { 0.1 } else { 8.0 };
            hidden.iter_mut().for_each(|h| *h *= scale);
        }
        let (expected, dhidden, dwte) = case.run(true);
        assert!(expected.iter().any(|&loss| loss < 10.0) && expected.iter().any(|&loss| loss > 40.0), "{expected:?}");
        case.shape.algorithm = Algorithm::Strassen;
        let (losses, found, found_dwte) = case.run(true);
        for t in 0..128 {
            assert!((losses[t] - expected[t]).abs() < 1e-4, "token {t}: expected {}, got {}", expected[t], losses[t]);
            let of = |d: &[f32]| d[t * 32..][..32].to_vec();
            let (found, expected) = (of(&found), of(&dhidden));
            let largest = expected.iter().fold(0.0f32, |largest, d| largest.max(d.abs()));
            for (found, expected) in found.iter().zip(&expected) {
                assert!((found - expected).abs() < 1e-4 * largest, "token {t}: expected {expected}, got {found}");
            }
        }
        // A word's gradient is as precise as that of the word, one panel away, that it is added to.
        let row = |d: &[f32], word: usize| d[word * 32..][..32].to_vec();
        let largest = |word| row(&dwte, word).iter().fold(0.0f32, |largest, d| largest.max(d.abs()));
        for word in 0..500 {
            let (pair, place) = (word / 24 * 24, word % 24);
            let other = (pair + (place + 12) % 24).min(499);
            for (found, expected) in row(&found_dwte, word).iter().zip(row(&dwte, word)) {
                let tolerance = 1e-4 * largest(word).max(largest(other));
                assert!((found - expected).abs() < tolerance, "word {word}: expected {expected}, got {found}");
            }
        }
    }

    #[test]
    fn in_bf16_the_rounding_of_a_word_cancels_where_the_word_is_certain() {
        // Every token's target has a probability near 1: the remaining gradient is far smaller than the rounding error of the
        // target's embedding, and must not be lost in it.
        let certain = |algorithm| {
            let mut case = Case::new(algorithm, 64, 32, 101);
            for (hidden, &target) in case.hidden.chunks_exact_mut(32).zip(&case.targets) {
                let word = &case.wte[target as usize * 32..][..32];
                let square: f32 = word.iter().map(|w| w * w).sum();
                hidden.iter_mut().zip(word).for_each(|(h, w)| *h = 14.0 * w / square);
            }
            case.run(true)
        };
        let ((losses, plain, _), (_, found, _)) = (certain(Algorithm::Plain), certain(Algorithm::FusedBf16));
        assert!(losses.iter().sum::<f32>() < 64.0 * 0.03, "{losses:?}");
        let square = |d: &mut dyn Iterator<Item = f32>| d.map(|d| d * d).sum::<f32>();
        let distance = square(&mut found.iter().zip(&plain).map(|(a, b)| a - b)) / square(&mut plain.iter().copied());
        assert!(distance.sqrt() < 0.05, "{}", distance.sqrt());
    }

    #[test]
    fn without_gradients_a_tokens_loss_is_the_same_whatever_stands_beside_it() {
        for precision in [Precision::F32, Precision::Bf16] {
            let mut case = Case::new(Algorithm::Plain, 70, 33, 701);
            case.shape = Shape::new(precision, case.shape.sizes, Wanted::Losses);
            let (first, rest) = case.hidden.split_at_mut(33);
            rest.chunks_exact_mut(33).step_by(3).for_each(|hidden| hidden.copy_from_slice(first));
            case.targets.fill(5);
            let losses = case.run(false).0;
            assert!(losses[1..].iter().step_by(3).all(|&loss| loss == losses[0]), "{precision:?} {losses:?}");
        }
    }

    #[test]
    fn fewer_tokens_never_need_more_room() {
        for (width, vocab_size) in [(128, 50_257), (768, 50_257), (256, 16_384), (128, 97), (33, 7001), (5000, 50)] {
            for algorithm in [Algorithm::Plain, Algorithm::FusedF32, Algorithm::FusedBf16, Algorithm::Strassen] {
                let sizes = |tokens| Sizes { tokens, width, vocab_size };
                for wanted in [Wanted::Losses, Wanted::Dhidden, Wanted::All] {
                    let scratch = |tokens| Shape { algorithm, sizes: sizes(tokens), wanted }.scratch();
                    let room: Vec<usize> = (1..2100).map(scratch).collect();
                    assert!(room.is_sorted(), "{algorithm:?}, {wanted:?}, width {width}, {vocab_size} words");
                }
            }
        }
    }

    #[test]
    fn without_the_embeddings_gradient_all_else_is_the_same() {
        for (tokens, width, vocab_size) in [(5, 12, 97), (70, 33, 7001)] {
            for algorithm in [Algorithm::Plain, Algorithm::FusedBf16, Algorithm::Strassen] {
                let case = Case::new(algorithm, tokens, width, vocab_size);
                let (whole, without) = (case.run_with(true, true), case.run_with(true, false));
                assert_eq!((whole.0, whole.1), (without.0, without.1), "{algorithm:?}");
                assert!(without.2.iter().all(|&d| d == 0.0));
            }
        }
    }

    #[test]
    fn huge_logits_do_not_overflow() {
        for algorithm in [Algorithm::Plain, Algorithm::FusedF32, Algorithm::FusedBf16, Algorithm::Strassen] {
            let case = Case {
                shape: Shape { algorithm, sizes: Sizes { tokens: 1, width: 2, vocab_size: 3 }, wanted: Wanted::All },
                hidden: vec![300.0, -300.0],
                wte: vec![300.0, 0.0, 0.0, 300.0, 1.0, 1.0],
                targets: vec![1],
            };
            let (losses, dhidden, _) = case.run(algorithm != Algorithm::FusedF32);
            // The fused loss is clamped near 79 nats; its gradient still points away from the wrong word.
            let expected = if algorithm == Algorithm::Plain { 179_999.0..180_001.0 } else { 79.0..82.0 };
            assert!(expected.contains(&losses[0]), "{algorithm:?} {losses:?}");
            assert!(
                algorithm == Algorithm::FusedF32 || dhidden[0] > 0.0 && dhidden[1] < 0.0,
                "{algorithm:?} {dhidden:?}"
            );
        }
    }
}
