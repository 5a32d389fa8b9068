//! Names of parameters in files, and the orientation of their matrices there: one table per format.

use super::role::Role;

/// Orientation of a parameter in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Orientation {
    /// As in the flat array: the weight of a linear layer is `[out, in]`, as in PyTorch's `Linear`.
    Same,
    /// Transposed: `[in, out]`, as in the `Conv1D` of `transformers`.
    Transposed,
}

use Orientation::{Same, Transposed};

/// Names of parameters in a file format, with `{}` for the layer.
#[derive(Debug)]
pub(crate) struct NameTable(&'static [(Role, &'static str, Orientation)]);

/// nanoGPT's state dict, which is the layout of NGen3's checkpoints.
pub(crate) const NANOGPT: NameTable = NameTable(&[
    (Role::Wte, "transformer.wte.weight", Same),
    (Role::Wpe, "transformer.wpe.weight", Same),
    (Role::Ln1Weight, "transformer.h.{}.ln_1.weight", Same),
    (Role::Ln1Bias, "transformer.h.{}.ln_1.bias", Same),
    (Role::CAttnWeight, "transformer.h.{}.attn.c_attn.weight", Same),
    (Role::CAttnBias, "transformer.h.{}.attn.c_attn.bias", Same),
    (Role::AttnCProjWeight, "transformer.h.{}.attn.c_proj.weight", Same),
    (Role::AttnCProjBias, "transformer.h.{}.attn.c_proj.bias", Same),
    (Role::Ln2Weight, "transformer.h.{}.ln_2.weight", Same),
    (Role::Ln2Bias, "transformer.h.{}.ln_2.bias", Same),
    (Role::CFcWeight, "transformer.h.{}.mlp.c_fc.weight", Same),
    (Role::CFcBias, "transformer.h.{}.mlp.c_fc.bias", Same),
    (Role::MlpCProjWeight, "transformer.h.{}.mlp.c_proj.weight", Same),
    (Role::MlpCProjBias, "transformer.h.{}.mlp.c_proj.bias", Same),
    (Role::LnFWeight, "transformer.ln_f.weight", Same),
    (Role::LnFBias, "transformer.ln_f.bias", Same),
]);

/// `GPT2LMHeadModel` of `transformers`. A bare `GPT2Model` omits [`HF_PREFIX`].
pub(crate) const HF_GPT2: NameTable = NameTable(&[
    (Role::Wte, "transformer.wte.weight", Same),
    (Role::Wpe, "transformer.wpe.weight", Same),
    (Role::Ln1Weight, "transformer.h.{}.ln_1.weight", Same),
    (Role::Ln1Bias, "transformer.h.{}.ln_1.bias", Same),
    (Role::CAttnWeight, "transformer.h.{}.attn.c_attn.weight", Transposed),
    (Role::CAttnBias, "transformer.h.{}.attn.c_attn.bias", Same),
    (Role::AttnCProjWeight, "transformer.h.{}.attn.c_proj.weight", Transposed),
    (Role::AttnCProjBias, "transformer.h.{}.attn.c_proj.bias", Same),
    (Role::Ln2Weight, "transformer.h.{}.ln_2.weight", Same),
    (Role::Ln2Bias, "transformer.h.{}.ln_2.bias", Same),
    (Role::CFcWeight, "transformer.h.{}.mlp.c_fc.weight", Transposed),
    (Role::CFcBias, "transformer.h.{}.mlp.c_fc.bias", Same),
    (Role::MlpCProjWeight, "transformer.h.{}.mlp.c_proj.weight", Transposed),
    (Role::MlpCProjBias, "transformer.h.{}.mlp.c_proj.bias", Same),
    (Role::LnFWeight, "transformer.ln_f.weight", Same),
    (Role::LnFBias, "transformer.ln_f.bias", Same),
]);

