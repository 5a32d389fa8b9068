//! Backward pass: gradients of the student's logits, in the layouts of the two backward products, and the product for dhidden.

use rayon::prelude::*;

use super::logits::{above_mean, cut_off, lanes, untempered};
use super::scratch::{DistillTiling, Scratch, factor};
use super::soft::{SoftLoss, SoftTarget};
use crate::base::memory::padded;
use crate::gemm::Accumulate;
use crate::gemm::tiles::amx;
use crate::gemm::tiles::kernel::NR;
use crate::gemm::tiles::panels_a;
use crate::gemm::tiles::softmax::{e_tile, lay_out};
use crate::layers::loss::tiling::{CHUNK, Sizes, add_chunk};
use ngen3_engine::Divergence;
use ngen3_simd::{exp, simd};

/// Fills the segments' shares of `dhidden` and, if requested, `g`.
pub fn gradient<const P: usize>(soft: SoftLoss, wants_g: bool, s: &mut Scratch<'_>) {
    let SoftLoss { tiling, tiles, .. } = soft;
    let DistillTiling { sizes, block, .. } = tiling;
    let Sizes { width, vocab_size, .. } = sizes;
    let by_channel = &bytemuck::cast_slice(s.wte)[padded(panels_a::packed_len::<P>(vocab_size, width))..];
    let (student, teacher, factors) = (&*s.student, &*s.teacher, &*s.factors);
    let (across, mr, tile) = (block / NR, panels_a::height::<P>(), panels_a::height::<P>() * NR);
    s.g.par_chunks_mut(tiling.segment_tiles::<P>() * e_tile::<P>())
        .zip(s.by_word.par_chunks_mut(CHUNK * mr / P * block))
        .zip(s.dhidden.par_chunks_mut(width * block))
        .enumerate()
        .for_each(|(segment, ((g, by_word), dhidden))| {
            let first = segment * sizes.segment_panels::<P>();
            let last = (first + sizes.segment_panels::<P>()).min(sizes.panels::<P>());
            for chunk in (first..last).step_by(CHUNK) {
                for panel in chunk..(chunk + CHUNK).min(last) {
                    for j in 0..tiles {
                        let place = (panel * across + j) * tile;
                        let z = &student[place..place + tile];
                        let u = teacher.get(place..place + tile).unwrap_or_default();
                        let mut tile = [[0.0; NR]; amx::ROWS];
                        let exist = mr.min(vocab_size - panel * mr);
                        simd(
                            #[inline(always)]
                            || gradient_tile(soft, z, u, factors, j * NR, &mut tile[..exist]),
                        );
                        let words = (j * CHUNK * mr / P + (panel - chunk) * mr / P) * NR;
                        // If g is not read later, every tile is written to the same place, which stays in cache.
                        let tokens = if wants_g { ((panel - first) * across + j) * e_tile::<P>() } else { 0 };
                        lay_out::<P>(
                            &tile[..mr],
                            &mut by_word[words..][..e_tile::<P>()],
                            &mut g[tokens..][..e_tile::<P>()],
                        );
                    }
                }
                let accumulate = if chunk == first { Accumulate::Set } else { Accumulate::Add };
                add_chunk::<P>(sizes, tiles, chunk, by_channel, by_word, dhidden, accumulate);
            }
        });
}

/// Computes the gradient of a tile's logits. Its tokens start at `at`.
#[inline(always)]
fn gradient_tile(soft: SoftLoss, z: &[f32], u: &[f32], factors: &[f32], at: usize, g: &mut [[f32; NR]]) {
    let SoftLoss { temperature, .. } = soft;
    let (block, inverse) = (soft.tiling.block, 1.0 / temperature);
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
    match soft.soft_target {
        SoftTarget::Alone => {
            for (g, z) in g.iter_mut().zip(z) {
                for t in 0..NR {
                    g[t] = cross[t] * exp(z[t]);
                }
            }
        }
        SoftTarget::TopK => {
            for (g, z) in g.iter_mut().zip(z) {
                for t in 0..NR {
                    let e = exp(cut_off(z[t] * inverse));
                    g[t] = cross[t] * untempered(z[t], e, temperature) + scale[t] * (e * over_tempered[t]);
                }
            }
        }
        SoftTarget::Head(Divergence::ForwardKl) => {
            for (g, (z, of_teacher)) in g.iter_mut().zip(z.iter().zip(u.as_chunks::<NR>().0)) {
                for t in 0..NR {
                    let e = exp(cut_off(z[t] * inverse));
                    let apart = e * over_tempered[t] - of_teacher[t] * over_teacher[t];
                    g[t] = cross[t] * untempered(z[t], e, temperature) + scale[t] * apart;
                }
            }
        }
        SoftTarget::Head(kind) => {
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
