"""Time the same training step in NGen3 and in PyTorch, alternating on the same machine, and print the ratios.

    pip install torch numpy
    cargo build --release
    python benches/peers/step.py [--variant 7M] [--steps 8] [--rounds 2] [--modes f32 f32-compile bf16-compile]

Each round runs NGen3 in f32 and bf16 (--dtypes), then each PyTorch mode, each in its own process. Prints the median over rounds
of each process's median step, its peak memory, and PyTorch's time divided by NGen3's.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def run(command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="7M")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--modes", nargs="+", default=["f32", "f32-compile", "bf16-compile"])
    parser.add_argument("--dtypes", nargs="+", default=["f32", "bf16"])
    parser.add_argument("--ngen3", default=ROOT / "target/release/ngen3")
    args = parser.parse_args()

    results = {}
    for _ in range(args.rounds):
        for dtype in args.dtypes:
            bench = [args.ngen3, "bench", "--variant", args.variant, "--steps", args.steps, "--dtype", dtype, "--tokens", 0]
            results.setdefault(("ngen3", dtype), []).append(run([*bench, "--json"]))
        for mode in args.modes:
            peer = [sys.executable, HERE / "torch_gpt.py", "step", "--variant", args.variant, "--mode", mode]
            results.setdefault(("torch", mode), []).append(run([*peer, "--steps", args.steps + 2]))

    median = {key: statistics.median(r["ms_per_step"] for r in runs) for key, runs in results.items()}
    ours = [key for key in median if key[0] == "ngen3"]
    print(f"{args.variant}, median of {args.rounds} rounds of {args.steps} steps")
    print(f"{'':22} {'ms/step':>10} {'peak MB':>8}" + "".join(f" {'/ngen3 ' + dtype:>12}" for _, dtype in ours))
    for key, ms in median.items():
        memory = max(r["peak_rss_mb"] or 0 for r in results[key])
        ratios = "".join(f" {ms / median[other]:>12.2f}" for other in ours)
        print(f"{' '.join(key):22} {ms:>10.0f} {memory:>8}{ratios}")


if __name__ == "__main__":
    main()
