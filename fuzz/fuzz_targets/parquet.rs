#![no_main]
//! Input: a Parquet file, whose footer keeps its length and its magic bytes while either it or the pages change.

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

/// Bytes after the footer: its length and `PAR1`.
const END: usize = 8;

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let footer =
        data[..size].last_chunk::<END>().and_then(|end| end.first_chunk()).map(|len| u32::from_le_bytes(*len) as usize);
    let Some(start) = footer.and_then(|len| (size - END).checked_sub(len)).filter(|_| seed % 4 > 0) else {
        return fuzzer_mutate(data, size, max_size);
    };
    let mut parts = [data[..start].to_vec(), data[start..size - END].to_vec()];
    let room = max_size - size;
    // The footer twice as often: it says where everything is.
    let part = &mut parts[usize::from(seed % 4 > 1)];
    let len = part.len();
    part.resize(len + room, 0);
    let len = fuzzer_mutate(part, len, len + room);
    part.truncate(len);
    let [pages, footer] = parts;
    let file = [&pages[..], &footer, &(footer.len() as u32).to_le_bytes(), b"PAR1"].concat();
    data[..file.len()].copy_from_slice(&file);
    file.len()
});

fuzz_target!(
    init: ngen3_fuzz::allow_panics_of_libraries(),
    |bytes: &[u8]| ngen3_fuzz::read_rows("x.parquet", bytes, &["text", "messages", "meta.tags"])
);
