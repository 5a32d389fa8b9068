//! Validation losses in bits per byte, from the command line: their values by hand, and those of `ngen3 eval`.

mod common;

use std::f64::consts::LN_2;
use std::fs;
use std::path::Path;

use common::{contents, succeed};
use ngen3_data::{TokenFile, Tokenizer};
use ngen3_model::{Checkpoint, CheckpointMeta, Config, ParamList, TokenizerRef, checkpoint};
use serde_json::{Value, json};

const SHAPE: &str = "n_layer = 1\nn_head = 1\nn_embd = 8\nblock_size = 16\nbatch_size = 4\neval_iters = 3\n";

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tiny.toml"), SHAPE).unwrap();
    folder
}

/// Writes a model that gives every token the same odds.
fn flat(path: &Path, tokenizer: &Tokenizer) {
    let config = Config::new(1, 1, 8, 16, tokenizer.vocab_size());
    let meta = CheckpointMeta { tokenizer: tokenizer.reference(), ..CheckpointMeta::default() };
    checkpoint::save(path, &config, &vec![0.0; ParamList::new(&config).total()], &meta).unwrap();
}

/// Step, validation loss and its bits per byte of each evaluation in metrics.jsonl.
fn evaluations(root: &Path, run: &str) -> Vec<(u64, f64, Option<f64>)> {
    let text = fs::read_to_string(root.join(run).join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines
        .filter_map(|line| Some((line["step"].as_u64()?, line["val_loss"].as_f64()?, line["val_bpb"].as_f64())))
        .collect()
}

/// Bits per byte by `ngen3 eval`.
fn eval(root: &Path, arguments: &str) -> f64 {
    let line = "eval --tasks perplexity --no_merge --dtype f32 --out r.json --model_checkpoint";
    succeed(root, &format!("{line} {arguments}"));
    let results: Value = serde_json::from_slice(&fs::read(root.join("r.json")).unwrap()).unwrap();
    results["results"]["perplexity"]["bits_per_byte,none"].as_f64().unwrap()
}

fn close(found: f64, expected: f64) {
    assert!((found - expected).abs() < 1e-5 * expected, "expected {expected}, got {found}");
}

/// A text of several documents, with characters of one to four bytes.
fn documents(root: &Path) {
    for number in 0..9 {
        let text = format!("{number} Zwölf Boxkämpfer jagen Viktor über den Sylter Deich: 日本語, 🥊.\n").repeat(4);
        fs::write(root.join(format!("{number}.txt")), text).unwrap();
    }
}

#[test]
fn equal_odds_cost_the_bits_of_a_token_times_the_tokens_of_a_byte() {
    let folder = folder();
    let root = folder.path();
    documents(root);
    let texts = (0..9).map(|number| format!("{number}.txt")).collect::<Vec<_>>().join(" ");
    succeed(root, "tokenizer train --kind byte --out byte.json");
    succeed(root, &format!("tokenizer train --kind char --txt {texts} --out char.json"));
    succeed(root, &format!("tokenizer train --kind char --txt {texts} --eos_token <end> --out ended.json"));
    for (name, tokenizer) in [
        ("byte", " --tokenizer byte.json"),
        ("char", " --tokenizer char.json"),
        ("ended", " --tokenizer ended.json"),
        ("gpt2", ""),
    ] {
        succeed(root, &format!("tokenize --dataset {name} --txt {texts}{tokenizer}"));
        let data = TokenFile::open(&root.join(format!("_data_{name}_"))).unwrap();
        let tokenizer = data.tokenizer().unwrap();
        flat(&root.join("flat.pt"), &tokenizer);
        let line = "train --init_from flat.pt --max_iters 1 --overwrite --val_fraction 0.2 --out m.pt --dtype f32";
        let (_, err) = succeed(root, &format!("{line} --data _data_{name}_ --eval_iters 2"));

        // By hand: the validation split without the ends of documents, and the bytes that it decodes to.
        let mut ids = Vec::new();
        data.copy((data.len() as f64 * 0.8) as usize..data.len(), &mut ids);
        ids.retain(|&id| Some(id) != tokenizer.eot());
        let bytes = tokenizer.decode(&ids).trim_start_matches('\u{fffd}').len() as f64;
        let expected = (tokenizer.vocab_size() as f64).log2() * ids.len() as f64 / bytes;
        let (step, nats, bits) = evaluations(root, "m.run")[0];
        assert_eq!(step, 0);
        close(nats, (tokenizer.vocab_size() as f64).ln());
        // The split may begin within a character, which the line above leaves out.
        assert!((bits.unwrap() / expected - 1.0).abs() < 3.0 / bytes, "{name}: expected {expected}, got {bits:?}");
        if name == "byte" {
            close(bits.unwrap(), nats / LN_2);
        }
        let shown = format!("step 0: validation loss {nats:.4} ({:.3} bits/byte, best so far)\n", bits.unwrap());
        assert!(err.contains(&shown), "{shown}: {err}");
        assert!(!err.contains("note"), "{err}");
        // Without a token before it, the first one is only context for eval.
        let measured = eval(root, &format!("flat.pt --text _data_{name}_ --val_fraction 0.2"));
        let tolerance = if tokenizer.eot().is_some() { 1e-5 } else { 4.0 / bytes };
        assert!((measured / bits.unwrap() - 1.0).abs() < tolerance, "{name}: {measured}, {bits:?}");

        // Distillation validates in the same way.
        let line =
            "distill --teacher_model_path flat.pt --init_student flat.pt --max_iters 1 --overwrite --val_fraction 0.2";
        succeed(root, &format!("{line} --data _data_{name}_ --eval_iters 2 --out d.pt --dtype f32"));
        assert_eq!(evaluations(root, "d.run")[0].2, bits, "{name}");
    }
}

#[test]
fn a_trained_model_has_the_bits_per_byte_that_eval_measures() {
    let folder = folder();
    let root = folder.path();
    // 17 held-out tokens are one sequence of 16, so that training and eval predict the same ones.
    let text: String = "the quick brown fox jumps over the lazy dog, ".chars().cycle().take(170).collect();
    fs::write(root.join("a.txt"), text).unwrap();
    succeed(root, "tokenizer train --kind char --txt a.txt --out char.json");
    succeed(root, "tokenize --dataset a --txt a.txt --tokenizer char.json");
    let line = "train --config tiny.toml --data _data_a_ --learning_rate 0.01 --min_lr 0.01 --warmup_iters 0 --eval_interval 10 --dtype f32";
    let (out, err) = succeed(root, &format!("{line} --max_iters 40 --out whole.pt"));
    let whole = evaluations(root, "whole.run");
    let (_, nats, bits) = whole[4];
    assert!(bits < whole[0].2, "{whole:?}");
    assert!(whole.iter().all(|&(_, nats, bits)| (bits.unwrap() * LN_2 / nats - 1.0).abs() < 1e-5), "{whole:?}");
    close(eval(root, "whole.pt --text _data_a_ --val_fraction 0.1"), bits.unwrap());
    let shown = format!("validation loss {nats:.4} ({:.3} bits/byte)", bits.unwrap());
    assert!(out.ends_with(&format!("{shown}\n")) && err.contains(&shown[..shown.len() - 1]), "{out}{err}");

    // The curve and TensorBoard's events have them too.
    let svg = fs::read_to_string(root.join("whole.run/loss.svg")).unwrap();
    assert!(svg.contains(&format!(">val {:.3} bits per byte", bits.unwrap())), "{svg}");
    let events = contents(&root.join("whole.run")).into_iter().find(|(name, _)| name.contains("tfevents")).unwrap().1;
    assert!(String::from_utf8_lossy(&events).contains("bits_per_byte/val"));

    // A resumed run has the same, and remembers those of its best model.
    succeed(root, &format!("{line} --max_iters 20 --out parts.pt"));
    succeed(root, "train --data _data_a_ --max_iters 40 --out parts.pt --resume");
    assert_eq!(evaluations(root, "parts.run"), whole);
    let worse = "--learning_rate 3 --min_lr 3 --max_iters";
    let best = whole[4];
    succeed(root, &format!("{line} --max_iters 40 --out kept.pt --keep_best true"));
    let (out, _) = succeed(root, &format!("train --data _data_a_ --out kept.pt --resume {worse} 60"));
    let expected =
        format!("kept the best: validation loss {:.4} ({:.3} bits/byte) at step 40\n", best.1, best.2.unwrap());
    assert!(out.ends_with(&expected), "{expected}: {out}");
}

#[test]
fn bytes_of_a_conversation_are_those_of_the_answers() {
    let folder = folder();
    let root = folder.path();
    let (question, answer) = ("¿Qué?", "Good morning, señor! 🥊");
    let talk =
        json!({ "messages": [{ "role": "user", "content": question }, { "role": "assistant", "content": answer }] });
    fs::write(root.join("talks.jsonl"), format!("{talk}\n").repeat(5)).unwrap();
    let tokenizer = Tokenizer::gpt2();
    let config = Config::new(1, 1, 8, 64, tokenizer.vocab_size());
    let params = vec![0.0; ParamList::new(&config).total()];
    let meta = CheckpointMeta { tokenizer: TokenizerRef::Gpt2, ..CheckpointMeta::default() };
    checkpoint::save(&root.join("flat.pt"), &config, &params, &meta).unwrap();
    let line = "finetune --model_checkpoint flat.pt --finetune_iters 1 --overwrite --out f.pt --dtype f32";
    let (out, _) = succeed(root, &format!("{line} --data talks.jsonl"));

    // The token that ends the answer stands for no text.
    let bits_of = |text: &str| {
        (tokenizer.vocab_size() as f64).log2() * tokenizer.encode(text).unwrap().len() as f64 / text.len() as f64
    };
    let (_, _, bits) = evaluations(root, "f.run")[0];
    close(bits.unwrap(), bits_of(answer));
    assert!(out.contains(" bits/byte) at step "), "{out}");

    // The same from a dataset; of plain tokens, all of the held-out text counts.
    succeed(root, "tokenize --dataset talks --chats talks.jsonl");
    succeed(root, &format!("{line} --data _data_talks_"));
    close(evaluations(root, "f.run")[0].2.unwrap(), bits.unwrap());
    fs::write(root.join("a.txt"), "Good morning!\n".repeat(400)).unwrap();
    succeed(root, "tokenize --dataset a --txt a.txt");
    succeed(root, &format!("{line} --data _data_a_"));
    close(evaluations(root, "f.run")[0].2.unwrap(), bits_of("Good morning!\n"));
}

#[test]
fn without_a_tokenizer_there_are_none_and_a_note_says_so() {
    let folder = folder();
    let root = folder.path();
    let tokens: Vec<u8> = (0..900u32).flat_map(|i| ((i * i % 97) as u16).to_le_bytes()).collect();
    fs::write(root.join("data.bin"), tokens).unwrap();
    fs::write(root.join("tiny.toml"), format!("{SHAPE}vocab_size = 97\n")).unwrap();
    let (out, err) = succeed(root, "train --config tiny.toml --data data.bin --max_iters 2 --out m.pt");
    let note = "note: data.bin: its tokenizer is unknown, so the validation loss is not given in bits per byte\n";
    assert_eq!(err.matches(note).count(), 1, "{err}");
    assert!(!format!("{out}{err}").contains("bits/byte"), "{out}{err}");
    assert!(evaluations(root, "m.run").iter().all(|(_, _, bits)| bits.is_none()));
    assert!(!fs::read_to_string(root.join("m.run/metrics.jsonl")).unwrap().contains("val_bpb"));
    assert_eq!(Checkpoint::load(&root.join("m.pt")).unwrap().meta.tokenizer, TokenizerRef::Unknown);
    // Without held-out data there is nothing to say.
    let (_, err) = succeed(root, "train --config tiny.toml --data data.bin --max_iters 2 --out n.pt --val_fraction 0");
    assert!(!err.contains("note"), "{err}");
}

#[test]
fn bytes_of_characters_that_the_vocabulary_lacked_are_missed_aloud() {
    let folder = folder();
    let root = folder.path();
    fs::write(root.join("known.txt"), "to be or not to be\n").unwrap();
    fs::write(root.join("other.txt"), "to bé or nöt to bé\n".repeat(40)).unwrap();
    succeed(root, "tokenizer train --kind char --txt known.txt --out chars.json");
    succeed(root, "tokenize --dataset x --txt other.txt --tokenizer chars.json");
    let (_, err) = succeed(root, "train --config tiny.toml --data _data_x_ --max_iters 1 --out m.pt --dtype f32");
    let note = "note: data.bin: 120 characters of the text were not in the vocabulary when it was tokenized; values per \
                byte count only the text that its tokens stand for\n";
    assert!(err.contains(note), "{err}");
    let (_, nats, bits) = evaluations(root, "m.run")[0];
    close(bits.unwrap(), nats / LN_2);
}
