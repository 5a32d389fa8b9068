//! Archives, `.tar` and `.zip`, recognised by their first bytes: their members are read one after the other, as streams.
//!
//! Nothing is unpacked to a path of the archive's choice, so names such as `../x` are only names. A member may claim any size: its
//! bytes are read as they come.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufReader, Cursor, Read, Seek};
use std::path::Path;
use std::rc::Rc;

use zip::ZipArchive;
use zip::result::ZipError;

use super::open::{ByteSource, peek};
use super::read_error::read_reason;
use crate::Error;

/// Bytes of a header of a tar archive, whose checksum tells that it is one.
const TAR_HEADER: usize = 512;
/// Position of the checksum in it: eight characters, which count as spaces.
const TAR_CHECKSUM: std::ops::Range<usize> = 148..156;
/// Maximum size of the headers of one member, among them its name.
const MAX_HEADERS: u64 = 1 << 20;
/// Magic bytes of a zip archive, and of one without members.
const ZIP: [&[u8]; 2] = [b"PK\x03\x04", b"PK\x05\x06"];
/// Maximum number of members of a zip archive, whose list is read into memory.
const MAX_ZIP_MEMBERS: usize = 1 << 20;
/// Characters shown of a member's name.
const MAX_NAME: usize = 200;

/// Content of an open source.
pub(crate) enum Content<'a> {
    /// One document.
    Document(ByteSource<'a>),
    Archive(Archive<'a>),
}

/// An open archive.
pub(crate) struct Archive<'a> {
    name: String,
    /// True if the archive itself is compressed.
    compressed: bool,
    members: Members<'a>,
}

enum Members<'a> {
    Tar(Box<dyn Read + 'a>),
    Zip(Box<ZipArchive<BufReader<File>>>),
}

/// A member of an archive.
pub(crate) struct Member<'a> {
    /// Its path, without control characters and a leading `./`.
    pub(crate) path: String,
    /// Its bytes; `None` for a folder, a link or a device.
    pub(crate) bytes: Option<&'a mut dyn Read>,
}

/// Receives a member.
pub(crate) type MemberFn<'a> = dyn FnMut(Member) -> Result<(), Error> + 'a;

/// Returns the name of an archive's member for messages.
pub(crate) fn member_name(archive: &str, path: &str) -> String {
    format!("{path} in {archive}")
}

/// Looks at the first bytes of a source. A zip archive that is not a file on disk, such as stdin, is copied to an unnamed file in
/// the folder `scratch` first, since its list of members is at its end.
///
/// # Errors
/// [`Error::Read`] for a damaged zip archive, or one within compressed data.
pub(crate) fn look_inside<'a>(name: &str, source: ByteSource<'a>, scratch: &Path) -> Result<Content<'a>, Error> {
    let ByteSource { mut bytes, compressed, bytes_read, file } = source;
    let failed = |error: io::Error| Error::read(name, read_reason(compressed, &error));
    let start = peek(&mut bytes, TAR_HEADER).map_err(failed)?;
    let is_zip = ZIP.iter().any(|magic| start.starts_with(magic));
    let is_tar = is_tar(&start);
    let mut bytes: Box<dyn Read + 'a> = Box::new(Cursor::new(start).chain(bytes));
    let archive = |members| Content::Archive(Archive { name: name.into(), compressed, members });
    if is_tar {
        return Ok(archive(Members::Tar(bytes)));
    }
    if !is_zip {
        return Ok(Content::Document(ByteSource { bytes, compressed, bytes_read, file }));
    }
    if compressed {
        return Err(Error::read(name, "a zip archive within compressed data is not supported; decompress it first"));
    }
    let file = match file {
        Some(file) => file,
        None => {
            let mut copy = tempfile::tempfile_in(scratch).map_err(|error| Error::read(name, error))?;
            io::copy(&mut bytes, &mut copy).map_err(failed)?;
            copy
        }
    };
    Ok(archive(Members::Zip(Box::new(open_zip(name, file)?))))
}

/// True if the first bytes are a member's header. A text whose bytes happen to sum up to the number in it does not exist.
fn is_tar(start: &[u8]) -> bool {
    let Some(checksum) = start.get(TAR_CHECKSUM).filter(|_| start.len() == TAR_HEADER) else { return false };
    let digits = checksum.iter().skip_while(|&&byte| byte == b' ').take_while(|byte| (b'0'..=b'7').contains(byte));
    let expected = digits.fold(0u32, |sum, &digit| sum << 3 | u32::from(digit - b'0'));
    let byte = |(at, &byte): (usize, &u8)| u32::from(if TAR_CHECKSUM.contains(&at) { b' ' } else { byte });
    expected > 0 && expected == start.iter().enumerate().map(byte).sum::<u32>()
}

fn open_zip(name: &str, mut file: File) -> Result<ZipArchive<BufReader<File>>, Error> {
    file.rewind().map_err(|error| Error::read(name, error))?;
    let zip = ZipArchive::new(BufReader::new(file)).map_err(|error| zip_error(name, error))?;
    if zip.len() > MAX_ZIP_MEMBERS {
        let reason = format!("expected at most {MAX_ZIP_MEMBERS} members in a zip archive, got {}", zip.len());
        return Err(Error::read(name, reason));
    }
    Ok(zip)
}

