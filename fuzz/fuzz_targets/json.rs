#![no_main]
//! JSON lines, or a JSON array of rows; also packed.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    for name in ["x.jsonl", "x.json.gz", "x.jsonl.zst"] {
        ngen3_fuzz::read_rows(name, bytes, &["text", "messages", "meta.tags"]);
    }
});
