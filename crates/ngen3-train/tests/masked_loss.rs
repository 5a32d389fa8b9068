//! Fine-tuning's loss against PyTorch's with label -100 outside the assistant's turns (`fixtures/make_masked_loss.py`).

use std::fs;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use ngen3_cluster::Single;
use ngen3_cpu::{Cpu, CpuEngine};
use ngen3_data::Tokenizer;
use ngen3_data::chat::{ChatEncoder, ChatInput, ChatReading, Chats, TooLong, TrainOn};
use ngen3_engine::{Backward, Dtype, Options, Slot, Trainer};
use ngen3_model::{Checkpoint, CheckpointMeta, Config, ParamList};
use ngen3_train::setup::ChatOptions;
use ngen3_train::{
    ChatObjective, InitialWeights, Job, Micro, Objective, Overrides, Progress, RunKind, RunSpec, Shape, StartFrom,
    StepReport, ValLoss, setup, train,
};
use serde_json::Value;

/// The parameters of the script.
fn params(config: &Config) -> Vec<f32> {
    let hashed = |i: u64| (i * 2_654_435_761 % (1 << 32)) as f64 / (1u64 << 32) as f64;
    (0..ParamList::new(config).total() as u64).map(|i| (hashed(i) - 0.5) as f32).collect()
}

fn prepare(folder: &std::path::Path, lines: &str, train_on: TrainOn) -> (Job, ChatObjective, InitialWeights) {
    let settings = Overrides { batch_size: Some(16), val_fraction: Some(0.0), ..Overrides::default() };
    prepare_with(folder, lines, train_on, settings)
}

fn prepare_with(
    folder: &std::path::Path,
    lines: &str,
    train_on: TrainOn,
    settings: Overrides,
) -> (Job, ChatObjective, InitialWeights) {
    let file = folder.join("chats.jsonl");
    fs::write(&file, lines).unwrap();
    let encoder = ChatEncoder::new(Tokenizer::gpt2(), None).unwrap();
    let go = AtomicBool::new(false);
    let input = [file];
    let reading = ChatReading { answers: true, ..ChatReading::default() };
    let input = ChatInput::Files(&input, None);
    let chats = Chats::read("chats", input, &encoder, &reading, &go, &mut |_| {}).unwrap();
    let config = Config::new(2, 3, 12, 64, 50_257);
    let checkpoint = Checkpoint { params: params(&config), config, meta: CheckpointMeta::default() };
    let spec = RunSpec {
        kind: RunKind::Finetune,
        variant: None,
        config_file: None,
        out: Some(folder.join("x_model.pt")),
        start: StartFrom::Loaded("start.pt".into(), Box::new(checkpoint)),
        overwrite: false,
        settings,
        shape: Shape::default(),
        lora: None,
        world: Arc::new(Single),
    };
    let options = ChatOptions { train_on, too_long: TooLong::Split, skip_bad: false };
    setup::on_chats(&Cpu, spec, chats, options, None).unwrap()
}

#[test]
fn only_what_the_assistant_says_counts_as_in_pytorch() {
    let expected: Value = serde_json::from_str(include_str!("fixtures/masked_loss.json")).unwrap();
    let lines: String = expected["conversations"].as_array().unwrap().iter().map(|said| format!("{said}\n")).collect();
    let folder = tempfile::tempdir().unwrap();
    let (job, mut objective, weights) = prepare(folder.path(), &lines, TrainOn::Assistant);
    assert_eq!(Some(job.data.identity.train_tokens), expected["counted"].as_u64());
    let options = Options { threads: 2, dtype: Dtype::F32, ..Options::default() };
    let mut engine = CpuEngine::new(job.config.clone(), weights.params, options).unwrap();
    let micro = Micro { step: 0, index: 0, backward: Backward::default() };
    let learned = objective.training_step(&mut engine, &micro).unwrap();
    let loss = expected["loss"].as_f64().unwrap();
    assert!((f64::from(learned.loss) / loss - 1.0).abs() < 1e-5, "expected {loss}, got {}", learned.loss);
    let grads = engine.read(Slot::Grads).into_owned();
    for param in &ParamList::new(&job.config) {
        let found = grads[param.range()].iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
        let norm = expected["gradient_norms"][&param.name()].as_f64().unwrap();
        assert!((found / norm - 1.0).abs() < 1e-4, "{}: expected {norm}, got {found}", param.name());
    }

    // With the loss on all turns it differs, and there are more targets.
    let folder = tempfile::tempdir().unwrap();
    let (job, mut all, weights) = prepare(folder.path(), &lines, TrainOn::All);
    assert!(job.data.identity.train_tokens > expected["counted"].as_u64().unwrap());
    let mut engine = CpuEngine::new(job.config.clone(), weights.params, options).unwrap();
    assert!((f64::from(all.training_step(&mut engine, &micro).unwrap().loss) - loss).abs() > 1e-2);
}

