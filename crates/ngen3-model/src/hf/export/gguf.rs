//! GGUF: one file with the weights and the tokenizer, for llama.cpp.
//!
//! The format is GGML's `docs/gguf.md`, version 3: key-value pairs, a list of tensors, the tensors. Names are those of
//! llama.cpp's architectures `gpt2`, `llama` (Mistral too), `qwen2` and `qwen3`; matrices have our layout, except that `llama`
//! pairs neighbouring rows of a head. Vectors and `wpe` are always f32, as llama.cpp expects; a matrix whose rows do not divide into
//! blocks of a quantized type is f16. With `q4_0`, the embedding and the head are `q8_0`: llama.cpp's quantizer, too, keeps more
//! bits of the head (`Q6_K`).

use std::io::{self, Write};

use super::encode::{BLOCK, Encoder, ExportDtype};
use crate::gguf::{ALIGNMENT, FREQUENCY_FACTORS, MAGIC, TensorType, VERSION, interleave, is_interleaved};
use crate::hf::tokenizer::ByteLevel;
use crate::params::WithBiases;
use crate::params::names;
use crate::{Config, Family, Param, Role, Rope, RopeScaling};

/// Alignment of tensors, in bytes.
const PADDING: usize = ALIGNMENT as usize;

/// Contents of a GGUF file.
pub(super) struct Model<'a> {
    pub name: &'a str,
    pub config: &'a Config,
    pub weights: &'a WithBiases<'a>,
    pub tokenizer: &'a ByteLevel<'a>,
    /// Id of the end-of-document token.
    pub eot: Option<u32>,
    /// Jinja chat template.
    pub chat_template: Option<&'a str>,
    /// Id of the token that ends the assistant's turn, if it is not `eot`.
    pub chat_end: Option<u32>,
    /// Id of the token that begins a text, if the tokenizer has one.
    pub bos: Option<u32>,
    /// True if every text begins with it.
    pub add_bos: bool,
}

/// Writes a whole file.
pub(super) fn write(file: &mut impl Write, model: &Model, dtype: ExportDtype) -> io::Result<()> {
    let list = model.weights.list();
    let values = values(model, dtype);
    let mut head = Bytes(Vec::new());
    head.0.extend(MAGIC);
    head.u32(VERSION);
    let divisors = frequency_divisors(model.config);
    head.u64(list.iter().count() as u64 + u64::from(divisors.is_some()));
    head.u64(values.count);
    head.0.extend(values.bytes.0);
    let mut start = 0;
    for param in list {
        let dtype = dtype_of(param, dtype);
        head.string(&names::gguf(param.family).name(param.role, param.layer));
        head.u32(param.shape.len() as u32);
        // The innermost dimension comes first.
        param.shape.iter().rev().for_each(|&dim| head.u64(dim as u64));
        let tensor_type = match dtype {
            ExportDtype::F32 => TensorType::F32,
            ExportDtype::F16 => TensorType::F16,
            ExportDtype::Q8_0 => TensorType::Q8_0,
            ExportDtype::Q4_0 => TensorType::Q4_0,
            ExportDtype::Bf16 => TensorType::Bf16,
        };
        head.u32(tensor_type.number());
        head.u64(start as u64);
        start += dtype.bytes(param.len()).next_multiple_of(PADDING);
    }
    if let Some(divisors) = &divisors {
        head.string(FREQUENCY_FACTORS);
        head.u32(1);
        head.u64(divisors.len() as u64);
        head.u32(TensorType::F32.number());
        head.u64(start as u64);
    }
    head.pad();
    file.write_all(&head.0)?;
    for param in list {
        let dtype = dtype_of(param, dtype);
        let mut encoder = Encoder::new(file, dtype);
        let mut values = model.weights.values(param);
        if is_interleaved(param) {
            interleave(values.to_mut(), model.config.head_width(), param.shape.get(1).copied().unwrap_or(1));
        }
        values.chunks(1 << 16).try_for_each(|values| encoder.write(param, values))?;
        let len = dtype.bytes(param.len());
        file.write_all(&[0; PADDING][..len.next_multiple_of(PADDING) - len])?;
    }
    let Some(divisors) = divisors else { return Ok(()) };
    let mut bytes: Vec<u8> = divisors.iter().flat_map(|divisor| divisor.to_le_bytes()).collect();
    bytes.resize(bytes.len().next_multiple_of(PADDING), 0);
    file.write_all(&bytes)
}

/// Returns the divisors of the frequencies that stand for Llama 3.1's scaling, `[head_width / 2]`.
fn frequency_divisors(config: &Config) -> Option<Vec<f32>> {
    let rope = config.rope.filter(|rope| matches!(rope.scaling, RopeScaling::Llama3 { .. }))?;
    let (scaled, _) = rope.frequencies(config.head_width());
    let (plain, _) = Rope { scaling: RopeScaling::Default, ..rope }.frequencies(config.head_width());
    Some(plain.iter().zip(scaled).map(|(plain, scaled)| plain / scaled).collect())
}

fn dtype_of(param: &Param, asked: ExportDtype) -> ExportDtype {
    match param.shape.as_slice() {
        [_] => ExportDtype::F32,
        _ if param.role == Role::Wpe => ExportDtype::F32,
        [_, width] if asked.is_quantized() && !width.is_multiple_of(BLOCK) => ExportDtype::F16,
        _ if asked == ExportDtype::Q4_0 && matches!(param.role, Role::Wte | Role::LmHeadWeight) => ExportDtype::Q8_0,
        _ => asked,
    }
}

