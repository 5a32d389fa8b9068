//! Tokenizers: patterns that take exponential time, vocabularies that lie, JSON that nests.

use serde_json::{Value, json};

use crate::case::Table;

const TOKENIZE: &str = "tokenize --dataset x --txt a.txt --tokenizer x.json";
const VALID: &str = include_str!("../../../ngen3-model/tests/fixtures/hf/tokenizer/tokenizer.json");

fn edited(edit: impl FnOnce(&mut Value)) -> String {
    let mut file = serde_json::from_str(VALID).unwrap();
    edit(&mut file);
    file.to_string()
}

fn pattern(regex: &str) -> String {
    let split = json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    edited(|file| file["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [split, bytes]}))
}

#[test]
fn files_that_lie_or_take_forever() {
    let mut table = Table::new("Tokenizers");
    table.put("a.txt", format!("{}!", "a".repeat(100_000)));
    let model = |name: &str, value: Value| edited(|file| file["model"][name] = value);
    let token = |id: Value| json!([{"id": id, "content": "<x>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}]);
    for (input, text, reason) in [
        ("an unclosed pattern", pattern("(a"), "x.json"),
        ("a pattern of 100,000 brackets", pattern(&"(".repeat(100_000)), "x.json"),
        ("a pattern that repeats 10^8 times", pattern("((a{1000}){1000}){1000}"), "x.json"),
        ("an id of 2^32 - 1", edited(|file| file["added_tokens"] = token(json!(u32::MAX))), "x.json"),
        ("an id of 2^40", edited(|file| file["added_tokens"] = token(json!(1u64 << 40))), "x.json"),
        ("an id of -1", edited(|file| file["added_tokens"] = token(json!(-1))), "x.json"),
        ("a token with id 4,000,000,000", model("vocab", json!({"a": 4_000_000_000u32})), "x.json"),
        ("merges of tokens that do not exist", model("merges", json!([["no", "such"]])), "x.json"),
        ("a model of another kind", model("type", json!("Evil")), "x.json"),
        ("lists 100,000 deep", "[".repeat(100_000), "x.json"),
        (
            "decoders 10,000 deep",
            edited(|file| file["decoder"] = json!("#"))
                .replace("\"#\"", &[r#"{"type":"Sequence","decoders":["#.repeat(10_000), "]}".repeat(10_000)].concat()),
            "x.json",
        ),
        (
            "a truncation to 0 tokens",
            edited(|file| {
                file["truncation"] =
                    json!({"max_length": 0, "strategy": "LongestFirst", "stride": 0, "direction": "Right"})
            }),
            "",
        ),
    ] {
        table.put("x.json", text);
        table.either(input, TOKENIZE, reason);
    }
    // Backtracking stops at a limit, and what it would have found is lost: an error, not other tokens.
    for regex in ["(a+)+$", "(a|a)*b", "(a|aa)+$", "(.*)*c", "(?:a?){60}a{60}"] {
        table.put("x.json", pattern(regex));
        table.either(&format!("the pattern `{regex}`").replace('|', "\\|"), TOKENIZE, "");
    }
    long(&table, "[0", &|_| ",0".into(), 30_000_000, "]");
    table.refused("a list of 30 million numbers", TOKENIZE, "x.json");
    let (start, end) = VALID.split_once("\"vocab\":").unwrap();
    let rest = end.split_once('}').unwrap().1;
    long(
        &table,
        &format!("{start}\"vocab\":{{\"\":0"),
        &|at| format!(",\"{at:x}\":{at}"),
        3_500_000,
        &format!("}}{rest}"),
    );
    table.refused("a vocabulary of 3.5 million tokens", TOKENIZE, "x.json");
    table.print();
}

/// Writes `x.json` from its start, so many parts, and its end.
fn long(table: &Table, start: &str, part: &dyn Fn(usize) -> String, times: usize, end: &str) {
    table.write("x.json", |file| {
        file.write_all(start.as_bytes()).unwrap();
        (0..times).for_each(|at| file.write_all(part(at).as_bytes()).unwrap());
        file.write_all(end.as_bytes()).unwrap();
    });
}
