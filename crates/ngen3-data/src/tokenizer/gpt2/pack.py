"""Packs GPT-2's merges (vocab.bpe, see README.md) into merges.bin: two little-endian u16 token ids per merge.

    python pack.py vocab.bpe encoder.json

encoder.json (GPT-2's token → id table) is only a check: the ids follow from the merges.
"""
import json
import pathlib
import struct
import sys

printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
order = printable + [b for b in range(256) if b not in printable]
alphabet = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(order[len(printable):])}

lines = pathlib.Path(sys.argv[1]).read_text(encoding="utf-8").split("\n")
assert lines[0] == "#version: 0.2" and lines[-1] == ""
ids = {alphabet[b]: i for i, b in enumerate(order)}
packed = bytearray()
for line in lines[1:-1]:
    left, right = line.split(" ")
    packed += struct.pack("<HH", ids[left], ids[right])
    assert left + right not in ids
    ids[left + right] = len(ids)
ids["<|endoftext|>"] = len(ids)
assert ids == json.loads(pathlib.Path(sys.argv[2]).read_text(encoding="utf-8"))
pathlib.Path(__file__).with_name("merges.bin").write_bytes(packed)
