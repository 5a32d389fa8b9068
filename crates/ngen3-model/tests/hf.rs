//! Hugging Face folders: those written by transformers are read, ours round-trip, damaged ones are rejected.
//!
//! `fixtures/hf/make_hf.py` makes the folders. `crates/ngen3/tests/export.rs` compares logits, where there is an engine.

mod gguf;

use std::fs;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use ngen3_model::hf::{CurvePoint, Export, ExportDtype, ExportFormat, Exported, export};
use ngen3_model::{Activation, ChatFormat, Checkpoint, CheckpointMeta, Config, Error, ParamList, TokenizerRef};
use proptest::prelude::*;
use serde_json::{Value, json};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hf").join(name)
}

/// Copies a fixture, for a test that damages it.
fn copy(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture(name)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    folder
}

/// Loads a folder that must be rejected; returns the error.
fn refusal(folder: &Path) -> String {
    let error = Checkpoint::load(folder).unwrap_err().to_string();
    assert!(error.starts_with(&folder.display().to_string()), "{error} does not name the folder");
    assert!(!error.contains('\n'), "{error:?} has more than one line");
    error
}

#[track_caller]
fn assert_refused(folder: &Path, reason: &str) {
    let error = refusal(folder);
    assert!(error.contains(reason), "{error:?} does not say {reason:?}");
}

/// Returns a model with odd sizes, a training record and every kind of number.
fn small() -> Checkpoint {
    let config = Config { activation: Activation::Gelu, layer_norm_epsilon: 1e-6, ..Config::new(2, 3, 12, 16, 97) };
    let mut params = ParamList::new(&config).init(7);
    params[..5].copy_from_slice(&[f32::INFINITY, f32::NEG_INFINITY, -0.0, 1e-42, 1234.567]);
    let training = json!({
        "learning_rate": 0.0003, "min_lr": 3.0000001e-5, "max_iters": 2000, "dtype": "auto", "dropout": 0.1,
        "data": {"source": ["plays | poems.txt", "b"], "train_tokens": 900, "val_tokens": 100},
    });
    let evaluations = json!({"piqa": {
        "version": 1.0, "n-shot": 0, "n-samples": 1838,
        "dataset": {"type": "baber/piqa", "config": null, "split": "validation"},
        "metrics": {"acc": {"value": 0.625, "stderr": 0.0113}, "acc_norm": {"value": 0.5, "stderr": null}},
    }});
    let meta = CheckpointMeta {
        iter_num: 2_000,
        best_val_loss: Some(3.4567891234),
        tokenizer: TokenizerRef::Unknown,
        chat: None,
        training: training.as_object().unwrap().clone(),
        evaluations: evaluations.as_object().unwrap().clone(),
        notes: Vec::new(),
    };
    Checkpoint { config, params, meta }
}

fn plain(checkpoint: &Checkpoint) -> Export<'_> {
    Export {
        name: "small",
        checkpoint,
        tokenizer: None,
        eot: None,
        curve: &[],
        loss_svg: None,
        format: ExportFormat::Hf,
        dtype: ExportDtype::F32,
    }
}

fn names(exported: &Exported) -> Vec<&str> {
    exported.files.iter().map(|(name, _)| name.as_str()).collect()
}

#[test]
fn an_export_comes_back_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("exported");
    let expected = small();
    let exported = export(&plain(&expected), &path, false).unwrap();
    assert_eq!(names(&exported), ["README.md", "config.json", "generation_config.json", "model.safetensors"]);
    assert_eq!(Checkpoint::load(&path).unwrap(), expected);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "the temporary folder is gone");

    fs::write(path.join("model-00002-of-00002.safetensors"), "older weights").unwrap();
    assert_eq!(export(&plain(&expected), &path, true).unwrap(), exported);
    assert!(!path.join("model-00002-of-00002.safetensors").exists(), "the old weights are gone");
    assert_eq!(Checkpoint::load(&path).unwrap(), expected);
}

