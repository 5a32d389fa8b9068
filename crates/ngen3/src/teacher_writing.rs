//! `distill --teacher_writes`: the teacher writes texts, which the student learns in tokens of its own.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::bail;
use ngen3_data::tokenizer::Text;
use ngen3_data::{TokenFile, Tokenizer, validation_split};
use ngen3_engine::{Model, Options, Quant, splitmix};
use ngen3_generate::{Generator, Limits, Sampling};
use ngen3_model::Checkpoint;
use ngen3_model::words::{grouped, grouped_count};
use ngen3_train::{Overrides, TeacherTexts, WritingIdentity, WrittenText, sha256, sha256_of_model};

use crate::device::cpu;
use crate::interrupt::Interrupted;
use crate::model::{self, Found};
use crate::progress::{Progress, write_line};
use crate::streaming::encode_prompt;

/// Number of texts that are written at a time, and lost if the writing is interrupted.
const BATCH: usize = 16;

/// Flags of the texts that a teacher writes.
#[derive(clap::Args)]
#[command(rename_all = "snake_case", next_help_heading = "Teacher's texts")]
pub struct WritingFlags {
    /// Train the student on N texts that the teacher writes, not on its predictions, so that the tokenizers may differ. A text
    /// is a prompt from --data and the teacher's continuation, up to its end or --teacher_length
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    #[arg(conflicts_with_all = ["temperature", "alpha", "divergence", "teacher_cache"])]
    pub teacher_writes: Option<u32>,
    /// Folder for the texts (texts.jsonl, one line each) and their tokens. Texts that are there are not written again
    #[arg(long, value_name = "FOLDER", default_value = "_data_written_", requires = "teacher_writes")]
    teacher_texts: PathBuf,
    /// Tokens of a prompt, from a random place in the training part of --data; 0 starts new documents
    #[arg(long, value_name = "N", default_value_t = 16, requires = "teacher_writes")]
    teacher_prompt_tokens: u16,
    /// Maximum number of tokens that the teacher writes in a text
    #[arg(long, value_name = "N", default_value_t = 256, requires = "teacher_writes")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    teacher_length: u32,
    /// Temperature of the teacher's texts, as in sample; 0 always takes the most likely token
    #[arg(long, value_name = "T", default_value_t = 1.0, requires = "teacher_writes")]
    teacher_temperature: f32,
    /// Sample from the smallest set of tokens whose probabilities add up to P; 1 disables it
    #[arg(long, value_name = "P", default_value_t = 1.0, requires = "teacher_writes")]
    teacher_top_p: f32,
    /// Random seed of the prompts and texts
    #[arg(long, value_name = "N", default_value_t = 1337, requires = "teacher_writes")]
    teacher_seed: u64,
}

impl WritingFlags {
    /// Words of the flags, for the resume command.
    pub fn words(&self) -> Vec<OsString> {
        let Some(n) = self.teacher_writes else { return Vec::new() };
        let mut words: Vec<OsString> = vec!["--teacher_writes".into(), n.to_string().into()];
        words.extend(["--teacher_texts".into(), self.teacher_texts.clone().into()]);
        for (flag, value) in [
            ("--teacher_prompt_tokens", self.teacher_prompt_tokens.to_string()),
            ("--teacher_length", self.teacher_length.to_string()),
            ("--teacher_temperature", self.teacher_temperature.to_string()),
            ("--teacher_top_p", self.teacher_top_p.to_string()),
            ("--teacher_seed", self.teacher_seed.to_string()),
        ] {
            words.extend([flag.into(), value.into()]);
        }
        words
    }

    /// Path of the token file made of the texts.
    pub fn texts(&self) -> PathBuf {
        self.teacher_texts.join("data.bin")
    }

    fn sampling(&self) -> Sampling {
        let Self { teacher_temperature: temperature, teacher_top_p: top_p, teacher_seed: seed, .. } = *self;
        Sampling { temperature, top_p, seed, ..Sampling::default() }
    }
}

