//! Forward pass: shifted logits of both models, in place, their sums over the words, and the losses of each token.

use rayon::prelude::*;

use super::scratch::{Scratch, factor, sum};
use super::soft::{SoftLoss, SoftTarget};
use crate::gemm::tiles::kernel::{self, NR};
use crate::gemm::tiles::{cells, panels_a};
use crate::gemm::{Accumulate, MatMut};
use crate::layers::loss::tiling::Sizes;
use ngen3_engine::Divergence;
use ngen3_simd::{exp, simd};

/// Upper limit of the shifted logits: beyond it exp would overflow.
const MAX_LOGIT: f32 = 80.0;

/// Fills `student`, `teacher` and `sums` of the scratch memory.
pub fn logits<const P: usize>(soft: SoftLoss, s: &mut Scratch<'_>) {
    let SoftLoss { tiling, tiles, temperature, soft_target } = soft;
    let Sizes { width, vocab_size, .. } = tiling.sizes;
    let (mr, depth) = (panels_a::height::<P>(), cells::<P>(width));
    let (panel_cells, tile) = (mr * panels_a::depth::<P>(width), mr * NR);
    let words: &[u32] = &bytemuck::cast_slice(s.wte)[..panels_a::packed_len::<P>(vocab_size, width)];
    let hidden = &*s.hidden;
    let head = tiling.head.map(|head| head.operands::<P>(s.teacher_wte, s.teacher_hidden, tiles));
    let (shift, teacher_shift) = (&*s.shift, &*s.teacher_shift);
    let (panels, across) = (tiling.sizes.segment_panels::<P>(), tiling.block / NR);
    let segment_logits = tiling.segment_tiles::<P>() * tile;
    let teacher = s.teacher.par_chunks_mut(segment_logits.min(s.teacher.len()).max(1));
    // Without a teacher's head, every segment gets an empty slice.
    let mut teacher: Vec<&mut [f32]> = teacher.collect();
    teacher.resize_with(tiling.sizes.segments::<P>(), Default::default);
    words
        .par_chunks(panels * panel_cells)
        .zip(s.student.par_chunks_mut(segment_logits).zip(teacher))
        .zip(s.sums.par_chunks_mut(sum::COUNT * tiling.block))
        .enumerate()
        .for_each(|(segment, ((words, (student, teacher)), sums))| {
            sums.fill(0.0);
            for (i, a) in words.chunks_exact(panel_cells).enumerate() {
                let panel = segment * panels + i;
                let exist = mr.min(vocab_size - panel * mr);
                for j in 0..tiles {
                    let place = (i * across + j) * tile..(i * across + j + 1) * tile;
                    let z = &mut student[place.clone()];
                    let b = &hidden[j * NR * depth..][..NR * depth];
                    kernel::tile::<P>(a, panels_a::rows::<P>(), b, &mut MatMut::new(z, mr, NR), Accumulate::Set);
                    let u = match head {
                        Some(head) => {
                            let u = &mut teacher[place];
                            head.tile::<P>(panel, j, u);
                            u
                        }
                        None => &mut [],
                    };
                    let (sums, at) = (&mut *sums, j * NR);
                    let shifts = [lanes(shift, at), lanes(teacher_shift, at)];
                    simd(
                        #[inline(always)]
                        || sum_tile(soft_target, temperature, &mut z[..exist * NR], u, shifts, sums, tiling.block, at),
                    );
                }
            }
        });
}

