#![no_main]
//! Input: the pickle of a `.pt` file, in a zip with correct checksums and the storages of a file written by PyTorch.

use std::io::{Cursor, Read, Write};
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use ngen3_fuzz::Folder;
use ngen3_model::{Checkpoint, ParamList};
use zip::write::SimpleFileOptions;
use zip::{ZipArchive, ZipWriter};

const FIXTURE: &[u8] = include_bytes!("../../crates/ngen3-model/tests/fixtures/half_no_bias.pt");
const PICKLE: &str = "half_no_bias/data.pkl";

/// Names and contents of the fixture's entries, except the pickle.
static ENTRIES: LazyLock<Vec<(String, Vec<u8>)>> = LazyLock::new(|| {
    let mut zip = ZipArchive::new(Cursor::new(FIXTURE)).expect("a zip file");
    let mut entries = Vec::new();
    for index in 0..zip.len() {
        let mut entry = zip.by_index(index).expect("an entry");
        let (name, mut bytes) = (entry.name().expect("a name").into_owned(), Vec::new());
        entry.read_to_end(&mut bytes).expect("its bytes");
        if name != PICKLE {
            entries.push((name, bytes));
        }
    }
    entries
});

fuzz_target!(|pickle: &[u8]| {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let others = ENTRIES.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice()));
    for (name, bytes) in others.chain([(PICKLE, pickle)]) {
        zip.start_file(name, SimpleFileOptions::default()).expect("a new entry");
        zip.write_all(bytes).expect("memory");
    }
    let folder = Folder::new();
    if let Ok(found) = Checkpoint::load(&folder.put("x.pt", zip.finish().expect("memory").into_inner())) {
        assert_eq!(found.params.len(), ParamList::new(&found.config).total());
    }
});
