//! `.pt` and `.safetensors`: pickles that call functions or grow, zip files and headers that lie.

use std::fs;
use std::io::{Cursor, Read, Seek, SeekFrom, Write};

use ngen3_model::{CheckpointMeta, Config, ParamList, checkpoint};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use crate::archives::{Entry, raw_zip};
use crate::case::Table;

/// Imports `x.pt`, whatever is in it.
const IMPORT: &str = "import --from x.pt --out out.pt";

/// Returns the bytes of a small valid checkpoint.
pub fn valid(ending: &str) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a").with_extension(ending);
    let config = Config::new(1, 1, 2, 4, 5);
    checkpoint::save(&path, &config, &ParamList::new(&config).init(7), &CheckpointMeta::default()).unwrap();
    fs::read(path).unwrap()
}

/// Returns a `.pt` with entries as `edit` returns them, and correct checksums.
fn edited(method: CompressionMethod, edit: impl Fn(&str, Vec<u8>) -> Vec<u8>) -> Vec<u8> {
    let mut zip = ZipArchive::new(Cursor::new(valid("pt"))).unwrap();
    let mut out = ZipWriter::new(Cursor::new(Vec::new()));
    for index in 0..zip.len() {
        let mut entry = zip.by_index(index).unwrap();
        let name = entry.name().unwrap().into_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        out.start_file(&*name, SimpleFileOptions::default().compression_method(method)).unwrap();
        out.write_all(&edit(name.strip_prefix("archive/").unwrap(), bytes)).unwrap();
    }
    out.finish().unwrap().into_inner()
}

fn with_pickle(pickle: &[u8]) -> Vec<u8> {
    edited(CompressionMethod::Stored, |name, bytes| if name == "data.pkl" { pickle.to_vec() } else { bytes })
}

