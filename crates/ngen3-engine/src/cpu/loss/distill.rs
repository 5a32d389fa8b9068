//! Distillation: at each token α·T²·D(teacher, student) + (1 − α)·cross entropy   (Hinton et al. 2015).
//!
//! With p = softmax(u/T) of the teacher's logits u and q = softmax(z/T) of the student's z, D is one of [`Divergence`]. Neither
//! model's tokens × vocabulary is ever formed: a block of tokens at a time, as in `fused.rs`,
//!
//! ```text
//! for 12 words, 32 tokens:     z = wte·hiddenᵀ − shift, u likewise; sums += …        (z and u/T kept in f32, still in cache)
//! when every segment is done:  each token's losses, and what its gradient is made of
//! for 192 words:               g = ∂loss/∂z, in the orders that the two products read;  dhidden += wteᵀ·g
//! at the end:                  dwte += gᵀ·hidden
//! ```
//!
//! Each token's logits are shifted by its target's, as there. A teacher that comes as its k likeliest tokens has no u: g is then
//! that of the softmax, scaled, with corrections at those tokens (`top_k.rs`).

mod head;

use bytemuck::cast_slice_mut;
use rayon::prelude::*;

use super::super::embedding;
use super::super::memory::{Buffer, Knife, padded};
use super::super::simd::{exp, simd};
use super::Gradients;
use super::fused::{CHUNK, Shape, add_chunk, gather, pack_wte, shifts, spread};
use super::top_k::{Corrections, TopK};
use crate::Error;
use crate::engine::{Distill, Divergence, Teacher};
use crate::gemm::tiles::kernel::{self, MR, NR, Rows};
use crate::gemm::tiles::softmax::{e_tile, lay_out};
use crate::gemm::tiles::{cells, pack, packed_len};
use crate::gemm::{Into, Mat, MatMut};
use head::Head;

/// Logits of one model in a block of tokens, 26 MB: of half as many more would stay in cache, and both models' embeddings would be read
/// twice as often (4 % slower, measured).
const LOGITS: usize = 13 << 19;

/// Shifted logits are cut off here: beyond, exp would overflow.
const MAX_LOGIT: f32 = 80.0;

/// Numbers in a tile of logits.
const TILE: usize = MR * NR;

/// What is summed over the words for each token. The names index [`Scratch::sums`].
mod sum {
    /// exp(z)
    pub const STUDENT: usize = 0;
    /// exp(z/T)
    pub const TEMPERED: usize = 1;
    /// exp(u/T)
    pub const TEACHER: usize = 2;
    /// exp(u/T)·(u − z)/T, or for the reverse divergence exp(z/T)·(z − u)/T.
    pub const CROSS: usize = 3;
    /// p·ln(p/m), with m = (p + q)/2.
    pub const TEACHER_TO_MEAN: usize = 4;
    /// q·ln(q/m)
    pub const STUDENT_TO_MEAN: usize = 5;
    pub const COUNT: usize = 6;
}

/// What a token's gradient is made of. The names index [`Scratch::factors`].
pub(super) mod factor {
    /// (1 − α)·weight / Σ exp(z)
    pub const CROSS: usize = 0;
    /// α·T·weight
    pub const SOFT: usize = 1;
    /// ln Σ exp(z/T)
    pub const TEMPERED: usize = 2;
    /// ln Σ exp(u/T)
    pub const TEACHER: usize = 3;
    /// What reverse and Jensen-Shannon divergence subtract.
    pub const INNER: usize = 4;
    /// 1 / Σ exp(z/T)
    pub const OVER_TEMPERED: usize = 5;
    /// 1 / Σ exp(u/T)
    pub const OVER_TEACHER: usize = 6;
    pub const COUNT: usize = 7;
}

/// Where a token's two losses go, each `[tokens]`.
pub struct Losses<'a> {
    /// Cross entropy.
    pub cross_entropy: &'a mut [f32],
    /// T²·D
    pub divergence: &'a mut [f32],
}

