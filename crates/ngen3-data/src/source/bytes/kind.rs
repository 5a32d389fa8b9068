//! Tells text from tables and binary data, by names and first bytes.

use super::open::without_compression;

/// Bytes that tell binary formats.
pub(crate) const MAGIC_BYTES: usize = 16;
/// Bytes inspected for NUL.
pub(crate) const LOOK: usize = 1 << 16;

/// Extensions of tables, with the name of their format.
const TABLES: [(&str, &str); 10] = [
    ("arrow", "an Arrow table"),
    ("csv", "CSV"),
    ("feather", "an Arrow table"),
    ("geoparquet", "a Parquet table"),
    ("gpq", "a Parquet table"),
    ("json", "JSON"),
    ("jsonl", "JSON lines"),
    ("ndjson", "JSON lines"),
    ("parquet", "a Parquet table"),
    ("tsv", "TSV"),
];

/// First bytes of common binary formats, with their names.
const MAGIC: [(&[u8], &str); 14] = [
    (b"%PDF-", "a PDF document"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"ARROW1", "an Arrow table"),
    (b"GIF87a", "an image"),
    (b"GIF89a", "an image"),
    (b"ID3", "audio"),
    (b"OggS", "audio"),
    (b"PAR1", "a Parquet table"),
    (b"PK\x03\x04", "a zip archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"\x7fELF", "a program"),
    (b"\x89PNG\r\n", "an image"),
    (b"\xff\xd8\xff", "an image"),
];

/// Extensions of files without text, which are skipped in archives.
const BINARY_ENDINGS: [&str; 58] = [
    "a",
    "avi",
    "avif",
    "bin",
    "bmp",
    "class",
    "db",
    "dll",
    "doc",
    "docx",
    "dylib",
    "epub",
    "exe",
    "flac",
    "gguf",
    "gif",
    "h5",
    "heic",
    "ico",
    "jar",
    "jpeg",
    "jpg",
    "m4a",
    "mkv",
    "mov",
    "mp3",
    "mp4",
    "npy",
    "npz",
    "o",
    "odt",
    "ogg",
    "onnx",
    "otf",
    "pdf",
    "pickle",
    "pkl",
    "png",
    "ppt",
    "pptx",
    "pt",
    "pth",
    "pyc",
    "safetensors",
    "so",
    "sqlite",
    "svg",
    "tif",
    "tiff",
    "ttf",
    "wav",
    "webm",
    "webp",
    "whl",
    "woff",
    "woff2",
    "xls",
    "xlsx",
];
/// Extensions of archives.
const ARCHIVE_ENDINGS: [&str; 8] = ["7z", "rar", "tar", "tbz2", "tgz", "txz", "tzst", "zip"];

/// Returns the lower-case extension of a path, without that of a compression.
fn ending_of(path: &str) -> Option<String> {
    let name = path.rsplit(['/', '\\']).next()?.to_ascii_lowercase();
    let (_, ending) = without_compression(&name).rsplit_once('.')?;
    Some(ending.to_owned())
}

/// Returns the format of a table by its name, `None` for anything else.
pub(crate) fn table_of(path: &str) -> Option<&'static str> {
    let ending = ending_of(path)?;
    TABLES.iter().find(|(known, _)| *known == ending).map(|(_, format)| *format)
}

/// True for a name of a file without text.
pub(crate) fn is_binary_name(path: &str) -> bool {
    ending_of(path).is_some_and(|ending| BINARY_ENDINGS.contains(&ending.as_str()))
}

/// True for a name of an archive.
pub(crate) fn is_archive_name(path: &str) -> bool {
    ending_of(path).is_some_and(|ending| ARCHIVE_ENDINGS.contains(&ending.as_str()))
}

/// True for a path with a hidden part (`._x`, `.git/x`), or of the folder that macOS adds to archives.
pub(crate) fn is_hidden(path: &str) -> bool {
    let hidden = |part: &str| part == "__MACOSX" || part.starts_with('.') && part != "." && part != "..";
    path.split('/').any(hidden)
}

/// Describes binary data by its first bytes; `None` if they may be text.
pub(crate) fn binary_of(start: &[u8]) -> Option<&'static str> {
    let riff = start.starts_with(b"RIFF") && start.get(8..12).is_some_and(|kind| kind == b"WEBP" || kind == b"WAVE");
    let known = MAGIC.iter().find(|(magic, _)| start.starts_with(magic)).map(|(_, what)| *what);
    known.or(riff.then_some("an image or audio"))
}

/// Returns what to do with binary data of this description. `name` is its file, URL or pipe.
pub(crate) fn advice(what: &str, name: &str) -> String {
    let name = if name == "stdin" || name.contains("://") { "FILE" } else { name };
    match what {
        _ if what.ends_with("table") => format!("use ngen3 hf_tokenize --hf_dataset {name}"),
        _ if what.ends_with("PDF document") => "extract its text first, for example with pdftotext".into(),
        _ if what.ends_with("archive") => "unpack it first".into(),
        _ => "convert it to text first".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_tables_binaries_archives_and_hidden_files() {
        for (path, format) in [
            ("x.jsonl", Some("JSON lines")),
            ("a/x.JSON.gz", Some("JSON")),
            ("x.csv.zst", Some("CSV")),
            ("x.parquet", Some("a Parquet table")),
            ("x.jsonl.txt", None),
            ("jsonl", None),
            ("x.gz", None),
        ] {
            assert_eq!(table_of(path), format, "{path}");
        }
        assert!(is_binary_name("a/b.PNG") && is_binary_name("x.pdf.gz") && !is_binary_name("README"));
        assert!(is_archive_name("a.tar.gz") && is_archive_name("a.tgz") && !is_archive_name("a.gz"));
        for path in ["._a.txt", "a/.git/b", "__MACOSX/a.txt", "./.x"] {
            assert!(is_hidden(path), "{path}");
        }
        for path in ["./a.txt", "../a.txt", "a.b/c"] {
            assert!(!is_hidden(path), "{path}");
        }
    }

    #[test]
    fn first_bytes_tell_binary_data() {
        assert_eq!(binary_of(b"PAR1\x15\x04"), Some("a Parquet table"));
        assert_eq!(binary_of(b"RIFF\0\0\0\0WAVE"), Some("an image or audio"));
        assert_eq!(binary_of(b"Rarely"), None);
        assert_eq!(binary_of(b""), None);
        assert!(advice("a Parquet table", "x").contains("hf_tokenize --hf_dataset x"));
        assert!(advice("a Parquet table", "stdin").contains("hf_tokenize --hf_dataset FILE"));
    }
}
