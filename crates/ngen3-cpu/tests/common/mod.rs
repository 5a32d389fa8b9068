//! Messages shared by the tests of the whole model.

use std::io::Write;
use std::sync::Once;

/// Reports a skipped check on stderr directly, since the test harness captures `eprintln!`.
pub fn skipped(what: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {what}");
}

/// Reports, once, that tests skip bf16: the processor lacks bf16 products, or `NGEN3_SIMD` forces a narrower path.
pub fn skipped_bf16() {
    static SAID: Once = Once::new();
    SAID.call_once(|| skipped(&format!("products in bf16 (vector path: {})", ngen3_simd::path().name())));
}
