//! Assigns files to splits, by the conventions of the `datasets` library:
//!
//! 1. the README's `configs` with their `data_files`;
//! 2. else names such as `data/train-00000-of-00002.parquet`, with any word for `train`;
//! 3. else folders named `train`, `validation`, `test` or a synonym;
//! 4. else such words in file names (`train.csv`, `my-dev-set.jsonl`);
//! 5. else every file belongs to the split `train`.
//!
//! If none of these finds a readable file (the dataset is a Python script), the hub's own conversion is on the branch
//! `refs/convert/parquet`, as `CONFIG/SPLIT/0000.parquet`.

use std::collections::{BTreeMap, HashSet};

use super::card::{self, DatasetConfig};
use super::format::{DataFile, Format, READABLE};
use super::glob::{is_pattern, matches};
use super::repository::Repository;
use super::split::is_name;
use crate::Error;
use crate::hub::{ProgressFn, RepoFile};
use crate::source::Event;
use crate::source::bytes::limited::read_at_most;

const README: &str = "README.md";
/// Maximum size of the README, in bytes.
const README_BYTES: usize = 1 << 26;
/// Branch with the files that the hub converted.
const CONVERTED: &str = "refs/convert/parquet";
/// Prefix of a converted split that has only the beginning of a large one.
const PARTIAL: &str = "partial-";

/// The usual splits with their synonyms.
const SPLITS: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "dev", "val"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];
/// Characters that may surround such a word.
const SEPARATORS: &str = "[-._ 0-9]";

/// Files beside the data that are not data.
const METADATA_FILES: [&str; 5] =
    ["config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"];

/// The splits of one configuration.
#[derive(Debug)]
pub(super) struct Layout {
    /// In order, each with its files in reading order, of any format.
    splits: Vec<(String, Vec<RepoFile>)>,
    delimiter: Option<u8>,
    /// Origin of the splits, for messages.
    title: String,
}

/// Finds the splits of a configuration and the repository that has them, which may be the hub's conversion of the given one.
///
/// # Errors
/// [`Error::Input`] naming the existing configurations, or if nothing can be read.
pub(super) fn find(
    repository: Repository,
    config: Option<&str>,
    progress: &mut ProgressFn,
) -> Result<(Repository, Layout), Error> {
    if let Repository::Hub { revision: Some(revision), .. } = &repository
        && revision == CONVERTED
    {
        let layout = converted(&repository, config, progress)?;
        return Ok((repository, layout));
    }
    if let Repository::Hub { snapshot, name, .. } = &repository
        && !snapshot.is_complete()
    {
        let note = format!("offline: using only the files of {name} that are in the cache; there may be more");
        progress(Event::Note(note));
    }
    let files = repository.files();
    let configs = read_card(&repository, &files, progress)?;
    if !configs.is_empty() {
        let config = choose(&configs, config, &repository)?;
        let layout = from_card(config, &repository, &files)?;
        return Ok((repository, layout));
    }
    let is_default = config.is_none_or(|config| config == "default");
    let splits = if is_default && !is_script(&repository, &files) { by_name(&files, "") } else { Vec::new() };
    if !splits.is_empty() {
        let title = repository.title();
        return Ok((repository, Layout { splits, delimiter: None, title }));
    }
    match repository {
        Repository::Hub { snapshot, name, revision: None } => {
            let converted_repository =
                Repository::on_hub(snapshot.hub(), &name, Some(CONVERTED), progress).map_err(|error| match error {
                    Error::Hub { name, reason } => Error::Hub {
                        reason: format!(
                            "{}; the hub's conversion ({CONVERTED}) is not available either: {reason}",
                            no_data_reason(&files, config)
                        ),
                        name,
                    },
                    error => error,
                })?;
            let layout = converted(&converted_repository, config, progress)?;
            Ok((converted_repository, layout))
        }
        other => Err(Error::Input(format!("{}: {}", other.title(), no_data_reason(&files, config)))),
    }
}