/// llama.cpp's architecture `gpt2`. Dimensions are listed innermost first; the bytes are in our layout.
pub(crate) const GGUF_GPT2: NameTable = NameTable(&[
    (Role::Wte, "token_embd.weight", Same),
    (Role::Wpe, "position_embd.weight", Same),
    (Role::Ln1Weight, "blk.{}.attn_norm.weight", Same),
    (Role::Ln1Bias, "blk.{}.attn_norm.bias", Same),
    (Role::CAttnWeight, "blk.{}.attn_qkv.weight", Same),
    (Role::CAttnBias, "blk.{}.attn_qkv.bias", Same),
    (Role::AttnCProjWeight, "blk.{}.attn_output.weight", Same),
    (Role::AttnCProjBias, "blk.{}.attn_output.bias", Same),
    (Role::Ln2Weight, "blk.{}.ffn_norm.weight", Same),
    (Role::Ln2Bias, "blk.{}.ffn_norm.bias", Same),
    (Role::CFcWeight, "blk.{}.ffn_up.weight", Same),
    (Role::CFcBias, "blk.{}.ffn_up.bias", Same),
    (Role::MlpCProjWeight, "blk.{}.ffn_down.weight", Same),
    (Role::MlpCProjBias, "blk.{}.ffn_down.bias", Same),
    (Role::LnFWeight, "output_norm.weight", Same),
    (Role::LnFBias, "output_norm.bias", Same),
]);

/// The head in nanoGPT's and Hugging Face's files, tied to the token embedding.
pub(crate) const LM_HEAD: &str = "lm_head.weight";
/// `base_model_prefix` of `transformers`, which starts the names of a model with a head.
pub(crate) const HF_PREFIX: &str = "transformer.";
/// Prefix of the names in a block of [`HF_GPT2`].
const HF_BLOCK: &str = "transformer.h.{}.";

impl NameTable {
    fn entry(&self, role: Role) -> (&'static str, Orientation) {
        let found = self.0.iter().find(|entry| entry.0 == role);
        let &(_, name, orientation) = found.expect("every table has every role");
        (name, orientation)
    }

    /// Returns the name of a parameter; `layer` is that of a block's.
    pub fn name(&self, role: Role, layer: Option<usize>) -> String {
        let (name, _) = self.entry(role);
        layer.map_or_else(|| name.into(), |layer| name.replacen("{}", &layer.to_string(), 1))
    }

    /// Returns true if the file stores the transpose of the matrix.
    pub fn is_transposed(&self, role: Role) -> bool {
        self.entry(role).1 == Transposed
    }

    /// Returns true if a name starts, up to the first dot, as one of the table does without `prefix`.
    pub fn has_start(&self, name: &str, prefix: &str) -> bool {
        let start = |name: &str| name.split_once('.').map(|(start, _)| start.to_owned());
        let mut names = self.0.iter().filter_map(|(_, name, _)| name.strip_prefix(prefix));
        names.any(|known| start(known) == start(name) && start(name).is_some())
    }
}

/// Returns the name of a linear layer within its block, as in `transformers` and `peft`: `attn.c_attn`. `weight` is the role of
/// its weight.
pub(super) fn module_in_block(weight: Role) -> &'static str {
    let name = HF_GPT2.entry(weight).0;
    name.strip_prefix(HF_BLOCK).and_then(|name| name.strip_suffix(".weight")).expect("a linear layer of a block")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_format_names_every_role_and_no_two_alike() {
        for table in [&NANOGPT, &HF_GPT2, &GGUF_GPT2] {
            assert_eq!(table.0.len(), Role::ALL.len());
            let mut names = HashSet::new();
            for role in Role::ALL {
                let in_block = table.entry(role).0.contains("{}");
                for layer in if in_block { vec![Some(0), Some(1), Some(11)] } else { vec![None] } {
                    let name = table.name(role, layer);
                    assert!(!name.contains('{') && names.insert(name.clone()), "{name}");
                    assert_eq!(name.ends_with(".bias"), role.is_bias(), "{name}");
                }
                assert_eq!(in_block, NANOGPT.entry(role).0.contains("{}"), "{role:?}");
                // Only matrices of linear layers can be transposed.
                assert!(!table.is_transposed(role) || role.is_layer_weight(), "{role:?}");
            }
            assert_eq!(names.len(), 4 + 3 * 12);
        }
    }

    #[test]
    fn names_of_a_bare_model_are_known_by_their_start() {
        for name in ["wte.weight", "wpe.weight", "h.0.attn.bias", "ln_f.bias"] {
            assert!(HF_GPT2.has_start(name, HF_PREFIX), "{name}");
        }
        for name in ["transformer.wte.weight", "lm_head.weight", "wte", "h", "ln_1.weight", ""] {
            assert!(!HF_GPT2.has_start(name, HF_PREFIX), "{name}");
        }
    }
}
