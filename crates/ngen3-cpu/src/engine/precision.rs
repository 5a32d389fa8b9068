//! The options of an engine on this processor.

use ngen3_engine::{Dtype, Error, Options};
use rayon::ThreadPool;

use crate::gemm::{Precision, tiles};

/// Precision that products round their operands to.
pub fn precision(dtype: Dtype) -> Precision {
    match dtype {
        Dtype::Auto if tiles::kernel::available() => Precision::Bf16,
        Dtype::Auto | Dtype::F32 => Precision::F32,
        Dtype::Bf16 => Precision::Bf16,
    }
}

/// Number of threads that compute.
pub fn threads(options: Options) -> usize {
    match options.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    }
}

/// The threads that compute; 0 is one for each core.
///
/// # Errors
/// [`Error::Threads`] when they cannot be started.
pub fn pool(threads: usize) -> Result<ThreadPool, Error> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|i| format!("ngen3-{i}"))
        .build()
        .map_err(|e| Error::Threads(e.to_string()))
}
