//! GGUF files, read back with a parser written from the format's specification.

use std::collections::HashMap;
use std::fs;

use half::f16;
use ngen3_model::hf::{Export, ExportDtype, ExportFormat, export};
use ngen3_model::{Activation, ChatFormat, Checkpoint, Config, ParamList};

use super::{fixture, plain, small};

#[derive(Debug, PartialEq)]
enum Value {
    U32(u32),
    F32(f32),
    Bool(bool),
    String(String),
    Strings(Vec<String>),
    I32s(Vec<i32>),
}

struct Gguf {
    values: HashMap<String, Value>,
    /// Dimensions, innermost first; type; data.
    tensors: HashMap<String, (Vec<u64>, u32, Vec<u8>)>,
}

struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (taken, rest) = self.0.split_first_chunk().expect("the file is long enough");
        self.0 = rest;
        *taken
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    fn string(&mut self) -> String {
        let len = self.u64() as usize;
        let (text, rest) = self.0.split_at(len);
        self.0 = rest;
        String::from_utf8(text.to_vec()).unwrap()
    }

    fn value(&mut self) -> Value {
        match self.u32() {
            4 => Value::U32(self.u32()),
            6 => Value::F32(f32::from_bits(self.u32())),
            7 => Value::Bool(self.take() == [1]),
            8 => Value::String(self.string()),
            9 => match (self.u32(), self.u64()) {
                (5, len) => Value::I32s((0..len).map(|_| self.u32() as i32).collect()),
                (8, len) => Value::Strings((0..len).map(|_| self.string()).collect()),
                other => panic!("an array of {other:?}"),
            },
            other => panic!("a value of the type {other}"),
        }
    }
}

fn parse(bytes: &[u8]) -> Gguf {
    let mut cursor = Cursor(bytes);
    assert_eq!(&cursor.take(), b"GGUF");
    assert_eq!(cursor.u32(), 3);
    let (tensors, values) = (cursor.u64(), cursor.u64());
    let values = (0..values).map(|_| (cursor.string(), cursor.value())).collect();
    let infos: Vec<_> = (0..tensors)
        .map(|_| {
            let name = cursor.string();
            let dims: Vec<u64> = (0..cursor.u32()).map(|_| cursor.u64()).collect();
            (name, dims, cursor.u32(), cursor.u64() as usize)
        })
        .collect();
    let start = (bytes.len() - cursor.0.len()).next_multiple_of(32);
    let mut expected = 0;
    let tensors = infos.into_iter().map(|(name, dims, kind, offset)| {
        assert_eq!(offset, expected, "{name} follows its predecessor");
        let elements = dims.iter().product::<u64>() as usize;
        let len = match kind {
            0 => 4 * elements,
            1 | 30 => 2 * elements,
            2 => elements / 32 * 18,
            8 => elements / 32 * 34,
            other => panic!("{name} is of the type {other}"),
        };
        expected = (offset + len).next_multiple_of(32);
        (name, (dims, kind, bytes[start + offset..start + offset + len].to_vec()))
    });
    let tensors = tensors.collect();
    assert_eq!(bytes.len(), start + expected);
    Gguf { values, tensors }
}

fn exported(checkpoint: &Checkpoint, dtype: ExportDtype) -> Result<Gguf, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out");
    let text = fs::read_to_string(fixture("tokenizer").join("tokenizer.json")).unwrap();
    let with = Export {
        tokenizer: Some(&text),
        eot: Some(("<|endoftext|>", 0)),
        format: ExportFormat::Gguf,
        dtype,
        ..plain(checkpoint)
    };
    let files = export(&with, &path, false).map_err(|error| error.to_string())?.files;
    assert_eq!(files[0].0, "README.md");
    assert_eq!(files[1].0, format!("small-{}.gguf", dtype.name()));
    assert!(fs::read_to_string(path.join("README.md")).unwrap().contains(&format!("llama-cli -m {}", files[1].0)));
    Ok(parse(&fs::read(path.join(&files[1].0)).unwrap()))
}

