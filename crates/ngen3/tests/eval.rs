//! `ngen3 eval` from the command line.

mod common;
#[path = "../../ngen3-data/tests/hf_hub/server.rs"]
mod server;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};

use common::{fail, ngen3, succeed, texts};
use ngen3_model::{Checkpoint, CheckpointMeta, Config, ParamList, checkpoint};
use serde_json::{Value, json};
use server::FakeHub;

/// A tiny model with GPT-2's vocabulary.
fn config() -> Config {
    Config::new(1, 2, 8, 32, 50_257)
}

/// Writes an untrained model.
fn untrained(path: &Path) {
    let params = ParamList::new(&config()).init(3);
    checkpoint::save(path, &config(), &params, &CheckpointMeta::default()).unwrap();
}

/// Questions in PIQA's format; the right answers are unrelated to the texts.
fn piqa(n: usize) -> String {
    const WORDS: [&str; 12] = [
        "kettle", "ladder", "violin", "paint", "open", "clean", "slowly", "twice", "at night", "a jar", "the lid",
        "rope",
    ];
    let words = |seed: usize, count: usize| {
        (0..count).map(|i| WORDS[(seed * 7919 + i * i * 31 + 13) / 5 % WORDS.len()]).collect::<Vec<_>>().join(" ")
    };
    let row = |i: usize| json!({ "goal": words(i, 4), "sol1": words(2 * i + 1, 3), "sol2": words(3 * i + 2, 3), "label": (i * i / 3 + i) % 2 });
    (0..n).map(|i| format!("{}\n", row(i))).collect()
}

