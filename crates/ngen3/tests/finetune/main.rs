//! `ngen3 finetune` and `ngen3 hf_finetune` from the command line.

#[path = "../common/mod.rs"]
mod common;
#[path = "../../../ngen3-data/tests/hf_hub/server.rs"]
mod server;
mod stopping;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Output;

use common::{contents, fail, ngen3, run, succeed, texts};
use ngen3_model::{Checkpoint, CheckpointMeta, Config, ParamList, Variant, checkpoint};
use serde_json::{Value, json};
use server::FakeHub;

const SAMPLE: [&str; 6] = ["--prompt", "Hello, how are you?", "--sample_length", "100", "--sample_temperature", "1.0"];

/// A model of GPT-2's vocabulary, with random weights.
fn write_model(path: &Path, config: &Config) {
    let params = ParamList::new(config).init(3);
    checkpoint::save(path, config, &params, &CheckpointMeta::default()).unwrap();
}

/// A folder with a model of width 8, `tiny.pt`, and conversations, `chats.jsonl`.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_model(&folder.path().join("tiny.pt"), &Config::new(1, 2, 8, 48, 50_257));
    fs::write(folder.path().join("chats.jsonl"), chats(40)).unwrap();
    folder
}

/// Conversations whose answers follow from the questions.
fn chats(count: usize) -> String {
    let line = |n: usize| {
        let animal = ["cat", "dog", "cow", "bird"][n % 4];
        let sound = ["meow", "woof", "moo", "tweet"][n % 4];
        let turns = [("user", format!("What says the {animal}?")), ("assistant", format!("It says {sound}, {n}."))];
        let turns = turns.map(|(role, content)| json!({ "role": role, "content": content }));
        format!("{}\n", json!({ "messages": turns }))
    };
    (0..count).map(line).collect()
}

const TINY: &str =
    "finetune --model_checkpoint tiny.pt --data chats.jsonl --batch_size 4 --learning_rate 0.01 --out x.pt";

fn load(folder: &Path, name: &str) -> Checkpoint {
    Checkpoint::load(&folder.join(name)).unwrap()
}

fn metrics(folder: &Path, name: &str) -> Vec<Value> {
    let text = fs::read_to_string(folder.join(name).join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Error of a command that must fail with this code: the last line of stderr.
fn complaint(output: &Output, code: i32) -> String {
    let (_, err) = texts(output, code);
    assert_eq!(err.matches("error: ").count(), 1, "{err}");
    err.lines().last().unwrap().strip_prefix("error: ").unwrap_or_else(|| panic!("{err}")).to_owned()
}

#[test]
fn the_command_of_the_contract_fine_tunes_and_answers() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_model(&folder.join("distilled_7M_model.pt"), &Variant::by_name("7M").unwrap().config());
    fs::write(folder.join("chats.jsonl"), chats(30)).unwrap();
    let (out, _) = succeed(folder, "tokenize --dataset conversations --chats chats.jsonl");
    assert!(out.starts_with("_data_conversations_/data.bin: 30 conversations, "), "{out}");
    let line = "finetune --variant 7M --model_checkpoint distilled_7M_model.pt --data _data_conversations_/data.bin \
        --finetune_iters 2 --batch_size 2";
    let (out, err) = texts(&ngen3(folder, line).args(SAMPLE).output().unwrap(), 0);
    assert!(err.contains("27 conversations for training, 3 held out; loss on the assistant's turns"), "{err}");
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines[0].starts_with("finetuned_7M_model.pt: 2 steps in ") && lines[0].contains("kept the best"), "{out}");
    let text = "perplexity on the last tenth of builtin:shakespeare, 16384 tokens: ";
    assert!(lines[1].starts_with(text) && lines[1].contains(" before, ") && lines[1].ends_with(" %)"), "{out}");
    assert_eq!(lines[2], "user: Hello, how are you?");
    assert!(lines[3].starts_with("assistant: ") && lines[3].len() > 50, "{out}");

    let tuned = load(folder, "finetuned_7M_model.pt");
    let chat = tuned.meta.chat.unwrap();
    assert!(chat.template.contains("message['role']"), "{chat:?}");
    assert_eq!(tuned.meta.training["finetune"], json!({"train_on": "assistant"}));
    let found = tuned.meta.training["learning_rate"].as_f64().unwrap();
    assert!((found - 1e-4).abs() < 1e-9, "lower than the variant's 3e-4: {found}");
    assert!(tuned.meta.best_val_loss.is_some());
    let report: Value =
        serde_json::from_slice(&fs::read(folder.join("finetuned_7M_model.run/reference.json")).unwrap()).unwrap();
    assert!(report["before"].as_f64().unwrap() > 1.0 && report["after"].as_f64().unwrap() > 1.0, "{report}");

    // It works like any other model: its template is in the export.
    succeed(folder, "export --variant 7M --model_path finetuned_7M_model.pt --output_dir exported");
    let settings: Value =
        serde_json::from_slice(&fs::read(folder.join("exported/tokenizer_config.json")).unwrap()).unwrap();
    assert_eq!(settings["chat_template"], chat.template);
    assert_eq!(settings["eos_token"], "<|endoftext|>");
    succeed(folder, "sample --model_checkpoint exported --prompt Hello --length 3 --seed 1");
}

