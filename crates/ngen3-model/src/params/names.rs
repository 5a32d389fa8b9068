//! Names of parameters in files, and the orientation of their matrices there: one table per format.

use super::role::Role;
use crate::Family;

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

/// `GPT2LMHeadModel` of `transformers`. A bare `GPT2Model` omits [`hf_prefix`].
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

/// `LlamaForCausalLM` of `transformers`, and the models of that form (Mistral, Qwen2, Qwen3).
pub(crate) const HF_LLAMA: NameTable = NameTable(&[
    (Role::Wte, "model.embed_tokens.weight", Same),
    (Role::Ln1Weight, "model.layers.{}.input_layernorm.weight", Same),
    (Role::QProjWeight, "model.layers.{}.self_attn.q_proj.weight", Same),
    (Role::KProjWeight, "model.layers.{}.self_attn.k_proj.weight", Same),
    (Role::VProjWeight, "model.layers.{}.self_attn.v_proj.weight", Same),
    (Role::QProjBias, "model.layers.{}.self_attn.q_proj.bias", Same),
    (Role::KProjBias, "model.layers.{}.self_attn.k_proj.bias", Same),
    (Role::VProjBias, "model.layers.{}.self_attn.v_proj.bias", Same),
    (Role::QNormWeight, "model.layers.{}.self_attn.q_norm.weight", Same),
    (Role::KNormWeight, "model.layers.{}.self_attn.k_norm.weight", Same),
    (Role::AttnCProjWeight, "model.layers.{}.self_attn.o_proj.weight", Same),
    (Role::AttnCProjBias, "model.layers.{}.self_attn.o_proj.bias", Same),
    (Role::Ln2Weight, "model.layers.{}.post_attention_layernorm.weight", Same),
    (Role::GateProjWeight, "model.layers.{}.mlp.gate_proj.weight", Same),
    (Role::UpProjWeight, "model.layers.{}.mlp.up_proj.weight", Same),
    (Role::GateProjBias, "model.layers.{}.mlp.gate_proj.bias", Same),
    (Role::UpProjBias, "model.layers.{}.mlp.up_proj.bias", Same),
    (Role::MlpCProjWeight, "model.layers.{}.mlp.down_proj.weight", Same),
    (Role::MlpCProjBias, "model.layers.{}.mlp.down_proj.bias", Same),
    (Role::LnFWeight, "model.norm.weight", Same),
    (Role::LmHeadWeight, LM_HEAD, Same),
]);

/// llama.cpp's architectures `llama`, `qwen2` and `qwen3`.
pub(crate) const GGUF_LLAMA: NameTable = NameTable(&[
    (Role::Wte, "token_embd.weight", Same),
    (Role::Ln1Weight, "blk.{}.attn_norm.weight", Same),
    (Role::QProjWeight, "blk.{}.attn_q.weight", Same),
    (Role::KProjWeight, "blk.{}.attn_k.weight", Same),
    (Role::VProjWeight, "blk.{}.attn_v.weight", Same),
    (Role::QProjBias, "blk.{}.attn_q.bias", Same),
    (Role::KProjBias, "blk.{}.attn_k.bias", Same),
    (Role::VProjBias, "blk.{}.attn_v.bias", Same),
    (Role::QNormWeight, "blk.{}.attn_q_norm.weight", Same),
    (Role::KNormWeight, "blk.{}.attn_k_norm.weight", Same),
    (Role::AttnCProjWeight, "blk.{}.attn_output.weight", Same),
    (Role::AttnCProjBias, "blk.{}.attn_output.bias", Same),
    (Role::Ln2Weight, "blk.{}.ffn_norm.weight", Same),
    (Role::GateProjWeight, "blk.{}.ffn_gate.weight", Same),
    (Role::UpProjWeight, "blk.{}.ffn_up.weight", Same),
    (Role::GateProjBias, "blk.{}.ffn_gate.bias", Same),
    (Role::UpProjBias, "blk.{}.ffn_up.bias", Same),
    (Role::MlpCProjWeight, "blk.{}.ffn_down.weight", Same),
    (Role::MlpCProjBias, "blk.{}.ffn_down.bias", Same),
    (Role::LnFWeight, "output_norm.weight", Same),
    (Role::LmHeadWeight, "output.weight", Same),
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

/// Returns the names in checkpoints: nanoGPT's, or Hugging Face's for the Llama family.
pub(crate) fn checkpoint(family: Family) -> &'static NameTable {
    if family == Family::Gpt2 { &NANOGPT } else { &HF_LLAMA }
}

/// Returns the names in `transformers`.
pub(crate) fn hugging_face(family: Family) -> &'static NameTable {
    if family == Family::Gpt2 { &HF_GPT2 } else { &HF_LLAMA }
}