fn write(path: &Path, content: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// A folder with a model and 400 questions.
fn prepared() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    untrained(&folder.path().join("tiny_model.pt"));
    write(&folder.path().join("sets/piqa/validation.jsonl"), &piqa(400));
    folder
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_model_that_has_learned_nothing_scores_near_chance_and_the_error_says_so() {
    let folder = prepared();
    let line =
        "eval --model_checkpoint tiny_model.pt --tasks piqa --data_dir sets --out results.json --log_samples logged";
    let (out, err) = succeed(folder.path(), line);
    assert!(out.starts_with("task  version  n-shot  items  metric"), "{out}");
    assert!(out.contains("\npiqa        1       0    400  acc "), "{out}");
    assert!(err.contains("tiny_model: 400 items in "), "{err}");

    let results = json_of(&folder.path().join("results.json"));
    let value = |name: &str| results["results"]["piqa"][name].as_f64().unwrap();
    for metric in ["acc", "acc_norm"] {
        let (acc, error) = (value(&format!("{metric},none")), value(&format!("{metric}_stderr,none")));
        assert!((error - 0.025).abs() < 0.001, "{error}");
        assert!((acc - 0.5).abs() < 3.0 * error, "{acc} ± {error}");
    }
    assert_eq!(results["versions"], json!({ "piqa": 1.0 }));
    assert_eq!(results["n-shot"], json!({ "piqa": 0 }));
    assert_eq!(results["n-samples"], json!({ "piqa": { "original": 400, "effective": 400 } }));
    assert_eq!(results["config"]["model_num_parameters"], ParamList::new(&config()).total());

    // The samples say which of them were right.
    let samples = fs::read_to_string(folder.path().join("logged/tiny_model/samples_piqa.jsonl")).unwrap();
    let samples: Vec<Value> = samples.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let right = samples.iter().filter(|sample| {
        let scores = &sample["filtered_resps"];
        let chosen = usize::from(scores[1].as_f64() > scores[0].as_f64());
        assert_eq!(sample["acc"] == 1.0, sample["target"] == chosen, "{sample}");
        sample["acc"] == 1.0
    });
    assert_eq!(right.count() as f64 / 400.0, value("acc,none"));
}

#[test]
fn results_travel_with_the_checkpoint_into_the_model_card() {
    let folder = prepared();
    let model = folder.path().join("tiny_model.pt");
    let before = fs::read(&model).unwrap();
    let line = "eval --model_checkpoint tiny_model.pt --tasks piqa --data_dir sets";
    let (_, err) = succeed(folder.path(), &format!("{line} --limit 5"));
    assert!(err.contains("note: results not added to tiny_model.pt: --limit was given"), "{err}");
    succeed(folder.path(), &format!("{line} --no_merge"));
    assert!(fs::read(&model).unwrap() == before, "the model is as it was");

    succeed(folder.path(), line);
    let loaded = Checkpoint::load(&model).unwrap();
    assert_eq!(loaded.params, ParamList::new(&config()).init(3));
    let acc = loaded.meta.evaluations["piqa"]["metrics"]["acc"]["value"].as_f64().unwrap();
    // Another task's results join them.
    write(&folder.path().join("a.txt"), "To be, or not to be, that is the question.\n");
    succeed(folder.path(), "eval --model_checkpoint tiny_model.pt --tasks perplexity --text a.txt");
    succeed(folder.path(), "export --model_path tiny_model.pt --output_dir out");
    let card = fs::read_to_string(folder.path().join("out/README.md")).unwrap();
    for part in [
        "model-index:\n- name: \"tiny_model\"\n  results:\n",
        "      type: \"baber/piqa\"\n      split: \"validation\"\n",
        &format!("    - type: \"acc\"\n      name: \"acc\"\n      value: {acc}\n"),
        &format!("| piqa | 1 | 0 | 400 | acc | {acc:.4} |"),
        "      name: \"a.txt\"\n      type: \"text\"\n",
        "Measured with `ngen3 eval`. Tasks of EleutherAI's lm-evaluation-harness, in the version given: piqa (acc_bytes is \
         NGen3's).\n",
    ] {
        assert!(card.contains(part), "{part:?} is not in {card}");
    }

    // A folder is not ours to change, and measures the same.
    let exported = fs::read(folder.path().join("out/model.safetensors")).unwrap();
    let (out, err) = succeed(folder.path(), &format!("{line} --out again.json").replace("tiny_model.pt", "out"));
    assert!(err.contains("note: results not added to out: it is a folder"), "{err}");
    assert!(fs::read(folder.path().join("out/model.safetensors")).unwrap() == exported);
    assert!(out.contains(&format!("{acc:.4} ±")), "{out}");
    assert_eq!(json_of(&folder.path().join("again.json"))["results"]["piqa"]["acc,none"], acc);
}

#[test]
fn another_programs_checkpoint_is_measured_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ngen3-model/tests/fixtures/nanogpt.pt");
    let path = folder.path().join("ckpt.pt");
    fs::copy(&fixture, &path).unwrap();
    let vocab_size = Checkpoint::load(&path).unwrap().config.vocab_size;
    let tokens: Vec<u8> = (0..500).flat_map(|i| ((i * i % vocab_size) as u16).to_le_bytes()).collect();
    fs::write(folder.path().join("x.bin"), tokens).unwrap();
    let (out, err) = succeed(folder.path(), "eval --model_checkpoint ckpt.pt --tasks perplexity --text x.bin");
    assert!(out.contains("perplexity") && !out.contains("bits_per_byte"), "no tokenizer is recorded: {out}");
    assert!(err.contains("note: results not added to ckpt.pt: ngen3 did not write it"), "{err}");
    assert!(fs::read(&path).unwrap() == fs::read(&fixture).unwrap());
}

