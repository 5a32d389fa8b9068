"""Check the Llama family in both directions on tiny random models that transformers and peft make.

    python scripts/interop_families.py --ngen3 target/release/ngen3 [--llama_cpp FOLDER] [--only qwen3]

For each family: ngen3 opens what transformers wrote; torch.load(weights_only=True) opens ngen3's checkpoint; transformers opens
ngen3's exports, Hugging Face folders and GGUF files; peft opens ngen3's adapter; ngen3 opens a model that peft merged. Prints a
line per check and exits with code 1 if any failed. Needs what interop.py needs, and peft.
"""
import argparse, json, pathlib, struct, subprocess, sys, tempfile

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

parser = argparse.ArgumentParser()
parser.add_argument("--ngen3", default="ngen3", type=pathlib.Path)
parser.add_argument("--llama_cpp", help="folder in which `npm install node-llama-cpp` was run")
parser.add_argument("--only", help="one family")
args = parser.parse_args()
HERE = pathlib.Path(__file__).resolve().parent
BLOCK = 64
# Rows that divide into blocks of q8_0 and q4_0; weights that make the next token clear.
SHAPE = dict(
    hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-5,
    max_position_embeddings=BLOCK, initializer_range=0.2, bos_token_id=0, eos_token_id=0, pad_token_id=0)
FAMILIES = {
    "llama": (transformers.LlamaConfig, dict(tie_word_embeddings=True)),
    "llama_biases": (transformers.LlamaConfig, dict(tie_word_embeddings=False, attention_bias=True, mlp_bias=True)),
    "mistral": (transformers.MistralConfig, dict(tie_word_embeddings=False, sliding_window=None)),
    "qwen2": (transformers.Qwen2Config, dict(tie_word_embeddings=True, use_sliding_window=False)),
    "qwen3": (transformers.Qwen3Config, dict(tie_word_embeddings=False, use_sliding_window=False, head_dim=32)),
}
failed = False


def report(what, good, detail):
    global failed
    failed |= not good
    print(f"{'ok  ' if good else 'FAIL'} {what}: {detail}", flush=True)


def ngen3(folder, *words):
    done = subprocess.run([args.ngen3.resolve(), *map(str, words)], capture_output=True, text=True, cwd=folder)
    if done.returncode:
        report(f"ngen3 {words[0]}", False, f"{' '.join(map(str, words))}: {done.stderr.strip()}")
    return done.returncode == 0


def interop(folder, *words):
    global failed
    llama_cpp = ["--llama_cpp", args.llama_cpp] if args.llama_cpp else []
    script = [sys.executable, HERE / "interop.py", folder, "--ngen3", args.ngen3.resolve(), *words, *llama_cpp]
    failed |= subprocess.run(list(map(str, script))).returncode != 0


def make_tokenizer():
    texts = [text for text, _ in json.loads((HERE.parent / "crates/ngen3-data/tests/tokenizer/nasty.json").read_text())]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, show_progress=False, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>")


def make(name, folder):
    """Save a random model and its tokenizer."""
    config, own = FAMILIES[name]
    tokenizer = make_tokenizer()
    torch.manual_seed(len(name))
    model = AutoModelForCausalLM.from_config(config(vocab_size=len(tokenizer), **SHAPE, **own))
    for key, parameter in model.named_parameters():
        # transformers makes norms of ones and biases of zeros.
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, mean=float("norm" in key), std=0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.eval()


def check_checkpoint(path, model):
    stored = torch.load(path, weights_only=True, map_location="cpu")["model"]
    expected = model.state_dict()
    names = [name for name in expected if name != "lm_head.weight" or not model.config.tie_word_embeddings]
    equal = all(torch.equal(stored[name], expected[name]) for name in names)
    report("torch.load(weights_only=True)", equal, f"{len(stored)} tensors, those of the model equal")


def check_logits(what, folder, model_path, model):
    """Compare ngen3's logits after a sequence of the full context length with `model`'s."""
    tokens = torch.randint(model.config.vocab_size, (BLOCK + 1,), generator=torch.Generator().manual_seed(2)).tolist()
    (folder / "data.bin").write_bytes(struct.pack(f"<{len(tokens)}H", *tokens))
    out = folder / "trace.json"
    if not ngen3(folder, "trace", "--model_checkpoint", model_path, "--data", "data.bin", "--rows", 1, "--out", out, "--dtype", "f32", "--logits"):
        return
    with torch.no_grad():
        theirs = model(torch.tensor([tokens[:-1]])).logits[0, -1]
    difference = (torch.tensor(json.loads(out.read_text())["logits"]) - theirs).abs().max().item()
    report(what, difference < 1e-4, f"largest difference of a logit {difference:.1e}, largest logit {theirs.abs().max():.2f}")


def check_adapters(folder, model):
    """ngen3's adapter in peft, and peft's merged into a model for ngen3."""
    chats = [{"messages": [{"role": "user", "content": f"What is {i}?"}, {"role": "assistant", "content": f"It is {i}."}]} for i in range(40)]
    (folder / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    tune = ["finetune", "--model_checkpoint", "made.pt", "--data", "chats.jsonl", "--lora_rank", 4, "--lora_targets", "all", "--finetune_iters", 5,
            "--learning_rate", 0.01, "--batch_size", 4, "--sample_length", 0, "--dtype", "f32", "--out", "tuned.pt"]
    if ngen3(folder, *tune):
        beside = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder / "made"), folder / "tuned.adapter").eval()
        check_logits("ngen3's adapter in peft, merged in ngen3", folder, "tuned.pt", beside)

    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    base = AutoModelForCausalLM.from_pretrained(folder / "made")
    adapted = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM")).eval()
    for key, parameter in adapted.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.1)
    with torch.no_grad():
        tokens = torch.arange(BLOCK)[None]
        change = (adapted(tokens).logits - model(tokens).logits).abs().max().item()
    report("peft's adapter changes the model", change > 0.1, f"logits by up to {change:.1f}")
    adapted.merge_and_unload().save_pretrained(folder / "merged")
    check_logits("peft's adapter, merged by peft, in ngen3", folder, "merged", AutoModelForCausalLM.from_pretrained(folder / "merged").eval())


def check(name, folder):
    print(f"\n{name}", flush=True)
    model = make(name, folder / "made")
    print("- transformers to ngen3", flush=True)
    interop(folder / "made")
    if not ngen3(folder, "import", "--from", "made", "--out", "made.pt"):
        return
    check_checkpoint(folder / "made.pt", model)
    print("- ngen3 to transformers", flush=True)
    if ngen3(folder, "export", "--model_path", "made.pt", "--output_dir", "exported"):
        interop(folder / "exported", "--model", folder / "made.pt")
    for dtype in ["f32", "q8_0", "q4_0"]:
        if ngen3(folder, "export", "--model_path", "made.pt", "--output_dir", f"gguf_{dtype}", "--format", "gguf", "--dtype", dtype):
            interop(folder / f"gguf_{dtype}")
    print("- adapters", flush=True)
    check_adapters(folder, model)


transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
for family in [args.only] if args.only else FAMILIES:
    with tempfile.TemporaryDirectory() as folder:
        check(family, pathlib.Path(folder))
sys.exit(failed)
