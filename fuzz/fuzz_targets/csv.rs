#![no_main]
//! Input: CSV, TSV, or plain text.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    for name in ["x.csv", "x.tsv", "x.txt"] {
        ngen3_fuzz::read_rows(name, bytes, &["text"]);
    }
});
