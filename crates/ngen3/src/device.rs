//! `--device`: the device that a command computes on. No other file names one.

use std::ffi::OsString;
use std::fmt;
use std::str::FromStr;

use anyhow::Context;
use ngen3_cpu::Cpu;
use ngen3_engine::Device;

#[cfg(feature = "gpu")]
pub use gpu::describe;
#[cfg(not(feature = "gpu"))]
pub use without::describe;

/// Flag to flatten into the arguments of a command that trains or evaluates.
#[derive(clap::Args, Clone, Copy, Debug)]
#[command(rename_all = "snake_case")]
pub struct DeviceFlag {
    /// Device: auto (a discrete GPU, or an integrated one that multiplies faster than the CPU, otherwise the CPU), cpu, gpu (the
    /// first of ngen3 devices) or gpu:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: DeviceName,
}

/// Flag of a command that generates text, where auto is the CPU.
#[derive(clap::Args, Clone, Copy, Debug)]
#[command(rename_all = "snake_case")]
pub struct DecodeDeviceFlag {
    /// Device: auto (the CPU), cpu, gpu (the first of ngen3 devices) or gpu:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: DeviceName,
}

/// A device by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceName {
    /// The fastest.
    Auto,
    /// The CPU.
    Cpu,
    /// A GPU, by its number in `ngen3 devices`.
    Gpu(usize),
}

impl FromStr for DeviceName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "gpu" => Ok(Self::Gpu(0)),
            _ => match name.strip_prefix("gpu:").map(str::parse) {
                Some(Ok(number)) => Ok(Self::Gpu(number)),
                _ => Err("expected auto, cpu, gpu or gpu:N".into()),
            },
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Gpu(0) => f.write_str("gpu"),
            Self::Gpu(number) => write!(f, "gpu:{number}"),
        }
    }
}

impl DeviceFlag {
    /// Opens the device. `anywhere` is false for work that only the CPU does: auto is then the CPU.
    ///
    /// # Errors
    /// A GPU that does not exist, that this program was built without, or that fails.
    pub fn open(self, anywhere: bool) -> anyhow::Result<&'static dyn Device> {
        match self.device {
            DeviceName::Auto if anywhere => Ok(fastest().unwrap_or(&Cpu)),
            name => named(name),
        }
    }

    /// Flags to repeat when a run is resumed.
    pub fn again(self) -> Vec<OsString> {
        match self.device {
            DeviceName::Auto => Vec::new(),
            name => vec!["--device".into(), name.to_string().into()],
        }
    }
}

impl DecodeDeviceFlag {
    /// Opens the device.
    ///
    /// # Errors
    /// As [`DeviceFlag::open`].
    pub fn open(self) -> anyhow::Result<&'static dyn Device> {
        named(self.device)
    }
}

/// The CPU.
pub fn cpu() -> &'static dyn Device {
    &Cpu
}

fn named(name: DeviceName) -> anyhow::Result<&'static dyn Device> {
    match name {
        DeviceName::Auto | DeviceName::Cpu => Ok(&Cpu),
        DeviceName::Gpu(number) => open_gpu(number).with_context(|| format!("--device {name}")),
    }
}

#[cfg(not(feature = "gpu"))]
use without::{fastest, open_gpu};

#[cfg(feature = "gpu")]
use gpu::{fastest, open_gpu};

#[cfg(not(feature = "gpu"))]
mod without {
    use anyhow::bail;
    use ngen3_engine::Device;

    pub fn open_gpu(_: usize) -> anyhow::Result<&'static dyn Device> {
        bail!("this program was built without GPUs (cargo build --release --features gpu)")
    }

    pub fn fastest() -> Option<&'static dyn Device> {
        None
    }

    /// Describes the GPUs, one a line.
    pub fn describe() -> String {
        "gpu     none: this program was built without GPUs (cargo build --release --features gpu)\n".into()
    }
}

