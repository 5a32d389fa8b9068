//! Expands sources into a list of documents.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::bytes::kind::table_of;
use super::folder::{entries, file_of};
use crate::Error;
use crate::http::without_password;
use crate::progress::Event;

/// Tiny Shakespeare, compressed; 1,115,394 bytes of text.
pub(super) const SHAKESPEARE: &[u8] = include_bytes!("../../data/tinyshakespeare.txt.zst");

/// Returns the text of `builtin:shakespeare`.
pub fn shakespeare() -> String {
    let bytes = zstd::decode_all(SHAKESPEARE).expect("the embedded file is valid zstd");
    String::from_utf8(bytes).expect("the embedded text is ASCII")
}

/// Extensions of the files that are read from a folder, each optionally followed by a compressed extension.
const TEXT_ENDINGS: [&str; 2] = ["txt", "md"];
const COMPRESSED_ENDINGS: [&str; 4] = ["gz", "zst", "xz", "bz2"];

/// A text source as the user names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file, or a folder to search.
    Path(PathBuf),
    /// Standard input, `-`.
    Stdin,
    /// An `http://` or `https://` URL.
    Url(String),
    /// Tiny Shakespeare, `builtin:shakespeare`.
    Shakespeare,
}

impl Source {
    /// Parses a source as the user writes it.
    ///
    /// # Errors
    /// [`Error::Input`] for an unknown `builtin:` name, an empty name, or a URL whose scheme is not http(s).
    pub fn parse(named: &OsStr) -> Result<Self, Error> {
        let Some(text) = named.to_str() else { return Ok(Self::Path(named.into())) };
        if text == "-" {
            return Ok(Self::Stdin);
        }
        if let Some(name) = text.strip_prefix("builtin:") {
            return match name {
                "shakespeare" => Ok(Self::Shakespeare),
                _ => Err(Error::Input(format!("unknown built-in text {name:?}: expected builtin:shakespeare"))),
            };
        }
        match text.split_once("://") {
            Some((scheme, _)) if ["http", "https"].iter().any(|s| scheme.eq_ignore_ascii_case(s)) => {
                Ok(Self::Url(text.into()))
            }
            Some((scheme, _)) if !Path::new(text).exists() => {
                Err(Error::Input(format!("{text}: expected an http:// or https:// URL, got {scheme}://")))
            }
            _ if text.is_empty() => Err(Error::Input("expected a path, a URL or -, got an empty name".into())),
            _ => Ok(Self::Path(text.into())),
        }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Stdin => f.write_str("stdin"),
            Self::Url(url) => f.write_str(&without_password(url)),
            Self::Shakespeare => f.write_str("builtin:shakespeare"),
        }
    }
}

/// One document to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// A file, never a folder.
    pub(super) source: Source,
    /// Bytes to read, if known in advance.
    pub(super) size: Option<u64>,
}

/// Result of [`list`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// The documents, in reading order.
    pub inputs: Vec<Input>,
    /// Folder entries that are not read: files with other extensions, links to folders, broken links, hidden files and folders.
    pub skipped: Vec<PathBuf>,
}

impl Listing {
    /// Sends a note about the skipped entries, if any.
    pub fn report_skipped(&self, progress: &mut dyn FnMut(Event)) {
        if let Some(first) = self.skipped.first() {
            progress(Event::Note(format!(
                "skipped {} of the folder's entries, such as {}: only .txt and .md files (or with .gz, .zst, .xz, .bz2) are read",
                self.skipped.len(),
                first.display()
            )));
        }
    }
}

/// Expands sources into documents. A folder stands for its text files (`.txt` and `.md`, optionally compressed), at any
/// depth, in the order of their paths; a file that is named directly is read whatever its extension, unless
/// that is one of a table.
///
/// # Errors
/// [`Error::Read`] for a path that is missing or inaccessible, or a table; [`Error::Input`] for a folder without text files or a second
/// stdin.
pub fn list(sources: &[Source]) -> Result<Listing, Error> {
    let mut listing = Listing::default();
    for source in sources {
        let input = match source {
            Source::Path(path) => {
                let meta = path.metadata().map_err(|error| Error::open(path, &error))?;
                if meta.is_dir() {
                    let before = listing.inputs.len();
                    search(path, &mut listing)?;
                    if listing.inputs.len() == before {
                        let endings = TEXT_ENDINGS.map(|ending| format!(".{ending}")).join(" or ");
                        return Err(Error::Input(format!(
                            "{}: expected {endings} files (or with .gz, .zst, .xz, .bz2) in this folder, found none",
                            path.display()
                        )));
                    }
                    continue;
                }
                check_is_text(&source.to_string())?;
                Input { source: source.clone(), size: meta.is_file().then_some(meta.len()) }
            }
            Source::Stdin if listing.inputs.iter().any(|input| input.source == Source::Stdin) => {
                return Err(Error::Input("stdin (-) can be read only once".into()));
            }
            Source::Url(url) => {
                if let Some(format) = table_of(url.split(['?', '#']).next().unwrap_or(url)) {
                    let advice = "download it, and use ngen3 hf_tokenize --hf_dataset FILE";
                    return Err(Error::read(source, format!("expected text, got {format} by its name; {advice}")));
                }
                Input { source: source.clone(), size: None }
            }
            Source::Stdin => Input { source: source.clone(), size: None },
            Source::Shakespeare => Input { source: source.clone(), size: Some(SHAKESPEARE.len() as u64) },
        };
        listing.inputs.push(input);
    }
    Ok(listing)
}

