"""Check that `ngen3 serve` answers many clients at once with the texts that `ngen3 sample` prints.

    ngen3 serve --model_checkpoint base.pt
    python scripts/serve_equal.py http://127.0.0.1:8000 --checkpoint base.pt

Sends 1,000 requests from 32 clients at once, of different prompts (many of which begin alike), lengths, seeds, sampling settings and
stop texts, half of them streamed. Then runs `ngen3 sample` for each request and compares. The model needs a context of at least 256
tokens. Start the server with --cache_mib 1 and a context of a few hundred tokens to see the same when texts are preempted for want of
memory. Prints a summary and the requests that differ, and exits with code 1 if any does.
"""
import argparse, concurrent.futures, http.client, itertools, json, os, pathlib, random, subprocess, sys, tempfile, time, urllib.parse

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("url")
parser.add_argument("--checkpoint", required=True, help="the model that is served")
parser.add_argument("--model", help="its name in the API [default: the file's name]")
parser.add_argument("--requests", type=int, default=1000)
parser.add_argument("--clients", type=int, default=32)
parser.add_argument("--sampled", type=int, help="requests to compare with ngen3 sample; the others are sent again, one at a time [default: all]")
parser.add_argument("--length", type=int, default=48, help="most tokens of an answer")
parser.add_argument("--parallel", type=int, default=os.cpu_count(), help="runs of ngen3 sample at once, of one thread each")
parser.add_argument("--dtype", default="auto", help="the server's --dtype")
parser.add_argument("--seed", type=int, default=1)
parser.add_argument("--ngen3", default="target/release/ngen3")
args = parser.parse_args()
name = args.model or pathlib.Path(args.checkpoint).stem
address = urllib.parse.urlsplit(args.url).netloc

# About 60 tokens each: pages of keys and values are shared.
SHARED = [
    "First Citizen: Before we proceed any further, hear me speak. All: Speak, speak. First Citizen: You are all resolved rather to die "
    "than to famish? All: Resolved, resolved. First Citizen: First, you know Caius Marcius is chief enemy to the people. ",
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, it was the epoch of "
    "belief, it was the epoch of incredulity, it was the season of Light, it was the season of Darkness, ",
]
WORDS = "the of and to a in that it is was for on with as be at by not 🙂 naïve Zürich café 日本 ROMEO: JULIET: \n\n 42 -- (so) said once upon king queen".split(" ")


def make(number):
    draw = random.Random(f"{args.seed} {number}")
    words = " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, 30)))
    prompt = draw.choice(["", "", *SHARED, SHARED[0] + SHARED[1]]) + words
    return {
        "model": name,
        "prompt": prompt,
        "max_tokens": draw.randint(1, args.length),
        "seed": draw.randrange(1 << 48),
        "temperature": draw.choice([0, 0.3, 0.8, 1.0, 1.5]),
        "top_k": draw.choice([0, 0, 1, 5, 50]),
        "top_p": draw.choice([1.0, 1.0, 0.9, 0.5]),
        "min_p": draw.choice([0.0, 0.0, 0.05]),
        "repetition_penalty": draw.choice([1.0, 1.0, 1.2]),
        "n": draw.choice([1, 1, 1, 3]),
        "stop": draw.choice([None, None, None, ["e ", "\n"]]),
        "stream": draw.random() < 0.5,
    }


def ask(request):
    """Return the texts of an answer."""
    connection = http.client.HTTPConnection(address, timeout=600)
    connection.request("POST", "/v1/completions", json.dumps(request), {"Content-Type": "application/json"})
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    if response.status != 200:
        return [f"status {response.status}: {body[:200]}"]
    texts = [""] * request["n"]
    if not request["stream"]:
        answers = [json.loads(body)]
    else:
        events = [event.removeprefix("data: ") for event in body.split("\n\n") if event.startswith("data: ")]
        answers = [json.loads(event) for event in events if event != "[DONE]"]
    for choice in (choice for answer in answers for choice in answer.get("choices", [])):
        texts[choice["index"]] += choice["text"]
    return texts


def printed(request, texts):
    """Return what `ngen3 sample` prints of these texts."""
    heads = [f"--- sample {at + 1} of {len(texts)} ---\n" if len(texts) > 1 else "" for at in range(len(texts))]
    return "".join(f"{head}{request['prompt']}{text}\n" for head, text in zip(heads, texts))


def sample(request):
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", newline="") as file:
        file.write(request["prompt"])
        file.flush()
        command = [args.ngen3, "sample", "--model_checkpoint", args.checkpoint, "--prompt_file", file.name, "--threads", "1", "--dtype", args.dtype]
        command += ["--length", request["max_tokens"], "--num_samples", request["n"]]
        for setting in ("seed", "temperature", "top_k", "top_p", "min_p", "repetition_penalty"):
            command += [f"--{setting}", request[setting]]
        for stop in request["stop"] or []:
            command += ["--stop", stop]
        done = subprocess.run([str(part) for part in command], capture_output=True)
    return done.stdout.decode() if done.returncode == 0 else done.stderr.decode()


def measurements():
    connection = http.client.HTTPConnection(address, timeout=60)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    values = (line.rsplit(" ", 1) for line in lines if f'model="{name}"' in line)
    return {label.removeprefix("ngen3_").split("{")[0]: float(value) for label, value in values if "_bucket" not in label}


requests = [make(number) for number in range(args.requests)]
before, started = measurements(), time.perf_counter()
with concurrent.futures.ThreadPoolExecutor(args.clients) as clients:
    answers = list(clients.map(ask, requests))
seconds, after = time.perf_counter() - started, measurements()
change = lambda label: int(after[label] - before[label])
tokens = change("generated_tokens_total")
print(f"{len(requests):,} requests from {args.clients} clients: {tokens:,} tokens in {seconds:.1f} s ({tokens / seconds:.0f}/s), "
      f"{change('preemptions_total')} preemptions, {len(set(map(tuple, answers))):,} different answers", flush=True)

sampled = args.sampled if args.sampled is not None else len(requests)
started = time.perf_counter()
with concurrent.futures.ThreadPoolExecutor(args.parallel) as runs:
    expected = list(runs.map(sample, requests[:sampled]))
rest = [printed(request, ask(request)) for request in requests[sampled:]]
wrong = 0
for number, (request, answer, text) in enumerate(zip(requests, answers, itertools.chain(expected, rest), strict=True)):
    if printed(request, answer) != text:
        wrong += 1
        if wrong <= 5:
            print(f"FAIL request {number}: {json.dumps(request)}\n  server: {printed(request, answer)!r}\n  alone:  {text!r}")
alone = f", {len(rest):,} with the server's answer to one client" if rest else ""
print(f"{'FAIL' if wrong else 'ok  '} {len(expected):,} answers compared with ngen3 sample{alone}, {wrong} differ ({time.perf_counter() - started:.0f} s)")
sys.exit(wrong > 0)
