//! `ngen3 sample` from the command line.
//!
//! The models are parrots: built by hand so that the token at each position is known.

mod common;
#[path = "common/parrot.rs"]
mod parrot;

use std::io::Write;
use std::process::{Output, Stdio};

use common::{complaint, ngen3, texts};
use ngen3_data::Tokenizer;
use ngen3_model::{CheckpointMeta, Config, ParamList, TokenizerRef, checkpoint};
use parrot::parrot;
use tempfile::TempDir;

/// Width and block size of a parrot: as many positions as channels.
const WIDTH: usize = 16;

/// A folder with `parrot_model.pt`, which repeats `text` from its start.
fn folder_with_parrot(text: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let ids = Tokenizer::gpt2().encode(text).unwrap();
    assert!(ids.len() <= WIDTH, "{text:?} has {} tokens", ids.len());
    let config = Config::new(1, 1, WIDTH, WIDTH, 50_257);
    parrot(&folder.path().join("parrot_model.pt"), &config, &ids, TokenizerRef::Gpt2);
    folder
}

/// A folder with `random_model.pt`, freshly initialised.
fn folder_with_random_model() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let config = Config::new(2, 2, 8, 16, 50_257);
    let params = ParamList::new(&config).init(1);
    let path = folder.path().join("random_model.pt");
    checkpoint::save(&path, &config, &params, &CheckpointMeta::default()).unwrap();
    folder
}

fn sample(folder: &TempDir, arguments: &[&str]) -> Output {
    sample_with_stdin(folder, arguments, b"")
}

fn sample_with_stdin(folder: &TempDir, arguments: &[&str], stdin: &[u8]) -> Output {
    let mut child = ngen3(folder.path(), "sample")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that reads no stdin may be gone by now.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    child.wait_with_output().unwrap()
}

/// Output of a parrot, greedy unless `arguments` set a temperature.
fn said(folder: &TempDir, arguments: &[&str]) -> String {
    let base = ["--model_checkpoint", "parrot_model.pt", "--temperature", "0"];
    text_of(sample(folder, &[&base, arguments].concat()))
}

fn text_of(output: Output) -> String {
    let (out, err) = texts(&output, 0);
    assert!(err.contains(" tokens in ") || err.contains("1 token in "), "the time is missing: {err}");
    out
}

fn assert_refused(output: &Output, code: i32, reason: &str) {
    // A usage error also prints the usage.
    let said = if code == 2 { texts(output, 2).1 } else { complaint(output, code) };
    assert!(said.contains(reason), "expected {reason:?}, got {said:?}");
}

#[test]
fn the_prompt_is_printed_and_continued() {
    let folder = folder_with_parrot(" is a rose is a");
    assert_eq!(said(&folder, &["--prompt", "Rose", "--length", "4"]), "Rose is a rose is\n");
    // The prompt's last token is at position 1, so the output starts with the token after it.
    assert_eq!(said(&folder, &["--prompt", "A rose", "--length", "2"]), "A rose a rose\n");
    assert_eq!(said(&folder, &["--prompt", "Rose", "--length", "0"]), "Rose\n");
    // A new document starts with the end-of-text token, which is not printed.
    assert_eq!(said(&folder, &["--length", "3"]), " is a rose\n");
}

#[test]
fn a_text_outgrows_the_block() {
    // 16 tokens, one per position; when the block is full, it keeps the last 12 tokens and continues at the 12th position.
    let text = " a b c d e f g h i j k l m n o p";
    let folder = folder_with_parrot(text);
    let expected = format!("x{text} l m n o p l m n\n");
    assert_eq!(said(&folder, &["--prompt", "x", "--length", "24"]), expected);
    let long = "x".to_string() + &" y".repeat(40);
    assert_eq!(said(&folder, &["--prompt", &long, "--length", "3"]), format!("{long} p l m\n"));
    let note = |prompt: &str| {
        let arguments = ["--model_checkpoint", "parrot_model.pt", "--length", "1", "--prompt", prompt];
        let (_, err) = texts(&sample(&folder, &arguments), 0);
        err.lines().find(|line| line.starts_with("note: ")).map(str::to_owned)
    };
    let expected = "note: the prompt has 41 tokens; the model sees the last 16 of them";
    assert_eq!(note(&long).as_deref(), Some(expected));
    assert_eq!(note(text), None);
}