/// Fills each token's two losses and, where asked, the gradients of their weighted sum.
///
/// # Errors
/// [`Error::Memory`] when the buffers of a block do not fit.
#[expect(clippy::too_many_arguments, reason = "the operands of the loss, each of which the caller has at hand")]
pub fn run<const P: usize>(
    shape: Shape,
    hidden: &[f32],
    wte: &[f32],
    targets: &[u32],
    distill: &Distill<'_>,
    losses: Losses<'_>,
    mut gradients: Option<Gradients<'_>>,
    memory: &mut Buffer,
) -> Result<(), Error> {
    let Shape { width, vocab_size, .. } = shape;
    let teacher = match distill.teacher {
        Teacher::Head { hidden, wte, quant } if distill.alpha > 0.0 => {
            Some((Head { width: wte.len() / vocab_size, vocab_size, quant }, hidden, wte))
        }
        _ => None,
    };
    let way = Way::of(distill);
    // Of a student alone nothing is tempered.
    let temperature = if way == Way::Alone { 1.0 } else { distill.temperature };
    let block = ((LOGITS / vocab_size) / NR * NR).clamp(NR, targets.len().next_multiple_of(NR));
    let sizes = Sizes { shape, block, head: teacher.map(|(head, ..)| head) };
    let wanted = sizes.lengths::<P>().map(padded).iter().sum();
    if memory.len() < wanted {
        *memory = Buffer::default();
        *memory = Buffer::zeros(wanted, "the logits of a block of tokens")?;
    }
    let mut s = sizes.cut::<P>(memory);
    pack_wte::<P>(shape, wte, s.wte);
    if let Some((head, _, wte)) = teacher {
        head.lay_out_wte::<P>(wte, s.teacher_wte);
    }
    let weight = gradients.as_ref().map_or(1.0, |gradients| gradients.weight);
    let Losses { cross_entropy, divergence } = losses;
    let blocks = targets.chunks(block).zip(cross_entropy.chunks_mut(block).zip(divergence.chunks_mut(block)));
    for (i, (targets, (cross_entropy, divergence))) in blocks.enumerate() {
        let (first, rows) = (i * block, targets.len());
        let hidden = &hidden[first * width..][..rows * width];
        pack::<P, NR>(Mat::new(hidden, rows, width), &mut s.hidden[..packed_len::<P, NR>(rows, width)]);
        shifts::<P>(hidden, wte, targets, s.shift);
        if let Some((head, hidden, wte)) = teacher {
            let hidden = &hidden[first * head.width..][..rows * head.width];
            head.lay_out_hidden::<P>(hidden, s.teacher_hidden);
            shifts::<P>(hidden, wte, targets, s.teacher_shift);
        }
        let soft = Soft { sizes, tiles: rows.div_ceil(NR), temperature, way };
        logits::<P>(soft, &mut s);
        settle(soft, distill.alpha, weight, &mut s, cross_entropy, divergence);
        let corrections: Option<Corrections> = TopK::of(distill, first..first + rows)
            .map(|top_k| top_k.settle::<P>(temperature, hidden, wte, s.shift, block, s.factors, divergence));
        let Some(Gradients { dhidden, dwte, .. }) = &mut gradients else { continue };

        gradient::<P>(soft, dwte.is_some(), &mut s);
        let at_target = (1.0 - distill.alpha) * weight;
        let dhidden = &mut dhidden[first * width..][..rows * width];
        gather(
            block,
            wte,
            targets,
            s.dhidden,
            dhidden,
            #[inline(always)]
            |_, total, word| total - at_target * word,
        );
        if let Some(corrections) = &corrections {
            corrections.add_to_hidden(wte, dhidden);
        }
        let Some(dwte) = dwte else { continue };
        let padded = rows.next_multiple_of(NR);
        let packed = &mut s.by_token[..packed_len::<P, NR>(width, padded)];
        let padded_hidden = &mut s.padded_hidden[..padded * width];
        padded_hidden[..rows * width].copy_from_slice(hidden);
        padded_hidden[rows * width..].fill(0.0);
        pack::<P, NR>(Mat::new(padded_hidden, padded, width).t(), packed);
        spread::<P>(width, block / NR, padded, s.g, packed, dwte);
        embedding::scatter(targets, hidden, -at_target, dwte);
        if let Some(corrections) = &corrections {
            corrections.add_to_embeddings(hidden, dwte);
        }
    }
    Ok(())
}

