"""Compare a folder written by `ngen3 export` with transformers: logits, loss, gradients, greedy text, token ids.

    ngen3 export --model_path 7M_model.pt --output_dir exported_7M
    python scripts/interop.py exported_7M --model 7M_model.pt --ngen3 target/release/ngen3

transformers opens FOLDER; ngen3 opens MODEL (default: FOLDER, or the GGUF file in it). FOLDER can be any folder of GPT-2 or the
Llama family, also one that transformers wrote, which checks the opposite direction. A GGUF file is opened with the gguf package,
with transformers' GGUF reader, and, with --llama_cpp, with llama.cpp. interop_families.py makes tiny models of each family and
runs this on them.

Prints one line per check and exits with code 1 if any failed.
Needs: pip install torch transformers safetensors (for GGUF files: gguf accelerate, and for llama.cpp: npm install node-llama-cpp)
"""
import argparse, json, os, pathlib, struct, subprocess, sys, tempfile

os.environ["TQDM_DISABLE"] = "1"
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

parser = argparse.ArgumentParser()
parser.add_argument("folder", type=pathlib.Path)
parser.add_argument("--model")
parser.add_argument("--ngen3", default="ngen3")
parser.add_argument("--prompt", default="ROMEO:\nWhat")
parser.add_argument("--llama_cpp", help="folder in which `npm install node-llama-cpp` was run")
args = parser.parse_args()
model_path = args.model or str(args.folder)
failed = False
# Largest accepted difference of a logit, by the dtype of the weights.
TOLERANCE = {"F32": 1e-4, "F16": 2e-2, "BF16": 2e-1, "Q8_0": 2e-1, "Q4_0": 5.0}


def report(what, good, detail):
    global failed
    failed |= not good
    print(f"{'ok  ' if good else 'FAIL'} {what}: {detail}", flush=True)


def ngen3(*words):
    done = subprocess.run([args.ngen3, *map(str, words)], capture_output=True)
    if done.returncode:
        sys.exit(f"ngen3 {' '.join(map(str, words))}: {done.stderr.decode().strip()}")
    # Not as text, which would change the ends of lines.
    return done.stdout.decode()


def trace(tokens):
    """Return ngen3's loss, gradients and logits on one sequence."""
    with tempfile.TemporaryDirectory() as folder:
        data, out = pathlib.Path(folder, "data.bin"), pathlib.Path(folder, "trace.json")
        data.write_bytes(struct.pack(f"<{len(tokens)}H", *tokens))
        ngen3("trace", "--model_checkpoint", model_path, "--data", data, "--rows", 1, "--out", out, "--dtype", "f32", "--logits")
        return json.loads(out.read_text())


def check_numbers(name, model, tolerance):
    """Compare loss, gradients and logits of one sequence of the full context length, in float32."""
    block, vocab = model.config.max_position_embeddings, model.config.vocab_size
    tokens = torch.randint(min(vocab, 65536), (block + 1,), generator=torch.Generator().manual_seed(1)).tolist()
    theirs = model(torch.tensor([tokens[:-1]])).logits[0]
    loss = torch.nn.functional.cross_entropy(theirs, torch.tensor(tokens[1:]))
    model.zero_grad()
    loss.backward()
    ours = trace(tokens)
    difference = (torch.tensor(ours["logits"]) - theirs[-1].detach()).abs().max().item()
    report(f"{name}, logits", difference < tolerance, f"largest difference {difference:.1e}, largest logit {theirs[-1].abs().max():.2f}")
    report(f"{name}, loss", abs(ours["loss"] - loss.item()) < tolerance, f"expected {loss:.6f}, got {ours['loss']:.6f}")
    worst = 0.0
    for key, parameter in model.named_parameters():
        if key in ours["grads"]:
            norm = parameter.grad.norm().item()
            worst = max(worst, abs(ours["grads"][key]["norm"] - norm) / max(norm, 1e-6))
    report(f"{name}, gradients", worst < 10 * tolerance, f"largest relative difference of a gradient norm {worst:.1e}")


