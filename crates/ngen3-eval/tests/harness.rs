//! Tasks match EleutherAI's lm-evaluation-harness: prompts, log-likelihoods, choices, means and standard errors.
//!
//! `make_fixtures.py` writes `fixtures/`: it runs the harness with the same tiny model on the same rows.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use ngen3_cpu::CpuEngine;
use ngen3_data::source::{Source, SplitBy, TextOptions};
use ngen3_data::{DatasetSpec, Tokenizer, build_dataset};
use ngen3_engine::{Dtype, Options};
use ngen3_eval::{EvalConfig, EvalModel, Evaluation, PerplexityText, Report};
use ngen3_model::{Checkpoint, TokenizerRef};
use serde::Deserialize;
use serde_json::{Map, Value};

#[derive(Deserialize)]
struct Run {
    tasks: Vec<String>,
    num_fewshot: usize,
    results: Map<String, Value>,
    versions: Map<String, Value>,
    samples: BTreeMap<String, Samples>,
}

#[derive(Deserialize)]
struct Samples {
    /// Context and continuation of each answer, for the first questions.
    arguments: Vec<Vec<(String, String)>>,
    /// Log-likelihood of each answer, for every question.
    loglikelihoods: Vec<Vec<f64>>,
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn read<T: for<'a> Deserialize<'a>>(name: &str) -> T {
    serde_json::from_slice(&fs::read(fixtures().join(name)).unwrap()).unwrap()
}

/// Writes all rows as a user would have them: one folder per dataset, one file per split.
fn data_dir() -> tempfile::TempDir {
    type Sets = BTreeMap<String, BTreeMap<String, BTreeMap<String, Vec<Value>>>>;
    let folder = tempfile::tempdir().unwrap();
    for (task, parts) in read::<Sets>("sets.json") {
        for (part, splits) in parts {
            let path = folder.path().join(&task).join(part);
            fs::create_dir_all(&path).unwrap();
            for (split, rows) in splits {
                let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
                fs::write(path.join(format!("{split}.jsonl")), lines).unwrap();
            }
        }
    }
    folder
}

/// Calls `run` with the fixture's model.
fn with_model<T>(run: impl FnOnce(&mut EvalModel) -> T) -> T {
    let Checkpoint { config, params, meta } = Checkpoint::load(&fixtures().join("model")).unwrap();
    let TokenizerRef::Json(json) = meta.tokenizer else { panic!("the folder has no tokenizer") };
    let tokenizer = Tokenizer::from_json(json.as_bytes(), "the fixture's").unwrap();
    let options = Options { dtype: Dtype::F32, ..Options::default() };
    let mut engine = CpuEngine::new(config, params, options).unwrap();
    run(&mut EvalModel { engine: &mut engine, tokenizer: Some(&tokenizer) })
}

/// Evaluates the fixture's model; returns the report, its JSON, and the samples of each task.
fn evaluate(run: &Run, data: &Path) -> (Report, Value, BTreeMap<String, Vec<Value>>) {
    let tasks: Vec<_> = run.tasks.iter().map(String::as_str).collect();
    let settings = EvalConfig {
        tasks: &tasks,
        data_dir: Some(data),
        num_fewshot: run.num_fewshot,
        fewshot_seed: 1234,
        limit: None,
        stride: None,
    };
    let plan = Evaluation::new(settings, None, &mut |_| true).unwrap();
    let report = with_model(|model| plan.run(model, &mut |_| true)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    report.write_samples(&plan, folder.path()).unwrap();
    let samples = run.samples.keys().map(|task| {
        let text = fs::read_to_string(folder.path().join(format!("samples_{task}.jsonl"))).unwrap();
        (task.clone(), text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
    });
    let samples = samples.collect();
    let json = report.json(&plan, Value::Null);
    (report, json, samples)
}

#[test]
fn tasks_give_what_the_harness_gives() {
    let data = data_dir();
    for run in read::<Vec<Run>>("expected.json") {
        let of = format!("{:?} with {} examples", run.tasks, run.num_fewshot);
        let (report, json, found) = evaluate(&run, data.path());
        for (task, Samples { arguments, loglikelihoods }) in &run.samples {
            let found = &found[task];
            assert_eq!(found.len(), loglikelihoods.len(), "{of}");
            for (sample, expected) in found.iter().zip(arguments) {
                for (at, (context, continuation)) in expected.iter().enumerate() {
                    let found = &sample["arguments"][format!("gen_args_{at}")];
                    assert_eq!(found["arg_0"], *context, "{of}");
                    assert_eq!(found["arg_1"], *continuation, "{of}");
                }
            }
            for (row, (sample, expected)) in found.iter().zip(loglikelihoods).enumerate() {
                let found = sample["filtered_resps"].as_array().unwrap();
                assert_eq!(found.len(), expected.len(), "{of}");
                for (found, expected) in found.iter().zip(expected) {
                    let difference = (found.as_f64().unwrap() - expected).abs();
                    assert!(difference < 1e-3, "{of}, {task}, row {row}: expected {expected}, got {found}");
                }
            }
        }
        for (task, expected) in &run.results {
            for (name, expected) in expected.as_object().unwrap() {
                let found = &json["results"][task][name];
                match (found.as_f64(), expected.as_f64()) {
                    (Some(found), Some(expected)) => {
                        assert!(
                            (found - expected).abs() < 1e-9,
                            "{of}, {task}, {name}: expected {expected}, got {found}"
                        );
                    }
                    // A group's counts by metric are left out; other values are names and "N/A".
                    _ if name == "sample_count" => {}
                    _ => assert_eq!(found, expected, "{of}, {task}, {name}"),
                }
            }
        }
        for (task, version) in &run.versions {
            let version = version.as_f64().or_else(|| version.as_str()?.parse().ok());
            assert_eq!(json["versions"][task].as_f64(), version, "{of}, {task}");
        }
        if run.tasks == ["piqa"] {
            // One question exceeds the block.
            assert_eq!(report.measured[0].truncated, 1, "{of}");
        }
    }
}

#[test]
fn a_text_that_cannot_be_measured_is_told_before_any_question() {
    let data = data_dir();
    let settings = EvalConfig {
        tasks: &["piqa", "perplexity"],
        data_dir: Some(data.path()),
        num_fewshot: 0,
        fewshot_seed: 1234,
        limit: Some(2),
        stride: Some(100_000),
    };
    let plan = Evaluation::new(settings, Some(PerplexityText::of("a text", "To be".into())), &mut |_| true).unwrap();
    with_model(|model| {
        let asked = plan.run(model, &mut |at| panic!("{at:?}")).unwrap_err().to_string();
        let checked = plan.check(model.engine.config(), model.tokenizer).unwrap_err().to_string();
        assert!(asked.starts_with("stride: expected 1 to ") && asked.ends_with("got 100000"), "{asked}");
        assert_eq!(checked, asked);
        let unread = plan.check(model.engine.config(), None).unwrap_err().to_string();
        assert!(unread.contains("so it cannot read questions"), "{unread}");
    });
}

#[test]
fn what_was_asked_for_by_name_stands_once_and_is_counted_once() {
    let data = data_dir();
    let report = |tasks: &[&str]| {
        let settings = EvalConfig {
            tasks,
            data_dir: Some(data.path()),
            num_fewshot: 0,
            fewshot_seed: 1234,
            limit: Some(2),
            stride: None,
        };
        let plan = Evaluation::new(settings, None, &mut |_| true).unwrap();
        with_model(|model| plan.run(model, &mut |_| true)).unwrap()
    };
    let whole = report(&["mmlu"]);
    let of = |report: &Report, name: &str| {
        let mut found = report.measured.iter().filter(|one| one.name == name);
        let one = found.next().unwrap().clone();
        assert!(found.next().is_none(), "{name} is listed twice");
        one
    };
    for names in [["mmlu_stem", "mmlu"], ["mmlu", "mmlu_stem"], ["mmlu_anatomy", "mmlu"], ["mmlu", "mmlu_anatomy"]] {
        let found = report(&names);
        assert_eq!((found.measured.len(), found.items()), (whole.measured.len(), whole.items()), "{names:?}");
        let outermost: Vec<_> = found.measured.iter().filter(|one| one.depth == 0).map(|one| &one.name[..]).collect();
        assert_eq!(outermost, names);
        for name in names {
            assert!(found.record().contains_key(name), "{names:?}: {name} is recorded");
            let (found, expected) = (of(&found, name), of(&whole, name));
            assert_eq!((found.effective, found.values), (expected.effective, expected.values), "{names:?}: {name}");
        }
    }
}

#[derive(Deserialize)]
struct Perplexities {
    text: String,
    tokens: usize,
    runs: Vec<PerplexityRun>,
}

#[derive(Deserialize)]
struct PerplexityRun {
    stride: Option<usize>,
    perplexity: f64,
}

/// Checks the text itself, and the same text as a token file.
#[test]
fn perplexity_is_that_of_pytorch_and_of_the_harness() {
    let Perplexities { text, tokens, runs } = read("perplexity.json");
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("a.txt");
    fs::write(&plain, &text).unwrap();
    let tokenizer = fixtures().join("model/tokenizer.json");
    let spec = DatasetSpec {
        name: "a",
        sources: &[Source::Path(plain.clone())],
        tokenizer: Some(tokenizer.as_path().into()),
        text: TextOptions::default(),
        split_by: SplitBy::Document,
        eot_splits: None,
        threads: 1,
        root: folder.path(),
    };
    let made = build_dataset(&spec, &AtomicBool::new(false), &mut |_| {}).unwrap();
    for path in [plain, made.data] {
        let in_tokens = path.extension().unwrap() == "bin";
        // The token file ends with <|endoftext|>, which is predicted but is no text. With a window per token it does not
        // affect the other tokens.
        for PerplexityRun { stride, perplexity } in runs.iter().filter(|run| !in_tokens || run.stride == Some(1)) {
            let text_read = PerplexityText::read(&path, None, &AtomicBool::new(false), &mut |_| {}).unwrap();
            let settings = EvalConfig {
                tasks: &["perplexity"],
                data_dir: None,
                num_fewshot: 0,
                fewshot_seed: 0,
                limit: None,
                stride: *stride,
            };
            let plan = Evaluation::new(settings, Some(text_read), &mut |_| true).unwrap();
            let report = with_model(|model| plan.run(model, &mut |_| true)).unwrap();
            let json = report.json(&plan, Value::Null);
            let value = |name: &str| json["results"]["perplexity"][format!("{name},none")].as_f64().unwrap();
            let config = &json["configs"]["perplexity"];
            assert_eq!(config["tokens"], tokens + usize::from(in_tokens));
            assert_eq!(config["bytes"], text.len());
            let nats = perplexity.ln() * tokens as f64 / text.len() as f64;
            let close = |found: f64, expected: f64| {
                assert!(
                    (found - expected).abs() < 1e-4 * expected,
                    "{path:?}, stride {stride:?}: expected {expected}, got {found}"
                );
            };
            if !in_tokens {
                close(value("perplexity"), *perplexity);
            }
            close(value("byte_perplexity"), nats.exp());
            close(value("bits_per_byte"), nats / std::f64::consts::LN_2);
        }
    }
}
