//! Dropout (Srivastava et al. 2014): each activation is zeroed with probability p, the rest scaled by 1/(1 − p).
//!
//! Masks are not stored: whether element `i` is kept is a hash of `i` and a key, so that backward computes the same mask
//! again, and resuming a run needs no generator's state.

use rayon::prelude::*;

use ngen3_engine::splitmix;
use ngen3_simd::simd;

/// Elements in one task.
const CHUNK: usize = 1 << 14;

/// The dropout of one place in the network, in one pass.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    /// An element is dropped when its hash is below this: p·2³².
    threshold: u32,
    scale: f32,
    key: [u32; 2],
}

impl Dropout {
    /// Dropout with probability `p`; `None` when it would do nothing. `site` tells one place in the network from another.
    pub fn new(p: f32, seed: u64, site: u64) -> Option<Self> {
        if p <= 0.0 {
            return None;
        }
        let key = splitmix(seed ^ splitmix(site));
        Some(Self {
            threshold: (f64::from(p) * 2f64.powi(32)) as u32,
            scale: 1.0 / (1.0 - p),
            key: [key as u32, (key >> 32) as u32],
        })
    }

    /// What element `index` is multiplied by: 0 or 1/(1 − p).
    #[inline(always)]
    pub fn factor(&self, index: u32) -> f32 {
        let mut h = (index ^ self.key[0]).wrapping_mul(0x9E37_79B1).wrapping_add(self.key[1]);
        h = (h ^ (h >> 16)).wrapping_mul(0x7FEB_352D);
        h = (h ^ (h >> 15)).wrapping_mul(0x846C_A68B);
        h ^= h >> 16;
        if h < self.threshold { 0.0 } else { self.scale }
    }

    /// Multiplies `x` (the whole tensor, in any shape) by its mask: forward on activations, backward on gradients.
    pub fn apply(&self, x: &mut [f32]) {
        x.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, x)| {
            let first = (chunk * CHUNK) as u32;
            simd(
                #[inline(always)]
                || {
                    for (i, x) in x.iter_mut().enumerate() {
                        *x *= self.factor(first.wrapping_add(i as u32));
                    }
                },
            );
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_the_stated_share_and_keeps_the_mean() {
        for p in [0.1, 0.5] {
            let dropout = Dropout::new(p, 1, 2).unwrap();
            let mut x = vec![1.0; 100_000];
            dropout.apply(&mut x);
            let dropped = x.iter().filter(|&&x| x == 0.0).count() as f32 / x.len() as f32;
            assert!((dropped - p).abs() < 0.01, "{dropped} dropped, not {p}");
            let mean = x.iter().sum::<f32>() / x.len() as f32;
            assert!((mean - 1.0).abs() < 0.02, "mean {mean}");
            let mut other = vec![1.0; 100_000];
            Dropout::new(p, 1, 3).unwrap().apply(&mut other);
            assert_ne!(x, other, "another site drops others");
        }
        assert!(Dropout::new(0.0, 1, 2).is_none());
    }
}
