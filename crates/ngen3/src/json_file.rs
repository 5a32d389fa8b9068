//! A file of JSON that a command leaves: what is checked before anything is computed for it.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use anyhow::{Context, bail};
use ngen3_model::files;

/// Checks that the file can be written, and that what it holds now, if anything, is JSON as well: a model or a text that is named
/// by a slip is not replaced.
pub fn check(path: &Path) -> anyhow::Result<()> {
    files::check(path)?;
    let shown = path.display();
    let mut start = Vec::new();
    let read = match File::open(path) {
        Ok(file) => file.take(64).read_to_end(&mut start),
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
