//! Import and export of Hugging Face models from the command line, with the same numbers on both sides.
//!
//! `crates/ngen3-model/tests/fixtures/hf/make_hf.py` wrote the model folders and their logits with transformers.

mod common;
#[path = "../../ngen3-data/tests/hf_hub/server.rs"]
mod server;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use common::{contents, fail, ngen3, shakespeare, succeed, texts};
use ngen3_cpu::CpuEngine;
use ngen3_data::Tokenizer;
use ngen3_engine::{Dtype, Feed, Model, Options};
use ngen3_model::{Checkpoint, CheckpointMeta, Config, ParamList, TokenizerRef, checkpoint};
use serde_json::Value;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../ngen3-model/tests/fixtures/hf").join(name)
}

/// Results of transformers.
fn expected(name: &str) -> Value {
    serde_json::from_slice(&fs::read(fixture(name).join("expected.json")).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

/// Largest difference between our logits and those of transformers, over all tokens.
fn largest_difference(model: Checkpoint, expected: &Value) -> f64 {
    let options = Options { threads: 1, dtype: Dtype::F32, ..Options::default() };
    let engine = CpuEngine::new(model.config, model.params, options).unwrap();
    let mut decoder = engine.decoder(1).unwrap();
    let tokens = expected["tokens"].as_array().unwrap();
    let mut largest: f64 = 0.0;
    for (token, theirs) in tokens.iter().zip(expected["logits"].as_array().unwrap()) {
        let ours = decoder.feed(&[Feed::new(0, &[token.as_u64().unwrap() as u32])]).unwrap();
        let theirs = numbers(theirs);
        assert_eq!(ours.len(), theirs.len());
        for (&ours, theirs) in ours.iter().zip(theirs) {
            assert!(ours.is_finite());
            largest = largest.max((f64::from(ours) - theirs).abs());
        }
    }
    largest
}

#[test]
fn the_logits_of_every_folder_are_those_of_transformers() {
    for name in
        ["whole", "sharded", "f16", "bf16", "bare", "bin", "bin_sharded", "copied_head", "tokenizer", "older_tokenizer"]
    {
        let expected = expected(name);
        let spread = numbers(&expected["logits"][6]).into_iter().fold(0f64, |max, logit| max.max(logit.abs()));
        assert!(spread > 1.0, "{name}: a mistake would not show in logits of {spread}");
        let largest = largest_difference(Checkpoint::load(&fixture(name)).unwrap(), &expected);
        assert!(largest < 1e-4, "{name}: the largest difference of a logit is {largest}");
    }
}

#[test]
fn a_folder_becomes_a_checkpoint_and_a_folder_again() {
    let folder = tempfile::tempdir().unwrap();
    let source = fixture("sharded");
    let (out, _) = succeed(folder.path(), &format!("import --from {} --out a.pt", source.display()));
    let shape = "a.pt: 5,148 parameters, 2 layers, 3 heads, width 12, context 16, vocabulary 97; ";
    assert!(out.starts_with(shape) && out.contains("no recorded tokenizer"), "{out}");
    let error = fail(folder.path(), &format!("import --from {} --out a.pt", source.display()), 1);
    assert_eq!(error, "a.pt: already exists; replace it with --overwrite");
    succeed(folder.path(), &format!("import --from {} --out a.pt --overwrite", source.display()));

    // While a run holds the lock on its folder, no other command writes the file.
    std::fs::create_dir(folder.path().join("a.run")).unwrap();
    let run = std::fs::File::open(folder.path().join("a.run")).unwrap();
    run.try_lock().unwrap();
    let error = fail(folder.path(), &format!("import --from {} --out a.pt --overwrite", source.display()), 1);
    assert_eq!(error, "another run is training a.pt; wait for it or choose another --out");
    drop(run);

    common::protect(&folder.path().join("a.pt"));
    let error = fail(folder.path(), &format!("import --from {} --out a.pt --overwrite", source.display()), 1);
    assert_eq!(error, "cannot write a.pt: it is read-only");

    let (out, err) = succeed(folder.path(), "export --model_path a.pt --output_dir b");
    assert!(out.contains("  config.json (") && out.contains("  model.safetensors ("), "{out}");
    assert!(err.contains("note: the model has no recorded tokenizer"), "{err}");
    succeed(folder.path(), "import --from b --out c.safetensors");
    let [first, second, third] = ["a.pt", "b", "c.safetensors"].map(|name| Checkpoint::load(&folder.path().join(name)));
    let first = first.unwrap();
    assert_eq!(second.unwrap(), first);
    assert_eq!(third.unwrap(), first);
    assert!(largest_difference(first, &expected("sharded")) < 1e-4);
}

#[test]
fn its_own_tokenizer_comes_along() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["tokenizer", "older_tokenizer"] {
        let (out, _) =
            succeed(folder.path(), &format!("import --overwrite --from {} --out a.pt", fixture(name).display()));
        assert!(out.contains("; tokenizer of 300 tokens"), "{out}");
        let TokenizerRef::Json(json) = Checkpoint::load(&folder.path().join("a.pt")).unwrap().meta.tokenizer else {
            panic!("{name} has no tokenizer");
        };
        let expected = expected(name);
        let ids =
            Tokenizer::from_json(json.as_bytes(), name).unwrap().encode(expected["text"].as_str().unwrap()).unwrap();
        assert_eq!(ids, numbers(&expected["ids"]).into_iter().map(|id| id as u32).collect::<Vec<_>>(), "{name}");
        // The commands also read the folder; the same model generates the same text.
        let sample = |model: &str| {
            let line =
                format!("sample --model_checkpoint {model} --prompt loss --length 20 --temperature 0 --dtype f32");
            succeed(folder.path(), &line).0
        };
        let text = sample("a.pt");
        assert!(text.starts_with("loss") && text.len() > 10, "{text}");
        assert_eq!(sample(fixture(name).to_str().unwrap()), text);
    }
}

/// Saves a tiny model with this vocabulary size.
fn save_gpt2(path: &Path, vocab_size: usize) {
    let config = Config::new(1, 1, 4, 8, vocab_size);
    checkpoint::save(path, &config, &ParamList::new(&config).init(1), &CheckpointMeta::default()).unwrap();
}

#[test]
fn gpt2s_tokenizer_is_recognised() {
    let folder = tempfile::tempdir().unwrap();
    save_gpt2(&folder.path().join("a.pt"), 50_304);
    let (out, _) = succeed(folder.path(), "export --model_path a.pt --output_dir b");
    for name in ["tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json"] {
        assert!(out.contains(&format!("  {name} (")), "{out}");
    }
    let gpt2 = |path: &str| Checkpoint::load(&folder.path().join(path)).unwrap().meta.tokenizer == TokenizerRef::Gpt2;
    assert!(gpt2("b"));
    let b = |name: &str| folder.path().join("b").join(name);
    fs::remove_file(b("tokenizer.json")).unwrap();
    assert!(gpt2("b"), "by vocab.json and merges.txt");
    // Two merges the other way round.
    let merges = fs::read_to_string(b("merges.txt")).unwrap();
    let mut lines: Vec<_> = merges.lines().collect();
    lines.swap(100, 101);
    fs::write(b("merges.txt"), lines.join("\n")).unwrap();
    assert!(!gpt2("b"));
    let (out, _) = succeed(folder.path(), "import --from b --out c.pt");
    assert!(out.contains("; tokenizer of 50,257 tokens"), "{out}");
    for name in ["vocab.json", "merges.txt"] {
        fs::remove_file(b(name)).unwrap();
    }
    assert!(gpt2("b"), "by the size of its vocabulary");
}

/// Kills an export while it writes: the next export to the same folder removes its leftovers, but not those of a running one.
#[cfg(unix)]
#[test]
fn what_a_killed_export_left_is_removed_by_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let config = Config::new(1, 1, 64, 8, 50_257);
    checkpoint::save(&root.join("a.pt"), &config, &ParamList::new(&config).init(1), &CheckpointMeta::default())
        .unwrap();
    let line = "export --model_path a.pt --output_dir out --overwrite";
    let temporary = || -> Vec<PathBuf> {
        let all = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
        all.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(".out.")).collect()
    };
    for _ in 0..100 {
        let mut child = ngen3(root, line).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        while temporary().is_empty() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        if !temporary().is_empty() {
            break;
        }
    }
    assert!(!temporary().is_empty(), "it was never killed in the middle");

    let living = root.join(".out.Living.tmp");
    fs::create_dir(&living).unwrap();
    let held = fs::File::open(&living).unwrap();
    held.lock().unwrap();
    succeed(root, line);
    assert_eq!(temporary(), [living]);
    drop(held);
    succeed(root, line);
    assert!(temporary().is_empty());
    assert_eq!(Checkpoint::load(&root.join("out")).unwrap().params, ParamList::new(&config).init(1));
}

