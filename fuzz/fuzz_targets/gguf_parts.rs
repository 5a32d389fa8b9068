#![no_main]
//! Input: metadata keys and tensors, from which a GGUF file with consistent counts and lengths is made. Its header is read, and if
//! that is well formed, its model.

use std::fs;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use ngen3_fuzz::Folder;
use ngen3_model::{Checkpoint, ParamList};

/// Keys that the readers know.
const KEYS: [&str; 20] = [
    "general.architecture",
    "general.alignment",
    "split.count",
    "llama.block_count",
    "llama.attention.head_count",
    "llama.attention.head_count_kv",
    "llama.embedding_length",
    "llama.feed_forward_length",
    "llama.context_length",
    "llama.attention.layer_norm_rms_epsilon",
    "llama.rope.freq_base",
    "tokenizer.ggml.model",
    "tokenizer.ggml.pre",
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.merges",
    "tokenizer.ggml.scores",
    "tokenizer.ggml.token_type",
    "tokenizer.ggml.eos_token_id",
    "tokenizer.chat_template",
    "gpt2.block_count",
];
const TEXTS: [&str; 8] = ["llama", "gpt2", "qwen2", "gpt-2", "a", "b", "a b", "ab"];
const NAMES: [&str; 13] = [
    "token_embd.weight",
    "output_norm.weight",
    "output.weight",
    "blk.0.attn_norm.weight",
    "blk.0.attn_q.weight",
    "blk.0.attn_k.weight",
    "blk.0.attn_v.weight",
    "blk.0.attn_output.weight",
    "blk.0.ffn_norm.weight",
    "blk.0.ffn_gate.weight",
    "blk.0.ffn_up.weight",
    "blk.0.ffn_down.weight",
    "rope_freqs.weight",
];

#[derive(Arbitrary, Debug)]
enum Content {
    Known(u8),
    Text(String),
    Small(u8),
    Number(u32),
    Wide(u64),
    Float(f32),
    Flag(bool),
    Texts(Vec<u8>),
    Numbers(Vec<u32>),
    Floats(Vec<f32>),
    Nested(Vec<Vec<u8>>),
}

#[derive(Arbitrary, Debug)]
struct Tensor {
    name: u8,
    dims: Vec<u8>,
    odd_dim: Option<u64>,
    kind: u8,
    at: u8,
    odd_at: Option<u64>,
}

#[derive(Arbitrary, Debug)]
struct File {
    keys: Vec<(u8, Option<String>, Content)>,
    tensors: Vec<Tensor>,
    data: u16,
    /// True if the keys of a small valid model come first.
    model: bool,
}

fn string(text: &str, file: &mut Vec<u8>) {
    file.extend((text.len() as u64).to_le_bytes());
    file.extend(text.as_bytes());
}

fn known(list: &'static [&str], index: u8) -> &'static str {
    list[usize::from(index) % list.len()]
}

fn content(content: &Content, file: &mut Vec<u8>) {
    let kind = |kind: u32, file: &mut Vec<u8>| file.extend(kind.to_le_bytes());
    let array = |kind: u32, len: usize, file: &mut Vec<u8>| {
        file.extend(9u32.to_le_bytes());
        file.extend(kind.to_le_bytes());
        file.extend((len as u64).to_le_bytes());
    };
    match content {
        Content::Known(index) => {
            kind(8, file);
            string(known(&TEXTS, *index), file);
        }
        Content::Text(text) => {
            kind(8, file);
            string(text, file);
        }
        Content::Small(value) => {
            kind(4, file);
            file.extend(u32::from(*value % 9).to_le_bytes());
        }
        Content::Number(value) => {
            kind(4, file);
            file.extend(value.to_le_bytes());
        }
        Content::Wide(value) => {
            kind(10, file);
            file.extend(value.to_le_bytes());
        }
        Content::Float(value) => {
            kind(6, file);
            file.extend(value.to_le_bytes());
        }
        Content::Flag(value) => {
            kind(7, file);
            file.push((*value).into());
        }
        Content::Texts(indexes) => {
            array(8, indexes.len(), file);
            indexes.iter().for_each(|&index| string(known(&TEXTS, index), file));
        }
        Content::Numbers(values) => {
            array(5, values.len(), file);
            values.iter().for_each(|value| file.extend(value.to_le_bytes()));
        }
        Content::Floats(values) => {
            array(6, values.len(), file);
            values.iter().for_each(|value| file.extend(value.to_le_bytes()));
        }
        Content::Nested(lists) => {
            array(9, lists.len(), file);
            for list in lists {
                file.extend(0u32.to_le_bytes());
                file.extend((list.len() as u64).to_le_bytes());
                file.extend(list);
            }
        }
    }
}

/// Keys of a model of width 4 with one layer and one head.
fn model() -> Vec<(&'static str, Content)> {
    let number = |name: &'static str, value: u8| (name, Content::Small(value));
    vec![
        ("general.architecture", Content::Known(0)),
        number("llama.block_count", 1),
        number("llama.attention.head_count", 1),
        number("llama.embedding_length", 4),
        number("llama.feed_forward_length", 4),
        number("llama.context_length", 8),
        ("llama.attention.layer_norm_rms_epsilon", Content::Float(1e-5)),
    ]
}

fuzz_target!(|input: File| {
    let first = if input.model { model() } else { Vec::new() };
    let count = (first.len() + input.keys.len()) as u64;
    let mut file = [&b"GGUF\x03\0\0\0"[..], &(input.tensors.len() as u64).to_le_bytes(), &count.to_le_bytes()].concat();
    for (name, value) in &first {
        string(name, &mut file);
        content(value, &mut file);
    }
    for (index, name, value) in &input.keys {
        string(name.as_deref().unwrap_or(known(&KEYS, *index)), &mut file);
        content(value, &mut file);
    }
    for tensor in &input.tensors {
        string(known(&NAMES, tensor.name), &mut file);
        let dims: Vec<u64> = tensor.dims.iter().take(4).map(|&dim| u64::from(dim % 9)).chain(tensor.odd_dim).collect();
        file.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|dim| file.extend(dim.to_le_bytes()));
        file.extend(u32::from(tensor.kind % 40).to_le_bytes());
        file.extend(tensor.odd_at.unwrap_or(u64::from(tensor.at) * 32).to_le_bytes());
    }
    file.resize(file.len() + usize::from(input.data), 0);
    if ngen3_model::fuzz::gguf_header(&file).is_ok() {
        let path = Folder::shared().path().join("x.gguf");
        fs::write(&path, &file).expect("a file");
        if let Ok(found) = Checkpoint::load(&path) {
            assert_eq!(found.params.len(), ParamList::new(&found.config).total());
        }
    }
});
