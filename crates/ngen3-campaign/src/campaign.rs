//! Settings that all campaigns share: the program, the seed, the scenarios, and the folder for their tries.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::program::Program;
use crate::scenarios::{ALL, Kind, Scenario};
use crate::stage::{self, Stage};
use crate::tree::Tree;

/// A campaign that runs.
#[derive(Debug)]
pub struct Campaign {
    /// Program under test.
    pub program: Program,
    /// Seed of all that is random.
    pub seed: u64,
    /// Scenarios to run.
    pub scenarios: Vec<&'static Scenario>,
    /// The only try to run.
    pub only_try: Option<u64>,
    /// Arguments that a repetition needs.
    pub arguments: String,
    folder: TempDir,
    root: PathBuf,
    base: Tree,
}

impl Campaign {
    /// Makes the files that all scenarios start from.
    ///
    /// # Errors
    /// If the program does not run, or there is no such scenario.
    pub fn new(program: &Path, seed: u64, only: &[String], only_try: Option<u64>) -> Result<Self> {
        let program = Program::new(program)?;
        for name in only {
            let names: Vec<_> = ALL.iter().map(|scenario| scenario.name).collect();
            ensure!(names.contains(&name.as_str()), "unknown scenario {name}: expected one of {}", names.join(", "));
        }
        let chosen = |scenario: &&Scenario| only.is_empty() || only.iter().any(|name| name == scenario.name);
        let folder = tempfile::Builder::new().prefix("ngen3-campaign-").tempdir()?;
        let root = folder.path().canonicalize()?;
        let base = stage::base(&program, &root)?;
        let scenarios = ALL.iter().filter(chosen).collect();
        Ok(Self { program, seed, scenarios, only_try, arguments: String::new(), folder, root, base })
    }

    /// Prepares a scenario. `None`, aloud, where it cannot run.
    ///
    /// # Errors
    /// If its commands fail.
    pub fn stage(&self, scenario: &'static Scenario) -> Result<Option<Stage>> {
        if scenario.kind == Kind::Ranks && !self.program.has_ranks() {
            println!("SKIPPED: {} (needs a build with the feature mpi, and mpirun)", scenario.name);
            return Ok(None);
        }
        let stage = Stage::new(&self.program, &self.base, scenario, &self.root)?;
        let names: Vec<_> = stage.differing.iter().map(|name| name.display().to_string()).collect();
        if scenario.kind == Kind::Exact && !names.is_empty() {
            println!(
                "{}: differ between two runs in times, so only their arrays are compared: {}",
                scenario.name,
                names.join(", ")
            );
        }
        Ok(Some(stage))
    }

    /// Returns the files that all scenarios start from.
    pub fn base(&self) -> &Tree {
        &self.base
    }

    /// Returns the folder of a try.
    pub fn place(&self, scenario: &str, number: u64) -> PathBuf {
        self.root.join(scenario).join(if number == u64::MAX { "count".into() } else { format!("try-{number}") })
    }

    /// Removes a folder of a try.
    pub fn clean(&self, place: &Path) {
        // What stays is removed with the campaign's folder.
        let _ = fs::remove_dir_all(place);
    }

    /// Returns the command that repeats a scenario, or one try of it.
    pub fn again(&self, kind: &str, scenario: &str, number: Option<u64>) -> String {
        let number = number.map(|number| format!(" --try {number}")).unwrap_or_default();
        format!("scripts/campaign {kind} --seed {}{} --only {scenario}{number}", self.seed, self.arguments)
    }

    /// Keeps the folder of a campaign that lost something.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn keep(self) -> Result<()> {
        let folder = self.folder.keep();
        println!("kept: {}", folder.canonicalize().context("the folder is gone")?.display());
        Ok(())
    }
}

/// Returns the seed of a try.
pub fn seed_of(seed: u64, scenario: &str, number: u64) -> u64 {
    // FNV-1a over all three.
    let bytes = seed.to_le_bytes().into_iter().chain(scenario.bytes()).chain(number.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}
