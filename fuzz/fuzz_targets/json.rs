#![no_main]
//! Input: JSON Lines, or a JSON array of records; also as gzip and zstd.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    for name in ["x.jsonl", "x.json.gz", "x.jsonl.zst"] {
        ngen3_fuzz::read_rows(name, bytes, &["text", "messages", "meta.tags"]);
    }
});
