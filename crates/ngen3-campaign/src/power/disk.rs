//! A model of a disk: the states that it may be in when the power fails.
//!
//! Changes are of two kinds. *Data* (writes and lengths) belongs to a file and is durable once the file was synced; *entries*
//! (creations, renames, removals) belong to a folder and are durable once the folder was synced. What is not durable may be lost,
//! kept, or kept in part: data without entries, entries without data, one change without another, part of a write at a boundary of
//! 512 or 4,096 bytes, or a length without its data, which reads as zeros.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::trace::{Call, Kind};
use crate::tree::Tree;

/// A file or folder, by number.
type Id = usize;

#[derive(Clone, Debug)]
enum Node {
    File(Vec<u8>),
    Folder(BTreeMap<OsString, Id>),
}

/// Place of an entry: a folder and a name.
type Entry = (Id, OsString);

/// A call, in terms of files instead of paths.
#[derive(Clone, Debug)]
enum Change {
    Write { file: Id, at: usize, data: Vec<u8> },
    Length { file: Id, len: usize },
    Add { entry: Entry, id: Id },
    Move { from: Entry, to: Entry, id: Id },
    Exchange { a: (Entry, Id), b: (Entry, Id) },
    Remove { entry: Entry },
    Sync { id: Id },
}

impl Change {
    /// Returns the file whose data it changes.
    fn data_of(&self) -> Option<Id> {
        match self {
            Self::Write { file, .. } | Self::Length { file, .. } => Some(*file),
            _ => None,
        }
    }

    /// Returns the folder whose sync makes it durable.
    fn entry_of(&self) -> Option<Id> {
        match self {
            Self::Add { entry, .. } | Self::Remove { entry } => Some(entry.0),
            Self::Move { to, .. } => Some(to.0),
            Self::Exchange { a, .. } => Some(a.0.0),
            _ => None,
        }
    }
}

/// Part of the changes that a disk keeps although they are not durable. Numbers are those of changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Variant {
    /// All of them, as after SIGKILL.
    All,
    /// None of them.
    Synced,
    /// Entries only.
    Entries,
    /// Data only.
    Data,
    /// All but one.
    Without(usize),
    /// All data, and of the entries only one.
    Only(usize),
    /// No data, and entries up to this one.
    EntriesUpTo(usize),
    /// All, but of one write only the first bytes.
    Torn(usize, usize),
    /// All, but one write is zeros.
    Zeros(usize),
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => write!(f, "all kept"),
            Self::Synced => write!(f, "only synced changes kept"),
            Self::Entries => write!(f, "entries without unsynced data"),
            Self::Data => write!(f, "data without unsynced entries"),
            Self::Without(change) => write!(f, "all but change {change}"),
            Self::Only(change) => write!(f, "of unsynced entries only change {change}"),
            Self::EntriesUpTo(change) => write!(f, "entries up to change {change} without unsynced data"),
            Self::Torn(change, bytes) => write!(f, "change {change} torn after {bytes} bytes"),
            Self::Zeros(change) => write!(f, "change {change} reads as zeros"),
        }
    }
}

/// The changes of a run.
#[derive(Debug)]
pub struct History {
    start: Vec<Node>,
    changes: Vec<Change>,
    /// For each call, the number of changes up to it.
    ends: Vec<usize>,
}

const ROOT: Id = 0;

/// Number of the newest changes of data that are varied one by one.
const NEWEST: usize = 8;

impl History {
    /// Translates calls on files below `folder`, which started as `old`.
    ///
    /// # Errors
    /// If a call does not fit the files.
    pub fn new(old: &Tree, folder: &Path, calls: &[Call]) -> Result<Self> {
        let mut start = vec![Node::Folder(BTreeMap::new())];
        for (path, content) in &old.0 {
            let id = start.len();
            start.push(content.clone().map_or_else(|| Node::Folder(BTreeMap::new()), Node::File));
            let (parent, name) = find_parent(&start, path).context("a file without its folder")?;
            if let Node::Folder(entries) = &mut start[parent] {
                entries.insert(name, id);
            }
        }
        let mut now = start.clone();
        let mut history = Self { start, changes: Vec::new(), ends: vec![0] };
        for call in calls {
            let relative = |path: &Path| path.strip_prefix(folder).map(Path::to_owned);
            let path = relative(&call.path)?;
            let changes = translate(&mut now, &path, &call.kind, &relative).with_context(|| format!("{call}"))?;
            for change in changes {
                apply(&mut now, &change);
                history.changes.push(change);
            }
            history.ends.push(history.changes.len());
        }
        // All nodes exist from the start, reachable or not.
        let missing = now[history.start.len()..].iter().map(|node| match node {
            Node::File(_) => Node::File(Vec::new()),
            Node::Folder(_) => Node::Folder(BTreeMap::new()),
        });
        history.start.extend(missing.collect::<Vec<_>>());
        Ok(history)
    }

