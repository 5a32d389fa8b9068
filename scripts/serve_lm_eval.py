"""Score a model that `ngen3 serve` serves with lm_eval, and compare with `ngen3 eval` on the same PIQA questions.

    ngen3 export --model_path base.pt --output_dir exported
    ngen3 serve --model_checkpoint base.pt --dtype f32
    python scripts/serve_lm_eval.py http://127.0.0.1:8000 --checkpoint base.pt --tokenizer exported --data_dir FOLDER --limit 300

Runs `lm_eval --model local-completions`, which sends prompts with echo and logprobs. The data is a folder with PIQA's files, as for
`ngen3 eval --data_dir`; nothing is downloaded. Questions should fit the model's context: on longer ones lm_eval keeps one token less.
Prints one line per check and exits with code 1 if any failed.
Needs: pip install lm_eval[api] transformers
"""
import argparse, json, os, pathlib, subprocess, sys, tempfile, time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("url")
parser.add_argument("--checkpoint", required=True, help="the model that is served")
parser.add_argument("--model", help="its name in the API [default: the file's name]")
parser.add_argument("--tokenizer", required=True, help="folder that ngen3 export wrote")
parser.add_argument("--data_dir", type=pathlib.Path, required=True)
parser.add_argument("--limit", type=int, default=300, help="number of questions")
parser.add_argument("--concurrent", type=int, default=8, help="requests at once")
parser.add_argument("--batch_size", type=int, default=1, help="prompts per request")
parser.add_argument("--dtype", default="f32", help="the server's --dtype")
parser.add_argument("--tolerance", type=float, default=1e-3, help="most that log-likelihoods may differ")
parser.add_argument("--ngen3", default="target/release/ngen3")
args = parser.parse_args()
failed = False


def report(what, good, detail=""):
    global failed
    failed |= not good
    print(f"{'ok  ' if good else 'FAIL'} {what}: {detail}", flush=True)


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def questions():
    [file] = args.data_dir.glob("*valid*.jsonl")
    labels = [int(line["label"]) if "label" in line else None for line in rows(file)]
    for answers in args.data_dir.glob("*valid*labels.lst"):  # PIQA's original files
        labels = [int(label) for label in answers.read_text().split()]
    return [row | {"label": label} for row, label in zip(rows(file), labels, strict=True)]


# lm_eval's own task, on local data.
TASK = r"""
task: piqa_local
dataset_path: json
dataset_kwargs: {data_files: {validation: FILE}}
output_type: multiple_choice
validation_split: validation
doc_to_text: "Question: {{goal}}\nAnswer:"
doc_to_target: label
doc_to_choice: "{{[sol1, sol2]}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
metadata: {version: 1.0}
"""


def timed(command, **more):
    started = time.perf_counter()
    done = subprocess.run([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **more)
    if done.returncode != 0:
        sys.exit(f"{command[0]} failed:\n{done.stderr[-3000:]}")
    return time.perf_counter() - started


def run_lm_eval(folder):
    data = folder / "piqa.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in questions()))
    (folder / "piqa_local.yaml").write_text(TASK.replace("FILE", str(data)))
    name = args.model or pathlib.Path(args.checkpoint).stem
    base = args.url.rstrip("/")
    model = f"model={name},base_url={base}/v1/completions,num_concurrent={args.concurrent},max_length={context(base, name)}"
    model += f",tokenizer_backend=huggingface,tokenizer={args.tokenizer}"
    command = [sys.executable, "-m", "lm_eval", "--model", "local-completions", "--model_args", model, "--tasks", "piqa_local"]
    command += ["--include_path", folder, "--limit", args.limit, "--batch_size", args.batch_size]
    command += ["--log_samples", "--output_path", folder / "theirs"]
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "OPENAI_API_KEY": "none"}
    seconds = timed(command, env=offline)
    [results] = (folder / "theirs").rglob("results_*.json")
    [samples] = (folder / "theirs").rglob("samples_*.jsonl")
    lines = sorted(rows(samples), key=lambda line: line["doc_id"])
    return seconds, json.loads(results.read_text())["results"]["piqa_local"], [line["filtered_resps"] for line in lines]


def context(base, name):
    import requests

    models = requests.get(base + "/v1/models", timeout=30).json()["data"]
    return next(model["max_model_len"] for model in models if model["id"] == name)


def run_ngen3(folder):
    command = [args.ngen3, "eval", "--model_checkpoint", args.checkpoint, "--tasks", "piqa", "--data_dir", args.data_dir]
    command += ["--dtype", args.dtype, "--limit", args.limit, "--no_merge", "--out", folder / "ours.json", "--log_samples", folder / "ours"]
    seconds = timed(command)
    [samples] = (folder / "ours").rglob("samples_*.jsonl")
    return seconds, json.loads((folder / "ours.json").read_text())["results"]["piqa"], [line["filtered_resps"] for line in rows(samples)]


with tempfile.TemporaryDirectory() as folder:
    their_seconds, theirs, their_samples = run_lm_eval(pathlib.Path(folder))
    our_seconds, ours, our_samples = run_ngen3(pathlib.Path(folder))

likelihoods = lambda samples: [[float(answer[0] if isinstance(answer, (list, tuple)) else answer) for answer in sample] for sample in samples]
their_values, our_values = likelihoods(their_samples), likelihoods(our_samples)
report("questions", len(their_values) == len(our_values) > 0, len(their_values))
largest = max(abs(a - b) for x, y in zip(their_values, our_values, strict=True) for a, b in zip(x, y, strict=True))
report("log-likelihoods", largest <= args.tolerance, f"differ by at most {largest:.6f}")
for metric in ("acc", "acc_norm"):
    both = theirs[f"{metric},none"], ours[f"{metric},none"]
    report(metric, both[0] == both[1], f"lm_eval through the server {both[0]:.6f}, ngen3 eval {both[1]:.6f}")
print(f"lm_eval through the server {their_seconds:.1f} s with its start, ngen3 eval {our_seconds:.1f} s")
sys.exit(failed)
