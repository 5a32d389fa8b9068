"""Tokenize a dataset with datasets + tokenizers in Python and with `ngen3 hf_tokenize`, and print the ratio.

    pip install datasets tokenizers numpy
    cargo build --release
    python benches/peers/hf_tokenize.py FOLDER --tokenizer exported_7M/tokenizer.json [--split train] [--column text]

FOLDER is a local dataset (Parquet, Arrow, JSON Lines …). The tokenizer must be GPT-2's, from any exported model. Each program is
timed as a whole process: reading, encoding, writing; datasets starts with an empty cache. Both must write the same bytes.
"""
import argparse
import hashlib
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]


def theirs(args, out):
    """Tokenize as a Python script would: 1,000 texts at a time, each followed by <|endoftext|>."""
    import datasets
    import numpy as np
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(args.tokenizer)
    tokenizer.encode_special_tokens = True
    end = tokenizer.token_to_id("<|endoftext|>")
    texts = 0
    with tempfile.TemporaryDirectory() as cache, open(out, "wb") as file:
        rows = datasets.load_dataset(args.dataset, split=args.split, cache_dir=cache)
        for batch in rows.iter(1000):
            kept = [text for text in batch[args.column] if text]
            texts += sum(len(text.encode()) for text in kept)
            ids = []
            for encoded in tokenizer.encode_batch_fast(kept, add_special_tokens=False):
                ids += encoded.ids + [end]
            file.write(np.array(ids, dtype="<u2").tobytes())
    print(json.dumps({"bytes": texts, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--split", default="train")
    parser.add_argument("--column", default="text")
    parser.add_argument("--ngen3", default=ROOT / "target/release/ngen3")
    parser.add_argument("--peer_out", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer_out:
        return theirs(args, args.peer_out)

    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        start = time.time()
        peer = [sys.executable, __file__, *sys.argv[1:], "--peer_out", folder / "peer.bin"]
        found = json.loads(subprocess.run(peer, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        peer_s = time.time() - start
        ours = [pathlib.Path(args.ngen3).resolve(), "hf_tokenize", "--hf_dataset", pathlib.Path(args.dataset).resolve()]
        ours += ["--hf_split", args.split, "--hf_text_column", args.column, "--dataset", "ours"]
        start = time.time()
        subprocess.run(ours, cwd=folder, check=True, capture_output=True)
        ours_s = time.time() - start
        same = [hashlib.sha256(path.read_bytes()).digest() for path in (folder / "peer.bin", folder / "_data_ours_/data.bin")]
    mb = found["bytes"] / 1e6
    print(f"datasets + tokenizers: {mb / peer_s:.1f} MB/s in {found['peak_mb']:.0f} MB")
    print(f"ngen3 hf_tokenize: {mb / ours_s:.1f} MB/s: {peer_s / ours_s:.1f}x as fast; {'same bytes' if same[0] == same[1] else 'DIFFERENT BYTES'}")


if __name__ == "__main__":
    main()