/// Has the teacher write the first `n` texts, unless they are there, and makes the token file [`WritingFlags::texts`] of them. `settings` are the
/// run's; `quant` is that of the teacher's weights.
///
/// # Errors
/// Settings out of range, texts of other settings in the folder, errors of files; [`Interrupted`] if `stop` is set.
pub fn write_texts(
    flags: &WritingFlags,
    n: usize,
    data: &TokenFile,
    (found, teacher): (&Found, Checkpoint),
    (settings, quant): (&Overrides, Quant),
    stop: &AtomicBool,
) -> anyhow::Result<()> {
    flags.sampling().validate()?;
    let Some(own) = model::tokenizer(&found.path, &teacher.config, &teacher.meta)? else {
        bail!("{}: expected a teacher with a tokenizer, to write texts; got one without", found.path.display());
    };
    let prompts = Prompts::new(flags, data, settings.val_fraction)?;
    let hash = sha256_of_model(&teacher);
    let about = WritingIdentity {
        teacher: if quant == Quant::None { hash } else { format!("{hash} in {quant}") },
        data: data.meta().map_or_else(|| sha256(data.path()), |meta| Ok(meta.sha256.clone()))?,
        train_tokens: prompts.train_tokens,
        prompt_tokens: prompts.len,
        length: flags.teacher_length as usize,
        temperature: flags.teacher_temperature,
        top_p: flags.teacher_top_p,
        seed: flags.teacher_seed,
    };
    let folder = &flags.teacher_texts;
    let mut texts = TeacherTexts::open(folder, &about)?;
    write_line(&format!("teacher: {}: {}", found.name, model::describe(&teacher.config)));
    let before = texts.texts().len().min(n);
    if before > 0 {
        write_line(&format!(
            "texts: {}: {} of {} are there",
            folder.display(),
            grouped(before as u64),
            grouped(n as u64)
        ));
    }
    if before < n {
        let Checkpoint { mut config, params, .. } = teacher;
        if config.rope.is_some() {
            // Caches for keys and values of the whole context would take gigabytes.
            config.block_size = config.block_size.min(about.length + 8 * about.prompt_tokens + 16);
        }
        let threads = settings.threads.unwrap_or_default();
        let options = Options { threads, dtype: settings.dtype.unwrap_or_default(), quant, ..Options::default() };
        let engine = cpu().open(config, params, options)?;
        let writer = Writer { flags, teacher: &*engine, tokenizer: &own, prompts: &prompts };
        if !writer.write(&mut texts, n, stop)? {
            let kept = grouped_count(texts.texts().len() as u64, "text");
            write_line(&format!("{}: {kept} kept; rerun the same command to continue", folder.display()));
            return Err(Interrupted.into());
        }
    }
    build(&texts, n, folder, &found.name, &prompts.tokenizer)
}

/// Builds the student's dataset, and says what it was made of.
fn build(texts: &TeacherTexts, n: usize, folder: &Path, teacher: &str, student: &Tokenizer) -> anyhow::Result<()> {
    let written = &texts.texts()[..n];
    let meta = texts.build(n, format!("{} written by {teacher}", grouped_count(n as u64, "text")), student)?;
    let count = |which: fn(&&WrittenText) -> bool| grouped(written.iter().filter(which).count() as u64);
    write_line(&format!(
        "texts: {}: {}, {} of the student, {} of the teacher; {} cut at --teacher_length, {} empty and dropped",
        folder.display(),
        grouped_count(meta.documents, "text"),
        grouped_count(meta.tokens, "token"),
        grouped(written.iter().map(|text| text.tokens).sum()),
        count(|text| text.cut),
        count(|text| text.is_empty()),
    ));
    let replaced = written.iter().filter(|text| text.continuation.contains(char::REPLACEMENT_CHARACTER)).count();
    if replaced > 0 {
        let replaced = grouped(replaced as u64);
        write_line(&format!("note: {replaced} of the texts have bytes that are not UTF-8, which became \u{fffd}"));
    }
    if student.eot().is_none() {
        let (name, texts) = (student.name(), grouped_count(meta.documents, "text"));
        write_line(&format!(
            "note: tokenizer {name} has no token that ends a document: {texts} were joined without one"
        ));
    }
    if let Some(missing) = meta.missing_characters {
        let missing = grouped_count(missing, "character");
        write_line(&format!("note: the student's vocabulary lacks {missing} of the texts"));
    }
    Ok(())
}

/// Beginnings of texts: tokens from random places of a token file, as text.
struct Prompts<'a> {
    data: &'a TokenFile,
    tokenizer: Tokenizer,
    train_tokens: usize,
    /// Tokens of a prompt.
    len: usize,
    seed: u64,
}