/// What the softmax of the student is held against.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Nothing: α is 0.
    Alone,
    /// The teacher's logits.
    Head(Divergence),
    /// Its likeliest tokens.
    TopK,
}

impl Way {
    fn of(distill: &Distill<'_>) -> Self {
        match distill.teacher {
            _ if distill.alpha == 0.0 => Self::Alone,
            Teacher::Head { .. } => Self::Head(distill.divergence),
            Teacher::TopK { .. } => Self::TopK,
        }
    }
}

#[derive(Clone, Copy)]
struct Sizes {
    shape: Shape,
    /// Tokens in a block, a multiple of [`NR`].
    block: usize,
    /// The teacher's, if there is any.
    head: Option<Head>,
}

/// One block's loss.
#[derive(Clone, Copy)]
struct Soft {
    sizes: Sizes,
    /// Panels of tokens that hold any.
    tiles: usize,
    temperature: f32,
    way: Way,
}

/// One block's buffers. R tokens, width C, V words.
struct Scratch<'a> {
    /// The student's embeddings in both orders: see [`pack_wte`].
    wte: &'a mut [f32],
    /// The teacher's operands: see [`Head`].
    teacher_wte: &'a mut [f32],
    teacher_hidden: &'a mut [f32],
    /// Hidden states, panels of [cells, NR].
    hidden: &'a mut [u32],
    /// Hidden states as B of dwte, panels of [R/P, NR].
    by_token: &'a mut [u32],
    /// `[R, C]`, zeros past the last token.
    padded_hidden: &'a mut [f32],
    /// `[R]`
    shift: &'a mut [f32],
    teacher_shift: &'a mut [f32],
    /// `[factor::COUNT, R]`
    factors: &'a mut [f32],
    /// `[segments, sum::COUNT, R]`
    sums: &'a mut [f32],
    /// `[panels, R/NR, MR, NR]`: z.
    student: &'a mut [f32],
    /// u/T, or exp(u/T) where a gradient needs no more: for the forward divergence.
    teacher: &'a mut [f32],
    /// `[panels, R/NR, MR, NR/P]`: g with cells along the tokens.
    g: &'a mut [u32],
    /// `[segments, R/NR, CHUNK·MR/P, NR]`: g of one chunk with cells along the words.
    by_word: &'a mut [u32],
    /// `[segments, C, R]`: each segment's part of dhiddenᵀ.
    dhidden: &'a mut [f32],
}

impl Sizes {
    /// Tiles of a segment.
    fn segment_tiles(&self) -> usize {
        self.shape.segment_panels() * self.block / NR
    }

    fn lengths<const P: usize>(&self) -> [usize; 15] {
        let Self { shape, block, head } = *self;
        let (segments, tiles) = (shape.segments(), shape.segments() * self.segment_tiles());
        [
            shape.packed_wte::<P>(),
            head.map_or(0, Head::wte_len::<P>),
            head.map_or(0, |head| head.hidden_len::<P>(block)),
            packed_len::<P, NR>(block, shape.width),
            packed_len::<P, NR>(shape.width, block),
            block * shape.width,
            block,
            block,
            factor::COUNT * block,
            segments * sum::COUNT * block,
            tiles * TILE,
            if head.is_some() { tiles * TILE } else { 0 },
            tiles * e_tile::<P>(),
            segments * CHUNK * MR / P * block,
            segments * shape.width * block,
        ]
    }