#[test]
fn the_hub_s_conversations_are_learned_from() {
    let (server, folder) = (FakeHub::start(), folder());
    let folder = folder.path();
    let rows = "{\"utterances\": [\"Hi !\", \" How are you ? \"]}\n".repeat(9);
    server.add(
        "datasets",
        "roskoN/dailydialog",
        "main",
        &[("train.jsonl", format!("{rows}{{\"utterances\": null}}\n").as_bytes())],
    );
    let line = "hf_finetune --model_checkpoint tiny.pt --hf_dataset roskoN/dailydialog --hf_split train \
        --hf_text_column utterances --finetune_iters 2 --batch_size 4 --out x.pt";
    let command = |line: &str| {
        let mut command = ngen3(folder, line);
        for name in ["HF_HUB_CACHE", "HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_OFFLINE", "XDG_CACHE_HOME"] {
            command.env_remove(name);
        }
        command.env("HF_ENDPOINT", &server.endpoint).env("HF_HOME", folder.join("hf"));
        command
    };
    let (out, err) = texts(&command(line).args(SAMPLE).output().unwrap(), 0);
    assert!(out.starts_with("x.pt: 2 steps in ") && out.contains("\nuser: Hello, how are you?\nassistant: "), "{out}");
    assert!(err.contains("note: skipped 1 of 10 records: they are empty"), "{err}");
    assert!(err.contains("8 conversations for training, 1 held out"), "{err}");
    let source = load(folder, "x.pt").meta.training["data"]["source"].clone();
    assert_eq!(source, json!(["train.jsonl of roskoN/dailydialog"]));

    // The same conversations as a dataset.
    let line = "hf_tokenize --hf_dataset roskoN/dailydialog --hf_text_column utterances --dataset d --chats";
    let (out, _) = texts(&command(line).output().unwrap(), 0);
    assert!(out.starts_with("_data_d_/data.bin: 9 conversations, 117 tokens, 45 of them"), "{out}");

    // A record that is not a conversation is named.
    let bad = "{\"turns\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"critic\", \"content\": \"b\"}]}\n";
    server.add(
        "datasets",
        "a/b",
        "main",
        &[("train.jsonl", format!("{{\"turns\": [\"a\", \"b\"]}}\n{bad}").as_bytes())],
    );
    let line = "hf_finetune --model_checkpoint tiny.pt --hf_dataset a/b --hf_text_column turns --out y.pt";
    let error = complaint(&command(line).output().unwrap(), 1);
    assert!(error.starts_with("train.jsonl of a/b: record 2: turn 2: unknown role \"critic\": expected"), "{error}");
}