/// Shifts a tile of logits in place, divides the teacher's by T, and adds to the sums of its tokens, which start at `at`.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "the operands of one tile")]
fn sum_tile(
    soft_target: SoftTarget,
    temperature: f32,
    z: &mut [f32],
    u: &mut [f32],
    [shift, teacher_shift]: [&[f32; NR]; 2],
    sums: &mut [f32],
    block: usize,
    at: usize,
) {
    let inverse = 1.0 / temperature;
    let mut totals = [[0.0f32; NR]; sum::COUNT];
    for z in z.as_chunks_mut::<NR>().0 {
        for t in 0..NR {
            z[t] = cut_off(z[t] - shift[t]);
            let tempered = exp(cut_off(z[t] * inverse));
            totals[sum::TEMPERED][t] += tempered;
            totals[sum::STUDENT][t] += untempered(z[t], tempered, temperature);
        }
    }
    if let SoftTarget::Head(divergence) = soft_target {
        for (z, u) in z.as_chunks::<NR>().0.iter().zip(u.as_chunks_mut::<NR>().0) {
            for t in 0..NR {
                u[t] = cut_off((u[t] - teacher_shift[t]) * inverse);
                let (z, e) = (cut_off(z[t] * inverse), exp(u[t]));
                totals[sum::TEACHER][t] += e;
                if divergence == Divergence::ReverseKl {
                    totals[sum::CROSS][t] += exp(z) * (z - u[t]);
                } else {
                    totals[sum::CROSS][t] += e * (u[t] - z);
                }
                if divergence == Divergence::ForwardKl {
                    u[t] = e;
                }
            }
        }
    }
    for (total, sums) in totals.iter().zip(sums.chunks_exact_mut(block)) {
        sums[at..at + NR].iter_mut().zip(total).for_each(|(sum, total)| *sum += total);
    }
}

/// Returns exp(z), given exp(z/T): temperatures 1 and 2 need no second exponential.
#[inline(always)]
pub fn untempered(z: f32, tempered: f32, temperature: f32) -> f32 {
    if temperature == 2.0 {
        tempered * tempered
    } else if temperature == 1.0 {
        tempered
    } else {
        exp(z)
    }
}

/// Returns the values of a tile's tokens as an array, over which the compiler vectorises.
#[inline(always)]
pub fn lanes(numbers: &[f32], at: usize) -> &[f32; NR] {
    numbers[at..].first_chunk().expect("a whole tile of tokens")
}

/// Clamps `x` so that exp stays finite. NaN stays NaN, so that divergence is noticed.
#[inline(always)]
pub fn cut_off(x: f32) -> f32 {
    if x > MAX_LOGIT { MAX_LOGIT } else { x }
}

/// Adds up the segments' sums; fills the losses and `factors`.
pub fn settle<const P: usize>(
    soft: SoftLoss,
    alpha: f32,
    weight: f32,
    s: &mut Scratch<'_>,
    cross_entropy: &mut [f32],
    divergence: &mut [f32],
) {
    let SoftLoss { tiling, temperature, soft_target, .. } = soft;
    let block = tiling.block;
    add_up(s.sums, block);
    s.factors.fill(0.0);
    let sum = |sums: &[f32], which: usize, t: usize| sums[which * block + t];
    for (t, loss) in cross_entropy.iter_mut().enumerate() {
        let [student, tempered, teacher] = [sum::STUDENT, sum::TEMPERED, sum::TEACHER].map(|i| sum(s.sums, i, t));
        *loss = student.ln();
        s.factors[factor::CROSS * block + t] = (1.0 - alpha) * weight / student;
        s.factors[factor::SOFT * block + t] = alpha * temperature * weight;
        s.factors[factor::TEMPERED * block + t] = tempered.ln();
        s.factors[factor::OVER_TEMPERED * block + t] = 1.0 / tempered;
        if tiling.head.is_some() {
            s.factors[factor::TEACHER * block + t] = teacher.ln();
            s.factors[factor::OVER_TEACHER * block + t] = 1.0 / teacher;
        }
    }
    let SoftTarget::Head(kind) = soft_target else { return divergence.fill(0.0) };
    if kind == Divergence::JensenShannon {
        to_mean::<P>(soft, s);
        add_up(s.sums, block);
    }
    for (t, loss) in divergence.iter_mut().enumerate() {
        let [ln_tempered, ln_teacher] = [factor::TEMPERED, factor::TEACHER].map(|i| s.factors[i * block + t]);
        let [tempered, teacher, cross] = [sum::TEMPERED, sum::TEACHER, sum::CROSS].map(|i| sum(s.sums, i, t));
        let (value, inner) = match kind {
            Divergence::ForwardKl => (cross / teacher - ln_teacher + ln_tempered, 0.0),
            Divergence::ReverseKl => {
                let value = cross / tempered - ln_tempered + ln_teacher;
                (value, value)
            }
            Divergence::JensenShannon => {
                let [p, q] = [sum::TEACHER_TO_MEAN, sum::STUDENT_TO_MEAN].map(|i| sum(s.sums, i, t));
                (0.5 * (p + q), 0.5 * q)
            }
        };
        *loss = temperature * temperature * value;
        s.factors[factor::INNER * block + t] = inner;
    }
}

