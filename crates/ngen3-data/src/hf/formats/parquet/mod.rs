//! Parquet, one record at a time: only pages of the wanted columns are decompressed, as they are needed.
//!
//! `column.rs` decodes a column, `assemble.rs` makes records of the columns.

mod assemble;
mod column;

use parquet::errors::ParquetError;
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::reader::FileReader;
use parquet::file::serialized_reader::SerializedFileReader;

use self::assemble::{Assembler, Schema};
use super::file::{DataFileReader, FileRecord, FileRecordFn};
use crate::Error;

/// Bytes of records that a column should hold decoded, and their maximum number.
const STRETCH: u64 = 1 << 20;
const ROWS: u64 = 8192;

fn open(input: &DataFileReader) -> Result<SerializedFileReader<std::fs::File>, Error> {
    SerializedFileReader::new(input.file()?).map_err(|error| damaged(input, &error))
}

fn damaged(input: &DataFileReader, error: &dyn std::fmt::Display) -> Error {
    input.failed(format!("not a complete Parquet file; it may be truncated ({error})"))
}

pub(super) fn count(input: &DataFileReader) -> Result<u64, Error> {
    let count = open(input)?.metadata().file_metadata().num_rows();
    u64::try_from(count).map_err(|_| damaged(input, &format!("its footer promises {count} records")))
}

pub(super) fn read(input: &DataFileReader, take: &mut FileRecordFn) -> Result<(), Error> {
    let damaged = |error: ParquetError| damaged(input, &error);
    let size = input.path.metadata().map_err(|error| input.failed(error))?.len();
    let reader = open(input)?;
    let file = reader.metadata().file_metadata();
    let names: Vec<_> = file.schema().get_fields().iter().map(|field| field.name().to_owned()).collect();
    let wanted = input.wanted.among(&names).map_err(|reason| input.failed(reason))?;
    let schema = Schema::new(file.schema_descr(), &wanted).map_err(damaged)?;
    let promised = u64::try_from(file.num_rows()).unwrap_or(0);
    let mut done = 0;
    for (index, group) in reader.metadata().row_groups().iter().enumerate() {
        // Without a column there is no record either, whatever the footer says.
        let rows = if wanted.is_empty() { 0 } else { u64::try_from(group.num_rows()).unwrap_or(0) };
        let skipped = input.skip.saturating_sub(done).min(rows);
        done += skipped;
        if skipped == rows {
            continue;
        }
        let stretch = stretch(group, rows);
        let group = reader.get_row_group(index).map_err(damaged)?;
        let mut records = Assembler::new(&schema, &*group, stretch).map_err(damaged)?;
        records.skip(skipped).map_err(damaged)?;
        for _ in skipped..rows {
            done += 1;
            let record = records.next(input, done).map_err(damaged)?;
            let columns = record.map(Some).or_else(|error| input.skip_bad(error))?;
            // The share of the records read approximates the share of the bytes.
            let bytes_read = u128::from(size) * u128::from(done.min(promised)) / u128::from(promised.max(1));
            if take(FileRecord { columns, bytes_read: bytes_read as u64 })?.is_break() {
                return Ok(());
            }
        }
    }
    // A footer can promise more records than there are.
    if done < promised {
        return Err(input.failed(format!(
            "not a complete Parquet file; it may be truncated (expected {promised} records as in its footer, got {done})"
        )));
    }
    Ok(())
}

/// Returns how many records of a row group to decode at once.
fn stretch(group: &RowGroupMetaData, rows: u64) -> usize {
    let each = u64::try_from(group.total_byte_size()).unwrap_or(0) / rows.max(1);
    // At most ROWS, so it fits.
    (STRETCH / each.max(1)).clamp(1, ROWS) as usize
}
