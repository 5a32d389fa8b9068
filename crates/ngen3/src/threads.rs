//! `--threads`: number of compute threads; and threads of the program's own.

use std::thread::available_parallelism;

use anyhow::Context;

/// Flag to flatten into a command's arguments.
#[derive(clap::Args, Clone, Copy, Debug)]
#[command(rename_all = "snake_case")]
pub struct Threads {
    /// Compute threads, 1 to 1024 [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

impl Threads {
    /// The number of threads, at least 1.
    pub fn count(self) -> usize {
        self.threads.map_or_else(|| available_parallelism().map_or(1, usize::from), usize::from)
    }

    /// Starts rayon's global pool with this many threads. Call once, before any work.
    pub fn start(self) -> anyhow::Result<()> {
        rayon::ThreadPoolBuilder::new().num_threads(self.count()).build_global().context("cannot start threads")
    }
}

/// Starts a thread that runs beside a command, and that nobody waits for.
///
/// # Errors
/// If the system has no room for another thread.
pub fn spawn(run: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    std::thread::Builder::new().spawn(run).map(drop).context("cannot start a thread")
}