/// Adds the sums of all segments to those of the first, and zeroes the others.
fn add_up(sums: &mut [f32], block: usize) {
    let (total, others) = sums.split_at_mut(sum::COUNT * block);
    for others in others.chunks_exact_mut(sum::COUNT * block) {
        total.iter_mut().zip(others).for_each(|(total, other)| {
            *total += *other;
            *other = 0.0;
        });
    }
}

/// Second pass over the logits, for the two sums of the Jensen-Shannon divergence.
fn to_mean<const P: usize>(soft: SoftLoss, s: &mut Scratch<'_>) {
    let SoftLoss { tiling, tiles, temperature, .. } = soft;
    let (block, across, inverse) = (tiling.block, tiling.block / NR, 1.0 / temperature);
    let factors = &*s.factors;
    let (mr, tile) = (panels_a::height::<P>(), panels_a::height::<P>() * NR);
    let segment_logits = tiling.segment_tiles::<P>() * tile;
    s.student
        .par_chunks(segment_logits)
        .zip(s.teacher.par_chunks(segment_logits))
        .zip(s.sums.par_chunks_mut(sum::COUNT * block))
        .enumerate()
        .for_each(|(segment, ((student, teacher), sums))| {
            for (i, (student, teacher)) in
                student.chunks_exact(across * tile).zip(teacher.chunks_exact(across * tile)).enumerate()
            {
                let panel = segment * tiling.sizes.segment_panels::<P>() + i;
                let exist = mr.min(tiling.sizes.vocab_size.saturating_sub(panel * mr));
                for j in 0..tiles {
                    let [z, u] = [student, teacher].map(|tiles| tiles[j * tile..][..exist * NR].as_chunks::<NR>().0);
                    let at = j * NR;
                    let [tempered, of_teacher] =
                        [factor::TEMPERED, factor::TEACHER].map(|i| lanes(factors, i * block + at));
                    simd(
                        #[inline(always)]
                        || {
                            let mut totals = [[0.0f32; NR]; 2];
                            for (z, u) in z.iter().zip(u) {
                                for t in 0..NR {
                                    let (q, p) = (cut_off(z[t] * inverse) - tempered[t], u[t] - of_teacher[t]);
                                    totals[0][t] += exp(p) * above_mean(p, q);
                                    totals[1][t] += exp(q) * above_mean(q, p);
                                }
                            }
                            for (which, total) in [sum::TEACHER_TO_MEAN, sum::STUDENT_TO_MEAN].iter().zip(&totals) {
                                let sums = &mut sums[which * block + at..][..NR];
                                sums.iter_mut().zip(total).for_each(|(sum, total)| *sum += total);
                            }
                        },
                    );
                }
            }
        });
}

/// Returns ln(a/m) with m = (a + b)/2, from ln a and ln b: ln 2 − ln(1 + b/a), to within 1e-6.
#[inline(always)]
pub fn above_mean(ln_a: f32, ln_b: f32) -> f32 {
    let d = ln_b - ln_a;
    let size = if d > 0.0 { d } else { -d };
    let x = exp(-size);
    // ln(1 + x) = 2·artanh(x/(2 + x)), whose argument is at most 1/3.
    let s = x / (2.0 + x);
    let s2 = s * s;
    let series = 1.0 + s2 * (1.0 / 3.0 + s2 * (0.2 + s2 * (1.0 / 7.0 + s2 * (1.0 / 9.0 + s2 / 11.0))));
    std::f32::consts::LN_2 - (if d > 0.0 { d } else { 0.0 }) - 2.0 * s * series
}
