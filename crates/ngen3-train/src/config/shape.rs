//! Shape of a model, as given on the command line or in a TOML file: one list of optional fields.

use ngen3_model::{Activation, Config, Variant};

use crate::config::field::optional_fields;

/// Defines [`Shape`] from the list below, and its conversions from and to [`Config`], which has fields of the same names.
macro_rules! shape {
    ($($(#[doc = $doc:literal])* $name:ident: $type:ty $(, $option:ident $value:tt)*;)*) => {
        optional_fields! {
            /// Shape of a model; `None` for fields that are not given.
            Shape { $($(#[doc = $doc])* $name: $type $(, $option $value)*;)* }
        }

        impl Shape {
            /// Returns the config of this shape. Missing fields take `vocab_size` and GPT-2's values; `None` if n_layer,
            /// n_head, n_embd or block_size is missing, which have no default.
            pub(crate) fn config(&self, vocab_size: usize) -> Option<Config> {
                let mut config = Config::new(self.n_layer?, self.n_head?, self.n_embd?, self.block_size?, vocab_size);
                $(if let Some(value) = &self.$name {
                    config.$name = value.clone();
                })*
                Some(config)
            }

            /// Lists the fields in which a config differs from this shape, as `name is FOUND, not ASKED; …`.
            pub(crate) fn differences_from(&self, config: &Config) -> String {
                let mut differences = Vec::new();
                $(match (&config.$name, &self.$name) {
                    (found, Some(asked)) if asked != found => {
                        differences.push(format!("{} is {found:?}, not {asked:?}", stringify!($name)));
                    }
                    _ => {}
                })*
                differences.join("; ")
            }
        }

        impl From<&Config> for Shape {
            fn from(config: &Config) -> Self {
                Self { $($name: Some(config.$name.clone()),)* }
            }
        }
    };
}

shape! {
    /// Number of transformer blocks.
    n_layer: usize, alias "layers";
    /// Number of attention heads.
    n_head: usize, alias "heads";
    /// Embedding width, that of the residual stream.
    n_embd: usize, alias "width";
    /// Context length, in tokens.
    block_size: usize, alias "block",
        flag ("N", "Tokens per sequence, the model's context length", &"the variant's");
    /// Vocabulary size: rows of the token embedding.
    vocab_size: usize, alias "vocabulary";
    /// Activation function of the MLP.
    activation: Activation;
}

impl Shape {
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
        let config = Config { activation: Activation::Gelu, ..Config::new(2, 3, 12, 8, 50) };
        let shape = Shape::from(&config);
        assert_eq!(shape.config(7), Some(config), "a given vocabulary overrides the data's");
        assert_eq!(Shape { block_size: None, ..shape.clone() }.config(7), None);
        let plain = Shape { vocab_size: None, activation: None, ..shape };
        assert_eq!(plain.config(7), Some(Config::new(2, 3, 12, 8, 7)));
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
    }
}
