//! Pre-tokenizers of byte-level BPE, by the names of `tokenizer.ggml.pre`.
//!
//! A name stands for the rules of one model's tokenizer.json: llama.cpp's `llama-vocab.cpp` lists the names and its own form of the
//! patterns. These are the models' own, which `tokenizers` runs.

use serde_json::{Value, json};

/// GPT-2's pattern.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Llama 3's.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 2's and 3's: as Llama 3's, each digit alone.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 3.5's: as Qwen 2's, marks belong to words.
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Mistral's Tekken.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// GPT-4o's.
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// llama.cpp's patterns for files that name no pre-tokenizer, applied one after the other.
const DEFAULT: [&str; 4] = [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"];

/// Kind of the rules.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rules {
    /// GPT-2's pattern.
    Gpt2,
    /// Digits alone, then GPT-2's pattern.
    Digits,
    /// This pattern.
    Pattern(&'static str),
    /// [`DEFAULT`].
    Default,
}

/// Rules by name.
const NAMES: [(Rules, &[&str]); 8] = [
    (Rules::Default, &["default"]),
    (
        Rules::Gpt2,
        &[
            "gpt-2",
            "phi-2",
            "mpt",
            "olmo",
            "jais",
            "exaone4",
            "trillion",
            "granite-docling",
            "gigachat",
            "a.x-4.0",
            "mellum",
        ],
    ),
    (Rules::Digits, &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"]),
    (
        Rules::Pattern(LLAMA3),
        &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "dbrx",
            "smaug-bpe",
        ],
    ),
    (
        Rules::Pattern(QWEN2),
        &["qwen2", "deepseek-r1-qwen", "megrez", "kormo", "stablelm2", "hunyuan", "solar-open", "grok-2"],
    ),
    (Rules::Pattern(QWEN35), &["qwen35"]),
    (Rules::Pattern(TEKKEN), &["tekken"]),
    (Rules::Pattern(GPT4O), &["gpt-4o", "llama4", "kanana2", "minimax-m2"]),
];

/// Names whose vocabulary keeps a word that is a token whole, without merges, and whose texts begin with `bos` unless the file
/// says otherwise. As in llama.cpp, this is not so for `dbrx` and `smaug-bpe`.
const WHOLE_WORDS: [&str; 9] =
    ["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken"];
/// Names whose tokenizer.json composes characters first.
const COMPOSED: [&str; 2] = ["qwen2", "qwen35"];

/// Steps of a tokenizer.json before the merges.
pub(super) struct PreTokenizer {
    pub normalizer: Value,
    pub pre_tokenizer: Value,
    /// True if a word that is a token needs no merges.
    pub ignore_merges: bool,
    /// True if texts begin with `bos`, unless the file says otherwise.
    pub add_bos: bool,
}

/// Returns the pre-tokenizer of this name. The error lists the known names.
pub(super) fn named(name: &str) -> Result<PreTokenizer, String> {
    let Some((rules, _)) = NAMES.iter().find(|(_, names)| names.contains(&name)) else {
        let names: Vec<&str> = NAMES.iter().flat_map(|(_, names)| *names).copied().collect();
        let names = names.join(", ");
        return Err(format!("tokenizer.ggml.pre: unsupported pre-tokenizer {name:?}: expected one of {names}"));
    };
    let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let sequence = |steps: Vec<Value>| json!({"type": "Sequence", "pretokenizers": steps});
    let pre_tokenizer = match rules {
        Rules::Gpt2 => byte_level(true),
        Rules::Digits => sequence(vec![json!({"type": "Digits", "individual_digits": true}), byte_level(true)]),
        Rules::Pattern(pattern) => sequence(vec![split(pattern), byte_level(false)]),
        Rules::Default => sequence(DEFAULT.iter().map(|pattern| split(pattern)).chain([byte_level(false)]).collect()),
    };
    let normalizer = if COMPOSED.contains(&name) { json!({"type": "NFC"}) } else { Value::Null };
    let whole = WHOLE_WORDS.contains(&name);
    Ok(PreTokenizer { normalizer, pre_tokenizer, ignore_merges: whole, add_bos: whole })
}

/// Returns the name of a tokenizer.json's pre-tokenizer; `None` if llama.cpp has none of these rules.
pub(crate) fn name_of(file: &Value) -> Option<&'static str> {
    let own = |key: &str| file.get(key).cloned().unwrap_or_default();
    let ignore_merges = file["model"].get("ignore_merges").is_some_and(|ignore| *ignore == true);
    let (normalizer, pre_tokenizer) = (own("normalizer"), plain(own("pre_tokenizer")));
    let names = NAMES.iter().flat_map(|(_, names)| *names).copied().filter(|name| *name != "default");
    let is = |name: &&str| {
        named(name).is_ok_and(|steps| {
            steps.normalizer == normalizer
                && plain(steps.pre_tokenizer) == pre_tokenizer
                && steps.ignore_merges == ignore_merges
        })
    };
    names.into_iter().find(is)
}

/// Removes from a pre-tokenizer what does not change the tokens.
fn plain(step: Value) -> Value {
    match step {
        Value::Object(mut step) => {
            if let Some(Value::Array(steps)) = step.get_mut("pretokenizers") {
                steps.iter_mut().for_each(|step| *step = plain(step.take()));
                if let [_] = steps[..] {
                    return steps.remove(0);
                }
            }
            step.remove("trim_offsets");
            if step.get("type").is_some_and(|kind| kind == "ByteLevel") {
                step.entry("use_regex").or_insert(true.into());
            }
            Value::Object(step)
        }
        other => other,
    }
}

/// Returns the step that turns text into bytes, split by GPT-2's pattern or not.
pub(super) fn byte_level(split: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": split})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pre_tokenizer_is_known_by_what_it_does() {
        for (name, expected) in
            [("gpt-2", "gpt-2"), ("starcoder", "smollm"), ("llama3", "llama-bpe"), ("qwen2", "qwen2")]
        {
            let PreTokenizer { normalizer, pre_tokenizer, ignore_merges, .. } = named(name).unwrap();
            let mut file = json!({"normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "model": {"type": "BPE"}});
            file["model"]["ignore_merges"] = ignore_merges.into();
            assert_eq!(name_of(&file), Some(expected));
        }
        let gpt2 = json!({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false}, "model": {}});
        assert_eq!(name_of(&gpt2), Some("gpt-2"));
        let metaspace = json!({"pre_tokenizer": {"type": "Metaspace"}, "model": {}});
        assert_eq!((name_of(&metaspace), name_of(&json!({}))), (None, None));
    }
}