fn zip_error(name: &str, error: ZipError) -> Error {
    Error::read(
        name,
        match error {
            ZipError::Io(error) => format!("damaged or truncated zip archive ({error})"),
            ZipError::InvalidArchive(reason) => format!("damaged or truncated zip archive ({reason})"),
            ZipError::UnsupportedArchive(ZipError::PASSWORD_REQUIRED) => "encrypted; expected no password".into(),
            other => other.to_string(),
        },
    )
}

impl Archive<'_> {
    /// Passes the members to `take` in the archive's order. What `take` leaves of a member is skipped.
    ///
    /// # Errors
    /// [`Error::Read`] for an archive that is damaged or truncated; any error of `take`.
    pub(crate) fn each(self, take: &mut MemberFn) -> Result<(), Error> {
        let Self { name, compressed, members } = self;
        match members {
            Members::Tar(bytes) => each_of_tar(&name, compressed, bytes, take),
            Members::Zip(zip) => each_of_zip(&name, *zip, take),
        }
    }
}

fn each_of_tar(name: &str, compressed: bool, bytes: Box<dyn Read + '_>, take: &mut MemberFn) -> Result<(), Error> {
    let damaged = |error: io::Error| Error::read(name, tar_reason(compressed, &error));
    let left = Rc::new(Cell::new(MAX_HEADERS));
    let mut tar = tar::Archive::new(HeaderLimit { inner: bytes, left: Rc::clone(&left) });
    let mut entries = tar.entries().map_err(damaged)?;
    loop {
        left.set(MAX_HEADERS);
        let Some(entry) = entries.next() else { return Ok(()) };
        left.set(u64::MAX);
        let mut entry = entry.map_err(damaged)?;
        let path = printable(&String::from_utf8_lossy(&entry.path_bytes()));
        let is_file = matches!(
            entry.header().entry_type(),
            tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse
        );
        let size = entry.size();
        let mut bytes = TarMember { inner: &mut entry, left: size, compressed };
        take(Member { path, bytes: is_file.then_some(&mut bytes as &mut dyn Read) })?;
        // Read here, where the limit of headers does not count it.
        io::copy(&mut bytes, &mut io::sink()).map_err(|error| Error::read(name, error))?;
    }
}

/// Describes a failed read of a tar archive.
fn tar_reason(compressed: bool, error: &io::Error) -> String {
    match error.kind() {
        _ if error.get_ref().is_some_and(|inner| inner.is::<HeaderTooLong>()) => error.to_string(),
        // Errors of the format, which the library reports as such.
        io::ErrorKind::Other => format!("damaged or truncated tar archive ({error})"),
        _ => read_reason(compressed, error),
    }
}

fn each_of_zip(name: &str, mut zip: ZipArchive<BufReader<File>>, take: &mut MemberFn) -> Result<(), Error> {
    for index in 0..zip.len() {
        let mut entry = zip.by_index(index).map_err(|error| zip_error(name, error))?;
        let path = printable(&String::from_utf8_lossy(entry.name_raw()));
        let is_file = entry.is_file();
        let mut bytes = ZipMember(&mut entry);
        take(Member { path, bytes: is_file.then_some(&mut bytes as &mut dyn Read) })?;
    }
    Ok(())
}

/// Returns a name without control characters and a leading `./`, shortened.
fn printable(path: &str) -> String {
    path.trim_start_matches("./").chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).take(MAX_NAME).collect()
}

/// The bytes of a tar archive; errors if the headers of a member are too long.
struct HeaderLimit<R> {
    inner: R,
    /// Bytes that may still be read.
    left: Rc<Cell<u64>>,
}

#[derive(Debug, thiserror::Error)]
#[error("the headers of a member are larger than the limit of {MAX_HEADERS} bytes")]
struct HeaderTooLong;

impl<R: Read> Read for HeaderLimit<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        let left = self.left.get().checked_sub(n as u64).ok_or_else(|| io::Error::other(HeaderTooLong))?;
        self.left.set(left);
        Ok(n)
    }
}

/// A member of a tar archive, with its errors told apart from those of what is in it.
struct TarMember<R> {
    inner: R,
    /// Bytes that must follow.
    left: u64,
    compressed: bool,
}

impl<R: Read> Read for TarMember<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = match self.inner.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            Err(error) => return Err(io::Error::other(tar_reason(self.compressed, &error))),
            Ok(n) => n,
        };
        if n == 0 && self.left > 0 && !buffer.is_empty() {
            return Err(io::Error::other("the tar archive ends early; it may be truncated"));
        }
        self.left = self.left.saturating_sub(n as u64);
        Ok(n)
    }
}

/// A member of a zip archive; the same.
struct ZipMember<R>(R);

impl<R: Read> Read for ZipMember<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted => error,
            _ => io::Error::other(format!("damaged or truncated zip archive ({error})")),
        })
    }
}