/// Returns the files in a local folder that are named after the split itself (`dev.jsonl`, `dev-00000-of-00001.parquet`), unless
/// a README defines the splits. Benchmarks have a `dev` beside a `validation`, which otherwise are synonyms.
pub(super) fn by_split_name(repository: &Repository, split: &str) -> Option<Layout> {
    let Repository::Local { files, title, .. } = repository else { return None };
    let is_called = |file: &&RepoFile| {
        let stem = file.path.split('.').next().unwrap_or_default();
        !file.path.contains('/') && Format::of(&file.path).is_some() && shard_of(stem).unwrap_or(stem) == split
    };
    let found: Vec<_> = files.iter().filter(is_called).cloned().collect();
    let told = found.is_empty() || files.iter().any(|file| file.path == README);
    (!told).then(|| Layout { splits: vec![(split.to_owned(), found)], delimiter: None, title: title.clone() })
}

impl Layout {
    /// Returns the files of a split in its most common format.
    ///
    /// # Errors
    /// [`Error::Input`] naming the existing splits, or for a split without readable files.
    pub(super) fn files(
        &self,
        split: &str,
        repository: &Repository,
        progress: &mut ProgressFn,
    ) -> Result<Vec<DataFile>, Error> {
        let Some((_, files)) = self.splits.iter().find(|(name, _)| name == split) else {
            let names: Vec<_> = self.splits.iter().map(|(name, _)| name.as_str()).collect();
            let reason = format!("{}: unknown split {split:?}: expected one of {}", self.title, names.join(", "));
            return Err(Error::Input(reason));
        };
        let mut readable: Vec<_> = files
            .iter()
            .filter_map(|file| {
                let format = Format::of(&file.path)?;
                Some(DataFile { path: file.path.clone(), size: file.size, format })
            })
            .collect();
        let count = |format: Format| readable.iter().filter(|file| file.format.is_akin_to(format)).count();
        let best = readable.iter().map(|file| file.format).max_by_key(|&format| {
            // More files first, then the better format.
            (count(format), std::cmp::Reverse(format.rank()))
        });
        let Some(best) = best else {
            let example = files.first().map_or_else(String::new, |file| format!(", found {}", file.path));
            let reason = format!("{}: split {split} has no readable files: expected {READABLE}{example}", self.title);
            return Err(Error::Input(reason));
        };
        readable.retain(|file| file.format.is_akin_to(best));
        if readable.len() < files.len() {
            let left = files.iter().find(|file| !readable.iter().any(|kept| kept.path == file.path));
            progress(Event::Note(format!(
                "split {split}: skipped {} of its files, such as {}: most have another format",
                files.len() - readable.len(),
                left.map_or_else(String::new, |file| repository.name_of(&file.path)),
            )));
        }
        if let Some(delimiter) = self.delimiter {
            for file in &mut readable {
                if let Format::Csv { .. } = file.format {
                    file.format = Format::Csv { delimiter, given: true };
                }
            }
        }
        Ok(readable)
    }
}

fn read_card(
    repository: &Repository,
    files: &[RepoFile],
    progress: &mut ProgressFn,
) -> Result<Vec<DatasetConfig>, Error> {
    if !files.iter().any(|file| file.path == README) {
        return Ok(Vec::new());
    }
    let name = repository.name_of(README);
    let bytes = read_at_most(&repository.fetch(README, progress)?, README_BYTES);
    let bytes = bytes.map_err(|error| Error::read(&name, error))?;
    card::configs(&name, &String::from_utf8_lossy(&bytes))
}

/// True for a dataset that is made by a Python script of its own name.
fn is_script(repository: &Repository, files: &[RepoFile]) -> bool {
    let Repository::Hub { name, .. } = repository else { return false };
    let script = format!("{}.py", name.rsplit('/').next().unwrap_or(name));
    files.iter().any(|file| file.path == script)
}

