//! Judges a folder in which a command was stopped: each file is the old or the new one and opens, and the work can be finished.

use std::fs;
use std::path::Path;

use crate::program::Program;
use crate::scenarios::Kind;
use crate::stage::Stage;
use crate::trace::End;
use crate::tree::{Tree, is_events, is_temporary, log_lines};

/// State of the files after a command was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// All are the old ones.
    Old,
    /// All are the new ones.
    New,
    /// Some are old and some new, or a run was saved part of the way.
    Between,
}

/// Compares the files of a folder with the old and the new ones. With `whole_lines`, logs must hold lines of the whole run, but for
/// the last; a power failure can damage what was not synced.
///
/// # Errors
/// Names the file that is lost.
pub fn compare(stage: &Stage, tree: &Tree, whole_lines: bool) -> Result<Found, String> {
    let scenario = stage.scenario;
    let (tree, old) = (tree.without_times(), stage.old.without_times());
    let among = |names: &[&str], name: &Path| names.iter().any(|listed| Path::new(listed) == name);
    let (mut all_old, mut all_new) = (true, true);
    for (name, content) in tree.0.iter().filter(|(name, _)| !is_temporary(name)) {
        let shown = name.display();
        let Some(content) = content else { continue };
        let (was, becomes) = (old.file(name), stage.new.file(name));
        if was.is_none() && becomes.is_none() && scenario.kind != Kind::Timed {
            return Err(format!("{shown} is a stray file"));
        }
        let same = (was == Some(content), becomes == Some(content));
        if is_events(name) || same.0 && same.1 {
            continue;
        }
        all_old &= same.0;
        all_new &= same.1;
        if same.0 || same.1 || among(scenario.saved, name) || stage.differing.contains(name) {
            continue;
        }
        if among(scenario.logs, name) {
            if !whole_lines {
                continue;
            }
            let lines = log_lines(content).map_err(|error| format!("{shown}: {error:#}"))?;
            let begins = |whole: Option<&[u8]>| {
                whole.and_then(|whole| log_lines(whole).ok()).is_some_and(|whole| whole.starts_with(&lines))
            };
            if begins(was) || begins(becomes) || scenario.kind != Kind::Exact {
                continue;
            }
            return Err(format!("{shown} has lines that the whole run has not"));
        }
        if scenario.kind == Kind::Timed {
            continue;
        }
        return Err(format!("{shown} ({} bytes) is neither the old nor the new one", content.len()));
    }
    for (name, content) in &stage.new.0 {
        all_new &= tree.0.contains_key(name);
        let kept = content.is_some() && old.file(name).is_some() && !is_events(name);
        if kept && tree.file(name).is_none() {
            return Err(format!("{} is gone", name.display()));
        }
    }
    all_old &= old.0.keys().all(|name| tree.0.contains_key(name));
    if let Some(whole) = scenario.whole {
        let part = |tree: &Tree| tree.0.clone().into_iter().filter(|(name, _)| name.starts_with(whole)).collect();
        let (found, was, becomes): (Vec<_>, Vec<_>, Vec<_>) = (part(&tree), part(&old), part(&stage.new));
        if found != was && found != becomes {
            return Err(format!("the folder {whole} is neither the old nor the new one"));
        }
    }
    Ok(match (all_old, all_new) {
        (_, true) => Found::New,
        (true, false) => Found::Old,
        _ => Found::Between,
    })
}

/// Opens the files of a place with the commands that read them. Returns false if one is refused with the advice to make the
/// files again, which is how a dataset of old and new files is recognised.
///
/// # Errors
/// Names the command that fails.
pub fn open(program: &Program, stage: &Stage, place: &Path) -> Result<bool, String> {
    for (path, line) in stage.scenario.opens {
        if !place.join("work").join(path).exists() {
            continue;
        }
        let outcome = program.run(place, line).map_err(|error| format!("{error:#}"))?;
        // Made by a command that opens a tokenizer.
        let _ = fs::remove_dir_all(place.join("work/_data_opened_"));
        if outcome.end == End::Code(1) && outcome.message().ends_with("tokenize again") {
            return Ok(false);
        }
        if outcome.end != End::Code(0) {
            return Err(format!("{path} does not open: {:?}: {}", outcome.end, outcome.message()));
        }
    }
    Ok(true)
}

