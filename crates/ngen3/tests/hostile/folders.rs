//! Folders as from Hugging Face: shapes that no machine holds, links and indexes that lead outside.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::{Value, json};

use crate::case::Table;
use crate::checkpoints::safetensors;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../ngen3-model/tests/fixtures/hf");
const IMPORT: &str = "import --from hf_model --out out.pt";

/// Copies a valid folder to `hf_model`.
pub fn copy(table: &Table, name: &str) {
    let _ = fs::remove_dir_all(table.path().join("hf_model"));
    for entry in fs::read_dir(Path::new(FIXTURES).join(name)).unwrap().map(Result::unwrap) {
        table.put(&format!("hf_model/{}", entry.file_name().display()), fs::read(entry.path()).unwrap());
    }
}

#[test]
fn folders_of_models() {
    let mut table = Table::new("Hugging Face folders");
    copy(&table, "whole");
    let config: Value = serde_json::from_slice(&fs::read(table.path().join("hf_model/config.json")).unwrap()).unwrap();
    table.run(IMPORT, b"").succeeded();
    fs::remove_file(table.path().join("out.pt")).unwrap();
    let edit = |name: &str, value: Value| {
        let mut config = config.clone();
        config[name] = value;
        config.to_string()
    };
    for (input, text, reason) in [
        ("10^9 layers", edit("n_layer", json!(1_000_000_000)), "config.json"),
        ("2^24 layers", edit("n_layer", json!(1 << 24)), "too few for"),
        ("a vocabulary of 2^62", edit("vocab_size", json!(1u64 << 62)), "vocab"),
        ("a width of 2^64", edit("n_embd", json!(2f64.powi(64))), "n_embd"),
        ("-12 heads", edit("n_head", json!(-12)), "n_head"),
        ("0 heads", edit("n_head", json!(0)), "n_head"),
        ("a context of 2^53", edit("n_positions", json!(1u64 << 53)), "config.json"),
        ("an epsilon of -1", edit("layer_norm_epsilon", json!(-1)), "epsilon"),
        ("an epsilon of 1e308", edit("layer_norm_epsilon", json!(1e308)), "epsilon"),
        ("NaN for an epsilon", edit("layer_norm_epsilon", json!("#")).replace("\"#\"", "NaN"), "config.json"),
        ("a model type of 500 kB", edit("model_type", json!("a".repeat(500_000))), "config.json"),
        ("a model type of escapes", edit("model_type", json!("\u{1b}[2J\u{7}\n")), "config.json"),
        ("lists 100,000 deep", "[".repeat(100_000), "config.json"),
        ("2 MB of spaces", " ".repeat(2 << 20), "config.json"),
        (
            "`trust_remote_code` and its code",
            edit("auto_map", json!({"AutoModel": "evil.Model"})).replace("\"gpt2\"", "\"evil\""),
            "evil",
        ),
    ] {
        table.put("hf_model/config.json", text);
        table.refused(&format!("config.json: {input}"), IMPORT, reason);
    }
    copy(&table, "whole");
    let weights = table.path().join("hf_model/model.safetensors");
    for (input, target, reason) in [
        ("model.safetensors is a link to /etc/passwd", "/etc/passwd", "model.safetensors"),
        ("model.safetensors is a link to /dev/zero", "/dev/zero", "not a file"),
        ("model.safetensors is a link to itself", "model.safetensors", ""),
        ("model.safetensors is a link to /proc/self/mem", "/proc/self/mem", ""),
    ] {
        fs::remove_file(&weights).unwrap();
        symlink(target, &weights).unwrap();
        table.refused(input, IMPORT, reason);
    }
    copy(&table, "sharded");
    let index = "hf_model/model.safetensors.index.json";
    let map = |file: &str| json!({"weight_map": {"wte.weight": file}}).to_string();
    let many: serde_json::Map<String, Value> =
        (0..100_000).map(|at| (format!("t{at}"), json!(format!("f{at}")))).collect();
    for (input, text, reason) in [
        ("`../../x`", map("../../x"), "expected files of the same folder"),
        ("`/etc/passwd`", map("/etc/passwd"), "expected files of the same folder"),
        ("`.hidden`", map(".hidden"), "expected files of the same folder"),
        ("a name of 2 MB", map(&"a".repeat(2 << 20)), ""),
        ("a name of escapes", map("\u{1b}[2J"), ""),
        ("100,000 files", json!({"weight_map": many}).to_string(), "expected 1 to 4096 files"),
        ("20 MB", format!("{}{{}}", " ".repeat(20 << 20)), "index.json"),
    ] {
        table.put(index, text);
        table.refused(&format!("index of shards: {input}"), IMPORT, reason);
    }
    copy(&table, "whole");
    table.put("hf_model/model.safetensors", safetensors("{}", 0));
    table.refused("weights without tensors", IMPORT, "too few");
    table.print();
}
