//! Fetches the files of a model.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::repo::{LISTING_LIMIT, RepoKind};
use super::snapshot::{Hub, Snapshot};
use crate::Error;
use crate::progress::ProgressFn;
use crate::source::bytes::limited::read_at_most;

const CONFIG: &str = "config.json";
/// Weight files, the preferred format first: a single file, or an index of shards.
const WEIGHTS: [(&str, &str); 2] =
    [("model.safetensors", "model.safetensors.index.json"), ("pytorch_model.bin", "pytorch_model.bin.index.json")];
/// Files that are fetched too if present.
const EXTRAS: [&str; 8] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
];

/// `*.index.json`: the shard of each tensor.
#[derive(Deserialize)]
struct Index {
    weight_map: std::collections::BTreeMap<String, String>,
}

impl Hub {
    /// Fetches a model's configuration, weights (safetensors if available) and tokenizer; returns their folder. `revision` is a
    /// branch, tag or commit, by default the main branch. `progress` receives events.
    ///
    /// # Errors
    /// As [`Hub::open`] and [`Snapshot::fetch`]; [`Error::Hub`] for a repository that is not a model.
    pub fn fetch_model(&self, name: &str, revision: Option<&str>, progress: &mut ProgressFn) -> Result<PathBuf, Error> {
        let snapshot = self.open(RepoKind::Model, name, revision, progress)?;
        let lacks = |what: &str| Error::Hub { name: snapshot.title.clone(), reason: format!("it has no {what}") };
        if !snapshot.has(CONFIG) {
            return Err(lacks("config.json, so it is not a transformers model"));
        }
        snapshot.fetch(CONFIG, progress)?;
        let (whole, index) = WEIGHTS
            .into_iter()
            .find(|(whole, index)| snapshot.has(whole) || snapshot.has(index))
            .ok_or_else(|| lacks("model.safetensors or pytorch_model.bin"))?;
        if snapshot.has(whole) {
            snapshot.fetch(whole, progress)?;
        } else {
            let path = snapshot.fetch(index, progress)?;
            for shard in shards(&snapshot, &path)? {
                snapshot.fetch(&shard, progress)?;
            }
        }
        for extra in EXTRAS.into_iter().filter(|extra| snapshot.has(extra)) {
            snapshot.fetch(extra, progress)?;
        }
        Ok(snapshot.folder())
    }
}

/// Returns the shards that an index names.
fn shards(snapshot: &Snapshot, index: &Path) -> Result<BTreeSet<String>, Error> {
    let unreadable = |reason: String| Error::read(index.display(), reason);
    let bytes = read_at_most(index, LISTING_LIMIT).map_err(|error| unreadable(error.to_string()))?;
    let index: Index = serde_json::from_slice(&bytes).map_err(|error| unreadable(error.to_string()))?;
    let shards: BTreeSet<_> = index.weight_map.into_values().collect();
    match shards.iter().find(|shard| !snapshot.has(shard)) {
        Some(missing) => Err(unreadable(format!("it names {missing:?}, which is not in the repository"))),
        None => Ok(shards),
    }
}