#[test]
fn an_answer_is_judged_by_what_comes_before_it_in_its_own_conversation() {
    let loss = |lines: &str| {
        let folder = tempfile::tempdir().unwrap();
        let (job, mut objective, weights) = prepare(folder.path(), lines, TrainOn::Assistant);
        let options = Options { threads: 1, dtype: Dtype::F32, ..Options::default() };
        let mut engine = CpuEngine::new(job.config.clone(), weights.params, options).unwrap();
        let micro = Micro { step: 0, index: 0, backward: Backward::default() };
        let learned = objective.training_step(&mut engine, &micro).unwrap();
        (f64::from(learned.loss), job.data.identity.train_tokens as f64)
    };
    let (one, two) = ("[\"Hello\", \"Hi there\"]\n", "[\"What is it?\", \"A bank, five blocks away\"]\n");
    let ((first, n), (second, m)) = (loss(one), loss(two));
    let (both, total) = loss(&format!("{one}{two}"));
    assert_eq!(total, n + m);
    assert!((both - (first * n + second * m) / total).abs() < 1e-5, "{both} is not the mean of {first} and {second}");
    let (followed, counted) = loss("[\"Hello\", \"Hi there\", \"a question that nobody answers\"]\n");
    assert_eq!((followed as f32, counted), (first as f32, n));
}

/// Ignores progress.
struct Nobody;

impl Progress for Nobody {
    fn step(&mut self, _: &StepReport<'_>) {}
    fn evaluated(&mut self, _: u64, _: ValLoss, _: bool) {}
}

/// Runs one step over all conversations in `micro_batches` micro-batches. Returns its loss, the gradient passed to AdamW, and
/// the number of targets per micro-batch.
fn step(lines: &str, batch_size: usize, micro_batches: u64) -> (f32, Vec<f32>, Vec<u64>) {
    let folder = tempfile::tempdir().unwrap();
    let settings = Overrides {
        batch_size: Some(batch_size),
        gradient_accumulation: Some(micro_batches),
        val_fraction: Some(0.0),
        max_iters: Some(1),
        beta1: Some(0.0),
        grad_clip: Some(0.0),
        ..Overrides::default()
    };
    let (job, mut objective, weights) = prepare_with(folder.path(), lines, TrainOn::Assistant, settings);
    let options = Options { threads: 2, dtype: Dtype::F32, ..Options::default() };
    let mut engine = CpuEngine::new(job.config.clone(), weights.params, options).unwrap();
    let counted = (0..micro_batches).map(|index| objective.num_target_tokens(0, index)).collect();
    train(&job, &mut objective, &mut engine, &mut Nobody, &AtomicBool::new(false)).unwrap();
    let log = fs::read_to_string(job.paths.run.join("metrics.jsonl")).unwrap();
    let last: Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    (last["train_loss"].as_f64().unwrap() as f32, engine.read(Slot::ExpAvg).into_owned(), counted)
}

#[test]
fn micro_batches_count_by_their_targets() {
    let answers =
        ["no", "a bank, five blocks away, behind the church", "it is late", "ask me something else, if you must"];
    let line = |answer: &&str| format!("[\"{}\", \"{answer}\"]\n", "and what then? ".repeat(9));
    let lines: String = answers.iter().map(line).collect();
    let (loss, gradient, counted) = step(&lines, 16, 1);
    // Sequences of 64 tokens hold one conversation each.
    let (of_four, in_four, each) = step(&lines, 1, 4);
    assert_eq!(each.iter().sum::<u64>(), counted[0]);
    let (least, most) = (each.iter().min().unwrap(), each.iter().max().unwrap());
    assert!(most >= &(2 * least), "{each:?}");
    assert!((of_four - loss).abs() < 1e-6 * loss, "expected {loss}, got {of_four}");
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let size = norm(&mut gradient.iter().map(|&g| f64::from(g)));
    let apart = norm(&mut gradient.iter().zip(&in_four).map(|(&a, &b)| f64::from(a) - f64::from(b)));
    assert!(size > 0.0 && apart < 1e-6 * size, "the gradients differ by {apart}, of norm {size}");
}
