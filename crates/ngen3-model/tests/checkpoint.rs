//! Checkpoint files: round trips, and files written by PyTorch.
//!
//! `fixtures/make_checkpoints.py` writes the `.pt` fixtures with PyTorch, and documents their content.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use ngen3_model::{Activation, ChatFormat, Checkpoint, CheckpointMeta, Config, ParamList, TokenizerRef, checkpoint};
use serde_json::json;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// Odd sizes: width 12, 3 heads, 2 layers, vocabulary 97.
fn small_config() -> Config {
    Config::new(2, 3, 12, 16, 97)
}

fn small() -> Checkpoint {
    let config = small_config();
    let params = ParamList::new(&config).init(7);
    let training = json!({
        "learning_rate": 0.0003, "tiny": 1e-300, "third": 1.0 / 3.0, "seed": u64::MAX, "below": i64::MIN, "steps": 2000,
        "big": 70_000, "decay": true, "resumed": false, "out": null, "betas": [0.9, 0.95], "nested": {"größe": "ja ✓"},
    });
    let evaluations = json!({"piqa": {
        "version": 1.0, "n-shot": 0, "n-samples": 1838,
        "dataset": {"type": "baber/piqa", "config": null, "split": "validation"},
        "metrics": {"acc": {"value": 0.625, "stderr": 0.0113}, "acc_norm": {"value": 0.5, "stderr": null}},
    }});
    let meta = CheckpointMeta {
        iter_num: 2_000,
        best_val_loss: Some(3.4567891234),
        tokenizer: TokenizerRef::Gpt2,
        chat: Some(ChatFormat {
            template: "{{ bos_token }}\n{# 'größe' #}".into(),
            bos_token: Some("<s>".into()),
            eos_token: None,
        }),
        training: training.as_object().unwrap().clone(),
        evaluations: evaluations.as_object().unwrap().clone(),
        notes: Vec::new(),
    };
    Checkpoint { config, params, meta }
}

fn save(path: &Path, checkpoint: &Checkpoint) {
    checkpoint::save(path, &checkpoint.config, &checkpoint.params, &checkpoint.meta).unwrap();
}

/// Returns the parameters that the script writes.
fn fixture_params(config: &Config) -> Vec<f32> {
    (0..ParamList::new(config).total()).map(|i| ((7 * i % 251) as f32 - 125.0) / 256.0).collect()
}

#[test]
fn what_was_measured_is_added_to_our_files_only() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["a_model.pt", "a_model.safetensors"] {
        let path = folder.path().join(name);
        let mut expected = small();
        save(&path, &expected);
        let add =
            |meta: &mut CheckpointMeta| drop(meta.evaluations.insert("winogrande".into(), json!({"version": 1.0})));
        assert!(checkpoint::amend(&path, add).unwrap());
        add(&mut expected.meta);
        assert_eq!(Checkpoint::load(&path).unwrap(), expected, "{name}");
    }
    // nanoGPT's file holds an optimizer, which would be lost.
    let path = folder.path().join("ckpt.pt");
    fs::copy(fixture("nanogpt.pt"), &path).unwrap();
    assert!(!checkpoint::amend(&path, |_| unreachable!("the file is not ours")).unwrap());
    assert_eq!(fs::read(&path).unwrap(), fs::read(fixture("nanogpt.pt")).unwrap());
}

#[test]
fn what_is_saved_is_loaded_in_both_formats() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["a_model.pt", "a_model.safetensors"] {
        let path = folder.path().join(name);
        let mut expected = small();
        save(&path, &expected);
        assert_eq!(Checkpoint::load(&path).unwrap(), expected, "{name}");

        expected.config.activation = Activation::Gelu;
        expected.config.layer_norm_epsilon = 1e-6;
        expected.meta = CheckpointMeta { tokenizer: TokenizerRef::Json("{\"a\": 1}".into()), ..Default::default() };
        save(&path, &expected);
        assert_eq!(Checkpoint::load(&path).unwrap(), expected, "{name}");
    }
}

