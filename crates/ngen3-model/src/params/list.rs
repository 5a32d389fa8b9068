//! The list of a model's parameters: names, shapes, order.
//!
//! All parameters are stored back to back in a flat `[total]` array of f32. The list gives each tensor's range, name, initial
//! distribution and weight decay to engines, optimizer, checkpoints and exports. Names and layout are nanoGPT's: a linear
//! layer's weight is `[out, in]`.

use std::ops::Range;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal};

use super::names;
use super::role::Role;
use super::target::Projection;
use crate::{Config, Family};

/// Initial distribution of a parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Biases and a norm's β.
    Zeros,
    /// A norm's γ.
    Ones,
    /// N(0, std²), for matrices and embeddings (Radford et al. 2019).
    Normal {
        /// Standard deviation.
        std: f32,
    },
    /// Uniform in ±bound, for matrix A of an adapter.
    Uniform {
        /// Largest absolute value.
        bound: f32,
    },
}

/// One of the two matrices of a low-rank adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoraMatrix {
    /// `[rank, inputs]`
    A,
    /// `[outputs, rank]`
    B,
}

/// Tensor in the flat array.
#[derive(Clone, Debug, PartialEq)]
pub struct Param {
    /// Role in the model; for an adapter's matrix, the role of the adapted weight.
    pub role: Role,
    /// Family of the model.
    pub family: Family,
    /// Index of its block, from 0; `None` outside the blocks.
    pub layer: Option<usize>,
    /// Matrix of an adapter; `None` for a parameter of the model.
    pub adapter: Option<LoraMatrix>,
    /// Shape: one or two dimensions, row-major.
    pub shape: Vec<usize>,
    /// Index of its first element in the flat array.
    pub offset: usize,
    /// Initial distribution.
    pub init: Init,
    /// Stream of the random generator that initialises it.
    pub(crate) stream: u64,
}

impl Param {
    /// Returns the name in checkpoints: nanoGPT's, such as `transformer.h.0.attn.c_attn.weight`, or for the Llama family that of
    /// `transformers`; for an adapter, `peft`'s without the prefix `base_model.model.`.
    pub fn name(&self) -> String {
        let Self { role, family, layer, .. } = *self;
        match self.adapter {
            None => names::checkpoint(family).name(role, layer),
            Some(matrix) => {
                let weight = names::hugging_face(family).name(role, layer);
                let module = weight.strip_suffix(".weight").expect("adapters belong to weights");
                format!("{module}.lora_{matrix:?}.weight")
            }
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Returns true if it has no elements, as only in a list without layer weights.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns its range in the flat array.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.len()
    }

    /// Returns the number of equally tall matrices that this weight of a block's linear layer stacks: 3 for GPT-2's `c_attn`
    /// (queries, keys, values), otherwise 1. Embeddings, head, norms, biases and adapters have 0.
    pub fn num_layer_matrices(&self) -> usize {
        match self.role {
            _ if self.adapter.is_some() => 0,
            Role::CAttnWeight => 3,
            role => usize::from(role.is_layer_weight()),
        }
    }

    /// Returns true if weight decay applies: to matrices and embeddings, not to biases and norms.
    pub fn decays(&self) -> bool {
        self.shape.len() >= 2
    }
}

/// Ranges of a transformer block's tensors in the flat array. Those that the model lacks are empty. In the Llama family the
/// matrices of queries, keys and values follow one another, and so do those of gate and up: each is one matrix here.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockRanges {
    /// `[n_embd]`
    pub ln_1_weight: Range<usize>,
    /// `[n_embd]`
    pub ln_1_bias: Range<usize>,
    /// `[qkv_width, n_embd]`: query, key and value, in this order.
    pub c_attn_weight: Range<usize>,
    /// `[qkv_width]`
    pub c_attn_bias: Range<usize>,
    /// `[head_width]`: γ of the norm of each head's query.
    pub q_norm_weight: Range<usize>,
    /// `[head_width]`: γ of the norm of each head's key.
    pub k_norm_weight: Range<usize>,
    /// `[n_embd, q_width]`: attention's output projection.
    pub attn_c_proj_weight: Range<usize>,
    /// `[n_embd]`
    pub attn_c_proj_bias: Range<usize>,
    /// `[n_embd]`
    pub ln_2_weight: Range<usize>,
    /// `[n_embd]`
    pub ln_2_bias: Range<usize>,
    /// `[fc_width, n_embd]`: with SwiGLU, gate and up.
    pub c_fc_weight: Range<usize>,
    /// `[fc_width]`
    pub c_fc_bias: Range<usize>,
    /// `[n_embd, inner_width]`: the MLP's output projection.
    pub mlp_c_proj_weight: Range<usize>,
    /// `[n_embd]`
    pub mlp_c_proj_bias: Range<usize>,
}

