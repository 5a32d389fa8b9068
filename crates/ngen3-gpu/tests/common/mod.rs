//! The device of the tests of whole models.

use std::io::Write;
use std::sync::OnceLock;

use ngen3_gpu::{Gpu, adapters};

/// The first adapter, opened once for all tests of a process; `None`, said aloud, on a machine without.
pub fn gpu() -> Option<&'static Gpu> {
    static GPU: OnceLock<Option<Gpu>> = OnceLock::new();
    let open = || match adapters().first() {
        Some(adapter) => Some(Gpu::open(adapter).expect("an adapter that opens")),
        None => {
            // The test harness captures `eprintln!`.
            let _ = writeln!(std::io::stderr(), "SKIPPED: models on a GPU (no adapter; mesa-vulkan-drivers has one)");
            None
        }
    };
    GPU.get_or_init(open).as_ref()
}
