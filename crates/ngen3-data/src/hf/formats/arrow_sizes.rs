//! Sizes that compressed batches of an Arrow file claim, checked before the library reserves memory for them.
//!
//! A compressed buffer begins with the length of its content, which the library allocates at once, whatever it is; an allocation
//! that fails ends the process. All batches are checked, and what is malformed is refused: the library skips columns that are not
//! wanted, and might come to a batch that was not checked.

use std::io::{self, Read, Seek, SeekFrom};

use arrow_ipc::{Block, Message, root_as_footer, root_as_message};

/// Bytes that every batch may claim, and bytes for each byte that it has.
const MAX_BATCH: u64 = 1 << 30;
const MAX_RATIO: u64 = 32;
/// Bytes of a footer's length and the magic bytes at the end of a file.
const END: usize = 10;
const CONTINUATION: [u8; 4] = [0xff; 4];

/// Fails if a batch claims too much, or the file is malformed. `is_file` tells the file format from the stream.
///
/// # Errors
/// The reason alone.
pub(super) fn check(file: &mut (impl Read + Seek), is_file: bool) -> Result<(), String> {
    let checked = if is_file { check_file(file) } else { check_stream(file) };
    checked.map_err(|error| match error.get_ref() {
        Some(inner) if inner.is::<TooLarge>() => error.to_string(),
        _ => format!("not a complete Arrow file; it may be truncated ({error})"),
    })
}

#[derive(Debug, thiserror::Error)]
#[error("a batch of {bytes} bytes claims to hold {claimed}")]
struct TooLarge {
    bytes: u64,
    claimed: u64,
}

fn malformed<E>(_: E) -> io::Error {
    io::ErrorKind::InvalidData.into()
}

fn check_file(file: &mut (impl Read + Seek)) -> io::Result<()> {
    let mut end = [0; END];
    let after = file.seek(SeekFrom::End(-(END as i64)))?;
    file.read_exact(&mut end)?;
    let len = u64::from(u32::from_le_bytes([end[0], end[1], end[2], end[3]]));
    file.seek(SeekFrom::Start(after.checked_sub(len).ok_or_else(|| malformed(()))?))?;
    let footer = read(file, len)?;
    let footer = root_as_footer(&footer).map_err(malformed)?;
    let blocks = [footer.dictionaries(), footer.recordBatches()];
    for block in blocks.into_iter().flatten().flatten() {
        check_block(file, block)?;
    }
    Ok(())
}

fn check_block(file: &mut (impl Read + Seek), block: &Block) -> io::Result<()> {
    let start = u64::try_from(block.offset()).map_err(malformed)?;
    let len = u64::try_from(block.metaDataLength()).map_err(malformed)?;
    file.seek(SeekFrom::Start(start))?;
    let metadata = read(file, len)?;
    let skipped = if metadata.starts_with(&CONTINUATION) { 8 } else { 4 };
    let message = root_as_message(metadata.get(skipped..).unwrap_or_default()).map_err(malformed)?;
    check_message(file, message, start + len)
}

fn check_stream(file: &mut (impl Read + Seek)) -> io::Result<()> {
    loop {
        let mut len = [0; 4];
        match file.read_exact(&mut len) {
            // A stream may end without its mark.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            read => read?,
        }
        if len == CONTINUATION {
            file.read_exact(&mut len)?;
        }
        if len == [0; 4] {
            return Ok(());
        }
        let metadata = read(file, u32::from_le_bytes(len).into())?;
        let message = root_as_message(&metadata).map_err(malformed)?;
        let body = file.stream_position()?;
        check_message(file, message, body)?;
        let len = u64::try_from(message.bodyLength()).map_err(malformed)?;
        file.seek(SeekFrom::Start(body.checked_add(len).ok_or_else(|| malformed(()))?))?;
    }
}

/// Reads so many bytes; memory grows with those that there are.
fn read(file: &mut impl Read, len: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(len).read_to_end(&mut bytes)?;
    if bytes.len() as u64 == len { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// Adds up the lengths before the compressed buffers of a message, whose body starts at `body`.
fn check_message(file: &mut (impl Read + Seek), message: Message, body: u64) -> io::Result<()> {
    let dictionary = message.header_as_dictionary_batch().and_then(|batch| batch.data());
    let Some(batch) = message.header_as_record_batch().or(dictionary) else { return Ok(()) };
    let Some(buffers) = batch.buffers().filter(|_| batch.compression().is_some()) else { return Ok(()) };
    let (mut bytes, mut claimed) = (0u64, 0u64);
    for buffer in buffers {
        let (at, len) = (u64::try_from(buffer.offset()), u64::try_from(buffer.length()));
        let (at, len) = (at.map_err(malformed)?, len.map_err(malformed)?);
        if len == 0 {
            continue;
        }
        let at = body.checked_add(at).ok_or_else(|| malformed(()))?;
        // Lengths may be claimed too.
        let len = len.min(file.seek(SeekFrom::End(0))?.saturating_sub(at));
        file.seek(SeekFrom::Start(at))?;
        let mut length = [0; 8];
        file.read_exact(&mut length)?;
        // −1 stands before bytes that are not compressed.
        let content = match i64::from_le_bytes(length) {
            -1 => len,
            length => length as u64,
        };
        (bytes, claimed) = (bytes.saturating_add(len), claimed.saturating_add(content));
        if claimed > MAX_BATCH.max(bytes.saturating_mul(MAX_RATIO)) {
            return Err(io::Error::other(TooLarge { bytes, claimed }));
        }
    }
    Ok(())
}
