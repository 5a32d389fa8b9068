"""Time the same distillation step in NGen3 and in PyTorch, alternating on the same machine, and print the ratios.

    pip install torch numpy
    cargo build --release
    python benches/peers/distill.py [--steps 8] [--rounds 2] [--teacher gpt2] [--student 7M]

The teacher has GPT-2's shape and random weights; the student is the 7M variant. A step is 16 sequences of 128 random tokens, with
temperature 2 and alpha 0.5. PyTorch runs under bf16 autocast, with torch.compile over both models and the loss, and fused
AdamW. bf16-compile-small stores the teacher's weights in bf16, to save memory. bf16-compile-int8 quantises its linear
layers dynamically to int8; torch.compile does not support these, so the teacher runs uncompiled. NGen3 runs the plain
`ngen3 distill` command; its step time comes from metrics.jsonl. Prints medians over rounds, the peak memory of each process,
and the ratios.
"""
import argparse
import json
import os
import pathlib
import random
import statistics
import struct
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TEMPERATURE, ALPHA = 2.0, 0.5
WAYS = {
    "ngen3": [],
    "ngen3, int8 teacher": ["--teacher_quant", "int8"],
    "ngen3, teacher cached": ["--teacher_cache", "said"],
}


def torch_step(args):
    import contextlib
    import resource
    import time
    import warnings

    import torch
    import torch.nn as nn
    import torch.nn.functional as F

    from torch_gpt import SHAPES, Gpt

    torch.manual_seed(0)
    layers, heads, width, block, _ = SHAPES[args.teacher]
    teacher = Gpt(layers, heads, width, block).eval().requires_grad_(False)
    layers, heads, width, block, rows = SHAPES[args.student]
    student = Gpt(layers, heads, width, block)
    bf16 = "bf16" in args.mode
    if "small" in args.mode:
        teacher = teacher.bfloat16()
    if "int8" in args.mode:
        warnings.simplefilter("ignore")  # torch.ao.quantization is deprecated.
        teacher = torch.ao.quantization.quantize_dynamic(teacher, {nn.Linear}, dtype=torch.qint8)
    decay = [p for p in student.parameters() if p.dim() >= 2]
    plain = [p for p in student.parameters() if p.dim() < 2]
    opt = torch.optim.AdamW([{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
                            lr=3e-4, betas=(0.9, 0.95), fused=True)

    def loss_of(x, y, theirs=None):
        if theirs is None:
            with torch.no_grad():
                theirs = teacher.logits(x).flatten(0, 1)
        ours = student.logits(x).flatten(0, 1)
        log_p, log_q = (F.log_softmax(logits.float() / TEMPERATURE, -1) for logits in (theirs, ours))
        divergence = F.kl_div(log_q, log_p, log_target=True, reduction="batchmean") * TEMPERATURE**2
        return ALPHA * divergence + (1 - ALPHA) * F.cross_entropy(ours.float(), y.flatten())

    run = torch.compile(loss_of) if "compile" in args.mode else loss_of
    x, y = (torch.randint(0, 50257, (rows, block)) for _ in range(2))
    times = []
    for _ in range(args.steps + 3):
        start = time.perf_counter()
        theirs = None
        if "int8" in args.mode:
            with torch.no_grad():
                theirs = teacher.logits(x).flatten(0, 1)
        with torch.autocast("cpu", dtype=torch.bfloat16) if bf16 else contextlib.nullcontext():
            loss = run(x, y, theirs)
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        times.append(time.perf_counter() - start)
    print(json.dumps({"ms_per_step": 1e3 * statistics.median(times[3:]), "loss": loss.item(),
                      "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}))


def measured(command, **options):
    """Run a command; return its output and its peak memory in MB."""
    process = subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    out, err = process.stdout.read(), process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(map(str, command))}\n{err.decode()}")
    return out.decode(), usage.ru_maxrss // 1024


def prepare(ngen3, teacher, folder):
    """Write random tokens, and a teacher with random weights."""
    from torch_gpt import SHAPES

    random.seed(0)
    tokens = [random.randrange(50257) for _ in range(20_000)]
    (folder / "data.bin").write_bytes(struct.pack(f"<{len(tokens)}H", *tokens))
    layers, heads, width, block, _ = SHAPES[teacher]
    shape = f"n_layer = {layers}\nn_head = {heads}\nn_embd = {width}\nblock_size = {block}\nmax_iters = 0\n"
    (folder / "teacher.toml").write_text(shape)
    measured([ngen3, "train", "--config", "teacher.toml", "--data", "data.bin", "--out", "teacher.pt"], cwd=folder)


def ngen3_step(args, folder, extra):
    command = [args.ngen3, "distill", "--teacher_model_path", "teacher.pt", "--student_variant", args.student, "--data", "data.bin",
               "--temperature", TEMPERATURE, "--alpha", ALPHA, "--out", "student.pt", "--overwrite",
               "--max_iters", args.steps + 3, "--log_interval", 1, "--eval_iters", 1, "--eval_interval", 1000, *extra]
    _, memory = measured(command, cwd=folder)
    lines = [json.loads(line) for line in (folder / "student.run/metrics.jsonl").read_text().splitlines()]
    times = [line["ms_per_step"] for line in lines if "ms_per_step" in line]
    return {"ms_per_step": statistics.median(times[3:]), "peak_rss_mb": memory}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="gpt2")
    parser.add_argument("--student", default="7M")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--modes", nargs="*", default=["bf16-compile", "bf16-compile-small", "bf16-compile-int8"])
    parser.add_argument("--ngen3", type=pathlib.Path, default=ROOT / "target/release/ngen3")
    parser.add_argument("--mode", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.mode:
        return torch_step(args)
    args.ngen3 = args.ngen3.resolve()

    results = {}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        prepare(args.ngen3, args.teacher, folder)
        for _ in range(args.rounds):
            for name, extra in WAYS.items():
                results.setdefault(name, []).append(ngen3_step(args, folder, extra))
            for mode in args.modes:
                peer = [sys.executable, __file__, "--mode", mode, "--teacher", args.teacher, "--student", args.student]
                out, _ = measured([*peer, "--steps", args.steps])
                results.setdefault(f"torch {mode}", []).append(json.loads(out.strip().splitlines()[-1]))

    median = {name: statistics.median(r["ms_per_step"] for r in runs) for name, runs in results.items()}
    memory = {name: max(r["peak_rss_mb"] for r in runs) for name, runs in results.items()}
    print(f"{args.teacher} teaches {args.student}, median of {args.rounds} rounds of {args.steps} steps")
    print(f"{'':24} {'ms/step':>10} {'peak MB':>8} {'time/ngen3':>11} {'memory/ngen3':>13}")
    for name, ms in median.items():
        ratios = f"{ms / median['ngen3']:>11.2f} {memory[name] / memory['ngen3']:>13.2f}"
        print(f"{name:24} {ms:>10.0f} {memory[name]:>8} {ratios}")


if __name__ == "__main__":
    main()