    /// Returns the number of calls.
    pub fn len(&self) -> usize {
        self.ends.len() - 1
    }

    /// Lists what a disk may keep after so many calls.
    pub fn variants(&self, calls: usize) -> Vec<Variant> {
        let (data, entries) = self.pending(calls);
        let mut variants = vec![Variant::All, Variant::Synced];
        if !data.is_empty() || !entries.is_empty() {
            variants.extend([Variant::Entries, Variant::Data]);
        }
        for &change in &entries {
            variants.extend([Variant::Without(change), Variant::Only(change), Variant::EntriesUpTo(change)]);
        }
        // Data that is not synced for long, such as that of TensorBoard's log, is varied while it is new.
        for &change in data.iter().rev().take(NEWEST) {
            variants.extend([Variant::Without(change), Variant::Zeros(change)]);
            if let Change::Write { data, .. } = &self.changes[change] {
                let half = data.len() / 2;
                let cuts = [half / 512 * 512, half / 4096 * 4096, data.len() / 512 * 512, data.len() / 4096 * 4096];
                variants.extend(cuts.map(|cut| Variant::Torn(change, cut)));
            }
        }
        variants
    }

    /// Returns the changes that are not durable after so many calls: data and entries.
    fn pending(&self, calls: usize) -> (BTreeSet<usize>, BTreeSet<usize>) {
        let done = &self.changes[..self.ends[calls]];
        let (mut data, mut entries) = (BTreeSet::new(), BTreeSet::new());
        for (at, change) in done.iter().enumerate() {
            if let Change::Sync { id } = change {
                data.retain(|&at: &usize| self.changes[at].data_of() != Some(*id));
                entries.retain(|&at: &usize| self.changes[at].entry_of() != Some(*id));
            }
            data.extend(change.data_of().map(|_| at));
            entries.extend(change.entry_of().map(|_| at));
        }
        (data, entries)
    }

    /// Returns the files of a disk after so many calls.
    pub fn state(&self, calls: usize, variant: &Variant) -> Tree {
        let (data, entries) = self.pending(calls);
        let mut nodes = self.start.clone();
        for (at, change) in self.changes[..self.ends[calls]].iter().enumerate() {
            let (is_data, is_entry) = (data.contains(&at), entries.contains(&at));
            let kept = match *variant {
                Variant::All | Variant::Torn(..) | Variant::Zeros(_) => true,
                Variant::Synced => !is_data && !is_entry,
                Variant::Entries => !is_data,
                Variant::Data => !is_entry,
                Variant::Without(one) => at != one,
                Variant::Only(one) => !is_entry || at == one,
                Variant::EntriesUpTo(last) => !is_data && (!is_entry || at <= last),
            };
            if !kept {
                continue;
            }
            match (variant, change) {
                (Variant::Torn(one, bytes), Change::Write { file, at: place, data }) if *one == at => {
                    apply(&mut nodes, &Change::Write { file: *file, at: *place, data: data[..*bytes].to_vec() });
                }
                (Variant::Zeros(one), Change::Write { file, at: place, data }) if *one == at => {
                    apply(&mut nodes, &Change::Write { file: *file, at: *place, data: vec![0; data.len()] });
                }
                _ => apply(&mut nodes, change),
            }
        }
        let mut tree = Tree::default();
        list(&nodes, ROOT, &PathBuf::new(), &mut tree);
        tree
    }
}

/// Finds the folder and the name of a path.
fn find_parent(nodes: &[Node], path: &Path) -> Option<Entry> {
    let parent = find(nodes, path.parent()?)?;
    Some((parent, path.file_name()?.to_owned()))
}

fn find(nodes: &[Node], path: &Path) -> Option<Id> {
    path.iter().try_fold(ROOT, |folder, name| match &nodes[folder] {
        Node::Folder(entries) => entries.get(name).copied(),
        Node::File(_) => None,
    })
}

