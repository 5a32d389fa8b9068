//! The one list of a model's parameters: names, shapes, order.
//!
//! All parameters live back to back in one flat `[total]` array of f32. Whoever needs to know where a tensor is, what
//! it is called, or whether weight decay applies to it (the engine, init, the optimizer, checkpoints, export) asks
//! this list. Names and orientation are nanoGPT's: a linear layer's weight is `[out, in]`.

use std::ops::Range;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal};

use super::target::Target;
use crate::Config;

/// How a parameter is filled before training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Biases and LayerNorm's β.
    Zeros,
    /// LayerNorm's γ.
    Ones,
    /// N(0, std²), for matrices and embeddings (Radford et al. 2019).
    Normal {
        /// Standard deviation.
        std: f32,
    },
    /// Uniform in ±bound, for the first matrix of an adapter.
    Uniform {
        /// Largest absolute value.
        bound: f32,
    },
}

/// One named tensor inside the flat array.
#[derive(Clone, Debug, PartialEq)]
pub struct Param {
    /// nanoGPT's name, such as `transformer.h.0.attn.c_attn.weight`.
    pub name: String,
    /// One or two dimensions, row-major.
    pub shape: Vec<usize>,
    /// Where its first element stands in the flat array.
    pub offset: usize,
    /// How it starts.
    pub init: Init,
}

impl Param {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no elements (never, in a valid model).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its elements in the flat array.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.len()
    }

    /// Whether weight decay applies: to matrices and embeddings, not to biases and LayerNorms.
    pub fn decays(&self) -> bool {
        self.shape.len() >= 2
    }
}

/// Where the tensors of one transformer block stand in the flat array.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockRanges {
    /// `[n_embd]`
    pub ln_1_weight: Range<usize>,
    /// `[n_embd]`
    pub ln_1_bias: Range<usize>,
    /// `[3·n_embd, n_embd]`: query, key and value, in this order.
    pub c_attn_weight: Range<usize>,
    /// `[3·n_embd]`
    pub c_attn_bias: Range<usize>,
    /// `[n_embd, n_embd]`: attention's output projection.
    pub attn_c_proj_weight: Range<usize>,
    /// `[n_embd]`
    pub attn_c_proj_bias: Range<usize>,
    /// `[n_embd]`
    pub ln_2_weight: Range<usize>,
    /// `[n_embd]`
    pub ln_2_bias: Range<usize>,
    /// `[4·n_embd, n_embd]`
    pub c_fc_weight: Range<usize>,
    /// `[4·n_embd]`
    pub c_fc_bias: Range<usize>,
    /// `[n_embd, 4·n_embd]`: the MLP's output projection.
    pub mlp_c_proj_weight: Range<usize>,
    /// `[n_embd]`
    pub mlp_c_proj_bias: Range<usize>,
}

impl BlockRanges {
    /// Weight and bias of one of the block's linear layers.
    pub fn linear(&self, target: Target) -> (&Range<usize>, &Range<usize>) {
        match target {
            Target::CAttn => (&self.c_attn_weight, &self.c_attn_bias),
            Target::AttnCProj => (&self.attn_c_proj_weight, &self.attn_c_proj_bias),
            Target::CFc => (&self.c_fc_weight, &self.c_fc_bias),
            Target::MlpCProj => (&self.mlp_c_proj_weight, &self.mlp_c_proj_bias),
        }
    }
}

/// Every parameter of a model, in the order of the flat array.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamList {
    params: Vec<Param>,
    total: usize,
    /// `[vocab_size, n_embd]`: token embedding, and the transposed final projection.
    pub wte: Range<usize>,
    /// `[block_size, n_embd]`: position embedding.
    pub wpe: Range<usize>,
    /// One entry a transformer block.
    pub blocks: Vec<BlockRanges>,
    /// `[n_embd]`
    pub ln_f_weight: Range<usize>,
    /// `[n_embd]`
    pub ln_f_bias: Range<usize>,
}

impl ParamList {
    /// Lays out the parameters of a model of this shape.
    pub fn new(config: &Config) -> Self {
        Self::lay_out(config, true)
    }

    /// The same without the weights of the blocks' linear layers, for whoever keeps these elsewhere: they have no rows.
    pub fn without_layer_weights(config: &Config) -> Self {
        Self::lay_out(config, false)
    }

