//! Dropout masks (Srivastava et al. 2014), hashed from a seed and the element's index. The backward pass recomputes the mask
//! instead of storing it, every engine computes the same one, and a resumed run has no generator state to restore.

/// Dropout at one site of the network, in one pass.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    /// An element is dropped if its hash is below this: p·2³².
    threshold: u32,
    scale: f32,
    key: [u32; 2],
}

/// Sites of dropout in the network: one after the embedding, three in each block (the `usize` is its layer, from 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropoutSite {
    /// Sum of token and position embedding, `[tokens, width]`.
    Embedding,
    /// Attention probabilities of a block, `[heads, queries, keys]` for each sequence, concatenated. An element has the index Σ
    /// heads·len² over the earlier sequences of the pass + head·len² + query·len + key.
    Attention(usize),
    /// Output of a block's attention projection, `[tokens, width]`.
    AttentionProjection(usize),
    /// Output of a block's MLP, `[tokens, width]`.
    MlpProjection(usize),
}

impl DropoutSite {
    fn number(self) -> u64 {
        let number = match self {
            Self::Embedding => 0,
            Self::Attention(layer) => 1 + 3 * layer,
            Self::AttentionProjection(layer) => 2 + 3 * layer,
            Self::MlpProjection(layer) => 3 + 3 * layer,
        };
        number as u64
    }
}

impl Dropout {
    /// Creates dropout with probability `p`; `None` if `p` is 0. `seed` is that of the pass: see [`pass_seed`].
    pub fn new(p: f32, seed: u64, site: DropoutSite) -> Option<Self> {
        if p <= 0.0 {
            return None;
        }
        let key = splitmix(seed ^ splitmix(site.number()));
        Some(Self {
            threshold: (f64::from(p) * 2f64.powi(32)) as u32,
            scale: 1.0 / (1.0 - p),
            key: [key as u32, (key >> 32) as u32],
        })
    }

    /// Returns the threshold, the scale and the key of [`Dropout::factor`], for engines that compute it elsewhere.
    pub fn parts(&self) -> (u32, f32, [u32; 2]) {
        (self.threshold, self.scale, self.key)
    }

    /// Returns the factor of the element at a row-major index: 0 or 1/(1 − p).
    #[inline(always)]
    pub fn factor(&self, index: u32) -> f32 {
        let mut h = (index ^ self.key[0]).wrapping_mul(0x9E37_79B1).wrapping_add(self.key[1]);
        h = (h ^ (h >> 16)).wrapping_mul(0x7FEB_352D);
        h = (h ^ (h >> 15)).wrapping_mul(0x846C_A68B);
        h ^= h >> 16;
        if h < self.threshold { 0.0 } else { self.scale }
    }
}

/// Derives the dropout seed of a pass, numbered from 0 within its batch (see [`PASS_TOKENS`](crate::PASS_TOKENS)).
pub fn pass_seed(seed: u64, pass: u64) -> u64 {
    splitmix(seed.wrapping_add(pass))
}

/// Mixes 64 bits (SplitMix64, Steele et al. 2014).
pub fn splitmix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}
