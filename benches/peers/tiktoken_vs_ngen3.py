"""Tokenize a file with tiktoken and with `ngen3 tokenize`, alternating on the same machine, and print the ratio.

    cargo build --release
    python benches/peers/tiktoken_vs_ngen3.py FILE [--threads 2] [--runs 3] [--ngen3 target/release/ngen3]

tiktoken gets the text in memory, already split into pieces, and only encode_ordinary_batch is timed. ngen3 is timed as a
whole process: start, read, check, encode, hash, write, sync. Runs alternate; the best of each counts. Both must give the same
number of tokens. Needs: pip install tiktoken. No network: GPT-2's ranks come from our merges.bin.
"""
import argparse
import json
import pathlib
import re
import subprocess
import tempfile
import time

import tiktoken

ROOT = pathlib.Path(__file__).resolve().parents[2]
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


def gpt2():
    """Return tiktoken's gpt2 encoding, built from the merges embedded in ngen3."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    tokens = [bytes([b]) for b in printable + [b for b in range(256) if b not in printable]]
    merges = (ROOT / "crates/ngen3-data/src/tokenizer/gpt2/merges.bin").read_bytes()
    ids = memoryview(merges).cast("H")
    for left, right in zip(ids[::2], ids[1::2]):
        tokens.append(tokens[left] + tokens[right])
    ranks = {token: rank for rank, token in enumerate(tokens)}
    return tiktoken.Encoding("gpt2", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 50256})


def pieces(text, size=1 << 18):
    """Split after a line break between visible characters, where GPT-2's pre-tokeniser always splits."""
    place, start, cut = re.compile(r"(?<=\S\n)(?=\S)"), 0, []
    while start < len(text):
        found = place.search(text, min(start + size, len(text)))
        end = found.start() if found else len(text)
        cut.append(text[start:end])
        start = end
    return cut


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("file", type=pathlib.Path)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--runs", type=int, default=3)
    arguments.add_argument("--ngen3", type=pathlib.Path, default=ROOT / "target/release/ngen3")
    arguments = arguments.parse_args()
    size = arguments.file.stat().st_size
    encoding, cut = gpt2(), pieces(arguments.file.read_bytes().decode("utf-8"))

    theirs, ours = [], []
    with tempfile.TemporaryDirectory() as folder:
        command = [arguments.ngen3.resolve(), "tokenize", "--dataset", "peer", "--threads", str(arguments.threads)]
        command += ["--txt", arguments.file.resolve()]
        for _ in range(arguments.runs):
            start = time.perf_counter()
            encoded = encoding.encode_ordinary_batch(cut, num_threads=arguments.threads)
            theirs.append(time.perf_counter() - start)
            start = time.perf_counter()
            subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
            ours.append(time.perf_counter() - start)
        meta = json.loads(pathlib.Path(folder, "_data_peer_/meta.json").read_text())
    tokens = sum(map(len, encoded))
    assert meta["tokens"] - meta["documents"] == tokens, (meta, tokens)

    print(f"{arguments.file}: {size / 1e6:.1f} MB, {tokens:,} tokens, {arguments.threads} threads")
    for name, times in [("tiktoken", theirs), ("ngen3", ours)]:
        print(f"{name:9} {min(times):7.2f} s  {size / min(times) / 1e6:7.1f} MB/s")
    print(f"ngen3 is {min(theirs) / min(ours):.1f}x as fast")


if __name__ == "__main__":
    main()