#[test]
fn the_help_has_the_commands_of_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    let words = |text: &str| text.split_whitespace().filter(|&word| word != "\\").collect::<Vec<_>>().join(" ");
    for (command, line) in [
        (
            "finetune",
            "ngen3 finetune --variant 120M --model_checkpoint distilled_120M_model.pt --data _data_conversations_/data.bin \
             --finetune_iters 1000 --prompt \"Hello, how are you?\" --sample_length 100 --sample_temperature 1.0",
        ),
        (
            "hf_finetune",
            "ngen3 hf_finetune --variant 120M --model_checkpoint distilled_120M_model.pt --hf_dataset roskoN/dailydialog \
             --hf_split train --hf_text_column utterances --finetune_iters 1000 --prompt \"Hello, how are you?\" \
             --sample_length 100 --sample_temperature 1.0",
        ),
    ] {
        let (out, _) = succeed(folder.path(), &format!("{command} --help"));
        assert!(words(&out).contains(&words(line)), "{out}");
    }
}

#[test]
fn the_held_out_loss_falls_and_only_answers_are_judged() {
    let folder = folder();
    let folder = folder.path();
    let (_, err) = succeed(folder, &format!("{TINY} --finetune_iters 60 --eval_interval 20"));
    assert!(err.contains("36 conversations for training, 4 held out; loss on the assistant's turns"), "{err}");
    let losses: Vec<f64> = metrics(folder, "x.run").iter().filter_map(|line| line["val_loss"].as_f64()).collect();
    assert_eq!(losses.len(), 4);
    assert!(losses[0] > 10.5 && losses[3] < losses[0] - 2.0, "{losses:?}");
    let (_, err) = succeed(folder, &format!("{TINY} --finetune_iters 1 --train_on all --overwrite"));
    assert!(err.contains("loss on every turn"), "{err}");
}

#[test]
fn it_stops_when_nothing_improves_and_keeps_the_best() {
    let folder = folder();
    let folder = folder.path();
    let line = TINY.replace("0.01", "0.3");
    let (out, err) = succeed(folder, &format!("{line} --finetune_iters 400 --eval_interval 2 --patience 2"));
    assert!(err.contains("stopped early: 2 evaluations in a row without a lower validation loss"), "{err}");
    let lines = metrics(folder, "x.run");
    let (best, loss) = lines
        .iter()
        .filter_map(|line| Some((line["step"].as_u64()?, line["val_loss"].as_f64()?)))
        .min_by(|a, b| a.1.total_cmp(&b.1))
        .unwrap();
    let kept = load(folder, "x.pt").meta;
    assert_eq!(kept.iter_num, best);
    assert!((kept.best_val_loss.unwrap() - loss).abs() < 1e-6);
    assert!(out.contains(&format!("kept the best: validation loss {loss:.4} (")), "{out}");
    assert!(out.contains(&format!(" bits/byte) at step {best}\n")), "{out}");
    assert!(lines.last().unwrap()["step"].as_u64().unwrap() > best);
}

#[test]
fn token_files_and_texts_are_learned_whole() {
    let folder = folder();
    let folder = folder.path();
    fs::write(folder.join("a.txt"), "one two three four five six seven ".repeat(100)).unwrap();
    succeed(folder, "tokenize --dataset plain --txt a.txt");
    let line = TINY.replace("chats.jsonl", "_data_plain_/data.bin");
    let (out, err) = succeed(folder, &format!("{line} --finetune_iters 2 --prompt one --sample_length 3"));
    assert!(!err.contains("conversations"), "{err}");
    assert!(out.lines().last().unwrap().starts_with("one") && !out.contains("assistant"), "{out}");
    assert_eq!(load(folder, "x.pt").meta.chat, None);

    fs::write(
        folder.join("b.txt"),
        "How are you? Fine, thanks.\n\nA line that is rather longer than the others.\n".repeat(10),
    )
    .unwrap();
    let line = TINY.replace("chats.jsonl", "b.txt");
    let (_, err) = succeed(folder, &format!("{line} --finetune_iters 2 --overwrite"));
    assert!(err.contains("18 texts for training, 2 held out; loss on every token"), "{err}");
    assert_eq!(load(folder, "x.pt").meta.chat, None, "there are no turns to render");
    fs::write(folder.join("c.txt"), "How are you?\tFine.\n".repeat(10)).unwrap();
    let line = TINY.replace("chats.jsonl", "c.txt");
    let (_, err) = succeed(folder, &format!("{line} --finetune_iters 2 --overwrite"));
    assert!(err.contains("9 conversations for training, 1 held out"), "{err}");
}