def check_text(model, tokenizer):
    """Compare up to 100 greedily decoded tokens."""
    ids = tokenizer(args.prompt, return_tensors="pt").input_ids
    length = min(100, model.config.max_position_embeddings - ids.shape[1])
    if length <= 0:
        return print(f"SKIPPED: greedy text (the prompt fills the context length of {model.config.max_position_embeddings})")
    with torch.no_grad():
        made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, do_sample=False)[0]
    theirs = tokenizer.decode(made, skip_special_tokens=False).removesuffix("<|endoftext|>")
    ours = ngen3("sample", "--model_checkpoint", model_path, "--prompt", args.prompt, "--length", length, "--temperature", 0,
                 "--dtype", "f32").removesuffix("\n")
    detail = f"{length} equal tokens: {ours[len(args.prompt):][:50]!r}…" if ours == theirs else f"expected {theirs!r}, got {ours!r}"
    report("greedy text", ours == theirs, detail)


def check_tokenizer(tokenizer):
    """Compare token ids of difficult texts; `<|endoftext|>` in a text is plain text."""
    nasty = pathlib.Path(__file__).parent.parent / "crates/ngen3-data/tests/tokenizer/nasty.json"
    cases = json.loads(nasty.read_text())
    encode = lambda text: tokenizer(text, split_special_tokens=True, add_special_tokens=False)["input_ids"]
    own = json.loads((args.folder / "tokenizer.json").read_text())
    if len(own["model"]["vocab"]) == 50257:
        wrong = [text for text, ids in cases if encode(text) != ids]
        report("token ids", not wrong, f"{len(cases) - len(wrong)} of {len(cases)} texts equal" + (f", first difference: {wrong[0]!r}" if wrong else ""))
    # tokenize refuses a file with NULs as binary.
    text = "\n".join(text for text, _ in cases if "\0" not in text)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "nasty.txt")
        path.write_bytes(text.encode())
        done = subprocess.run([args.ngen3, "tokenize", "--dataset", "x", "--txt", path, "--tokenizer", args.folder.resolve() / "tokenizer.json"],
                              cwd=folder, capture_output=True, text=True)
        if done.returncode:
            return report("token ids", False, done.stderr.strip())
        meta = json.loads(pathlib.Path(folder, "_data_x_/meta.json").read_text())
        size = {"uint16": "H", "uint32": "I"}[meta["dtype"]]
        data = pathlib.Path(folder, "_data_x_/data.bin").read_bytes()
        ours = list(struct.unpack(f"<{len(data) // struct.calcsize(size)}{size}", data))
    theirs = encode(text)
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    report("token ids", ours == theirs + end, f"all texts in one document: expected {len(theirs + end)} tokens, got {len(ours)}")
    report("decoding", tokenizer.decode(theirs, clean_up_tokenization_spaces=False) == text, f"round trip of {len(text)} characters")


LLAMA = """
import {getLlama} from "node-llama-cpp";
const [path, prompt, length, block] = process.argv.slice(2);
const llama = await getLlama({gpu: false, build: "never", logLevel: "error", maxThreads: 1});
const model = await llama.loadModel({modelPath: path});
const context = await model.createContext({contextSize: Number(block), threads: 1});
const tokens = model.tokenize(prompt), texts = [];
for await (const token of context.getSequence().evaluate([...tokens], {temperature: 0})) {
    if (model.isEogToken(token)) break;
    tokens.push(token);
    if (texts.push(model.detokenize(tokens)) >= Number(length)) break;
}
console.log(JSON.stringify(texts));
process.exit(0);
"""


