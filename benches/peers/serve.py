"""Load `ngen3 serve` and llama.cpp's server with the same requests on the same GGUF file and threads.

    cargo build --release
    python benches/peers/serve.py --llama_server PATH [--gguf smollm2.gguf] [--clients 1,8,32,128] [--tokens 200]

Every client sends one request and reads its stream; all start together. Prints tokens per second of all clients, and the median and the
99th percentile of the time to the first token. Each server may run as many texts at once as there are clients, and is started anew for
each number of them. Prompts are 40 random words each, so that hardly anything is shared. Only the peer gets ignore_eos: see the column
`tokens each`. Measure on an idle machine: both servers use all threads. Without --gguf the model is a 7M of random weights with a
context of 1,024, which this script makes and exports.

llama-server: its source is in the package of llama-cpp-python (not in its wheels), and is built for the processor at hand:

    pip download --no-deps --no-binary :all: llama-cpp-python && tar xzf llama_cpp_python-*.tar.gz && cd llama_cpp_python-*/vendor/llama.cpp
    cmake -B build -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_CURL=OFF && cmake --build build --target llama-server

With --xllamacpp the peer is the same server from the package xllamacpp, which needs no compiler but uses AVX2 at most.
The servers of llama-cpp-python itself are no peers: they answer one request at a time.
"""
import argparse
import asyncio
import json
import os
import pathlib
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORDS = "river stone lantern winter harbour copper meadow signal orchard thunder velvet compass ember glacier marble willow saffron tunnel".split()

MODEL = "model"
# Number of a client whose prompt is nobody else's.
PROBE = 1 << 20

XLLAMACPP = """
import sys, time, xllamacpp
path, port, threads, parallel, context = sys.argv[1:]
params = xllamacpp.CommonParams()
params.model.path, params.port, params.n_parallel = path, int(port), int(parallel)
params.n_ctx = int(context) * int(parallel)
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(threads)
params.n_gpu_layers, params.warmup = 0, True
server = xllamacpp.Server(params)
print("listening", server.listening_address, flush=True)
time.sleep(1e6)
"""


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def prompt(client):
    draw = random.Random(client)
    return " ".join(draw.choice(WORDS) for _ in range(40))


async def ask(port, client, body):
    """Return the number of tokens of an answer, and the time of the first in seconds."""
    body = json.dumps(body | {"prompt": prompt(client), "seed": client}).encode()
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    writer.write(head.encode() + body)
    first, received = None, b""
    while part := await reader.read(1 << 16):
        received += part
        if first is None and b"data: {" in received:
            first = time.perf_counter() - started
    writer.close()
    if first is None:
        # Not 503: a server that is loading its model.
        raise (OSError if b" 503 " in received[:20] else RuntimeError)(f"no tokens: {received[:400]!r}")
    # From the whole answer, not part by part: usage is in the last event.
    [*_, tokens] = re.findall(rb'"completion_tokens":\s*(\d+)', received)
    return int(tokens), first


async def load(port, clients, body):
    started = time.perf_counter()
    answers = await asyncio.gather(*(ask(port, client, body) for client in range(clients)))
    return time.perf_counter() - started, answers


def wait_for(process, port):
    """Wait for a server that answers."""
    for _ in range(240):
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with code {process.returncode}")
        try:
            asyncio.run(ask(port, PROBE, {"model": MODEL, "max_tokens": 1, "stream": True, "stream_options": {"include_usage": True}}))
            return
        except OSError:
            time.sleep(0.25)
    raise RuntimeError("the server does not answer")


def measure(name, command, port, clients, body, log):
    with open(log, "w") as out:
        process = subprocess.Popen([str(part) for part in command], stdout=out, stderr=out)
        try:
            wait_for(process, port)
            seconds, answers = asyncio.run(load(port, clients, body))
        finally:
            process.terminate()
            process.wait()
    tokens = sum(count for count, _ in answers)
    firsts = sorted(first for _, first in answers)
    p99 = firsts[min(len(firsts) - 1, int(0.99 * len(firsts)))]
    print(f"| {name} | {clients} | {tokens / seconds:,.0f} | {statistics.median(firsts):.2f} | {p99:.2f} | {tokens / clients:.0f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=pathlib.Path, help="model [default: a 7M of random weights]")
    parser.add_argument("--gguf_dtype", default="q8_0", help="type of the weights of that 7M: f32, f16, bf16, q8_0 or q4_0")
    parser.add_argument("--llama_server", help="llama.cpp's llama-server")
    parser.add_argument("--xllamacpp", action="store_true", help="the server of the package xllamacpp, of this interpreter")
    parser.add_argument("--clients", default="1,8,32,128")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--context", type=int, default=512, help="tokens of a prompt and its answer that the peer makes room for")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--ngen3", default=str(ROOT / "target/release/ngen3"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        gguf = folder / f"{MODEL}.gguf"
        if args.gguf:
            gguf.symlink_to(args.gguf.resolve())
        else:
            for line in (
                "tokenize --dataset x --txt builtin:shakespeare",
                "train --variant 7M --block_size 1024 --data _data_x_/data.bin --max_iters 0 --out m.pt",
                f"export --model_path m.pt --output_dir gguf --format gguf --dtype {args.gguf_dtype}",
            ):
                subprocess.run([args.ngen3, *line.split()], cwd=folder, check=True, capture_output=True)
            [made] = (folder / "gguf").glob("*.gguf")
            gguf.symlink_to(made)
        body = {"model": MODEL, "max_tokens": args.tokens, "stream": True, "stream_options": {"include_usage": True}}
        body |= {"temperature": 0.8, "top_k": 40, "top_p": 1.0, "min_p": 0.0}
        print("| server | clients | tokens/s | first token p50, s | p99, s | tokens each |\n|---|---|---|---|---|---|", flush=True)
        for clients in map(int, args.clients.split(",")):
            for _ in range(args.rounds):
                port = free_port()
                ours = [args.ngen3, "serve", "--model_checkpoint", gguf, "--port", port, "--threads", args.threads, "--max_running", clients]
                ours += ["--max_requests", max(clients, 256)]
                measure("ngen3 serve", ours, port, clients, body, folder / "ngen3.log")
                port = free_port()
                theirs = ["-m", gguf, "--port", port, "-t", args.threads, "-tb", args.threads, "-np", clients, "-c", args.context * clients]
                if args.llama_server:
                    measure("llama-server", [args.llama_server, *theirs, "--no-webui"], port, clients, body | {"ignore_eos": True}, folder / "llama.log")
                if args.xllamacpp:
                    command = [sys.executable, "-c", XLLAMACPP, gguf, port, args.threads, clients, args.context]
                    measure("xllamacpp", command, port, clients, body | {"ignore_eos": True}, folder / "xllamacpp.log")


main()
