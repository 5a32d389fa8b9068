//! Memory estimate of a run, checked before the operating system kills it.

use ngen3_engine::{Device, Workload};
use ngen3_model::Config;
use ngen3_model::words::gigabytes;
use sysinfo::System;

use crate::{Error, TrainSettings};

/// Returns the resident memory of this process in GiB; `None` if `/proc/self/status` does not report it.
pub(crate) fn resident_gib() -> Option<f32> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: f32 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1_048_576.0)
}

/// Checks that training fits in the machine's memory. `held` of the needed bytes are allocated already; the run needs `extra` bytes
/// more than one process with a batch a step, or, if negative, less.
///
/// Returns the needed bytes, and a note if the machine has enough memory but too little is free.
///
/// # Errors
/// [`Error::Usage`] with the needed and the available memory; as [`Device::memory`].
pub(crate) fn check(
    device: &dyn Device,
    config: &Config,
    workload: Workload<'_>,
    settings: &TrainSettings,
    held: u64,
    extra: i64,
) -> Result<(u64, Option<String>), Error> {
    let needed = |recompute| {
        let all = needed(device, config, workload, &TrainSettings { recompute, ..settings.clone() });
        all.map(|bytes| bytes.saturating_add_signed(extra))
    };
    let (as_asked, least) = (needed(settings.recompute)?, needed(true)?);
    if device.has_own_memory() {
        return Ok((as_asked, None));
    }
    let Some(Memory { total, free }) = Memory::now() else { return Ok((as_asked, None)) };
    compare(as_asked, least, matches!(workload, Workload::Distill { .. }), total).map_err(Error::Usage)?;
    let note = (as_asked.saturating_sub(held) > free).then(|| {
        let recompute =
            if least < as_asked { format!("; --recompute needs {}", gigabytes(least)) } else { String::new() };
        format!(
            "the run needs about {} of memory, and {} is free{recompute}",
            gigabytes(as_asked),
            gigabytes(free + held)
        )
    });
    Ok((as_asked, note))
}

/// Checks that `needed` bytes fit in the machine's memory.
///
/// # Errors
/// [`Error::Usage`] with the needed and the available memory.
pub fn check_fits(needed: u64) -> Result<(), Error> {
    Memory::now().map_or(Ok(()), |memory| compare(needed, needed, false, memory.total).map_err(Error::Usage))
}

/// Estimates the bytes of memory for training: the device's, and the tokens and targets of a batch.
fn needed(
    device: &dyn Device,
    config: &Config,
    workload: Workload<'_>,
    settings: &TrainSettings,
) -> Result<u64, Error> {
    let engines = device.memory(config, workload, settings.options())?;
    let tokens = (settings.batch_size as u64).saturating_mul(config.block_size as u64);
    Ok(engines.saturating_add(tokens.saturating_mul(16)))
}

fn compare(needed: u64, least: u64, taught: bool, total: u64) -> Result<(), String> {
    if needed <= total {
        return Ok(());
    }
    let teacher = if taught { " beside its teacher" } else { "" };
    let start = format!(
        "training this model{teacher} needs about {} of memory, but this machine has {}",
        gigabytes(needed),
        gigabytes(total)
    );
    Err(match (least <= total, least < needed) {
        (true, _) => format!("{start}; with --recompute it needs {}", gigabytes(least)),
        (false, true) => {
            format!(
                "{start}; even with --recompute it needs {}; choose a smaller model or --batch_size",
                gigabytes(least)
            )
        }
        (false, false) => format!("{start}; choose a smaller model or --batch_size"),
    })
}

/// Memory and swap in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Memory {
    total: u64,
    /// Available to new programs.
    free: u64,
}

impl Memory {
    /// Queries the operating system; `None` if the memory is unknown.
    fn now() -> Option<Self> {
        let mut system = System::new().ok()?;
        system.refresh_memory();
        let total = system.total_memory();
        (total > 0)
            .then(|| Self { total: total + system.total_swap(), free: system.available_memory() + system.free_swap() })
    }
}

