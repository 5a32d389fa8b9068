//! Prepares each scenario: the files before the command (old) and after it (new).

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use crate::program::Program;
use crate::scenarios::{BASE, Kind, Scenario};
use crate::trace::End;
use crate::tree::{Tree, is_events};

/// Words of the texts.
const WORDS: [&str; 16] = [
    "the", "model", "learns", "a", "text", "of", "words", "and", "then", "it", "sleeps", "more", "than", "old", "sea",
    "king",
];

/// Shape of the models.
const TINY: &str = "layers = 2\nheads = 3\nwidth = 12\nblock = 64\nbatch_size = 4\nlearning_rate = 0.01\n";

/// A scenario with its files.
#[derive(Debug)]
pub struct Stage {
    /// The scenario.
    pub scenario: &'static Scenario,
    /// Files before the command.
    pub old: Tree,
    /// Files after it.
    pub new: Tree,
    /// Files that differ between two runs of the command, which are opened but not compared.
    pub differing: BTreeSet<PathBuf>,
    /// Time that the command takes.
    pub time: Duration,
}

/// Makes the files that all scenarios start from.
///
/// # Errors
/// If a command fails.
pub fn base(program: &Program, folder: &Path) -> Result<Tree> {
    let place = folder.join("base");
    inputs().write(&place.join("work"))?;
    prepare(&place)?;
    program.succeed(&place, "tokenizer train --kind byte --out bytes.json")?;
    for line in BASE {
        program.succeed(&place, line)?;
    }
    Tree::read(&place.join("work"))
}

/// Makes the folders beside a try's `work`.
///
/// # Errors
/// If one cannot be made.
pub fn prepare(place: &Path) -> Result<()> {
    for name in ["work", "home", "tmp", "opened"] {
        let path = place.join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    }
    Ok(())
}

/// Texts, conversations and records, the same ones every time.
fn inputs() -> Tree {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut lines = |count: usize, line: fn(&mut ChaCha8Rng) -> String| {
        (0..count).map(|_| line(&mut rng) + "\n").collect::<String>()
    };
    let files = [
        ("a.txt", lines(400, |rng| words(rng, 16) + ".")),
        ("b.txt", lines(400, |rng| words(rng, 16) + ".")),
        ("rows.jsonl", lines(300, record)),
        ("old_rows.jsonl", lines(200, record)),
        ("chats.jsonl", lines(200, chat)),
        ("talk.txt", "hello\n/save said.jsonl\n".into()),
        ("tiny.toml", TINY.into()),
    ];
    Tree(files.into_iter().map(|(name, text)| (PathBuf::from(name), Some(text.into_bytes()))).collect())
}

fn words(rng: &mut ChaCha8Rng, most: usize) -> String {
    let count = rng.random_range(1..=most);
    (0..count).map(|_| *WORDS.choose(rng).unwrap_or(&"a")).collect::<Vec<_>>().join(" ")
}

fn record(rng: &mut ChaCha8Rng) -> String {
    json!({ "text": words(rng, 12) }).to_string()
}

fn chat(rng: &mut ChaCha8Rng) -> String {
    let turns = [("user", words(rng, 2)), ("assistant", words(rng, 3))];
    json!({ "messages": turns.map(|(role, content)| json!({ "role": role, "content": content })) }).to_string()
}

impl Stage {
    /// Runs the command twice from the start.
    ///
    /// # Errors
    /// If a command fails.
    pub fn new(program: &Program, base: &Tree, scenario: &'static Scenario, folder: &Path) -> Result<Self> {
        let place = folder.join(scenario.name);
        // Of an earlier campaign with the same folder.
        let _ = fs::remove_dir_all(&place);
        let start = place.join("start");
        base.write(&start.join("work"))?;
        prepare(&start)?;
        for line in scenario.old {
            program.succeed(&start, line)?;
        }
        let old = Tree::read(&start.join("work"))?;
        let mut stage = Self { scenario, new: old.clone(), old, differing: BTreeSet::new(), time: Duration::ZERO };
        if scenario.kind == Kind::Server {
            stage.new = stage.old.without_times();
            return Ok(stage);
        }
        let mut results = Vec::new();
        for name in ["first", "second"] {
            let place = place.join(name);
            stage.set_up(&place)?;
            let began = Instant::now();
            let outcome = program.finish(&place, scenario, scenario.line)?;
            stage.time = began.elapsed();
            let message = outcome.message();
            ensure!(outcome.end == End::Code(0), "{}: ngen3 {}: {message}", scenario.name, scenario.line);
            results.push(Tree::read(&place.join("work"))?.without_times());
        }
        let [first, second] = <[Tree; 2]>::try_from(results).unwrap_or_default();
        let names = |tree: &Tree| tree.0.keys().cloned().collect::<Vec<_>>();
        ensure!(names(&first) == names(&second), "{}: two runs leave other files", scenario.name);
        let differs = |name: &&PathBuf| first.file(name) != second.file(name);
        let is_log = |name: &Path| scenario.logs.iter().any(|log| Path::new(log) == name);
        let differing = first.0.keys().filter(differs).filter(|name| !is_log(name) && !is_events(name));
        stage.differing = differing.cloned().chain(scenario.timed.iter().map(PathBuf::from)).collect();
        stage.new = first;
        Ok(stage)
    }

    /// Writes the old files into a new place.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn set_up(&self, place: &Path) -> Result<()> {
        self.old.write(&place.join("work"))?;
        prepare(place)
    }
}
