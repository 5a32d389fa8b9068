"""Train the same model on the same batches in PyTorch, as the reference loss curve of `ngen3 train`.

    pip install torch numpy
    ngen3 train --variant 7M --data data.bin --max_iters 0 --out start.pt
    python benches/peers/train.py --checkpoint start.pt --data data.bin --steps 2000 [--mode f32|bf16-compile] --out torch.jsonl
    ngen3 train --variant 7M --data data.bin --init_from start.pt --max_iters 2000 --out ours.pt --log_interval 1
    python benches/peers/train.py --compare torch.jsonl ours.run/metrics.jsonl

The checkpoint gives the initial weights. Schedule, clipping and AdamW are the defaults of `ngen3 train` for the 7M variant;
batches are drawn from the same seed. Writes one JSON line per step, as in metrics.jsonl.
"""
import argparse
import contextlib
import json
import math
import time

import numpy as np
import torch

from torch_gpt import Gpt

MASK = 2**64 - 1


def chacha8(key):
    """Yield the u64s of rand_chacha's ChaCha8Rng::from_seed(key)."""
    constants = np.frombuffer(b"expand 32-byte k", dtype="<u4")
    for counter in range(2**32):
        start = np.concatenate([constants, np.frombuffer(key, dtype="<u4"), np.array([counter, 0, 0, 0], dtype="<u4")])
        x = [int(word) for word in start]

        def quarter(a, b, c, d):
            for to, add, other, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
                x[to] = (x[to] + x[add]) & 0xFFFFFFFF
                mixed = x[other] ^ x[to]
                x[other] = (mixed << turn | mixed >> (32 - turn)) & 0xFFFFFFFF

        for _ in range(4):
            for column in range(4):
                quarter(column, column + 4, column + 8, column + 12)
            for i, j, k, l in ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)):
                quarter(i, j, k, l)
        words = [(a + int(b)) & 0xFFFFFFFF for a, b in zip(x, start)]
        for low, high in zip(words[::2], words[1::2]):
            yield low | high << 32


class Batches:
    def __init__(self, path, block, rows, seed):
        self.ids = np.fromfile(path, dtype=np.uint16).astype(np.int64)
        self.train_len, self.block, self.rows, self.seed = int(len(self.ids) * (1.0 - 0.1)), block, rows, seed

    def at(self, places):
        rows = np.stack([self.ids[p : p + self.block + 1] for p in places])
        return torch.from_numpy(rows[:, :-1].copy()), torch.from_numpy(rows[:, 1:].copy())

    def train(self, step):
        key = self.seed.to_bytes(8, "little") + step.to_bytes(8, "little") + bytes(16)
        draws = chacha8(key)
        return self.at([next(draws) * (self.train_len - self.block) >> 64 for _ in range(self.rows)])

    def val(self, index):
        starts = len(self.ids) - self.train_len - self.block
        rows = range(index * self.rows, (index + 1) * self.rows)
        return self.at([self.train_len + ((i * 0x9E3779B97F4A7C15 & MASK) * starts >> 64) for i in rows])


def train(args):
    saved = torch.load(args.checkpoint, map_location="cpu", weights_only=True)
    m = saved["model_args"]
    model = Gpt(m["n_layer"], m["n_head"], m["n_embd"], m["block_size"], m["vocab_size"])
    model.load_state_dict(saved["model"], strict=False)
    batches = Batches(args.data, m["block_size"], args.rows, args.seed)
    decay = [p for p in model.parameters() if p.dim() >= 2]
    plain = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    opt = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95), fused=True)
    run = torch.compile(model) if "compile" in args.mode else model
    cast = torch.autocast("cpu", dtype=torch.bfloat16) if "bf16" in args.mode else contextlib.nullcontext()
    warmup, min_lr = min(100, args.steps // 10), args.lr / 10

    def rate(step):
        if step < warmup:
            return args.lr * (step + 1) / (warmup + 1)
        done = (step - warmup) / (args.steps - warmup)
        return min_lr + 0.5 * (1 + math.cos(math.pi * done)) * (args.lr - min_lr)

    def evaluate():
        with torch.no_grad(), cast:
            return float(np.mean([run(*batches.val(i)).item() for i in range(20)]))

    start = time.time()
    with open(args.out, "w") as out:
        for step in range(args.steps):
            for group in opt.param_groups:
                group["lr"] = rate(step)
            with cast:
                loss = run(*batches.train(step))
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
            opt.step()
            opt.zero_grad(set_to_none=True)
            line = {"step": step + 1, "train_loss": loss.item(), "lr": rate(step), "grad_norm": norm}
            if (step + 1) % 250 == 0 or step + 1 == args.steps:
                line["val_loss"] = evaluate()
                print(f"step {step + 1}: loss {line['train_loss']:.4f}, val {line['val_loss']:.4f}, {time.time() - start:.0f} s", flush=True)
            out.write(json.dumps(line) + "\n")
    if args.save:
        torch.save({"model": model.state_dict(), "model_args": m}, args.save)


def compare(paths):
    theirs, ours = ({line["step"]: line for line in map(json.loads, open(path))} for path in paths)
    both = sorted(theirs.keys() & ours.keys())
    gaps = [abs(theirs[s]["train_loss"] - ours[s]["train_loss"]) for s in both if "train_loss" in ours[s]]
    print(f"{len(both)} steps; largest difference in training loss: first 100 {max(gaps[:100]):.2e}, all {max(gaps):.2e}")
    for step in both:
        if "val_loss" in theirs[step] and "val_loss" in ours[step]:
            print(f"step {step}: validation loss {theirs[step]['val_loss']:.4f} (PyTorch), {ours[step]['val_loss']:.4f} (ngen3)")


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--checkpoint"); p.add_argument("--data"); p.add_argument("--out", default="torch.jsonl")
    p.add_argument("--steps", type=int, default=2000); p.add_argument("--mode", default="f32")
    p.add_argument("--lr", type=float, default=3e-4); p.add_argument("--rows", type=int, default=16)
    p.add_argument("--seed", type=int, default=1337); p.add_argument("--compare", nargs=2)
    p.add_argument("--save", help="write the trained weights to this file, as a nanoGPT checkpoint")
    a = p.parse_args()
    compare(a.compare) if a.compare else train(a)