#[test]
fn a_model_without_biases_is_exported_with_zeros() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("exported");
    let config = Config { bias: false, ..small().config };
    let without = Checkpoint { params: ParamList::new(&config).init(7), config, ..small() };
    export(&plain(&without), &path, false).unwrap();
    let found = Checkpoint::load(&path).unwrap();
    assert_eq!((&found.config, &found.meta), (&small().config, &without.meta));
    // Biases start at zero, and the rest with the same numbers.
    assert_eq!(found.params, ParamList::new(&found.config).init(7));
    let card = fs::read_to_string(path.join("README.md")).unwrap();
    assert!(card.contains("| biases | none (stored as zeros) |\n"), "{card}");
}

#[test]
fn half_precision_rounds_to_the_nearest() {
    let folder = tempfile::tempdir().unwrap();
    let expected = small();
    for (dtype, round) in [
        (ExportDtype::F16, (|value| f16::from_f32(value).to_f32()) as fn(f32) -> f32),
        (ExportDtype::Bf16, |value| bf16::from_f32(value).to_f32()),
    ] {
        let path = folder.path().join(dtype.name());
        export(&Export { dtype, ..plain(&expected) }, &path, false).unwrap();
        let found = Checkpoint::load(&path).unwrap();
        let rounded: Vec<f32> = expected.params.iter().map(|&value| round(value)).collect();
        assert_eq!(found.params, rounded, "{dtype:?}");
        assert!(fs::metadata(path.join("model.safetensors")).unwrap().len() < 2 * expected.params.len() as u64 + 8_192);
    }
}

#[test]
fn every_kind_of_folder_that_transformers_writes_is_read() {
    for (name, config) in [
        ("whole", Config::new(2, 3, 12, 16, 97)),
        ("sharded", Config { activation: Activation::Gelu, layer_norm_epsilon: 0.01, ..Config::new(2, 3, 12, 16, 97) }),
        ("f16", Config::new(2, 3, 12, 16, 97)),
        ("bf16", Config::new(2, 3, 12, 16, 97)),
        ("bare", Config::new(2, 3, 12, 16, 97)),
        ("bin", Config::new(2, 3, 12, 16, 97)),
        ("bin_sharded", Config::new(2, 3, 12, 16, 97)),
        ("copied_head", Config::new(2, 3, 12, 16, 97)),
    ] {
        let found = Checkpoint::load(&fixture(name)).unwrap();
        assert_eq!(found.config, config, "{name}");
        assert_eq!(found.meta, CheckpointMeta { tokenizer: TokenizerRef::Unknown, ..Default::default() }, "{name}");
        // The script's values: none is zero, and LayerNorm's weights average one.
        let list = ParamList::new(&config);
        for param in &list {
            let values = &found.params[param.range()];
            let mean = values.iter().sum::<f32>() / values.len() as f32;
            let expected = if param.name().contains("ln_") && param.name().ends_with("weight") { 1.0 } else { 0.0 };
            assert!((mean - expected).abs() < 0.4, "{name}: {} has the mean {mean}", param.name());
            assert!(values.iter().all(|value| *value != 0.0), "{name}: {}", param.name());
        }
    }
}

