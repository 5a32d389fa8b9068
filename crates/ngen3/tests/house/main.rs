//! Checks that dependencies point down only, between crates and between the files of a crate, and that `unsafe` stands only where it
//! may; docs/house.md and docs/reliability.md give the reasons.

mod arrows;
mod cycles;
mod made_up;
mod rooms;
mod tree;
mod unsafe_code;

use std::fs;
use std::path::{Path, PathBuf};

#[test]
fn no_file_of_a_crate_leads_back_to_itself() {
    let crates = crates(&root()).unwrap();
    let mut found = Vec::new();
    for folder in &crates {
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        found.extend(report(&folder.join("src")).unwrap().into_iter().map(|cycle| format!("{name}: {cycle}")));
    }
    assert!(crates.len() >= 9, "not all crates were seen: {crates:?}");
    assert!(found.is_empty(), "{} cycles (see docs/house.md):\n\n{}", found.len(), found.join("\n"));
}

#[test]
fn no_crate_uses_one_that_stands_beside_or_above_it() {
    let findings = rooms::check(&root()).unwrap();
    let notes = findings.notes.join("\n");
    println!("{notes}");
    assert!(findings.wrong.is_empty(), "see docs/house.md:\n\n{}\n{notes}", findings.wrong.join("\n"));
}

#[test]
fn unsafe_stands_where_it_may_and_the_docs_count_it() {
    let found = unsafe_code::find(&crates(&root()).unwrap());
    assert!(found.len() > 10, "not all files were seen: {found:?}");
    assert_eq!(unsafe_code::misplaced(&found), Vec::<&str>::new(), "only kernels and foreign functions may be unsafe");
    let table = unsafe_code::table(&found);
    let docs = fs::read_to_string(root().join("docs/reliability.md")).unwrap();
    assert!(docs.contains(&table), "docs/reliability.md: expected this table\n\n{table}");
}

/// Root folder of the workspace.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Folders of a workspace's crates, sorted.
fn crates(root: &Path) -> Result<Vec<PathBuf>, String> {
    let folder = root.join("crates");
    let entries = fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut crates: Vec<_> = paths.filter(|path| path.join("Cargo.toml").is_file()).collect();
    crates.sort();
    Ok(crates)
}

/// Describes each cycle between the files of a crate, with the first line behind each arrow.
fn report(src: &Path) -> Result<Vec<String>, String> {
    let arrows = arrows::find(src)?;
    let describe = |cycle: Vec<String>| {
        let places = cycle.iter().zip(cycle.iter().cycle().skip(1)).map(|(from, to)| {
            let place = &arrows[from][to];
            format!("    {from}:{} uses {}\n", place.line, place.path)
        });
        format!("{}\n{}", drawn(&cycle), places.collect::<String>())
    };
    Ok(cycles::find(&arrows).into_iter().map(describe).collect())
}

/// `a → b → a`.
fn drawn(cycle: &[String]) -> String {
    cycle.iter().chain(cycle.first()).map(String::as_str).collect::<Vec<_>>().join(" → ")
}
