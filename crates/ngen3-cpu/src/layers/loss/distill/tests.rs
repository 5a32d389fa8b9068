//! Checks the distillation loss against PyTorch in double precision (`fixtures/make_distill.py`), and its gradients against
//! finite differences on sizes with several segments and blocks.

use serde_json::Value;

use super::*;
use crate::base::fixtures::{fixture, floats, hashed, squares};
use crate::base::memory::Buffer;
use crate::base::testing::{check_gradient, random, skip};
use crate::gemm::Precision;
use crate::gemm::tiles::kernel;
use crate::layers::matvec::round_to_int8;
use ngen3_engine::{Divergence, Quant};

const TOKENS: usize = 6;
const IGNORED: usize = 2;

/// Returns all rows but the ignored one.
fn counted<T: Clone>(all: &[T]) -> Vec<T> {
    let width = all.len() / TOKENS;
    all.chunks_exact(width).enumerate().filter(|&(i, _)| i != IGNORED).flat_map(|(_, row)| row.to_vec()).collect()
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied()).max(1e-6)
}

struct Found {
    cross_entropy: Vec<f32>,
    divergence: Vec<f32>,
    dhidden: Vec<f32>,
    dwte: Vec<f32>,
}

fn run(
    sizes: Sizes,
    precision: Precision,
    hidden: &[f32],
    wte: &[f32],
    targets: &[u32],
    distill: &Distill<'_>,
    weight: f32,
) -> Found {
    let n = targets.len();
    let (mut cross_entropy, mut divergence) = (vec![f32::NAN; n], vec![f32::NAN; n]);
    let (mut dhidden, mut dwte) = (vec![f32::NAN; hidden.len()], vec![0.0; wte.len()]);
    let mut memory = Buffer::default();
    let mut run = |dhidden: &mut [f32], dwte: Option<&mut [f32]>| {
        let losses = Losses { cross_entropy: &mut cross_entropy, divergence: &mut divergence };
        let gradients = Some(Gradients { weight, dhidden, dwte });
        // Stale contents must not matter.
        memory.fill(f32::NAN);
        let run = match precision {
            Precision::F32 => super::run::<1>,
            Precision::Bf16 => super::run::<2>,
        };
        run(sizes, hidden, wte, targets, distill, losses, gradients, &mut memory).expect("memory");
    };
    let mut without_dwte = vec![f32::NAN; hidden.len()];
    run(&mut without_dwte, None);
    run(&mut dhidden, Some(&mut dwte));
    assert_eq!(dhidden, without_dwte, "dhidden does not depend on whether dwte is computed");
    Found { cross_entropy, divergence, dhidden, dwte }
}

#[test]
fn losses_and_gradients_equal_pytorchs_for_every_divergence_temperature_and_mixture() {
    let fixture = &fixture("distill")["kernel"];
    let (width, teacher_width, vocab_size, k) = (8, 12, 61, 5);
    let hidden = counted(&squares(0, 8.0, TOKENS * width));
    let wte = squares(10_000, 1.0, vocab_size * width);
    let teacher_hidden = counted(&squares(20_000, 8.0, TOKENS * teacher_width));
    let teacher_wte = squares(30_000, 1.0, vocab_size * teacher_width);
    let target = |i: u64| (hashed((40_000 + i) * (40_000 + i)) * vocab_size as f64) as u32;
    let targets = counted(&(0..TOKENS as u64).map(target).collect::<Vec<_>>());
    let sizes = Sizes { tokens: targets.len(), width, vocab_size };
    let plain = &fixture["cross_entropy"];
    for temperature in [1, 2, 4] {
        let likeliest = &fixture[format!("teacher {temperature}")];
        let ids = counted(&floats(&likeliest["ids"]).iter().map(|&id| id as u32).collect::<Vec<_>>());
        let log_probs = counted(&floats(&likeliest["log_probs"]));
        let head = Teacher::Head { hidden: &teacher_hidden, wte: &teacher_wte, quant: Quant::None };
        let ways = [
            ("forward_kl", head, Divergence::ForwardKl),
            ("reverse_kl", head, Divergence::ReverseKl),
            ("jensen_shannon", head, Divergence::JensenShannon),
            ("top_k", Teacher::TopK { k, ids: &ids, log_probs: &log_probs }, Divergence::ForwardKl),
        ];
        for (name, teacher, divergence) in ways {
            let expected = &fixture[format!("{name} {temperature}")];
            for alpha in [0.0, 0.5, 1.0] {
                let distill = Distill { teacher, temperature: temperature as f32, alpha, divergence };
                let case = format!("{name}, T = {temperature}, alpha = {alpha}");
                let found = run(sizes, Precision::F32, &hidden, &wte, &targets, &distill, 1.0 / targets.len() as f32);
                let mean = |losses: &[f32]| losses.iter().sum::<f32>() / losses.len() as f32;
                let close = |found: f32, expected: &Value| {
                    let expected = expected.as_f64().expect("a number");
                    assert!(
                        (f64::from(found) - expected).abs() < 1e-4 * expected.max(0.1),
                        "{case}: expected {expected}, got {found}"
                    );
                };
                close(mean(&found.cross_entropy), &plain["loss"]);
                if alpha > 0.0 {
                    close(mean(&found.divergence), &expected["loss"]);
                }
                let mixed = |name: &str| -> Vec<f32> {
                    let both = floats(&expected[name]).into_iter().zip(floats(&plain[name]));
                    both.map(|(soft, hard)| alpha * soft + (1.0 - alpha) * hard).collect()
                };
                let (dh, dw) =
                    (distance(&found.dhidden, &counted(&mixed("d_hidden"))), distance(&found.dwte, &mixed("d_wte")));
                assert!(dh < 1e-4 && dw < 1e-4, "{case}: {dh}, {dw}");
            }
        }
    }
}