/// Translates a call into changes; makes new nodes.
fn translate(
    nodes: &mut Vec<Node>,
    path: &Path,
    kind: &Kind,
    relative: &dyn Fn(&Path) -> Result<PathBuf, std::path::StripPrefixError>,
) -> Result<Vec<Change>> {
    let entry = |nodes: &[Node], path: &Path| find_parent(nodes, path).context("its folder is not there");
    let id = |nodes: &[Node], path: &Path| find(nodes, path).context("it is not there");
    Ok(match kind {
        Kind::Open { make: true, .. } => {
            nodes.push(Node::File(Vec::new()));
            vec![Change::Add { entry: entry(nodes, path)?, id: nodes.len() - 1 }]
        }
        Kind::Open { .. } => vec![Change::Length { file: id(nodes, path)?, len: 0 }],
        Kind::MakeFolder => {
            nodes.push(Node::Folder(BTreeMap::new()));
            vec![Change::Add { entry: entry(nodes, path)?, id: nodes.len() - 1 }]
        }
        Kind::Write { at, data } => {
            vec![Change::Write { file: id(nodes, path)?, at: usize::try_from(*at)?, data: data.clone() }]
        }
        Kind::Truncate { len } => vec![Change::Length { file: id(nodes, path)?, len: usize::try_from(*len)? }],
        Kind::Unlink | Kind::RemoveFolder => vec![Change::Remove { entry: entry(nodes, path)? }],
        Kind::Sync => vec![Change::Sync { id: id(nodes, path)? }],
        Kind::Rename { to, exchange } => {
            let to = relative(to)?;
            let (a, b) = (entry(nodes, path)?, entry(nodes, &to)?);
            match exchange {
                true => vec![Change::Exchange { a: (a, id(nodes, path)?), b: (b, id(nodes, &to)?) }],
                false => vec![Change::Move { from: a, to: b, id: id(nodes, path)? }],
            }
        }
        Kind::Read { .. } | Kind::Memory { .. } | Kind::Unknown { .. } => bail!("it has no model"),
    })
}

fn apply(nodes: &mut [Node], change: &Change) {
    let mut set = |(folder, name): &Entry, id: Option<Id>| {
        if let Node::Folder(entries) = &mut nodes[*folder] {
            match id {
                Some(id) => entries.insert(name.clone(), id),
                None => entries.remove(name),
            };
        }
    };
    match change {
        Change::Add { entry, id } => set(entry, Some(*id)),
        Change::Remove { entry } => set(entry, None),
        Change::Move { from, to, id } => {
            set(from, None);
            set(to, Some(*id));
        }
        Change::Exchange { a, b } => {
            set(&a.0, Some(b.1));
            set(&b.0, Some(a.1));
        }
        Change::Sync { .. } => {}
        Change::Write { file, at, data } => {
            if let Node::File(content) = &mut nodes[*file] {
                let end = at + data.len();
                // An empty write makes nothing longer.
                if !data.is_empty() && content.len() < end {
                    content.resize(end, 0);
                }
                if !data.is_empty() {
                    content[*at..end].copy_from_slice(data);
                }
            }
        }
        Change::Length { file, len } => {
            if let Node::File(content) = &mut nodes[*file] {
                content.resize(*len, 0);
            }
        }
    }
}

fn list(nodes: &[Node], folder: Id, path: &Path, tree: &mut Tree) {
    let Node::Folder(entries) = &nodes[folder] else { return };
    for (name, &id) in entries {
        let path = path.join(name);
        match &nodes[id] {
            Node::File(content) => drop(tree.0.insert(path, Some(content.clone()))),
            Node::Folder(_) => {
                tree.0.insert(path.clone(), None);
                list(nodes, id, &path, tree);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(path: &str, kind: Kind) -> Call {
        Call { kind, path: Path::new("/w").join(path) }
    }

    fn create(path: &str) -> Call {
        call(path, Kind::Open { make: true, folder: false, truncate: false })
    }

    fn write(path: &str, text: &str) -> Call {
        call(path, Kind::Write { at: 0, data: text.into() })
    }

    fn rename(from: &str, to: &str) -> Call {
        call(from, Kind::Rename { to: Path::new("/w").join(to), exchange: false })
    }

    fn states(calls: &[Call]) -> Vec<String> {
        let old = Tree([("a".into(), Some(b"old".to_vec()))].into());
        let history = History::new(&old, Path::new("/w"), calls).unwrap();
        let states = history.variants(calls.len()).into_iter().map(|variant| {
            let tree = history.state(calls.len(), &variant);
            tree.file(Path::new("a")).map_or("gone".into(), |content| String::from_utf8_lossy(content).into_owned())
        });
        let mut states: Vec<_> = states.collect();
        states.sort();
        states.dedup();
        states
    }

    #[test]
    fn a_rename_without_a_sync_may_leave_an_empty_file_or_zeros() {
        let found = states(&[create("t"), write("t", "new"), rename("t", "a")]);
        assert_eq!(found, ["", "\0\0\0", "new", "old"]);
    }

    #[test]
    fn a_synced_file_is_the_old_or_the_new_one() {
        let mut calls = vec![create("t"), write("t", "new"), call("t", Kind::Sync), rename("t", "a")];
        assert_eq!(states(&calls), ["new", "old"]);
        calls.push(call("", Kind::Sync));
        assert_eq!(states(&calls), ["new"], "a synced folder keeps its entries");
    }

    #[test]
    fn a_file_that_is_overwritten_in_place_may_be_torn() {
        let truncate = call("a", Kind::Open { make: false, folder: false, truncate: true });
        let found = states(&[truncate, write("a", &"n".repeat(600))]);
        assert!(found.contains(&String::new()) && found.contains(&"n".repeat(512)) && found.contains(&"old".into()));
    }
}