#[test]
fn what_was_trained_is_exported_with_its_story() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("play.txt"), &shakespeare()[..60_000]).unwrap();
    succeed(folder.path(), "tokenizer train --txt play.txt --vocab_size 300 --out tokenizer.json");
    succeed(folder.path(), "tokenize --dataset play --txt play.txt --tokenizer tokenizer.json");
    fs::write(folder.path().join("tiny.toml"), "n_layer = 1\nn_head = 2\nn_embd = 32\nblock_size = 32\n").unwrap();
    succeed(
        folder.path(),
        "train --config tiny.toml --data _data_play_/data.bin --max_iters 20 --eval_interval 10 --eval_iters 2 \
         --batch_size 4 --learning_rate 1e-2",
    );
    succeed(folder.path(), "export --model_path tiny_model.pt --output_dir exported");
    let exported = folder.path().join("exported");
    let card = fs::read_to_string(exported.join("README.md")).unwrap();
    let metrics = fs::read_to_string(folder.path().join("tiny_model.run/metrics.jsonl")).unwrap();
    let last: Value = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
    let loss = last["val_loss"].to_string();
    for part in [
        "# tiny_model\n",
        "trained for 20 steps",
        "Data: play.txt (",
        "| batch_size | 4 |",
        "| learning_rate | 0.01 |",
        "| 20 |",
        "![loss by step](loss.svg)",
        &format!("      value: {loss}\n"),
    ] {
        assert!(card.contains(part), "{part:?} is not in {card}");
    }
    assert!(fs::read_to_string(exported.join("loss.svg")).unwrap().contains("<svg"));
    let own = fs::read_to_string(folder.path().join("tokenizer.json")).unwrap();
    assert_eq!(fs::read_to_string(exported.join("tokenizer.json")).unwrap(), own);

    // The folder works like the checkpoint, with the same metadata.
    let loaded = |path: &Path| Checkpoint::load(path).unwrap();
    assert_eq!(loaded(&exported), loaded(&folder.path().join("tiny_model.pt")));
    let train = "train --config tiny.toml --data _data_play_/data.bin --max_iters 2 --batch_size 2 --out more.pt";
    succeed(folder.path(), &format!("{train} --init_from exported"));
    succeed(folder.path(), "trace --model_checkpoint exported --data _data_play_/data.bin --out a.json --dtype f32");
    succeed(
        folder.path(),
        "trace --model_checkpoint tiny_model.pt --data _data_play_/data.bin --out b.json --dtype f32",
    );
    let trace = |name: &str| fs::read(folder.path().join(name)).unwrap();
    assert!(trace("a.json") == trace("b.json"), "the same loss and gradients");

    let gguf = "export --model_path exported --output_dir gguf --format gguf --dtype q8_0";
    let (out, _) = succeed(folder.path(), gguf);
    assert!(out.contains("  exported-q8_0.gguf ("), "{out}");
}