#[test]
fn every_bit_of_a_float_survives() {
    let folder = tempfile::tempdir().unwrap();
    let mut expected = small();
    let odd = [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 1e-42, f32::MAX];
    expected.params[..odd.len()].copy_from_slice(&odd);
    for name in ["a.pt", "a.safetensors"] {
        let path = folder.path().join(name);
        save(&path, &expected);
        let bits = |checkpoint: &Checkpoint| checkpoint.params.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&Checkpoint::load(&path).unwrap()), bits(&expected), "{name}");
    }
}

#[test]
fn the_same_model_makes_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    for ending in ["pt", "safetensors"] {
        let paths = ["a", "b"].map(|name| folder.path().join(name).with_extension(ending));
        paths.iter().for_each(|path| save(path, &small()));
        assert!(fs::read(&paths[0]).unwrap() == fs::read(&paths[1]).unwrap(), "{ending}");
    }
}

#[test]
fn the_content_decides_the_format_not_the_name() {
    let folder = tempfile::tempdir().unwrap();
    let expected = small();
    let (torch, safe) = (folder.path().join("a.pt"), folder.path().join("b.safetensors"));
    save(&torch, &expected);
    save(&safe, &expected);
    let (other_torch, other_safe) = (folder.path().join("c.safetensors"), folder.path().join("d.pt"));
    fs::rename(torch, &other_torch).unwrap();
    fs::rename(safe, &other_safe).unwrap();
    assert_eq!(Checkpoint::load(&other_torch).unwrap(), expected);
    assert_eq!(Checkpoint::load(&other_safe).unwrap(), expected);
}

/// `torch.load(mmap=True)` needs this of each storage.
#[test]
fn storages_are_uncompressed_and_aligned() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.pt");
    let expected = small();
    save(&path, &expected);
    let list = ParamList::new(&expected.config);
    let bytes = fs::read(&path).unwrap();
    let mut zip = zip::ZipArchive::new(fs::File::open(&path).unwrap()).unwrap();
    for (key, param) in list.iter().enumerate() {
        let entry = zip.by_name(&format!("archive/data/{key}")).unwrap();
        let start = entry.data_start().unwrap() as usize;
        assert_eq!(start % 64, 0, "{}", param.name());
        let found: Vec<_> = bytes[start..start + entry.size() as usize]
            .as_chunks()
            .0
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes))
            .collect();
        assert_eq!(found, expected.params[param.range()], "{}", param.name());
    }
    assert!(zip.by_name(&format!("archive/data/{}", list.iter().count())).is_err(), "the head has a separate storage");
    let mut version = String::new();
    zip.by_name("archive/version").unwrap().read_to_string(&mut version).unwrap();
    assert_eq!(version, "3\n");
}

#[test]
fn a_checkpoint_of_nanogpt_is_read() {
    let found = Checkpoint::load(&fixture("nanogpt.pt")).unwrap();
    assert_eq!(found.config, Config { activation: Activation::Gelu, ..small_config() });
    assert_eq!(found.params, fixture_params(&found.config));
    assert_eq!(found.meta.iter_num, 2_000);
    assert_eq!(found.meta.best_val_loss, Some(1.25));
    assert_eq!(found.meta.tokenizer, TokenizerRef::Unknown, "97 tokens are not GPT-2's");
    // JSON has no tensor and no infinity: they are left out.
    let expected = json!({
        "dataset": "shakespeare", "learning_rate": 6e-4, "betas": [0.9, 0.95], "compile": true, "gradient": null,
    });
    assert_eq!(serde_json::Value::Object(found.meta.training), expected);
}

#[test]
fn half_precision_without_biases_and_with_a_copied_head_is_read() {
    let found = Checkpoint::load(&fixture("half_no_bias.pt")).unwrap();
    assert_eq!(found.config, Config { activation: Activation::Gelu, bias: false, ..small_config() });
    assert_eq!(found.params, fixture_params(&found.config));
    assert_eq!(found.meta.iter_num, 0);
    assert_eq!(found.meta.best_val_loss, None);
}