/// Returns the configuration of this name, or the default one.
fn choose<'a>(
    configs: &'a [DatasetConfig],
    named: Option<&str>,
    repository: &Repository,
) -> Result<&'a DatasetConfig, Error> {
    let found = match named {
        Some(named) => configs.iter().find(|config| config.name == named),
        None => card::default(configs),
    };
    let names = || configs.iter().map(|config| config.name.as_str()).collect::<Vec<_>>();
    found.ok_or_else(|| no_config(named, &names(), repository))
}

fn no_config(named: Option<&str>, names: &[&str], repository: &Repository) -> Error {
    let (title, names) = (repository.title(), names.join(", "));
    Error::Input(match named {
        Some(named) => format!("{title}: unknown configuration {named:?}: expected one of {names}"),
        None => format!("{title} has several configurations; choose one with --hf_config: {names}"),
    })
}

fn from_card(config: &DatasetConfig, repository: &Repository, files: &[RepoFile]) -> Result<Layout, Error> {
    let title = format!("{} (configuration {})", repository.title(), config.name);
    let folder = config.folder.as_deref().unwrap_or("").trim_start_matches("./").trim_matches('/');
    let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
    let splits = match &config.splits {
        Some(splits) => splits
            .iter()
            .map(|(split, patterns)| Ok((split.clone(), resolve(patterns, &prefix, files, &title)?)))
            .collect::<Result<_, Error>>()?,
        None => by_name(files, &prefix),
    };
    let delimiter = match config.delimiter.as_deref().map(str::as_bytes) {
        None => None,
        Some([byte]) => Some(*byte),
        Some(_) => return Err(Error::Input(format!("{title}: expected a delimiter of a single byte"))),
    };
    Ok(Layout { splits, delimiter, title })
}

/// Returns the files that match patterns: in the patterns' order, and for each in the order of the paths.
fn resolve(patterns: &[String], prefix: &str, files: &[RepoFile], title: &str) -> Result<Vec<RepoFile>, Error> {
    let mut found = UniqueFiles::default();
    for pattern in patterns {
        if pattern.contains("://") {
            return Err(Error::Input(format!("{title}: files at other URLs are not supported ({pattern})")));
        }
        let pattern = format!("{prefix}{}", pattern.trim_start_matches("./"));
        let mut any = false;
        for file in files.iter().filter(|file| file.path != README && matches(&pattern, &file.path)) {
            found.add(file);
            any = true;
        }
        if !any && !is_pattern(&pattern) {
            return Err(Error::Input(format!("{title}: the README names {pattern}, which does not exist")));
        }
    }
    Ok(found.files)
}

/// Files in the order they were found, without duplicates.
#[derive(Default)]
struct UniqueFiles<'a> {
    files: Vec<RepoFile>,
    paths: HashSet<&'a str>,
}

impl<'a> UniqueFiles<'a> {
    fn add(&mut self, file: &'a RepoFile) {
        if self.paths.insert(&file.path) {
            self.files.push(file.clone());
        }
    }
}

