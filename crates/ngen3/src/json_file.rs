//! A file of JSON that a command leaves: what is checked before anything is computed for it.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use anyhow::{Context, bail};

/// Checks that there is a folder to write the file into, and that what it holds now, if anything, is JSON as well: a model or a text
/// that is named by a slip is not replaced.
pub fn check(path: &Path) -> anyhow::Result<()> {
    let shown = path.display();
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() && !folder.is_dir() => {
            bail!("cannot write {shown}: there is no folder {}", folder.display())
        }
        _ if path.is_dir() => bail!("cannot write {shown}: it is a folder"),
        _ => {}
    }
    let mut start = Vec::new();
    let read = match File::open(path) {
        // A device or a pipe is not asked for bytes; writing refuses it.
        Ok(file) if file.metadata().is_ok_and(|file| file.is_file()) => file.take(64).read_to_end(&mut start),
        Ok(_) => Ok(0),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    };
    read.with_context(|| format!("cannot look at {shown}, which would be replaced"))?;
    match start.iter().find(|byte| !byte.is_ascii_whitespace()) {
        None | Some(b'{' | b'[') => Ok(()),
        Some(_) => {
            bail!("{shown} is there and holds something else than JSON, which would be lost; choose another --out")
        }
    }
}
