//! Dropout (Srivastava et al. 2014): zeroes each activation with probability p and scales the rest by 1/(1 − p).
//!
//! Masks are not stored: the backward pass recomputes them from the seed (`ngen3_engine::Dropout`).

use ngen3_engine::Dropout;
use ngen3_simd::simd;
use rayon::prelude::*;

/// Elements per task.
const CHUNK: usize = 1 << 14;

/// Multiplies `x`, the whole tensor in any shape, by its mask: activations in the forward pass, gradients in the backward pass.
pub fn apply(dropout: Dropout, x: &mut [f32]) {
    x.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, x)| {
        let first = (chunk * CHUNK) as u32;
        simd(
            #[inline(always)]
            || {
                for (i, x) in x.iter_mut().enumerate() {
                    *x *= dropout.factor(first.wrapping_add(i as u32));
                }
            },
        );
    });
}

#[cfg(test)]
mod tests {
    use ngen3_engine::DropoutSite;

    use super::*;

    #[test]
    fn drops_the_stated_share_and_keeps_the_mean() {
        let dropout = |p, site| Dropout::new(p, 1, site);
        for p in [0.1, 0.5] {
            let mut x = vec![1.0; 100_000];
            apply(dropout(p, DropoutSite::Attention(0)).unwrap(), &mut x);
            let dropped = x.iter().filter(|&&x| x == 0.0).count() as f32 / x.len() as f32;
            assert!((dropped - p).abs() < 0.01, "expected a share of {p} dropped, got {dropped}");
            let mean = x.iter().sum::<f32>() / x.len() as f32;
            assert!((mean - 1.0).abs() < 0.02, "mean {mean}");
            let mut other = vec![1.0; 100_000];
            apply(dropout(p, DropoutSite::AttentionProjection(0)).unwrap(), &mut other);
            assert_ne!(x, other, "each site has its own mask");
        }
        assert!(dropout(0.0, DropoutSite::Embedding).is_none());
    }
}
