//! Model shapes and the named variants.
//!
//! [`Config`] holds everything that determines a model's parameters and computation: models with the same `Config` can exchange
//! weights. Training settings (learning rate, steps, …) are not part of it; [`Recipe`] holds a variant's defaults.

use serde::{Deserialize, Serialize};

use crate::{Error, Rope, RopeScaling};

/// GPT-2's vocabulary: 256 bytes, 50,000 merges and `<|endoftext|>`.
pub const GPT2_VOCAB_SIZE: usize = 50_257;

/// Largest size accepted; larger ones are mistakes or damaged files.
const MAX_DIM: usize = 1 << 24;

/// Family of models, which decides the names of parts in files; the parts themselves are those of [`Config`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// GPT-2 and nanoGPT: `c_attn` and `c_fc` are single matrices.
    #[default]
    Gpt2,
    /// Llama, SmolLM2 and others of this form, as are those below: `q_proj`, `k_proj`, `v_proj`, `gate_proj` and `up_proj`.
    Llama,
    /// Mistral.
    Mistral,
    /// Qwen2 and Qwen2.5: biases of queries, keys and values.
    Qwen2,
    /// Qwen3: norms of queries and keys.
    Qwen3,
}

impl Family {
    /// Returns `model_type` in Hugging Face's `config.json`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Gpt2 => "gpt2",
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }
}

/// Normalisation before attention, the MLP and the head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Norm {
    /// LayerNorm (Ba et al. 2016).
    #[default]
    LayerNorm,
    /// RMSNorm: no mean, no bias (Zhang & Sennrich 2019).
    RmsNorm,
}

/// Activation function of the MLP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// GPT-2's tanh approximation: `0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))` (Hendrycks & Gimpel 2016).
    #[default]
    GeluNew,
    /// The exact GELU, `x·Φ(x)`, as in nanoGPT.
    Gelu,
    /// `silu(gate(x))·up(x)` with `silu(x) = x·sigmoid(x)`: the MLP has two input projections (Shazeer 2020).
    Swiglu,
}

/// Shape and parts of a decoder. Field names are nanoGPT's, of other parts those of `transformers`. Defaults are GPT-2's, and
/// files omit what GPT-2 lacks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Number of transformer blocks.
    pub n_layer: usize,
    /// Number of attention heads; divides `n_embd`.
    pub n_head: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Context length, in tokens: the rows of `wpe`.
    pub block_size: usize,
    /// Number of tokens in the vocabulary: the rows of `wte`. Ids start at 0.
    pub vocab_size: usize,
    /// Activation function of the MLP.
    #[serde(default)]
    pub activation: Activation,
    /// Added to the variance in every norm.
    #[serde(default = "default_layer_norm_epsilon")]
    pub layer_norm_epsilon: f32,
    /// True if linear layers and LayerNorms have biases, as in GPT-2. nanoGPT can train models without.
    // Omitted if true, so that hashes and older files stay valid.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub bias: bool,
    /// Family that names its parts in files.
    #[serde(default, skip_serializing_if = "is_default")]
    pub family: Family,
    /// Normalisation.
    #[serde(default, skip_serializing_if = "is_default")]
    pub norm: Norm,
    /// Number of heads of keys and values, which divides `n_head`; `None` if as many (grouped-query attention, Ainslie et al.
    /// 2023).
    #[serde(default, skip_serializing_if = "is_default")]
    pub n_kv_head: Option<usize>,
    /// Width of one attention head; `None` for `n_embd / n_head`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub head_dim: Option<usize>,
    /// Width of the MLP's hidden layer; `None` for `4·n_embd`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub n_inner: Option<usize>,
    /// Rotary positions; `None` for learned ones, `wpe`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub rope: Option<Rope>,
    /// True if the projections to queries, keys and values have biases though others have none. In Llama and Qwen3, attention's
    /// output projection then has one too.
    #[serde(default, skip_serializing_if = "is_default")]
    pub qkv_bias: bool,
    /// True if the MLP's projections have biases though others have none.
    #[serde(default, skip_serializing_if = "is_default")]
    pub mlp_bias: bool,
    /// True if each head's queries and keys are normalised (RMSNorm) before they are rotated.
    #[serde(default, skip_serializing_if = "is_default")]
    pub qk_norm: bool,
    /// True if the head's matrix is the token embedding.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub tied: bool,
}