#[test]
fn the_tokenizer_comes_along() {
    let found = Checkpoint::load(&fixture("tokenizer")).unwrap();
    let text = fs::read_to_string(fixture("tokenizer").join("tokenizer.json")).unwrap();
    assert_eq!(found.meta.tokenizer, TokenizerRef::Json(text.clone()));

    let TokenizerRef::Json(older) = Checkpoint::load(&fixture("older_tokenizer")).unwrap().meta.tokenizer else {
        panic!("vocab.json and merges.txt are not read");
    };
    let (new, older): (Value, Value) = (serde_json::from_str(&text).unwrap(), serde_json::from_str(&older).unwrap());
    assert_eq!(older["model"]["vocab"], new["model"]["vocab"]);
    assert_eq!(older["added_tokens"], new["added_tokens"]);
    let lines = |merges: &Value| -> Vec<String> {
        let line = |merge: &Value| match merge {
            Value::String(line) => line.clone(),
            pair => format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
        };
        merges.as_array().unwrap().iter().map(line).collect()
    };
    assert_eq!(lines(&older["model"]["merges"]), lines(&new["model"]["merges"]));

    let folder = copy("older_tokenizer");
    fs::remove_file(folder.path().join("merges.txt")).unwrap();
    assert_refused(folder.path(), "merges.txt: missing, but required by vocab.json");
    let folder = copy("tokenizer");
    fs::write(folder.path().join("tokenizer.json"), "[".repeat(1 << 20)).unwrap();
    assert_refused(folder.path(), "tokenizer.json: invalid JSON");
}