#[test]
fn prompts_come_from_files_and_stdin_as_they_are() {
    let folder = folder_with_parrot(" is a rose");
    std::fs::write(folder.path().join("prompt.txt"), "Rose").unwrap();
    assert_eq!(said(&folder, &["--prompt_file", "prompt.txt", "--length", "2"]), "Rose is a\n");
    for flag in ["--prompt", "--prompt_file"] {
        let from_stdin = ["--model-checkpoint", "parrot_model.pt", "--temperature", "0", flag, "-", "--length", "1"];
        assert_eq!(text_of(sample_with_stdin(&folder, &from_stdin, "größe\n".as_bytes())), {
            let position = Tokenizer::gpt2().encode("größe\n").unwrap().len() - 1;
            format!("größe\n{}\n", [" is", " a", " rose"][position % 3])
        });
        let refused = sample_with_stdin(&folder, &from_stdin, b"gr\xf6\xdfe");
        assert_refused(&refused, 1, "prompt on stdin: expected UTF-8 text, got an invalid sequence at byte 2");
    }
    assert!(said(&folder, &["--prompt", "--top-k", "--length", "1"]).starts_with("--top-k "));
}

#[test]
fn a_sample_ends_at_the_end_of_text_and_at_stops() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config::new(1, 1, WIDTH, WIDTH, 50_257);
    let mut ids = Tokenizer::gpt2().encode(" is a rose").unwrap();
    ids.push(50_256);
    parrot(&folder.path().join("parrot_model.pt"), &config, &ids, TokenizerRef::Gpt2);
    assert_eq!(said(&folder, &["--prompt", "Rose", "--length", "50"]), "Rose is a rose\n");
    assert_eq!(said(&folder, &["--prompt", "Rose", "--length", "50", "--stop", "s a r"]), "Rose i\n");
    assert_eq!(said(&folder, &["--prompt", "Rose", "--stop", "never", "--stop", "a"]), "Rose is \n");
}

#[test]
fn characters_of_several_tokens_are_whole() {
    let text = " 🦜 ö 漢字";
    let folder = folder_with_parrot(text);
    let length = Tokenizer::gpt2().encode(text).unwrap().len().to_string();
    assert_eq!(said(&folder, &["--prompt", "x", "--length", &length]), format!("x{text}\n"));
    // Ends inside the parrot emoji, an incomplete character.
    assert_eq!(said(&folder, &["--prompt", "x", "--length", "2"]), "x \u{fffd}\n");
}

#[test]
fn the_same_seed_gives_the_same_text_and_samples_differ() {
    let folder = folder_with_random_model();
    let base = ["--model_checkpoint", "random_model.pt", "--prompt", "Rose", "--length", "20"];
    let text = |more: &[&str]| text_of(sample(&folder, &[&base, more].concat()));
    let one = text(&["--seed", "5"]);
    assert_eq!(one, text(&["--seed", "5"]));
    assert_eq!(one, text(&["--seed", "5", "--threads", "1"]));
    assert_ne!(one, text(&["--seed", "6"]));
    let three = text(&["--seed", "5", "--num_samples", "3"]);
    let samples: Vec<&str> = three.split_inclusive(" ---\n").collect();
    let [first, second, third, last] = samples[..] else { panic!("{three}") };
    assert_eq!(first, "--- sample 1 of 3 ---\n");
    let (second, third) = (
        second.strip_suffix("--- sample 2 of 3 ---\n").unwrap(),
        third.strip_suffix("--- sample 3 of 3 ---\n").unwrap(),
    );
    assert_eq!(second, one, "the first sample is the one generated alone");
    assert!(third != second && last != second && last != third, "{three}");
    assert!([second, third, last].iter().all(|text| text.starts_with("Rose") && text.ends_with('\n')), "{three}");
    // A single candidate is deterministic.
    let greedy = text(&["--temperature", "0"]);
    for certain in [["--top_k", "1"], ["--top_p", "1e-9"], ["--min_p", "1"]] {
        assert_eq!(text(&certain), greedy, "{certain:?}");
    }
}