#[test]
fn bad_conversations_are_named_or_counted() {
    let folder = folder();
    let folder = folder.path();
    let good = chats(1);
    let long = json!(["Hi", "word ".repeat(60)]).to_string();
    for (bad, place, reason) in [
        ("{\"messages\": []}", 2, "expected at least one turn, got none"),
        ("[]", 2, "expected at least one turn, got none"),
        ("{\"messages\": [{\"content\": \"Hi\"}]}", 2, "turn 1: missing role (or from)"),
        (
            "{\"messages\": [{\"role\": \"critic\", \"content\": \"Hi\"}]}",
            2,
            "turn 1: unknown role \"critic\": expected system",
        ),
        ("{\"messages\": [{\"role\": \"user\"}]}", 2, "turn 1: missing content"),
        ("[\"Hi\", \"\"]", 2, "turn 2: the text is empty"),
        ("{\"prompt\": \"Hi\"}", 2, "expected messages, conversations or instruction data, got the keys prompt"),
        (long.as_str(), 2, "a message has 64 tokens, but block_size is 48"),
        ("{\"messages\": [", 40_000, "invalid JSON: EOF while parsing a list (column 14)"),
    ] {
        let before = if place == 2 { good.clone() } else { good.repeat(39_999) };
        fs::write(folder.join("chats.jsonl"), format!("{before}{bad}\n{good}")).unwrap();
        let error = complaint(&run(folder, &format!("{TINY} --finetune_iters 1")), 1);
        assert!(error.contains("chats.jsonl") && error.contains(&format!("line {place}: {reason}")), "{bad}: {error}");
        assert!(error.contains("--skip_bad"), "{error}");
        assert!(!folder.join("x.pt").exists());
        let (_, err) =
            succeed(folder, &format!("{TINY} --finetune_iters 1 --eval_iters 1 --val_fraction 0 --skip_bad"));
        let left_out = if bad == long { "1 longer than the context length skipped" } else { "1 invalid skipped" };
        assert!(err.contains(left_out), "{bad}: {err}");
        for name in ["x.pt", "x.state/state.safetensors"] {
            fs::remove_file(folder.join(name)).unwrap();
        }
    }
    fs::write(folder.join("chats.jsonl"), "[\"nobody answers\"]\n").unwrap();
    let error = complaint(&run(folder, TINY), 1);
    assert!(error.starts_with("chats.jsonl: no tokens to train on: no conversation has an assistant turn"), "{error}");
    fs::write(folder.join("chats.jsonl"), "\n").unwrap();
    assert_eq!(complaint(&run(folder, TINY), 1), "chats.jsonl: no conversations found");
    let error = fail(folder, "tokenize --dataset z --chats no.jsonl", 1);
    assert!(error.contains("no.jsonl: no such file"), "{error}");
    assert!(!folder.join("_data_z_").exists());
    // For tokens on disk, the error names the number of the conversation.
    fs::write(folder.join("chats.jsonl"), format!("{good}{long}\n")).unwrap();
    succeed(folder, "tokenize --dataset z --chats chats.jsonl");
    let error = complaint(&run(folder, &TINY.replace("chats.jsonl", "_data_z_/data.bin")), 1);
    assert!(error.starts_with("_data_z_/data.bin: conversation 2: a message has 64 tokens"), "{error}");
}

