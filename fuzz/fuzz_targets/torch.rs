#![no_main]
//! Input: the pickle of a `.pt` file up to its end, a dot, and the bytes of storage 0. They are in a zip file with correct lengths
//! and checksums, with the other storages of a file that PyTorch wrote.

use std::io::{Cursor, Read};
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use ngen3_model::ParamList;
use zip::ZipArchive;

const FIXTURE: &[u8] = include_bytes!("../../crates/ngen3-model/tests/fixtures/half_no_bias.pt");
const PICKLE: &str = "half_no_bias/data.pkl";
const STORAGE: &str = "half_no_bias/data/0";

/// Entry of the file: its name, its bytes and their checksum.
type Entry = (String, Vec<u8>, u32);

static ENTRIES: LazyLock<Vec<Entry>> = LazyLock::new(|| {
    let mut zip = ZipArchive::new(Cursor::new(FIXTURE)).expect("a zip file");
    let mut entries = Vec::new();
    for index in 0..zip.len() {
        let mut entry = zip.by_index(index).expect("an entry");
        let (name, mut bytes) = (entry.name().expect("a name").into_owned(), Vec::new());
        entry.read_to_end(&mut bytes).expect("its bytes");
        let crc = crc(&bytes);
        entries.push((name, bytes, crc));
    }
    entries
});

fn crc(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// Appends an entry to a zip file and to its directory.
fn add(file: &mut Vec<u8>, directory: &mut Vec<u8>, name: &str, bytes: &[u8], crc: u32) {
    let at = file.len() as u32;
    let mut head = vec![20, 0, 0, 0, 0, 0, 0, 0, 33, 0];
    head.extend(crc.to_le_bytes());
    head.extend([(bytes.len() as u32).to_le_bytes(); 2].as_flattened());
    head.extend((name.len() as u16).to_le_bytes());
    head.extend([0, 0]);
    file.extend([b"PK\x03\x04", &head[..], name.as_bytes(), bytes].concat());
    directory.extend([b"PK\x01\x02\x14\x00", &head[..], &[0; 10], &at.to_le_bytes(), name.as_bytes()].concat());
}

fuzz_target!(|bytes: &[u8]| {
    let end = bytes.iter().rposition(|&byte| byte == b'.').map_or(bytes.len(), |dot| dot + 1);
    let (pickle, storage) = bytes.split_at(end);
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, known, known_crc) in ENTRIES.iter() {
        match name.as_str() {
            PICKLE => add(&mut file, &mut directory, name, pickle, crc(pickle)),
            STORAGE if !storage.is_empty() => add(&mut file, &mut directory, name, storage, crc(storage)),
            _ => add(&mut file, &mut directory, name, known, *known_crc),
        }
    }
    let (start, count) = (file.len() as u32, (ENTRIES.len() as u16).to_le_bytes());
    file.extend(&directory);
    let sizes = [(directory.len() as u32).to_le_bytes(), start.to_le_bytes()].concat();
    file.extend([&b"PK\x05\x06\0\0\0\0"[..], &count, &count, &sizes, &[0, 0]].concat());
    if let Ok(found) = ngen3_model::fuzz::checkpoint(&file) {
        assert_eq!(found.params.len(), ParamList::new(&found.config).total());
    }
});
