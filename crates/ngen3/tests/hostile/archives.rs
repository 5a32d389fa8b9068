//! Archives and compressed texts: names that lead outside, links, lying sizes, bombs.

use std::fs;
use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::case::Table;

const TOKENIZE: &str = "tokenize --dataset x --txt";

/// Entry of a zip file whose directory may say anything.
#[derive(Default)]
pub struct Entry<'a> {
    pub name: &'a str,
    pub bytes: &'a [u8],
    /// Claimed size, if not 0.
    pub claims: u64,
    /// Claimed offset.
    pub offset: Option<u64>,
    pub flags: u16,
    pub method: u16,
    /// Size of the content, if `bytes` is compressed.
    pub size: u64,
    pub crc: u32,
}

/// Returns a zip file of these entries, with a zip64 field for each number that needs it.
pub fn raw_zip(entries: &[Entry]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    let short = |value: u64| u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes();
    for entry in entries {
        let at = entry.offset.unwrap_or(file.len() as u64);
        let mut crc = flate2::Crc::new();
        crc.update(entry.bytes);
        let crc = if entry.crc == 0 { crc.sum() } else { entry.crc };
        let (packed, size) = match entry.claims {
            0 => (entry.bytes.len() as u64, entry.size.max(entry.bytes.len() as u64)),
            claim => (claim, claim),
        };
        let mut wide = Vec::new();
        for value in [size, packed].into_iter().filter(|&value| value >= u32::MAX.into()) {
            wide.extend(value.to_le_bytes());
        }
        let local = wide.clone();
        if at >= u32::MAX.into() {
            wide.extend(at.to_le_bytes());
        }
        let field = |wide: &[u8]| match wide.len() as u16 {
            0 => Vec::new(),
            len => [&1u16.to_le_bytes()[..], &len.to_le_bytes(), wide].concat(),
        };
        let (local, wide) = (field(&local), field(&wide));
        let head = |extra: &[u8]| {
            let mut head = 45u16.to_le_bytes().to_vec();
            for value in [entry.flags, entry.method, 0, 33] {
                head.extend(value.to_le_bytes());
            }
            head.extend(crc.to_le_bytes());
            head.extend(short(packed));
            head.extend(short(size));
            head.extend((entry.name.len() as u16).to_le_bytes());
            head.extend((extra.len() as u16).to_le_bytes());
            head
        };
        let name = entry.name.as_bytes();
        directory.extend([b"PK\x01\x02\x2d\x00", &head(&wide)[..], &[0; 10], &short(at), name, &wide].concat());
        file.extend([b"PK\x03\x04", &head(&local)[..], name, &local, entry.bytes].concat());
    }
    let (start, count) = (file.len() as u32, entries.len().min(u16::MAX.into()) as u16);
    let zip64 = entries.len() > usize::from(u16::MAX);
    file.extend(&directory);
    if zip64 {
        let at = file.len() as u64;
        let count = (entries.len() as u64).to_le_bytes();
        let sizes = [(directory.len() as u64).to_le_bytes(), u64::from(start).to_le_bytes()].concat();
        file.extend(
            [b"PK\x06\x06", &44u64.to_le_bytes()[..], &[45, 0, 45, 0], &[0; 8], &count, &count, &sizes].concat(),
        );
        file.extend([b"PK\x06\x07\0\0\0\0", &at.to_le_bytes()[..], &1u32.to_le_bytes()].concat());
    }
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend([count.to_le_bytes(), count.to_le_bytes()].concat());
    file.extend([(directory.len() as u32).to_le_bytes(), start.to_le_bytes()].concat());
    file.extend([0, 0]);
    file
}

/// Member of a tar archive as it is, whatever its name.
fn member(kind: tar::EntryType, name: &str, link: &str, size: u64, bytes: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_cksum();
    let padding = bytes.len().next_multiple_of(512) - bytes.len();
    [&header.as_bytes()[..], bytes, &vec![0; padding]].concat()
}