/// One of the sizes of a shape, accessed by name.
#[derive(Clone, Copy, Debug)]
pub struct SizeField {
    /// nanoGPT's name, which is also the field's.
    pub name: &'static str,
    /// Returns the size.
    pub get: fn(&Config) -> usize,
    /// Sets the size.
    pub set: fn(&mut Config, usize),
}

macro_rules! size_fields {
    ($($name:ident),*) => {
        [$(SizeField {
            name: stringify!($name),
            get: |config| config.$name,
            set: |config, size| config.$name = size,
        }),*]
    };
}

fn default_layer_norm_epsilon() -> f32 {
    1e-5
}

fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
fn is_yes(value: &bool) -> bool {
    *value
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Config {
    /// The sizes, in the order of the arguments of [`Config::new`].
    pub const SIZES: [SizeField; 5] = size_fields![n_layer, n_head, n_embd, block_size, vocab_size];

    /// Creates a shape with GPT-2's activation, epsilon and biases.
    pub fn new(n_layer: usize, n_head: usize, n_embd: usize, block_size: usize, vocab_size: usize) -> Self {
        Self {
            n_layer,
            n_head,
            n_embd,
            block_size,
            vocab_size,
            activation: Activation::default(),
            layer_norm_epsilon: default_layer_norm_epsilon(),
            bias: true,
            family: Family::Gpt2,
            norm: Norm::LayerNorm,
            n_kv_head: None,
            head_dim: None,
            n_inner: None,
            rope: None,
            qkv_bias: false,
            mlp_bias: false,
            qk_norm: false,
            tied: true,
        }
    }

    /// Creates a shape of the Llama family: RMSNorm, rotary positions, grouped-query attention, SwiGLU, tied head, as SmolLM2.
    pub fn llama(
        n_layer: usize,
        n_head: usize,
        n_kv_head: usize,
        n_embd: usize,
        n_inner: usize,
        block_size: usize,
        vocab_size: usize,
    ) -> Self {
        Self {
            activation: Activation::Swiglu,
            bias: false,
            family: Family::Llama,
            norm: Norm::RmsNorm,
            n_kv_head: Some(n_kv_head),
            n_inner: Some(n_inner),
            rope: Some(Rope { theta: 10_000.0, context: block_size, scaling: RopeScaling::Default }),
            ..Self::new(n_layer, n_head, n_embd, block_size, vocab_size)
        }
    }

    /// As [`Config::new`], with the sizes that `size` returns for the names of [`Config::SIZES`].
    ///
    /// # Errors
    /// The first error of `size`.
    pub fn from_sizes<E>(mut size: impl FnMut(&'static str) -> Result<usize, E>) -> Result<Self, E> {
        let mut config = Self::new(0, 0, 0, 0, 0);
        for field in Self::SIZES {
            (field.set)(&mut config, size(field.name)?);
        }
        Ok(config)
    }

    /// Number of heads of keys and of values.
    pub fn kv_heads(&self) -> usize {
        self.n_kv_head.unwrap_or(self.n_head)
    }

    /// Width of one attention head.
    pub fn head_width(&self) -> usize {
        self.head_dim.unwrap_or(self.n_embd / self.n_head)
    }

    /// Width of all heads of queries together, which is that of attention's output.
    pub fn q_width(&self) -> usize {
        self.n_head * self.head_width()
    }

    /// Width of all heads of keys together, and of values.
    pub fn kv_width(&self) -> usize {
        self.kv_heads() * self.head_width()
    }

    /// Width of queries, keys and values together.
    pub fn qkv_width(&self) -> usize {
        self.q_width() + 2 * self.kv_width()
    }

    /// True if `qkv_bias` holds for attention's output projection too.
    pub fn o_bias(&self) -> bool {
        self.qkv_bias && matches!(self.family, Family::Llama | Family::Qwen3)
    }

    /// Width of the MLP's hidden layer after the activation.
    pub fn inner_width(&self) -> usize {
        self.n_inner.unwrap_or(4 * self.n_embd)
    }

    /// Width of the output of the MLP's input projection: with SwiGLU, of its two.
    pub fn fc_width(&self) -> usize {
        match self.activation {
            Activation::Swiglu => 2 * self.inner_width(),
            Activation::GeluNew | Activation::Gelu => self.inner_width(),
        }
    }

    /// Returns `layer_norm_epsilon` as files store it, in its shortest decimal form: 1e-5, not 9.999999747378752e-06.
    pub(crate) fn written_epsilon(&self) -> f64 {
        self.layer_norm_epsilon.to_string().parse().expect("a printed float parses")
    }

    /// Checks that the shape is valid.
    ///
    /// # Errors
    /// [`Error::Config`] naming the first field that is 0, too large or not divisible.
    pub fn validate(&self) -> Result<(), Error> {
        for SizeField { name, get, .. } in Self::SIZES {
            let value = get(self);
            if value == 0 || value > MAX_DIM {
                return Err(Error::Config(format!("{name} is {value}; it must be between 1 and {MAX_DIM}")));
            }
        }
        for (name, value) in [("n_kv_head", self.n_kv_head), ("head_dim", self.head_dim), ("n_inner", self.n_inner)] {
            if let Some(value) = value.filter(|&value| value == 0 || value > MAX_DIM) {
                return Err(Error::Config(format!("{name} is {value}; it must be between 1 and {MAX_DIM}")));
            }
        }
        if self.head_dim.is_none() && !self.n_embd.is_multiple_of(self.n_head) {
            return Err(Error::Config(format!("n_embd {} is not a multiple of n_head {}", self.n_embd, self.n_head)));
        }
        if !self.n_head.is_multiple_of(self.kv_heads()) {
            let (n_head, n_kv_head) = (self.n_head, self.kv_heads());
            return Err(Error::Config(format!("n_head {n_head} is not a multiple of n_kv_head {n_kv_head}")));
        }
        self.check_parts().map_err(Error::Config)?;
        if !(self.layer_norm_epsilon > 0.0 && self.layer_norm_epsilon < 1.0) {
            return Err(Error::Config(format!(
                "layer_norm_epsilon is {}; it must be between 0 and 1",
                self.layer_norm_epsilon
            )));
        }
        // Counts the largest matrices with checked arithmetic; other code multiplies sizes unchecked.
        let of = |rows: usize, heads: usize, columns: usize| rows.checked_mul(heads)?.checked_mul(columns);
        let total = || {
            let head = self.head_width();
            let queries = of(self.n_head, head, self.n_embd)?.checked_mul(2)?;
            let keys = of(self.kv_heads(), head, self.n_embd)?.checked_mul(2)?;
            let mlp = of(self.inner_width(), self.n_embd, 3)?;
            let layer = queries.checked_add(keys)?.checked_add(mlp)?;
            let tables = (2 * self.vocab_size + self.block_size) * self.n_embd;
            layer.checked_mul(self.n_layer)?.checked_add(tables)
        };
        let total = total();
        match total {
            Some(n) if n < 1 << 42 => Ok(()),
            _ => Err(Error::Config("the model would have more than 4 trillion parameters".into())),
        }
    }

    /// Checks that the parts occur together in a family. The error is the reason alone.
    fn check_parts(&self) -> Result<(), String> {
        let family = self.family.model_type();
        if self.family == Family::Gpt2 {
            let odd = [
                (self.norm != Norm::LayerNorm, "norm"),
                (self.activation == Activation::Swiglu, "activation"),
                (self.n_kv_head.is_some(), "n_kv_head"),
                (self.head_dim.is_some(), "head_dim"),
                (self.n_inner.is_some(), "n_inner"),
                (self.rope.is_some(), "rope"),
                (self.qkv_bias, "qkv_bias"),
                (self.mlp_bias, "mlp_bias"),
                (self.qk_norm, "qk_norm"),
                (!self.tied, "tied"),
            ];
            return match odd.into_iter().find(|(odd, _)| *odd) {
                Some((_, name)) => Err(format!("{name}: the family {family} has no such part")),
                None => Ok(()),
            };
        }
        let missing = [
            (self.norm != Norm::RmsNorm, "norm: expected rms_norm"),
            (self.activation != Activation::Swiglu, "activation: expected swiglu"),
            (self.rope.is_none(), "rope: expected rotary positions"),
            (self.bias, "bias: expected false"),
        ];
        if let Some((_, reason)) = missing.into_iter().find(|(missing, _)| *missing) {
            return Err(format!("{reason} in the family {family}"));
        }
        let odd = [
            (self.qkv_bias && self.family == Family::Mistral, "qkv_bias"),
            (self.mlp_bias && self.family != Family::Llama, "mlp_bias"),
        ];
        if let Some((_, name)) = odd.into_iter().find(|(odd, _)| *odd) {
            return Err(format!("{name}: the family {family} has no such part"));
        }
        if !self.head_width().is_multiple_of(2) {
            return Err(format!("expected heads of an even width for rotary positions, got {}", self.head_width()));
        }
        let Some(rope) = self.rope else { return Ok(()) };
        if rope.context < self.block_size || rope.context > MAX_DIM {
            return Err(format!(
                "block_size is {}; it must be at most {}, the model's context",
                self.block_size, rope.context
            ));
        }
        rope.check()
    }
}

/// Training defaults of a variant.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Recipe {
    /// Number of sequences of `block_size` tokens in a micro-batch.
    pub batch_size: usize,
    /// Peak learning rate of AdamW.
    pub learning_rate: f32,
    /// Number of optimizer steps.
    pub max_iters: usize,
}

/// Named shape with its training defaults.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Variant {
    /// Label such as `7M`; the true parameter count is [`crate::ParamList::total`].
    pub name: &'static str,
    layers_heads_width_block: (usize, usize, usize, usize),
    /// Training defaults.
    pub recipe: Recipe,
}