#[test]
fn a_model_of_equal_odds_is_as_perplexed_as_its_vocabulary_is_large() {
    let folder = tempfile::tempdir().unwrap();
    let params = vec![0.0; ParamList::new(&config()).total()];
    let meta = CheckpointMeta::default();
    checkpoint::save(&folder.path().join("flat.safetensors"), &config(), &params, &meta).unwrap();
    succeed(folder.path(), "tokenize --dataset plays --txt builtin:shakespeare");
    let line = "eval --model_checkpoint flat.safetensors --tasks perplexity --out r.json --dtype f32 --limit 20 --text";
    for text in ["builtin:shakespeare", "_data_plays_/data.bin", "_data_plays_/data.bin --val_fraction 0.1 --stride 8"]
    {
        succeed(folder.path(), &format!("{line} {text}"));
        let results = json_of(&folder.path().join("r.json"));
        let value = |name: &str| results["results"]["perplexity"][format!("{name},none")].as_f64().unwrap();
        assert!((value("perplexity") - 50_257.0).abs() < 0.1, "{text}: {}", value("perplexity"));
        let config = &results["configs"]["perplexity"];
        let tokens = if text.contains("stride") { 32 + 19 * 8 } else { 20 * 32 };
        assert_eq!(config["tokens"], tokens, "{text}");
        let bits = 50_257f64.log2() * f64::from(tokens) / config["bytes"].as_f64().unwrap();
        assert!(
            (value("bits_per_byte") - bits).abs() < 1e-4,
            "{text}: expected {bits}, got {}",
            value("bits_per_byte")
        );
    }
    // Training validates on val.bin, and trains on all of data.bin.
    let tokens: Vec<u8> = (100..177u16).flat_map(u16::to_le_bytes).collect();
    fs::write(folder.path().join("_data_plays_/val.bin"), tokens).unwrap();
    succeed(folder.path(), &format!("{line} _data_plays_/data.bin --val_fraction 0.1"));
    let config = json_of(&folder.path().join("r.json"))["configs"]["perplexity"].clone();
    assert_eq!((&config["text"], &config["tokens"]), (&json!("val.bin"), &json!(77)));
}

#[test]
fn models_of_the_hub_and_folders_keep_all_of_their_names() {
    let folder = prepared();
    let server = FakeHub::start();
    succeed(folder.path(), "export --model_path tiny_model.pt --output_dir local-2.5");
    let files = common::contents(&folder.path().join("local-2.5"));
    let files: Vec<_> = files.iter().map(|(path, bytes)| (path.rsplit('/').next().unwrap(), &bytes[..])).collect();
    server.add("models", "owner/tiny-1.5", "main", &files);
    let line = "eval --model_checkpoint owner/tiny-1.5 local-2.5 --tasks piqa --data_dir sets --limit 2";
    let mut command = ngen3(folder.path(), line);
    for name in ["HF_HUB_CACHE", "HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_OFFLINE", "XDG_CACHE_HOME"] {
        command.env_remove(name);
    }
    command.env("HF_ENDPOINT", &server.endpoint).env("HF_HOME", folder.path().join("hf"));
    let (out, _) = texts(&command.output().unwrap(), 0);
    let names: Vec<_> = out.lines().next().unwrap().split_whitespace().skip(5).collect();
    assert_eq!(names, ["tiny-1.5", "local-2.5"], "{out}");
}

