//! The named variants: sizes of models, with their training defaults.

use crate::Error;
use crate::config::{Config, Family, GPT2_VOCAB_SIZE};

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
    /// Heads of keys and values, and width of the hidden layer, of the Llama family: the closest to GPT-2's count of parameters
    /// with a quarter to a half of the heads, and a hidden layer of a multiple of 64.
    kv_heads_inner: (usize, usize),
    /// Training defaults.
    pub recipe: Recipe,
}

const fn variant(
    name: &'static str,
    layers_heads_width_block: (usize, usize, usize, usize),
    kv_heads_inner: (usize, usize),
    batch_size: usize,
    learning_rate: f32,
    max_iters: usize,
) -> Variant {
    Variant { name, layers_heads_width_block, kv_heads_inner, recipe: Recipe { batch_size, learning_rate, max_iters } }
}

/// All variants, smallest first.
pub const VARIANTS: [Variant; 7] = [
    variant("7M", (4, 4, 128, 128), (1, 448), 16, 3e-4, 2_000),
    variant("120M", (12, 8, 512, 256), (2, 1664), 32, 3e-4, 5_000),
    variant("300M", (24, 16, 1024, 512), (4, 3264), 16, 3e-4, 10_000),
    variant("500M", (28, 18, 1152, 512), (6, 3584), 16, 2.5e-4, 10_000),
    variant("700M", (36, 20, 1280, 1024), (5, 4096), 8, 2.5e-4, 20_000),
    variant("1B", (40, 22, 1408, 1024), (11, 4224), 8, 2e-4, 20_000),
    variant("7B", (32, 32, 4096, 1024), (8, 12_992), 4, 1.2e-4, 20_000),
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

    /// Returns the shape of the GPT-2 family, with GPT-2's vocabulary.
    pub fn config(&self) -> Config {
        self.config_of(Family::Gpt2)
    }

    /// Returns the shape in a family, with GPT-2's vocabulary.
    pub fn config_of(&self, family: Family) -> Config {
        let (n_layer, n_head, n_embd, block_size) = self.layers_heads_width_block;
        let config = Config::of_family(family, n_layer, n_head, n_embd, block_size, GPT2_VOCAB_SIZE);
        if family == Family::Gpt2 {
            return config;
        }
        let (n_kv_head, n_inner) = self.kv_heads_inner;
        Config { n_kv_head: Some(n_kv_head), n_inner: Some(n_inner), ..config }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ParamList;

    #[test]
    fn variants_of_both_families_have_the_same_number_of_parameters() {
        for variant in &VARIANTS {
            let count = |family| ParamList::new(&variant.config_of(family)).total() as f64;
            for family in [Family::Llama, Family::Mistral, Family::Qwen2, Family::Qwen3] {
                let config = variant.config_of(family);
                config.validate().unwrap();
                assert!(variant.fits(&config), "{}", variant.name);
                assert!((2..=4).contains(&(config.n_head / config.kv_heads())), "{}", variant.name);
                let ratio = count(family) / count(Family::Gpt2);
                assert!((ratio - 1.0).abs() < 0.012, "{} {family:?}: {ratio}", variant.name);
            }
        }
        let [mut small, qwen] = [Family::Llama, Family::Qwen2].map(|family| VARIANTS[1].config_of(family));
        assert_eq!((small.kv_heads(), small.inner_width(), small.head_width()), (2, 1664, 64));
        assert_eq!((small.rope.unwrap().theta, small.tied, small.layer_norm_epsilon), (10_000.0, true, 1e-5));
        (small.family, small.qkv_bias) = (Family::Qwen2, true);
        assert_eq!(qwen, small);
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
