//! The files that may contain `unsafe`, and the tables of docs/reliability.md that count it.
//!
//! A file in a folder of the list below may have it: kernels, and calls into the system. Anywhere else it fails the test, and so does
//! a count in the docs that is no longer right.

use std::fs;
use std::path::Path;

use proc_macro2::{TokenStream, TokenTree};

/// Files and folders with kernels or foreign functions, and why.
const ALLOWED: [(&str, &str); 5] = [
    ("ngen3-cpu/src/gemm/", "kernels and the views that they write through"),
    ("ngen3-cpu/src/layers/", "windows of a matrix that tasks share"),
    ("ngen3-data/src/chat/chats.rs", "a file in memory (`mmap`)"),
    ("ngen3-data/src/token_file.rs", "a file in memory (`mmap`)"),
    ("ngen3-simd/src/amx.rs", "a system call and an instruction of AMX"),
];

/// Occurrences of `unsafe` in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// `unsafe { }`
    pub blocks: usize,
    /// `unsafe fn`, and types of such functions.
    pub functions: usize,
    /// `unsafe impl` and `unsafe trait`.
    pub impls: usize,
}

/// Counts `unsafe` in tokens, also within macros, without test modules being told apart.
fn count(tokens: TokenStream, census: &mut Census) {
    let mut rest = tokens.into_iter().peekable();
    while let Some(token) = rest.next() {
        match token {
            TokenTree::Group(group) => count(group.stream(), census),
            TokenTree::Ident(word) if word == "unsafe" => match rest.peek() {
                Some(TokenTree::Group(_)) => census.blocks += 1,
                Some(TokenTree::Ident(next)) if next == "impl" || next == "trait" => census.impls += 1,
                // `unsafe(no_mangle)` does not occur.
                _ => census.functions += 1,
            },
            _ => {}
        }
    }
}

/// Returns each file with `unsafe` in it, as `CRATE/src/PATH`, sorted.
pub fn find(crates: &[std::path::PathBuf]) -> Vec<(String, Census)> {
    let mut found = Vec::new();
    for folder in crates {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        visit(&folder.join("src"), &format!("{name}/src"), &mut found);
    }
    found.sort();
    found
}

fn visit(folder: &Path, name: &str, found: &mut Vec<(String, Census)>) {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    for path in entries.map(|entry| entry.unwrap().path()) {
        let name = format!("{name}/{}", path.file_name().unwrap_or_default().to_string_lossy());
        if path.is_dir() {
            visit(&path, &name, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let mut census = Census::default();
            count(text.parse().unwrap_or_else(|error| panic!("{name}: {error}")), &mut census);
            if census != Census::default() {
                found.push((name, census));
            }
        }
    }
}

impl PartialOrd for Census {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Census {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.blocks, self.functions, self.impls).cmp(&(other.blocks, other.functions, other.impls))
    }
}

/// Returns the table of the docs.
pub fn table(found: &[(String, Census)]) -> String {
    let row = |(name, Census { blocks, functions, impls }): &(String, Census)| {
        format!("| `{}` | {blocks} | {functions} | {impls} |\n", name.replacen("/src/", ": ", 1))
    };
    let mut all = Census::default();
    for (_, census) in found {
        all.blocks += census.blocks;
        all.functions += census.functions;
        all.impls += census.impls;
    }
    let head = "| file | blocks | functions | impls |\n|---|---|---|---|\n";
    let rows: String = found.iter().map(row).collect();
    format!("{head}{rows}| all | {} | {} | {} |\n", all.blocks, all.functions, all.impls)
}

/// Returns the files that must not have `unsafe`.
pub fn misplaced(found: &[(String, Census)]) -> Vec<&str> {
    let is_allowed = |name: &str| ALLOWED.iter().any(|(place, _)| name.starts_with(place));
    found.iter().map(|(name, _)| name.as_str()).filter(|name| !is_allowed(name)).collect()
}

#[test]
fn every_kind_of_unsafe_is_counted_and_words_in_texts_are_not() {
    let text = "unsafe fn f() { unsafe { g() } } unsafe impl Send for A {} macro_rules! m { () => { unsafe { h() } } }\n\
                // unsafe { }\nconst A: &str = \"unsafe { }\"; type F = unsafe fn();";
    let mut census = Census::default();
    count(text.parse().unwrap(), &mut census);
    assert_eq!(census, Census { blocks: 2, functions: 2, impls: 1 });
}