#[test]
fn what_int8_weights_cost_is_what_a_model_of_such_weights_scores() {
    let folder = tempfile::tempdir().unwrap();
    let save = |name: &str, params: &[f32]| {
        checkpoint::save(&folder.path().join(name), &config(), params, &CheckpointMeta::default()).unwrap();
    };
    let list = ParamList::new(&config());
    let mut params: Vec<f32> = list.init(3).iter().map(|p| 20.0 * p).collect();
    save("m.pt", &params);
    write(&folder.path().join("a.txt"), "To be, or not to be, that is the question:\n");
    let line = "eval --tasks perplexity --text a.txt --dtype f32 --out r.json --model_checkpoint";
    let (out, err) = succeed(folder.path(), &format!("{line} m.pt --quant int8"));
    let both = json_of(&folder.path().join("r.json"));
    let perplexity = |results: &Value| results["results"]["perplexity"]["perplexity,none"].as_f64().unwrap();
    let (plain, int8) = (perplexity(&both[0]), perplexity(&both[1]));
    let percent = 100.0 * (int8 / plain - 1.0);
    let cost = format!("\nm: perplexity {plain:.4}, with int8 weights {int8:.4} ({percent:+.2} %)\n");
    assert!(out.contains(&cost), "{out}");
    assert!(out.lines().next().unwrap().ends_with("m-int8") && err.contains("m-int8: "), "{out}{err}");
    assert_eq!((&both[0]["config"]["quant"], &both[1]["config"]["quant"]), (&Value::Null, &json!("int8")));
    let kept = Checkpoint::load(&folder.path().join("m.pt")).unwrap().meta.evaluations;
    assert_eq!(kept["perplexity"]["metrics"]["perplexity"]["value"], plain, "the checkpoint's own weights");

    // The weights of the layers and the token embeddings, rounded to 127 steps either way for each output.
    for param in &list {
        let is_weight = param.shape.len() == 2 && param.range() != list.wpe;
        for row in params[param.range()].chunks_mut(*param.shape.last().unwrap()).filter(|_| is_weight) {
            let step = row.iter().fold(0.0f32, |largest, w| largest.max(w.abs())) / 127.0;
            row.iter_mut().for_each(|w| *w = (*w / step).round() * step);
        }
    }
    save("rounded.pt", &params);
    succeed(folder.path(), &format!("{line} rounded.pt"));
    let rounded = perplexity(&json_of(&folder.path().join("r.json")));
    assert!((int8 / rounded - 1.0).abs() < 1e-5, "expected {rounded}, got {int8}");
    assert!((int8 / plain - 1.0).abs() > 1e-4, "{int8} and {plain} differ too little");

    // In 4 bits they cost more.
    let (out, _) = succeed(folder.path(), &format!("{line} m.pt --quant int4"));
    let both = json_of(&folder.path().join("r.json"));
    let int4 = perplexity(&both[1]);
    assert!(out.contains(&format!("m: perplexity {plain:.4}, with int4 weights {int4:.4} (")), "{out}");
    assert!((int4 / plain - 1.0).abs() > (int8 / plain - 1.0).abs(), "{int4} {int8} {plain}");
    assert_eq!(both[1]["config"]["quant"], json!("int4"));
}

#[test]
fn models_stand_side_by_side() {
    let folder = prepared();
    untrained(&folder.path().join("second.safetensors"));
    let line =
        "eval --model_checkpoint tiny_model.pt second.safetensors --tasks piqa --data_dir sets --limit 20 --out r.json";
    let (out, _) = succeed(folder.path(), line);
    let lines: Vec<_> = out.lines().collect();
    assert!(lines[0].contains("tiny_model") && lines[0].ends_with("second"), "{out}");
    let columns: Vec<_> = lines[1].split("  ").filter(|cell| cell.contains('±')).collect();
    assert_eq!(columns.len(), 2, "{out}");
    assert_eq!(columns[0].trim(), columns[1].trim(), "they are the same model");
    let results = json_of(&folder.path().join("r.json"));
    let names: Vec<_> = results.as_array().unwrap().iter().map(|one| one["model_name"].as_str().unwrap()).collect();
    assert_eq!(names, ["tiny_model", "second"]);
}

#[test]
fn piqa_is_read_as_its_authors_publish_it_and_as_the_hub_has_it() {
    let folder = prepared();
    let line = "eval --model_checkpoint tiny_model.pt --tasks piqa --no_merge --out r.json";
    let (expected, _) = succeed(folder.path(), &format!("{line} --data_dir sets"));

    let rows: Vec<Value> = piqa(400).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let labels: String = rows.iter().map(|row| format!("{}\n", row["label"])).collect();
    let bare: String = rows
        .iter()
        .map(|row| {
            let mut row = row.as_object().unwrap().clone();
            row.remove("label");
            format!("{}\n", Value::from(row))
        })
        .collect();
    write(&folder.path().join("original/valid.jsonl"), &bare);
    write(&folder.path().join("original/valid-labels.lst"), &labels);
    assert_eq!(succeed(folder.path(), &format!("{line} --data_dir original")).0, expected);
    write(&folder.path().join("original/valid-labels.lst"), "0\n1\n");
    let error = fail(folder.path(), &format!("{line} --data_dir original"), 1);
    assert!(error.ends_with("original/valid-labels.lst: expected 400 lines, got 2"), "{error}");

    let server = FakeHub::start();
    server.add("datasets", "baber/piqa", "main", &[("validation.jsonl", piqa(400).as_bytes())]);
    let mut command = ngen3(folder.path(), line);
    for name in ["HF_HUB_CACHE", "HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_OFFLINE", "XDG_CACHE_HOME"] {
        command.env_remove(name);
    }
    command.env("HF_ENDPOINT", &server.endpoint).env("HF_HOME", folder.path().join("hf"));
    assert_eq!(texts(&command.output().unwrap(), 0).0, expected);
}