/// A tokenizer with one token per lower-case letter and one for the space.
fn letters() -> TokenizerRef {
    let vocab: serde_json::Map<String, serde_json::Value> =
        ('a'..='z').chain(['Ġ']).enumerate().map(|(id, letter)| (letter.to_string(), id.into())).collect();
    let byte_level = serde_json::json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
    });
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": [],
        },
    });
    TokenizerRef::Json(json.to_string())
}

#[test]
fn a_repetition_penalty_keeps_a_model_from_repeating_itself() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config::new(1, 1, WIDTH, WIDTH, 27);
    let meta = CheckpointMeta { tokenizer: letters(), ..CheckpointMeta::default() };
    let path = folder.path().join("random_model.pt");
    checkpoint::save(&path, &config, &ParamList::new(&config).init(1), &meta).unwrap();
    let text = |penalty| {
        let arguments =
            ["--model_checkpoint", "random_model.pt", "--prompt", "a", "--length", "5", "--temperature", "0"];
        text_of(sample(&folder, &[&arguments[..], &["--repetition_penalty", penalty]].concat()))
    };
    let distinct = |text: &str| text.chars().collect::<std::collections::HashSet<_>>().len();
    assert!(distinct(&text("1")) < 7, "greedy does not repeat itself: {}", text("1"));
    // The prompt, five letters and the line break.
    assert_eq!(distinct(&text("1e10")), 7, "{}", text("1e10"));
}

#[test]
fn the_tokenizer_comes_with_the_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("parrot_model.pt");
    let config = Config::new(1, 1, WIDTH, WIDTH, 30);
    parrot(&path, &config, &[1, 2, 26, 0, 29], letters());
    // Token 29 has the highest logit at position 4, but the tokenizer has no such token.
    let text = said(&folder, &["--prompt", "a", "--length", "5"]);
    assert!(text.starts_with("abc a") && text.len() == "abc a?\n".len(), "{text:?}");

    parrot(&path, &Config::new(1, 1, WIDTH, WIDTH, 3), &[1, 2], letters());
    let refused = sample(&folder, &["--model_checkpoint", "parrot_model.pt"]);
    assert_refused(&refused, 1, "parrot_model.pt: its tokenizer has 27 tokens, more than the model's vocabulary of 3");
    parrot(&path, &config, &[1, 2], TokenizerRef::Json("{}".into()));
    let refused = sample(&folder, &["--model_checkpoint", "parrot_model.pt"]);
    assert_refused(&refused, 1, "tokenizer of parrot_model.pt: ");
    parrot(&path, &config, &[1, 2], TokenizerRef::Unknown);
    let refused = sample(&folder, &["--model_checkpoint", "parrot_model.pt"]);
    assert_refused(
        &refused,
        1,
        "parrot_model.pt: no recorded tokenizer, and its vocabulary of 30 tokens is not GPT-2's",
    );
}

#[test]
fn rounded_weights_say_nearly_the_same() {
    let folder = folder_with_parrot("abcdefgh abcdefgh");
    let exact = said(&folder, &["--prompt", "abc", "--length", "5"]);
    let rounded = said(&folder, &["--prompt", "abc", "--length", "5", "--quant", "int8"]);
    assert_eq!(exact, rounded, "a parrot's logits are far apart");
    let rounded = said(&folder, &["--prompt", "abc", "--length", "5", "--quant", "int4"]);
    assert_eq!(exact, rounded, "in 4 bits too");
    let output = sample(&folder, &["--quant", "int3"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("[possible values: auto, none, int8, int4]"));
}

#[test]
fn a_gguf_file_decodes_with_its_own_weights_unless_told_otherwise() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config::new(1, 1, 32, 32, 50_257);
    let ids = Tokenizer::gpt2().encode("one two three four five six").unwrap();
    parrot(&folder.path().join("p.pt"), &config, &ids, TokenizerRef::Gpt2);
    let run = |line: &str| {
        let output = ngen3(folder.path(), line).output().unwrap();
        texts(&output, 0)
    };
    run("export --model_path p.pt --output_dir g --format gguf --dtype q8_0");
    let line = "sample --model_checkpoint g/p-q8_0.gguf --prompt one --length 4 --temperature 0";
    let (plain, err) = run(&format!("{line} --quant none"));
    assert!(!err.contains("note"), "{err}");
    for flags in ["", " --quant auto", " --threads 1"] {
        let (out, err) = run(&format!("{line}{flags}"));
        assert_eq!(out, plain);
        let note = "note: g/p-q8_0.gguf: decoding with its own Q8_0 weights (5 tensors), inputs of their products rounded \
                    to 8 bits; --quant none widens them\n";
        assert!(err.starts_with(note), "{err}");
    }
    for flags in [" --dtype f32", " --quant int4", " --quant int8"] {
        let (out, err) = run(&format!("{line}{flags}"));
        assert_eq!(out, plain);
        assert!(!err.contains("note"), "{err}");
    }
}

