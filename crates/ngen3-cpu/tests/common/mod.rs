//! Messages that the tests of the whole model share.

use std::io::Write;
use std::sync::Once;

/// Says aloud what a test leaves out: past the harness, which would keep it to itself.
pub fn skipped(what: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {what}");
}

/// Says, once, that tests leave out bf16: the processor has no products in it, or a narrower path is forced.
pub fn skipped_bf16() {
    static SAID: Once = Once::new();
    SAID.call_once(|| skipped(&format!("products in bf16, with vectors of {}", ngen3_simd::path().name())));
}
