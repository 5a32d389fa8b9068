//! Writes a tokenizer.json.

use ngen3_model::hf::Roles;
use serde_json::{Map, Value, json};

use crate::tokenizer::bpe::Bpe;
use crate::tokenizer::chars::Chars;

/// Returns a tokenizer.json with the ids of a vocabulary of bytes without gaps.
pub(in crate::tokenizer) fn write_bpe(bpe: &Bpe, roles: &Roles) -> String {
    let spellings = bpe.spellings();
    let merges: Vec<Value> = bpe
        .merges()
        .in_order()
        .into_iter()
        .map(|(left, right)| json!([spellings[left as usize], spellings[right as usize]]))
        .collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let vocab = spellings.into_iter().zip(0..).map(|(token, id): (_, u32)| (token, id));
    write(bpe.special(), [&byte_level, &byte_level, &byte_level], vocab, merges, roles)
}

/// Returns a tokenizer.json with the ids of a vocabulary of characters.
pub(in crate::tokenizer) fn write_chars(chars: &Chars, roles: &Roles) -> String {
    let vocab = chars.tokens().map(|(c, id)| (c.to_string(), id));
    let steps = [&Value::Null, &Value::Null, &json!({"type": "Fuse"})];
    write(chars.special(), steps, vocab, Vec::new(), roles)
}

/// Returns a tokenizer.json of a BPE model; `steps` are its pre-tokenizer, post-processor and decoder.
fn write(
    special: &[(String, u32)],
    [pre_tokenizer, post_processor, decoder]: [&Value; 3],
    vocab: impl Iterator<Item = (String, u32)>,
    merges: Vec<Value>,
    roles: &Roles,
) -> String {
    let added = |(content, id): &(String, u32)| {
        json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true
        })
    };
    let vocab: Map<String, Value> = vocab.map(|(token, id)| (token, id.into())).collect();
    let mut file = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": special.iter().map(added).collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": post_processor,
        "decoder": decoder,
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": false,
            "vocab": vocab,
            "merges": merges,
        },
    });
    roles.keep_in(&mut file);
    file.to_string()
}
