//! Activations that wait for the backward pass: as they were computed, or rounded to bf16.
//!
//! In bf16, products round these activations anyway; kept rounded, they take half the memory, and a long pass moves half the
//! bytes. A block computes and reads them in f32 in a buffer that all blocks share, which stays in cache.

use bytemuck::cast_slice;
use rayon::prelude::*;

use crate::gemm::Mat;
use crate::gemm::tiles::pack::along;
use ngen3_simd::simd;

/// Elements per task, an even number.
const CHUNK: usize = 1 << 13;

/// Kept activation of `n` elements.
pub enum Kept<'a> {
    /// `[n]`, computed and read in place.
    Whole(&'a mut [f32]),
    /// `[n/2]` pairs of bf16, the first in the low half.
    Rounded(&'a mut [u32]),
}

impl Kept<'_> {
    /// Returns where to compute the activation: its own place, or `shared`, `[n]`.
    pub fn place<'b>(&'b mut self, shared: &'b mut [f32]) -> &'b mut [f32] {
        match self {
            Self::Whole(own) => own,
            Self::Rounded(_) => shared,
        }
    }

    /// Keeps the activation that was computed in [`Kept::place`] of `shared`.
    pub fn keep(&mut self, shared: &[f32]) {
        let Self::Rounded(own) = self else { return };
        assert_eq!(own.len(), shared.len().div_ceil(2), "pairs of a kept activation");
        own.par_chunks_mut(CHUNK / 2).zip(shared.par_chunks(CHUNK)).for_each(|(own, shared)| {
            along::<2>(Mat::new(shared, 1, shared.len()), own);
        });
    }

    /// Returns the activation, widened into `shared`, `[n]`, if it is rounded.
    pub fn read<'b>(&'b self, shared: &'b mut [f32]) -> &'b [f32] {
        let own = match self {
            Self::Whole(own) => return own,
            Self::Rounded(own) => &**own,
        };
        assert_eq!(own.len(), shared.len().div_ceil(2), "pairs of a kept activation");
        shared.par_chunks_mut(CHUNK).zip(own.par_chunks(CHUNK / 2)).for_each(|(shared, own)| {
            simd(
                #[inline(always)]
                || {
                    for (x, &bits) in shared.iter_mut().zip(cast_slice::<u32, u16>(own)) {
                        *x = f32::from_bits(u32::from(bits) << 16);
                    }
                },
            );
        });
        shared
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::testing::random;
    use crate::gemm::tiles::pack::rounded;

    #[test]
    fn a_kept_activation_is_read_as_it_was_or_rounded() {
        for n in [1, 2, 33, CHUNK, CHUNK + 1, 3 * CHUNK + 77] {
            let x = random(n, 1);
            let mut own = vec![f32::NAN; n];
            let mut whole = Kept::Whole(&mut own);
            whole.place(&mut []).copy_from_slice(&x);
            whole.keep(&[]);
            assert_eq!(whole.read(&mut []), x);
            let (mut own, mut shared) = (vec![u32::MAX; n.div_ceil(2)], vec![f32::NAN; n]);
            let mut kept = Kept::Rounded(&mut own);
            kept.place(&mut shared).copy_from_slice(&x);
            kept.keep(&shared);
            shared.fill(f32::NAN);
            assert!(kept.read(&mut shared).iter().eq(x.iter().map(|&x| rounded::<2>(x)).collect::<Vec<_>>().iter()));
        }
    }
}