#[test]
fn chat_templates_are_found_where_transformers_keeps_them() {
    let folder = copy("tokenizer");
    let chat = |settings: &str| {
        fs::write(folder.path().join("tokenizer_config.json"), settings).unwrap();
        Checkpoint::load(folder.path()).unwrap().meta.chat
    };
    let format = |template: &str, bos: Option<&str>, eos: Option<&str>| {
        Some(ChatFormat { template: template.into(), bos_token: bos.map(Into::into), eos_token: eos.map(Into::into) })
    };
    assert_eq!(chat(r#"{"eos_token": "!"}"#), None);
    let settings = r#"{"chat_template": "a", "bos_token": {"content": "<s>", "special": true}, "eos_token": "!"}"#;
    assert_eq!(chat(settings), format("a", Some("<s>"), Some("!")));
    let several = r#"{"chat_template": [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]}"#;
    assert_eq!(chat(several), format("d", Some("<|endoftext|>"), Some("<|endoftext|>")));
    assert_eq!(chat(r#"{"chat_template": [{"name": "tools"}], "eos_token": 3}"#), None);
    fs::write(folder.path().join("chat_template.jinja"), "j\n").unwrap();
    assert_eq!(chat(settings), format("j\n", Some("<s>"), Some("!")));
    fs::write(folder.path().join("tokenizer_config.json"), "{").unwrap();
    assert_refused(folder.path(), "tokenizer_config.json: invalid JSON");
}

/// `apply_chat_template` of transformers 5.24 renders these `bos_token` and `eos_token` from the same folders.
#[test]
fn the_tokens_of_a_chat_are_those_that_transformers_finds() {
    let folder = copy("tokenizer");
    let eot = "<|endoftext|>";
    let content = r#"{"bos_token": "\"", "eos_token": {"content": "!", "lstrip": false, "normalized": true}}"#;
    for (settings, special, bos, eos) in [
        ("", "", Some(eot), Some(eot)),
        (r#", "tokenizer_class": "GPT2Tokenizer""#, "", Some(eot), Some(eot)),
        (r#", "tokenizer_class": "GPT2TokenizerFast""#, "", Some(eot), Some(eot)),
        (r#", "tokenizer_class": "PreTrainedTokenizerFast""#, "", None, None),
        (r#", "eos_token": null"#, "", Some(eot), None),
        ("", r#"{"eos_token": "!"}"#, Some(eot), Some("!")),
        ("", content, Some("\""), Some("!")),
        (r##", "eos_token": "#""##, r#"{"eos_token": "!"}"#, Some(eot), Some("!")),
        (r##", "eos_token": "#", "added_tokens_decoder": {}"##, r#"{"eos_token": "!"}"#, Some(eot), Some("#")),
        (r#", "tokenizer_class": "PreTrainedTokenizerFast""#, r#"{"eos_token": "!"}"#, None, Some("!")),
    ] {
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write("tokenizer_config.json", &format!("{{\"chat_template\": \"a\"{settings}}}"));
        write("special_tokens_map.json", if special.is_empty() { "{}" } else { special });
        let chat = Checkpoint::load(folder.path()).unwrap().meta.chat.unwrap();
        assert_eq!((chat.bos_token.as_deref(), chat.eos_token.as_deref()), (bos, eos), "{settings} {special}");
    }
    fs::remove_file(folder.path().join("special_tokens_map.json")).unwrap();
    assert_eq!(Checkpoint::load(folder.path()).unwrap().meta.chat.unwrap().eos_token, None);
    fs::write(folder.path().join("special_tokens_map.json"), "[]").unwrap();
    assert_refused(folder.path(), "special_tokens_map.json: invalid JSON");
}

#[test]
fn an_export_has_the_tokenizer_in_every_form() {
    let text = fs::read_to_string(fixture("tokenizer").join("tokenizer.json")).unwrap();
    let checkpoint = Checkpoint::load(&fixture("tokenizer")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a");
    let with = Export { tokenizer: Some(&text), eot: Some(("<|endoftext|>", 0)), ..plain(&checkpoint) };
    export(&with, &path, false).unwrap();
    let read = |name: &str| fs::read_to_string(path.join(name)).unwrap();
    let json = |name: &str| -> Value { serde_json::from_str(&read(name)).unwrap() };
    assert_eq!(read("tokenizer.json"), text);
    assert_eq!(read("merges.txt"), fs::read_to_string(fixture("older_tokenizer").join("merges.txt")).unwrap());
    let vocab: Value =
        serde_json::from_slice(&fs::read(fixture("older_tokenizer").join("vocab.json")).unwrap()).unwrap();
    assert_eq!(json("vocab.json"), vocab);
    assert_eq!(json("tokenizer_config.json")["tokenizer_class"], "GPT2Tokenizer");
    assert_eq!(json("tokenizer_config.json")["model_max_length"], 8);
    assert_eq!(json("special_tokens_map.json")["eos_token"], "<|endoftext|>");
    assert_eq!(json("config.json")["eos_token_id"], 0);
    assert_eq!(json("generation_config.json")["pad_token_id"], 0);
    assert_eq!(json("generation_config.json")["eos_token_id"], 0);
    assert_eq!(Checkpoint::load(&path).unwrap(), checkpoint);

    // The chat format round-trips, with its special tokens.
    let chat = ChatFormat {
        template: "{{ bos_token }}{{ messages }}\n".into(),
        bos_token: Some("<|endoftext|>".into()),
        eos_token: Some("!".into()),
    };
    let meta = CheckpointMeta { chat: Some(chat.clone()), ..checkpoint.meta.clone() };
    let talking = Checkpoint { meta, ..checkpoint.clone() };
    export(&Export { checkpoint: &talking, ..with.clone() }, &path, true).unwrap();
    assert_eq!(json("tokenizer_config.json")["chat_template"], chat.template);
    assert_eq!(json("tokenizer_config.json")["eos_token"], "!");
    assert_eq!(json("generation_config.json")["eos_token_id"], json!([1, 0]), "an answer ends, or a document");
    assert_eq!(json("special_tokens_map.json")["unk_token"], "<|endoftext|>");
    assert_eq!(Checkpoint::load(&path).unwrap(), talking);

    // A tokenizer of another kind keeps to tokenizer.json.
    let other = text.replacen("\"add_prefix_space\": false", "\"add_prefix_space\": true", 1);
    assert_ne!(other, text);
    export(&Export { tokenizer: Some(&other), ..with }, &path, true).unwrap();
    let class =
        serde_json::from_str::<Value>(&fs::read_to_string(path.join("tokenizer_config.json")).unwrap()).unwrap();
    assert_eq!(class["tokenizer_class"], "PreTrainedTokenizerFast");
}

#[test]
fn what_we_cannot_run_is_refused_by_name() {
    assert_refused(&fixture("untied"), "lm_head.weight differs from transformer.wte.weight");
    let folder = copy("whole");
    let path = folder.path().join("config.json");
    let config = fs::read_to_string(&path).unwrap();
    fs::write(&path, config.replace("\"gpt2\"", "\"gpt_neo\"")).unwrap();
    assert_refused(folder.path(), "config.json: unsupported model_type \"gpt_neo\": expected one of gpt2, llama");
    fs::write(&path, config.replace("GPT2LMHeadModel", "GPT2ForTokenClassification")).unwrap();
    assert_refused(folder.path(), "unsupported architectures [\"GPT2ForTokenClassification\"]");
    fs::write(&path, config.replace("\"n_embd\": 12", "\"n_embd\": 24")).unwrap();
    assert_refused(folder.path(), "tensor transformer.wte.weight: expected shape [97, 24], got [97, 12]");
    fs::write(&path, config.replace("\"n_layer\": 2", "\"n_layer\": 1")).unwrap();
    assert_refused(folder.path(), "unexpected tensor transformer.h.1.");
    fs::write(&path, config.replace("\"n_layer\": 2", "\"n_layer\": 16000000")).unwrap();
    assert_refused(folder.path(), "28 tensors: too few for 16000000 layers");
    fs::write(&path, config.replace("\"tie_word_embeddings\": true", "\"tie_word_embeddings\": false")).unwrap();
    assert_refused(folder.path(), "missing tensor lm_head.weight: tie_word_embeddings is false");
    fs::write(&path, " ".repeat(2 << 20)).unwrap();
    assert_refused(folder.path(), "config.json: larger than 1048576 bytes");
    fs::write(&path, config).unwrap();
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    assert_refused(folder.path(), "no weights: expected one of model.safetensors, model.safetensors.index.json");
    fs::create_dir(folder.path().join("model.safetensors")).unwrap();
    assert_refused(folder.path(), "model.safetensors: not a file");
}

#[test]
fn an_index_leads_to_no_other_folder() {
    let folder = copy("sharded");
    let path = folder.path().join("model.safetensors.index.json");
    let index = fs::read_to_string(&path).unwrap();
    let with = |file: &str| index.replace("model-00001-of-00003.safetensors", file);
    for file in ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", ".hidden", "C:x", "a\\\\b"] {
        fs::write(&path, with(file)).unwrap();
        assert_refused(folder.path(), "expected files of the same folder");
    }
    fs::write(&path, with("missing.safetensors")).unwrap();
    assert_refused(folder.path(), "missing.safetensors: No such file");
    fs::write(&path, with("model-00002-of-00003.safetensors")).unwrap();
    assert_refused(folder.path(), "which does not hold it");
    fs::write(&path, "{\"weight_map\": {}}").unwrap();
    assert_refused(folder.path(), "expected 1 to 4096 files in the index of weights, got 0");
    fs::write(&path, "{\"weight_map\": [1]}").unwrap();
    assert_refused(folder.path(), "not an index of weights");
    // A tensor in two files is ambiguous.
    fs::copy(folder.path().join("model-00001-of-00003.safetensors"), folder.path().join("twice.safetensors")).unwrap();
    fs::write(&path, index.replacen("{\n", "{\n \"weight_map\": {\"x\": \"twice.safetensors\"},", 1)).unwrap();
    assert!(refusal(folder.path()).contains("not an index of weights"), "one key twice");
    fs::write(&path, index.replacen("\"weight_map\": {", "\"weight_map\": {\"x\": \"twice.safetensors\",", 1)).unwrap();
    assert_refused(folder.path(), "is also in another file");
}

#[test]
fn files_that_are_cut_or_lie_are_refused() {
    for (name, file, reason) in [
        ("whole", "model.safetensors", "damaged or truncated"),
        ("bin", "pytorch_model.bin", "damaged or truncated"),
        ("sharded", "model-00002-of-00003.safetensors", "damaged or truncated"),
    ] {
        let folder = copy(name);
        let path = folder.path().join(file);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 100]).unwrap();
        assert_refused(folder.path(), reason);
        fs::write(&path, [&(1u64 << 60).to_le_bytes(), &b"{".repeat(100)[..]].concat()).unwrap();
        assert_refused(folder.path(), "the header claims 1152921504606846976 bytes");
        fs::write(&path, b"\x80\x02cos\nsystem\n.").unwrap();
        assert_refused(folder.path(), "from before version 1.6");
    }
    let folder = copy("bin");
    fs::copy(fixture("../hostile.pt"), folder.path().join("pytorch_model.bin")).unwrap();
    assert_refused(folder.path(), "pytorch_model.bin: unsupported pickle global \"posix.system\"");
    fs::copy(fixture("../nanogpt.pt"), folder.path().join("pytorch_model.bin")).unwrap();
    assert_refused(folder.path(), "is not a tensor");
    let folder = tempfile::tempdir().unwrap();
    assert_refused(folder.path(), "not a Hugging Face model: no config.json");
    // The weights alone do not include the shape.
    let error = Checkpoint::load(&fixture("whole").join("model.safetensors")).unwrap_err().to_string();
    assert!(error.contains("for a Hugging Face model, give the folder with its config.json"), "{error}");
}

#[test]
fn a_folder_with_other_things_in_it_is_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out");
    let checkpoint = small();
    let write = |overwrite| export(&plain(&checkpoint), &path, overwrite);
    fs::create_dir(&path).unwrap();
    write(false).unwrap();
    let before = fs::read(path.join("model.safetensors")).unwrap();
    let error = write(false).unwrap_err().to_string();
    assert!(error.contains("the folder is not empty; choose another, or replace it with --overwrite"), "{error}");
    fs::write(path.join("thesis.txt"), "years of work").unwrap();
    let error = write(true).unwrap_err().to_string();
    assert!(error.contains("the folder holds thesis.txt, which is not part of an export"), "{error}");
    fs::remove_file(path.join("thesis.txt")).unwrap();
    fs::create_dir(path.join("vocab.json")).unwrap();
    let error = write(true).unwrap_err().to_string();
    assert!(error.contains("the folder holds vocab.json"), "a folder is not part of an export: {error}");
    fs::remove_dir(path.join("vocab.json")).unwrap();
    let card = path.join("README.md");
    let writable = fs::metadata(&card).unwrap().permissions();
    let mut protected = writable.clone();
    protected.set_readonly(true);
    fs::set_permissions(&card, protected).unwrap();
    let error = write(true).unwrap_err().to_string();
    assert_eq!(error, format!("cannot write {}: the folder holds README.md, which is read-only", path.display()));
    fs::set_permissions(&card, writable).unwrap();

    // A failure half-way keeps the old folder and leaves nothing beside it.
    let mut large = small();
    large.params[ParamList::new(&large.config).ln_f_bias.start] = 1e30;
    let error = export(&Export { dtype: ExportDtype::F16, ..plain(&large) }, &path, true).unwrap_err();
    assert!(matches!(error, Error::Write { .. }));
    let expected = "out/model.safetensors: transformer.ln_f.bias holds 1e30, which is too large for f16";
    assert!(error.to_string().ends_with(expected), "{error}");
    assert_eq!(fs::read(path.join("model.safetensors")).unwrap(), before);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);

    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let error = export(&plain(&checkpoint), &file, true).unwrap_err().to_string();
    assert!(error.contains("it exists and is not a folder"), "{error}");
    let error = export(&plain(&checkpoint), &folder.path().join("no/where"), false).unwrap_err().to_string();
    assert!(error.contains("there is no folder"), "{error}");
    let q8 = Export { dtype: ExportDtype::Q8_0, ..plain(&checkpoint) };
    let error = export(&q8, &folder.path().join("new"), false).unwrap_err().to_string();
    assert_eq!(error, "the hf format does not support q8_0: expected f32, bf16 or f16");
}

/// Users who may write everything, such as root, can remove it.
#[cfg(unix)]
#[test]
fn an_old_export_that_cannot_be_removed_is_replaced_all_the_same() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out");
    let (old, new) = (small(), Checkpoint { params: ParamList::new(&small().config).init(8), ..small() });
    export(&plain(&old), &path, false).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o555)).unwrap();
    let exported = export(&plain(&new), &path, true);
    for entry in fs::read_dir(folder.path()).unwrap() {
        fs::set_permissions(entry.unwrap().path(), fs::Permissions::from_mode(0o755)).unwrap();
    }
    assert_eq!(names(&exported.unwrap()), ["README.md", "config.json", "generation_config.json", "model.safetensors"]);
    assert_eq!(Checkpoint::load(&path).unwrap(), new);
}

#[test]
fn the_card_says_what_was_measured_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out");
    let checkpoint = small();
    let point = |step, val_loss| CurvePoint { step, train_loss: (step > 0).then_some(2.0), val_loss };
    let curve: Vec<_> = (0..=20).map(|i| point(100 * i, (i % 2 == 0).then_some(5.0 - i as f32 / 10.0))).collect();
    let card = |export_: Export| {
        export(&export_, &path, path.exists()).unwrap();
        fs::read_to_string(path.join("README.md")).unwrap()
    };
    let text = card(Export { curve: &curve, loss_svg: Some("<svg></svg>"), ..plain(&checkpoint) });
    assert!(text.starts_with("---\nlibrary_name: transformers\n"), "{text}");
    for part in [
        "      value: 3\n",
        "      name: \"piqa\"\n      type: \"baber/piqa\"\n      split: \"validation\"\n    metrics:\n    - type: \"acc\"\n      \
         name: \"acc\"\n      value: 0.625\n    - type: \"acc_stderr\"\n",
        "| piqa | 1 | 0 | 1838 | acc | 0.6250 | 0.0113 |\n| piqa | 1 | 0 | 1838 | acc_norm | 0.5000 |  |\n",
        "      name: \"plays | poems.txt, b\"\n",
        "trained for 2000 steps",
        "| learning_rate | 0.0003 |",
        "| min_lr | 0.00003 |",
        "Data: plays \\| poems.txt, b (900 training tokens, 100 validation tokens).",
        "Best validation loss: 3.4568 nats per token",
        "| 0 |  | 5.0000 |",
        "| 2000 | 2.0000 | 3.0000 |",
        "![loss by step](loss.svg)",
        "| activation | gelu |",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    assert_eq!(fs::read_to_string(path.join("loss.svg")).unwrap(), "<svg></svg>");

    // Measured before the last step, on other weights.
    let text = card(Export { curve: &curve[..20], ..plain(&checkpoint) });
    assert!(!text.contains("Validation loss") && text.contains("| 1800 |"), "{text}");
    let bare = Checkpoint { meta: CheckpointMeta::default(), ..checkpoint };
    let text = card(plain(&bare));
    for absent in ["model-index", "## Evaluation", "## Training", "steps", "NaN", "null"] {
        assert!(!text.contains(absent), "{absent:?} is in {text}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A changed byte gives an error or another number; it never ends the program.
    #[test]
    fn no_damage_is_fatal(
        name in prop::sample::select(vec!["whole", "sharded", "bin", "bin_sharded", "tokenizer", "older_tokenizer"]),
        file in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>(),
    ) {
        let folder = copy(name);
        let mut files: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        let path = &files[file.index(files.len())];
        let mut bytes = fs::read(path).unwrap();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if cut {
            bytes.truncate(at);
        }
        fs::write(path, bytes).unwrap();
        match Checkpoint::load(folder.path()) {
            Ok(found) => prop_assert_eq!(found.params.len(), ParamList::new(&found.config).total()),
            Err(error) => {
                prop_assert!(error.to_string().starts_with(&folder.path().display().to_string()), "{}", error);
            }
        }
    }
}
