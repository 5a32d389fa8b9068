//! TensorBoard event files: a stream of TFRecords, each with one protobuf `Event`.
//!
//! Record: length u64, masked CRC-32C of it u32, bytes, masked CRC-32C of those u32, all little-endian.
//! Event: 1 `wall_time` double, 2 `step` int64, 3 `file_version` string, 5 `summary`; summary: 1 repeated value;
//! value: 1 `tag` string, 2 `simple_value` float. (TensorFlow's `record_writer.cc`, `event.proto`, `summary.proto`.)

use std::io::{self, Write};

/// Encodes the first event of a file, its version; `wall_time` in seconds since 1970.
pub fn version_event(wall_time: f64) -> Vec<u8> {
    let mut event = Vec::new();
    double(&mut event, 1, wall_time);
    bytes(&mut event, 3, b"brain.Event:2");
    event
}

/// Encodes the scalars (tag, value) of a step; `wall_time` in seconds since 1970.
pub fn scalar_event(wall_time: f64, step: u64, scalars: &[(&str, f32)]) -> Vec<u8> {
    let mut summary = Vec::new();
    for &(tag, number) in scalars {
        let mut value = Vec::new();
        bytes(&mut value, 1, tag.as_bytes());
        key(&mut value, 2, 5);
        value.extend(number.to_le_bytes());
        bytes(&mut summary, 1, &value);
    }
    let mut event = Vec::new();
    double(&mut event, 1, wall_time);
    key(&mut event, 2, 0);
    varint(&mut event, step);
    bytes(&mut event, 5, &summary);
    event
}

/// Writes one record.
pub fn write_record(out: &mut impl Write, event: &[u8]) -> io::Result<()> {
    let length = (event.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(event.len() + 16);
    record.extend(length);
    record.extend(masked_crc(&length).to_le_bytes());
    record.extend(event);
    record.extend(masked_crc(event).to_le_bytes());
    out.write_all(&record)
}

/// CRC of a TFRecord, rotated and offset by a constant, because a CRC of data that contains CRCs is weak.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Writes a field's number and wire type: 0 varint, 1 eight bytes, 2 length and bytes, 5 four bytes.
fn key(out: &mut Vec<u8>, field: u64, wire_type: u64) {
    varint(out, field << 3 | wire_type);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn double(out: &mut Vec<u8>, field: u64, value: f64) {
    key(out, field, 1);
    out.extend(value.to_le_bytes());
}

fn bytes(out: &mut Vec<u8>, field: u64, value: &[u8]) {
    key(out, field, 2);
    varint(out, value.len() as u64);
    out.extend(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected bytes from tests/fixtures/tensorboard_events.py, with tensorboard 2.21.
    #[test]
    fn the_bytes_are_tensorboard_s() {
        let mut file = Vec::new();
        write_record(&mut file, &version_event(1.5)).unwrap();
        write_record(&mut file, &scalar_event(2.5, 300, &[("loss/train", 4.25), ("lr", 0.5)])).unwrap();
        let hex: String = file.iter().map(|byte| format!("{byte:02x}")).collect();
        let expected = "1800000000000000a37f4b2209000000000000f83f1a0d627261696e2e4576656e743a322a28646c2c00000000000000\
            f4aecc4509000000000000044010ac022a1e0a110a0a6c6f73732f747261696e15000088400a090a026c72150000003f\
            215022e8";
        assert_eq!(hex, expected);
    }
}