#[test]
fn what_is_missing_or_wrong_is_said_before_the_model_is_asked() {
    let folder = prepared();
    let sets = folder.path().join("sets");
    let complaint = |flags: &str| fail(folder.path(), &format!("eval --model_checkpoint tiny_model.pt {flags}"), 1);
    let error = complaint("--tasks piqa,boolq --data_dir sets");
    assert!(
        error.starts_with("unknown task \"boolq\": expected piqa, hellaswag, winogrande, mmlu (or a part"),
        "{error}"
    );
    assert!(error.ends_with(", perplexity"), "{error}");
    // A model, other JSON, JSON lines, and results followed by more.
    let results = "{\"results\": {}, \"configs\": {}, \"versions\": {}, \"n-shot\": {}}\n";
    write(&folder.path().join("config.json"), "{\n  \"model_type\": \"gpt2\"\n}\n");
    write(&folder.path().join("twice.json"), &results.repeat(2));
    let before = common::contents(folder.path());
    for name in ["tiny_model.pt", "config.json", "sets/piqa/validation.jsonl", "twice.json"] {
        let lost = |kind| format!("{name}: already exists and is not {kind}; choose another --out");
        assert_eq!(complaint(&format!("--tasks piqa --data_dir sets --out {name}")), lost("a results file of eval"));
        let trace = "trace --model_checkpoint tiny_model.pt --data _data_play_/data.bin --out";
        assert_eq!(fail(folder.path(), &format!("{trace} {name}"), 1), lost("a trace"));
    }
    assert_eq!(common::contents(folder.path()), before);
    assert_eq!(complaint("--tasks piqa --data_dir nowhere"), "piqa: no folder nowhere");
    // Another task's questions are not mistaken for its own.
    assert_eq!(complaint("--tasks mmlu_anatomy --data_dir sets"), "mmlu_anatomy: no folder sets/mmlu");
    assert_eq!(complaint("--tasks piqa,hellaswag --data_dir sets"), "hellaswag: no folder sets/hellaswag");
    assert_eq!(complaint("--tasks mmlu_anatomy --data_dir ."), "mmlu_anatomy: no folder ./anatomy");
    for flag in ["--text x", "--stride 8"] {
        let error = complaint(&format!("--tasks piqa --data_dir sets {flag}"));
        assert_eq!(error, format!("{} requires the task perplexity in --tasks", &flag[..flag.len() - 2]));
    }
    assert_eq!(
        complaint("--tasks piqa --data_dir sets --num_fewshot 2"),
        "piqa: sets/piqa: unknown split \"train\": expected one of validation"
    );
    write(&sets.join("piqa/train.jsonl"), &piqa(3));
    let error = complaint("--tasks piqa --data_dir sets --num_fewshot 3");
    assert_eq!(error, "piqa: sets/piqa, split train: expected at least 4 rows for 3 examples, got 3");

    write(&sets.join("winogrande/validation.jsonl"), "");
    assert_eq!(
        complaint("--tasks winogrande --data_dir sets"),
        "winogrande: sets/winogrande, split validation: no rows"
    );
    write(&sets.join("winogrande/validation.jsonl"), "{\"sentence\": \"a _\", \"option\": \"b\"}\n");
    let error = complaint("--tasks winogrande --data_dir sets");
    assert_eq!(
        error,
        "winogrande: sets/winogrande, split validation, row 1: no column \"option1\": expected one of sentence, option"
    );
    let unanswered = "{\"sentence\": \"a _\", \"option1\": \"b\", \"option2\": \"c\", \"answer\": \"\"}\n";
    write(&sets.join("winogrande/validation.jsonl"), unanswered);
    let error = complaint("--tasks winogrande --data_dir sets");
    assert!(error.ends_with("row 1: answer: expected 1 to 2, got \"\" (a split without answers?)"), "{error}");
    write(&sets.join("winogrande/validation.jsonl"), "{\"sentence\"\n");
    assert!(complaint("--tasks winogrande --data_dir sets").contains("validation.jsonl: line 1: "));

    write(&folder.path().join("empty.txt"), "");
    assert!(complaint("--tasks perplexity --text empty.txt").contains("empty"));
    write(&folder.path().join("a.txt"), "To be");
    let error = complaint("--tasks perplexity --text a.txt --stride 33");
    assert!(error.contains("stride: expected 1 to 32 tokens (the model's block size), got 33"), "{error}");
    assert!(complaint("--tasks piqa --data_dir sets --out no/r.json").contains("there is no folder no"));
    assert_eq!(complaint("--tasks piqa --data_dir sets --out sets"), "cannot write sets: it is a folder");
    let error = complaint("--tasks piqa --data_dir sets --log_samples a.txt");
    assert_eq!(error, "a.txt: expected a folder for --log_samples, got a file");
    // The last model is checked before the first is evaluated.
    let error = fail(folder.path(), "eval --model_checkpoint tiny_model.pt nowhere.pt --tasks piqa --data_dir sets", 1);
    assert!(error.starts_with("nowhere.pt: "), "{error}");
    // So is the text, with the last model's shape.
    let short = Config { block_size: 16, ..config() };
    checkpoint::save(
        &folder.path().join("short.pt"),
        &short,
        &ParamList::new(&short).init(3),
        &CheckpointMeta::default(),
    )
    .unwrap();
    let line = "eval --model_checkpoint tiny_model.pt short.pt --tasks piqa,perplexity --data_dir sets --stride 20";
    let error = fail(folder.path(), line, 1);
    assert_eq!(error, "cannot evaluate short.pt: stride: expected 1 to 16 tokens (the model's block size), got 20");
    let error = complaint("--tasks piqa --data_dir sets --variant 7M");
    assert!(error.starts_with("tiny_model.pt: expected 7M (7,242,624 parameters) with "), "{error}");
    let mut offline = ngen3(folder.path(), "eval --model_checkpoint tiny_model.pt --tasks piqa");
    offline.env("HF_HUB_OFFLINE", "1").env("HF_HOME", folder.path().join("hf"));
    let error = common::complaint(&offline.output().unwrap(), 1);
    assert!(error.contains("baber/piqa") && error.ends_with("(--data_dir reads it from a local folder)"), "{error}");
}