impl BlockRanges {
    /// Returns the weight and bias of one of the block's projections.
    pub fn linear(&self, projection: Projection) -> (&Range<usize>, &Range<usize>) {
        match projection {
            Projection::CAttn => (&self.c_attn_weight, &self.c_attn_bias),
            Projection::AttnCProj => (&self.attn_c_proj_weight, &self.attn_c_proj_bias),
            Projection::CFc => (&self.c_fc_weight, &self.c_fc_bias),
            Projection::MlpCProj => (&self.mlp_c_proj_weight, &self.mlp_c_proj_bias),
        }
    }
}

/// All parameters of a model, in the order of the flat array.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamList {
    params: Vec<Param>,
    total: usize,
    /// `[vocab_size, n_embd]`: token embedding.
    pub wte: Range<usize>,
    /// `[block_size, n_embd]`: position embedding; empty in a model with rotary positions.
    pub wpe: Range<usize>,
    /// One entry per transformer block.
    pub blocks: Vec<BlockRanges>,
    /// `[n_embd]`
    pub ln_f_weight: Range<usize>,
    /// `[n_embd]`, or empty in a model without biases.
    pub ln_f_bias: Range<usize>,
    /// `[vocab_size, n_embd]`: final projection; that of `wte` if it is tied to the token embedding.
    pub lm_head: Range<usize>,
}

impl ParamList {
    /// Lays out the parameters of a model of this shape.
    pub fn new(config: &Config) -> Self {
        Self::without(config, |_| false)
    }

    /// As [`ParamList::new`], but the parameters of these roles have no rows, for engines that store them elsewhere.
    pub fn without(config: &Config, elsewhere: impl Fn(Role) -> bool) -> Self {
        let mut params = Vec::new();
        let mut offset = 0;
        // Absent biases use up a stream too, so that matrices start the same with and without them.
        let mut streams = 0..;
        let mut add = |role: Role, layer: Option<usize>| {
            if !role.is_of(config.family) {
                return offset..offset;
            }
            let stream = streams.next().expect("the range is unbounded");
            if !role.is_in(config) {
                return offset..offset;
            }
            let mut shape = role.shape(config);
            if elsewhere(role) {
                shape[0] = 0;
            }
            let (init, family) = (init_of(role, config), config.family);
            let param = Param { role, family, layer, adapter: None, shape, offset, init, stream };
            let range = param.range();
            offset = range.end;
            params.push(param);
            range
        };

        let wte = add(Role::Wte, None);
        let wpe = add(Role::Wpe, None);
        let blocks = (0..config.n_layer)
            .map(|layer| {
                // The parameters of these roles, of which a model has some, as one range.
                let mut add = |roles: &[Role]| {
                    let ranges: Vec<_> = roles.iter().map(|&role| add(role, Some(layer))).collect();
                    ranges[0].start..ranges[ranges.len() - 1].end
                };
                BlockRanges {
                    ln_1_weight: add(&[Role::Ln1Weight]),
                    ln_1_bias: add(&[Role::Ln1Bias]),
                    c_attn_weight: add(&[Role::CAttnWeight, Role::QProjWeight, Role::KProjWeight, Role::VProjWeight]),
                    c_attn_bias: add(&[Role::CAttnBias, Role::QProjBias, Role::KProjBias, Role::VProjBias]),
                    q_norm_weight: add(&[Role::QNormWeight]),
                    k_norm_weight: add(&[Role::KNormWeight]),
                    attn_c_proj_weight: add(&[Role::AttnCProjWeight]),
                    attn_c_proj_bias: add(&[Role::AttnCProjBias]),
                    ln_2_weight: add(&[Role::Ln2Weight]),
                    ln_2_bias: add(&[Role::Ln2Bias]),
                    c_fc_weight: add(&[Role::CFcWeight, Role::GateProjWeight, Role::UpProjWeight]),
                    c_fc_bias: add(&[Role::CFcBias, Role::GateProjBias, Role::UpProjBias]),
                    mlp_c_proj_weight: add(&[Role::MlpCProjWeight]),
                    mlp_c_proj_bias: add(&[Role::MlpCProjBias]),
                }
            })
            .collect();
        let ln_f_weight = add(Role::LnFWeight, None);
        let ln_f_bias = add(Role::LnFBias, None);
        let own_head = add(Role::LmHeadWeight, None);
        let lm_head = if config.tied { wte.clone() } else { own_head };
        Self { params, total: offset, wte, wpe, blocks, ln_f_weight, ln_f_bias, lm_head }
    }

