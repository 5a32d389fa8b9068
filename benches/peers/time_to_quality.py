"""Time nanoGPT's recipe in PyTorch and `ngen3` from raw text to the same bits per byte of held-out text.

    pip install torch numpy tiktoken
    cargo build --release
    python benches/peers/time_to_quality.py --txt english.txt.zst --val english_val.txt.zst [--lr 1e-3] [--seed 1] --out results.json
    python benches/peers/time_to_quality.py --txt … --val … --peer-only --out peer.json
    python benches/peers/time_to_quality.py --txt … --val … --peer peer.json --ngen3-steps 700
    python benches/peers/time_to_quality.py --txt … --val … --minutes 2 10
    python benches/peers/time_to_quality.py --txt … --val … --check

The peer is nanoGPT's model and recipe: GPT-2's vocabulary through tiktoken, the 7M's shape, bf16 autocast, torch.compile, fused
AdamW (betas 0.9 and 0.95, decay 0.1, clipping 1), warm-up of 100 steps and a cosine to a tenth of --lr, 2,000 steps of 16 × 128
tokens. Only its training steps are on the clock: not the tokenization, the compilation or the evaluations.

NGen3's clock runs from the first command to the end of the last: tokenizer, tokenization, training, evaluations and saves. Its
command lines are the --ngen3-args, in order, run in an empty folder: {txt}, {val}, {steps}, {minutes} and {seed} are filled in, and
the last one leaves m.pt and m.run. If one of them makes the dataset `val`, its tokens become the val.bin of the dataset `text`.

Both are scored in f32 on all of --val: nats of all its tokens, in adjacent windows of the block, / (bytes × ln 2); the peer by this
script, NGen3's checkpoint by `ngen3 eval`. --check scores one checkpoint with both. On the way, both are measured on a part of the
held-out text; NGen3's curve is its `val_bpb` in metrics.jsonl. Each curve is scaled so that it ends at the score of all the text.

--minutes N … instead trains both anew for each N, with schedules that end after as many minutes, and prints the scores.
"""
import argparse
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
LAYERS, HEADS, WIDTH, BLOCK, ROWS = 4, 4, 128, 128, 16
NGEN3 = [
    "tokenizer train --txt {txt} --vocab_size 16384 --out tokenizer.json",
    "tokenize --dataset text --txt {txt} --tokenizer tokenizer.json",
    "tokenize --dataset val --txt {val} --tokenizer tokenizer.json",
    "train --variant 7M --data _data_text_/data.bin --out m.pt --recipe fast --max_iters {steps} --seed {seed} "
    "--eval_interval 1000000 --save_interval 1000000",
]


def read(path):
    """Return the text of a file, decompressed with `zstd` if it ends in .zst."""
    if path.suffix == ".zst":
        return subprocess.run(["zstd", "-dcq", path], check=True, capture_output=True).stdout.decode()
    return path.read_text(encoding="utf-8")


def scale(curve, at, score):
    """Scale the values of a curve so that the point `at` has this score; returns [seconds, bits per byte] pairs."""
    factor = score / curve[at][1]
    return [[seconds, bits * factor] for seconds, bits in curve]


def reached(curve, target):
    """Return the time at which a curve passes the target, interpolated between its points; None if it does not."""
    for (before, high), (after, low) in zip(curve, curve[1:]):
        if low <= target:
            return before + (after - before) * (min((high - target) / (high - low), 1) if high > low else 1)
    return None