#[test]
fn another_variant_is_refused() {
    let folder = folder_with_parrot(" is a rose");
    let refused = sample(&folder, &["--model_checkpoint", "parrot_model.pt", "--variant", "7M"]);
    let reason =
        "parrot_model.pt: expected 7M (7,242,624 parameters) with 4 layers, 4 heads, width 128; got 1 layer, 1 head";
    assert_refused(&refused, 1, reason);
    let refused = sample(&folder, &["--model_checkpoint", "parrot_model.pt", "--variant", "8M"]);
    assert_eq!(refused.status.code(), Some(2), "usage error");
    let error = String::from_utf8_lossy(&refused.stderr);
    assert!(error.contains("[possible values: 7M, 120M,"), "{error}");
    // Another block size and vocabulary do not change the variant.
    let config = Config { block_size: 4, ..Config::new(4, 4, 128, 128, 50_257) };
    let path = folder.path().join("7M_model.safetensors");
    checkpoint::save(&path, &config, &ParamList::new(&config).init(1), &CheckpointMeta::default()).unwrap();
    let made = sample(&folder, &["--variant", "7m", "--model_checkpoint", "7M_model.safetensors", "--length", "6"]);
    assert!(!text_of(made).is_empty());
}

#[test]
fn bad_input_gives_one_line() {
    let folder = folder_with_parrot(" is a rose");
    let refused = |arguments: &[&str], code, reason: &str| {
        let base = ["--model_checkpoint", "parrot_model.pt"];
        assert_refused(&sample(&folder, &[&base, arguments].concat()), code, reason);
    };
    refused(&["--temperature", "-1"], 1, "temperature: expected 0 (greedy) or a positive number, got -1");
    refused(&["--top_p", "0"], 1, "top_p: expected above 0 and at most 1, got 0");
    refused(&["--min_p", "2"], 1, "min_p: expected between 0 and 1, got 2");
    refused(&["--repetition_penalty", "-1"], 1, "repetition_penalty: expected a positive number, got -1");
    refused(&["--temperature", "warm"], 2, "--temperature");
    refused(&["--num_samples", "0"], 2, "--num_samples");
    refused(&["--dtype", "f8"], 2, "[possible values: auto, f32, bf16]");
    refused(&["--stop", ""], 2, "--stop");
    refused(&["--prompt", "a", "--prompt_file", "b"], 2, "cannot be used with");
    refused(&["--prompt_file", "nowhere.txt"], 1, "cannot read nowhere.txt: No such file");
    assert_refused(&sample(&folder, &["--prompt", "a"]), 2, "--model_checkpoint");
    let missing = sample(&folder, &["--model_checkpoint", "7M_model.pt"]);
    assert_refused(&missing, 1, "7M_model.pt: No such file");

    let path = folder.path().join("parrot_model.pt");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    refused(&["--prompt", "a"], 1, "parrot_model.pt: damaged or truncated");
    let config = Config::new(1, 1, 4, 4, 50_257);
    checkpoint::save(&path, &config, &vec![f32::NAN; ParamList::new(&config).total()], &CheckpointMeta::default())
        .unwrap();
    // The prompt is printed by then.
    let (out, err) = texts(&sample(&folder, &["--model_checkpoint", "parrot_model.pt", "--prompt", "a"]), 1);
    assert!(out == "a" && err.contains("the model's logit of token 0 is NaN"), "{out}{err}");
}