const fn variant(
    name: &'static str,
    shape: (usize, usize, usize, usize),
    batch_size: usize,
    learning_rate: f32,
    max_iters: usize,
) -> Variant {
    Variant { name, layers_heads_width_block: shape, recipe: Recipe { batch_size, learning_rate, max_iters } }
}

/// All variants, smallest first.
pub const VARIANTS: [Variant; 7] = [
    variant("7M", (4, 4, 128, 128), 16, 3e-4, 2_000),
    variant("120M", (12, 8, 512, 256), 32, 3e-4, 5_000),
    variant("300M", (24, 16, 1024, 512), 16, 3e-4, 10_000),
    variant("500M", (28, 18, 1152, 512), 16, 2.5e-4, 10_000),
    variant("700M", (36, 20, 1280, 1024), 8, 2.5e-4, 20_000),
    variant("1B", (40, 22, 1408, 1024), 8, 2e-4, 20_000),
    variant("7B", (32, 32, 4096, 1024), 4, 1.2e-4, 20_000),
];

/// Size of OpenAI's GPT-2 that a variant is named after. Their shapes can differ.
#[derive(Debug)]
pub struct Gpt2 {
    /// Name of the variant.
    pub variant: &'static str,
    /// Repository on the Hugging Face Hub.
    pub repo: &'static str,
    /// Number of transformer blocks.
    pub n_layer: usize,
    /// Number of attention heads.
    pub n_head: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
}