#[test]
fn without_a_text_the_perplexity_is_that_of_the_last_tenth_of_shakespeare() {
    let folder = prepared();
    let line = "eval --model_checkpoint tiny_model.pt --tasks piqa,perplexity --data_dir sets --limit 40 --out r.json";
    succeed(folder.path(), &format!("{line} --stride 16"));
    let value = || json_of(&folder.path().join("r.json"))["results"]["perplexity"]["perplexity,none"].clone();
    let found = value();
    let title = &json_of(&folder.path().join("r.json"))["configs"]["perplexity"]["text"];
    assert_eq!(title, "the last tenth of builtin:shakespeare");
    let text = String::from_utf8(common::shakespeare()).unwrap();
    let from = text.len() / 10 * 9;
    let start = from + text[from..].find('\n').unwrap() + 1;
    write(&folder.path().join("a.txt"), &text[start..]);
    succeed(folder.path(), &format!("{line} --stride 16 --text a.txt"));
    assert_eq!(value(), found);
}

/// A limit on file sizes simulates a full disk.
#[cfg(unix)]
#[test]
fn a_checkpoint_that_cannot_be_written_costs_no_measurement() {
    let folder = prepared();
    let folder = folder.path();
    let before = fs::read(folder.join("tiny_model.pt")).unwrap();
    // Ignoring SIGXFSZ makes the write fail instead of killing the program.
    let script = "trap '' XFSZ; ulimit -f 64; exec \"$0\" eval --model_checkpoint tiny_model.pt --tasks piqa --data_dir sets \
                  --out r.json";
    let output = Command::new("sh").args(["-c", script, env!("CARGO_BIN_EXE_ngen3")]).current_dir(folder).output();
    let (out, err) = texts(&output.unwrap(), 0);
    assert!(out.contains("\npiqa        1       0    400  acc "), "{out}");
    let note = "\nnote: results not added to tiny_model.pt: cannot write tiny_model.pt: ";
    assert!(err.contains(note), "{err}");
    assert_eq!(json_of(&folder.join("r.json"))["n-samples"]["piqa"]["effective"], 400);
    assert!(fs::read(folder.join("tiny_model.pt")).unwrap() == before);
}