#[test]
fn a_template_of_ones_own_is_kept_and_a_bad_one_refused() {
    let folder = folder();
    let folder = folder.path();
    let template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}\
        {% if add_generation_prompt %}[assistant] {% endif %}";
    fs::write(folder.join("t.jinja"), template).unwrap();
    succeed(folder, &format!("{TINY} --finetune_iters 2 --chat_template t.jinja"));
    assert_eq!(load(folder, "x.pt").meta.chat.unwrap().template, template);
    // It is now the model's template.
    let next = TINY.replace("tiny.pt", "x.pt").replace("--out x.pt", "--out y.pt");
    succeed(folder, &format!("{next} --finetune_iters 1"));
    assert_eq!(load(folder, "y.pt").meta.chat.unwrap().template, template);
    // Training on plain tokens keeps it.
    fs::write(folder.join("a.txt"), "one two three four five six seven ".repeat(100)).unwrap();
    succeed(folder, "tokenize --dataset plain --txt a.txt");
    let more = "train --data _data_plain_/data.bin --init_from y.pt --config shape.toml --batch_size 2 --out z.pt";
    fs::write(folder.join("shape.toml"), "n_layer = 1\nn_head = 2\nn_embd = 8\nblock_size = 48\n").unwrap();
    succeed(folder, &format!("{more} --max_iters 1"));
    succeed(folder, "train --data _data_plain_/data.bin --out z.pt --resume --max_iters 2");
    let trained = load(folder, "z.pt").meta;
    assert_eq!((trained.iter_num, trained.chat.unwrap().template.as_str()), (2, template));
    for (template, reason) in [
        ("{% for m in messages %}", "invalid chat template: "),
        ("{{ raise_exception('not with me') }}", "line 1: the chat template failed: not with me"),
        ("{% for m in messages | reverse %}{{ m.content }}{% endfor %}", "mark it with {% generation %}"),
    ] {
        fs::write(folder.join("t.jinja"), template).unwrap();
        let error = complaint(&run(folder, &format!("{TINY} --overwrite --chat_template t.jinja")), 1);
        assert!(error.contains(reason), "{template}: {error}");
    }
    let error = complaint(&run(folder, &format!("{TINY} --overwrite --chat_template no.jinja")), 1);
    assert!(error.starts_with("cannot read no.jinja"), "{error}");
}

#[test]
fn what_is_asked_wrongly_is_told_and_leaves_nothing() {
    let folder = folder();
    let folder = folder.path();
    fs::write(folder.join("short.txt"), "a").unwrap();
    let before = contents(folder);
    for (line, code, expected) in [
        (format!("{TINY} --sample_temperature -1"), 1, "temperature"),
        (format!("{TINY} --train_on everybody"), 2, "assistant or all"),
        (format!("{TINY} --finetune_iters 3 --max_iters 3"), 2, "cannot be used with"),
        (TINY.replace("--model_checkpoint tiny.pt ", ""), 2, "--model_checkpoint"),
        (format!("{TINY} --variant 7M"), 1, "tiny.pt: expected 7M (7,242,624 parameters) with "),
        (TINY.replace("tiny.pt", "no.pt"), 1, "no.pt"),
        (format!("{TINY} --reference_text no.txt"), 1, "no.txt"),
        (format!("{TINY} --lora_rank 2 --reference_text short.txt"), 1, "short.txt: too short to measure"),
        ("finetune --data chats.jsonl --resume".into(), 1, "--resume: expected --out FILE or --variant NAME"),
        (format!("{TINY} --resume"), 2, "cannot be used with"),
    ] {
        let output = run(folder, &line);
        let (_, err) = texts(&output, code);
        assert!(err.contains(expected), "{line}: {err}");
        assert_eq!(contents(folder), before, "{line}");
    }
}