/// Derives splits from the names of folders and readable files below `prefix`.
fn by_name(files: &[RepoFile], prefix: &str) -> Vec<(String, Vec<RepoFile>)> {
    let files: Vec<(&str, &RepoFile)> = files
        .iter()
        .filter(|file| Format::of(&file.path).is_some())
        .filter_map(|file| Some((file.path.strip_prefix(prefix)?, file)))
        .filter(|(path, _)| !METADATA_FILES.contains(&path.rsplit('/').next().unwrap_or(path)))
        .collect();
    let digits = "[0-9]".repeat(5);
    let mut sharded: BTreeMap<&str, Vec<RepoFile>> = BTreeMap::new();
    for (path, file) in &files {
        if matches(&format!("data/*-{digits}-of-{digits}*.*"), path)
            && let Some(split) = path.strip_prefix("data/").and_then(shard_of).filter(|split| is_name(split))
        {
            sharded.entry(split).or_default().push((*file).clone());
        }
    }
    if !sharded.is_empty() {
        let usual = SPLITS.iter().filter_map(|(split, _)| Some(((*split).to_owned(), sharded.remove(split)?)));
        let usual: Vec<_> = usual.collect();
        return usual.into_iter().chain(sharded.into_iter().map(|(split, files)| (split.to_owned(), files))).collect();
    }

    let in_folders = |word: &str| {
        [
            format!("**/{word}/**"),
            format!("**/{word}{SEPARATORS}*/**"),
            format!("**/*{SEPARATORS}{word}/**"),
            format!("**/*{SEPARATORS}{word}{SEPARATORS}*/**"),
        ]
    };
    let in_names = |word: &str| [format!("**/{word}{SEPARATORS}*"), format!("**/*{SEPARATORS}{word}{SEPARATORS}*")];
    let with_patterns = |patterns: &dyn Fn(&str) -> Vec<String>| {
        let splits = SPLITS.iter().map(|(split, words)| {
            let mut found = UniqueFiles::default();
            for pattern in words.iter().flat_map(|word| patterns(word)) {
                files.iter().filter(|(path, _)| matches(&pattern, path)).for_each(|(_, file)| found.add(file));
            }
            ((*split).to_owned(), found.files)
        });
        splits.filter(|(_, files)| !files.is_empty()).collect::<Vec<_>>()
    };
    let folders = with_patterns(&|word| in_folders(word).to_vec());
    if !folders.is_empty() {
        return folders;
    }
    let names = with_patterns(&|word| in_names(word).to_vec());
    if !names.is_empty() || files.is_empty() {
        return names;
    }
    vec![("train".into(), files.into_iter().map(|(_, file)| file.clone()).collect())]
}

/// Returns `SPLIT` of `SPLIT-00000-of-00001….…`.
fn shard_of(name: &str) -> Option<&str> {
    let at = name.rfind("-of-")?;
    name.get(..at.checked_sub(6)?)
}

/// Returns the splits of a configuration on the hub's branch of conversions.
fn converted(repository: &Repository, config: Option<&str>, progress: &mut ProgressFn) -> Result<Layout, Error> {
    let mut configs: BTreeMap<String, BTreeMap<String, Vec<RepoFile>>> = BTreeMap::new();
    for file in repository.files() {
        if let [config, split, name] = file.path.split('/').collect::<Vec<_>>()[..]
            && name.ends_with(".parquet")
        {
            let split = split.strip_prefix(PARTIAL).unwrap_or(split).to_owned();
            configs.entry(config.to_owned()).or_default().entry(split).or_default().push(file);
        }
    }
    if configs.is_empty() {
        let reason = format!("{}: no CONFIG/SPLIT/….parquet on the branch {CONVERTED}", repository.title());
        return Err(Error::Input(reason));
    }
    let names: Vec<_> = configs.keys().map(String::as_str).collect();
    let name = match (config, names.as_slice()) {
        (Some(named), names) if names.contains(&named) => named,
        (None, [only]) => only,
        (None, names) if names.contains(&"default") => "default",
        (named, names) => return Err(no_config(named, names, repository)),
    };
    let name = name.to_owned();
    let splits = configs.remove(&name).unwrap_or_default();
    if splits.values().flatten().any(|file| file.path.contains(&format!("/{PARTIAL}"))) {
        progress(Event::Note(format!("the hub has converted only the beginning of {}", repository.title())));
    }
    let title = format!("{} (configuration {name})", repository.title());
    Ok(Layout { splits: splits.into_iter().collect(), delimiter: None, title })
}

