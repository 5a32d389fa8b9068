//! Parquet, one batch of records at a time: only pages of the text's column are decompressed, as they are needed.

use arrow_array::{RecordBatch, RecordBatchReader};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};

use super::file::{DataFileReader, TextRecord, TextRecordFn};
use crate::Error;

/// Bytes of text that a batch should have, and its maximum number of records.
const STRETCH: u64 = 1 << 20;
const ROWS: u64 = 8192;

/// Opens a file and reads its footer.
fn open(input: &DataFileReader) -> Result<ParquetRecordBatchReaderBuilder<std::fs::File>, Error> {
    // Parquet's own types, whatever Arrow schema another program embedded.
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    ParquetRecordBatchReaderBuilder::try_new_with_options(input.file()?, options)
        .map_err(|error| damaged(input, &error))
}

fn damaged(input: &DataFileReader, error: &dyn std::fmt::Display) -> Error {
    input.failed(format!("not a complete Parquet file; it may be truncated ({error})"))
}

pub(super) fn count(input: &DataFileReader) -> Result<u64, Error> {
    let count = open(input)?.metadata().file_metadata().num_rows();
    u64::try_from(count).map_err(|_| damaged(input, &format!("its footer promises {count} records")))
}

/// Reads all records, with all their columns.
pub(super) fn batches(input: &DataFileReader) -> Result<Vec<RecordBatch>, Error> {
    let promised = count(input)?;
    let reader = open(input)?.build().map_err(|error| damaged(input, &error))?;
    let batches = reader.collect::<Result<Vec<_>, _>>().map_err(|error| damaged(input, &error))?;
    let found = batches.iter().map(|batch| batch.num_rows() as u64).sum::<u64>();
    if found < promised {
        return Err(damaged(input, &format!("expected {promised} records as in its footer, got {found}")));
    }
    Ok(batches)
}

pub(super) fn read(input: &DataFileReader, take: &mut TextRecordFn) -> Result<(), Error> {
    let Some(column) = input.column else { return Ok(()) };
    let size = input.path.metadata().map_err(|error| input.failed(error))?.len();
    let builder = open(input)?;
    let (index, below) = column.find(builder.schema().fields()).map_err(|reason| input.failed(reason))?;
    let promised = u64::try_from(builder.metadata().file_metadata().num_rows()).unwrap_or(0);
    let total = promised.max(1);
    let bytes: i64 = builder.metadata().row_groups().iter().map(|group| group.total_byte_size().max(0)).sum();
    let each = (u64::try_from(bytes).unwrap_or(0) / total).max(1);
    // At most ROWS, so it fits.
    let stretch = (STRETCH / each).clamp(1, ROWS) as usize;
    let mask = ProjectionMask::roots(builder.parquet_schema(), [index]);
    let skip = usize::try_from(input.skip).unwrap_or(usize::MAX);
    let reader = builder.with_projection(mask).with_batch_size(stretch).with_offset(skip).build();
    let reader = reader.map_err(|error| damaged(input, &error))?;
    if reader.schema().fields().len() != 1 {
        return Err(damaged(input, &"the column is missing"));
    }
    let (mut done, mut text) = (input.skip, String::new());
    for batch in reader {
        let batch = batch.map_err(|error| damaged(input, &error))?;
        let array = batch.column(0);
        for row in 0..batch.num_rows() {
            text.clear();
            let has = column
                .arrow_text(array, row, below, &mut text)
                .map_err(|reason| input.failed(format!("record {}: {reason}", done + 1)))?;
            done += 1;
            // The share of the records read approximates the share of the bytes.
            let bytes_read = (u128::from(size) * u128::from(done.min(total)) / u128::from(total)) as u64;
            if take(TextRecord { text: has.then_some(&text), bytes_read })?.is_break() {
                return Ok(());
            }
        }
    }
    // A footer can promise more records than the pages have.
    if done < promised {
        return Err(damaged(input, &format!("expected {promised} records as in its footer, got {done}")));
    }
    Ok(())
}