    /// Returns the number of parameters, the tied head counted once: the length of the flat array.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Returns the parameters in the order of the flat array.
    pub fn iter(&self) -> std::slice::Iter<'_, Param> {
        self.params.iter()
    }

    /// Returns the parameter with a role, in a layer if it belongs to a block; `None` if the model has none.
    pub fn find(&self, role: Role, layer: Option<usize>) -> Option<&Param> {
        self.params.iter().find(|param| param.role == role && param.layer == layer)
    }

    /// Returns initial parameters, `[total]`. The same seed gives the same values on every machine. Each tensor has its own
    /// random stream, so that adding a layer does not change the others.
    pub fn init(&self, seed: u64) -> Vec<f32> {
        init(&self.params, self.total, seed)
    }
}

/// Returns the initial distribution of the parameters with a role.
fn init_of(role: Role, config: &Config) -> Init {
    match role {
        Role::Ln1Weight | Role::Ln2Weight | Role::LnFWeight | Role::QNormWeight | Role::KNormWeight => Init::Ones,
        // Residual projections add to the stream; this keeps its variance at init independent of depth.
        Role::AttnCProjWeight | Role::MlpCProjWeight => {
            Init::Normal { std: 0.02 / (2.0 * config.n_layer as f32).sqrt() }
        }
        role if role.is_bias() => Init::Zeros,
        _ => Init::Normal { std: 0.02 },
    }
}

/// Returns initial values of these parameters, `[total]`.
pub(crate) fn init(params: &[Param], total: usize, seed: u64) -> Vec<f32> {
    let mut flat = vec![0.0; total];
    for param in params {
        let values = &mut flat[param.range()];
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(param.stream);
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
                assert_eq!(param.offset, offset, "{} does not follow its predecessor", param.name());
                offset += param.len();
            }
            assert_eq!(offset, list.total());
            let found = list.total() as f64 / 1e6;
            assert!((found / expected - 1.0).abs() < 0.01, "{}: {found} M parameters", variant.name);
        }
    }

    #[test]
    fn without_biases_the_rest_is_as_with_them() {
        let config = Config::new(3, 2, 8, 4, 50);
        let without = Config { bias: false, ..config.clone() };
        let (list, full) = (ParamList::new(&without), ParamList::new(&config));
        let (values, full_values) = (list.init(7), full.init(7));
        assert_eq!(list.total(), full.total() - (3 * (1 + 3 + 1 + 1 + 4 + 1) + 1) * 8);
        assert_eq!(list.iter().count(), 2 + 3 * 6 + 1);
        let mut offset = 0;
        for param in &list {
            assert_eq!((param.offset, param.role.is_bias()), (offset, false), "{}", param.name());
            offset += param.len();
            let other = full.find(param.role, param.layer).unwrap();
            assert_eq!((&param.shape, param.init, param.decays()), (&other.shape, other.init, other.decays()));
            assert_eq!(values[param.range()], full_values[other.range()], "{}", param.name());
        }
        assert_eq!((offset, values.len()), (list.total(), list.total()));
        for (block, next) in list.blocks.iter().zip(list.blocks.iter().skip(1)) {
            assert_eq!(
                (block.ln_1_bias.clone(), block.mlp_c_proj_bias.end),
                (block.c_attn_weight.start..block.c_attn_weight.start, next.ln_1_weight.start)
            );
            assert!(
                [&block.c_attn_bias, &block.attn_c_proj_bias, &block.ln_2_bias, &block.c_fc_bias]
                    .iter()
                    .all(|range| range.is_empty())
            );
        }
        assert_eq!(list.ln_f_bias, list.total()..list.total());
        assert_eq!((full.find(Role::LnFBias, None), list.find(Role::LnFBias, None)), (full.iter().last(), None));
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
                Init::Zeros => assert!(values.iter().all(|&v| v == 0.0), "{}", param.name()),
                Init::Ones => assert!(values.iter().all(|&v| v == 1.0), "{}", param.name()),
                Init::Normal { std } => {
                    let found = (values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32).sqrt();
                    assert!((found / std - 1.0).abs() < 0.1, "{}: std {found}, not {std}", param.name());
                }
                Init::Uniform { .. } => unreachable!("no parameter of a model starts uniform"),
            }
        }
    }
}
