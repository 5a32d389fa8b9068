//! Setup of a run, one function per command. Settings and shape (`settings.rs`, `config_file.rs`) → specification (`spec.rs`) →
//! resolved against checkpoint or state (`resolve.rs`) → objective with its data → job (`job.rs`) → loop (`train.rs`). Each file
//! and checkpoint is opened once.

use std::path::Path;

use ngen3_data::TokenFile;
use ngen3_data::chat::{ChatSampler, ChatSampling, Chats, TooLong, TrainOn};
use ngen3_engine::Device;
use ngen3_model::{ChatFormat, Checkpoint, Config};

use crate::hash::sha256_of_model;
use crate::objectives::distill::{DistillRequest, DistillTask};
use crate::prepare::job::{DataInfo, InitialWeights, Job};
use crate::prepare::resolve::Resolved;
use crate::prepare::spec::RunSpec;
use crate::run_files::paths::is_same_file;
use crate::run_files::record::{ChatRecord, ObjectiveRecord};
use crate::{ChatObjective, Error, TokenObjective, TrainSettings};

/// Sets up `ngen3 train`, or `ngen3 finetune` on plain tokens, on the token file `data`.
///
/// # Errors
/// As [`RunSpec::resolve`] and [`crate::Resolved::into_job`]; [`Error::Data`] for a file that is damaged or does not fit the
/// model.
pub fn on_tokens(
    device: &dyn Device,
    spec: RunSpec,
    data: &Path,
) -> Result<(Job, TokenObjective, InitialWeights), Error> {
    let file = TokenFile::open(data)?;
    let run = spec.resolve(|| Ok(file.vocab_size()?))?;
    let tokens = TokenObjective::new(file, &run.config, &run.settings)?;
    let info = tokens.describe()?;
    let (mut job, weights) = run.into_job(device, info, ObjectiveRecord::default(), None)?;
    job.notes.extend(tokens.notes());
    Ok((job, tokens, weights))
}

/// Sets up `ngen3 distill` on the token file `data`. `from` is the teacher's path.
///
/// # Errors
/// As [`on_tokens`]; [`Error::Usage`] for a teacher that does not fit the student.
pub fn with_teacher(
    device: &dyn Device,
    spec: RunSpec,
    data: &Path,
    request: DistillRequest,
    from: &Path,
    teacher: &Checkpoint,
) -> Result<(Job, DistillTask, InitialWeights), Error> {
    let file = TokenFile::open(data)?;
    let run = spec.resolve(|| Ok(file.vocab_size()?))?;
    check_not_the_teacher(from, &run)?;
    let record = request.settle(run.objective_before(), sha256_of_model(teacher))?;
    let tokens = TokenObjective::new(file, &run.config, &run.settings)?;
    let info = tokens.describe()?;
    check_teacher(from, teacher, &run.config, &info)?;
    let vocab_size = run.config.vocab_size;
    if let Some(k) = record.teacher_top_k.filter(|&k| k == 0 || k >= vocab_size) {
        return Err(Error::Usage(format!(
            "teacher_top_k: expected at least 1 and below the vocabulary size of {vocab_size}, got {k}"
        )));
    }
    let objective = ObjectiveRecord::Distill(record.clone());
    let (mut job, weights) = run.into_job(device, info, objective, Some((&teacher.config, record.quant())))?;
    job.notes.extend(tokens.notes());
    Ok((job, DistillTask { tokens, record }, weights))
}

/// Checks a run before a teacher writes the texts that it learns, in the tokens of `data`. `from` is the teacher's path.
///
/// # Errors
/// As [`RunSpec::resolve`]; [`Error::Usage`] if the student's file is the teacher.
pub fn check_student(spec: RunSpec, data: &TokenFile, from: &Path) -> Result<(), Error> {
    let run = spec.resolve(|| Ok(data.vocab_size()?))?;
    check_not_the_teacher(from, &run)
}

/// Fails if the student would replace the teacher.
fn check_not_the_teacher(from: &Path, run: &Resolved) -> Result<(), Error> {
    if is_same_file(from, &run.paths.model) {
        let teacher = from.display();
        return Err(Error::Usage(format!("{teacher} is the teacher; choose another file for the student with --out")));
    }
    Ok(())
}

/// How conversations are trained on.
#[derive(Clone, Copy, Debug)]
pub struct ChatOptions {
    /// Turns in the loss.
    pub train_on: TrainOn,
    /// Treatment of conversations longer than the context length.
    pub too_long: TooLong,
    /// True to skip and count conversations with a message longer than the context length.
    pub skip_bad: bool,
}

/// Sets up `ngen3 finetune` on conversations. `own` is the model's chat format, if any.
///
/// # Errors
/// As [`RunSpec::resolve`], [`ChatSampler::new`] and [`crate::Resolved::into_job`].
pub fn on_chats(
    device: &dyn Device,
    spec: RunSpec,
    chats: Chats,
    options: ChatOptions,
    own: Option<&ChatFormat>,
) -> Result<(Job, ChatObjective, InitialWeights), Error> {
    let vocab_size = chats.tokenizer().vocab_size();
    let run = spec.resolve(|| Ok(vocab_size))?;
    chats.check_vocab(run.config.vocab_size)?;
    let TrainSettings { batch_size, val_fraction, seed, .. } = run.settings;
    let block_size = run.config.block_size;
    let ChatOptions { train_on, too_long, skip_bad } = options;
    let sampling = ChatSampling { block_size, batch_size, val_fraction, train_on, too_long, skip_bad, seed };
    let objective = ChatObjective::new(ChatSampler::new(chats, &sampling)?, &run.settings);
    let info = objective.describe();
    let mut notes = vec![objective.note(train_on)];
    if info.chat.is_some() && own.is_some_and(|own| Some(own) != info.chat.as_ref()) {
        notes.push("the conversations' chat template differs from the model's and replaces it".into());
    }
    let train_on = if train_on == TrainOn::All { "all" } else { "assistant" };
    let record = ObjectiveRecord::Chat(ChatRecord { train_on: train_on.into(), too_long: too_long.name().into() });
    let (mut job, weights) = run.into_job(device, info, record, None)?;
    job.notes.splice(0..0, notes);
    Ok((job, objective, weights))
}

/// Checks that the teacher has the student's vocabulary and tokenizer, and at least its context length.
fn check_teacher(from: &Path, teacher: &Checkpoint, student: &Config, data: &DataInfo) -> Result<(), Error> {
    let Checkpoint { config, meta, .. } = teacher;
    let otherwise = "; a teacher of another tokenizer can write the student's texts instead, with --teacher_writes N";
    let reason = if config.vocab_size != student.vocab_size {
        format!("its vocabulary has {} tokens, the student's {}{otherwise}", config.vocab_size, student.vocab_size)
    } else if config.block_size < student.block_size {
        format!(
            "its context length is {}, the student's {}; give the student a --block_size of at most {0}",
            config.block_size, student.block_size
        )
    } else if !data.tokenizer.agrees_with(&meta.tokenizer) {
        format!("its tokenizer is not the one that made {}{otherwise}", data.path.display())
    } else {
        return Ok(());
    };
    Err(Error::Usage(format!("{} cannot be the teacher: {reason}", from.display())))
}
