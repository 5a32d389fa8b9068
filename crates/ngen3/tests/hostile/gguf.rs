//! GGUF files: counts, lengths and shapes that lie, and vocabularies that are too large.

use crate::case::Table;

const IMPORT: &str = "import --from x.gguf --out out.pt";
const VALID: &[u8] = include_bytes!("../../../../fuzz/seeds/gguf/llama.gguf");

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

fn head(tensors: u64, keys: u64) -> Vec<u8> {
    [&b"GGUF\x03\0\0\0"[..], &tensors.to_le_bytes(), &keys.to_le_bytes()].concat()
}

/// A key with its type and value.
fn key(name: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&string(name)[..], &kind.to_le_bytes(), value].concat()
}

fn array(kind: u32, len: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &len.to_le_bytes()].concat()
}

fn tensor(name: &str, dims: &[u64], kind: u32, at: u64) -> Vec<u8> {
    let dims: Vec<_> = [(dims.len() as u32).to_le_bytes().to_vec()]
        .into_iter()
        .chain(dims.iter().map(|dim| dim.to_le_bytes().to_vec()))
        .collect();
    [&string(name)[..], &dims.concat(), &kind.to_le_bytes(), &at.to_le_bytes()].concat()
}

/// A valid file with the first number after a key replaced.
fn with(name: &str, value: u32) -> Vec<u8> {
    let mut file = VALID.to_vec();
    let at = file.windows(name.len()).position(|window| window == name.as_bytes()).unwrap() + name.len() + 4;
    file[at..at + 4].copy_from_slice(&value.to_le_bytes());
    file
}

#[test]
fn files_that_lie() {
    let mut table = Table::new("GGUF files");
    let nested = [array(9, 1).repeat(100), array(4, 0)].concat();
    for (input, bytes, reason) in [
        ("2^60 tensors", head(1 << 60, 0), "tensors: expected at most"),
        ("2^64 - 1 metadata keys", head(0, u64::MAX), "metadata keys: expected at most"),
        ("65,536 tensors in a file of 24 bytes", head(1 << 16, 0), "truncated"),
        ("a key of 2^63 bytes", [head(0, 1), (1u64 << 63).to_le_bytes().to_vec()].concat(), "x.gguf"),
        ("a text of 2^63 bytes", [head(0, 1), key("a", 8, &(1u64 << 63).to_le_bytes())].concat(), "a at byte"),
        ("an array of 2^61 numbers", [head(0, 1), key("a", 9, &array(12, 1 << 61))].concat(), "a at byte"),
        ("an array of 2^60 texts", [head(0, 1), key("a", 9, &array(8, 1 << 60))].concat(), "a at byte"),
        ("arrays 100 deep", [head(0, 1), key("a", 9, &nested)].concat(), "arrays in each other"),
        ("a type of value of 2^31", [head(0, 1), key("a", 1 << 31, &[0; 8])].concat(), "unknown type of value"),
        ("a key of escapes for the terminal", [head(0, 1), key("\u{1b}[2J\u{7}", 99, &[0; 8])].concat(), "x.gguf"),
        (
            "a tensor of 2^64 elements",
            [head(1, 0), tensor("a", &[1 << 32, 1 << 32], 0, 0)].concat(),
            "product below 2^64",
        ),
        ("a tensor of 2^63 bytes", [head(1, 0), tensor("a", &[1 << 61], 0, 0)].concat(), "a"),
        ("a tensor at 2^64 - 32", [head(1, 0), tensor("a", &[32], 0, u64::MAX - 31)].concat(), "a"),
        (
            "an alignment of 2^31",
            [head(1, 1), key("general.alignment", 4, &(1u32 << 31).to_le_bytes()), tensor("a", &[1], 0, 0)].concat(),
            "a",
        ),
        ("an alignment of 0", [head(0, 1), key("general.alignment", 4, &[0; 4])].concat(), "power of two"),
        ("a block count of 2^32 - 1", with("llama.block_count", u32::MAX), "x.gguf"),
        ("a block count of 2^24", with("llama.block_count", 1 << 24), "too few for"),
        ("2^31 heads", with("llama.attention.head_count", 1 << 31), "x.gguf"),
        ("0 heads", with("llama.attention.head_count", 0), "x.gguf"),
        ("a context of 2^32 - 1", with("llama.context_length", u32::MAX), "x.gguf"),
        ("a width of 0", with("llama.embedding_length", 0), "x.gguf"),
    ] {
        table.put("x.gguf", bytes);
        table.refused(input, IMPORT, reason);
    }
    let keys: Vec<u8> = (0..65_536u32).flat_map(|at| key(&format!("{at:05}{}", "a".repeat(1_500)), 0, &[0])).collect();
    table.put("x.gguf", [head(0, 65_536), keys].concat());
    table.refused("65,536 keys of 1,500 bytes", IMPORT, "general.architecture");
    table.write("x.gguf", |file| {
        file.write_all(&[head(0, 1), key("a", 9, &array(8, 15_000_000))].concat()).unwrap();
        (0..15_000_000).for_each(|_| file.write_all(&[0; 8]).unwrap());
    });
    table.refused("15 million empty texts", IMPORT, "general.architecture");
    table.write("x.gguf", |file| {
        file.write_all(&[head(0, 1), key("a", 9, &array(9, 10_000_000))].concat()).unwrap();
        (0..10_000_000).for_each(|_| file.write_all(&array(0, 0)).unwrap());
    });
    table.refused("10 million empty arrays", IMPORT, "general.architecture");
    vocabulary(&table, 4_000_000);
    table.refused("a vocabulary of 4 million tokens of 16 bytes", IMPORT, "x.gguf");
    table.print();
}

