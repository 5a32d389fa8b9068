"""Time greedy decoding of one sequence in NGen3 and in transformers, alternating on the same machine, and print the ratios.

    pip install torch transformers
    cargo build --release
    python benches/peers/decode.py [--variant 120M] [--tokens 100] [--rounds 3]

Creates and exports a model of the variant and opens the export with transformers (f32, KV cache, eager and sdpa attention).
NGen3 decodes as in `ngen3 bench`. Prints the best round of each, and the share of the memory bandwidth that reading the weights
once per token takes. The bandwidth is measured by summing a large array.
"""
import argparse
import json
import pathlib
import subprocess
import tempfile
import time

import torch
from transformers import AutoModelForCausalLM

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def bandwidth():
    numbers = torch.ones(1 << 27)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        numbers.sum()
        best = min(best, time.perf_counter() - start)
    return numbers.numel() * 4 / best


@torch.no_grad()
def transformers_rate(model, tokens):
    out = model(torch.tensor([[1, 2, 3]]), use_cache=True)
    start = time.perf_counter()
    for _ in range(tokens):
        token = out.logits[:, -1].argmax(-1, keepdim=True)
        out = model(token, past_key_values=out.past_key_values, use_cache=True)
    return tokens / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="120M")
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ngen3", default=str((ROOT / "target/release/ngen3").resolve()))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        def ngen3(*words):
            done = subprocess.run([args.ngen3, *words], cwd=folder, capture_output=True, text=True, check=True)
            return done.stdout

        ngen3("tokenize", "--dataset", "x", "--txt", "builtin:shakespeare")
        ngen3("train", "--variant", args.variant, "--data", "_data_x_/data.bin", "--max_iters", "0", "--out", "m.pt")
        ngen3("export", "--model_path", "m.pt", "--output_dir", "hf")
        models = {
            f"transformers f32 {way}": AutoModelForCausalLM.from_pretrained(
                f"{folder}/hf", dtype=torch.float32, attn_implementation=way
            ).eval()
            for way in ("eager", "sdpa")
        }
        weights = sum(p.numel() for p in models["transformers f32 sdpa"].parameters())
        best, speed = {}, 0.0
        for _ in range(args.rounds):
            speed = max(speed, bandwidth())
            for dtype in ("f32", "bf16"):
                words = ["bench", "--variant", args.variant, "--steps", "1", "--batch_size", "1", "--json"]
                line = json.loads(ngen3(*words, "--dtype", dtype, "--tokens", str(args.tokens)))
                name = f"ngen3 {dtype}"
                best[name] = max(best.get(name, 0.0), line["decode_tokens_per_s"])
            for name, model in models.items():
                best[name] = max(best.get(name, 0.0), transformers_rate(model, args.tokens))
    print(f"{args.variant}, {args.tokens} tokens, best of {args.rounds}; memory bandwidth {speed / 1e9:.1f} GB/s")
    for name, rate in best.items():
        size = 2 if "bf16" in name else 4
        share = rate * weights * size / speed
        print(f"{name:<24} {rate:8.1f} tokens/s  {100 * share:4.0f} % of the bandwidth  ngen3 f32 is {best['ngen3 f32'] / rate:5.2f}x as fast")


if __name__ == "__main__":
    main()
