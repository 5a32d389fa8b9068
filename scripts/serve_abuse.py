"""Abuse a running `ngen3 serve` with malformed requests, half-open connections, clients that vanish and readers that sleep.

    ngen3 serve --model_checkpoint 7M_model.pt & python scripts/serve_abuse.py http://127.0.0.1:8000 --pid $! --requests 10000

Meanwhile a well-behaved client asks the same question again and again: its answers must stay the same. With --pid, the server's memory
(Linux) after a first tenth is compared with that at the end. Prints what was sent and seen; exits with code 1 if the server died, answered a
malformed request with anything but an error of its own form, or grew by more than 5 %. Needs only Python.
"""
import argparse, asyncio, json, pathlib, random, re, sys, time, urllib.parse, urllib.request

parser = argparse.ArgumentParser()
parser.add_argument("url")
parser.add_argument("--pid", type=int)
parser.add_argument("--requests", type=int, default=10_000)
parser.add_argument("--at_once", type=int, default=32)
parser.add_argument("--seed", type=int, default=random.randrange(10**6))
args = parser.parse_args()
host, port = urllib.parse.urlsplit(args.url).hostname, urllib.parse.urlsplit(args.url).port
rng = random.Random(args.seed)
print("seed", args.seed, flush=True)
model = json.load(urllib.request.urlopen(args.url + "/v1/models"))["data"][0]["id"]
good = {"model": model, "prompt": "ROMEO:", "max_tokens": 8, "seed": 1}
seen, wrong = {}, []


def memory():
    status = pathlib.Path(f"/proc/{args.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1])


def fuzzed():
    """A valid body with some of its bytes changed, cut or doubled, or with values of other types."""
    kind = rng.randrange(4)
    if kind == 0:
        body = dict(good)
        odd = [None, -1, 1e308, 2**70, "", "x" * 1000, [], {}, [[[]]], True, [1, "a"], {"a": {"b": []}}, "\ud83d", [2**40], "nan"]
        for _ in range(rng.randrange(1, 4)):
            names = ["prompt", "max_tokens", "seed", "n", "stop", "logprobs", "temperature", "top_p", "stream", "stream_options", "messages", "model", "echo", "", "\u0000"]
            body[rng.choice(names)] = rng.choice(odd)
        body["max_tokens"] = min(body["max_tokens"], 8) if isinstance(body["max_tokens"], int) else body["max_tokens"]
        return json.dumps(body).encode()
    body = bytearray(json.dumps(good).encode())
    if kind == 1:
        for _ in range(rng.randrange(1, 6)):
            body[rng.randrange(len(body))] = rng.randrange(256)
    elif kind == 2:
        del body[rng.randrange(len(body)):]
    else:
        body = rng.choice([b"[" * 50_000, b'{"a":' * 5_000, b"\xff\xfe" * 100, b"{" + b'"prompt":"a",' * 1000, rng.randbytes(500), b""])
    return bytes(body)


async def exchange(head, body, wait=30):
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(head + body)
        await writer.drain()
        return await asyncio.wait_for(reader.read(), wait)
    finally:
        writer.close()


def head(path, length, method="POST", more=""):
    return f"{method} {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: {length}\r\nConnection: close\r\n{more}\r\n".encode()


async def malformed():
    path = rng.choice(["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"])
    body = fuzzed()
    answer = await exchange(head(path, len(body)), body)
    status = int(answer.split(b" ", 2)[1])
    payload = answer.split(b"\r\n\r\n", 1)[1]
    if status != 200 and b'{"error":{"message":' not in payload:
        wrong.append((path, body[:200], answer[:200]))
    if status >= 500 and status != 503:
        wrong.append((path, body[:200], answer[:300]))
    return str(status)


async def huge():
    answer = await exchange(head("/v1/completions", 50 << 20), b" " * (5 << 20))
    return answer.split(b" ", 2)[1].decode() if answer else "closed"


async def nonsense():
    answer = await exchange(rng.randbytes(rng.randrange(1, 300)) + b"\r\n\r\n", b"", wait=60)
    return "answered" if answer else "closed"


async def traversal():
    name = urllib.parse.quote(rng.choice(["../", "/etc/", "..%2f", "a/../../", "\0"]) + "x.run")
    answer = await exchange(head(f"/runs/metrics?run={name}", 0, "GET"), b"")
    status = answer.split(b" ", 2)[1].decode()
    if status == "200":
        wrong.append((name, answer[:200]))
    return status


async def vanishes():
    """Leaves at a random token of a stream, or before."""
    body = json.dumps(good | {"max_tokens": 100, "stream": rng.random() < 0.7}).encode()
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(head("/v1/completions", len(body)) + body[: rng.choice([len(body), len(body) // 2])])
    await writer.drain()
    try:
        await asyncio.wait_for(reader.read(rng.randrange(1, 4000)), rng.random() / 4)
    except asyncio.TimeoutError:
        pass
    writer.transport.abort()
    return "left"


async def sleeps():
    """Reads a stream slowly."""
    body = json.dumps(good | {"max_tokens": 60, "stream": True}).encode()
    reader, writer = await asyncio.open_connection(host, port, limit=256)
    writer.write(head("/v1/completions", len(body)) + body)
    await writer.drain()
    for _ in range(3):
        await asyncio.sleep(0.2)
        await reader.read(100)
    writer.transport.abort()
    return "left"


KINDS = [(malformed, 70), (nonsense, 6), (traversal, 6), (vanishes, 12), (sleeps, 4), (huge, 2)]


async def abuse(count):
    place = asyncio.Semaphore(args.at_once)

    async def one(kind):
        async with place:
            try:
                outcome = await kind()
            except (ConnectionError, asyncio.TimeoutError, IndexError, ValueError) as error:
                outcome = type(error).__name__
            key = f"{kind.__name__} {outcome}"
            seen[key] = seen.get(key, 0) + 1

    kinds = rng.choices([kind for kind, _ in KINDS], [weight for _, weight in KINDS], k=count)
    await asyncio.gather(*map(one, kinds))


async def behave(answers, times):
    body = json.dumps(good).encode()
    while True:
        started = time.monotonic()
        answer = await exchange(head("/v1/completions", len(body)), body, wait=60)
        times.append(time.monotonic() - started)
        answers.add((answer.split(b" ", 2)[1], json.loads(answer.split(b"\r\n\r\n", 1)[1]).get("choices", [{}])[0].get("text")))
        await asyncio.sleep(0.05)


async def main():
    answers, times = set(), []
    other = asyncio.create_task(behave(answers, times))
    await abuse(args.requests // 10)
    before = memory() if args.pid else 0
    await abuse(args.requests - args.requests // 10)
    other.cancel()
    await asyncio.sleep(2)
    after = memory() if args.pid else 0
    for key in sorted(seen):
        print(f"{seen[key]:7} {key}")
    health = json.load(urllib.request.urlopen(args.url + "/health"))
    metrics = urllib.request.urlopen(args.url + "/metrics").read().decode()
    left = re.findall(r"^ngen3_requests_(?:running|waiting).* (\d+)$", metrics, re.M)
    print(f"the other client: {len(times)} answers, slowest {max(times):.2f} s; {answers}")
    print(f"memory: {before} → {after} kB ({100 * (after / max(before, 1) - 1):+.1f} %); health {health}; still running {left}")
    for case in wrong[:10]:
        print("WRONG", case)
    served = len(answers) == 1 and {status for status, _ in answers} == {b"200"}
    sys.exit(bool(wrong) or health != {"status": "ok"} or set(left) != {"0"} or not served or after > before * 1.05)


asyncio.run(main())
