//! `ngen3 devices`: lists what this machine can compute on.

use ngen3_engine::Dtype;
use ngen3_model::words::count;

use crate::device::{cpu, describe};
use crate::stdout;
use crate::threads::Threads;

/// List the devices of this machine
///
/// Prints the CPU and each GPU, as --device names them: its kind, driver, the largest buffer that a kernel can be given, and what it
/// can do. A GPU's memory is not among it: no interface that all of them share reports it.
#[derive(clap::Args)]
#[command(rename_all = "snake_case", after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    threads: Threads,
}

const EXAMPLES: &str = "\
Examples:
  ngen3 devices
  ngen3 train --device gpu --variant 7M --data _data_tinyshakespeare_/data.bin";

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let threads = args.threads.count();
    let bf16 = cpu().product_gflops(Dtype::Bf16, threads, [64, 64, 64]).is_ok();
    let (path, types) = (ngen3_simd::path().name(), if bf16 { "f32, bf16" } else { "f32" });
    stdout::print(&format!("{:<7} {}, {path}; {types}\n{}", cpu().name(), count(threads, "thread"), describe()))
}
