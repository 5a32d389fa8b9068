//! Campaigns of the promise that nothing is lost: `scripts/campaign KIND`.
//!
//! A campaign drives the binary `ngen3` from outside, some thousand times, stops it or fails its system calls, and judges the
//! files that it leaves. Read [`scenarios`] first, the table of commands; then `judge`, the rules that their files are held to;
//! then the campaigns, a file or folder each. docs/reliability.md has their figures.

mod campaign;
mod faults;
mod judge;
mod kills;
mod power;
mod process;
mod program;
mod report;
mod scenarios;
mod server;
mod soak;
mod stage;
mod trace;
mod tree;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use campaign::Campaign;

/// Kill ngen3, cut its power and fail its system calls, and count the files that are lost
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    kind: Kind,
}

const EXAMPLES: &str =
    "Examples:\n  scripts/campaign kills --count 1000\n  scripts/campaign kills --seed 7 --only train --try 12";

#[derive(Debug, Subcommand)]
enum Kind {
    /// Kill each command by SIGKILL at random moments
    Kills {
        #[command(flatten)]
        shared: Shared,
        /// Number of tries, shared among the scenarios by their weights
        #[arg(long, default_value_t = 1000)]
        count: usize,
    },
    /// Cut the power after each system call, and let the disk keep what a file system may keep
    Power {
        #[command(flatten)]
        shared: Shared,
        /// Maximum states of a disk to try of each scenario, drawn at random; 0 tries all
        #[arg(long, default_value_t = 0)]
        most: usize,
    },
    /// Train for long in one process and in many, and serve under load
    Soak {
        #[command(flatten)]
        shared: Shared,
        /// Steps of the run
        #[arg(long, default_value_t = 100_000)]
        steps: u64,
        /// Steps between saves, and steps of each piece
        #[arg(long, default_value_t = 500)]
        every: u64,
        /// Requests to the server
        #[arg(long, default_value_t = 20_000)]
        requests: u64,
    },
    /// Fail each system call, jump the clock, delete folders, start two runs of one name
    Faults {
        #[command(flatten)]
        shared: Shared,
        /// Maximum calls of each scenario and fault that are failed, evenly spread; 0 fails every one
        #[arg(long, default_value_t = 0)]
        most: usize,
    },
}

#[derive(Debug, Args)]
struct Shared {
    /// Binary to test
    #[arg(long, value_name = "FILE")]
    ngen3: PathBuf,
    /// Random seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Scenario to run; may be repeated [default: all]
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Number of the only try to run
    #[arg(long = "try", value_name = "N")]
    number: Option<u64>,
}

impl Shared {
    /// Sets up a campaign. `arguments`: its own flags, for the line that repeats a try.
    fn start(&self, arguments: String) -> Result<Campaign> {
        let mut campaign = Campaign::new(&self.ngen3, self.seed, &self.only, self.number)?;
        campaign.arguments = arguments;
        Ok(campaign)
    }
}

fn main() -> ExitCode {
    match run(Arguments::parse().kind) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Runs a campaign; returns the number of losses.
fn run(kind: Kind) -> Result<u64> {
    let start = Instant::now();
    let (campaign, report) = match kind {
        Kind::Kills { shared, count } => {
            let campaign = shared.start(format!(" --count {count}"))?;
            let report = kills::run(&campaign, count)?;
            (campaign, report)
        }
        Kind::Power { shared, most } => {
            let campaign = shared.start(format!(" --most {most}"))?;
            let report = power::run(&campaign, most)?;
            (campaign, report)
        }
        Kind::Soak { shared, steps, every, requests } => {
            let campaign = shared.start(format!(" --steps {steps} --every {every} --requests {requests}"))?;
            let report = soak::run(&campaign, steps, every, requests)?;
            (campaign, report)
        }
        Kind::Faults { shared, most } => {
            let campaign = shared.start(format!(" --most {most}"))?;
            let report = faults::run(&campaign, most)?;
            (campaign, report)
        }
    };
    println!("\n{}\n\nseed {}, {:.0} s", report.table(), campaign.seed, start.elapsed().as_secs_f64());
    let lost = report.sum("lost");
    if lost > 0 {
        campaign.keep()?;
    }
    Ok(lost)
}
