//! Models of the Llama family in every format: what is written is read, bit for bit.

use std::fs;
use std::path::Path;

use ngen3_model::hf::{Export, ExportDtype, ExportFormat, export};
use ngen3_model::{
    ChatFormat, Checkpoint, CheckpointMeta, Config, Family, ParamList, Rope, RopeScaling, TokenizerRef, checkpoint,
};
use serde_json::json;

fn tokenizer() -> String {
    let text = json!({
        "added_tokens": [{"id": 3, "content": "<|endoftext|>", "special": true}],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        ]},
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
    });
    text.to_string()
}

/// Models with every part that the family has.
fn models() -> Vec<Checkpoint> {
    let base = Config { layer_norm_epsilon: 1e-5, ..Config::llama(2, 4, 2, 32, 48, 16, 11) };
    let rope = |scaling: RopeScaling| Some(Rope { theta: 5e5, context: 16, scaling });
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    let configs = [
        Config { rope: rope(llama3), ..base.clone() },
        Config { qkv_bias: true, mlp_bias: true, ..base.clone() },
        Config { family: Family::Mistral, tied: false, ..base.clone() },
        Config {
            family: Family::Qwen2,
            qkv_bias: true,
            rope: rope(RopeScaling::Linear { factor: 2.0 }),
            ..base.clone()
        },
        Config { family: Family::Qwen3, qk_norm: true, head_dim: Some(10), tied: false, ..base },
    ];
    let model = |config: Config| {
        let chat = ChatFormat { template: "{{ messages }}".into(), bos_token: None, eos_token: None };
        let meta = CheckpointMeta {
            tokenizer: TokenizerRef::Json(tokenizer()),
            chat: Some(chat),
            ..CheckpointMeta::default()
        };
        let mut params = ParamList::new(&config).init(7);
        // Biases and norms start as one number.
        (0..).zip(&mut params).for_each(|(i, value)| *value += (i % 97) as f32 / 100.0);
        Checkpoint { params, config, meta }
    };
    configs.into_iter().map(model).collect()
}

fn exported(checkpoint: &Checkpoint, format: ExportFormat, to: &Path) {
    let text = tokenizer();
    let export_of = Export {
        name: "small",
        checkpoint,
        tokenizer: Some(&text),
        eot: Some(("<|endoftext|>", 3)),
        format,
        dtype: ExportDtype::F32,
        curve: &[],
        loss_svg: None,
    };
    export(&export_of, to, false).unwrap();
}

#[test]
fn every_format_keeps_every_part() {
    for model in models() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.pt", "a.safetensors"] {
            let path = folder.path().join(name);
            checkpoint::save(&path, &model.config, &model.params, &model.meta).unwrap();
            assert_eq!(Checkpoint::load(&path).unwrap(), model, "{name}");
        }
        let hf = folder.path().join("hf");
        exported(&model, ExportFormat::Hf, &hf);
        let found = Checkpoint::load(&hf).unwrap();
        assert_eq!((&found.config, &found.params), (&model.config, &model.params));
        let gguf = folder.path().join("gguf");
        exported(&model, ExportFormat::Gguf, &gguf);
        let found = Checkpoint::load(&gguf.join("small-f32.gguf")).unwrap();
        // llama.cpp knows Mistral as llama.
        let family = if model.config.family == Family::Mistral { Family::Llama } else { model.config.family };
        assert_eq!(found.config, Config { family, ..model.config.clone() });
        assert_eq!(found.params, model.params);
        assert!(matches!(found.meta.tokenizer, TokenizerRef::Json(_)), "{:?}", found.meta);
    }
}

