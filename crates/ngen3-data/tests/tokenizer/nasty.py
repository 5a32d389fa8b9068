"""Makes nasty.json, texts that are easy to get wrong with the ids that tiktoken's gpt2 gives them:

    python nasty.py vocab.bpe encoder.json [tinyshakespeare.txt]

vocab.bpe and encoder.json are GPT-2's (see src/tokenizer/gpt2/README.md). With a third file, prints the number of its ids
and the SHA-256 of them as little-endian u16, which a test knows.
"""
import hashlib
import json
import pathlib
import random
import struct
import sys

import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks

PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
gpt2 = tiktoken.Encoding(
    "gpt2",
    pat_str=PATTERN,
    mergeable_ranks=data_gym_to_mergeable_bpe_ranks(vocab_bpe_file=sys.argv[1], encoder_json_file=sys.argv[2]),
    special_tokens={"<|endoftext|>": 50256},
)

SPACES = [chr(c) for c in range(0x110000) if chr(c).isspace() and not 0x1C <= c <= 0x1F]
texts = [
    "", " ", "  ", "\n", "\n\n", " \n", "\n ", "\t\t\t", "a", " a", "  a", "   a", "a ", "a  ", "a\n", "a \n b", "\ra\r\nb\n\rc",
    "a\r\n\r\n  b", "\u00a0a", " \u00a0a", "\u00a0 a", "a\u3000b", "\u3000\u3000b", "\u2028\u2029",
    "'s", "'S", "'", "''", "'''s", "'t'", "'ll", "'l", "'lll", "'ve", "'v", "'re", "'r", "'em", "'d'm's't", " 's", "  's",
    "it's", "it''s", "I'll've", "don't", "DON'T", "rock'n'roll", "\u2019s", "it\u2019s", "1's", "'s1", "!'s", "\n's", "' s",
    "0", "00", "007", " 1234567890", "3.14", "1,000,000", "x2y", "2x", "\u0663\u0664", "\u00bd", "x\u00b2", "\u2167", "\u4e09",
    "hello world", "Hello, World!", "  leading and trailing  ", "under_score", "snake_case_name", "CamelCase", "a-b--c---d",
    "<|endoftext|>", "a<|endoftext|>b", " <|endoftext|>", "<|endoftext|><|endoftext|>", "<|endoftext", "<|ENDOFTEXT|>",
    "\0", "a\0b", "\0\0\0", " \0", "\x01\x02\x7f", "\x1c\x1d\x1e\x1f", "\ufeffbom", "\ufffd", "\uffff", "\U0010ffff", "\ue000",
    "\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466", "\U0001f1fa\U0001f1f8", "a\U0001f389b", "\u2764\ufe0f",
    "\U0001f44d\U0001f3fd", " \U0001f600 \U0001f601", "#\ufe0f\u20e3", "\u00e9", "e\u0301", "caf\u00e9", "cafe\u0301", "\u0301", " \u0301",
    "a\u0300\u0301\u0302b", "Z\u0351\u036b\u0343a\u0310l\u0312go", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35", "\u0928\u092e\u0938\u094d\u0924\u0947",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002", "\u3053\u3093\u306b\u3061\u306f", "\uc548\ub155\ud558\uc138\uc694", "\u1112\u1161\u11ab", "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440",
    "\u0645\u0631\u062d\u0628\u0627", "\u05e9\u05dc\u05d5\u05dd", "\u202eabc\u202c", "a\u200bb", "a\u200db", "\u00adsoft\u00adhyphen", "\u01c5\u02b0\u00aa\u00ba",
    "\U00010400\U00010428", "\U0001d400\U0001d7ce", "\U00020000\U0002a6d6", "\u16ee\u3007\u3021", "\u2460\u24ea", "na\u00efve co\u00f6perate",
    "def f(x):\n    return x  # comment\n\n\nclass A:\n\tpass\n", "if (a && b) { c[i++] = *p->q; }", "https://example.org/a?b=c&d=%20#e",
    "{\"a\": [1, 2.5e-3, null], \"b\\n\": \"\\u0000\"}", "a\tb\t\tc \t d", "$1,234.56 + 20% = \u20ac5", "....", "!!!!!!!!", "=====", "-----", "*" * 70,
    "a" * 15, "a" * 16, "a" * 17, " " + "a" * 14, " " + "a" * 15, "a" * 64, "a" * 65, "a" * 5000, " " * 100, " " * 100 + "x", "\n" * 300,
    "ab" * 700, "\u4e2d" * 300, "7" * 500, "\U0001f600" * 50, " a" * 200, "!" * 129, "antidisestablishmentarianism" * 9, "'s" * 50,
    "".join(SPACES), "a".join(SPACES), "".join(s + "a" for s in SPACES), " ".join(SPACES),
]
texts += [f"x{s}{s}y {s}z{s} w" for s in SPACES]

rng = random.Random(1)
PARTS = [*SPACES, " ", " ", "\n", "'s", "'t", "'ll", "'", "a", "the", "Hello", "1", "42", "\u00bd", "!", "...", "\u00e9", "\u4e2d", "\U0001f600", "\u0301", "\0", "<|endoftext|>"]
texts += ["".join(rng.choice(PARTS) for _ in range(rng.randrange(2, 40))) for _ in range(60)]
texts += ["".join(chr(rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)])) for _ in range(12)) for _ in range(60)]

texts = list(dict.fromkeys(texts))
lines = [json.dumps([text, gpt2.encode_ordinary(text)], separators=(",", ":")) for text in texts]
out = pathlib.Path(__file__).with_name("nasty.json")
out.write_text("[\n" + ",\n".join(lines) + "\n]\n")
print(len(texts), "texts,", out.stat().st_size, "bytes")
if len(sys.argv) > 3:
    ids = gpt2.encode_ordinary(pathlib.Path(sys.argv[3]).read_bytes().decode())
    print(len(ids), "ids, SHA-256", hashlib.sha256(struct.pack(f"<{len(ids)}H", *ids)).hexdigest())
