#![no_main]
//! Input: a Parquet file.

use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: ngen3_fuzz::allow_panics_of_libraries(),
    |bytes: &[u8]| ngen3_fuzz::read_rows("x.parquet", bytes, &["text", "messages", "meta.tags"])
);