    fn lay_out(config: &Config, layer_weights: bool) -> Self {
        let c = config.n_embd;
        let rows = |outputs| if layer_weights { outputs } else { 0 };
        let matrix = Init::Normal { std: 0.02 };
        // Each residual projection adds to the stream; this keeps the stream's variance at init independent of depth.
        let residual = Init::Normal { std: 0.02 / (2.0 * config.n_layer as f32).sqrt() };
        let mut params = Vec::new();
        let mut offset = 0;
        let mut add = |name: String, shape: &[usize], init: Init| {
            let param = Param { name, shape: shape.to_vec(), offset, init };
            let range = param.range();
            offset = range.end;
            params.push(param);
            range
        };

        let wte = add("transformer.wte.weight".into(), &[config.vocab_size, c], matrix);
        let wpe = add("transformer.wpe.weight".into(), &[config.block_size, c], matrix);
        let blocks = (0..config.n_layer)
            .map(|layer| {
                let mut add =
                    |name: &str, shape: &[usize], init| add(format!("transformer.h.{layer}.{name}"), shape, init);
                BlockRanges {
                    ln_1_weight: add("ln_1.weight", &[c], Init::Ones),
                    ln_1_bias: add("ln_1.bias", &[c], Init::Zeros),
                    c_attn_weight: add("attn.c_attn.weight", &[rows(3 * c), c], matrix),
                    c_attn_bias: add("attn.c_attn.bias", &[3 * c], Init::Zeros),
                    attn_c_proj_weight: add("attn.c_proj.weight", &[rows(c), c], residual),
                    attn_c_proj_bias: add("attn.c_proj.bias", &[c], Init::Zeros),
                    ln_2_weight: add("ln_2.weight", &[c], Init::Ones),
                    ln_2_bias: add("ln_2.bias", &[c], Init::Zeros),
                    c_fc_weight: add("mlp.c_fc.weight", &[rows(4 * c), c], matrix),
                    c_fc_bias: add("mlp.c_fc.bias", &[4 * c], Init::Zeros),
                    mlp_c_proj_weight: add("mlp.c_proj.weight", &[rows(c), 4 * c], residual),
                    mlp_c_proj_bias: add("mlp.c_proj.bias", &[c], Init::Zeros),
                }
            })
            .collect();
        let ln_f_weight = add("transformer.ln_f.weight".into(), &[c], Init::Ones);
        let ln_f_bias = add("transformer.ln_f.bias".into(), &[c], Init::Zeros);
        Self { params, total: offset, wte, wpe, blocks, ln_f_weight, ln_f_bias }
    }

    /// Number of parameters, the shared head counted once: the length of the flat array.
    pub fn total(&self) -> usize {
        self.total
    }

    /// The parameters in the order of the flat array.
    pub fn iter(&self) -> std::slice::Iter<'_, Param> {
        self.params.iter()
    }

    /// Fresh parameters, `[total]`. The same seed gives the same numbers on every machine, and each tensor draws from a
    /// stream of its own, so that a layer more or less does not change the others.
    pub fn init(&self, seed: u64) -> Vec<f32> {
        init(&self.params, self.total, seed)
    }
}

/// Fresh values of these parameters, `[total]`.
pub(crate) fn init(params: &[Param], total: usize, seed: u64) -> Vec<f32> {
    let mut flat = vec![0.0; total];
    for (stream, param) in params.iter().enumerate() {
        let values = &mut flat[param.range()];
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream as u64);
        match param.init {
            Init::Zeros => {}
            Init::Ones => values.fill(1.0),
            Init::Normal { std } => {
                let normal = Normal::new(0.0, std).expect("the standard deviation is finite and positive");
                values.fill_with(|| normal.sample(&mut rng));
            }
            Init::Uniform { bound } => values.fill_with(|| rng.random_range(-bound..=bound)),
        }
    }
    flat
}

impl<'a> IntoIterator for &'a ParamList {
    type Item = &'a Param;
    type IntoIter = std::slice::Iter<'a, Param>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::VARIANTS;

    #[test]
    fn the_list_is_dense_and_counts_match_the_published_ones() {
        let millions = [7.2, 63.7, 353.8, 504.5, 773.0, 1_026.0, 6_652.0];
        for (variant, expected) in VARIANTS.iter().zip(millions) {
            let list = ParamList::new(&variant.config());
            let mut offset = 0;
            for param in &list {
                assert_eq!(param.offset, offset, "{} does not follow its predecessor", param.name);
                offset += param.len();
            }
            assert_eq!(offset, list.total());
            let found = list.total() as f64 / 1e6;
            assert!((found / expected - 1.0).abs() < 0.01, "{}: {found} M parameters", variant.name);
        }
    }

    #[test]
    fn init_draws_what_the_list_says() {
        let config = Config::new(2, 2, 64, 32, 500);
        let list = ParamList::new(&config);
        let flat = list.init(7);
        assert_eq!(flat, list.init(7), "the same seed gives the same parameters");
        assert_ne!(flat, list.init(8), "another seed gives others");
        for param in &list {
            let values = &flat[param.range()];
            match param.init {
                Init::Zeros => assert!(values.iter().all(|&v| v == 0.0), "{}", param.name),
                Init::Ones => assert!(values.iter().all(|&v| v == 1.0), "{}", param.name),
                Init::Normal { std } => {
                    let found = (values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32).sqrt();
                    assert!((found / std - 1.0).abs() < 0.1, "{}: std {found}, not {std}", param.name);
                }
                Init::Uniform { .. } => unreachable!("no parameter of a model starts uniform"),
            }
        }
    }
}
