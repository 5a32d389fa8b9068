#![no_main]
//! Input: CSV, TSV or plain text, by its length.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let name = ["x.csv", "x.tsv", "x.txt"][bytes.len() % 3];
    ngen3_fuzz::read_rows(name, bytes, &["text"]);
});
