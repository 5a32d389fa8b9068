"""Writes fixtures/: a tiny model, small datasets in the format of each benchmark, and lm_eval's results on them.

    pip install lm_eval torch transformers tokenizers datasets
    python make_fixtures.py

The model is random, and the questions are random words: the test compares prompts, tokens, log-likelihoods and metrics,
not knowledge. `sets.json` holds the rows by task, subject and split; the test writes them to folders. `expected.json` holds
each run's results, every answer's log-likelihood, and the prompts of the first questions; `perplexity.json` a text and its
perplexities.
"""

import json
import math
import os
import random
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
import datasets
import lm_eval
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

FIXTURES = Path(__file__).parent / "fixtures"
MODEL = FIXTURES / "model"
PEOPLE = "Mary Paul the_doctor my_aunt Olga the_teacher José".split()
THINGS = "kettle ladder violin parcel lantern bicycle umbrella jar garden café engine blanket".split()
DEEDS = "carried painted opened repaired dropped hid cleaned sold measured".split()
MANNERS = "slowly with_care at_night in_the_rain before_noon twice without_a_word".split()

rnd = random.Random(7)
pick = lambda words: rnd.choice(words).replace("_", " ")
clause = lambda: f"{pick(PEOPLE)} {pick(DEEDS)} the {pick(THINGS)} {pick(MANNERS)}"


def sentence():
    text = clause()
    return text[0].upper() + text[1:] + "."


def piqa(i):
    goal = f"How do you get the {pick(THINGS)} {pick(MANNERS)}" + rnd.choice(["?", "", " "])
    if i == 3:
        goal = " ".join(sentence() for _ in range(40))  # longer than the block
    sol2 = " ".join(sentence() for _ in range(rnd.randint(1, 3)))
    return {"goal": goal, "sol1": sentence() + rnd.choice(["", " "]), "sol2": sol2, "label": rnd.randint(0, 1)}


def hellaswag(i):
    step = rnd.choice(["", "[header] How to carry a jar [title] Find it.", "[step] ", "a [b\n] c"])
    row = {
        "ind": i,
        "activity_label": rnd.choice(["Removing ice from car", "Home and Garden", "Polishing  shoes"]),
        "ctx_a": f"{step}{sentence()}",
        "ctx_b": rnd.choice(["", "mary then", "THE man, É."]),
        "endings": [rnd.choice(["", "[substeps] "]) + clause() + rnd.choice([".", "  twice ."]) for _ in range(4)],
        "label": str(rnd.randint(0, 3)),
    }
    row["ctx"] = row["ctx_a"] + " " + row["ctx_b"]
    return row


def winogrande(i):
    a, b = pick(PEOPLE), pick(THINGS)
    reason = rnd.choice(["_ was late.", "of the _ .", "the _'s lid _ fell", "all saw _ and left."])
    text = f"{sentence()} The {a} and the {b} were there because {reason}"
    return {"sentence": text, "option1": a, "option2": b, "answer": str(rnd.randint(1, 2))}


def mmlu(i):
    return {
        "question": rnd.choice(["", " "]) + f"Which of these did {pick(PEOPLE)} do {pick(MANNERS)}?" + rnd.choice(["", "\n"]),
        "subject": "x",
        "choices": [clause() for _ in range(4)],
        "answer": rnd.randint(0, 3),
    }


def subjects():
    folder = Path(lm_eval.__file__).parent / "tasks/mmlu/default"
    return sorted(path.stem.removeprefix("mmlu_") for path in folder.glob("mmlu_*.yaml"))


def make_sets():
    rows = lambda make, n: [make(i) for i in range(n)]
    sets = {
        "piqa": {"": {"validation": rows(piqa, 24), "train": rows(piqa, 9)}},
        "hellaswag": {"": {"validation": rows(hellaswag, 20), "train": rows(hellaswag, 30)}},
        "winogrande": {"": {"validation": rows(winogrande, 24), "train": rows(winogrande, 12)}},
        "mmlu": {name: {"test": rows(mmlu, rnd.randint(2, 5)), "dev": rows(mmlu, 3)} for name in subjects()},
    }
    # Two validation rows are also in train: they must not be their own examples.
    sets["piqa"][""]["train"][:4] = [sets["piqa"][""]["validation"][i] for i in (0, 0, 1, 1)]
    return sets


