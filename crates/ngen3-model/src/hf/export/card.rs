//! `README.md`: the model card. Everything in it was measured or is in the checkpoint.

use std::fmt::Write;

use serde_json::Value;

use super::evaluations;
use super::spec::{CurvePoint, Export, ExportFormat};
use crate::words::count;
use crate::{Activation, Config, Family, ParamList};

/// Maximum number of rows in the table of losses.
const ROWS: usize = 12;
/// Key of the data in the training record; see [`data`].
const DATA: &str = "data";

/// Returns the model card.
pub(super) fn write(export: &Export, list: &ParamList) -> String {
    let mut card = String::new();
    put(&mut card, front_matter(export));
    let name = export.name;
    put(&mut card, format!("# {name}\n"));
    let parameters = list.total() as f64 / 1e6;
    let meta = &export.checkpoint.meta;
    let learned = if meta.training.contains_key("finetune") {
        "fine-tuned"
    } else if meta.training.contains_key("distill") {
        "distilled"
    } else {
        "trained"
    };
    let steps = match meta.iter_num {
        0 => String::new(),
        steps => format!(", {learned} for {}", count(steps, "step")),
    };
    let does = if meta.chat.is_some() { "It is a chat model." } else { "It continues text." };
    put(
        &mut card,
        format!("A GPT-2 language model with {parameters:.1} million parameters{steps}. {does} Exported by NGen3.\n"),
    );
    put(&mut card, usage(export));
    put(&mut card, shape(&export.checkpoint.config));
    put(&mut card, evaluations::section(&meta.evaluations, cell));
    put(&mut card, training(export));
    put(&mut card, curve(export));
    card
}

fn put(card: &mut String, text: String) {
    if !text.is_empty() {
        writeln!(card, "{text}").expect("writing to a String cannot fail");
    }
}

/// YAML front matter, which the Hub reads. Strings are written as JSON, which is valid YAML.
fn front_matter(export: &Export) -> String {
    let library = match export.format {
        ExportFormat::Hf => "transformers",
        ExportFormat::Gguf => "gguf",
    };
    let mut yaml = format!("---\nlibrary_name: {library}\npipeline_tag: text-generation\ntags:\n- gpt2\n- ngen3\n");
    if export.checkpoint.meta.chat.is_some() {
        yaml += "- conversational\n";
    }
    let mut results = evaluations::index(&export.checkpoint.meta.evaluations);
    if let (Some(loss), Some(data)) = (final_val_loss(export), data(export)) {
        // The Hub has no task or data set for this: the loss on the validation split.
        let data = Value::from(data);
        results += &format!(
            "  - task:\n      type: text-generation\n    dataset:\n      name: {data}\n      type: text\n      split: validation\n    \
             metrics:\n    - type: loss\n      name: Validation loss (nats per token)\n      value: {loss}\n"
        );
    }
    if !results.is_empty() {
        yaml += &format!("model-index:\n- name: {}\n  results:\n{results}", Value::from(export.name));
    }
    yaml + "---\n"
}

fn usage(export: &Export) -> String {
    let chats = export.checkpoint.meta.chat.is_some();
    match export.format {
        ExportFormat::Hf => {
            let inputs = if chats {
                "messages = [{\"role\": \"user\", \"content\": \"How are you?\"}]\n\
                 inputs = tokenizer.apply_chat_template(\n    \
                 messages, add_generation_prompt=True, return_dict=True, return_tensors=\"pt\"\n)\n"
            } else {
                "inputs = tokenizer(\"Once upon a time\", return_tensors=\"pt\")\n"
            };
            let shown = if chats {
                "print(tokenizer.decode(output[0, inputs[\"input_ids\"].shape[1]:], skip_special_tokens=True))\n"
            } else {
                "print(tokenizer.decode(output[0]))\n"
            };
            format!(
                "## Usage\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
                 folder = \"PATH_TO_THIS_FOLDER\"\n\
                 tokenizer = AutoTokenizer.from_pretrained(folder)\n\
                 model = AutoModelForCausalLM.from_pretrained(folder)\n\
                 {inputs}\
                 output = model.generate(**inputs, max_new_tokens=50, do_sample=True)\n\
                 {shown}```\n"
            )
        }
        ExportFormat::Gguf => {
            let how = if chats { "-cnv" } else { "-p \"Once upon a time\" -n 50 -no-cnv" };
            format!("## Usage\n\n```sh\nllama-cli -m {} {how}\n```\n", export.gguf_name())
        }
    }
}

