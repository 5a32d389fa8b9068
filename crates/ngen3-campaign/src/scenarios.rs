//! The commands that write files, which every campaign shares.
//!
//! A [`Scenario`] is a line of the table [`ALL`]: the commands that make the old files, the command under test, the commands that
//! open each file afterwards, and the one that finishes the work. Lines are arguments of `ngen3`, separated by spaces; they run
//! in a folder that holds the files of [`BASE`] and those that [`crate::stage`] writes.

/// A command that writes, and how its files are judged.
#[derive(Debug)]
pub struct Scenario {
    /// Name in tables and for `--only`.
    pub name: &'static str,
    /// Commands that make the old files.
    pub old: &'static [&'static str],
    /// Command under test.
    pub line: &'static str,
    /// File that is its standard input.
    pub input: Option<&'static str>,
    /// Path that is there once the command can be resumed, and the command that resumes it. Without it, or as long as the path
    /// is missing, the command under test runs again.
    pub resume: Option<(&'static str, &'static str)>,
    /// Files written several times, such as checkpoints: they may also hold a version between the old and the new one.
    pub saved: &'static [&'static str],
    /// Files that hold times: they are opened, but not compared.
    pub timed: &'static [&'static str],
    /// Folder that is replaced as a whole.
    pub whole: Option<&'static str>,
    /// Files that are appended to, and may end in an incomplete line.
    pub logs: &'static [&'static str],
    /// Commands that must succeed as long as the path exists.
    pub opens: &'static [(&'static str, &'static str)],
    /// Kind of program.
    pub kind: Kind,
    /// Tries of 1,000, before rounding; slow commands get fewer.
    pub weight: usize,
}

/// Kind of program, which decides how it is started and what can be asked of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One process, whose files follow from its inputs bit for bit.
    Exact,
    /// One process, whose choices depend on the speed of the machine.
    Timed,
    /// Two ranks, started by `mpirun`.
    Ranks,
    /// Server, which runs until it is stopped.
    Server,
}

/// Commands that make the files that all scenarios start from.
pub const BASE: &[&str] = &[
    "tokenizer train --txt a.txt --vocab_size 300 --out t.json --threads 1",
    "tokenize --dataset d --txt a.txt --tokenizer t.json --threads 1",
    "tokenize --dataset chats --chats chats.jsonl --tokenizer t.json --threads 1",
    "train --config tiny.toml --data _data_d_ --max_iters 4 --eval_iters 1 --out base.pt --threads 1",
    "export --model_path base.pt --output_dir hf",
];

const EMPTY: Scenario = Scenario {
    name: "",
    old: &[],
    line: "",
    input: None,
    resume: None,
    saved: &[],
    timed: &[],
    whole: None,
    logs: &[],
    opens: &[],
    kind: Kind::Exact,
    weight: 60,
};

/// Commands that open a file of several scenarios.
const TRAINS_ON_X: (&str, &str) = (
    "_data_x_/data.bin",
    "train --config tiny.toml --data _data_x_ --max_iters 1 --eval_iters 1 --out ../opened/x.pt --threads 1 --overwrite",
);
const SAMPLES_X: (&str, &str) = ("x.pt", "sample --model_checkpoint x.pt --prompt the --length 2 --threads 1");
const SAMPLES_X_SAFETENSORS: (&str, &str) =
    ("x.safetensors", "sample --model_checkpoint x.safetensors --prompt the --length 2 --threads 1");
const SAMPLES_BASE: (&str, &str) = ("base.pt", "sample --model_checkpoint base.pt --prompt the --length 2 --threads 1");

