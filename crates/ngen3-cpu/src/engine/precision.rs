//! Resolves an engine's options for this processor.

use ngen3_engine::{Dtype, Error, Options};
use ngen3_simd::Path;
use rayon::ThreadPool;

use crate::gemm::{Precision, tiles};

/// Returns the precision of products' operands. `auto` is bf16 if the processor multiplies it, else f32; on Arm, where bf16 was never
/// timed, it is f32.
pub fn precision(dtype: Dtype) -> Precision {
    match dtype {
        Dtype::Auto if tiles::kernel::available() => Precision::Bf16,
        Dtype::Auto | Dtype::F32 => Precision::F32,
        Dtype::Bf16 => Precision::Bf16,
    }
}

/// As [`precision`].
///
/// # Errors
/// [`Error::Input`] for a dtype that the processor does not multiply.
pub fn checked_precision(dtype: Dtype) -> Result<Precision, Error> {
    let precision = precision(dtype);
    if precision == Precision::Bf16 && !tiles::kernel::multiplies_bf16() {
        return Err(Error::Input(
            "bf16 needs AMX, AVX512-BF16 or Arm's bf16, which this processor lacks: use --dtype f32".into(),
        ));
    }
    Ok(precision)
}

/// Returns the name of the instructions on which the bits of a result depend.
pub fn kernels(precision: Precision) -> &'static str {
    match (ngen3_simd::path(), precision) {
        // Tile registers multiply bf16 only.
        (Path::Amx, Precision::F32) => Path::Avx512.name(),
        (Path::Avx512, _) if !tiles::kernel::available() => "avx512 without bf16",
        (path, _) => path.name(),
    }
}

/// Returns the number of compute threads; 0 in the options means one per core.
pub fn threads(options: Options) -> usize {
    match options.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    }
}

/// Starts a pool of compute threads; 0 means one per core.
///
/// # Errors
/// [`Error::Threads`] if they cannot be started.
pub fn pool(threads: usize) -> Result<ThreadPool, Error> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|i| format!("ngen3-{i}"))
        .build()
        .map_err(|e| Error::Threads(e.to_string()))
}
