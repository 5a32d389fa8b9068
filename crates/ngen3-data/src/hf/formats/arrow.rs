//! Arrow IPC files and streams (`datasets` saves streams), one batch at a time.

use std::fs::File;
use std::io::{BufReader, Read, Seek};

use arrow_array::RecordBatch;
use arrow_ipc::reader::{FileReader, StreamReader};
use arrow_schema::{ArrowError, Fields, SchemaRef};

use super::file::{BUFFER, DataFileReader, TextRecord, TextRecordFn};
use crate::Error;

/// Magic bytes of the file format.
const MAGIC: &[u8] = b"ARROW1";

type Batches = Box<dyn Iterator<Item = Result<RecordBatch, ArrowError>>>;

/// Opens a file with only the top-level columns that `choose` returns; returns its whole schema.
fn open(
    input: &DataFileReader,
    choose: &dyn Fn(&Fields) -> Result<Vec<usize>, String>,
) -> Result<(SchemaRef, Batches), Error> {
    let damaged = |error: ArrowError| damaged(input, &error);
    let mut file = input.file()?;
    let mut start = Vec::new();
    file.by_ref().take(MAGIC.len() as u64).read_to_end(&mut start).map_err(|error| input.failed(error))?;
    let mut again = || file.rewind().and_then(|()| file.try_clone()).map_err(|error| input.failed(error));
    let is_file = start == MAGIC;
    let buffered = |file: File| BufReader::with_capacity(BUFFER, file);
    let schema = if is_file {
        FileReader::try_new(buffered(again()?), None).map_err(damaged)?.schema()
    } else {
        StreamReader::try_new(buffered(again()?), None).map_err(damaged)?.schema()
    };
    let projection = Some(choose(schema.fields()).map_err(|reason| input.failed(reason))?);
    let batches: Batches = if is_file {
        Box::new(FileReader::try_new(buffered(again()?), projection).map_err(damaged)?)
    } else {
        Box::new(StreamReader::try_new(buffered(again()?), projection).map_err(damaged)?)
    };
    Ok((schema, batches))
}

fn damaged(input: &DataFileReader, error: &dyn std::fmt::Display) -> Error {
    input.failed(format!("not a complete Arrow file; it may be truncated ({error})"))
}

/// Reads all records, with all their columns.
pub(super) fn batches(input: &DataFileReader) -> Result<Vec<RecordBatch>, Error> {
    let (_, batches) = open(input, &|fields| Ok((0..fields.len()).collect()))?;
    batches.collect::<Result<_, _>>().map_err(|error| damaged(input, &error))
}

pub(super) fn read(input: &DataFileReader, take: &mut TextRecordFn) -> Result<(), Error> {
    let find = |fields: &Fields| input.column.map(|column| column.find(fields)).transpose();
    let (schema, batches) = open(input, &|fields| Ok(find(fields)?.map(|(index, _)| index).into_iter().collect()))?;
    let found = find(schema.fields()).map_err(|reason| input.failed(reason))?;
    let (mut number, mut text) = (0, String::new());
    for batch in batches {
        let batch = batch.map_err(|error| damaged(input, &error))?;
        for row in 0..batch.num_rows() {
            number += 1;
            if number <= input.skip {
                continue;
            }
            text.clear();
            let has = match (input.column, found) {
                (Some(column), Some((_, below))) => column
                    .arrow_text(batch.column(0), row, below, &mut text)
                    .map_err(|reason| input.failed(format!("record {number}: {reason}")))?,
                _ => false,
            };
            if take(TextRecord { text: has.then_some(&text), bytes_read: 0 })?.is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}