/// All scenarios.
pub const ALL: &[Scenario] = &[
    Scenario {
        name: "tokenize",
        old: &["tokenize --dataset x --txt a.txt --tokenizer t.json --threads 1"],
        line: "tokenize --dataset x --txt b.txt --tokenizer bytes.json --threads 1",
        opens: &[TRAINS_ON_X],
        ..EMPTY
    },
    Scenario {
        name: "tokenize-chats",
        line: "tokenize --dataset x --chats chats.jsonl --tokenizer t.json --threads 1",
        opens: &[(
            "_data_x_/data.bin",
            "finetune --model_checkpoint base.pt --data _data_x_ --finetune_iters 1 --eval_iters 1 --sample_length 1 \
                --out ../opened/x.pt --threads 1 --overwrite",
        )],
        ..EMPTY
    },
    Scenario {
        name: "hf_tokenize",
        old: &["hf_tokenize --hf_dataset old_rows.jsonl --dataset x --tokenizer t.json --threads 1"],
        line: "hf_tokenize --hf_dataset rows.jsonl --dataset x --tokenizer t.json --threads 1",
        opens: &[TRAINS_ON_X],
        ..EMPTY
    },
    Scenario {
        name: "tokenizer",
        old: &["tokenizer train --txt b.txt --vocab_size 290 --out x.json --threads 1"],
        line: "tokenizer train --txt a.txt --vocab_size 310 --out x.json --threads 1",
        opens: &[("x.json", "tokenize --dataset opened --txt a.txt --tokenizer x.json --threads 1")],
        ..EMPTY
    },
    Scenario {
        name: "train",
        line: "train --config tiny.toml --data _data_d_ --max_iters 30 --log_interval 1 --save_interval 2 \
            --eval_interval 5 --eval_iters 1 --dropout 0.1 --eval_sample 4 --out x.pt --threads 1",
        resume: Some(("x.state/state.safetensors", "train --data _data_d_ --out x.pt --resume --threads 1")),
        saved: &["x.pt", "x.state/state.safetensors", "x.run/loss.svg"],
        logs: &["x.run/metrics.jsonl", "x.run/samples.jsonl"],
        opens: &[SAMPLES_X],
        weight: 140,
        ..EMPTY
    },
    Scenario {
        name: "train-overwrite",
        old: &["train --config tiny.toml --data _data_d_ --max_iters 4 --eval_iters 1 --seed 5 --out x.safetensors \
                --threads 1"],
        line: "train --config tiny.toml --data _data_d_ --max_iters 12 --log_interval 1 --save_interval 2 \
            --eval_interval 5 --eval_iters 1 --keep_best --out x.safetensors --threads 1 --overwrite",
        saved: &["x.safetensors", "x.state/state.safetensors", "x.run/loss.svg"],
        logs: &["x.run/metrics.jsonl"],
        opens: &[SAMPLES_X_SAFETENSORS],
        ..EMPTY
    },
    Scenario {
        name: "distill",
        line: "distill --teacher_model_path base.pt --config tiny.toml --data _data_d_ --max_iters 12 \
            --log_interval 1 --save_interval 2 --eval_interval 4 --eval_iters 1 --teacher_cache cache \
            --teacher_top_k 8 --out x.pt --threads 1",
        resume: Some((
            "x.state/state.safetensors",
            "distill --teacher_model_path base.pt --data _data_d_ --teacher_cache cache --teacher_top_k 8 --out x.pt \
                --resume --threads 1",
        )),
        saved: &["x.pt", "x.state/state.safetensors", "x.run/loss.svg", "cache/cache.json"],
        logs: &["x.run/metrics.jsonl"],
        opens: &[SAMPLES_X],
        weight: 80,
        ..EMPTY
    },
    Scenario {
        name: "teacher-writes",
        line: "distill --teacher_model_path base.pt --config tiny.toml --data _data_d_ --max_iters 4 \
            --log_interval 1 --save_interval 2 --eval_interval 4 --eval_iters 1 --teacher_writes 24 \
            --teacher_length 8 --teacher_texts written --out x.pt --threads 1",
        resume: Some((
            "x.state/state.safetensors",
            "distill --teacher_model_path base.pt --data _data_d_ --teacher_writes 24 --teacher_length 8 \
                --teacher_texts written --out x.pt --resume --threads 1",
        )),
        saved: &["x.pt", "x.state/state.safetensors", "x.run/loss.svg"],
        logs: &["x.run/metrics.jsonl", "written/texts.jsonl"],
        opens: &[SAMPLES_X],
        ..EMPTY
    },
    Scenario {
        name: "finetune",
        line: "finetune --model_checkpoint base.pt --data _data_chats_ --finetune_iters 8 --log_interval 1 \
            --save_interval 2 --eval_interval 4 --eval_iters 1 --sample_length 2 --out x.pt --threads 1",
        resume: Some((
            "x.state/state.safetensors",
            "finetune --data _data_chats_ --out x.pt --resume --sample_length 2 --threads 1",
        )),
        saved: &["x.pt", "x.state/state.safetensors", "x.run/loss.svg", "x.run/reference.json"],
        logs: &["x.run/metrics.jsonl"],
        opens: &[SAMPLES_X],
        weight: 80,
        ..EMPTY
    },
    Scenario {
        name: "lora",
        line: "finetune --model_checkpoint base.pt --data _data_chats_ --lora_rank 2 --finetune_iters 8 \
            --log_interval 1 --save_interval 2 --eval_interval 4 --eval_iters 1 --sample_length 2 --out x.pt \
            --threads 1",
        resume: Some((
            "x.state/state.safetensors",
            "finetune --data _data_chats_ --out x.pt --resume --sample_length 2 --threads 1",
        )),
        saved: &[
            "x.pt",
            "x.state/state.safetensors",
            "x.run/loss.svg",
            "x.run/reference.json",
            "x.adapter/adapter_model.safetensors",
        ],
        logs: &["x.run/metrics.jsonl"],
        opens: &[SAMPLES_X],
        weight: 80,
        ..EMPTY
    },
    Scenario {
        name: "make",
        line: "make --txt a.txt --minutes 0.1 --out x.pt --threads 1",
        resume: Some(("x.state/state.safetensors", "train --data _data_x_ --out x.pt --resume --threads 1")),
        saved: &[
            "x.pt",
            "x.state/state.safetensors",
            "x.run/loss.svg",
            "x_tokenizer.json",
            "_data_x_/data.bin",
            "_data_x_/meta.json",
            "_data_x_/tokenizer.json",
        ],
        logs: &["x.run/metrics.jsonl"],
        opens: &[SAMPLES_X, ("exported_x", "sample --model_checkpoint exported_x --prompt the --length 2 --threads 1")],
        kind: Kind::Timed,
        weight: 10,
        ..EMPTY
    },
    Scenario {
        name: "export-hf",
        old: &["export --model_path base.pt --output_dir x --dtype bf16"],
        line: "export --model_path base.pt --output_dir x --overwrite",
        whole: Some("x"),
        opens: &[("x", "sample --model_checkpoint x --prompt the --length 2 --threads 1")],
        ..EMPTY
    },
    Scenario {
        name: "export-gguf",
        old: &["export --model_path base.pt --output_dir x --format gguf --dtype f16"],
        line: "export --model_path base.pt --output_dir x --format gguf --dtype q8_0 --overwrite",
        whole: Some("x"),
        opens: &[
            ("x/base-f16.gguf", "sample --model_checkpoint x/base-f16.gguf --prompt the --length 2 --threads 1"),
            ("x/base-q8_0.gguf", "sample --model_checkpoint x/base-q8_0.gguf --prompt the --length 2 --threads 1"),
        ],
        ..EMPTY
    },
    Scenario {
        name: "export-new",
        line: "export --model_path base.pt --output_dir x",
        // It replaces nothing unless it is told to.
        resume: Some(("x", "export --model_path base.pt --output_dir x --overwrite")),
        whole: Some("x"),
        opens: &[("x", "sample --model_checkpoint x --prompt the --length 2 --threads 1")],
        weight: 40,
        ..EMPTY
    },
    Scenario {
        name: "import",
        old: &["export --model_path base.pt --output_dir half --dtype bf16", "import --from half --out x.pt"],
        line: "import --from hf --out x.pt --overwrite",
        opens: &[SAMPLES_X],
        weight: 40,
        ..EMPTY
    },
    Scenario {
        name: "import-safetensors",
        line: "import --from hf --out x.safetensors --overwrite",
        opens: &[SAMPLES_X_SAFETENSORS],
        weight: 40,
        ..EMPTY
    },
    Scenario {
        name: "eval",
        timed: &["x.json"],
        old: &["eval --model_checkpoint base.pt --tasks perplexity --text a.txt --limit 4 --out x.json --no_merge \
                --threads 1"],
        line: "eval --model_checkpoint base.pt --tasks perplexity --text b.txt --limit 4 --out x.json \
            --log_samples asked --threads 1",
        opens: &[SAMPLES_BASE],
        ..EMPTY
    },
    Scenario {
        name: "chat-save",
        line: "chat --model_checkpoint base.pt --length 4 --seed 1 --threads 1",
        input: Some("talk.txt"),
        // Saving again would append.
        resume: Some(("said.jsonl", "sample --model_checkpoint base.pt --prompt the --length 2 --threads 1")),
        opens: &[SAMPLES_BASE],
        ..EMPTY
    },
    Scenario {
        name: "serve",
        line: "serve --model_checkpoint base.pt --port 0 --threads 1",
        opens: &[SAMPLES_BASE],
        kind: Kind::Server,
        weight: 30,
        ..EMPTY
    },
    Scenario {
        name: "two-ranks",
        line: "train --config tiny.toml --data _data_d_ --max_iters 20 --log_interval 1 --save_interval 2 \
            --eval_interval 5 --eval_iters 2 --gradient_accumulation 2 --out x.pt --threads 1",
        resume: Some(("x.state/state.safetensors", "train --data _data_d_ --out x.pt --resume --threads 1")),
        saved: &["x.pt", "x.state/state.safetensors", "x.run/loss.svg"],
        logs: &["x.run/metrics.jsonl"],
        opens: &[SAMPLES_X],
        kind: Kind::Ranks,
        weight: 40,
        ..EMPTY
    },
];