fn values(model: &Model, dtype: ExportDtype) -> Values {
    let vocab_size = model.config.vocab_size;
    let file_type = match dtype {
        ExportDtype::F32 => 0,
        ExportDtype::F16 => 1,
        ExportDtype::Q4_0 => 2,
        ExportDtype::Q8_0 => 7,
        ExportDtype::Bf16 => 32,
    };
    let mut values = Values { count: 0, bytes: Bytes(Vec::new()) };
    values.string("general.type", "model");
    values.string("general.name", model.name);
    values.u32("general.file_type", file_type);
    values.u32("general.quantization_version", 2);
    shape(&mut values, model.config);

    values.string("tokenizer.ggml.model", "gpt2");
    values.string("tokenizer.ggml.pre", model.tokenizer.pre);
    // The vocabulary may be larger than the tokenizer's.
    let token = |id: usize| model.tokenizer.tokens.get(id).copied().flatten();
    let names = (0..vocab_size).map(|id| token(id).map_or_else(|| format!("[PAD{id}]"), |token| token.text.into()));
    values.strings("tokenizer.ggml.tokens", names);
    let types = (0..vocab_size).map(|id| match token(id).map(|token| token.added) {
        // Normal, control, user-defined, unused.
        Some(None) => 1,
        Some(Some(true)) => 3,
        Some(Some(false)) => 4,
        None => 5,
    });
    values.i32s("tokenizer.ggml.token_type", types);
    let merges = model.tokenizer.merges.iter().map(|(left, right)| format!("{left} {right}"));
    values.strings("tokenizer.ggml.merges", merges);
    if let Some(bos) = model.bos.or(model.eot) {
        values.u32("tokenizer.ggml.bos_token_id", bos);
    }
    if let Some(end) = model.chat_end.or(model.eot) {
        values.u32("tokenizer.ggml.eos_token_id", end);
    }
    // llama.cpp stops at this one as well.
    if let (Some(_), Some(eot)) = (model.chat_end, model.eot) {
        values.u32("tokenizer.ggml.eot_token_id", eot);
    }
    values.bool("tokenizer.ggml.add_bos_token", model.add_bos);
    if let Some(template) = model.chat_template {
        values.string("tokenizer.chat_template", template);
    }
    values
}

/// Writes the model's shape under the names of its architecture.
fn shape(values: &mut Values, config: &Config) {
    let architecture = match config.family {
        Family::Gpt2 => "gpt2",
        Family::Llama | Family::Mistral => "llama",
        Family::Qwen2 => "qwen2",
        Family::Qwen3 => "qwen3",
    };
    let key = |name: &str| format!("{architecture}.{name}");
    values.string("general.architecture", architecture);
    let mut size = |name: &str, size: usize| values.u32(&key(name), size as u32);
    size("block_count", config.n_layer);
    size("context_length", config.rope.map_or(config.block_size, |rope| rope.context));
    size("embedding_length", config.n_embd);
    size("feed_forward_length", config.inner_width());
    size("attention.head_count", config.n_head);
    let Some(rope) = config.rope else {
        return values.f32(&key("attention.layer_norm_epsilon"), config.layer_norm_epsilon);
    };
    let head = config.head_width();
    size("attention.head_count_kv", config.kv_heads());
    size("attention.key_length", head);
    size("attention.value_length", head);
    size("rope.dimension_count", head);
    size("vocab_size", config.vocab_size);
    values.f32(&key("attention.layer_norm_rms_epsilon"), config.layer_norm_epsilon);
    values.f32(&key("rope.freq_base"), rope.theta as f32);
    let (kind, factor, original) = match rope.scaling {
        // Llama 3.1's is a tensor.
        RopeScaling::Default | RopeScaling::Llama3 { .. } => return,
        RopeScaling::Linear { factor } => ("linear", factor, None),
        RopeScaling::Yarn { factor, original_max_position_embeddings: original, .. } => {
            ("yarn", factor, Some(original))
        }
    };
    values.string(&key("rope.scaling.type"), kind);
    values.f32(&key("rope.scaling.factor"), factor as f32);
    if let Some(original) = original {
        values.u32(&key("rope.scaling.original_context_length"), original as u32);
    }
}

/// Key-value pairs with their number.
struct Values {
    count: u64,
    bytes: Bytes,
}

impl Values {
    fn key(&mut self, name: &str, value_type: u32) {
        self.count += 1;
        self.bytes.string(name);
        self.bytes.u32(value_type);
    }

    fn u32(&mut self, name: &str, value: u32) {
        self.key(name, 4);
        self.bytes.u32(value);
    }

    fn f32(&mut self, name: &str, value: f32) {
        self.key(name, 6);
        self.bytes.u32(value.to_bits());
    }

    fn bool(&mut self, name: &str, value: bool) {
        self.key(name, 7);
        self.bytes.0.push(value.into());
    }

    fn string(&mut self, name: &str, value: &str) {
        self.key(name, 8);
        self.bytes.string(value);
    }

    fn strings(&mut self, name: &str, items: impl ExactSizeIterator<Item = String>) {
        self.array(name, 8, items.len());
        items.for_each(|item| self.bytes.string(&item));
    }

    fn i32s(&mut self, name: &str, items: impl ExactSizeIterator<Item = u32>) {
        self.array(name, 5, items.len());
        items.for_each(|item| self.bytes.u32(item));
    }

    fn array(&mut self, name: &str, item_type: u32, len: usize) {
        self.key(name, 9);
        self.bytes.u32(item_type);
        self.bytes.u64(len as u64);
    }
}

/// Buffer of little-endian bytes.
struct Bytes(Vec<u8>);

impl Bytes {
    fn u32(&mut self, value: u32) {
        self.0.extend(value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }

    fn string(&mut self, text: &str) {
        self.u64(text.len() as u64);
        self.0.extend(text.as_bytes());
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(PADDING), 0);
    }
}
