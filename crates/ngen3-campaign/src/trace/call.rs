//! A system call, as far as the campaigns care.

use std::fmt;
use std::path::PathBuf;

/// A call on a file or folder below the traced folder, or one that takes memory.
#[derive(Clone, Debug)]
pub struct Call {
    /// Its kind, with what it changes.
    pub kind: Kind,
    /// File or folder it is about; empty for memory.
    pub path: PathBuf,
}

/// Kinds of calls.
#[derive(Clone, Debug)]
pub enum Kind {
    /// Opens a file or folder.
    Open {
        /// It is made if it is missing, and it is missing.
        make: bool,
        /// It is opened as a folder.
        folder: bool,
        /// Its content is dropped.
        truncate: bool,
    },
    /// Reads from a file.
    Read {
        /// Bytes asked for.
        len: u64,
    },
    /// Writes to a file.
    Write {
        /// Position in the file.
        at: u64,
        /// Bytes to write.
        data: Vec<u8>,
    },
    /// Changes the length of a file.
    Truncate {
        /// New length.
        len: u64,
    },
    /// Renames a file or folder.
    Rename {
        /// New name.
        to: PathBuf,
        /// The two change places.
        exchange: bool,
    },
    /// Removes a file.
    Unlink,
    /// Makes a folder.
    MakeFolder,
    /// Removes a folder.
    RemoveFolder,
    /// Syncs a file or folder to disk.
    Sync,
    /// Takes memory from the system.
    Memory {
        /// Bytes asked for.
        len: u64,
    },
    /// Changes files in a way that the campaigns have no model of.
    Unknown {
        /// Name of the call.
        name: &'static str,
    },
}

impl Call {
    /// Returns true if it changes files, or makes their changes last.
    pub fn changes(&self) -> bool {
        match self.kind {
            Kind::Open { make, truncate, .. } => make || truncate,
            Kind::Read { .. } | Kind::Memory { .. } => false,
            _ => true,
        }
    }

    /// Returns the name of its kind.
    pub fn name(&self) -> &'static str {
        match self.kind {
            Kind::Open { make: true, .. } => "create",
            Kind::Open { .. } => "open",
            Kind::Read { .. } => "read",
            Kind::Write { .. } => "write",
            Kind::Truncate { .. } => "truncate",
            Kind::Rename { .. } => "rename",
            Kind::Unlink => "unlink",
            Kind::MakeFolder => "mkdir",
            Kind::RemoveFolder => "rmdir",
            Kind::Sync => "fsync",
            Kind::Memory { .. } => "mmap",
            Kind::Unknown { name } => name,
        }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name())?;
        if let Some(name) = self.path.file_name() {
            write!(f, " {}", name.display())?;
        }
        match &self.kind {
            Kind::Write { data, .. } => write!(f, " ({} bytes)", data.len()),
            Kind::Read { len } | Kind::Memory { len } => write!(f, " ({len} bytes)"),
            Kind::Rename { to, .. } => write!(f, " to {}", to.file_name().unwrap_or_default().display()),
            _ => Ok(()),
        }
    }
}