/// `X` and a string.
fn text(text: &str) -> Vec<u8> {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

#[test]
fn pickles_that_call_or_grow() {
    let mut table = Table::new("Pickles in a `.pt`");
    let touch = text("touch pwned");
    for (input, global) in [
        ("calls `os.system`", "os\nsystem"),
        ("calls `posix.system`", "posix\nsystem"),
        ("calls `builtins.exec`", "builtins\nexec"),
        ("calls `builtins.eval`", "builtins\neval"),
        ("calls `subprocess.Popen`", "subprocess\nPopen"),
        ("calls `torch.load`", "torch\nload"),
        ("names a global of 100 kB", &format!("{}\nx", "a".repeat(100_000))),
        ("names a global with terminal escapes", "\u{1b}[2J\u{7}\nx"),
    ] {
        let call = [b"\x80\x02c", global.as_bytes(), b"\n", &touch, b"\x85R."].concat();
        table.put("x.pt", with_pickle(&call));
        table.refused(input, IMPORT, "unsupported pickle global");
        assert!(!table.path().join("pwned").exists());
    }
    for (input, pickle, reason) in [
        (
            "STACK_GLOBAL of `os.system`",
            &b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0btouch pwned\x85R."[..],
            "opcode",
        ),
        ("INST of `os.system`", b"(X\x0b\x00\x00\x00touch pwnedios\nsystem\n.", "opcode"),
        ("BUILD with a state that is no dictionary", b"\x80\x02))b.", "state"),
        ("a persistent id that is no storage", b"\x80\x02X\x01\x00\x00\x00aQ.", "tuple"),
        ("a string that claims 4 GiB", b"\x80\x02X\xff\xff\xff\xffa.", "ends early"),
        ("a string that claims 2^63 bytes", b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fa.", "opcode"),
        ("an integer of 2^31 bytes", b"\x80\x02\x8b\xff\xff\xff\x7f\x01.", "opcode"),
        ("memo 2^32 - 1", b"\x80\x02}r\xff\xff\xff\xff.", "no model entry"),
    ] {
        table.put("x.pt", with_pickle(pickle));
        table.refused(input, IMPORT, reason);
        assert!(!table.path().join("pwned").exists());
    }
    // A valid pickle whose entry `config` doubles forty times, or nests a million lists.
    let valid = valid_pickle();
    let config = text("config");
    let at = valid.windows(config.len()).position(|window| window == config).unwrap();
    let with = |value: &[u8]| {
        let entry = [&config, &b"}("[..], &text("a"), value, b"u"].concat();
        [&valid[..at], &entry, &text("other"), &valid[at + config.len()..]].concat()
    };
    let mut laughs = b"](Nr\0\0\0\x40".to_vec();
    for level in 1..41 {
        let last = [b"j", &(0x4000_0000u32 + level - 1).to_le_bytes()[..]].concat();
        laughs.extend([&last[..], &last, b"\x86r", &(0x4000_0000u32 + level).to_le_bytes()].concat());
    }
    for (input, value, reason) in [
        (
            "doubles a value 40 times by its memo",
            [laughs, b"e".to_vec()].concat(),
            "the pickle expands to too many values",
        ),
        (
            "nests a million lists",
            [b"]".repeat(1 << 20), b"a".repeat((1 << 20) - 1)].concat(),
            "nests values too deeply",
        ),
    ] {
        table.put("x.pt", with_pickle(&with(&value)));
        table.refused(input, IMPORT, reason);
    }
    for (input, opcode) in
        [("30 million times None", &b"N"[..]), ("30 million empty dictionaries", b"}"), ("30 million marks", b"(")]
    {
        table.put("x.pt", with_pickle(&[b"\x80\x02", &opcode.repeat(30_000_000)[..], b"."].concat()));
        table.refused(input, IMPORT, "the pickle");
    }
    let memo: Vec<u8> = (0..6_000_000u32).flat_map(|at| [&b"Nr"[..], &at.to_le_bytes()].concat()).collect();
    table.put("x.pt", with_pickle(&[b"\x80\x02", &memo[..], b"}."].concat()));
    table.refused("6 million memos", IMPORT, "the pickle");
    table.print();
}

#[test]
fn zip_files_that_lie() {
    let mut table = Table::new("Zip files named `.pt`");
    table.put(
        "x.pt",
        edited(CompressionMethod::Deflated, |name, bytes| match name {
            "data.pkl" => vec![b'N'; 50_000_000],
            _ => bytes,
        }),
    );
    table.refused("a pickle of 50 MB, deflated to 50 kB", IMPORT, "is compressed");
    let pickle = valid_pickle();
    let entry = |name, bytes| Entry { name, bytes, ..Entry::default() };
    let cases: [(&str, Vec<Entry>, &str); 7] = [
        (
            "a pickle that claims 2^60 bytes (zip64)",
            vec![Entry { claims: 1 << 60, ..entry("a/data.pkl", &pickle) }],
            "zip",
        ),
        (
            "a pickle that claims 2^63 bytes (zip64)",
            vec![Entry { claims: 1 << 63, ..entry("a/data.pkl", &pickle) }],
            "zip",
        ),
        ("an entry at an offset of 2^62", vec![Entry { offset: Some(1 << 62), ..entry("a/data.pkl", &pickle) }], "zip"),
        (
            "two entries that share their bytes",
            vec![entry("a/data.pkl", &pickle), Entry { offset: Some(0), ..entry("a/data/0", &pickle) }],
            "zip",
        ),
        ("two pickles", vec![entry("a/data.pkl", &pickle), entry("b/data.pkl", &pickle)], "got 2"),
        ("only `../data.pkl`", vec![entry("../data.pkl", &pickle)], "cannot read"),
        ("an encrypted pickle", vec![Entry { flags: 1, ..entry("a/data.pkl", &pickle) }], ""),
    ];
    for (input, entries, reason) in cases {
        table.put("x.pt", raw_zip(&entries));
        table.refused(input, IMPORT, reason);
    }
    let many: Vec<_> = (0..400_000).map(|at| format!("a/data/{at}")).collect();
    let many: Vec<_> = many.iter().map(|name| Entry { name, ..Entry::default() }).collect();
    table.put("x.pt", raw_zip(&many));
    table.refused("400,000 entries and no pickle", IMPORT, "expected one data.pkl");
    table.print();
}

fn valid_pickle() -> Vec<u8> {
    let mut zip = ZipArchive::new(Cursor::new(valid("pt"))).unwrap();
    let mut pickle = Vec::new();
    zip.by_name("archive/data.pkl").unwrap().read_to_end(&mut pickle).unwrap();
    pickle
}

/// Returns a `.safetensors` of a header.
pub fn safetensors(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![0; data]].concat()
}

#[test]
fn safetensors_that_lie() {
    const IMPORT: &str = "import --from x.safetensors --out out.pt";
    let mut table = Table::new("`.safetensors` files");
    let tensor =
        |shape: &str, offsets: &str| format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#);
    let (a, b) = (
        r#""a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#,
        r#""b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}"#,
    );
    for (input, bytes, reason) in [
        ("a header of 2^63 bytes", [&(1u64 << 63).to_le_bytes()[..], b"{}"].concat(), "the header claims"),
        ("a header of 2^64 - 1 bytes", [&u64::MAX.to_le_bytes()[..], b"{}"].concat(), "the header claims"),
        (
            "a header of 100 MB in a file of 10 bytes",
            [&100_000_000u64.to_le_bytes()[..], b"{}"].concat(),
            "the header claims",
        ),
        ("two tensors that overlap", safetensors(&format!("{{{a},{b}}}"), 12), "not a safetensors header"),
        (
            "a tensor of 2^64 elements",
            safetensors(&tensor("[4294967296,4294967296]", "[0,8]"), 8),
            "not a safetensors header",
        ),
        ("a tensor whose end is before its start", safetensors(&tensor("[2]", "[8,0]"), 8), "not a safetensors header"),
        (
            "a tensor at 2^63",
            safetensors(&tensor("[2]", "[9223372036854775808,9223372036854775816]"), 8),
            "not a safetensors header",
        ),
        ("a tensor of [-1]", safetensors(&tensor("[-1]", "[0,8]"), 8), "not a safetensors header"),
        ("lists 100,000 deep", safetensors(&"[".repeat(100_000), 0), "not a checkpoint"),
        ("objects 100,000 deep", safetensors(&r#"{"a":"#.repeat(100_000), 0), "not a safetensors header"),
        (
            "metadata with an escape for the terminal",
            safetensors(r#"{"__metadata__":{"model_args":"\u001b[2J\u0007"}}"#, 0),
            "model_args",
        ),
    ] {
        table.put("x.safetensors", bytes);
        table.refused(input, IMPORT, reason);
    }
    let entries = 1_500_000;
    table.write("x.safetensors", |file| {
        let entry = |at: usize| format!(r#""{at:07}":{{"dtype":"F32","shape":[],"data_offsets":[0,0]}},"#);
        let len = 2 + entry(0).len() * entries - 1;
        file.write_all(&(len as u64).to_le_bytes()).unwrap();
        file.write_all(b"{").unwrap();
        (0..entries).for_each(|at| {
            file.write_all(entry(at).trim_end_matches(if at + 1 == entries { ',' } else { '\0' }).as_bytes()).unwrap()
        });
        file.write_all(b"}").unwrap();
    });
    table.refused("1.5 million tensors in a header of 90 MB", IMPORT, "safetensors");
    let shape = (0..20_000_000).map(|_| "1").collect::<Vec<_>>().join(",");
    table.put("x.safetensors", safetensors(&tensor(&format!("[{shape}]"), "[0,4]"), 4));
    table.refused("a tensor of 20 million dimensions", IMPORT, "safetensors");
    drop(shape);
    sparse(&table, 1 << 40);
    table.refused("a sparse file of 1 TB whose header is right about it", IMPORT, "memory");
    table.print();
}

/// Writes a `.safetensors` of a valid model whose embedding makes it so many bytes; none of them is on the disk.
fn sparse(table: &Table, bytes: u64) {
    let width = 1 << 14;
    let vocab = (bytes / 4 / width) as usize;
    let config = Config::new(1, 1, width as usize, 4, vocab);
    let list = ParamList::new(&config);
    let mut header = serde_json::Map::new();
    let text = String::from_utf8_lossy(&valid("safetensors")).into_owned();
    let start = text.find('{').unwrap();
    let known: serde_json::Value =
        serde_json::Deserializer::from_str(&text[start..]).into_iter().next().unwrap().unwrap();
    let mut metadata = known["__metadata__"].clone();
    let args = metadata["model_args"].as_str().unwrap().to_owned();
    let mut args: serde_json::Value = serde_json::from_str(&args).unwrap();
    (args["n_embd"], args["vocab_size"]) = (width.into(), vocab.into());
    metadata["model_args"] = args.to_string().into();
    header.insert("__metadata__".into(), metadata);
    let mut at = 0u64;
    for param in &list {
        let end = at + 4 * param.len() as u64;
        header
            .insert(param.name(), serde_json::json!({"dtype": "F32", "shape": param.shape, "data_offsets": [at, end]}));
        at = end;
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut file = fs::File::create(table.path().join("x.safetensors")).unwrap();
    file.write_all(&safetensors(&header, 0)).unwrap();
    file.seek(SeekFrom::Current(at as i64 - 1)).unwrap();
    file.write_all(&[0]).unwrap();
}

#[test]
fn the_state_of_another_run() {
    let mut table = Table::new("The state of a run that resumes");
    let tiny = "layers = 1\nheads = 1\nwidth = 4\nblock = 8\nvocabulary = 97\nbatch_size = 1\n";
    table.put("tiny.toml", tiny);
    let tokens: Vec<u8> =
        (0..400u16).flat_map(|i| (u32::from(i) * u32::from(i) % 97).to_le_bytes()[..2].to_vec()).collect();
    table.put("data.bin", tokens);
    let train = "train --config tiny.toml --data data.bin --max_iters 4 --eval_interval 2 --eval_iters 1 --eval_sample 0 --threads 1";
    table.run(train, b"").succeeded();
    let state = table.path().join("tiny_model.state/state.safetensors");
    let whole = fs::read(&state).unwrap();
    let resume = format!("{} --resume", train.replace("--max_iters 4", "--max_iters 6"));
    let size = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let (header, data) = (String::from_utf8(whole[8..8 + size].to_vec()).unwrap(), &whole[8 + size..]);
    let with = |header: &str| [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat();
    let mut first = header.split("\"shape\":[");
    let (start, rest) = (first.next().unwrap(), header.split_once("\"shape\":[").unwrap().1);
    let (number, rest) = rest.split_once(']').unwrap();
    let claimed = |shape: &str| with(&format!("{start}\"shape\":[{shape}]{rest}"));
    for (input, bytes, reason) in [
        ("arrays of other shapes", claimed(&format!("1,{number}")), "state"),
        ("arrays of 2^62 elements", claimed("4611686018427387904"), "state"),
        ("cut in half", whole[..whole.len() / 2].to_vec(), "state"),
        ("a checkpoint instead", valid("safetensors"), "state"),
        ("lists 100,000 deep", safetensors(&"[".repeat(100_000), 0), "state"),
        ("empty", Vec::new(), "state"),
    ] {
        fs::write(&state, bytes).unwrap();
        table.refused(input, &resume, reason);
    }
    fs::write(&state, whole).unwrap();
    table.run(&resume, b"").succeeded();
    table.print();
}