/// Writes a model of one layer and width 2 with so many tokens.
fn vocabulary(table: &Table, size: u64) {
    table.write("x.gguf", |file| {
        let number = |name: &str, value: u32| key(&format!("llama.{name}"), 4, &value.to_le_bytes());
        let text = |name: &str, value: &str| key(name, 8, &string(value));
        let layer = [
            ("attn_norm", vec![2]),
            ("attn_q", vec![2, 2]),
            ("attn_k", vec![2, 2]),
            ("attn_v", vec![2, 2]),
            ("attn_output", vec![2, 2]),
            ("ffn_norm", vec![2]),
            ("ffn_gate", vec![2, 2]),
            ("ffn_up", vec![2, 2]),
            ("ffn_down", vec![2, 2]),
        ];
        let mut tensors = vec![tensor("token_embd.weight", &[2, size], 0, 0), tensor("output_norm.weight", &[2], 0, 0)];
        tensors.extend(layer.map(|(name, dims)| tensor(&format!("blk.0.{name}.weight"), &dims, 0, 0)));
        let parts = [
            head(tensors.len() as u64, 11),
            text("general.architecture", "llama"),
            number("block_count", 1),
            number("attention.head_count", 1),
            number("attention.head_count_kv", 1),
            number("embedding_length", 2),
            number("feed_forward_length", 2),
            number("context_length", 8),
            key("llama.attention.layer_norm_rms_epsilon", 6, &1e-5f32.to_le_bytes()),
            text("tokenizer.ggml.model", "gpt2"),
            text("tokenizer.ggml.pre", "gpt-2"),
            key("tokenizer.ggml.tokens", 9, &array(8, size)),
        ];
        file.write_all(&parts.concat()).unwrap();
        (0..size).for_each(|at| file.write_all(&string(&format!("{at:016x}"))).unwrap());
        file.write_all(&tensors.concat()).unwrap();
        let zeros = vec![0; 1 << 20];
        (0..size * 8 / (1 << 20) + 2).for_each(|_| file.write_all(&zeros).unwrap());
    });
}