impl<'a> Prompts<'a> {
    /// Draws from the tokens that are not held out: `val_fraction` is by default that of training.
    fn new(flags: &WritingFlags, data: &'a TokenFile, val_fraction: Option<f64>) -> anyhow::Result<Self> {
        let fraction = val_fraction.unwrap_or(0.1);
        let train_tokens = match validation_split(data.path(), fraction)? {
            (_, 0) => data.len(),
            (_, train_len) => train_len,
        };
        let len = usize::from(flags.teacher_prompt_tokens).min(train_tokens);
        Ok(Self { data, tokenizer: data.tokenizer()?, train_tokens, len, seed: flags.teacher_seed })
    }

    /// Returns the prompt of a text: the part of its tokens that is of one document, the last. Halves of characters at its
    /// ends are left out.
    fn draw(&self, index: usize) -> String {
        let places = self.train_tokens - self.len + 1;
        let at = (splitmix(splitmix(self.seed) ^ index as u64) % places as u64) as usize;
        let mut ids = Vec::with_capacity(self.len);
        self.data.copy(at..at + self.len, &mut ids);
        let (end, start) = (self.tokenizer.eot(), self.tokenizer.bos());
        let mut documents = ids.rsplit(|&id| Some(id) == end || Some(id) == start);
        let document = documents.find(|part| !part.is_empty()).unwrap_or_default();
        self.tokenizer.decode(document).trim_matches(char::REPLACEMENT_CHARACTER).into()
    }
}

/// A teacher that writes.
struct Writer<'a> {
    flags: &'a WritingFlags,
    teacher: &'a dyn Model,
    tokenizer: &'a Tokenizer,
    prompts: &'a Prompts<'a>,
}

impl Writer<'_> {
    /// Writes texts until there are `n`. Returns false if `stop`, checked at each token, is set before.
    fn write(&self, texts: &mut TeacherTexts, n: usize, stop: &AtomicBool) -> anyhow::Result<bool> {
        let progress = Progress::items("teacher writing");
        let before = texts.texts().len();
        progress.set_total(Some((n - before) as u64));
        let (started, mut tokens) = (Instant::now(), 0);
        while texts.texts().len() < n {
            let done = texts.texts().len();
            let mut step = |made: u64| {
                tokens += made;
                let rate = tokens as f64 / started.elapsed().as_secs_f64().max(1e-9);
                progress.set((done - before) as u64, &format!("{} tokens/s", grouped(rate as u64)));
                !stop.load(Ordering::Relaxed)
            };
            let first = done / BATCH * BATCH;
            match self.batch(first, &mut step)? {
                Some(written) => texts.append(written.into_iter().take(n - first).skip(done - first).collect())?,
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Writes a whole batch of texts from number `first` on, a multiple of [`BATCH`]: products of other batches round differently,
    /// and a text must not depend on where the writing was interrupted. Calls `step` with the number of tokens of each step;
    /// `None` once it returns false.
    fn batch(&self, first: usize, step: &mut dyn FnMut(u64) -> bool) -> anyhow::Result<Option<Vec<WrittenText>>> {
        let Self { flags, teacher, tokenizer, prompts } = *self;
        let begun: Vec<String> = (first..first + BATCH).map(|index| prompts.draw(index)).collect();
        let ids = begun.iter().map(|prompt| encode_prompt(tokenizer, prompt)).collect::<anyhow::Result<Vec<_>>>()?;
        let limits = Limits {
            length: flags.teacher_length as usize,
            end: tokenizer.eot(),
            vocab_size: tokenizer.vocab_size(),
            sampling: flags.sampling(),
        };
        let mut generator = Generator::continuing(teacher, ids.iter().map(Vec::as_slice), first as u64, limits)?;
        let mut growing: Vec<_> = (0..BATCH).map(|_| (Text::new(tokenizer.stream(), &[]), 0)).collect();
        while let Some(tokens) = generator.step()? {
            let mut made = 0;
            for ((text, count), token) in growing.iter_mut().zip(tokens) {
                match token {
                    Some(token) => {
                        text.push(*token);
                        (*count, made) = (*count + 1, made + 1);
                    }
                    None => text.finish(),
                }
            }
            if !step(made) {
                return Ok(None);
            }
        }
        let written = growing.into_iter().zip(begun).map(|((mut text, tokens), prompt)| {
            let cut = !text.ended;
            text.finish();
            // The cut may be within a character.
            let kept = match cut {
                true => text.ready.trim_end_matches(char::REPLACEMENT_CHARACTER).len(),
                false => text.ready.len(),
            };
            text.ready.truncate(kept);
            WrittenText { prompt, continuation: text.ready, tokens, cut }
        });
        Ok(Some(written.collect()))
    }
}
