#![no_main]
//! Input: JSON Lines, or a JSON array of records; also as gzip and zstd.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let name = match bytes {
        [0x1f, 0x8b, ..] => "x.json.gz",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "x.jsonl.zst",
        _ => "x.jsonl",
    };
    ngen3_fuzz::read_rows(name, bytes, &["text", "messages", "meta.tags"]);
});