/// Sizes of GPT-2, smallest first.
pub const GPT2: [Gpt2; 4] = [
    Gpt2 { variant: "120M", repo: "openai-community/gpt2", n_layer: 12, n_head: 12, n_embd: 768 },
    Gpt2 { variant: "300M", repo: "openai-community/gpt2-medium", n_layer: 24, n_head: 16, n_embd: 1024 },
    Gpt2 { variant: "700M", repo: "openai-community/gpt2-large", n_layer: 36, n_head: 20, n_embd: 1280 },
    Gpt2 { variant: "1B", repo: "openai-community/gpt2-xl", n_layer: 48, n_head: 25, n_embd: 1600 },
];

impl Variant {
    /// Finds a variant by name, ignoring case (`7m` is `7M`).
    ///
    /// # Errors
    /// [`Error::Config`] listing the variants.
    pub fn by_name(name: &str) -> Result<&'static Variant, Error> {
        VARIANTS.iter().find(|v| v.name.eq_ignore_ascii_case(name)).ok_or_else(|| {
            let names: Vec<_> = VARIANTS.iter().map(|v| v.name).collect();
            Error::Config(format!("expected one of {}", names.join(", ")))
        })
    }

    /// Returns the size of GPT-2 that the variant is named after, if any.
    pub fn gpt2(&self) -> Option<&'static Gpt2> {
        GPT2.iter().find(|gpt2| gpt2.variant == self.name)
    }

    /// Returns true if a model has the layers, heads and width of this variant, or of the GPT-2 that it is named after. Block
    /// and vocabulary size may differ.
    pub fn fits(&self, config: &Config) -> bool {
        let (n_layer, n_head, n_embd, _) = self.layers_heads_width_block;
        let found = (config.n_layer, config.n_head, config.n_embd);
        found == (n_layer, n_head, n_embd)
            || self.gpt2().is_some_and(|gpt2| found == (gpt2.n_layer, gpt2.n_head, gpt2.n_embd))
    }

    /// Returns the shape, with GPT-2's vocabulary.
    pub fn config(&self) -> Config {
        let (n_layer, n_head, n_embd, block_size) = self.layers_heads_width_block;
        Config::new(n_layer, n_head, n_embd, block_size, GPT2_VOCAB_SIZE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn biases_are_mentioned_only_where_there_are_none() {
        let config = Config::new(2, 3, 12, 16, 97);
        let text = r#"{"n_layer":2,"n_head":3,"n_embd":12,"block_size":16,"vocab_size":97,"activation":"gelu_new","layer_norm_epsilon":0.00001"#;
        assert_eq!(serde_json::to_string(&config).unwrap(), format!("{text}}}"));
        let without = Config { bias: false, ..config.clone() };
        assert_eq!(serde_json::to_string(&without).unwrap(), format!("{text},\"bias\":false}}"));
        for config in [config, without] {
            assert_eq!(serde_json::from_str::<Config>(&serde_json::to_string(&config).unwrap()).unwrap(), config);
        }
    }

    #[test]
    fn sizes_are_read_and_set_by_name() {
        let config = Config::from_sizes(|name| Ok::<_, ()>(name.len())).unwrap();
        assert_eq!(config, Config::new(7, 6, 6, 10, 10));
        assert_eq!(Config::SIZES.map(|field| (field.get)(&config)), [7, 6, 6, 10, 10]);
        assert_eq!(Config::from_sizes(|name| if name == "n_embd" { Err(name) } else { Ok(1) }), Err("n_embd"));
    }

    #[test]
    fn a_variant_fits_its_own_shape_and_that_of_the_gpt2_named_after_it() {
        let variant = Variant::by_name("120M").unwrap();
        let own_vocabulary = Config { vocab_size: 97, block_size: 16, ..variant.config() };
        assert!(variant.fits(&variant.config()) && variant.fits(&own_vocabulary));
        assert!(variant.fits(&Config::new(12, 12, 768, 1024, 50_257)));
        assert!(!variant.fits(&Config::new(12, 8, 768, 1024, 50_257)));
        assert!(Variant::by_name("7M").unwrap().gpt2().is_none());
    }
}