#[cfg(feature = "gpu")]
mod gpu {
    use anyhow::bail;
    use ngen3_cpu::Cpu;
    use ngen3_engine::{Device, Dtype};
    use ngen3_gpu::{Adapter, Gpu, adapters, may_have_gpu};
    use ngen3_model::words::memory_size;

    use crate::progress::write_line;

    pub fn open_gpu(number: usize) -> anyhow::Result<&'static dyn Device> {
        let adapters = adapters();
        let Some(adapter) = adapters.get(number) else {
            match adapters.len() {
                0 => bail!("this machine has no GPU that Vulkan, Metal or DX12 shows"),
                1 => bail!("expected gpu, the only one, got gpu:{number} (see ngen3 devices)"),
                count => bail!("expected gpu:0 to gpu:{}, got gpu:{number} (see ngen3 devices)", count - 1),
            }
        };
        if adapter.is_software() {
            write_line(&format!("note: {} is software that stands in for a GPU: correct, and slow", adapter.name()));
        }
        open(adapter)
    }

    /// Opens the GPU that auto takes, if any. A GPU that fails to open is passed over with a note.
    pub fn fastest() -> Option<&'static dyn Device> {
        let adapters = if may_have_gpu() { adapters() } else { Vec::new() };
        let adapter = adapters.iter().find(|adapter| !adapter.is_software())?;
        let chosen = open(adapter).and_then(|gpu| {
            // An integrated GPU shares the CPU's memory, and may be the slower of both.
            let shape = [1024, 512, 512];
            let rate = |device: &dyn Device| device.product_gflops(Dtype::Auto, 0, shape);
            Ok((adapter.is_discrete() || rate(gpu)? > rate(&Cpu)?).then_some(gpu))
        });
        match chosen {
            Ok(Some(gpu)) => {
                write_line(&format!("device: {} (--device cpu for the CPU)", adapter.name()));
                Some(gpu)
            }
            Ok(None) => None,
            Err(error) => {
                write_line(&format!("note: computing on the CPU, since {} fails: {error:#}", adapter.name()));
                None
            }
        }
    }

    /// A device is in use until the program ends.
    fn open(adapter: &Adapter) -> anyhow::Result<&'static dyn Device> {
        Ok(Box::leak(Box::new(Gpu::open(adapter)?)))
    }

    /// Describes the GPUs, one a line.
    pub fn describe() -> String {
        let adapters = adapters();
        if adapters.is_empty() {
            return "gpu     none that Vulkan, Metal or DX12 shows\n".into();
        }
        let line = |(number, adapter): (usize, &Adapter)| {
            let can = [
                (adapter.has_f16(), "f16"),
                (adapter.has_subgroups(), "subgroups"),
                (adapter.has_matrix_units(), "matrix units"),
            ];
            let can: Vec<_> = can.into_iter().filter_map(|(has, name)| has.then_some(name)).collect();
            format!(
                "gpu:{number:<3} {}, {}, {}, {}; buffers up to {}; {}\n",
                adapter.name(),
                adapter.kind(),
                adapter.backend(),
                adapter.driver(),
                memory_size(adapter.binding_bytes()),
                if can.is_empty() { "f32 only".into() } else { can.join(", ") },
            )
        };
        adapters.iter().enumerate().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_as_they_are_typed() {
        for (name, expected) in [
            ("auto", DeviceName::Auto),
            ("cpu", DeviceName::Cpu),
            ("gpu", DeviceName::Gpu(0)),
            ("gpu:3", DeviceName::Gpu(3)),
        ] {
            let found: DeviceName = name.parse().unwrap();
            assert_eq!((found, found.to_string().as_str()), (expected, name));
        }
        for name in ["", "GPU", "gpu:", "gpu:-1", "gpu:x", "cuda"] {
            assert_eq!(name.parse::<DeviceName>(), Err("expected auto, cpu, gpu or gpu:N".into()));
        }
    }
}
