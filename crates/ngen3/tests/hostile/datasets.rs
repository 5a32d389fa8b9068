//! Records: README headers that multiply, JSON that nests or has one endless line, tables that lie.

use crate::case::Table;

const PARQUET: &[u8] = include_bytes!("../../../ngen3-data/tests/hf_rows/fixtures/datasets.parquet");
const ROWS: &str = "hf_tokenize --dataset x --hf_split train --hf_text_column text --hf_dataset";

#[test]
fn readme_headers() {
    let mut table = Table::new("The YAML of a dataset's README");
    let line = format!("{ROWS} d");
    table.put("d/train.jsonl", "{\"text\":\"a\"}\n");
    let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for n in 1..20 {
        laughs += &format!("a{n}: &a{n} [{}]\n", vec![format!("*a{}", n - 1); 10].join(", "));
    }
    let merges: String = (1..5_000).map(|n| format!("a{n}: &a{n}\n  <<: *a{}\n  k{n}: {n}\n", n - 1)).collect();
    let config = |rest: &str| format!("configs:\n- config_name: a\n  {rest}");
    for (input, yaml, reason) in [
        ("billion laughs (10^20 values)", laughs, "malformed YAML"),
        ("5,000 merge keys, each with all before", format!("a0: &a0\n  k: 1\n{merges}"), "malformed YAML"),
        ("an alias of itself", "a: &a [*a]".into(), "malformed YAML"),
        ("lists 100,000 deep", format!("a: {}", "[".repeat(100_000)), "malformed YAML"),
        ("blocks 2,000 deep", (0..2_000).map(|n| format!("{}a:\n", " ".repeat(n))).collect(), "malformed YAML"),
        ("a tag that constructs a Python object", "a: !!python/object/apply:os.system ['touch pwned']".into(), ""),
        ("4 MB of one scalar", format!("a: {}", "x".repeat(4 << 20)), "expected at most"),
        ("data_files `../../../etc/passwd`", config("data_files: ../../../etc/passwd"), ""),
        ("data_files `/etc/passwd`", config("data_files: /etc/passwd"), ""),
        ("data_files `file:///etc/passwd`", config("data_files: file:///etc/passwd"), ""),
        ("data_dir `..`", config("data_dir: .."), ""),
        ("a pattern of 10,000 stars", config(&format!("data_files: '{}b'", "*a".repeat(5_000))), ""),
        ("a pattern of 10,000 `**/`", config(&format!("data_files: '{}b'", "**/".repeat(5_000))), ""),
        ("a pattern of 2^40 braces", config(&format!("data_files: '{}'", "{a,b}".repeat(40))), ""),
    ] {
        table.put("d/README.md", format!("---\n{yaml}\n---\n"));
        let ended = table.either(input, &line, reason);
        assert!(!ended.err.contains("root:"), "{input}: {}", ended.err);
    }
    assert!(!table.path().join("pwned").exists());
    table.print();
}

#[test]
fn records() {
    let mut table = Table::new("Records");
    let json = |rest: &str| format!("{{\"text\":\"a\",\"x\":{rest}}}\n");
    for (input, text, reason) in [
        ("JSON lists 100,000 deep", json(&"[".repeat(100_000)), "line 1"),
        ("JSON objects 100,000 deep", json(&"{\"a\":".repeat(100_000)), "line 1"),
        ("a JSON number of a million digits", format!("{{\"text\":{}}}\n", "9".repeat(1_000_000)), "line 1"),
        ("a text of escapes for the terminal as a column's name", "{\"\\u001b[2J\":1}\n".into(), "text"),
        ("a JSON line of 65 MB", format!("{{\"text\":\"{}", "a".repeat(65 << 20)), "longer than the limit"),
    ] {
        table.put("x.jsonl", text);
        table.refused(input, &format!("{ROWS} x.jsonl"), reason);
    }
    let write = |name: &str, start: &str, part: &str, times: usize, end: &str| {
        table.write(name, |file| {
            file.write_all(start.as_bytes()).unwrap();
            (0..times).for_each(|_| file.write_all(part.as_bytes()).unwrap());
            file.write_all(end.as_bytes()).unwrap();
        })
    };
    write("many.jsonl", "{\"text\":\"a\",\"x\":[0", ",0", 30_000_000, "]}\n");
    write("objects.jsonl", "{\"text\":\"a\",\"x\":[{}", ",{}", 20_000_000, "]}\n");
    write("keys.jsonl", "{\"text\":\"a\"", ",\"k\":0", 9_000_000, "}\n");
    write("array.json", "[{\"text\":\"a\",\"x\":[0", ",0", 30_000_000, "]}]");
    write("lone.json", "[0", ",0", 100_000_000, "]");
    write("fields.csv", "text", ",a", 30_000_000, "\nb\n");
    write("quote.csv", "text\n\"", "a\n", 100_000_000, "");
    for (input, name, reason) in [
        ("a record of 30 million numbers", "many.jsonl", ""),
        ("a record of 20 million objects", "objects.jsonl", ""),
        ("a record with a key 9 million times", "keys.jsonl", ""),
        ("a JSON array of a record of 30 million numbers", "array.json", ""),
        ("a JSON array of 100 million numbers", "lone.json", ""),
        ("a CSV header of 30 million columns", "fields.csv", ""),
        ("a CSV field of 200 MB that never ends", "quote.csv", ""),
    ] {
        let line = format!("{ROWS} {name}");
        table.either(input, &line, reason);
    }
    let mut lies = PARQUET.to_vec();
    let end = lies.len() - 8;
    lies[end..end + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    table.put("x.parquet", &lies);
    table.refused("a parquet footer of 4 GiB", &format!("{ROWS} x.parquet"), "x.parquet");
    let size = u32::from_le_bytes(PARQUET[end..end + 4].try_into().unwrap()) as usize;
    let footer = &PARQUET[end - size..end];
    for (input, at) in [("rows", 1), ("row groups", 2)] {
        // Every number of 64 bits in the footer claims 2^63 - 1.
        let mut claims = Vec::new();
        let mut rest = footer;
        while let Some((&byte, more)) = rest.split_first() {
            claims.push(byte);
            rest = more;
            if byte == 0x16 && more.len() > 10 && claims.len() % 2 == at % 2 {
                let number = more.iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
                claims.extend([0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]);
                rest = &more[number..];
            }
        }
        let len = (claims.len() as u32).to_le_bytes();
        table.put("x.parquet", [&PARQUET[..end - size], &claims, &len, b"PAR1"].concat());
        table.refused(
            &format!("a parquet file that claims 2^63 - 1 {input}"),
            &format!("{ROWS} x.parquet"),
            "x.parquet",
        );
    }
    table.put("x.arrow", [&b"ARROW1\0\0\xff\xff\xff\xff"[..], &i32::MAX.to_le_bytes(), &[0; 64], b"ARROW1"].concat());
    table.refused("an arrow message of 2 GiB", &format!("{ROWS} x.arrow"), "x.arrow");
    table.print();
}