#[test]
fn names_that_lead_outside_and_links() {
    let mut table = Table::new("Archives as texts");
    let outside = table.path().join("../ngen3_hostile_outside.txt");
    let end = [0; 1024];
    let file = |name: &str| member(tar::EntryType::Regular, name, "", 4, b"text");
    let link = |kind, name: &str, to: &str| member(kind, name, to, 0, b"");
    table.put("x.tar", [file("../ngen3_hostile_outside.txt"), file("a.txt"), end.to_vec()].concat());
    table.either("tar with `../x.txt`", &format!("{TOKENIZE} x.tar"), "");
    table.put("x.tar", [file("/tmp/ngen3_hostile_outside.txt"), end.to_vec()].concat());
    table.either("tar with `/tmp/x.txt`", &format!("{TOKENIZE} x.tar"), "");
    let links = [
        link(tar::EntryType::Symlink, "a.txt", "/etc/passwd"),
        link(tar::EntryType::Link, "b.txt", "/etc/shadow"),
        link(tar::EntryType::Block, "c", ""),
        file("d.txt"),
        end.to_vec(),
    ];
    table.put("x.tar", links.concat());
    let ended =
        table.either("tar with a symlink and a hardlink to /etc, and a device", &format!("{TOKENIZE} x.tar"), "");
    assert!(ended.err.contains("skipped 3 of its 4 members"), "{}", ended.err);
    table.put("x.zip", raw_zip(&[Entry { name: "../ngen3_hostile_outside.txt", bytes: b"text", ..Entry::default() }]));
    table.either("zip with `../x.txt`", &format!("{TOKENIZE} x.zip"), "");
    table.put("x.zip", raw_zip(&[Entry { name: "a\u{1b}[2J\u{7}.txt", bytes: b"te\0xt", ..Entry::default() }]));
    table.refused("zip whose only member has a name of escapes", &format!("{TOKENIZE} x.zip"), "no text");
    assert!(!outside.exists() && fs::metadata("/tmp/ngen3_hostile_outside.txt").is_err());

    for (input, size, bytes, reason) in [
        ("tar member of 8 GiB in a file of 1 kB", (8u64 << 30) - 1, &b"text"[..], "truncated"),
        ("tar member of 2^63 bytes", 1 << 63, b"text", "x.tar"),
    ] {
        table.put("x.tar", member(tar::EntryType::Regular, "a.txt", "", size, bytes));
        table.refused(input, &format!("{TOKENIZE} x.tar"), reason);
    }
    let long = member(tar::EntryType::GNULongName, "././@LongLink", "", 5 << 20, &vec![b'a'; 5 << 20]);
    table.put("x.tar", [long, file("b"), end.to_vec()].concat());
    table.refused("tar with a name of 5 MB", &format!("{TOKENIZE} x.tar"), "larger than the limit");
    let pax = member(tar::EntryType::XHeader, "pax", "", 28, b"28 size=9223372036854775807\n");
    table.put("x.tar", [pax, file("b.txt"), end.to_vec()].concat());
    table.refused("tar whose PAX header claims 2^63 - 1 bytes", &format!("{TOKENIZE} x.tar"), "x.tar");
    table.print();
}

/// Writes `size` bytes of this value, compressed twice at the fastest level if `twice`.
fn zeros(file: &mut dyn Write, byte: u8, size: u64, twice: bool) {
    let mut outer = GzEncoder::new(file, Compression::fast());
    let block = vec![byte; 1 << 20];
    if twice {
        let mut inner = GzEncoder::new(&mut outer, Compression::fast());
        (0..size >> 20).for_each(|_| inner.write_all(&block).unwrap());
        inner.finish().unwrap();
    } else {
        (0..size >> 20).for_each(|_| outer.write_all(&block).unwrap());
    }
    outer.finish().unwrap();
}

/// Repeats a gzip member: decompressors read members one after the other.
fn repeated(file: &mut dyn Write, byte: u8, member: u64, times: usize) {
    let mut packed = Vec::new();
    zeros(&mut packed, byte, member, false);
    (0..times).for_each(|_| file.write_all(&packed).unwrap());
}

#[test]
fn bombs() {
    let mut table = Table::new("Compressed texts");
    table.write("x.txt.gz", |file| repeated(file, 0, 64 << 20, 160));
    table.refused("gz of 10 GB of zeros", &format!("{TOKENIZE} x.txt.gz"), "binary data");
    table.write("x.txt.gz", |file| repeated(file, b'a', 16 << 20, 16));
    table.either("gz of one word of 256 MB", &format!("{TOKENIZE} x.txt.gz"), "");
    table.write("x.txt.gz", |file| repeated(file, b' ', 16 << 20, 16));
    table.either("gz of 256 MB of spaces", &format!("{TOKENIZE} x.txt.gz"), "");
    table.write("x.txt.gz", |file| zeros(file, b'a', 64 << 20, true));
    table.refused("gz of a gz", &format!("{TOKENIZE} x.txt.gz"), "x.txt.gz");
    table.write("x.txt.gz", |file| repeated(file, b'\n', 16 << 20, 4));
    table.either("gz of 64 MB of empty lines, by line", &format!("{TOKENIZE} x.txt.gz --split_by line"), "");

    // Frame header of a window of 2^41 bytes, the largest that the format knows, and of 2^31.
    for (input, window) in [("zstd with a window of 2^41 bytes", 0xff), ("zstd with a window of 2^31 bytes", 21 << 3)] {
        table.put("x.txt.zst", [0x28, 0xb5, 0x2f, 0xfd, 0, window, 1, 0, 0]);
        table.refused(input, &format!("{TOKENIZE} x.txt.zst"), "x.txt.zst");
    }
    table.put("x.txt.zst", [&[0x28, 0xb5, 0x2f, 0xfd, 0xe0][..], &u64::MAX.to_le_bytes(), &[1, 0, 0]].concat());
    table.refused("zstd that claims 2^64 - 1 bytes", &format!("{TOKENIZE} x.txt.zst"), "x.txt.zst");

    let mut deflated = Vec::new();
    let mut encoder = flate2::write::DeflateEncoder::new(&mut deflated, Compression::best());
    let block = b"a word ".repeat(1 << 17);
    (0..64).for_each(|_| encoder.write_all(&block).unwrap());
    encoder.finish().unwrap();
    let bomb = |name| Entry { name, bytes: &deflated, method: 8, size: 64 * (7 << 17), crc: 1, ..Entry::default() };
    table.put("x.zip", raw_zip(&[bomb("a.txt")]));
    table.refused("zip member of 59 MB with a wrong checksum", &format!("{TOKENIZE} x.zip"), "damaged");
    let shared = |at: u32| Entry { offset: Some(0), ..bomb(if at == 0 { "a.txt" } else { "b.txt" }) };
    table.put("x.zip", raw_zip(&(0..1000).map(shared).collect::<Vec<_>>()));
    table.refused("zip of 1,000 members that share 59 MB", &format!("{TOKENIZE} x.zip"), "x.zip");
    table.print();
}