/// Copies a folder to a hub cache, as the main branch of a model.
fn cache_model(cache: &Path, repo: &str, folder: &Path) {
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let repo = cache.join("hub").join(format!("models--{}", repo.replace('/', "--")));
    fs::create_dir_all(repo.join("refs")).unwrap();
    fs::write(repo.join("refs/main"), commit).unwrap();
    let snapshot = repo.join("snapshots").join(commit);
    fs::create_dir_all(&snapshot).unwrap();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), snapshot.join(entry.file_name())).unwrap();
    }
}

#[test]
fn names_on_the_hub_and_hf_are_models_too() {
    let folder = tempfile::tempdir().unwrap();
    let cache = tempfile::tempdir().unwrap();
    cache_model(cache.path(), "someone/small", &fixture("sharded"));
    cache_model(cache.path(), "openai-community/gpt2", &fixture("tokenizer"));
    let offline = |line: &str, code: i32| {
        let mut command = ngen3(folder.path(), line);
        command.env("HF_HUB_OFFLINE", "1").env("HF_HOME", cache.path());
        for unwanted in ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_ENDPOINT"] {
            command.env_remove(unwanted);
        }
        texts(&command.output().unwrap(), code)
    };
    offline("import --from someone/small --out a.pt", 0);
    let loaded = |path: &Path| Checkpoint::load(path).unwrap();
    assert_eq!(loaded(&folder.path().join("a.pt")), loaded(&fixture("sharded")));
    let (out, _) = offline("export --model_path someone/small --output_dir b --format hf", 0);
    assert!(out.starts_with("b:\n"), "{out}");
    let card = fs::read_to_string(folder.path().join("b/README.md")).unwrap();
    assert!(card.contains("# small\n"), "{card}");
    let (_, error) = offline("import --from someone/small --revision v2 --out c.pt", 1);
    assert!(error.contains("v2 is not in the cache"), "{error}");

    // hf is GPT-2 in the size of the variant, even if the variant's own shape differs.
    let line = "sample --model_checkpoint hf --variant 120M --prompt loss --length 3 --temperature 0";
    let (out, _) = offline(line, 0);
    assert!(out.starts_with("loss"), "{out}");
    fs::write(folder.path().join("text.txt"), "some text, ".repeat(100)).unwrap();
    let tokenizer = fixture("tokenizer").join("tokenizer.json");
    offline(&format!("tokenize --dataset x --txt text.txt --tokenizer {}", tokenizer.display()), 0);
    let train = "train --init_from hf --variant 120M --data _data_x_/data.bin --max_iters 0 --block_size 8";
    let (_, error) = offline(train, 1);
    assert!(error.contains("n_layer is 2, not 12; n_head is 3, not 12; n_embd is 12, not 768"), "{error}");
    // A local path takes precedence.
    fs::create_dir_all(folder.path().join("someone")).unwrap();
    fs::rename(folder.path().join("b"), folder.path().join("someone/small")).unwrap();
    let (_, error) = offline("import --from someone/small --revision v2 --out c.pt", 1);
    assert!(error.contains("someone/small: --revision requires a repository on the hub"), "{error}");
}