def make_model(sets):
    tokenizer = ByteLevelBPETokenizer()
    parts = [part for task in sets.values() for part in task.values()]
    texts = [json.dumps(row, ensure_ascii=False) for part in parts for rows in part.values() for row in rows]
    end = "<|endoftext|>"
    tokenizer.train_from_iterator(texts, vocab_size=600, special_tokens=[end], show_progress=False)
    ends = {"bos_token": end, "eos_token": end, "unk_token": end}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, **ends).save_pretrained(MODEL)
    torch.manual_seed(1)
    shape = {"vocab_size": len(tokenizer.get_vocab()), "n_positions": 192, "n_embd": 16, "n_layer": 2, "n_head": 2}
    config = GPT2Config(bos_token_id=0, eos_token_id=0, **shape)
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.25)
    model.save_pretrained(MODEL)
    (MODEL / "generation_config.json").unlink()


def evaluate(sets, tasks, num_fewshot):
    def load_dataset(path, name=None, **_):
        parts = sets[path.split("/")[1]]
        part = parts.get("" if "" in parts else name)
        return datasets.DatasetDict({split: datasets.Dataset.from_list(rows) for split, rows in part.items()})

    datasets.load_dataset = load_dataset
    model_args = {"pretrained": str(MODEL), "dtype": "float32"}
    return lm_eval.simple_evaluate(
        model="hf",
        model_args=model_args,
        tasks=tasks,
        num_fewshot=num_fewshot,
        device="cpu",
        batch_size=16,
        log_samples=True,
    )


def perplexities():
    """Perplexities of a text: from PyTorch's mean loss over windows, and from the harness's rolling windows."""
    rnd.seed(8)
    text = "\n".join(sentence() for _ in range(60)) + "\n"
    model = HFLM(pretrained=str(MODEL), dtype="float32", device="cpu", batch_size=4)
    ids, block = [model.prefix_token_id] + model.tok_encode(text), model.max_length
    (rolling,) = model.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)])
    runs = [{"stride": None, "perplexity": math.exp(-rolling / (len(ids) - 1))}]
    for stride in (block, 50, 1):
        losses, start, end = [], 1, min(len(ids), block + 1)
        while start < len(ids):
            window = torch.tensor(ids[max(0, end - block - 1) : end])
            with torch.no_grad():
                logits = model.model(window[None, :-1]).logits[0]
            losses.append(torch.nn.functional.cross_entropy(logits, window[1:], reduction="none")[start - end :].double())
            start, end = end, min(len(ids), end + stride)
        runs.append({"stride": stride, "perplexity": torch.cat(losses).mean().exp().item()})
    return {"text": text, "tokens": len(ids) - 1, "runs": runs}


def write(name, value):
    """Writes JSON with one line per top-level entry."""
    dump = lambda value: json.dumps(value, ensure_ascii=False, default=float)
    if isinstance(value, dict):
        text = "{\n" + ",\n".join(f"{dump(key)}: {dump(one)}" for key, one in value.items()) + "\n}\n"
    else:
        text = "[\n" + ",\n".join(map(dump, value)) + "\n]\n"
    (FIXTURES / name).write_text(text)


def main():
    FIXTURES.mkdir(exist_ok=True)
    sets = make_sets()
    write("sets.json", sets)
    make_model(sets)
    expected = []
    for tasks in (["piqa"], ["hellaswag"], ["winogrande"], ["mmlu"]):
        for num_fewshot in (0, 2):
            found = evaluate(sets, tasks, num_fewshot)
            run = {"tasks": tasks, "num_fewshot": num_fewshot, "samples": {}}
            run |= {"results": found["results"], "versions": found["versions"]}
            for task, samples in found["samples"].items():
                samples.sort(key=lambda sample: sample["doc_id"])
                run["samples"][task] = {
                    "arguments": [sample["arguments"] for sample in samples[: 4 if task in tasks else 1]],
                    "loglikelihoods": [[round(ll, 4) for ll, _ in sample["filtered_resps"]] for sample in samples],
                }
            expected.append(run)
    write("perplexity.json", perplexities())
    write("expected.json", expected)


main()
