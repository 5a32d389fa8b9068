//! Whether a run fits the machine's memory, asked before the operating system answers by killing it.

use crate::Error;

/// Bytes that a parameter needs in training: itself, its gradient and AdamW's two moments in f32.
const BYTES_PER_PARAMETER: u64 = 16;

/// Checks that parameters, gradients and moments fit; activations come on top, and the engine answers for them.
///
/// # Errors
/// [`Error::Usage`] saying how much is needed and how much there is.
pub(crate) fn check(parameters: usize) -> Result<(), Error> {
    match total() {
        Some(there_is) => compare(parameters as u64 * BYTES_PER_PARAMETER, there_is),
        None => Ok(()),
    }
}

fn compare(needed: u64, there_is: u64) -> Result<(), Error> {
    if needed <= there_is {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "training this model needs {:.1} GB of memory for its parameters, gradients and moments, and this machine has \
         {:.1} GB: choose a smaller model",
        needed as f64 / 1e9,
        there_is as f64 / 1e9
    )))
}

/// Bytes of memory and swap, where the system says.
fn total() -> Option<u64> {
    parse(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

/// `MemTotal` and `SwapTotal` of Linux's /proc/meminfo, which counts in KiB.
fn parse(meminfo: &str) -> Option<u64> {
    let kib = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    };
    (kib("MemTotal")? + kib("SwapTotal").unwrap_or(0)).checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_s_own_words_are_understood() {
        let meminfo = "MemTotal:       24576000 kB\nMemFree:         1 kB\nSwapTotal:       1024 kB\n";
        assert_eq!(parse(meminfo), Some((24_576_000 + 1_024) * 1024));
        assert_eq!(parse("MemTotal: lots\n"), None);
    }

    #[test]
    fn a_model_too_large_is_told_so() {
        assert!(compare(10, 10).is_ok());
        let error = compare(106_400_000_000, 24_000_000_000).unwrap_err().to_string();
        assert!(error.contains("needs 106.4 GB") && error.contains("has 24.0 GB"), "{error}");
    }
}
