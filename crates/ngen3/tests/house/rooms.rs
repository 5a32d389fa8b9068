//! Dependencies between crates, from their Cargo.toml, checked against a fixed order.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use toml::{Table, Value};

use crate::cycles;

/// Crates, bottom to top: each may use only those of lower floors. docs/house.md describes them.
const FLOORS: [&[&str]; 7] = [
    &["ngen3-cluster", "ngen3-model", "ngen3-simd"],
    &["ngen3-engine"],
    &["ngen3-data"],
    &["ngen3-generate"],
    &["ngen3-cpu", "ngen3-gpu"],
    &["ngen3-eval", "ngen3-serve", "ngen3-train"],
    &["ngen3", "ngen3-campaign"],
];

/// Dependencies forbidden to a crate although they are lower or external. `*` matches the rest of a name.
const CLOSED: [(&str, &[&str]); 6] = [
    // The engine contract is independent of processors, and training, evaluation and serving use only the contract.
    ("ngen3-engine", &["ngen3-simd", "ngen3-cpu", "ngen3-gpu", "rayon*", "gemm*", "pulp", "wgpu*"]),
    ("ngen3-eval", &["ngen3-cpu", "ngen3-gpu"]),
    ("ngen3-serve", &["ngen3-cpu", "ngen3-gpu"]),
    ("ngen3-train", &["ngen3-cpu", "ngen3-gpu"]),
    // It has kernels of its own.
    ("ngen3-gpu", &["ngen3-simd", "gemm*"]),
    // It judges the program from outside.
    ("ngen3-campaign", &["ngen3*"]),
];

/// Violations, and notes about cycles that are allowed.
#[derive(Debug, Default)]
pub struct Findings {
    pub wrong: Vec<String>,
    pub notes: Vec<String>,
}

/// Checks the crates of the workspace in the folder `root`.
///
/// # Errors
/// Names the Cargo.toml that cannot be read or parsed.
pub fn check(root: &Path) -> Result<Findings, String> {
    let workspace = read(&root.join("Cargo.toml"))?;
    let (mut normal, mut all) = (BTreeMap::new(), BTreeMap::new());
    for folder in super::crates(root)? {
        let manifest = read(&folder.join("Cargo.toml"))?;
        let name = manifest.get("package").and_then(|package| package.get("name")).and_then(Value::as_str);
        let name = name.ok_or_else(|| format!("{}: a Cargo.toml without a name", folder.display()))?;
        let uses = dependencies(&manifest, &workspace, &["dependencies", "build-dependencies"]);
        let for_tests = dependencies(&manifest, &workspace, &["dev-dependencies"]);
        all.insert(name.to_owned(), uses.iter().chain(&for_tests).map(|used| (used.clone(), ())).collect());
        normal.insert(name.to_owned(), uses);
    }

    let mut findings = Findings::default();
    for (name, uses) in &normal {
        let Some(floor) = floor(name) else {
            findings.wrong.push(format!("{name} has no floor: give it one in FLOORS, and a line in docs/house.md"));
            continue;
        };
        for used in uses {
            let up = floor_of_ours(used, &normal).is_some_and(|below| below >= floor);
            let closed =
                CLOSED.iter().any(|(closed, doors)| closed == name && doors.iter().any(|door| fits(door, used)));
            if up {
                findings.wrong.push(format!("{name} → {used}: an arrow that does not point down"));
            } else if closed {
                findings.wrong.push(format!("{name} → {used}: {name} must not know it"));
            }
        }
    }
    let cycles = cycles::find(&all).into_iter();
    findings.notes.extend(cycles.map(|cycle| format!("by way of dev-dependencies: {}", super::drawn(&cycle))));
    Ok(findings)
}

/// Floor of a crate, counted from the bottom.
fn floor(name: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&name))
}

/// Floor of a dependency if it is in the workspace; a crate without a floor is above all others.
fn floor_of_ours<T>(name: &str, ours: &BTreeMap<String, T>) -> Option<usize> {
    ours.contains_key(name).then(|| floor(name).unwrap_or(usize::MAX))
}

fn fits(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == name, |beginning| name.starts_with(beginning))
}

fn read(path: &Path) -> Result<Table, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    text.parse().map_err(|error| format!("{}: {error}", path.display()))
}

/// Packages in these tables of a manifest, including those of each target.
fn dependencies(manifest: &Table, workspace: &Table, tables: &[&str]) -> BTreeSet<String> {
    let targets = manifest.get("target").and_then(Value::as_table).into_iter().flat_map(Table::values);
    let places = std::iter::once(manifest).chain(targets.filter_map(Value::as_table));
    let entries = places.flat_map(|place| tables.iter().filter_map(|name| place.get(*name)?.as_table())).flatten();
    entries
        .map(|(name, value)| {
            let shared = || workspace.get("workspace")?.get("dependencies")?.get(name)?.get("package");
            value.get("package").or_else(shared).and_then(Value::as_str).unwrap_or(name).to_owned()
        })
        .collect()
}
