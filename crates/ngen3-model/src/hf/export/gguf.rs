//! GGUF: one file with the weights and the tokenizer, for llama.cpp.
//!
//! The format is GGML's `docs/gguf.md`, version 3: key-value pairs, a list of tensors, the tensors. Names are those of
//! llama.cpp's architecture `gpt2`; its matrices have our layout. Vectors and `wpe` are always f32, as llama.cpp expects; a
//! matrix whose rows do not divide into blocks of `q8_0` is f16.

use std::io::{self, Write};

use super::encode::{Encoder, ExportDtype, Q8_BLOCK};
use crate::gguf::{ALIGNMENT, MAGIC, TensorType, VERSION};
use crate::hf::tokenizer::ByteLevel;
use crate::params::WithBiases;
use crate::params::names::GGUF_GPT2;
use crate::{Config, Param, Role};

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
}

/// Writes a whole file.
pub(super) fn write(file: &mut impl Write, model: &Model, dtype: ExportDtype) -> io::Result<()> {
    let list = model.weights.list();
    let values = values(model, dtype);
    let mut head = Bytes(Vec::new());
    head.0.extend(MAGIC);
    head.u32(VERSION);
    head.u64(list.iter().count() as u64);
    head.u64(values.count);
    head.0.extend(values.bytes.0);
    let mut start = 0;
    for param in list {
        let dtype = dtype_of(param, dtype);
        head.string(&GGUF_GPT2.name(param.role, param.layer));
        head.u32(param.shape.len() as u32);
        // The innermost dimension comes first.
        param.shape.iter().rev().for_each(|&dim| head.u64(dim as u64));
        let tensor_type = match dtype {
            ExportDtype::F32 => TensorType::F32,
            ExportDtype::F16 => TensorType::F16,
            ExportDtype::Q8_0 => TensorType::Q8_0,
            ExportDtype::Bf16 => TensorType::Bf16,
        };
        head.u32(tensor_type.number());
        head.u64(start as u64);
        start += dtype.bytes(param.len()).next_multiple_of(PADDING);
    }
    head.pad();
    file.write_all(&head.0)?;
    for param in list {
        let dtype = dtype_of(param, dtype);
        let mut encoder = Encoder::new(file, dtype);
        model.weights.values(param).chunks(1 << 16).try_for_each(|values| encoder.write(param, values))?;
        let len = dtype.bytes(param.len());
        file.write_all(&[0; PADDING][..len.next_multiple_of(PADDING) - len])?;
    }
    Ok(())
}

fn dtype_of(param: &Param, asked: ExportDtype) -> ExportDtype {
    match param.shape.as_slice() {
        [_] => ExportDtype::F32,
        _ if param.role == Role::Wpe => ExportDtype::F32,
        [_, width] if asked == ExportDtype::Q8_0 && !width.is_multiple_of(Q8_BLOCK) => ExportDtype::F16,
        _ => asked,
    }
}

fn values(model: &Model, dtype: ExportDtype) -> Values {
    let Config { n_layer, n_head, n_embd, block_size, vocab_size, layer_norm_epsilon, .. } = *model.config;
    let file_type = match dtype {
        ExportDtype::F32 => 0,
        ExportDtype::F16 => 1,
        ExportDtype::Q8_0 => 7,
        ExportDtype::Bf16 => 32,
    };
    let mut values = Values { count: 0, bytes: Bytes(Vec::new()) };
    values.string("general.architecture", "gpt2");
    values.string("general.type", "model");
    values.string("general.name", model.name);
    values.u32("general.file_type", file_type);
    values.u32("general.quantization_version", 2);
    values.u32("gpt2.block_count", n_layer as u32);
    values.u32("gpt2.context_length", block_size as u32);
    values.u32("gpt2.embedding_length", n_embd as u32);
    values.u32("gpt2.feed_forward_length", 4 * n_embd as u32);
    values.u32("gpt2.attention.head_count", n_head as u32);
    values.f32("gpt2.attention.layer_norm_epsilon", layer_norm_epsilon);

    values.string("tokenizer.ggml.model", "gpt2");
    values.string("tokenizer.ggml.pre", "gpt-2");
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
    if let Some(eot) = model.eot {
        values.u32("tokenizer.ggml.bos_token_id", eot);
    }
    if let Some(end) = model.chat_end.or(model.eot) {
        values.u32("tokenizer.ggml.eos_token_id", end);
    }
    // llama.cpp stops at this one as well.
    if let (Some(_), Some(eot)) = (model.chat_end, model.eot) {
        values.u32("tokenizer.ggml.eot_token_id", eot);
    }
    values.bool("tokenizer.ggml.add_bos_token", false);
    if let Some(template) = model.chat_template {
        values.string("tokenizer.chat_template", template);
    }
    values
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
