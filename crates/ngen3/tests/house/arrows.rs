//! Dependencies between the files of a crate: an arrow from a file to each file that defines an item it uses.

use std::collections::BTreeMap;
use std::path::Path;

use crate::tree::{Import, Mention, Module, Tree};

/// For each file, the files it uses, each with the first place of use.
pub type Arrows = BTreeMap<String, BTreeMap<String, Place>>;

/// A place in a file: its line, and the path written there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub line: usize,
    pub path: String,
}

/// End of a path, by the index of its module.
#[derive(Clone, Copy)]
enum Target {
    Module(usize),
    /// An item that this module defines.
    Item(usize),
}

/// Imports being followed, each by its module and its index there.
type Open = Vec<(usize, usize)>;

/// Finds the arrows of the crate whose sources are in `src`.
///
/// # Errors
/// Names the file that is missing or is not Rust.
pub fn find(src: &Path) -> Result<Arrows, String> {
    let mut arrows = Arrows::new();
    for root in ["lib.rs", "main.rs"].into_iter().filter(|root| src.join(root).is_file()) {
        let tree = Tree::read(src, root)?;
        for index in 0..tree.modules.len() {
            add_arrows(&tree, index, &mut arrows);
        }
    }
    Ok(arrows)
}

/// Adds the arrows of one module.
fn add_arrows(tree: &Tree, index: usize, arrows: &mut Arrows) {
    let module = &tree.modules[index];
    let uses = arrows.entry(module.file.clone()).or_default();
    let mut add = |target: usize, mention: &Mention, end: &str| {
        let place = Place { line: mention.line, path: mention.path.join("::") + end };
        let file = &tree.modules[target].file;
        if *file != module.file {
            let first = uses.entry(file.clone()).or_insert_with(|| place.clone());
            *first = place.min(first.clone());
        }
    };
    for Import { name, mention, exported } in &module.imports {
        let glob = name.is_none();
        for target in resolve(tree, index, &mention.path, &mut Vec::new()) {
            match target {
                // Re-exporting a child's item is not a use of it; only code that mentions its name is.
                Target::Module(at) | Target::Item(at) if *exported && is_inside(tree, at, &module.file) => (),
                Target::Module(at) if glob => add(at, mention, "::*"),
                Target::Module(_) => (),
                Target::Item(at) => add(at, mention, if glob { "::*" } else { "" }),
            }
        }
    }
    let variable = |path: &[String]| matches!(path, [name] if module.locals.contains(name));
    for mention in module.mentions.iter().filter(|mention| !variable(&mention.path)) {
        for target in resolve(tree, index, &mention.path, &mut Vec::new()) {
            if let Target::Item(at) = target {
                add(at, mention, "");
            }
        }
    }
}

/// Returns whether a module is below one of `file`.
fn is_inside(tree: &Tree, module: usize, file: &str) -> bool {
    let above = |&module: &usize| tree.modules[module].parent;
    std::iter::successors(Some(module), above).skip(1).any(|above| tree.modules[above].file == file)
}

/// Resolves a path in module `from`. Returns several targets if a type and a function share a name, and none if the path leads
/// out of the crate.
fn resolve(tree: &Tree, from: usize, path: &[String], open: &mut Open) -> Vec<Target> {
    let Some((first, rest)) = path.split_first() else { return Vec::new() };
    let mut ends = match first.as_str() {
        "crate" => vec![Target::Module(0)],
        "self" => vec![Target::Module(from)],
        "super" => tree.modules[from].parent.map(Target::Module).into_iter().collect(),
        name => look_up(tree, from, name, open),
    };
    for name in rest {
        let deeper: Vec<_> = modules(&ends)
            .flat_map(|module| match name.as_str() {
                "super" => tree.modules[module].parent.map(Target::Module).into_iter().collect(),
                name => look_up(tree, module, name, open),
            })
            .collect();
        ends = if !deeper.is_empty() {
            deeper
        } else if ends.iter().any(|end| matches!(end, Target::Item(_))) {
            // A variant, or an item of an `impl`.
            ends.into_iter().filter(|end| matches!(end, Target::Item(_))).collect()
        } else {
            // Defined by a macro, or re-exported from another crate.
            modules(&ends).map(Target::Item).collect()
        };
    }
    ends
}

fn modules(ends: &[Target]) -> impl Iterator<Item = usize> {
    ends.iter().filter_map(|&end| if let Target::Module(module) = end { Some(module) } else { None })
}

/// Resolves a name in a module.
fn look_up(tree: &Tree, at: usize, name: &str, open: &mut Open) -> Vec<Target> {
    let Module { items, children, imports, .. } = &tree.modules[at];
    let mut found: Vec<_> = items.contains(name).then_some(Target::Item(at)).into_iter().collect();
    found.extend(children.iter().filter(|(child, _)| child == name).map(|&(_, child)| Target::Module(child)));
    for (index, import) in imports.iter().enumerate() {
        if import.name.as_deref() == Some(name) {
            found.extend(follow(tree, (at, index), open));
        }
    }
    // Named items take precedence over glob imports.
    if found.is_empty() {
        for index in (0..imports.len()).filter(|&index| imports[index].name.is_none()) {
            let ends = follow(tree, (at, index), open);
            open.push((at, index));
            found.extend(modules(&ends).flat_map(|module| look_up(tree, module, name, open)));
            open.pop();
        }
    }
    found
}

/// Follows an import, unless it is being followed already.
fn follow(tree: &Tree, (at, index): (usize, usize), open: &mut Open) -> Vec<Target> {
    if open.contains(&(at, index)) {
        return Vec::new();
    }
    open.push((at, index));
    let ends = resolve(tree, at, &tree.modules[at].imports[index].mention.path, open);
    open.pop();
    ends
}