/// Student and teacher of different widths, with a vocabulary of several segments.
struct Case {
    sizes: Sizes,
    hidden: Vec<f32>,
    wte: Vec<f32>,
    teacher_hidden: Vec<f32>,
    teacher_wte: Vec<f32>,
    targets: Vec<u32>,
}

impl Case {
    fn new(tokens: usize, vocab_size: usize) -> Self {
        let sizes = Sizes { tokens, width: 5, vocab_size };
        Self {
            sizes,
            hidden: random(tokens * sizes.width, 1),
            wte: random(sizes.vocab_size * sizes.width, 2),
            teacher_hidden: random(tokens * 7, 3),
            teacher_wte: random(sizes.vocab_size * 7, 4),
            targets: (0..tokens as u32).map(|t| t * 31 % sizes.vocab_size as u32).collect(),
        }
    }

    fn distill(&self, divergence: Divergence) -> Distill<'_> {
        let teacher = Teacher::Head { hidden: &self.teacher_hidden, wte: &self.teacher_wte, quant: Quant::None };
        Distill { teacher, temperature: 1.5, alpha: 0.7, divergence }
    }
}

const DIVERGENCES: [Divergence; 3] = [Divergence::ForwardKl, Divergence::ReverseKl, Divergence::JensenShannon];

#[test]
fn gradients_are_those_of_the_losses_over_several_segments() {
    let case = Case::new(5, 400);
    for distill in DIVERGENCES.map(|divergence| case.distill(divergence)) {
        let run =
            |hidden: &[f32], wte: &[f32]| run(case.sizes, Precision::F32, hidden, wte, &case.targets, &distill, 1.0);
        let loss = |hidden: &[f32], wte: &[f32]| {
            let found = run(hidden, wte);
            let sum = |losses: &[f32]| losses.iter().map(|&loss| f64::from(loss)).sum::<f64>();
            0.7 * sum(&found.divergence) + 0.3 * sum(&found.cross_entropy)
        };
        let found = run(&case.hidden, &case.wte);
        check_gradient(&case.hidden, &found.dhidden, |hidden| loss(hidden, &case.wte));
        check_gradient(&case.wte, &found.dwte, |wte| loss(&case.hidden, wte));
    }
}

