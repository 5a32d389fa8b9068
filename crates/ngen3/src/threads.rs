//! `--threads`: how many threads a command computes with.

use std::num::NonZeroUsize;

use anyhow::Context;

/// The flag, to be flattened into a command's arguments.
#[derive(clap::Args, Clone, Copy, Debug)]
#[command(rename_all = "snake_case")]
pub struct Threads {
    /// Threads to compute with [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
}

impl Threads {
    /// Starts rayon's global pool with this many threads; call once, before any work. Returns the number.
    pub fn start(self) -> anyhow::Result<usize> {
        let mut pool = rayon::ThreadPoolBuilder::new();
        if let Some(threads) = self.threads {
            pool = pool.num_threads(threads.get());
        }
        pool.build_global().context("cannot start threads")?;
        Ok(rayon::current_num_threads())
    }
}