    fn cut<'a, const P: usize>(&self, memory: &'a mut [f32]) -> Scratch<'a> {
        let mut knife = Knife(memory);
        let pieces = self.lengths::<P>().map(|length| knife.cut(length));
        let [wte, teacher_wte, teacher_hidden, hidden, by_token, padded_hidden, shift, teacher_shift, pieces @ ..] =
            pieces;
        let [factors, sums, student, teacher, g, by_word, dhidden] = pieces;
        let [hidden, by_token, g, by_word] = [hidden, by_token, g, by_word].map(cast_slice_mut);
        Scratch {
            wte,
            teacher_wte,
            teacher_hidden,
            hidden,
            by_token,
            padded_hidden,
            shift,
            teacher_shift,
            factors,
            sums,
            student,
            teacher,
            g,
            by_word,
            dhidden,
        }
    }
}

/// Fills `student`, `teacher` and `sums`.
fn logits<const P: usize>(soft: Soft, s: &mut Scratch<'_>) {
    let Soft { sizes, tiles, temperature, way } = soft;
    let Shape { width, vocab_size, .. } = sizes.shape;
    let depth = cells::<P>(width);
    let words: &[u32] = &bytemuck::cast_slice(s.wte)[..packed_len::<P, MR>(vocab_size, width)];
    let hidden = &*s.hidden;
    let head = sizes.head.map(|head| head.operands::<P>(s.teacher_wte, s.teacher_hidden, tiles));
    let (shift, teacher_shift) = (&*s.shift, &*s.teacher_shift);
    let (panels, across) = (sizes.shape.segment_panels(), sizes.block / NR);
    let segment_logits = sizes.segment_tiles() * TILE;
    let teacher = s.teacher.par_chunks_mut(segment_logits.min(s.teacher.len()).max(1));
    // Without a teacher's head there is nothing to cut up, but as many segments.
    let mut teacher: Vec<&mut [f32]> = teacher.collect();
    teacher.resize_with(sizes.shape.segments(), Default::default);
    words
        .par_chunks(panels * MR * depth)
        .zip(s.student.par_chunks_mut(segment_logits).zip(teacher))
        .zip(s.sums.par_chunks_mut(sum::COUNT * sizes.block))
        .enumerate()
        .for_each(|(segment, ((words, (student, teacher)), sums))| {
            sums.fill(0.0);
            for (i, a) in words.chunks_exact(MR * depth).enumerate() {
                let panel = segment * panels + i;
                let exist = MR.min(vocab_size - panel * MR);
                for j in 0..tiles {
                    let place = (i * across + j) * TILE..(i * across + j + 1) * TILE;
                    let z = &mut student[place.clone()];
                    let b = &hidden[j * NR * depth..][..NR * depth];
                    kernel::tile::<P>(a, Rows::Together, b, &mut MatMut::new(z, MR, NR), Into::Set);
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
                        || sum_tile(way, temperature, &mut z[..exist * NR], u, shifts, sums, sizes.block, at),
                    );
                }
            }
        });
}