#[test]
fn adapters_learn_and_nothing_else_does() {
    let folder = folder();
    let folder = folder.path();
    let line = format!("{TINY} --finetune_iters 60 --eval_interval 20 --lora_rank 4 --lora_targets c_attn,mlp.c_fc");
    let (_, err) = succeed(folder, &line);
    assert!(err.contains("; adapters of rank 4, alpha 8, at attn.c_attn,mlp.c_fc: 288 trainable"), "{err}");
    let losses: Vec<f64> = metrics(folder, "x.run").iter().filter_map(|line| line["val_loss"].as_f64()).collect();
    assert!(losses[3] < losses[0], "{losses:?}");
    let (base, merged) = (load(folder, "tiny.pt"), load(folder, "x.pt"));
    let changed: Vec<String> = ParamList::new(&base.config)
        .iter()
        .filter(|param| base.params[param.range()] != merged.params[param.range()])
        .map(|param| param.name())
        .collect();
    assert_eq!(changed, ["transformer.h.0.attn.c_attn.weight", "transformer.h.0.mlp.c_fc.weight"]);
    let lora = json!({"rank": 4, "alpha": 8.0, "targets": ["attn.c_attn", "mlp.c_fc"]});
    assert_eq!(merged.meta.training["lora"], lora);

    // The adapter's folder holds what is merged.
    let settings: Value =
        serde_json::from_slice(&fs::read(folder.join("x.adapter/adapter_config.json")).unwrap()).unwrap();
    assert_eq!((&settings["r"], &settings["base_model_name_or_path"]), (&json!(4), &json!("tiny.pt")));
    let tensor = |name: &str| tensor(&folder.join("x.adapter/adapter_model.safetensors"), name);
    let prefix = "base_model.model.transformer.h.0.mlp.c_fc.lora_";
    let (a, b) = (tensor(&format!("{prefix}A.weight")), tensor(&format!("{prefix}B.weight")));
    let list = ParamList::new(&base.config);
    let weight = list.iter().find(|param| param.name() == "transformer.h.0.mlp.c_fc.weight").unwrap().range();
    for (output, row) in base.params[weight.clone()].chunks(8).enumerate() {
        for (input, before) in row.iter().enumerate() {
            let product: f32 = (0..4).map(|r| b[output * 4 + r] * a[r * 8 + input]).sum();
            let found = merged.params[weight.start + output * 8 + input];
            assert!((found - (before + 2.0 * product)).abs() < 1e-6, "{found} at {output}, {input}");
        }
    }
    for (flags, code, expected) in [
        ("--lora_rank 0", 1, "the rank of an adapter is 0"),
        ("--lora_rank 4 --lora_alpha -1", 1, "the alpha of an adapter is -1"),
        ("--lora_rank 4 --lora_targets wte", 2, "unknown adapter target \"wte\""),
        ("--lora_alpha 4", 2, "--lora_rank"),
    ] {
        let (_, err) = texts(&run(folder, &format!("{TINY} --overwrite {flags}")), code);
        assert!(err.contains(expected), "{flags}: {err}");
    }
    assert_eq!(load(folder, "x.pt"), merged, "nothing was replaced");

    // A new run without adapters removes them.
    succeed(folder, &format!("{TINY} --overwrite --finetune_iters 1"));
    assert!(!folder.join("x.adapter").exists() && !folder.join("x.state/base.safetensors").exists());
}

/// Reads a tensor from a safetensors file.
fn tensor(path: &Path, name: &str) -> Vec<f32> {
    let bytes = fs::read(path).unwrap();
    let data = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..data]).unwrap();
    let offset = |at: usize| data + header[name]["data_offsets"][at].as_u64().unwrap() as usize;
    bytes[offset(0)..offset(1)].chunks(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
}

#[test]
fn a_shorter_block_comes_from_a_flag_or_the_config_file_and_another_model_is_refused() {
    let folder = folder();
    let folder = folder.path();
    fs::write(folder.join("short.toml"), "block_size = 40\n").unwrap();
    fs::write(folder.join("other.toml"), "n_layer = 3\n").unwrap();
    for (more, out) in [("--block_size 40", "a.pt"), ("--config short.toml", "b.pt")] {
        let line = format!("{TINY} --finetune_iters 1 {more}").replace("x.pt", out);
        let (said, _) = succeed(folder, &line);
        assert!(said.contains("perplexity on the last tenth"), "{said}");
        assert_eq!(load(folder, out).config.block_size, 40);
    }
    let error = complaint(&run(folder, &format!("{TINY} --config other.toml")), 1);
    assert!(error.ends_with("holds another model: n_layer is 1, not 3"), "{error}");
}
