"""Writes plain.json: what Python's `tokenizers` makes of texts with vocabularies as `ngen3 tokenizer train --kind` writes them.

python plain.py TOKENIZER.json... (char and byte vocabularies)
"""

import json
import sys

from tokenizers import Tokenizer

TEXTS = [
    "", "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n",
    "  two  spaces\t\ttabs \n \r\n line ends\n\n", "é日本\u0301 x\u00a0y", "3 & $ 'tis; it's -- no?!", "\x00\x07 zZ 🎉",
]
cases = []
for path in sys.argv[1:]:
    with open(path, encoding="utf-8") as file:
        text = file.read()
    tokenizer = Tokenizer.from_str(text)
    texts = []
    for one in TEXTS:
        ids = tokenizer.encode(one, add_special_tokens=False).ids
        texts.append({"text": one, "ids": ids, "decoded": tokenizer.decode(ids, skip_special_tokens=False)})
    cases.append({"tokenizer": json.loads(text), "texts": texts})
with open("plain.json", "w", encoding="utf-8") as file:
    json.dump(cases, file, ensure_ascii=True)
    file.write("\n")
