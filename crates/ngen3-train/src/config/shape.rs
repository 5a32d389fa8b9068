//! Shape and parts of a model, as given on the command line or in a TOML file: one list of optional fields.

use ngen3_model::{Activation, Config, Family, Rope, RopeScaling, Variant};

use crate::config::field::optional_fields;

/// Defines [`Shape`] from the list below, and its conversions from and to [`Config`]. A field is that of the same name in the
/// config, or has a pair of functions: the first returns its value, `None` in models without such a part; the second sets it.
macro_rules! shape {
    ($(
        $(#[doc = $doc:literal])*
        $name:ident: $type:ty $(= ($get:expr, $set:expr))? $(, $option:ident $value:tt)*;
    )*) => {
        optional_fields! {
            /// Shape of a model; `None` for fields that are not given.
            Shape { $($(#[doc = $doc])* $name: $type $(, $option $value)*;)* }
        }

        impl Shape {
            /// Sets the fields that are given.
            fn set(&self, config: &mut Config) {
                $(if let Some(value) = self.$name {
                    let (_, set): Accessors<$type> = accessors!($name $(, $get, $set)?);
                    set(config, value);
                })*
            }

            /// Lists the fields in which a config differs from this shape, as `name is FOUND, not ASKED; …`.
            pub(crate) fn differences_from(&self, config: &Config) -> String {
                let (found, mut differences) = (Self::from(config), Vec::new());
                $(match (found.$name, self.$name) {
                    (Some(found), Some(asked)) if asked != found => {
                        differences.push(format!("{} is {found:?}, not {asked:?}", stringify!($name)));
                    }
                    (None, Some(_)) => {
                        let family = config.family.model_type();
                        differences.push(format!("{}: the family {family} has no such part", stringify!($name)));
                    }
                    _ => {}
                })*
                differences.join("; ")
            }
        }

        impl From<&Config> for Shape {
            fn from(config: &Config) -> Self {
                Self { $($name: {
                    let (get, _): Accessors<$type> = accessors!($name $(, $get, $set)?);
                    get(config)
                },)* }
            }
        }
    };
}

/// Functions that return and set a part of a config.
type Accessors<T> = (fn(&Config) -> Option<T>, fn(&mut Config, T));

/// The two functions of a field.
macro_rules! accessors {
    ($name:ident) => {
        (|config| Some(config.$name), |config, value| config.$name = value)
    };
    ($name:ident, $get:expr, $set:expr) => {
        ($get, $set)
    };
}

shape! {
    /// Family of models: GPT-2, or one of the Llama family, which decides the norm, positions and MLP.
    family: Family, alias "arch";
    /// Number of transformer blocks.
    n_layer: usize, alias "layers";
    /// Number of attention heads.
    n_head: usize, alias "heads";
    /// Number of heads of keys and of values, a divisor of `n_head`.
    n_kv_head: usize = (|config| llama(config, Config::kv_heads), |config, n| config.n_kv_head = Some(n)),
        alias "kv_heads";
    /// Embedding width, that of the residual stream.
    n_embd: usize, alias "width";
    /// Width of one attention head.
    head_dim: usize = (|config| llama(config, Config::head_width), set_head_width), alias "head_width";
    /// Width of the MLP's hidden layer.
    n_inner: usize = (|config| llama(config, Config::inner_width), |config, n| config.n_inner = Some(n)),
        alias "hidden_width";
    /// Context length, in tokens.
    block_size: usize, alias "block",
        flag ("N", "Tokens per sequence, the model's context length", &"the variant's");
    /// Vocabulary size: rows of the token embedding.
    vocab_size: usize, alias "vocabulary";
    /// Activation function of the MLP.
    activation: Activation;
    /// Added to the variance in every norm.
    layer_norm_epsilon: f32, alias "norm_eps";
    /// Base of the rotary frequencies.
    rope_theta: f64 = (|config| config.rope.map(|rope| rope.theta), |config, theta| rope(config).theta = theta);
    /// Change of the rotary frequencies.
    rope_scaling: RopeScaling =
        (|config| config.rope.map(|rope| rope.scaling), |config, scaling| rope(config).scaling = scaling);
    /// True if linear layers and norms have biases, in GPT-2.
    bias: bool;
    /// True if the projections to queries, keys and values have biases: always in Qwen2; in Llama and Qwen3 with attention's
    /// output projection (`attention_bias`).
    qkv_bias: bool, alias "attention_bias";
    /// True if the MLP's layers have biases, in Llama.
    mlp_bias: bool;
    /// True if each head's queries and keys are normalised, in Qwen3.
    qk_norm: bool;
    /// True if the head's matrix is the token embedding.
    tied: bool;
}

/// Returns a part that GPT-2 lacks.
fn llama(config: &Config, part: fn(&Config) -> usize) -> Option<usize> {
    (config.family != Family::Gpt2).then(|| part(config))
}

/// Sets the width of heads. Files of models whose heads share their width evenly do not hold it.
fn set_head_width(config: &mut Config, width: usize) {
    config.head_dim = Some(width).filter(|width| width.checked_mul(config.n_head) != Some(config.n_embd));
}

/// Returns the rotary positions, which a shape of GPT-2 gains here so that its check can name them.
fn rope(config: &mut Config) -> &mut Rope {
    let context = config.block_size;
    config.rope.get_or_insert(Rope { theta: 10_000.0, context, scaling: RopeScaling::Default })
}

impl Shape {
    /// Returns the config of this shape. Missing fields take the variant's values, and then the family's, by default GPT-2's;
    /// `None` if n_layer, n_head, n_embd or block_size is missing, which have no default. `vocab_size` is the default for the
    /// vocabulary.
    pub(crate) fn config(&self, variant: Option<&Variant>, vocab_size: usize) -> Option<Config> {
        let family = self.family.unwrap_or_default();
        let of_variant = variant.map(|variant| variant.config_of(family));
        let sizes = Self::sizes_of(variant);
        let [n_layer, n_head, n_embd, block_size] = [
            self.n_layer.or(sizes.n_layer)?,
            self.n_head.or(sizes.n_head)?,
            self.n_embd.or(sizes.n_embd)?,
            self.block_size.or(sizes.block_size)?,
        ];
        let mut config = Config::of_family(family, n_layer, n_head, n_embd, block_size, vocab_size);
        // The variant's other sizes follow from these two.
        if let Some(own) = of_variant.filter(|own| (own.n_head, own.n_embd) == (n_head, n_embd)) {
            (config.n_kv_head, config.n_inner) = (own.n_kv_head, own.n_inner);
        }
        self.set(&mut config);
        Some(config)
    }

    /// Returns the sizes of a variant that it has in every family. The data and the checkpoint decide the rest.
    pub(crate) fn sizes_of(variant: Option<&Variant>) -> Self {
        let Some(Config { n_layer, n_head, n_embd, block_size, .. }) = variant.map(Variant::config) else {
            return Self::default();
        };
        let [n_layer, n_head, n_embd, block_size] = [n_layer, n_head, n_embd, block_size].map(Some);
        Self { n_layer, n_head, n_embd, block_size, ..Self::default() }
    }

    /// Returns `true` if layers, heads and width, where given, are those of the variant or of its GPT-2 counterpart.
    pub(crate) fn keeps_to(&self, variant: &Variant) -> bool {
        let Config { n_layer, n_head, n_embd, .. } = variant.config();
        let allows = |n_layer, n_head, n_embd| {
            let fields = [(self.n_layer, n_layer), (self.n_head, n_head), (self.n_embd, n_embd)];
            fields.into_iter().all(|(asked, own)| asked.is_none_or(|asked| asked == own))
        };
        allows(n_layer, n_head, n_embd)
            || variant.gpt2().is_some_and(|gpt2| allows(gpt2.n_layer, gpt2.n_head, gpt2.n_embd))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_and_a_config_are_made_of_one_another() {
        let gpt2 = Config { activation: Activation::Gelu, bias: false, ..Config::new(2, 3, 12, 8, 50) };
        let rope = Rope { theta: 5e5, context: 8, scaling: RopeScaling::Linear { factor: 2.0 } };
        let llama = Config { tied: false, mlp_bias: true, rope: Some(rope), ..Config::llama(2, 4, 2, 16, 20, 8, 50) };
        let qwen3 = Config {
            family: Family::Qwen3,
            qk_norm: true,
            head_dim: Some(10),
            layer_norm_epsilon: 1e-6,
            ..Config::llama(2, 3, 1, 12, 40, 8, 50)
        };
        let qwen2 = Config { family: Family::Qwen2, qkv_bias: true, ..Config::llama(2, 3, 1, 12, 40, 8, 50) };
        for config in [gpt2, llama, qwen3, qwen2] {
            config.validate().unwrap();
            let shape = Shape::from(&config);
            assert_eq!(shape.config(None, 7), Some(config.clone()), "a given vocabulary overrides the data's");
            assert_eq!(Shape { block_size: None, ..shape.clone() }.config(None, 7), None);
            assert_eq!(shape.config(Variant::by_name("7M").ok(), 7), Some(config));
        }
        let plain =
            Shape { n_layer: Some(2), n_head: Some(3), n_embd: Some(12), block_size: Some(8), ..Shape::default() };
        assert_eq!(plain.config(None, 7), Some(Config::new(2, 3, 12, 8, 7)));
        // 8/3 of the width is 32.
        let llama = Shape { family: Some(Family::Llama), head_dim: Some(4), ..plain };
        assert_eq!(llama.config(None, 7), Some(Config::llama(2, 3, 3, 12, 64, 8, 7)));
    }

    #[test]
    fn a_variant_gives_what_the_shape_leaves_out() {
        let variant = Variant::by_name("120M").unwrap();
        let of = |shape: Shape| shape.config(Some(variant), 97).unwrap();
        let own = |family| Config { vocab_size: 97, ..variant.config_of(family) };
        assert_eq!(of(Shape::default()), own(Family::Gpt2));
        let llama = Shape { family: Some(Family::Llama), ..Shape::default() };
        assert_eq!(of(llama.clone()), own(Family::Llama));
        let shorter = of(Shape { n_layer: Some(3), block_size: Some(16), ..llama.clone() });
        assert_eq!(shorter, Config::llama(3, 8, 2, 512, 1664, 16, 97));
        let wider = of(Shape { n_embd: Some(768), n_head: Some(12), ..llama });
        assert_eq!(wider, Config::llama(12, 12, 12, 768, 2048, 256, 97), "the sizes for another width are not its own");
    }

    #[test]
    fn differences_are_named_in_the_order_of_the_list() {
        let config = Config::new(2, 3, 12, 8, 50);
        assert_eq!(Shape::from(&config).differences_from(&config), "");
        assert_eq!(Shape::default().differences_from(&config), "");
        let asked =
            Shape { n_head: Some(4), vocab_size: Some(51), activation: Some(Activation::Gelu), ..Shape::from(&config) };
        let expected = "n_head is 3, not 4; vocab_size is 50, not 51; activation is GeluNew, not Gelu";
        assert_eq!(asked.differences_from(&config), expected);
        let asked = Shape { family: Some(Family::Llama), n_kv_head: Some(1), ..Shape::default() };
        let expected = "family is Gpt2, not Llama; n_kv_head: the family gpt2 has no such part";
        assert_eq!(asked.differences_from(&config), expected);
        let llama = Config::llama(2, 4, 2, 12, 20, 8, 50);
        assert_eq!(asked.differences_from(&llama), "n_kv_head is 2, not 1");
    }
}
