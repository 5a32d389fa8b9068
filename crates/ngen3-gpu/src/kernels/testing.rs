//! A device and numbers for the tests of kernels.

use std::io::Write;
use std::sync::OnceLock;

use ngen3_engine::splitmix;

use crate::device::{Context, adapters};

/// The first adapter, opened once for all tests of a process; `None`, said aloud, on a machine without.
pub fn context() -> Option<&'static Context> {
    static CONTEXT: OnceLock<Option<Context>> = OnceLock::new();
    let open = || match adapters().first() {
        Some(adapter) => Some(Context::open(adapter).expect("an adapter that opens")),
        None => {
            // The test harness captures `eprintln!`.
            let _ = writeln!(std::io::stderr(), "SKIPPED: kernels on a GPU (no adapter; mesa-vulkan-drivers has one)");
            None
        }
    };
    CONTEXT.get_or_init(open).as_ref()
}

/// Returns values in ±1.
pub fn numbers(seed: u64, len: usize) -> Vec<f32> {
    (0..len as u64).map(|i| (splitmix(seed << 32 ^ i) >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
}

/// Compares by the largest difference, relative to the largest expected value or 1.
pub fn close(what: &str, found: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1.0, |largest: f64, x| largest.max(x.abs()));
    for (i, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        // NaN is no small difference.
        let near = (f64::from(found) - expected).abs() <= tolerance * largest;
        assert!(near, "{what}, element {i}: expected {expected}, got {found}");
    }
}