#[test]
fn settings_of_yarn_that_llama_cpp_would_not_read_are_refused() {
    let mut model = models().remove(0);
    let yarn = |attention_factor: f64| RopeScaling::Yarn {
        factor: 4.0,
        original_max_position_embeddings: 4,
        beta_fast: 32.0,
        beta_slow: 1.0,
        truncate: true,
        attention_factor,
    };
    let folder = tempfile::tempdir().unwrap();
    model.config.rope = Some(Rope { theta: 5e5, context: 16, scaling: yarn(0.1 * 4f64.ln() + 1.0) });
    exported(&model, ExportFormat::Gguf, &folder.path().join("a"));
    assert_eq!(Checkpoint::load(&folder.path().join("a/small-f32.gguf")).unwrap().config, model.config);
    model.config.rope = Some(Rope { theta: 5e5, context: 16, scaling: yarn(1.0) });
    exported(&model, ExportFormat::Hf, &folder.path().join("b"));
    assert_eq!(Checkpoint::load(&folder.path().join("b")).unwrap().config, model.config);
    let text = tokenizer();
    let asked = Export {
        name: "small",
        checkpoint: &model,
        tokenizer: Some(&text),
        eot: None,
        format: ExportFormat::Gguf,
        dtype: ExportDtype::F32,
        curve: &[],
        loss_svg: None,
    };
    let error = export(&asked, &folder.path().join("c"), false).unwrap_err().to_string();
    assert!(error.contains("does not support these settings of yarn"), "{error}");
}

#[test]
fn biases_that_llama_cpp_would_not_read_are_refused() {
    let config =
        Config { family: Family::Qwen3, qk_norm: true, qkv_bias: true, ..Config::llama(1, 4, 2, 32, 48, 16, 11) };
    let model = Checkpoint { params: ParamList::new(&config).init(7), config, meta: CheckpointMeta::default() };
    let folder = tempfile::tempdir().unwrap();
    exported(&model, ExportFormat::Hf, &folder.path().join("a"));
    assert_eq!(Checkpoint::load(&folder.path().join("a")).unwrap().config, model.config);
    let text = tokenizer();
    let asked = Export {
        name: "small",
        checkpoint: &model,
        tokenizer: Some(&text),
        eot: None,
        format: ExportFormat::Gguf,
        dtype: ExportDtype::F32,
        curve: &[],
        loss_svg: None,
    };
    let error = export(&asked, &folder.path().join("b"), false).unwrap_err().to_string();
    assert_eq!(error, "llama.cpp's qwen3 does not support biases of attention");
}

#[test]
fn a_gguf_file_s_number_of_layers_does_not_decide_how_much_memory_is_used() {
    let folder = tempfile::tempdir().unwrap();
    exported(&models()[0], ExportFormat::Gguf, &folder.path().join("gguf"));
    let path = folder.path().join("gguf/small-f32.gguf");
    let mut bytes = fs::read(&path).unwrap();
    let key = b"llama.block_count";
    let at = bytes.windows(key.len()).position(|window| window == key).unwrap() + key.len();
    // After the type of the value.
    bytes[at + 4..at + 8].copy_from_slice(&16_000_000u32.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    let error = Checkpoint::load(&path).unwrap_err().to_string();
    assert!(error.ends_with("21 tensors: too few for 16000000 layers"), "{error}");
}

#[test]
fn training_on_shorter_sequences_keeps_the_context() {
    let model = models().remove(0);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.pt");
    let shorter = Config { block_size: 4, ..model.config.clone() };
    checkpoint::save(&path, &shorter, &model.params, &model.meta).unwrap();
    assert_eq!(Checkpoint::load(&path).unwrap().config, model.config);
    assert_eq!(Checkpoint::load_for(&path, &shorter).unwrap().config, shorter);
}

#[test]
fn a_head_of_its_own_that_is_missing_is_an_error() {
    let model = models().remove(2);
    let folder = tempfile::tempdir().unwrap();
    let hf = folder.path().join("hf");
    exported(&model, ExportFormat::Hf, &hf);
    let path = hf.join("config.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true")).unwrap();
    let error = Checkpoint::load(&hf).unwrap_err().to_string();
    assert!(error.contains("lm_head.weight differs from model.embed_tokens.weight"), "{error}");
    fs::write(&path, text.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1")).unwrap();
    let error = Checkpoint::load(&hf).unwrap_err().to_string();
    assert!(error.contains("not part of a mistral model of this shape"), "{error}");
}