#[test]
fn a_model_without_biases_stays_without() {
    let folder = tempfile::tempdir().unwrap();
    let expected = Checkpoint::load(&fixture("half_no_bias.pt")).unwrap();
    for name in ["a.pt", "a.safetensors"] {
        let path = folder.path().join(name);
        save(&path, &expected);
        assert_eq!(Checkpoint::load(&path).unwrap(), expected, "{name}");
        let bytes = fs::read(&path).unwrap();
        let has = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
        assert!(has("transformer.h.1.mlp.c_proj.weight") && !has(".bias"), "{name}");
        // As in nanoGPT: NEWFALSE after the key in a pickle, JSON in JSON in a safetensors file.
        let says = if name == "a.pt" { "X\u{4}\0\0\0bias\u{89}" } else { "\\\"bias\\\":false" };
        let says: Vec<u8> = says.chars().map(|c| c as u8).collect();
        assert!(bytes.windows(says.len()).any(|window| window == says), "{name}");
    }
    let zip = zip::ZipArchive::new(fs::File::open(folder.path().join("a.pt")).unwrap()).unwrap();
    assert_eq!(zip.file_names().count(), ParamList::new(&expected.config).iter().count() + 3);
}

#[test]
fn biases_that_a_run_has_and_its_base_has_not_are_zero() {
    let base = Checkpoint::load(&fixture("half_no_bias.pt")).unwrap();
    let config = Config { bias: true, ..base.config.clone() };
    let found = Checkpoint::load_for(&fixture("half_no_bias.pt"), &config).unwrap();
    let own = ParamList::new(&base.config);
    for param in &ParamList::new(&config) {
        match own.find(param.role, param.layer) {
            Some(own) => assert_eq!(found.params[param.range()], base.params[own.range()], "{}", param.name()),
            None => assert!(found.params[param.range()].iter().all(|&value| value == 0.0), "{}", param.name()),
        }
    }
    assert_eq!((found.config, found.meta), (config, base.meta));
    // The other way round, biases would be lost.
    let without = Config { bias: false, ..small_config() };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.pt");
    save(&path, &small());
    let error = Checkpoint::load_for(&path, &without).unwrap_err().to_string();
    assert_eq!(error, format!("{} holds another model: bias is true, not false", path.display()));
}

#[test]
fn views_into_one_storage_are_read() {
    let found = Checkpoint::load(&fixture("one_storage.pt")).unwrap();
    assert_eq!(found.params, fixture_params(&found.config));
}

#[test]
fn another_shape_than_the_expected_one_is_named_field_by_field() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a_model.pt");
    save(&path, &small());
    assert_eq!(Checkpoint::load_for(&path, &small_config()).unwrap(), small());
    let other = Config { n_layer: 4, vocab_size: 50_257, activation: Activation::Gelu, ..small_config() };
    let error = Checkpoint::load_for(&path, &other).unwrap_err().to_string();
    let expected = format!(
        "{} holds another model: n_layer is 2, not 4; vocab_size is 97, not 50257; activation is \"gelu_new\", not \"gelu\"",
        path.display()
    );
    assert_eq!(error, expected);
}

#[test]
fn another_ending_is_refused_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.bin");
    let Checkpoint { config, params, meta } = small();
    let error = checkpoint::save(&path, &config, &params, &meta).unwrap_err().to_string();
    assert_eq!(error, format!("cannot write {}: expected a file name ending in .pt or .safetensors", path.display()));
    assert!(!path.exists());
}

#[test]
fn the_largest_tokenizer_is_read_back_and_what_could_not_be_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let with = |text: String| {
        let meta = CheckpointMeta { tokenizer: TokenizerRef::Json(text), ..small().meta };
        Checkpoint { meta, ..small() }
    };
    let largest = with("x".repeat(TokenizerRef::MAX_BYTES));
    // A safetensors file stores each quote as four bytes.
    let cases = [("a.pt", "x".repeat(65 << 20)), ("a.safetensors", "\"".repeat(24 << 20))];
    for (name, larger) in cases {
        let path = folder.path().join(name);
        save(&path, &largest);
        assert!(Checkpoint::load(&path).unwrap() == largest, "{name}");
        fs::remove_file(&path).unwrap();
        let Checkpoint { config, params, meta } = with(larger);
        let error = checkpoint::save(&path, &config, &params, &meta).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("such as the tokenizer, is too large for a ."), "{error}");
        assert!(!path.exists());
    }
}
