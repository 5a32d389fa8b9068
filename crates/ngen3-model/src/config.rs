//! Model shapes.
//!
//! [`Config`] holds everything that determines a model's parameters and computation: models with the same `Config` can exchange
//! weights. Training settings (learning rate, steps, …) are not part of it.

use std::str::FromStr;

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
    /// All families.
    pub const ALL: [Self; 5] = [Self::Gpt2, Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3];

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

impl FromStr for Family {
    type Err = String;

    /// Parses a `model_type`.
    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|family| family.model_type() == name).ok_or_else(|| {
            let names = Self::ALL.map(Self::model_type);
            let [first @ .., last] = &names;
            format!("expected {} or {last}", first.join(", "))
        })
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

    /// Creates a shape with the parts of a family and its defaults: in the Llama family as many heads of keys and values as of
    /// queries, and a hidden layer of 8/3 of the width, rounded up to a multiple of 64.
    pub fn of_family(
        family: Family,
        n_layer: usize,
        n_head: usize,
        n_embd: usize,
        block_size: usize,
        vocab_size: usize,
    ) -> Self {
        if family == Family::Gpt2 {
            return Self::new(n_layer, n_head, n_embd, block_size, vocab_size);
        }
        let n_inner = n_embd.saturating_mul(8).div_ceil(3).checked_next_multiple_of(64).unwrap_or(usize::MAX);
        Self::llama(n_layer, n_head, n_head, n_embd, n_inner, block_size, vocab_size).with_family(family)
    }

    /// Turns a shape of the Llama family into that of another family of its form, which may have biases or norms of queries and
    /// keys.
    pub(crate) fn with_family(self, family: Family) -> Self {
        Self { family, qkv_bias: family == Family::Qwen2, qk_norm: family == Family::Qwen3, ..self }
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
            (self.qk_norm && self.family != Family::Qwen3, "qk_norm"),
        ];
        if let Some((_, name)) = odd.into_iter().find(|(odd, _)| *odd) {
            return Err(format!("{name}: the family {family} has no such part"));
        }
        // Its files cannot say otherwise.
        let always = [
            (self.qkv_bias || self.family != Family::Qwen2, "qkv_bias"),
            (self.qk_norm || self.family != Family::Qwen3, "qk_norm"),
        ];
        if let Some((_, name)) = always.into_iter().find(|(has, _)| !*has) {
            return Err(format!("{name} is false; it is always true in the family {family}"));
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
}
