"""Writes smollm2.json: texts, and the ids that SmolLM2's tokenizer gives them.

    python smollm2.py FOLDER        FOLDER holds SmolLM2-135M-Instruct.Q4_1.gguf

The tokenizer is what transformers makes of the GGUF file, and before it the step that splits digits: SmolLM2's tokenizer.json and
llama.cpp have it, transformers' conversion leaves it out (5.24), which changes spaces and superscripts before digits.
Needs: pip install transformers torch gguf
"""
import json, os, sys
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

TEXTS = [
    "Hello, we can use",
    "Hello world! 123",
    "  multiple   spaces",
    "Hello, world! It's 1,234 and they'LL say we'd 've done it.",
    "def f(x):\n    return x ** 2  # 3.14159\n\n\n\tif x == 10:\n\t\tpass\r\n",
    "  two  spaces   before 12 and   345  after   ",
    "digits 1234567890 \u00bd \u00b2 \u2167 \u0663\u0664\u0665 2024-05-06",
    "你好，世界！今天是2024年。 日本語のテキスト 한국어",
    "🙂👩‍🚀🇪🇺 emoji, e\u0301 naïve café 𝒳𝒴𝒵 🤷🏽‍♀️",
    "Привет, как дела? Ελληνικά عربى हिन्दी ไทย",
    "a/b\\c <tag attr=\"1\"> $5.00 + 10% = {x|y} `code` ~^&*() ---===>>>",
    "CamelCaseWords snake_case_words SHOUTING don'T I'M you'Re",
    "\n\n \n  \t \u00a0 \u2003end",
    "https://example.com/a?b=1&c=%20#frag",
    "x = [0x1F, 1e-9, 42]; // see §3.2",
    "a\u200bb\u00adc \ufb01",
    "",
]

here = os.path.dirname(os.path.abspath(__file__))
made = AutoTokenizer.from_pretrained(sys.argv[1], gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf").backend_tokenizer
plain = [made.encode(text, add_special_tokens=False).ids for text in TEXTS]
made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), made.pre_tokenizer])
ids = [made.encode(text, add_special_tokens=False).ids for text in TEXTS]
print("without that step, different:", [text for text, one, other in zip(TEXTS, plain, ids) if one != other])
with open(os.path.join(here, "smollm2.json"), "w") as file:
    file.write(json.dumps(list(zip(TEXTS, ids)), ensure_ascii=False) + "\n")