fn f32s(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

#[test]
fn a_gguf_file_holds_the_model_and_its_tokenizer() {
    let checkpoint = Checkpoint::load(&fixture("tokenizer")).unwrap();
    let found = exported(&checkpoint, ExportDtype::F32).unwrap();
    let string = |text: &str| Value::String(text.into());
    for (name, value) in [
        ("general.architecture", string("gpt2")),
        ("general.name", string("small")),
        ("general.file_type", Value::U32(0)),
        ("gpt2.block_count", Value::U32(2)),
        ("gpt2.context_length", Value::U32(8)),
        ("gpt2.embedding_length", Value::U32(12)),
        ("gpt2.feed_forward_length", Value::U32(48)),
        ("gpt2.attention.head_count", Value::U32(3)),
        ("gpt2.attention.layer_norm_epsilon", Value::F32(1e-5)),
        ("tokenizer.ggml.model", string("gpt2")),
        ("tokenizer.ggml.pre", string("gpt-2")),
        ("tokenizer.ggml.eos_token_id", Value::U32(0)),
        ("tokenizer.ggml.add_bos_token", Value::Bool(false)),
    ] {
        assert_eq!(found.values.get(name), Some(&value), "{name}");
    }
    let Value::Strings(tokens) = &found.values["tokenizer.ggml.tokens"] else { panic!("not strings") };
    let Value::I32s(types) = &found.values["tokenizer.ggml.token_type"] else { panic!("not numbers") };
    let Value::Strings(merges) = &found.values["tokenizer.ggml.merges"] else { panic!("not strings") };
    assert_eq!((tokens.len(), types.len()), (304, 304), "one per row of wte");
    assert_eq!((tokens[0].as_str(), types[0]), ("<|endoftext|>", 3));
    assert_eq!((tokens[1].as_str(), types[1]), ("!", 1));
    assert_eq!((tokens[303].as_str(), types[303]), ("[PAD303]", 5));
    let merges_txt = fs::read_to_string(fixture("older_tokenizer").join("merges.txt")).unwrap();
    assert_eq!(merges.join("\n"), merges_txt.lines().skip(1).collect::<Vec<_>>().join("\n"));
    for absent in ["tokenizer.chat_template", "tokenizer.ggml.eot_token_id"] {
        assert_eq!(found.values.get(absent), None);
    }

    let list = ParamList::new(&checkpoint.config);
    assert_eq!(found.tensors.len(), list.iter().count());
    for (ours, theirs) in [
        ("transformer.wte.weight", "token_embd.weight"),
        ("transformer.wpe.weight", "position_embd.weight"),
        ("transformer.h.1.ln_1.bias", "blk.1.attn_norm.bias"),
        ("transformer.h.0.attn.c_attn.weight", "blk.0.attn_qkv.weight"),
        ("transformer.h.0.attn.c_proj.bias", "blk.0.attn_output.bias"),
        ("transformer.h.0.ln_2.weight", "blk.0.ffn_norm.weight"),
        ("transformer.h.1.mlp.c_fc.weight", "blk.1.ffn_up.weight"),
        ("transformer.h.1.mlp.c_proj.weight", "blk.1.ffn_down.weight"),
        ("transformer.ln_f.bias", "output_norm.bias"),
    ] {
        let param = list.iter().find(|param| param.name() == ours).unwrap();
        let (dims, kind, data) = &found.tensors[theirs];
        let shape: Vec<u64> = param.shape.iter().rev().map(|&dim| dim as u64).collect();
        assert_eq!((dims, *kind), (&shape, 0), "{theirs}");
        assert_eq!(f32s(data), checkpoint.params[param.range()], "{theirs}");
    }
}

#[test]
fn a_gguf_file_knows_how_the_model_converses() {
    let mut checkpoint = Checkpoint::load(&fixture("tokenizer")).unwrap();
    for (end, eos, eot) in [("!", 1, Some(Value::U32(0))), ("<|endoftext|>", 0, None), ("<|no_token|>", 0, None)] {
        let template = "{{ messages }}".to_owned();
        checkpoint.meta.chat = Some(ChatFormat { template, bos_token: None, eos_token: Some(end.into()) });
        let found = exported(&checkpoint, ExportDtype::F16).unwrap().values;
        assert_eq!(found["tokenizer.chat_template"], Value::String("{{ messages }}".into()));
        assert_eq!(found["tokenizer.ggml.eos_token_id"], Value::U32(eos), "{end}");
        assert_eq!(found.get("tokenizer.ggml.eot_token_id"), eot.as_ref(), "{end}");
    }
}

#[test]
fn a_gguf_file_of_a_model_without_biases_has_zeros() {
    let config = Config { bias: false, ..Config::new(2, 2, 32, 8, 304) };
    let params = ParamList::new(&config).init(3);
    let checkpoint = Checkpoint { config: config.clone(), params, meta: Default::default() };
    let found = exported(&checkpoint, ExportDtype::F32).unwrap();
    assert_eq!(found.tensors.len(), 4 + 12 * 2);
    let zero = |name: &&String| f32s(&found.tensors[*name].2).iter().all(|&value| value == 0.0);
    let zeros: Vec<_> = found.tensors.keys().filter(zero).collect();
    assert_eq!(zeros.len(), 1 + 6 * 2);
    assert!(zeros.iter().all(|name| name.ends_with(".bias")), "{zeros:?}");
    let weight = &checkpoint.params[ParamList::new(&config).blocks[1].mlp_c_proj_weight.clone()];
    assert_eq!(f32s(&found.tensors["blk.1.ffn_down.weight"].2), weight);
}

#[test]
fn smaller_types_are_for_matrices_only() {
    let config = Config::new(1, 2, 32, 8, 304);
    let params = ParamList::new(&config).init(3);
    let checkpoint = Checkpoint { config: config.clone(), params, meta: Default::default() };
    let list = ParamList::new(&config);
    for (dtype, kind) in [(ExportDtype::F16, 1), (ExportDtype::Bf16, 30), (ExportDtype::Q8_0, 8)] {
        let found = exported(&checkpoint, dtype).unwrap();
        for (name, (dims, found, data)) in &found.tensors {
            let small = dims.len() == 2 && name != "position_embd.weight";
            assert_eq!(*found, if small { kind } else { 0 }, "{name}");
            if small && dtype == ExportDtype::F16 && name == "blk.0.ffn_down.weight" {
                let halves: Vec<f32> =
                    data.as_chunks().0.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32()).collect();
                let exact = &checkpoint.params[list.blocks[0].mlp_c_proj_weight.clone()];
                // Half a unit in the last place; below 2⁻¹⁴ the spacing no longer shrinks.
                let close = |(half, exact): (&f32, &f32)| (half - exact).abs() <= exact.abs().max(6.2e-5) / 2048.0;
                assert!(halves.iter().zip(exact).all(close));
            }
        }
    }
    // Rows of 12 do not divide into blocks of 32.
    let narrow = Checkpoint::load(&fixture("tokenizer")).unwrap();
    let found = exported(&narrow, ExportDtype::Q8_0).unwrap();
    assert_eq!(found.tensors["token_embd.weight"].1, 1);
}