fn shape(config: &Config) -> String {
    let Config { n_layer, n_head, n_embd, block_size, vocab_size, activation, layer_norm_epsilon, bias, .. } = config;
    let activation = match activation {
        Activation::GeluNew => "gelu_new",
        Activation::Gelu => "gelu",
        Activation::Swiglu => "swiglu",
    };
    let (norm, others) = match config.family {
        Family::Gpt2 if *bias => ("LayerNorm", String::new()),
        Family::Gpt2 => ("LayerNorm", "| biases | none (stored as zeros) |\n".into()),
        family => {
            let (kv, inner) = (config.kv_heads(), config.inner_width());
            let rows = format!("| family | {} |\n| heads of keys and values | {kv} |\n", family.model_type());
            ("RMSNorm", format!("{rows}| width of the MLP | {inner} |\n"))
        }
    };
    format!(
        "## Architecture\n\n| | |\n|---|---|\n| layers | {n_layer} |\n| heads | {n_head} |\n| width | {n_embd} |\n\
         | context length | {block_size} tokens |\n| vocabulary size | {vocab_size} tokens |\n| activation | {activation} |\n\
         | {norm} epsilon | {layer_norm_epsilon:e} |\n{others}"
    )
}

/// Training settings that the checkpoint records.
fn training(export: &Export) -> String {
    let meta = &export.checkpoint.meta;
    if meta.training.is_empty() {
        return String::new();
    }
    let mut text = String::from("## Training\n\n");
    if let Some(data) = data(export) {
        let tokens = |name: &str| meta.training[DATA].get(name).and_then(Value::as_u64);
        let tokens = match (tokens("train_tokens"), tokens("val_tokens")) {
            (Some(train), Some(val)) => format!(" ({train} training tokens, {val} validation tokens)"),
            _ => String::new(),
        };
        text += &format!("Data: {}{tokens}.\n\n", cell(&data));
    }
    if let Some(loss) = meta.best_val_loss {
        text += &format!("Best validation loss: {loss:.4} nats per token.\n\n");
    }
    text += "| setting | value |\n|---|---|\n";
    for (name, value) in meta.training.iter().filter(|(name, _)| *name != DATA) {
        // Settings of one kind of training, such as a teacher's temperature, are grouped under its name.
        match value.as_object() {
            Some(own) => own.iter().for_each(|(own, value)| setting(&mut text, &format!("{name}: {own}"), value)),
            None => setting(&mut text, name, value),
        }
    }
    text
}

fn setting(text: &mut String, name: &str, value: &Value) {
    if !value.is_null() {
        let value = match value.as_f64() {
            Some(number) if value.is_f64() => six_digits(number),
            _ => value.as_str().map_or_else(|| value.to_string(), String::from),
        };
        *text += &format!("| {} | {} |\n", cell(name), cell(&value));
    }
}

/// Rounds to six digits, dropping those that only f32 rounding added: a tenth of 3e-4 is 0.00003.
fn six_digits(value: f64) -> String {
    Value::from(format!("{value:.5e}").parse().unwrap_or(value)).to_string()
}

/// Returns the sources of the training data, from the training record.
fn data(export: &Export) -> Option<String> {
    let sources = export.checkpoint.meta.training.get(DATA)?.get("source")?.as_array()?;
    let sources: Vec<&str> = sources.iter().filter_map(Value::as_str).collect();
    (!sources.is_empty()).then(|| sources.join(", "))
}

/// Returns the validation loss of the exported weights, if it was measured after the last step.
fn final_val_loss(export: &Export) -> Option<f32> {
    let last = export.curve.iter().rev().find(|point| point.val_loss.is_some())?;
    last.val_loss.filter(|_| last.step == export.checkpoint.meta.iter_num)
}

/// Returns the training curve: a plot and a table of the evaluations, or of training losses if there were none.
fn curve(export: &Export) -> String {
    let evaluated: Vec<&CurvePoint> = export.curve.iter().filter(|point| point.val_loss.is_some()).collect();
    let points = if evaluated.is_empty() { export.curve.iter().collect() } else { evaluated };
    if points.is_empty() {
        return String::new();
    }
    let mut text = String::from("## Training curve\n\n");
    if export.loss_svg.is_some() {
        text += "![loss by step](loss.svg)\n\n";
    }
    text += "Losses in nats per token.\n\n| step | training loss | validation loss |\n|---|---|---|\n";
    let loss = |loss: Option<f32>| loss.map_or_else(String::new, |loss| format!("{loss:.4}"));
    // The first, the last, and evenly spaced rows between them.
    let rows = points.len().min(ROWS);
    for row in 0..rows {
        let point = points[if rows == 1 { 0 } else { row * (points.len() - 1) / (rows - 1) }];
        text += &format!("| {} | {} | {} |\n", point.step, loss(point.train_loss), loss(point.val_loss));
    }
    text
}

/// Escapes text for a table cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace(['\n', '\r'], " ")
}
