//! The text members of an archive.

use std::io::{Cursor, Read};

use ngen3_model::words::count;

use super::archive::{Archive, member_name};
use super::kind::{MAGIC_BYTES, advice, binary_of, is_archive_name, is_binary_name, is_hidden};
use super::open::{ByteSource, open, peek};
use super::read_error::read_error;
use crate::Error;

/// Members that are not read.
#[derive(Default)]
pub(crate) struct SkippedMembers {
    folders: u64,
    hidden: u64,
    binary: u64,
    others: u64,
    all: u64,
    /// The first one that is not a folder, or the first folder.
    example: Option<String>,
    example_is_folder: bool,
}

/// A member that may be text.
pub(crate) struct TextMember<'a> {
    /// Its name for messages.
    pub(crate) name: String,
    /// Its path in the archive.
    pub(crate) path: &'a str,
    pub(crate) source: ByteSource<'a>,
}

/// Receives a member; returns false if it turns out to be binary data.
pub(crate) type TextMemberFn<'a> = dyn FnMut(TextMember) -> Result<bool, Error> + 'a;

impl SkippedMembers {
    fn skip(&mut self, path: &str, reason: fn(&mut Self) -> &mut u64) {
        *reason(self) += 1;
        let is_folder = path.ends_with('/');
        if self.example.is_none() || self.example_is_folder && !is_folder {
            self.example = Some(path.to_owned());
            self.example_is_folder = is_folder;
        }
    }

    /// Returns a note about the skipped members, if there are any.
    pub(crate) fn note(&self, archive: &str) -> Option<String> {
        let example = self.example.as_ref()?;
        let Self { folders, hidden, binary, others, all, .. } = self;
        let kinds = [(folders, "folder"), (hidden, "hidden file"), (binary, "binary file"), (others, "link or device")];
        let kinds: Vec<_> = kinds.into_iter().filter(|(n, _)| **n > 0).map(|(n, kind)| count(*n, kind)).collect();
        let skipped = folders + hidden + binary + others;
        Some(format!("{archive}: skipped {skipped} of its {all} members, such as {example} ({})", kinds.join(", ")))
    }
}

/// Passes the members that may be text to `take`, decompressed; returns the others. `refuse` returns why a path must not be read.
///
/// # Errors
/// [`Error::Read`] for a damaged archive, an archive within it, or a refused member; any error of `take`.
pub(crate) fn each_text_member(
    name: &str,
    archive: Archive,
    refuse: &dyn Fn(&str) -> Option<String>,
    take: &mut TextMemberFn,
) -> Result<SkippedMembers, Error> {
    let mut skipped = SkippedMembers::default();
    archive.each(&mut |member| {
        let path = member.path.as_str();
        let name = member_name(name, path);
        skipped.all += 1;
        let Some(bytes) = member.bytes else {
            skipped.skip(path, if path.ends_with('/') { |all| &mut all.folders } else { |all| &mut all.others });
            return Ok(());
        };
        if is_hidden(path) {
            skipped.skip(path, |all| &mut all.hidden);
            return Ok(());
        }
        if is_archive_name(path) {
            return Err(Error::read(name, "archives within archives are not supported; unpack it first"));
        }
        if let Some(reason) = refuse(path) {
            return Err(Error::read(name, reason));
        }
        let mut source = open(&name, bytes, false)?;
        let start =
            peek(&mut source.bytes, MAGIC_BYTES).map_err(|error| read_error(&name, source.compressed, &error))?;
        let binary = binary_of(&start);
        if let Some(what) = binary.filter(|what| what.ends_with("archive") || what.ends_with("table")) {
            let reason = format!("expected text, got {what}; {}", advice(what, "FILE"));
            return Err(Error::read(name, reason));
        }
        let is_text = binary.is_none() && !is_binary_name(path);
        let source = ByteSource { bytes: Box::new(Cursor::new(start).chain(source.bytes)), ..source };
        if !is_text || !take(TextMember { name, path, source })? {
            skipped.skip(path, |all| &mut all.binary);
        }
        Ok(())
    })?;
    Ok(skipped)
}