#[test]
fn what_is_measured_is_kept_when_a_later_model_fails() {
    let folder = prepared();
    let folder = folder.path();
    let mut params = ParamList::new(&config()).init(3);
    params.fill(f32::NAN);
    checkpoint::save(&folder.join("broken.pt"), &config(), &params, &CheckpointMeta::default()).unwrap();
    let line = "eval --model_checkpoint tiny_model.pt broken.pt --tasks piqa --data_dir sets --out r.json";
    let (out, err) = texts(&common::run(folder, line), 1);
    assert!(out.lines().next().unwrap().ends_with("  tiny_model") && out.contains("\npiqa "), "{out}");
    assert!(err.contains("\nerror: cannot evaluate broken.pt: "), "{err}");
    let results = json_of(&folder.join("r.json"));
    assert_eq!((&results[0]["model_name"], results.as_array().unwrap().len()), (&json!("tiny_model"), 1));
    assert!(Checkpoint::load(&folder.join("tiny_model.pt")).unwrap().meta.evaluations.contains_key("piqa"));
}

#[cfg(unix)]
#[test]
fn what_is_measured_is_kept_when_the_next_model_is_stopped() {
    let folder = prepared();
    let folder = folder.path();
    let large = Config::new(4, 4, 128, 128, 50_257);
    checkpoint::save(&folder.join("large.pt"), &large, &ParamList::new(&large).init(3), &CheckpointMeta::default())
        .unwrap();
    write(&folder.join("sets/piqa/validation.jsonl"), &piqa(2_000));
    let line = "eval --model_checkpoint tiny_model.pt large.pt --tasks piqa --data_dir sets --out r.json";
    let mut child = ngen3(folder, line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut err = BufReader::new(child.stderr.take().unwrap());
    let mut text = String::new();
    while !text.contains("tiny_model: 2,000 items") {
        assert_ne!(err.read_line(&mut text).unwrap(), 0, "{text}");
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    err.read_to_string(&mut text).unwrap();
    let (out, _) = texts(&child.wait_with_output().unwrap(), 130);
    assert!(text.ends_with("\nerror: cannot evaluate large.pt: interrupted\n"), "{text}");
    assert!(out.lines().next().unwrap().ends_with("  tiny_model") && out.contains("\npiqa "), "{out}");
    let results = json_of(&folder.join("r.json"));
    assert_eq!((&results[0]["model_name"], results.as_array().unwrap().len()), (&json!("tiny_model"), 1));
}

#[test]
fn what_is_longer_than_the_block_is_cut_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    untrained(&folder.path().join("tiny_model.pt"));
    let long = "a jar ".repeat(40);
    let rows = [
        json!({ "goal": "short", "sol1": "a", "sol2": "b", "label": 0 }),
        json!({ "goal": long, "sol1": "a", "sol2": "b", "label": 0 }),
        json!({ "goal": "short", "sol1": long, "sol2": "b", "label": 1 }),
    ];
    let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
    write(&folder.path().join("piqa/validation.jsonl"), &text);
    let (_, err) = succeed(folder.path(), "eval --model_checkpoint tiny_model.pt --tasks piqa --data_dir .");
    let cut = "note: piqa: 1 of 3 questions exceeded the model's context and lost their beginning";
    assert!(err.contains(cut), "{err}");
    assert!(err.contains("1 of 3 questions have an answer longer than the model's context"), "{err}");
}