#[test]
fn several_blocks_give_what_each_gives_alone_and_bf16_stays_near() {
    let whole = Case::new(1300, 5900);
    for divergence in DIVERGENCES {
        let Case { sizes, hidden, wte, teacher_hidden, teacher_wte, targets } = &whole;
        let distill = whole.distill(divergence);
        let together = run(*sizes, Precision::F32, hidden, wte, targets, &distill, 1.0);
        let mut dwte = vec![0.0; wte.len()];
        for tokens in [0..700, 700..1300] {
            let rows = |width: usize| tokens.start * width..tokens.end * width;
            let teacher = Teacher::Head { hidden: &teacher_hidden[rows(7)], wte: teacher_wte, quant: Quant::None };
            let sizes = Sizes { tokens: tokens.len(), ..*sizes };
            let distill = Distill { teacher, ..distill };
            let (hidden, targets) = (&hidden[rows(sizes.width)], &targets[rows(1)]);
            let part = run(sizes, Precision::F32, hidden, wte, targets, &distill, 1.0);
            assert!(distance(&together.divergence[rows(1)], &part.divergence) < 1e-5);
            assert!(distance(&together.cross_entropy[rows(1)], &part.cross_entropy) < 1e-5);
            assert!(distance(&together.dhidden[rows(sizes.width)], &part.dhidden) < 1e-5);
            dwte.iter_mut().zip(&part.dwte).for_each(|(sum, part)| *sum += part);
        }
        assert!(distance(&together.dwte, &dwte) < 1e-5);
        if kernel::multiplies_bf16() {
            let rounded = run(*sizes, Precision::Bf16, hidden, wte, targets, &distill, 1.0);
            let (dh, dw) = (distance(&rounded.dhidden, &together.dhidden), distance(&rounded.dwte, &together.dwte));
            assert!(dh < 0.02 && dw < 0.02, "{divergence:?}: {dh}, {dw}");
        } else {
            skip("distillation in bf16");
        }
    }
}

#[test]
fn a_teacher_that_is_the_student_teaches_nothing() {
    let sizes = Sizes { tokens: 40, width: 6, vocab_size: 101 };
    let (hidden, wte) = (random(sizes.tokens * sizes.width, 1), random(sizes.vocab_size * sizes.width, 2));
    let targets: Vec<u32> = (0..sizes.tokens as u32).collect();
    for divergence in DIVERGENCES {
        let teacher = Teacher::Head { hidden: &hidden, wte: &wte, quant: Quant::None };
        let distill = Distill { teacher, temperature: 2.0, alpha: 1.0, divergence };
        let found = run(sizes, Precision::F32, &hidden, &wte, &targets, &distill, 1.0);
        assert!(found.divergence.iter().all(|d| d.abs() < 1e-5), "{divergence:?}: {:?}", found.divergence);
        assert!(found.dhidden.iter().chain(&found.dwte).all(|g| g.abs() < 1e-5), "{divergence:?}");
    }
}

#[test]
fn a_teachers_int8_logits_are_those_of_its_rounded_operands() {
    let case = Case::new(70, 2900);
    let rounded = |values: &[f32]| {
        let mut values = values.to_vec();
        values.chunks_exact_mut(7).for_each(round_to_int8);
        values
    };
    let (hidden, wte) = (rounded(&case.teacher_hidden), rounded(&case.teacher_wte));
    for divergence in DIVERGENCES {
        let plain = case.distill(divergence);
        let of_rounded = Distill { teacher: Teacher::Head { hidden: &hidden, wte: &wte, quant: Quant::None }, ..plain };
        let (teacher_hidden, teacher_wte) = (&case.teacher_hidden, &case.teacher_wte);
        let in_int8 = Teacher::Head { hidden: teacher_hidden, wte: teacher_wte, quant: Quant::Int8 };
        let quantised = Distill { teacher: in_int8, ..plain };
        let run_in =
            |precision, distill| run(case.sizes, precision, &case.hidden, &case.wte, &case.targets, distill, 1.0);
        let run = |distill| run_in(Precision::F32, distill);
        let (plain, of_rounded, in_int8) = (run(&plain), run(&of_rounded), run(&quantised));
        assert_eq!(in_int8.cross_entropy, plain.cross_entropy);
        for (found, expected) in [
            (&in_int8.divergence, &of_rounded.divergence),
            (&in_int8.dhidden, &of_rounded.dhidden),
            (&in_int8.dwte, &of_rounded.dwte),
        ] {
            assert!(distance(found, expected) < 1e-4, "{divergence:?}: {}", distance(found, expected));
        }
        let moved = distance(&in_int8.dhidden, &plain.dhidden);
        assert!((1e-5..0.05).contains(&moved), "{divergence:?}: {moved}");
        if kernel::multiplies_bf16() {
            let student_in_bf16 = run_in(Precision::Bf16, &quantised);
            let apart = distance(&student_in_bf16.dhidden, &in_int8.dhidden);
            assert!(apart < 0.02, "{divergence:?}: {apart}");
        } else {
            skip("distillation in bf16 from a teacher in int8");
        }
    }
}
