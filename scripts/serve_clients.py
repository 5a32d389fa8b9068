"""Check `ngen3 serve` with the clients that people use: openai, and langchain-openai and litellm where they are installed.

    ngen3 serve --model_checkpoint chat.pt --model_checkpoint base.pt
    python scripts/serve_clients.py http://127.0.0.1:8000 --chat chat --base base

Prints one line per check and exits with code 1 if any failed.
Needs: pip install openai (and langchain-openai, litellm)
"""
import argparse, asyncio, importlib.util, os, sys

import openai

parser = argparse.ArgumentParser()
parser.add_argument("url")
parser.add_argument("--chat", required=True, help="name of a model with a chat template")
parser.add_argument("--base", required=True, help="name of a model without one")
args = parser.parse_args()
base_url = args.url.rstrip("/") + "/v1"
failed = False


def report(what, good, detail=""):
    global failed
    failed |= not good
    print(f"{'ok  ' if good else 'FAIL'} {what}: {detail}", flush=True)


def refused(what, error, call, text):
    """The call raises this class of error, with this text in its message."""
    try:
        call()
        report(what, False, "no error")
    except error as raised:
        report(what, text in str(raised), f"{type(raised).__name__}: {str(raised)[:120]}")


client = openai.OpenAI(base_url=base_url, api_key="none", max_retries=0)
names = [model.id for model in client.models.list()]
report("models.list", {args.chat, args.base} <= set(names), names)
report("models.retrieve", client.models.retrieve(args.base).id == args.base)

# Completions.
fixed = dict(model=args.base, prompt="ROMEO:", max_tokens=24, seed=1, temperature=0.8)
whole = client.completions.create(**fixed)
choice = whole.choices[0]
report("completion", choice.finish_reason == "length" and whole.usage.completion_tokens == 24, repr(choice.text))
report("completion, same seed", client.completions.create(**fixed).choices[0].text == choice.text)
events = list(client.completions.create(**fixed, stream=True, stream_options={"include_usage": True}))
text = "".join(event.choices[0].text for event in events if event.choices)
report("completion, streamed", text == choice.text and events[-1].usage == whole.usage, f"{len(events)} events")
many = client.completions.create(**fixed | dict(n=4))
report("completion, n=4", len({c.text for c in many.choices}) == 4 and many.choices[0].text == choice.text)
lists = client.completions.create(**fixed | dict(prompt=["ROMEO:", "JULIET:"]))
report("completion, two prompts", len(lists.choices) == 2 and lists.choices[0].text == choice.text)
scored = client.completions.create(model=args.base, prompt="To be or not", max_tokens=1, echo=True, logprobs=3, temperature=0)
logprobs = scored.choices[0].logprobs
good = logprobs.token_logprobs[0] is None and all(value < 0 for value in logprobs.token_logprobs[1:])
good &= len(logprobs.tokens) == len(logprobs.text_offset) == len(logprobs.top_logprobs)
report("completion, echo with logprobs", good, logprobs.tokens)
cut = client.completions.create(**fixed | dict(stop=[choice.text[5:8]]))
report("completion, stop", cut.choices[0].finish_reason == "stop" and cut.choices[0].text == choice.text[:choice.text.index(choice.text[5:8])], repr(cut.choices[0].text))

# Chat.
messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Hello!"}]}]
asked = dict(model=args.chat, messages=messages, max_completion_tokens=24, seed=2, temperature=0.8)
answer = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
choice = answer.choices[0]
report("chat", choice.message.role == "assistant" and choice.finish_reason in ("stop", "length"), repr(choice.message.content))
content = choice.logprobs.content
report("chat, logprobs", len(content) == answer.usage.completion_tokens and all(len(t.top_logprobs) == 2 for t in content), len(content))
events = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
text = "".join(event.choices[0].delta.content or "" for event in events if event.choices)
report("chat, streamed", text == choice.message.content and events[-1].usage == answer.usage, f"{len(events)} events")
with client.chat.completions.stream(**asked) as stream:
    deltas = "".join(event.delta for event in stream if event.type == "content.delta")
report("chat, stream helper", deltas == choice.message.content)


async def at_once(count):
    many = openai.AsyncOpenAI(base_url=base_url, api_key="none")
    answers = await asyncio.gather(*(many.chat.completions.create(**asked) for _ in range(count)))
    return {answer.choices[0].message.content for answer in answers}


report("chat, 16 at once", asyncio.run(at_once(16)) == {choice.message.content})

# Errors.
complete, chat = client.completions.create, client.chat.completions.create
refused("unknown model", openai.NotFoundError, lambda: complete(model="gpt-4", prompt="x"), "gpt-4")
refused("best_of", openai.BadRequestError, lambda: complete(**fixed, best_of=3), "best_of")
refused("suffix", openai.BadRequestError, lambda: complete(**fixed, suffix="x"), "suffix")
refused("logit_bias", openai.BadRequestError, lambda: chat(**asked, logit_bias={"1": 5}), "logit_bias")
refused("response_format", openai.BadRequestError, lambda: chat(**asked, response_format={"type": "json_object"}), "response_format")
refused("temperature", openai.BadRequestError, lambda: complete(**fixed | dict(temperature=-1)), "temperature")
refused("too long a prompt", openai.BadRequestError, lambda: complete(**fixed | dict(prompt=[1] * 100_000)), "context")
refused("a base model chats", openai.BadRequestError, lambda: chat(**asked | dict(model=args.base)), "chat template")
refused("embeddings", openai.NotFoundError, lambda: client.embeddings.create(model=args.base, input="x"), "unknown path")

if importlib.util.find_spec("langchain_openai"):
    from langchain_openai import ChatOpenAI, OpenAI as LangchainCompletions

    model = ChatOpenAI(base_url=base_url, api_key="none", model=args.chat, max_tokens=16, temperature=0, seed=1)
    said = model.invoke("Hello!")
    report("langchain, chat", bool(said.content), repr(said.content))
    report("langchain, streamed", "".join(part.content for part in model.stream("Hello!")) == said.content)
    plain = LangchainCompletions(base_url=base_url, api_key="none", model=args.base, max_tokens=16, temperature=0)
    report("langchain, completion", bool(plain.invoke("ROMEO:")))
else:
    print("SKIPPED: langchain-openai is not installed")

if importlib.util.find_spec("litellm"):
    # No look-up of prices on the network.
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    import litellm

    same = dict(model="openai/" + args.chat, api_base=base_url, api_key="none", messages=[{"role": "user", "content": "Hello!"}], max_tokens=16, temperature=0, seed=1)
    said = litellm.completion(**same).choices[0].message.content
    report("litellm, chat", bool(said), repr(said))
    report("litellm, streamed", "".join(part.choices[0].delta.content or "" for part in litellm.completion(**same, stream=True)) == said)
else:
    print("SKIPPED: litellm is not installed")

sys.exit(failed)
