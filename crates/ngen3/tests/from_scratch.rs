//! Models of the Llama family from scratch: `train --arch`, and `--config` with all parts of a model.

mod common;

use std::fs;
use std::path::Path;

use common::{contents, fail, succeed};
use ngen3_model::{Checkpoint, Config, Family, Rope, RopeScaling};
use tempfile::TempDir;

const LLAMA: &str = "\
arch = 'llama'
layers = 2
heads = 4
kv_heads = 2
width = 16
hidden_width = 40
block = 16
norm_eps = 1e-6
rope_theta = 5000
rope_scaling = { rope_type = 'linear', factor = 2 }
tied = false
batch_size = 4
learning_rate = 0.01
min_lr = 0.01
warmup_iters = 0
dropout = 0.1
eval_iters = 2
dtype = 'f32'
";

/// The model of these settings, with a vocabulary of 280.
fn llama() -> Config {
    Config {
        layer_norm_epsilon: 1e-6,
        rope: Some(Rope { theta: 5000.0, context: 16, scaling: RopeScaling::Linear { factor: 2.0 } }),
        tied: false,
        ..Config::llama(2, 4, 2, 16, 40, 16, 280)
    }
}

/// A folder with settings, a vocabulary of 280, and text of it.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("llama.toml"), LLAMA).unwrap();
    succeed(folder.path(), "tokenizer train --txt builtin:shakespeare --vocab_size 280 --out t.json");
    succeed(folder.path(), "tokenize --dataset x --txt builtin:shakespeare --tokenizer t.json");
    folder
}

const DATA: &str = "--data _data_x_/data.bin";

fn load(folder: &Path, name: &str) -> Checkpoint {
    Checkpoint::load(&folder.join(name)).unwrap()
}

#[test]
fn a_llama_from_a_config_file_goes_all_the_way() {
    let folder = folder();
    let folder = folder.path();
    let (_, err) = succeed(folder, &format!("train --config llama.toml {DATA} --max_iters 6 --eval_interval 3"));
    let shape = "llama, 2 layers, 4 heads (2 of keys and values), width 16, context 16, vocabulary 280\n";
    assert!(err.contains(&format!("model: 14,416 parameters, {shape}")), "{err}");
    let model = load(folder, "llama_model.pt");
    assert_eq!((&model.config, model.meta.iter_num), (&llama(), 6));

    // Resumed, it is the same, bit for bit.
    succeed(folder, &format!("train --config llama.toml {DATA} --out half.pt --max_iters 3 --eval_interval 3"));
    let (_, err) = succeed(folder, &format!("train {DATA} --out half.pt --max_iters 6 --resume"));
    assert!(err.contains("resuming after step 3"), "{err}");
    assert_eq!(load(folder, "half.pt").params, model.params);

    // Read back from both kinds of files, it is the same model.
    succeed(folder, "export --model_path llama_model.pt --output_dir hf");
    succeed(folder, "import --from hf --out back.pt");
    let back = load(folder, "back.pt");
    assert_eq!((back.config, back.params, back.meta.tokenizer), (model.config, model.params, model.meta.tokenizer));
    succeed(folder, "export --model_path llama_model.pt --output_dir gguf --format gguf");
    let gguf = contents(&folder.join("gguf")).into_iter().map(|(name, _)| name).find(|name| name.ends_with(".gguf"));
    let texts = ["llama_model.pt", "hf", &gguf.expect("a GGUF file")].map(|model| {
        succeed(folder, &format!("sample --model_checkpoint {model} --prompt ROMEO --length 20 --temperature 0")).0
    });
    assert!(texts[0].starts_with("ROMEO") && texts.iter().all(|text| *text == texts[0]), "{texts:?}");

    let (out, _) =
        succeed(folder, "eval --model_checkpoint llama_model.pt --tasks perplexity --text _data_x_/data.bin --limit 4");
    assert!(out.contains("perplexity"), "{out}");
}

