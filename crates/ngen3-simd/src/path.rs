//! Instruction sets that kernels are compiled for, and the switch that forces one.

use std::ffi::OsStr;

use pulp::Arch;

/// Environment variable that forces a path.
const SWITCH: &str = "NGEN3_SIMD";

/// Instruction set that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// Baseline instructions of the target.
    Scalar,
    /// AVX2 with FMA, on x86-64.
    Avx2,
    /// AVX-512 F, BW, CD, DQ and VL, and BF16 and VNNI where the processor has them, on x86-64.
    Avx512,
    /// AVX-512 with BF16, and the tile registers of AMX (TILE, BF16 and INT8), on x86-64.
    Amx,
    /// NEON, on 64-bit ARM.
    Neon,
}

impl Path {
    /// All paths.
    pub const ALL: [Self; 5] = [Self::Scalar, Self::Avx2, Self::Avx512, Self::Amx, Self::Neon];

    /// Paths of the target architecture, narrowest first.
    pub const TARGET: &[Self] = if cfg!(target_arch = "x86_64") {
        &[Self::Scalar, Self::Avx2, Self::Avx512, Self::Amx]
    } else if cfg!(target_arch = "aarch64") {
        &[Self::Scalar, Self::Neon]
    } else {
        &[Self::Scalar]
    };

    /// Returns the name, as in `NGEN3_SIMD`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Amx => "amx",
            Self::Neon => "neon",
        }
    }

    /// Returns true if this processor supports the path.
    pub fn is_available(self) -> bool {
        self.arch().is_some()
    }

    /// Calls `f`, compiled for this path whatever the path of the process; `None` if the processor does not support it. `f`
    /// should be marked `#[inline(always)]`.
    ///
    /// Detects the processor at every call: for tests that compare paths, not for kernels.
    #[inline(always)]
    pub fn run<R>(self, f: impl FnOnce() -> R) -> Option<R> {
        Some(self.arch()?.dispatch(f))
    }

    pub(crate) fn arch(self) -> Option<Arch> {
        match self {
            Self::Scalar => Some(Arch::Scalar),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => pulp::x86::V3::try_new().map(Arch::V3),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => pulp::x86::V4::try_new().map(Arch::V4),
            #[cfg(target_arch = "x86_64")]
            Self::Amx if crate::amx::is_available() => Self::Avx512.arch(),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => pulp::aarch64::Neon::try_new().map(Arch::Neon),
            _ => None,
        }
    }

    /// Returns the widest path of this processor.
    pub(crate) fn widest() -> Self {
        Self::TARGET.iter().rfind(|path| path.is_available()).copied().unwrap_or(Self::Scalar)
    }
}

/// Returns the path that `NGEN3_SIMD` forces; `None` if it is unset or empty.
///
/// [`path`](crate::path) ignores a path that cannot be forced and returns the widest. A library does not print: programs call
/// this at startup and report the error.
///
/// # Errors
/// A message that names the unknown or unsupported path, and the supported ones.
pub fn forced() -> Result<Option<Path>, String> {
    std::env::var_os(SWITCH).filter(|value| !value.is_empty()).map(|value| named(&value)).transpose()
}

fn named(value: &OsStr) -> Result<Path, String> {
    let named = Path::ALL.into_iter().find(|path| value == path.name());
    let available = Path::TARGET.iter().filter(|path| path.is_available()).map(|path| path.name());
    let available = || available.collect::<Vec<_>>().join(", ");
    match named {
        Some(path) if path.is_available() => Ok(path),
        Some(path) => {
            Err(format!("{SWITCH}={}: not supported by this processor: expected one of {}", path.name(), available()))
        }
        None => Err(format!("unknown {SWITCH} \"{}\": expected one of {}", value.display(), available())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_forced_by_its_name_or_refused_with_the_names_there_are() {
        for path in Path::ALL {
            let found = named(OsStr::new(path.name()));
            if path.is_available() {
                assert_eq!(found, Ok(path));
                assert_eq!(path.run(|| 7), Some(7));
            } else {
                let error = found.expect_err("a path that does not run");
                assert!(
                    error.starts_with(&format!("NGEN3_SIMD={}: ", path.name())) && error.contains("scalar"),
                    "{error}"
                );
                assert_eq!(path.run(|| 7), None);
            }
        }
        for unknown in ["avx", "AVX2", " avx2", "widest"] {
            let error = named(OsStr::new(unknown)).expect_err("no such path");
            assert!(error.starts_with(&format!("unknown NGEN3_SIMD \"{unknown}\": expected one of scalar")), "{error}");
        }
    }

    #[test]
    fn the_process_takes_the_forced_path_or_the_widest() {
        assert_eq!(crate::path(), forced().ok().flatten().unwrap_or(Path::widest()));
        // What plain loops are compiled for is no narrower than the vectors that the processor has.
        let vectors = |arch: Option<Arch>| arch.map(|arch| std::mem::discriminant(&arch));
        assert_eq!(vectors(Path::widest().arch()), vectors(Some(Arch::new())));
    }
}
