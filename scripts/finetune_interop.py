"""Compare the output of `ngen3 finetune` with transformers and peft.

    pip install torch transformers peft
    python scripts/finetune_interop.py NGEN3 BASE.pt TUNED.pt CHATS.jsonl

TUNED.pt and TUNED.adapter come from
`NGEN3 finetune --model_checkpoint BASE.pt --data CHATS.jsonl --lora_rank R --dtype f32 --out TUNED.pt`.
Each line of CHATS.jsonl is {"messages": [...]}.

1. For every conversation, the chat template of the exported model gives the same text and token ids as ngen3, and mask.bin marks
   the assistant's turns.
2. The adapter loads in peft on the exported base model and gives the logits of the exported merged model.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ngen3, base, tuned, chats = (str(Path(path).resolve()) for path in sys.argv[1:])
folder = Path(tempfile.mkdtemp())


def run(*words):
    subprocess.run([ngen3, *words], check=True, cwd=folder, stdout=subprocess.DEVNULL)


run("export", "--model_path", base, "--output_dir", "base")
run("export", "--model_path", tuned, "--output_dir", "tuned")
run("tokenize", "--dataset", "chats", "--chats", chats)
tokenizer = AutoTokenizer.from_pretrained(folder / "tuned")

ids = np.fromfile(folder / "_data_chats_/data.bin", dtype="<u2")
marks = np.fromfile(folder / "_data_chats_/mask.bin", dtype="u1")
starts = [*np.flatnonzero(marks & 2), len(ids)]
conversations = [json.loads(line)["messages"] for line in open(chats)]
assert len(starts) == len(conversations) + 1, (len(starts), len(conversations))
for messages, start, end in zip(conversations, starts, starts[1:]):
    found = ids[start:end].tolist()
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert tokenizer.decode(found) == text, (tokenizer.decode(found), text)
    # transformers parses a special token spelled out in a message; we keep it as text.
    if not any(tokenizer.eos_token in message["content"] for message in messages):
        assert tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"] == found, text
    learned = tokenizer.decode([token for token, mark in zip(found, marks[start:end]) if mark & 1])
    said = [message["content"].strip() for message in messages if message["role"] == "assistant"]
    assert learned == "".join(content + tokenizer.eos_token for content in said), (learned, said)
    answer = messages[-1]["content"].strip() + tokenizer.eos_token
    if messages[-1]["role"] == "assistant":
        assert tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True) + answer == text
print(f"template: {len(conversations)} conversations, {len(ids)} tokens: text, ids and assistant turns agree")

try:
    from peft import PeftModel
except ImportError:
    PeftModel = None
    print("adapter: SKIPPED (needs peft)")
adapter = Path(tuned).with_suffix(".adapter")
if PeftModel and adapter.exists():
    merged = AutoModelForCausalLM.from_pretrained(folder / "tuned", dtype=torch.float32).eval()
    beside = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32), adapter).eval()
    plain = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32).eval()
    tokens = torch.tensor(ids[: 4 * 64].astype("int64")).reshape(4, 64)
    with torch.no_grad():
        ours, theirs, before = (model(tokens).logits for model in (merged, beside, plain))
    gap, change = (ours - theirs).abs().max().item(), (ours - before).abs().max().item()
    print(f"adapter: largest difference of a logit {gap:.1e}; it changes logits by up to {change:.1f}")
    assert gap < 1e-4 < change