/// Shifts a tile of logits in place, the teacher's also over T, and adds to the sums of its tokens, which begin at `at`.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "the operands of one tile")]
fn sum_tile(
    way: Way,
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
    if let Way::Head(divergence) = way {
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

/// exp(z), of which exp(z/T) is known: the usual temperatures need no second exponential.
#[inline(always)]
fn untempered(z: f32, tempered: f32, temperature: f32) -> f32 {
    if temperature == 2.0 {
        tempered * tempered
    } else if temperature == 1.0 {
        tempered
    } else {
        exp(z)
    }
}

/// The numbers of a tile's tokens, as the array that the compiler vectorises over.
#[inline(always)]
fn lanes(numbers: &[f32], at: usize) -> &[f32; NR] {
    numbers[at..].first_chunk().expect("a whole tile of tokens")
}

/// Keeps exp below infinity; NaN stays NaN, so that a diverged model is noticed.
#[inline(always)]
fn cut_off(x: f32) -> f32 {
    if x > MAX_LOGIT { MAX_LOGIT } else { x }
}

/// Adds the segments' sums up in the first; fills the losses and `factors`.
fn settle(soft: Soft, alpha: f32, weight: f32, s: &mut Scratch<'_>, cross_entropy: &mut [f32], divergence: &mut [f32]) {
    let Soft { sizes, temperature, way, .. } = soft;
    let block = sizes.block;
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
        if sizes.head.is_some() {
            s.factors[factor::TEACHER * block + t] = teacher.ln();
            s.factors[factor::OVER_TEACHER * block + t] = 1.0 / teacher;
        }
    }
    let Way::Head(kind) = way else { return divergence.fill(0.0) };
    if kind == Divergence::JensenShannon {
        to_mean(soft, s);
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

/// Adds the sums of all segments to those of the first.
fn add_up(sums: &mut [f32], block: usize) {
    let (total, others) = sums.split_at_mut(sum::COUNT * block);
    for others in others.chunks_exact_mut(sum::COUNT * block) {
        total.iter_mut().zip(others).for_each(|(total, other)| {
            *total += *other;
            *other = 0.0;
        });
    }
}

/// The second look at the logits that the Jensen-Shannon divergence takes: its two sums.
fn to_mean(soft: Soft, s: &mut Scratch<'_>) {
    let Soft { sizes, tiles, temperature, .. } = soft;
    let (block, across, inverse) = (sizes.block, sizes.block / NR, 1.0 / temperature);
    let factors = &*s.factors;
    let segment_logits = sizes.segment_tiles() * TILE;
    s.student
        .par_chunks(segment_logits)
        .zip(s.teacher.par_chunks(segment_logits))
        .zip(s.sums.par_chunks_mut(sum::COUNT * block))
        .enumerate()
        .for_each(|(segment, ((student, teacher), sums))| {
            for (i, (student, teacher)) in
                student.chunks_exact(across * TILE).zip(teacher.chunks_exact(across * TILE)).enumerate()
            {
                let panel = segment * sizes.shape.segment_panels() + i;
                let exist = MR.min(sizes.shape.vocab_size.saturating_sub(panel * MR));
                for j in 0..tiles {
                    let [z, u] = [student, teacher].map(|tiles| tiles[j * TILE..][..exist * NR].as_chunks::<NR>().0);
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

/// ln(a/m) of a and b by their logarithms, with m = (a + b)/2: ln 2 − ln(1 + b/a), to 1e-6.
#[inline(always)]
fn above_mean(ln_a: f32, ln_b: f32) -> f32 {
    let d = ln_b - ln_a;
    let size = if d > 0.0 { d } else { -d };
    let x = exp(-size);
    // ln(1 + x) = 2·artanh(x/(2 + x)), whose argument is at most 1/3.
    let s = x / (2.0 + x);
    let s2 = s * s;
    let series = 1.0 + s2 * (1.0 / 3.0 + s2 * (0.2 + s2 * (1.0 / 7.0 + s2 * (1.0 / 9.0 + s2 / 11.0))));
    std::f32::consts::LN_2 - (if d > 0.0 { d } else { 0.0 }) - 2.0 * s * series
}

/// Fills the parts of `dhidden` and, where it is wanted, `g`.
fn gradient<const P: usize>(soft: Soft, wants_g: bool, s: &mut Scratch<'_>) {
    let Soft { sizes, tiles, .. } = soft;
    let Sizes { shape, block, .. } = sizes;
    let Shape { width, vocab_size, .. } = shape;
    let by_channel = &bytemuck::cast_slice(s.wte)[padded(packed_len::<P, MR>(vocab_size, width))..];
    let (student, teacher, factors) = (&*s.student, &*s.teacher, &*s.factors);
    let across = block / NR;
    s.g.par_chunks_mut(sizes.segment_tiles() * e_tile::<P>())
        .zip(s.by_word.par_chunks_mut(CHUNK * MR / P * block))
        .zip(s.dhidden.par_chunks_mut(width * block))
        .enumerate()
        .for_each(|(segment, ((g, by_word), dhidden))| {
            let first = segment * shape.segment_panels();
            let last = (first + shape.segment_panels()).min(shape.panels());
            for chunk in (first..last).step_by(CHUNK) {
                for panel in chunk..(chunk + CHUNK).min(last) {
                    for j in 0..tiles {
                        let place = (panel * across + j) * TILE;
                        let z = &student[place..place + TILE];
                        let u = teacher.get(place..place + TILE).unwrap_or_default();
                        let mut tile = [[0.0; NR]; MR];
                        let exist = MR.min(vocab_size - panel * MR);
                        simd(
                            #[inline(always)]
                            || gradient_tile(soft, z, u, factors, j * NR, &mut tile[..exist]),
                        );
                        let words = (j * CHUNK * MR / P + (panel - chunk) * MR / P) * NR;
                        // Where nobody will read g, every tile goes to one place, which stays in cache.
                        let tokens = if wants_g { ((panel - first) * across + j) * e_tile::<P>() } else { 0 };
                        lay_out::<P>(&tile, &mut by_word[words..][..e_tile::<P>()], &mut g[tokens..][..e_tile::<P>()]);
                    }
                }
                let into = if chunk == first { Into::Set } else { Into::Add };
                add_chunk::<P>(shape, block, tiles, chunk, by_channel, by_word, dhidden, into);
            }
        });
}

/// The gradient of a tile's logits; its tokens begin at `at`.
#[inline(always)]
fn gradient_tile(soft: Soft, z: &[f32], u: &[f32], factors: &[f32], at: usize, g: &mut [[f32; NR]]) {
    let Soft { temperature, .. } = soft;
    let (block, inverse) = (soft.sizes.block, 1.0 / temperature);
    let of: [&[f32; NR]; factor::COUNT] = std::array::from_fn(|i| lanes(factors, i * block + at));
    let z = z.as_chunks::<NR>().0;
    let [cross, scale, tempered, teacher, inner, over_tempered, over_teacher] = [
        factor::CROSS,
        factor::SOFT,
        factor::TEMPERED,
        factor::TEACHER,
        factor::INNER,
        factor::OVER_TEMPERED,
        factor::OVER_TEACHER,
    ]
    .map(|i| of[i]);
    match soft.way {
        Way::Alone => {
            for (g, z) in g.iter_mut().zip(z) {
                for t in 0..NR {
                    g[t] = cross[t] * exp(z[t]);
                }
            }
        }
        Way::TopK => {
            for (g, z) in g.iter_mut().zip(z) {
                for t in 0..NR {
                    let e = exp(cut_off(z[t] * inverse));
                    g[t] = cross[t] * untempered(z[t], e, temperature) + scale[t] * (e * over_tempered[t]);
                }
            }
        }
        Way::Head(Divergence::ForwardKl) => {
            for (g, (z, of_teacher)) in g.iter_mut().zip(z.iter().zip(u.as_chunks::<NR>().0)) {
                for t in 0..NR {
                    let e = exp(cut_off(z[t] * inverse));
                    let apart = e * over_tempered[t] - of_teacher[t] * over_teacher[t];
                    g[t] = cross[t] * untempered(z[t], e, temperature) + scale[t] * apart;
                }
            }
        }
        Way::Head(kind) => {
            for (g, (z, u)) in g.iter_mut().zip(z.iter().zip(u.as_chunks::<NR>().0)) {
                for t in 0..NR {
                    let (q, p) = (cut_off(z[t] * inverse) - tempered[t], u[t] - teacher[t]);
                    let apart = match kind {
                        Divergence::JensenShannon => 0.5 * above_mean(q, p),
                        _ => q - p,
                    };
                    g[t] = cross[t] * exp(z[t]) + scale[t] * exp(q) * (apart - inner[t]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
