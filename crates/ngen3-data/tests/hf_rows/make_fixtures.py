"""Makes `fixtures/`: the same rows in every format, and the texts that `datasets` reads from each.

Run with datasets, pyarrow and zstandard installed (datasets 5.2 and pyarrow 26.0 made what is here): python make_fixtures.py
"""

import gzip
import json
import os
import pathlib
import shutil
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"

import datasets
import pyarrow
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet

HERE = pathlib.Path(__file__).parent / "fixtures"
TEXTS = [
    "Once upon a time", "", None, "two\nlines, \"quoted\"", "naïve café 日本語 🙂", "  spaces  ", "NA", "tab\there",
    "\ufeffmark", "a\\b", "x" * 300, "last",
]
TURNS = [["Hi !", " How are you ? ", ""], [], None, ["one"], ["a\nb", "c"]]
CHATS = [
    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello\nthere"}],
    [{"role": "system", "content": None}, {"role": "user", "content": "é"}],
    None,
]
ROWS = [
    {
        "id": n,
        "text": text,
        "utterances": TURNS[n % len(TURNS)],
        "messages": CHATS[n % len(CHATS)],
        "meta": {"title": f"title {n}" if n % 4 else None, "tags": ["t", str(n)]},
    }
    for n, text in enumerate(TEXTS)
]
FEATURES = datasets.Features(
    {
        "id": datasets.Value("int64"),
        "text": datasets.Value("string"),
        "utterances": datasets.List(datasets.Value("string")),
        "messages": datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")}),
        "meta": {"title": datasets.Value("string"), "tags": datasets.List(datasets.Value("string"))},
    }
)


def zstd(data: bytes) -> bytes:
    return pyarrow.compress(data, codec="zstd", asbytes=True)


def main() -> None:
    shutil.rmtree(HERE, ignore_errors=True)
    HERE.mkdir()
    rows = datasets.Dataset.from_list(ROWS, features=FEATURES)
    table = rows.data.table.combine_chunks()
    rows.to_parquet(HERE / "datasets.parquet")
    for codec in ["none", "snappy", "gzip", "brotli", "zstd", "lz4"]:
        pyarrow.parquet.write_table(table, HERE / f"{codec}.parquet", compression=codec, row_group_size=5)
    large = table.set_column(1, "text", table["text"].cast(pyarrow.large_string()))
    large = large.append_column("kind", pyarrow.array(["a", "b", None] * 4).dictionary_encode())
    pyarrow.parquet.write_table(large, HERE / "large.parquet", version="2.6", data_page_version="2.0")

    with tempfile.TemporaryDirectory() as folder:
        rows.save_to_disk(folder)
        shutil.copy(pathlib.Path(folder) / "data-00000-of-00001.arrow", HERE / "saved.arrow")
    for codec in ["uncompressed", "lz4", "zstd"]:
        pyarrow.feather.write_feather(large, HERE / f"{codec}.arrow", compression=codec, chunksize=5)

    rows.to_json(HERE / "lines.jsonl", force_ascii=False)
    lines = (HERE / "lines.jsonl").read_bytes()
    (HERE / "packed.jsonl.gz").write_bytes(gzip.compress(lines, mtime=0))
    (HERE / "packed.jsonl.zst").write_bytes(zstd(lines))
    (HERE / "array.json").write_text(json.dumps(ROWS, indent=1), encoding="utf-8")
    flat = rows.select_columns(["id", "text"])
    flat.to_csv(HERE / "comma.csv")
    flat.to_csv(HERE / "tabs.tsv", sep="\t")
    (HERE / "lines.txt").write_bytes("one\n\ntwo\r\nthree\rfour\r\n\r\nlast é\u2028same line".encode())

    kinds = {".parquet": "parquet", ".arrow": "arrow", ".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".txt": "text"}
    expected = {}
    for path in sorted(HERE.iterdir()):
        kind = next(kind for ending, kind in kinds.items() if ending in path.suffixes)
        options = {"sep": "\t"} if ".tsv" in path.suffixes else {}
        with tempfile.TemporaryDirectory() as cache:
            found = datasets.load_dataset(kind, data_files=str(path), split="train", cache_dir=cache, **options)
            columns = ["text", "utterances"] if "utterances" in found.column_names else ["text"]
            expected[path.name] = {column: found[column][:] for column in columns}
    (HERE / "expected.json").write_text(json.dumps(expected, ensure_ascii=False, indent=0), encoding="utf-8")


main()