/// Refuses a table, by its name: as plain text it would be learned with its syntax.
fn check_is_text(name: &str) -> Result<(), Error> {
    let Some(format) = table_of(name) else { return Ok(()) };
    let mut advice = format!("use ngen3 hf_tokenize --hf_dataset {name}");
    if format.starts_with("JSON") {
        advice += &format!(", or ngen3 tokenize --chats {name} for conversations");
    }
    if !format.ends_with("table") {
        advice += &format!("; to read it as plain text all the same: cat {name} | ngen3 tokenize --txt -");
    }
    Err(Error::read(name, format!("expected text, got {format} by its name; {advice}")))
}

/// Adds a folder's files to the listing, in the order of their paths.
fn search(folder: &Path, listing: &mut Listing) -> Result<(), Error> {
    let mut entries = entries(folder)?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let kind = entry.file_type().map_err(|error| Error::open(&path, &error))?;
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        if kind.is_dir() && !hidden {
            search(&path, listing)?;
            continue;
        }
        if !hidden
            && is_text_name(&path)
            && let Some(meta) = file_of(&entry)?
        {
            listing.inputs.push(Input { source: Source::Path(path), size: Some(meta.len()) });
            continue;
        }
        listing.skipped.push(path);
    }
    Ok(())
}

fn is_text_name(path: &Path) -> bool {
    let is = |path: &Path, endings: &[&str]| {
        path.extension().is_some_and(|found| endings.iter().any(|ending| found.eq_ignore_ascii_case(ending)))
    };
    is(path, &TEXT_ENDINGS)
        || is(path, &COMPRESSED_ENDINGS) && path.file_stem().is_some_and(|stem| is(Path::new(stem), &TEXT_ENDINGS))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn parse(text: &str) -> Result<Source, String> {
        Source::parse(OsStr::new(text)).map_err(|error| error.to_string())
    }

    #[test]
    fn sources_are_told_apart_by_how_they_are_written() {
        assert_eq!(parse("-"), Ok(Source::Stdin));
        assert_eq!(parse("builtin:shakespeare"), Ok(Source::Shakespeare));
        assert_eq!(parse("HTTPS://a.org/b"), Ok(Source::Url("HTTPS://a.org/b".into())));
        assert_eq!(parse("http.txt"), Ok(Source::Path("http.txt".into())));
        assert_eq!(parse("./builtin:x"), Ok(Source::Path("./builtin:x".into())));
        assert!(parse("builtin:milton").unwrap_err().contains("expected builtin:shakespeare"));
        assert!(parse("ftp://a.org/b").unwrap_err().contains("ftp://"));
        assert!(parse("").unwrap_err().contains("empty"));
    }

    #[test]
    fn a_password_in_an_address_is_not_shown() {
        assert_eq!(parse("https://me:secret@a.org/b@c").unwrap().to_string(), "https://a.org/b@c");
        assert_eq!(parse("https://a.org/b@c").unwrap().to_string(), "https://a.org/b@c");
    }

    #[test]
    fn a_folder_gives_its_text_files_in_order_and_says_what_it_skips() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir_all(root.join("b/deep")).unwrap();
        fs::create_dir(root.join(".git")).unwrap();
        for name in
            ["z.txt", "a.MD", "b/deep/c.txt.gz", "b/x.txt.zst", "picture.png", "c.gz", ".hidden.txt", ".git/d.txt"]
        {
            fs::write(root.join(name), "text").unwrap();
        }
        let listing = list(&[Source::Path(root.into())]).unwrap();
        let names: Vec<_> = listing
            .inputs
            .iter()
            .map(|input| match &input.source {
                Source::Path(path) => path.strip_prefix(root).unwrap().display().to_string(),
                other => panic!("{other}"),
            })
            .collect();
        assert_eq!(names, ["a.MD", "b/deep/c.txt.gz", "b/x.txt.zst", "z.txt"]);
        assert!(listing.inputs.iter().all(|input| input.size == Some(4)));
        let skipped: Vec<_> = listing.skipped.iter().map(|path| path.strip_prefix(root).unwrap()).collect();
        assert_eq!(skipped, [".git", ".hidden.txt", "c.gz", "picture.png"].map(Path::new));
    }

    #[cfg(unix)]
    #[test]
    fn a_link_to_a_file_is_read_and_a_link_to_a_folder_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::write(root.join("a.txt"), "text").unwrap();
        std::os::unix::fs::symlink(root.join("a.txt"), root.join("b.txt")).unwrap();
        std::os::unix::fs::symlink(root, root.join("round.txt")).unwrap();
        std::os::unix::fs::symlink(root.join("gone"), root.join("nowhere.txt")).unwrap();
        let listing = list(&[Source::Path(root.into())]).unwrap();
        assert_eq!(listing.inputs.len(), 2);
        assert_eq!(listing.skipped, [root.join("nowhere.txt"), root.join("round.txt")]);
    }

    #[test]
    fn what_cannot_be_listed_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = |sources: &[Source]| list(sources).unwrap_err().to_string();
        let missing = folder.path().join("missing.txt");
        assert_eq!(error(&[Source::Path(missing.clone())]), format!("{}: no such file or folder", missing.display()));
        fs::write(folder.path().join("a.png"), "").unwrap();
        assert!(error(&[Source::Path(folder.path().into())]).contains("expected .txt or .md files"));
        assert!(error(&[Source::Stdin, Source::Stdin]).contains("only once"));
    }
}