def check_llama_cpp(path, block, types):
    """Compare greedy text up to the context length, since llama.cpp handles a full context differently. The number of equal
    tokens is printed, and with f32 weights at least the first must be equal. Texts part at a near tie: llama.cpp keeps keys and values
    in f16, and rounds the inputs of products with quantized weights."""
    if not args.llama_cpp:
        return print("SKIPPED: llama.cpp (needs --llama_cpp FOLDER, in which npm install node-llama-cpp was run)")
    length = min(100, block - len(args.prompt) - 1)
    with tempfile.NamedTemporaryFile("w", dir=args.llama_cpp, suffix=".mjs") as script:
        script.write(LLAMA)
        script.flush()
        done = subprocess.run(["node", script.name, path.resolve(), args.prompt, str(length), str(block)],
                              cwd=args.llama_cpp, capture_output=True, timeout=300)
    if done.returncode:
        return report("llama.cpp", False, done.stderr.decode().strip()[-500:])
    theirs = json.loads(done.stdout.strip().split(b"\n")[-1])
    ours = ngen3("sample", "--model_checkpoint", model_path, "--prompt", args.prompt, "--length", length, "--temperature", 0,
                 "--dtype", "f32").removesuffix("\n")
    # The bytes of a character may come as several tokens.
    same = sum(ours.startswith(text.rstrip("\ufffd")) for text in theirs)
    report("llama.cpp, greedy text", same > 0 or types != ["F32"], f"{same} of {len(theirs)} tokens equal to ngen3 in f32: {theirs[-1][len(args.prompt):][:50]!r}…")


def check_gguf(path):
    global model_path
    import gguf
    model_path = args.model or str(path)
    reader = gguf.GGUFReader(path)
    types = sorted({tensor.tensor_type.name for tensor in reader.tensors})
    field = reader.fields["general.architecture"].contents()
    context = reader.fields[f"{field}.context_length"].contents()
    report("gguf opens", field in gguf.MODEL_ARCH_NAMES.values(), f"architecture {field}, {len(reader.tensors)} tensors of {', '.join(types)}")
    check_llama_cpp(path, context, types)
    config = AutoConfig.from_pretrained(args.folder, gguf_file=path.name)
    if field == "gpt2":
        config.n_positions = config.n_ctx  # transformers keeps GPT-2's default of 1024
    elif field != "qwen2":
        # transformers does not look for the biases of a file.
        names = {tensor.name for tensor in reader.tensors}
        config.attention_bias, config.mlp_bias = "blk.0.attn_q.bias" in names, "blk.0.ffn_up.bias" in names
    if f"{field}.attention.key_length" in reader.fields:
        config.head_dim = reader.fields[f"{field}.attention.key_length"].contents()
    model = AutoModelForCausalLM.from_pretrained(args.folder, gguf_file=path.name, config=config, dtype=torch.float32).eval()
    # Without --model, both read the same file.
    check_numbers("gguf", model, max(TOLERANCE[kind] for kind in types) if args.model else 1e-4)


transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
for gguf_file in sorted(args.folder.glob("*.gguf")):
    check_gguf(gguf_file)
if (args.folder / "config.json").exists():
    stored = json.loads((args.folder / "config.json").read_text())
    stored = stored.get("dtype") or stored.get("torch_dtype", "float32")
    model = AutoModelForCausalLM.from_pretrained(args.folder, dtype=torch.float32).eval()
    # Without --model, both read the same weights exactly; with it, MODEL may have the unrounded weights.
    tolerance = TOLERANCE[{"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[stored]] if args.model else 1e-4
    check_numbers(f"transformers {transformers.__version__} ({stored})", model, tolerance)
    if (args.folder / "tokenizer.json").exists():
        # AutoTokenizer replaces the pre-tokenizer of some families with the one of their published models.
        tokenizer = PreTrainedTokenizerFast.from_pretrained(args.folder)
        check_tokenizer(tokenizer)
        if tolerance == 1e-4:
            check_text(model, tokenizer)
sys.exit(failed)
