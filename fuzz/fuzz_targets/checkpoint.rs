#![no_main]
//! Input: a whole `.pt` or `.safetensors` file.

use libfuzzer_sys::fuzz_target;
use ngen3_fuzz::Folder;
use ngen3_model::{Checkpoint, ParamList};

fuzz_target!(|bytes: &[u8]| {
    let folder = Folder::shared();
    if let Ok(found) = Checkpoint::load(&folder.put("x.pt", bytes)) {
        assert_eq!(found.params.len(), ParamList::new(&found.config).total());
    }
});