/// Returns the names in GGUF files.
pub(crate) fn gguf(family: Family) -> &'static NameTable {
    if family == Family::Gpt2 { &GGUF_GPT2 } else { &GGUF_LLAMA }
}

/// The head in nanoGPT's and Hugging Face's files; it may be a second view of the token embedding.
pub(crate) const LM_HEAD: &str = "lm_head.weight";
/// Returns `base_model_prefix` of `transformers` and a dot, which start the names of a model with a head.
pub(crate) fn hf_prefix(family: Family) -> &'static str {
    if family == Family::Gpt2 { "transformer." } else { "model." }
}

/// Prefix of the names in a block of [`HF_GPT2`] and [`HF_LLAMA`].
const HF_BLOCKS: [&str; 2] = ["transformer.h.{}.", "model.layers.{}."];

impl NameTable {
    fn entry(&self, role: Role) -> (&'static str, Orientation) {
        let found = self.0.iter().find(|entry| entry.0 == role);
        let &(_, name, orientation) = found.expect("a table has every role of its family");
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
pub(super) fn module_in_block(family: Family, weight: Role) -> &'static str {
    let name = hugging_face(family).entry(weight).0;
    let name = HF_BLOCKS.iter().find_map(|block| name.strip_prefix(block));
    name.and_then(|name| name.strip_suffix(".weight")).expect("a linear layer of a block")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_format_names_every_role_of_its_family_and_no_two_alike() {
        for (family, tables) in
            [(Family::Gpt2, &[&NANOGPT, &HF_GPT2, &GGUF_GPT2][..]), (Family::Qwen2, &[&HF_LLAMA, &GGUF_LLAMA])]
        {
            for table in tables {
                let roles: Vec<_> = Role::ALL.into_iter().filter(|role| role.is_of(family)).collect();
                assert_eq!(table.0.len(), roles.len());
                let mut names = HashSet::new();
                for &role in &roles {
                    assert_eq!(table.entry(role).0.contains("{}"), role.is_in_block(), "{role:?}");
                    for layer in if role.is_in_block() { vec![Some(0), Some(1), Some(11)] } else { vec![None] } {
                        let name = table.name(role, layer);
                        assert!(!name.contains('{') && names.insert(name.clone()), "{name}");
                        assert_eq!(name.ends_with(".bias"), role.is_bias(), "{name}");
                    }
                    // Only matrices of linear layers can be transposed.
                    assert!(!table.is_transposed(role) || role.is_layer_weight(), "{role:?}");
                }
            }
        }
    }

    #[test]
    fn names_of_a_bare_model_are_known_by_their_start() {
        for name in ["wte.weight", "wpe.weight", "h.0.attn.bias", "ln_f.bias"] {
            assert!(HF_GPT2.has_start(name, "transformer."), "{name}");
        }
        for name in ["transformer.wte.weight", "lm_head.weight", "wte", "h", "ln_1.weight", ""] {
            assert!(!HF_GPT2.has_start(name, "transformer."), "{name}");
        }
    }
}
