"""Evaluate a model with lm_eval and with `ngen3 eval` on the same data, and compare choices, log-likelihoods and time.

    pip install lm_eval torch transformers
    cargo build --release
    ngen3 export --model_path 7M_model.pt --output_dir exported_7M
    python benches/peers/eval.py --checkpoint 7M_model.pt --exported exported_7M --data_dir FOLDER --tasks piqa

The data is a folder of JSON Lines as for `ngen3 eval --data_dir`; nothing is downloaded. Both compute in f32 on the same number of
threads. The time of lm_eval is that of `simple_evaluate`, without imports; the time of ngen3 is that of the whole command.
lm_eval rejects answers longer than the model's context, so this script splits them as ngen3 does: half a context at a time,
each with as much preceding text as fits.
"""
import argparse
import json
import os
import pathlib
import subprocess
import tempfile
import time

os.environ["HF_HUB_OFFLINE"] = "1"
import datasets
import lm_eval
import torch
from lm_eval.models.huggingface import HFLM

ROOT = pathlib.Path(__file__).resolve().parents[2]
ORIGINAL = {"validation": "valid", "train": "train"}


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def local(folder):
    """Return a replacement for `datasets.load_dataset` that reads a local folder."""

    def load_dataset(path, name=None, **_):
        own = folder / path.split("/")[1]
        own = own if own.is_dir() else folder
        own = own / name if name and (own / name).is_dir() else own
        splits = {file.stem: rows(file) for file in own.glob("*.jsonl") if file.stem in ("train", "validation", "test", "dev")}
        for split, word in ORIGINAL.items():  # PIQA's original files
            for file, answers in zip(own.glob(f"*{word}.jsonl"), own.glob(f"*{word}*labels.lst")):
                labels = answers.read_text().split()
                splits[split] = [row | {"label": int(label)} for row, label in zip(rows(file), labels, strict=True)]
        if "train" not in splits:  # required, though unused without few-shot examples
            splits["train"] = splits["validation"] if "validation" in splits else splits["test"]
        return datasets.DatasetDict({split: datasets.Dataset.from_list(found) for split, found in splits.items()})

    return load_dataset


class Parted(HFLM):
    """lm_eval's model, with answers longer than the context split into parts."""

    def _loglikelihood_tokens(self, requests, **kwargs):
        parts, owners = [], []
        for owner, (texts, context, answer) in enumerate(requests):
            step = len(answer) if len(answer) <= self.max_length else -(-self.max_length // 2)
            for start in range(0, len(answer), step):
                parts.append((texts, context + answer[:start], answer[start : start + step]))
                owners.append(owner)
        sums = [[0.0, True] for _ in requests]
        for owner, (value, greedy) in zip(owners, super()._loglikelihood_tokens(parts, **kwargs)):
            sums[owner] = [sums[owner][0] + value, sums[owner][1] and greedy]
        return [tuple(answer) for answer in sums]


def run_lm_eval(args):
    datasets.load_dataset = local(args.data_dir)
    started = time.perf_counter()
    model = Parted(pretrained=str(args.exported), dtype="float32", device="cpu", batch_size=args.batch_size)
    found = lm_eval.simple_evaluate(
        model=model, tasks=args.tasks.split(","), num_fewshot=args.num_fewshot, limit=args.limit, log_samples=True, bootstrap_iters=1
    )
    seconds = time.perf_counter() - started
    samples = {
        task: [[ll for ll, _ in one["filtered_resps"]] for one in sorted(samples, key=lambda one: one["doc_id"])]
        for task, samples in found["samples"].items()
    }
    return seconds, found["results"], samples


def run_ngen3(args):
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder)
        command = [args.ngen3, "eval", "--model_checkpoint", args.checkpoint, "--tasks", args.tasks, "--data_dir", args.data_dir]
        command += ["--num_fewshot", str(args.num_fewshot), "--dtype", args.dtype, "--threads", str(args.threads), "--no_merge"]
        command += ["--out", out / "results.json", "--log_samples", out / "samples"]
        command += ["--limit", str(args.limit)] if args.limit else []
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - started
        found = json.loads((out / "results.json").read_text())
        samples = {
            file.stem.removeprefix("samples_"): [line["filtered_resps"] for line in rows(file)]
            for file in (out / "samples").glob("*/samples_*.jsonl")
        }
    return seconds, found["results"], samples


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--exported", type=pathlib.Path, required=True)
    parser.add_argument("--data_dir", type=pathlib.Path, required=True)
    parser.add_argument("--tasks", default="piqa")
    parser.add_argument("--num_fewshot", type=int, default=0)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--dtype", default="f32")
    parser.add_argument("--ngen3", default=str(ROOT / "target/release/ngen3"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    their_seconds, theirs, their_samples = run_lm_eval(args)
    our_seconds, ours, our_samples = run_ngen3(args)
    best = lambda values: max(range(len(values)), key=values.__getitem__)
    for group in sorted({task.split("_")[0] for task in their_samples}):
        tasks = [task for task in their_samples if task.split("_")[0] == group]
        pairs = [pair for task in tasks for pair in zip(their_samples[task], our_samples[task], strict=True)]
        same = sum(best(a) == best(b) for a, b in pairs)
        largest = max(abs(x - y) for a, b in pairs for x, y in zip(a, b, strict=True))
        print(f"{group}: {same} of {len(pairs)} choices are equal ({same / len(pairs):.2%}), "
              f"log-likelihoods differ by at most {largest:.6f}")
    for task, values in theirs.items():
        for name, value in values.items():
            if name.endswith(",none") and "stderr" not in name and (task.count("_") == 0 or task in args.tasks.split(",")):
                error = name.replace(",", "_stderr,")
                print(f"{task} {name}: lm_eval {value:.6f} ± {values[error]:.6f}, ngen3 {ours[task][name]:.6f} ± {ours[task][error]:.6f}")
    print(f"lm_eval {their_seconds:.1f} s, ngen3 {our_seconds:.1f} s: ngen3 is {their_seconds / our_seconds:.1f}x as fast")


main()
