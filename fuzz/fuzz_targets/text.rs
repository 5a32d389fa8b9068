#![no_main]
//! Input: a byte that selects the encoding, the separator and whether end-of-text tokens separate documents; and text.

use libfuzzer_sys::fuzz_target;
use ngen3_data::source::SplitBy;
use ngen3_fuzz::{Folder, read_text};

const ENCODINGS: [&str; 6] = ["utf-8", "utf-16le", "utf-16be", "cp1252", "gbk", "iso-2022-jp"];

fuzz_target!(|bytes: &[u8]| {
    let Some((&choice, text)) = bytes.split_first() else { return };
    let path = Folder::shared().put("x.txt", text);
    let by = match choice >> 5 & 3 {
        0 => SplitBy::Document,
        1 => SplitBy::Paragraph,
        2 => SplitBy::Line,
        _ => SplitBy::Separator("<|\n".into()),
    };
    let encoding = ENCODINGS.get(usize::from(choice & 7)).map(|name| name.parse().expect("a known encoding"));
    read_text(&path, encoding, by, choice & 0x80 > 0);
});