#[test]
fn q4_0_keeps_more_bits_of_the_embedding_and_reads_back() {
    let config = Config::new(1, 2, 32, 8, 304);
    let params = ParamList::new(&config).init(3);
    let checkpoint = Checkpoint { config: config.clone(), params, meta: Default::default() };
    let found = exported(&checkpoint, ExportDtype::Q4_0).unwrap();
    assert_eq!(found.values["general.file_type"], Value::U32(2));
    for (name, (dims, found, _)) in &found.tensors {
        let expected = match name.as_str() {
            "token_embd.weight" => 8,
            "position_embd.weight" => 0,
            _ if dims.len() == 1 => 0,
            _ => 2,
        };
        assert_eq!(*found, expected, "{name}");
    }

    let folder = tempfile::tempdir().unwrap();
    let tokenizer = fs::read_to_string(fixture("tokenizer").join("tokenizer.json")).unwrap();
    let whole = Export {
        format: ExportFormat::Gguf,
        dtype: ExportDtype::Q4_0,
        tokenizer: Some(&tokenizer),
        ..plain(&checkpoint)
    };
    export(&whole, &folder.path().join("a"), false).unwrap();
    let path = folder.path().join("a/small-q4_0.gguf");
    let read = Checkpoint::load(&path).unwrap();
    assert_eq!(read.config, config);
    // Within the scale of a block, an eighth of its largest magnitude.
    let range = ParamList::new(&config).blocks[0].mlp_c_proj_weight.clone();
    for (read, exact) in read.params[range.clone()].chunks(32).zip(checkpoint.params[range].chunks(32)) {
        let largest = exact.iter().fold(0f32, |max, value| max.max(value.abs()));
        assert!(read.iter().zip(exact).all(|(read, exact)| (read - exact).abs() <= 1.01 * largest / 8.0));
    }
}

#[test]
fn what_llama_cpp_cannot_run_is_refused() {
    let gelu = Checkpoint { config: Config { activation: Activation::Gelu, ..small().config }, ..small() };
    let error = exported(&gelu, ExportDtype::F32).err().unwrap();
    assert_eq!(error, "llama.cpp's gpt2 does not support the activation gelu: expected gelu_new");
    let checkpoint = Checkpoint::load(&fixture("tokenizer")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let without = Export { format: ExportFormat::Gguf, ..plain(&checkpoint) };
    let error = export(&without, &folder.path().join("a"), false).unwrap_err().to_string();
    assert!(error.contains("the model does not name one"), "{error}");
    let other = Export { tokenizer: Some("{\"model\": {\"type\": \"Unigram\"}}"), ..without };
    let error = export(&other, &folder.path().join("a"), false).unwrap_err().to_string();
    assert!(error.contains("expected byte-level BPE as of GPT-2"), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
