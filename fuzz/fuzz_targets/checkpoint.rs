#![no_main]
//! Input: a whole `.pt` or `.safetensors` file.

use libfuzzer_sys::fuzz_target;
use ngen3_model::ParamList;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(found) = ngen3_model::fuzz::checkpoint(bytes) {
        assert_eq!(found.params.len(), ParamList::new(&found.config).total());
    }
});
