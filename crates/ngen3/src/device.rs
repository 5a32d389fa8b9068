//! The device that commands compute on. No other file names one.

use ngen3_cpu::Cpu;
use ngen3_engine::Device;

/// The device of this machine.
pub fn device() -> &'static dyn Device {
    &Cpu
}