#[test]
fn an_export_is_pushed_to_the_hub_and_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let server = server::FakeHub::start();
    let hub = |line: &str, token: &str, code: i32| {
        let mut command = ngen3(folder.path(), line);
        for unwanted in ["HF_HUB_CACHE", "HF_TOKEN_PATH", "HF_HUB_OFFLINE", "XDG_CACHE_HOME"] {
            command.env_remove(unwanted);
        }
        command.env("HF_ENDPOINT", &server.endpoint).env("HF_HOME", folder.path().join("hf")).env("HF_TOKEN", token);
        texts(&command.output().unwrap(), code)
    };
    let model = fixture("sharded");
    let push = format!("export --model_path {} --output_dir out --overwrite --push me/small", model.display());
    // Errors that can be detected early are reported before anything is written.
    let (_, error) = hub(&push.replace("me/small", "small"), "hf_writer", 1);
    assert!(error.contains("error: invalid repository name \"small\": expected OWNER/NAME"), "{error}");
    let (_, error) = hub(&push, "", 1);
    assert!(error.contains("error: to upload, set HF_TOKEN"), "{error}");
    assert!(!folder.path().join("out").exists());
    let (_, error) = hub(&push, "hf_reader", 1);
    assert!(
        error.contains("error: cannot upload model me/small: the hub returned 403") && error.contains("write access"),
        "{error}"
    );
    let (out, _) = hub(&push, "hf_writer", 0);
    let page = format!("{}/me/small, commit ", server.endpoint);
    assert!(out.lines().last().unwrap().starts_with(&page), "{out}");
    let there = server.files("models", "me/small");
    for (name, bytes) in contents(&folder.path().join("out")) {
        let name = name.rsplit('/').next().unwrap();
        assert!(there[name] == bytes, "{name}");
    }
    hub("import --from me/small --out back.pt", "hf_writer", 0);
    let loaded = |path: &Path| Checkpoint::load(path).unwrap();
    assert_eq!(loaded(&folder.path().join("back.pt")).params, loaded(&model).params);
}

