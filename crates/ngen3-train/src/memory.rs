//! Whether a run fits the machine's memory, asked before the operating system answers by killing it.

use ngen3_model::{Config, ParamList};

use crate::Error;

/// Checks that a model, of which so many parameters learn, and one of its batches fit.
///
/// # Errors
/// [`Error::Usage`] saying how much is needed and how much there is.
pub(crate) fn check(config: &Config, learned: usize, batch_size: usize) -> Result<(), Error> {
    match total() {
        Some(there_is) => compare(at_least(config, learned, batch_size), there_is),
        None => Ok(()),
    }
}

/// Bytes that training cannot do without, whatever the engine does: each parameter, of those that learn the gradient and
/// AdamW's two moments, and the residual stream of each layer.
fn at_least(config: &Config, learned: usize, batch_size: usize) -> u64 {
    let parameters = 4 * ParamList::new(config).total() as u128 + 12 * learned as u128;
    let stream = 4 * (config.n_layer * config.n_embd) as u128 * (batch_size as u128 * config.block_size as u128);
    u64::try_from(parameters.saturating_add(stream)).unwrap_or(u64::MAX)
}

fn compare(needed: u64, there_is: u64) -> Result<(), Error> {
    if needed <= there_is {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "training this model needs at least {:.1} GB of memory, and this machine has {:.1} GB: choose a smaller model or \
         --batch_size",
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
    use ngen3_model::VARIANTS;

    use super::*;

    #[test]
    fn linux_s_own_words_are_understood() {
        let meminfo = "MemTotal:       24576000 kB\nMemFree:         1 kB\nSwapTotal:       1024 kB\n";
        assert_eq!(parse(meminfo), Some((24_576_000 + 1_024) * 1024));
        assert_eq!(parse("MemTotal: lots\n"), None);
    }

    #[test]
    fn a_model_too_large_is_told_so() {
        let largest = VARIANTS.last().unwrap().config();
        let total = |config: &Config| ParamList::new(config).total();
        let needed = at_least(&largest, total(&largest), 4);
        assert!(compare(needed, needed).is_ok());
        let error = compare(needed, 24_000_000_000).unwrap_err().to_string();
        assert!(error.contains("needs at least 108.6 GB") && error.contains("has 24.0 GB"), "{error}");
        assert!(at_least(&largest, 1_000_000, 4) < needed / 3, "where only adapters learn it takes less");
        let small = VARIANTS[0].config();
        assert!(at_least(&small, total(&small), usize::MAX) > 1 << 60, "an absurd batch does not wrap around");
    }
}