/// Returns the command that finishes the work in a place.
pub fn next_line(stage: &Stage, place: &Path) -> &'static str {
    let work = place.join("work");
    match stage.scenario.resume {
        Some((path, line)) if work.join(path).exists() => return line,
        _ => {}
    }
    stage.scenario.line
}

/// Finishes the work in a place, and compares all files with the new ones.
///
/// # Errors
/// Names what fails or differs.
pub fn finish(program: &Program, stage: &Stage, place: &Path) -> Result<(), String> {
    let line = next_line(stage, place);
    let outcome = program.finish(place, stage.scenario, line).map_err(|error| format!("{error:#}"))?;
    if outcome.end != End::Code(0) {
        return Err(format!("ngen3 {line}: {:?}: {}", outcome.end, outcome.message()));
    }
    finished(stage, place)
}

/// Returns the arrays of a file of safetensors, without the header that holds times; nothing of another file.
fn arrays(content: &[u8]) -> &[u8] {
    let (Some(len), Some((_, rest))) = (content.first_chunk::<8>(), content.split_at_checked(8)) else { return &[] };
    let header = usize::try_from(u64::from_le_bytes(*len)).unwrap_or(usize::MAX);
    rest.get(header..).unwrap_or_default()
}

/// Compares all files of a place with the new ones.
///
/// # Errors
/// Names what differs.
pub fn finished(stage: &Stage, place: &Path) -> Result<(), String> {
    let tree = Tree::read(&place.join("work")).map_err(|error| format!("{error:#}"))?;
    same(stage, &tree)?;
    let left = fs::read_dir(place.join("tmp")).map_or(0, |entries| entries.count());
    // The launcher of ranks leaves some there.
    if left > 0 && stage.scenario.kind != Kind::Ranks {
        return Err(format!("{left} stray files in the folder for temporary files"));
    }
    Ok(())
}

/// Compares the files that are on a disk after a power failure at the end of a command with the new ones.
///
/// # Errors
/// Names what differs.
pub fn durable(stage: &Stage, tree: &Tree) -> Result<(), String> {
    let mut kept = tree.clone();
    // A folder whose removal is not durable, or a temporary file, is removed by the next run.
    kept.0.retain(|name, content| !is_temporary(name) && (content.is_some() || stage.new.0.contains_key(name)));
    same(stage, &kept).map_err(|reason| format!("not durable: {reason}"))
}

fn same(stage: &Stage, tree: &Tree) -> Result<(), String> {
    let (scenario, tree) = (stage.scenario, tree.without_times());
    for name in tree.0.keys() {
        if is_temporary(name) || !stage.new.0.contains_key(name) && scenario.kind != Kind::Timed {
            return Err(format!("{} is a stray file ", name.display()));
        }
    }
    // A run that chose by its time may have been finished by another command, which leaves less.
    let needed = |name: &Path| {
        scenario.kind != Kind::Timed || scenario.saved.first().is_some_and(|first| Path::new(first) == name)
    };
    for (name, new) in stage.new.0.iter().filter(|(name, _)| needed(name)) {
        let shown = name.display();
        let Some(found) = tree.0.get(name) else {
            return Err(format!("{shown} is missing "));
        };
        let (Some(found), Some(new)) = (found, new) else { continue };
        let is_log = scenario.logs.iter().any(|log| Path::new(log) == name);
        let same = if is_events(name) || scenario.kind == Kind::Timed {
            true
        } else if stage.differing.contains(name) {
            arrays(found) == arrays(new)
        } else if is_log {
            let lines = |content: &[u8]| log_lines(content).map_err(|error| format!("{shown}: {error:#}"));
            found.ends_with(b"\n") && lines(found)? == lines(new)?
        } else {
            found == new
        };
        if !same {
            return Err(format!("{shown} is not the one of a run that was never stopped"));
        }
    }
    Ok(())
}