#[test]
fn what_cannot_be_exported_or_imported_is_said_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    save_gpt2(&folder.path().join("a.pt"), 50_257);
    fs::create_dir(folder.path().join("full")).unwrap();
    fs::write(folder.path().join("full/thesis.txt"), "years of work").unwrap();
    let untied = fixture("untied");
    let before = contents(folder.path());
    for (line, code, reason) in [
        ("export --model_path a.pt --output_dir full", 1, "the folder is not empty; choose another"),
        (
            "export --model_path a.pt --output_dir full --overwrite",
            1,
            "holds thesis.txt, which is not part of an export",
        ),
        ("export --model_path a.pt --output_dir b --dtype q8_0", 1, "the hf format does not support q8_0"),
        ("export --model_path a.pt --output_dir b --dtype q4_0", 1, "the hf format does not support q4_0"),
        (
            "export --model_path a.pt --output_dir b --variant 7M",
            1,
            "a.pt: expected 7M (7,242,624 parameters) with 4 layers",
        ),
        ("export --model_path missing.pt --output_dir b", 1, "missing.pt: No such file"),
        ("export --model_path full --output_dir b", 1, "full: not a Hugging Face model: no config.json"),
        ("export --model_path a.pt --output_dir no/where", 1, "there is no folder no"),
        // Checked before the model is resolved, which may be a download.
        ("export --model_path missing.pt --output_dir no/where", 1, "cannot write no/where: there is no folder no"),
        ("export --model_path missing.pt --output_dir full", 1, "cannot write full: the folder is not empty"),
        ("export --model_path missing.pt --output_dir b --dtype q8_0", 1, "the hf format does not support q8_0"),
        ("import --from missing.pt --out no/where.pt", 1, "cannot write no/where.pt: there is no folder no"),
        ("import --from full --out b.bin", 1, "expected a file name ending in .pt or .safetensors"),
        ("import --from a.pt --out b.pt --revision main", 1, "a.pt: --revision requires a repository on the hub"),
        ("import --from hf --out b.pt", 1, "hf: no variant for the GPT-2 size: expected 120M"),
        (
            "sample --model_checkpoint hf --variant 7M",
            1,
            "hf: no GPT-2 in the size of 7M (7,242,624 parameters): expected 120M",
        ),
        (&format!("import --from {} --out b.pt", untied.display()), 1, "lm_head.weight differs"),
    ] {
        let error = fail(folder.path(), line, code);
        assert!(error.contains(reason), "{line}: expected {reason:?}, got {error:?}");
    }
    // A name that is no local path may be one on the hub; offline, it must be in the cache.
    let mut command = ngen3(folder.path(), "import --from nobody/nothing --out b.pt");
    let cache = tempfile::tempdir().unwrap();
    let output = command.env("HF_HUB_OFFLINE", "1").env("HF_HOME", cache.path()).output().unwrap();
    let (_, error) = texts(&output, 1);
    assert!(error.contains("nobody/nothing: no such file or folder, and not found on the hub"), "{error}");
    for (line, reason) in [
        (
            "export --model_path a.pt --output_dir b --dtype f64",
            "expected f32, bf16, f16, or for GGUF also q8_0 or q4_0",
        ),
        ("export --model_path a.pt --output_dir b --format onnx", "expected hf or gguf"),
    ] {
        let output = ngen3(folder.path(), line).output().unwrap();
        let (_, error) = texts(&output, 2);
        assert!(error.contains(reason), "{error}");
    }
    assert_eq!(contents(folder.path()), before, "nothing was written");
}