#[test]
fn a_llama_of_a_variant_is_trained_tuned_taught_and_measured() {
    let folder = folder();
    let folder = folder.path();
    let short = "--max_iters 1 --eval_iters 1 --batch_size 2";
    let (out, err) = succeed(folder, &format!("train --arch llama --variant 7M {DATA} {short}"));
    assert!(out.starts_with("7M_model.pt: 1 step"), "{out}");
    let shape = "llama, 4 layers, 4 heads (1 of keys and values), width 128, context 128, vocabulary 280\n";
    assert!(err.contains(&format!("model: 7M (888,960 parameters), {shape}")), "{err}");
    let config = load(folder, "7M_model.pt").config;
    assert_eq!(config, Config::llama(4, 4, 1, 128, 448, 128, 280));
    let (out, _) = succeed(folder, "sample --variant 7M --model_checkpoint 7M_model.pt --prompt To --length 3");
    assert!(out.starts_with("To"), "{out}");
    let complaint = fail(folder, &format!("train --arch gpt2 --variant 7M {DATA} --resume --max_iters 2"), 1);
    assert!(complaint.contains("family is Llama, not Gpt2"), "{complaint}");

    let tune = format!("finetune --variant 7M --model_checkpoint 7M_model.pt {DATA} --finetune_iters 1 --eval_iters 1");
    succeed(folder, &format!("{tune} --batch_size 2 --prompt To --sample_length 2"));
    assert_eq!(load(folder, "finetuned_7M_model.pt").config, config);

    // It teaches a GPT-2, which teaches a Qwen3; half of it is a student too.
    let distill = format!("distill {DATA} {short}");
    succeed(folder, &format!("{distill} --teacher_model_path 7M_model.pt --student_variant 7M"));
    assert_eq!(load(folder, "distilled_7M_model.pt").config.family, Family::Gpt2);
    let teacher = "--teacher_model_path distilled_7M_model.pt";
    succeed(folder, &format!("{distill} {teacher} --student_variant 7M --student_arch qwen3 --out q.pt"));
    let qwen = load(folder, "q.pt").config;
    assert_eq!((qwen.family, qwen.qk_norm, qwen.n_inner), (Family::Qwen3, true, Some(448)));
    let layers = "--teacher_model_path 7M_model.pt --init_student from-teacher-layers --block_size 128";
    succeed(folder, &format!("{distill} {layers} --out half.pt"));
    assert_eq!(load(folder, "half.pt").config, Config { n_layer: 2, ..config });

    let (out, _) = succeed(folder, "bench --arch llama --steps 1 --batch_size 1 --block_size 16 --tokens 2 --json");
    assert!(out.contains("\"arch\":\"llama\"") && out.contains("\"variant\":\"7M\""), "{out}");
    let (out, _) = succeed(folder, "variants");
    for (name, count) in [("7M", "7,286,016"), ("120M", "64,279,552"), ("1B", "1,022,458,624")] {
        let row = |line: &str| line.split_whitespace().take(3).eq([name, "llama", count]);
        assert!(out.lines().any(row), "{out}");
    }
}

#[test]
fn parts_of_a_config_that_are_wrong_are_named() {
    let folder = folder();
    let folder = folder.path();
    let before = contents(folder);
    let cases = [
        ("arch = 'llama'", "arch = 'lama'", "line 1: arch: expected \"gpt2\", \"llama\", \"mistral\", \"qwen2\" or"),
        ("kv_heads", "kv_head", "line 4: unknown setting \"kv_head\"; did you mean kv_heads?"),
        ("kv_heads = 2", "kv_heads = 3", "n_head 4 is not a multiple of n_kv_head 3"),
        ("tied = false", "qk_norm = true", "qk_norm: the family llama has no such part"),
        (
            "arch = 'llama'",
            "arch = 'qwen3'\nqk_norm = false",
            "qk_norm is false; it is always true in the family qwen3",
        ),
        ("tied = false", "activation = 'gelu'", "activation: expected swiglu in the family llama"),
        ("tied = false", "head_dim = 5", "expected heads of an even width for rotary positions, got 5"),
        ("arch = 'llama'", "arch = 'gpt2'", "n_kv_head: the family gpt2 has no such part"),
        ("rope_theta = 5000", "rope_theta = 0", "rope_theta: expected a number above 1, got 0"),
        ("factor = 2", "factr = 2", "rope_scaling: unknown entry \"factr\" of rope_type \"linear\": expected factor"),
        (", factor = 2", "", "line 10: rope_scaling: missing factor"),
        ("'linear'", "'dynamic'", "unsupported rope_type \"dynamic\": expected default, linear, llama3 or yarn"),
        ("'linear'", "'yarn'", "rope_scaling: missing original_max_position_embeddings"),
        ("norm_eps = 1e-6", "norm_eps = 2.0", "layer_norm_epsilon is 2; it must be between 0 and 1"),
    ];
    for (from, to, expected) in cases {
        assert!(LLAMA.contains(from), "{from}");
        fs::write(folder.join("llama.toml"), LLAMA.replace(from, to)).unwrap();
        let complaint = fail(folder, &format!("train --config llama.toml {DATA}"), 1);
        assert!(complaint.contains(expected), "{to}: {complaint}");
    }
    fs::write(folder.join("llama.toml"), LLAMA).unwrap();
    assert_eq!(contents(folder), before);
    // Flags override the file, and the file the variant.
    let line = format!("train --config llama.toml --arch mistral --variant 7M {DATA} --max_iters 0 --block_size 8");
    succeed(folder, &format!("{line} --out m.pt"));
    let mut expected = Config { family: Family::Mistral, block_size: 8, ..llama() };
    expected.rope.as_mut().unwrap().context = 8;
    assert_eq!(load(folder, "m.pt").config, expected);
}