/// Explains why a repository has no splits.
fn no_data_reason(files: &[RepoFile], config: Option<&str>) -> String {
    if let Some(config) = config.filter(|_| files.iter().any(|file| Format::of(&file.path).is_some())) {
        return format!("unknown configuration {config:?}: the README defines none");
    }
    let mut example = files.iter().map(|file| file.path.as_str()).filter(|path| *path != README);
    let example = example.next().map_or_else(String::new, |path| format!(", found {path}"));
    format!("no readable files: expected {READABLE}{example}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(paths: &[&str]) -> Vec<RepoFile> {
        let mut files: Vec<_> = paths.iter().map(|path| RepoFile { path: (*path).into(), size: None }).collect();
        files.sort_by(|a, b| a.path.cmp(&b.path));
        files
    }

    fn splits(paths: &[&str]) -> Vec<String> {
        by_name(&files(paths), "")
            .into_iter()
            .map(|(split, files)| {
                let files: Vec<_> = files.into_iter().map(|file| file.path).collect();
                format!("{split}: {}", files.join(" "))
            })
            .collect()
    }

    /// The expected splits are those of `get_data_patterns` of `datasets` 5.2 with fsspec.
    #[test]
    fn names_tell_the_splits_as_they_tell_datasets() {
        assert_eq!(splits(&["README.md", "dataset.csv"]), ["train: dataset.csv"]);
        assert_eq!(
            splits(&["train.csv", "test.csv", "dev.csv"]),
            ["train: train.csv", "validation: dev.csv", "test: test.csv"]
        );
        assert_eq!(
            splits(&["data/train_0.csv", "data/train_1.csv", "data/other.csv"]),
            ["train: data/train_0.csv data/train_1.csv",]
        );
        assert_eq!(
            splits(&["data/train/b.jsonl", "data/train/a.jsonl", "data/test/x/c.jsonl", "train.csv"]),
            ["train: data/train/a.jsonl data/train/b.jsonl", "test: data/test/x/c.jsonl",]
        );
        assert_eq!(
            splits(&["my-train-set.txt", "my-evaluation.txt", "trainer.txt"]),
            ["train: my-train-set.txt", "test: my-evaluation.txt",]
        );
        assert_eq!(
            splits(&[
                "data/train-00001-of-00002.parquet",
                "data/train-00000-of-00002.parquet",
                "data/random-00000-of-00001-abc.parquet",
                "data/test-00000-of-00001.parquet",
                "data/notes.txt",
            ]),
            [
                "train: data/train-00000-of-00002.parquet data/train-00001-of-00002.parquet",
                "test: data/test-00000-of-00001.parquet",
                "random: data/random-00000-of-00001-abc.parquet",
            ]
        );
        assert_eq!(splits(&["train.zip", "script.py", "README.md", "dataset_infos.json"]), Vec::<String>::new());
        assert_eq!(
            splits(&["a.txt", "data-00000-of-00001.arrow", "state.json"]),
            ["train: a.txt data-00000-of-00001.arrow"]
        );
    }

    #[test]
    fn most_files_of_a_split_decide_on_the_format() {
        let layout = |paths: &[&str]| Layout {
            splits: vec![("train".into(), files(paths))],
            delimiter: None,
            title: "x".into(),
        };
        let repository = Repository::Local { root: "r".into(), title: "r".into(), files: Vec::new() };
        let chosen = |paths: &[&str]| {
            let mut notes = 0;
            let files = layout(paths).files("train", &repository, &mut |_| {
                notes += 1;
                true
            });
            files.map(|files| (files.into_iter().map(|file| file.path).collect::<Vec<_>>(), notes))
        };
        assert_eq!(
            chosen(&["a.csv", "b.jsonl", "c.jsonl.gz"]).unwrap(),
            (vec!["b.jsonl".into(), "c.jsonl.gz".into()], 1)
        );
        assert_eq!(chosen(&["a.csv", "b.parquet"]).unwrap(), (vec!["b.parquet".into()], 1));
        assert_eq!(chosen(&["a.csv", "b.tsv"]).unwrap(), (vec!["a.csv".into(), "b.tsv".into()], 0));
        assert!(chosen(&["a.zip"]).unwrap_err().to_string().contains("train has no readable files: expected .parquet"));
        let error = layout(&["a.csv"]).files("tset", &repository, &mut |_| true).unwrap_err();
        assert_eq!(error.to_string(), "x: unknown split \"tset\": expected one of train");
    }
}
