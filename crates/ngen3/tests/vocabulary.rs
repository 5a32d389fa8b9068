//! Vocabularies that users bring or make, from the command line: characters, bytes, nanoGPT's data, special tokens, and characters
//! that a vocabulary lacks.

mod common;

use std::fs;
use std::path::Path;

use common::{contents, fail, succeed};
use ngen3_data::TokenFile;
use ngen3_model::{Checkpoint, TokenizerRef};
use serde_json::{Value, json};

/// A model of a few thousand parameters.
const TINY: &str =
    "n_layer = 1\nn_head = 2\nn_embd = 16\nblock_size = 16\nbatch_size = 2\nmax_iters = 2\neval_iters = 1\n";

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tiny.toml"), TINY).unwrap();
    folder
}

fn tokens(path: &Path) -> Vec<u32> {
    let file = TokenFile::open(path).unwrap();
    let mut tokens = Vec::new();
    file.copy(0..file.len(), &mut tokens);
    tokens
}

fn json_of(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// A folder as nanoGPT's `prepare.py` makes it: train.bin and val.bin of 20 characters, meta.pkl.
fn nanogpt(folder: &Path) {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ngen3-model/tests/fixtures/nanogpt_char");
    fs::create_dir(folder).unwrap();
    for name in ["train.bin", "val.bin", "meta.pkl"] {
        fs::copy(fixture.join(name), folder.join(name)).unwrap();
    }
}

#[test]
fn nanogpts_first_tutorial_runs_with_characters() {
    let folder = folder();
    let root = folder.path();
    let line = "tokenizer train --kind char --txt builtin:shakespeare --out chars.json";
    let (out, err) = succeed(root, line);
    assert!(out.starts_with("chars.json: 65 tokens: 65 characters of 1.1 MB of text, in "), "{out}");
    assert_eq!(err, "");
    let (out, err) = succeed(root, "tokenize --dataset ts --txt builtin:shakespeare --tokenizer chars.json");
    assert!(out.starts_with("_data_ts_/data.bin: 1,115,394 tokens of text, with no token between documents"), "{out}");
    assert_eq!(err, "", "one document needs no end");
    let data = root.join("_data_ts_/data.bin");
    let file = TokenFile::open(&data).unwrap();
    assert_eq!(file.vocab_size().unwrap(), 65);
    assert!(file.tokenizer().unwrap().decode(&tokens(&data)).as_bytes() == common::shakespeare());

    let (_, err) = succeed(root, "train --config tiny.toml --data _data_ts_ --out m.pt");
    assert!(err.contains("context 16, vocabulary 65\n"), "{err}");
    let (out, err) = succeed(root, "sample --model_checkpoint m.pt --prompt ROMEO: --length 20 --seed 1");
    assert!(out.starts_with("ROMEO:") && out.trim_end_matches('\n').chars().count() >= 6, "{out}");
    assert!(!err.contains("note"), "{err}");
    succeed(root, "sample --model_checkpoint m.pt --length 5");
    succeed(root, "export --model_path m.pt --output_dir hf");
    assert_eq!(fs::read(root.join("hf/tokenizer.json")).unwrap(), fs::read(root.join("chars.json")).unwrap());
    assert!(json_of(&root.join("hf/tokenizer_config.json"))["eos_token"].is_null());
    assert!(!root.join("hf/merges.txt").exists(), "it would describe bytes");
    succeed(root, "sample --model_checkpoint hf --prompt ROMEO: --length 5");
}

#[test]
fn documents_of_characters_are_joined_or_ended_as_asked() {
    let folder = folder();
    let root = folder.path();
    fs::write(root.join("a.txt"), "ab\n").unwrap();
    fs::write(root.join("b.txt"), "ba").unwrap();
    succeed(root, "tokenizer train --kind char --txt a.txt b.txt --out plain.json");
    let (_, err) = succeed(root, "tokenize --dataset x --txt a.txt b.txt --tokenizer plain.json");
    assert_eq!(
        err,
        "note: tokenizer plain.json has no token that ends a document: 2 documents were joined without one; name one with \
         --eos_token\n"
    );
    assert_eq!(tokens(&root.join("_data_x_")), [1, 2, 0, 2, 1]);
    let (out, _) = succeed(root, "tokenizer train --kind char --txt a.txt b.txt --eos_token <end> --out ended.json");
    assert!(out.starts_with("ended.json: 4 tokens: 3 characters of 0.0 MB of text and <end>, in "), "{out}");
    let (out, err) = succeed(root, "tokenize --dataset x --txt a.txt b.txt --tokenizer ended.json");
    assert!(out.contains("5 tokens of text + 2 <end>, from"), "{out}");
    assert_eq!((tokens(&root.join("_data_x_")), err.as_str()), (vec![1, 2, 0, 3, 2, 1, 3], ""));
    // A character can end documents, too.
    fs::remove_dir_all(root.join("_data_x_")).unwrap();
    let run = common::ngen3(root, "tokenize --dataset x --txt a.txt b.txt --tokenizer plain.json --eos_token")
        .arg("\n")
        .output()
        .unwrap();
    common::texts(&run, 0);
    assert_eq!(tokens(&root.join("_data_x_")), [1, 2, 0, 0, 2, 1, 0]);
}

#[test]
fn bytes_need_no_text_and_lack_nothing() {
    let folder = folder();
    let root = folder.path();
    let (out, err) = succeed(root, "tokenizer train --kind byte --out bytes.json");
    assert_eq!((out.as_str(), err.as_str()), ("bytes.json: 257 tokens: 256 bytes and <|endoftext|>\n", ""));
    fs::write(root.join("a.txt"), "é日").unwrap();
    let (out, err) = succeed(root, "tokenize --dataset x --txt a.txt --tokenizer bytes.json");
    assert!(out.contains("5 tokens of text + 1 <|endoftext|>"), "{out}");
    assert_eq!(err, "");
    assert_eq!(tokens(&root.join("_data_x_")), [0xc3, 0xa9, 0xe6, 0x97, 0xa5, 256]);
}

#[test]
fn flags_that_do_not_go_with_a_kind_are_named() {
    let folder = folder();
    let root = folder.path();
    fs::write(root.join("a.txt"), "ab").unwrap();
    let before = contents(root);
    for (line, expected) in [
        ("--kind char --txt a.txt --vocab_size 9", "--vocab_size: expected only with --kind bpe; the size of a char"),
        ("--kind byte --vocab_size 9", "--vocab_size: expected only with --kind bpe; a byte vocabulary has 257"),
        ("--kind byte --txt a.txt", "--txt: expected only with --kind bpe or char"),
        ("--txt a.txt --eos_token <end>", "--eos_token: expected only with --kind char"),
        ("--kind char --txt a.txt --eos_token x", "eos_token \"x\": expected several characters"),
    ] {
        let error = fail(root, &format!("tokenizer train {line} --out x.json"), 1);
        assert!(error.starts_with(expected), "{line}: {error}");
    }
    for (line, expected) in [
        ("tokenizer train --out x.json", "--txt"),
        ("tokenizer train --kind char --out x.json", "--txt"),
        ("tokenizer train --kind word --txt a.txt --out x.json", "invalid value 'word' for '--kind <KIND>'"),
        ("tokenize --dataset x --txt a.txt --eos_token <end>", "--tokenizer <FILE>"),
    ] {
        let (_, err) = common::texts(&common::run(root, line), 2);
        assert!(err.contains(expected), "{line}: {err}");
    }
    assert_eq!(contents(root), before);
}

#[test]
fn nanogpts_characters_are_trained_on_as_they_are() {
    let folder = folder();
    let root = folder.path();
    nanogpt(&root.join("char"));
    let (_, err) = succeed(root, "train --config tiny.toml --data char --out m.pt");
    assert!(err.contains("vocabulary 20\n"), "{err}");
    assert!(err.contains("data:  char/train.bin: 1,548 tokens for training, 172 for validation\n"), "{err}");
    assert!(!err.contains("note"), "{err}");
    let TokenizerRef::Json(json) = Checkpoint::load(&root.join("m.pt")).unwrap().meta.tokenizer else {
        panic!("the characters are known")
    };
    let tokenizer = ngen3_data::Tokenizer::from_json(json.as_bytes(), "x").unwrap();
    let text = "First Citizen:\nÉté 日本, to be or not to be.\n";
    assert_eq!(tokenizer.decode(&tokens(&root.join("char"))[..text.chars().count()]), text);

    succeed(root, "train --data char/train.bin --out m.pt --resume --max_iters 3");
    let (out, _) = succeed(root, "sample --model_checkpoint m.pt --prompt First --length 5 --seed 1");
    assert!(out.starts_with("First"), "{out}");
    let line = "eval --model_checkpoint m.pt --tasks perplexity --out r.json --text char";
    let (_, err) = succeed(root, &format!("{line} --val_fraction 0.1"));
    assert!(!err.contains("note"), "{err}");
    assert_eq!(json_of(&root.join("r.json"))["configs"]["perplexity"]["text"], "val.bin");
    succeed(root, line);
    let config = json_of(&root.join("r.json"))["configs"]["perplexity"].clone();
    let bytes = tokenizer.decode(&tokens(&root.join("char"))[1..]).len();
    assert_eq!((&config["tokens"], &config["bytes"]), (&json!(1_547), &json!(bytes)));
    succeed(root, "export --model_path m.pt --output_dir hf");
    succeed(root, "finetune --model_checkpoint m.pt --data char --finetune_iters 1 --batch_size 2 --out f.pt");
    succeed(
        root,
        "distill --teacher_model_path m.pt --config tiny.toml --data char --max_iters 1 --block_size 8 --out d.pt",
    );
    assert_eq!(Checkpoint::load(&root.join("d.pt")).unwrap().meta.tokenizer, TokenizerRef::Json(json));
}

#[test]
fn tokens_of_an_unknown_vocabulary_are_not_taken_for_gpt2s_silently() {
    let folder = folder();
    let root = folder.path();
    let ids = |max: u16| (0..200u16).map(move |i| i % max).flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    let note = |files: &[(&str, &[u8])]| {
        let data = root.join("data");
        fs::create_dir(&data).unwrap();
        for (name, bytes) in files {
            fs::write(data.join(name), bytes).unwrap();
        }
        let (_, err) = succeed(root, "train --config tiny.toml --data data --out m.pt --max_iters 1 --overwrite");
        fs::remove_dir_all(&data).unwrap();
        let notes: Vec<_> = err.lines().filter(|line| line.starts_with("note: ")).map(str::to_owned).collect();
        notes.join("\n")
    };
    let taken = "taken as GPT-2's tokens; its largest id is";
    let told = note(&[("data.bin", &ids(65))]);
    assert!(
        told.starts_with(&format!("note: data/data.bin: {taken} 64 of 50,257; if another tokenizer made it, ")),
        "{told}"
    );
    let told = note(&[("train.bin", &ids(65)), ("meta.pkl", b"\x80\x04}.")]);
    assert!(told.contains(&format!("{taken} 64 of 50,257 (data/meta.pkl: no stoi: expected a dictionary")), "{told}");
    let mut surely = ids(65);
    surely.extend(50_256u16.to_le_bytes());
    assert_eq!(note(&[("train.bin", &surely)]), "");
    for (name, bytes) in [("meta.pkl", &b"cos\nsystem\n."[..]), ("meta.yaml", b"chars: abc"), ("metadata.json", b"{}")]
    {
        let told = note(&[("train.bin", &surely), (name, bytes)]);
        assert!(told.contains(&format!("50,256 of 50,257 (data/{name}: ")), "{told}");
    }
    // Of two token files, neither is chosen.
    nanogpt(&root.join("both"));
    fs::write(root.join("both/data.bin"), ids(65)).unwrap();
    let error = fail(root, "train --config tiny.toml --data both --out x.pt", 1);
    assert_eq!(error, "both: expected one token file, got data.bin and train.bin; name one of them");
    fs::create_dir(root.join("empty")).unwrap();
    let error = fail(root, "train --config tiny.toml --data empty --out x.pt", 1);
    assert!(error.starts_with("empty: expected a token file, got a folder without data.bin or train.bin"), "{error}");
}

/// A WordLevel tokenizer.json in its own folder, with files beside it.
fn hf_tokenizer(folder: &Path, special: &[&str], beside: &[(&str, Value)]) {
    let vocab = json!({"[UNK]": 0, "one": 1, "two": 2});
    let added: Vec<Value> = special
        .iter()
        .zip(3..)
        .map(|(content, id)| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        })
        .collect();
    let file = json!({"version": "1.0", "added_tokens": added, "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "unk_token": "[UNK]", "vocab": vocab}});
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("tokenizer.json"), file.to_string()).unwrap();
    for (name, content) in beside {
        fs::write(folder.join(name), content.to_string()).unwrap();
    }
}

#[test]
fn the_token_that_ends_a_document_is_found_or_named() {
    let folder = folder();
    let root = folder.path();
    fs::write(root.join("a.txt"), "one two").unwrap();
    fs::write(root.join("b.txt"), "two").unwrap();
    let config = |name: &str, value: Value| vec![("tokenizer_config.json", json!({name: value}))];
    let llama3 = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"];
    let odd = ["<x>", "<y>"];
    let cases = [
        (&llama3[..], vec![], "", "<|end_of_text|>"),
        (&llama3, config("eos_token", json!("<|eot_id|>")), "", "<|end_of_text|>"),
        (&["<|endoftext|>", "<|im_end|>"], config("eos_token", json!({"content": "<|im_end|>"})), "", "<|endoftext|>"),
        (&["<|im_end|>"], vec![], "", "<|im_end|>"),
        (&["</s>", "<y>"], config("eos_token", json!("<y>")), "", "<y>"),
        (&odd, vec![("special_tokens_map.json", json!({"eos_token": "<y>"}))], "", "<y>"),
        (&odd, vec![("generation_config.json", json!({"eos_token_id": [4, 3]}))], "", "<y>"),
        (&odd, config("eos_token", json!("<y>")), " --eos_token <x>", "<x>"),
    ];
    for (number, (special, beside, flags, expected)) in cases.into_iter().enumerate() {
        let name = format!("t{number}");
        hf_tokenizer(&root.join(&name), special, &beside);
        let line = format!("tokenize --dataset {name} --txt a.txt b.txt --tokenizer {name}/tokenizer.json{flags}");
        let (out, err) = succeed(root, &line);
        assert!(out.contains(&format!("3 tokens of text + 2 {expected}, from")), "{special:?} {beside:?}: {out}");
        assert_eq!(err, "");
        let data = root.join(format!("_data_{name}_"));
        let end = 3 + special.iter().position(|token| *token == expected).unwrap() as u32;
        assert_eq!(tokens(&data), [1, 2, end, 2, end]);
        // The dataset's tokenizer knows it without the files beside it.
        assert_eq!(TokenFile::open(&data).unwrap().tokenizer().unwrap().eot(), Some(end));
    }
    // The model, too, and what is made from it.
    succeed(root, "train --config tiny.toml --data _data_t7_ --out m.pt --block_size 1 --val_fraction 0");
    succeed(root, "export --model_path m.pt --output_dir hf");
    assert_eq!(json_of(&root.join("hf/tokenizer_config.json"))["eos_token"], "<x>");
    assert_eq!(json_of(&root.join("hf/generation_config.json"))["eos_token_id"], 3);
    succeed(root, "import --from hf --out again.pt");
    let TokenizerRef::Json(json) = Checkpoint::load(&root.join("again.pt")).unwrap().meta.tokenizer else { panic!() };
    assert_eq!(ngen3_data::Tokenizer::from_json(json.as_bytes(), "x").unwrap().eot(), Some(3));

    // None: text is joined, conversations are refused.
    hf_tokenizer(&root.join("none"), &odd, &[]);
    let line = "tokenize --dataset none --tokenizer none/tokenizer.json";
    let (_, err) = succeed(root, &format!("{line} --txt a.txt b.txt"));
    assert!(err.starts_with("note: tokenizer tokenizer.json has no token that ends a document: 2 documents"), "{err}");
    fs::write(root.join("chats.jsonl"), "[\"one\", \"two\"]\n").unwrap();
    let error = fail(root, &format!("{line} --chats chats.jsonl"), 1);
    assert!(
        error.contains("no token that ends a document, which conversations need; name one with --eos_token"),
        "{error}"
    );
    succeed(root, &format!("{line} --chats chats.jsonl --eos_token <y>"));
    let error = fail(root, &format!("{line} --txt a.txt --eos_token <z>"), 1);
    assert_eq!(
        error,
        "--eos_token: none/tokenizer.json has no token \"<z>\"; expected one of its vocabulary, such as <x>, <y>"
    );
    fs::write(root.join("none/tokenizer_config.json"), "[").unwrap();
    assert!(fail(root, &format!("{line} --txt a.txt"), 1).contains("none/tokenizer_config.json"));
}

#[test]
fn documents_begin_with_the_token_that_the_settings_ask_for() {
    let folder = folder();
    let root = folder.path();
    fs::write(root.join("a.txt"), "one two").unwrap();
    let settings = |add: bool| json!({"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": add});
    for (add, expected, told) in
        [(false, &[1, 2, 4][..], "text + 1 </s>, from"), (true, &[3, 1, 2, 4], "text + 1 <s> + 1 </s>, from")]
    {
        hf_tokenizer(&root.join("t"), &["<s>", "</s>"], &[("tokenizer_config.json", settings(add))]);
        let (out, _) = succeed(root, "tokenize --dataset x --txt a.txt --tokenizer t/tokenizer.json");
        assert!(out.contains(told), "{out}");
        assert_eq!(tokens(&root.join("_data_x_")), expected);
    }
    succeed(root, "train --config tiny.toml --data _data_x_ --out m.pt --block_size 2 --val_fraction 0");
    let line = "eval --model_checkpoint m.pt --tasks perplexity --out r.json --no_merge --text";
    for text in ["a.txt", "_data_x_"] {
        succeed(root, &format!("{line} {text}"));
        let config = json_of(&root.join("r.json"))["configs"]["perplexity"].clone();
        let tokens = if text == "a.txt" { 2 } else { 3 };
        assert_eq!(config["tokens"], tokens, "{text}: <s> comes first and is not predicted");
    }
    // A chat template sees both.
    fs::write(root.join("chats.jsonl"), "[\"one\", \"two\"]\n").unwrap();
    fs::write(root.join("t.jinja"), "{{ bos_token }}{% for m in messages %}{{ m.content + eos_token }}{% endfor %}")
        .unwrap();
    let line = "tokenize --dataset c --chats chats.jsonl --chat_template t.jinja --tokenizer t/tokenizer.json";
    succeed(root, line);
    assert_eq!(tokens(&root.join("_data_c_")), [3, 1, 4, 2, 4]);
    succeed(root, &format!("{line} --bos_token </s>"));
    assert_eq!(tokens(&root.join("_data_c_")), [4, 1, 4, 2, 4]);
}

#[test]
fn characters_that_a_vocabulary_lacks_are_counted() {
    let folder = folder();
    let root = folder.path();
    fs::write(root.join("known.txt"), "to be or not to be\n".repeat(20)).unwrap();
    fs::write(root.join("other.txt"), "to bé or nöt to bé\n".repeat(20)).unwrap();
    succeed(root, "tokenizer train --kind char --txt known.txt --eos_token <end> --out chars.json");
    let note = "60 of 380 characters (15.79 %) are not in the vocabulary of chars.json and were dropped: 'é', 'ö'";
    let (out, err) = succeed(root, "tokenize --dataset x --txt other.txt --tokenizer chars.json");
    assert!(out.contains("320 tokens of text"), "{out}");
    assert_eq!(err, format!("note: {note}\n"));
    let rows: String = (0..20).map(|_| "{\"text\": \"to bé or nöt to bé\"}\n").collect();
    fs::write(root.join("rows.jsonl"), rows).unwrap();
    let (_, err) = succeed(root, "hf_tokenize --hf_dataset rows.jsonl --dataset rows --tokenizer chars.json");
    assert!(err.contains("note: 60 of 360 characters (16.67 %) are not"), "{err}");
    fs::write(root.join("chats.jsonl"), "[\"bé\", \"to\"]\n").unwrap();
    let (_, err) = succeed(root, "tokenize --dataset c --chats chats.jsonl --tokenizer chars.json");
    assert!(err.contains(" are not in the vocabulary of chars.json and were dropped: "), "{err}");
    // Nothing is left.
    fs::write(root.join("none.txt"), "日本").unwrap();
    let error = fail(root, "tokenize --dataset y --txt none.txt --tokenizer chars.json", 1);
    assert_eq!(error, "tokenizer chars.json: none of the text's characters are in its vocabulary");

    succeed(root, "tokenize --dataset known --txt known.txt --tokenizer chars.json");
    succeed(root, "train --config tiny.toml --data _data_known_ --out m.pt --val_fraction 0");
    let (out, err) = succeed(root, "sample --model_checkpoint m.pt --prompt bé --length 3 --seed 1");
    assert!(out.starts_with("bé"), "{out}");
    assert!(err.contains("note: of the prompt, 1 of 2 characters (50.00 %) are not in the vocabulary"), "{err}");
    assert!(fail(root, "sample --model_checkpoint m.pt --prompt 日本", 1).starts_with("nothing to start from"));
    let eval = |text: &str| {
        let line = "eval --model_checkpoint m.pt --tasks perplexity --out r.json --no_merge --dtype f32 --text";
        let (_, err) = succeed(root, &format!("{line} {text}"));
        let results = json_of(&root.join("r.json"));
        let bits = results["results"]["perplexity"]["bits_per_byte,none"].as_f64().unwrap();
        let config = &results["configs"]["perplexity"];
        let (bytes, tokens) = (config["bytes"].as_u64().unwrap(), config["tokens"].as_u64().unwrap());
        let perplexity = results["results"]["perplexity"]["perplexity,none"].as_f64().unwrap();
        assert!((bits - perplexity.log2() * tokens as f64 / bytes as f64).abs() < 1e-4);
        (bytes, tokens, err)
    };
    let (bytes, tokens, err) = eval("other.txt");
    assert_eq!((bytes, tokens), (440, 320), "the bytes of the text, not of what is left of it");
    assert!(err.contains(&format!("note: other.txt: {}", note.replace("chars.json", "m.pt"))), "{err}");
    // A part: 16 tokens are a whole line.
    let (bytes, tokens, _) = eval("other.txt --limit 1");
    assert_eq!((bytes, tokens), (22, 16));
    let (_, _, err) = eval("known.txt");
    assert!(!err.contains("note: known"), "{err}");

    // A vocabulary of words has an unknown token.
    hf_tokenizer(&root.join("words"), &["</s>"], &[]);
    fs::write(root.join("words.txt"), "one three two").unwrap();
    let (_, err) = succeed(root, "tokenize --dataset w --txt words.txt --tokenizer words/tokenizer.json");
    let expected =
        "5 of 13 characters (38.46 %) are not in the vocabulary of tokenizer.json and became [UNK]: 't', 'h', 'r', 'e'";
    assert_eq!(err, format!("note: {expected}\n"));
}

#[test]
fn a_turn_with_unknown_characters_is_told_in_a_chat() {
    let folder = folder();
    let root = folder.path();
    fs::write(root.join("chats.jsonl"), "[\"ab\", \"ba\"]\n".repeat(4)).unwrap();
    fs::write(root.join("abc.txt"), "abcdefghijklmnopqrstuvwxyz\n").unwrap();
    succeed(root, "tokenizer train --kind char --txt abc.txt --eos_token <end> --out chars.json");
    succeed(root, "tokenize --dataset c --chats chats.jsonl --tokenizer chars.json");
    succeed(root, "train --config tiny.toml --data _data_c_ --out m.pt --val_fraction 0 --block_size 64");
    fs::write(root.join("turns.txt"), "ab日\n").unwrap();
    let input = fs::File::open(root.join("turns.txt")).unwrap();
    let line = "chat --model_checkpoint m.pt --length 3 --seed 1";
    let output = common::ngen3(root, line).stdin(input).output().unwrap();
    let (_, err) = common::texts(&output, 0);
    assert!(err.contains("note: of the prompt, 1 of 3 characters (33.33 %) are not in the vocabulary"), "{err}");
}