class Peer:
    """nanoGPT's recipe."""

    def __init__(self, args):
        import numpy as np
        import torch
        import torch.nn.functional as F
        from tiktoken_vs_ngen3 import gpt2, pieces
        from torch_gpt import Gpt

        self.np, self.torch, self.F, self.Gpt, self.args = np, torch, F, Gpt, args
        torch.set_num_threads(args.threads)
        encoding = gpt2()
        encode = lambda text: [i for part in encoding.encode_ordinary_batch(pieces(text), num_threads=args.threads) for i in part]
        val = read(args.val)
        # As in ngen3 eval, the first token is predicted from the one that ends documents.
        self.val, self.bytes = torch.tensor([encoding.eot_token] + encode(val)), len(val.encode())
        self.train = None if args.check else np.array(encode(read(args.txt)), dtype=np.int64)

    def score(self, model, windows=None):
        """Return the bits per byte of the held-out text; of at most this many windows, spread evenly, if given."""
        starts = list(range(0, len(self.val) - 1, BLOCK))
        some = starts if windows is None or windows >= len(starts) else [starts[i * len(starts) // windows] for i in range(windows)]
        nats = tokens = 0
        with self.torch.no_grad():
            for group in (some[i : i + 8] for i in range(0, len(some), 8)):
                # The last window of the text is shorter.
                lengths = {min(BLOCK, len(self.val) - 1 - s) for s in group}
                for length in lengths:
                    rows = [self.val[s : s + length + 1] for s in group if min(BLOCK, len(self.val) - 1 - s) == length]
                    rows = self.torch.stack(rows)
                    nats += model(rows[:, :-1], rows[:, 1:]).item() * rows[:, 1:].numel()
                    tokens += rows[:, 1:].numel()
        return nats / tokens * (len(self.val) - 1) / (self.bytes * math.log(2))

    def run(self, steps=None, minutes=None):
        """Train for as many steps or minutes; returns the curve, the score and the seconds on the clock."""
        torch, np, args = self.torch, self.np, self.args
        torch.manual_seed(args.seed)
        random = np.random.default_rng(args.seed)
        model = self.Gpt(LAYERS, HEADS, WIDTH, BLOCK)
        decay = [p for p in model.parameters() if p.dim() >= 2]
        plain = [p for p in model.parameters() if p.dim() < 2]
        groups = [{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
        opt = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95), fused=True)
        compiled = torch.compile(model)

        def batch():
            starts = random.integers(0, len(self.train) - BLOCK, ROWS)
            rows = torch.from_numpy(np.stack([self.train[s : s + BLOCK + 1] for s in starts]))
            return rows[:, :-1], rows[:, 1:]

        def backward():
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = compiled(*batch())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)

        # Compiles, off the clock.
        started = time.perf_counter()
        backward()
        opt.zero_grad(set_to_none=True)
        compilation = time.perf_counter() - started
        planned = steps
        if planned is None:
            times = []
            for _ in range(6):
                started = time.perf_counter()
                backward()
                opt.zero_grad(set_to_none=True)
                times.append(time.perf_counter() - started)
            planned = max(1, int(minutes * 60 / sorted(times)[len(times) // 2]))
        warmup, lowest = min(args.warmup, planned // 10), args.lr / 10

        def rate(done):
            if done < warmup:
                return args.lr * (done + 1) / (warmup + 1)
            share = (done - warmup) / (planned - warmup)
            return lowest + 0.5 * (1 + math.cos(math.pi * share)) * (args.lr - lowest)

        seconds, curve, step, ended = 0.0, [], 0, False
        while not ended:
            started = time.perf_counter()
            for group in opt.param_groups:
                # The schedule follows the steps, or the clock.
                group["lr"] = rate(step if minutes is None else seconds / (60 * minutes) * planned)
            backward()
            opt.step()
            opt.zero_grad(set_to_none=True)
            seconds += time.perf_counter() - started
            step += 1
            ended = step == steps if minutes is None else seconds >= 60 * minutes
            if step % args.eval_every == 0 or ended:
                curve.append([seconds, self.score(model, args.eval_windows)])
                print(f"  peer: step {step}, {seconds:.1f} s, {curve[-1][1]:.4f} bits/byte", flush=True)
        score = self.score(model)
        curve = scale(curve, -1, score)
        return {"steps": step, "seconds": seconds, "bits_per_byte": score, "compilation_s": compilation, "curve": curve}


def command(args, line, folder):
    """Run one command line of ngen3 in a folder; returns its seconds."""
    started = time.perf_counter()
    done = subprocess.run([args.ngen3, *line], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"ngen3 {' '.join(line)}\n{done.stderr}")
    return time.perf_counter() - started


def score_ngen3(args, folder, model="m.pt"):
    """Return the bits per byte of the held-out text by `ngen3 eval`."""
    line = ["eval", "--model_checkpoint", model, "--tasks", "perplexity", "--text", str(args.val), "--dtype", "f32", "--no_merge"]
    command(args, [*line, "--out", "eval.json"], folder)
    return json.loads((folder / "eval.json").read_text())["results"]["perplexity"]["bits_per_byte,none"]


def run_ngen3(args, steps, minutes=None):
    """Run the command lines from raw text; returns the curve, the score and the seconds in all."""
    with tempfile.TemporaryDirectory() as name:
        folder, before, parts = pathlib.Path(name), 0.0, {}
        for template in args.ngen3_args:
            values = {"txt": args.txt, "val": args.val, "steps": steps, "minutes": minutes, "seed": args.seed}
            line = [part.format(**values) for part in template.split()]
            last = command(args, line, folder)
            text, val = folder / "_data_text_", folder / "_data_val_/data.bin"
            if val.exists() and text.exists() and not (text / "val.bin").exists():
                started = time.perf_counter()
                shutil.copy(val, text / "val.bin")
                last += time.perf_counter() - started
            before += last
            parts[" ".join(line)] = last
        lines = [json.loads(line) for line in (folder / "m.run/metrics.jsonl").read_text().splitlines()]
        # All that the last command did besides its steps counts as if it had come before them.
        start = before - lines[-1]["elapsed_s"]
        curve = [(line["step"], [start + line["elapsed_s"], line["val_bpb"]]) for line in lines if "val_bpb" in line]
        if not curve:
            sys.exit("ngen3: expected val_bpb in m.run/metrics.jsonl; hold out text")
        score = score_ngen3(args, folder)
        # With --keep_best, the model is that of the lowest validation loss.
        import torch

        kept = torch.load(folder / "m.pt", map_location="cpu", weights_only=True)["iter_num"]
        at = next((i for i, (step, _) in enumerate(curve) if step == kept), len(curve) - 1)
        raw = [point for _, point in curve]
        busy = [line["ms_per_step"] for line in lines if "ms_per_step" in line]
        return {
            "steps": lines[-1]["step"], "seconds": before, "bits_per_byte": score, "val_bpb": raw[at][1], "commands": parts,
            "ms_per_step": sorted(busy)[len(busy) // 2], "before_s": start, "curve": scale(raw, at, score),
        }


def check(args):
    """Score one checkpoint with both, and fail if they differ."""
    peer = Peer(args)
    torch = peer.torch
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        command(args, ["tokenize", "--dataset", "val", "--txt", str(args.val)], folder)
        line = "train --variant 7M --data _data_val_ --learning_rate 1e-3 --eval_iters 1 --out m.pt --max_iters"
        command(args, [*line.split(), str(args.steps)], folder)
        ours = score_ngen3(args, folder)
        model = peer.Gpt(LAYERS, HEADS, WIDTH, BLOCK)
        saved = torch.load(folder / "m.pt", map_location="cpu", weights_only=True)
        model.load_state_dict(saved["model"], strict=False)
        theirs = peer.score(model)
    print(f"one checkpoint, scored by both: {theirs:.6f} bits/byte (PyTorch), {ours:.6f} (ngen3 eval)")
    if abs(ours - theirs) > 1e-3:
        sys.exit("the scores differ by more than 1e-3")


def table(results):
    peer, ours = results.get("peer"), results.get("ngen3")
    print(f"{'':8} {'steps':>8} {'seconds':>9} {'bits/byte':>10}")
    for name, run in (("PyTorch", peer), ("ngen3", ours)):
        if run:
            print(f"{name:8} {run['steps']:>8,} {run['seconds']:>9.1f} {run['bits_per_byte']:>10.4f}")
    if peer and ours:
        target, at = peer["bits_per_byte"], reached(ours["curve"], peer["bits_per_byte"])
        results["reached_s"], results["ratio"] = at, at and peer["seconds"] / at
        if at is None:
            print(f"ngen3 did not reach {target:.4f} bits/byte")
        else:
            print(f"ngen3 reaches {target:.4f} bits/byte after {at:.1f} s, all included: {peer['seconds'] / at:.1f}x as fast")


def equal_minutes(args, results):
    """Train both for equal minutes, once for each of them."""
    results["minutes"] = []
    peer = None if args.ngen3_only else Peer(args)
    probe = None
    if not args.peer_only and any("{steps}" in template for template in args.ngen3_args):
        probe = run_ngen3(args, args.probe_steps, args.minutes[0])
    for minutes in args.minutes:
        row = {"minutes": minutes}
        if peer:
            row["peer"] = peer.run(minutes=minutes)
        if not args.peer_only:
            steps = args.ngen3_steps
            if probe:
                # Steps that fit, with their share of the evaluations, after what comes before them.
                per_step = (probe["seconds"] - probe["before_s"]) / probe["steps"]
                steps = max(1, int((60 * minutes - probe["before_s"]) / per_step))
            row["ngen3"] = run_ngen3(args, steps, minutes)
        results["minutes"].append(row)
    print(f"{'minutes':>8} {'PyTorch':>18} {'ngen3':>18}   (bits/byte after seconds)")
    for row in results["minutes"]:
        cell = lambda name: f"{row[name]['bits_per_byte']:.4f} {row[name]['seconds']:8.1f} s" if name in row else ""
        print(f"{row['minutes']:>8g} {cell('peer'):>18} {cell('ngen3'):>18}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--txt", type=pathlib.Path, required=True, help="text to train on; .zst is decompressed")
    parser.add_argument("--val", type=pathlib.Path, required=True, help="held-out text")
    parser.add_argument("--lr", type=float, default=1e-3, help="the peer's peak learning rate")
    parser.add_argument("--steps", type=int, default=2000, help="the peer's steps")
    parser.add_argument("--warmup", type=int, default=100, help="the peer's warm-up steps; a tenth of its steps at most")
    parser.add_argument("--ngen3-steps", type=int, default=500, help="{steps} of the command lines")
    parser.add_argument("--ngen3-args", nargs="+", default=NGEN3, metavar="LINE", help="command lines of ngen3, in order")
    parser.add_argument("--minutes", type=float, nargs="+", help="compare after equal minutes instead")
    parser.add_argument("--probe-steps", type=int, default=100, help="steps of the run that tells how many fit in --minutes")
    parser.add_argument("--eval-every", type=int, default=100, help="the peer's steps between evaluations, off the clock")
    parser.add_argument("--eval-windows", type=int, default=320, help="windows of these; the last one scores all the text")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="the peer's threads")
    parser.add_argument("--peer", type=pathlib.Path, metavar="FILE", help="take the peer's run from an earlier --out")
    parser.add_argument("--peer-only", action="store_true")
    parser.add_argument("--ngen3-only", action="store_true")
    parser.add_argument("--check", action="store_true", help="score one checkpoint with both, after --steps of ngen3")
    parser.add_argument("--ngen3", default=str(ROOT / "target/release/ngen3"))
    parser.add_argument("--out", type=pathlib.Path, help="JSON of the results, with both curves")
    args = parser.parse_args()
    # The commands run in a folder of their own.
    args.txt, args.val, args.ngen3 = args.txt.resolve(), args.val.resolve(), str(pathlib.Path(args.ngen3).resolve())
    if args.check:
        return check(args)

    results = {"lr": args.lr, "seed": args.seed, "threads": args.threads}
    if args.minutes:
        equal_minutes(args, results)
    else:
        if args.peer:
            results["peer"] = json.loads(args.peer.read_text())["peer"]
        elif not args.ngen3_only:
            results["peer"] = Peer(args).run(steps=args.steps)
        if not args.peer_only:
            results["ngen3"] = run_ngen3(args, args.ngen3_steps)
        table(results)
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