#[cfg(test)]
mod tests {
    use ngen3_cpu::Cpu;
    use ngen3_engine::Quant;
    use ngen3_model::{Lora, ParamList, VARIANTS};

    use super::*;
    use crate::testing::settings;

    #[test]
    #[cfg(target_os = "linux")]
    fn memory_and_swap_are_those_that_linux_says() {
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap();
        let bytes = |name: &str| {
            let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
            line.trim().strip_suffix("kB").unwrap().trim().parse::<u64>().unwrap() * 1024
        };
        let Memory { total, free } = Memory::now().unwrap();
        assert_eq!(total, bytes("MemTotal") + bytes("SwapTotal"));
        assert!(0 < free && free <= total, "{free} of {total}");
    }

    #[test]
    fn a_model_too_large_is_told_so_and_what_helps() {
        const GB: u64 = 1_000_000_000;
        assert!(compare(3 * GB, 2 * GB, false, 3 * GB).is_ok());
        let taught = compare(4 * GB, 2 * GB, true, 3 * GB).unwrap_err();
        assert!(taught.starts_with("training this model beside its teacher needs about 4.0 GB"), "{taught}");
        assert!(check_fits(1).is_ok());
        if Memory::now().is_some() {
            let error = check_fits(u64::MAX).unwrap_err().to_string();
            assert!(error.contains("but this machine has") && error.contains("smaller model"), "{error}");
        }
        let error = |needed, least| compare(needed * GB, least * GB, false, 24 * GB).unwrap_err();
        let start = "training this model needs about 30.0 GB of memory, but this machine has 24.0 GB";
        assert_eq!(error(30, 20), format!("{start}; with --recompute it needs 20.0 GB"));
        let even = "even with --recompute it needs 25.0 GB; choose a smaller model or --batch_size";
        assert_eq!(error(30, 25), format!("{start}; {even}"));
        assert_eq!(error(30, 30), format!("{start}; choose a smaller model or --batch_size"));
    }

    #[test]
    fn what_a_run_needs_follows_from_how_it_trains() {
        let largest = VARIANTS.last().unwrap().config();
        let plain = settings(1);
        let batch_size = plain.batch_size;
        let train = Workload::Train { batch_size };
        let of =
            |config: &Config, workload, settings: &TrainSettings| needed(&Cpu, config, workload, settings).unwrap();
        let whole = of(&largest, train, &plain);
        assert!(whole > 100_000_000_000, "{whole}");
        let recomputed = of(&largest, train, &TrainSettings { recompute: true, ..plain.clone() });
        assert!(recomputed < whole - whole / 100, "{recomputed} of {whole}");
        let lora = Lora { rank: 8, alpha: 8.0, targets: Default::default() };
        assert!(
            of(&largest, Workload::Adapt { batch_size, lora: &lora }, &plain) < whole / 2,
            "training only adapters takes less"
        );
        let small = VARIANTS[0].config();
        let taught = |quant| of(&small, Workload::Distill { batch_size, teacher: &largest, quant }, &plain);
        assert!(taught(Quant::None) > 4 * ParamList::new(&largest).total() as u64, "the teacher is in memory too");
        let (in_bf16, in_int8) = (taught(Quant::None), taught(Quant::Int8));
        assert!(in_int8 <= in_bf16 && of(&small, train, &plain) < in_int8, "{in_int8} {in_bf16}");
        let absurd = TrainSettings { batch_size: usize::MAX, ..plain };
        for workload in [
            Workload::Train { batch_size: usize::MAX },
            Workload::Distill { batch_size: usize::MAX, teacher: &largest, quant: Quant::Int8 },
        ] {
            assert!(of(&small, workload, &absurd) > 1 << 60, "an absurd batch size does not wrap around");
        }
    }
}
