#![no_main]
//! Input: the header of a `.safetensors` file, read as a checkpoint and as training state. Its correct length precedes it, and
//! as many bytes as its largest number (up to 65,536) follow it.

use libfuzzer_sys::fuzz_target;
use ngen3_fuzz::Folder;
use ngen3_model::{Checkpoint, ParamList};

fuzz_target!(|header: &str| {
    let numbers = header.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok());
    let data = numbers.filter(|&number: &usize| number <= 1 << 16).max().unwrap_or(0);
    let folder = Folder::new();
    let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![0; data]].concat();
    let path = folder.put("x.safetensors", file);
    if let Ok(found) = Checkpoint::load(&path) {
        assert_eq!(found.params.len(), ParamList::new(&found.config).total());
    }
    let _ = ngen3_train::load_state(&path);
});
