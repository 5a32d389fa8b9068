//! Distillation: a small model learns from a large one (Hinton et al. 2015).
//!
//! The loss of a place is α · T² · D(p, q) + (1 − α) · cross entropy, with p and q the teacher's and the student's
//! probabilities at temperature T: softmax(logits / T). T² keeps the size of D's gradient as T changes. D is the
//! Kullback-Leibler divergence KL(p ‖ q), or as [`Divergence`] says. A student is judged, on what is held out, by its plain
//! cross entropy, so that it compares with models that had no teacher.

use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use ngen3_data::TokenFile;
use ngen3_engine::{Device, DistillConfig, DistillLoss, Divergence, Dtype, Quant, Teacher, TeacherSource, Trainer};
use ngen3_model::{Checkpoint, Config, TokenizerRef};
use serde_json::{Map, Value, json};

use crate::hash::sha256_of_model;
use crate::job::{Data, Job, Request, Weights};
use crate::objective::{Evaluation, Micro, Objective, StepOutput};
use crate::paths::is_same_file;
use crate::teacher_cache::{About, TeacherCache};
use crate::{Error, TokenObjective};

/// T far below 1 leaves the likeliest token alone, T far above 1 makes all alike; out of these bounds only rounding is left of the
/// loss, or nothing finite.
const TEMPERATURES: RangeInclusive<f32> = 0.1..=100.0;

/// What somebody asked for, besides what every run has; a run that goes on keeps its own where nothing is said.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// T; 2 if nobody says.
    pub temperature: Option<f32>,
    /// α; 0.5 if nobody says.
    pub alpha: Option<f32>,
    /// D; forward KL if nobody says.
    pub divergence: Option<Divergence>,
    /// What the teacher is rounded to; nothing if nobody says.
    pub teacher_quant: Option<Quant>,
    /// Tokens that a cache of the teacher tells apart; `None` if there is to be no cache.
    pub top_k: Option<usize>,
}

/// How a student learns from its teacher.
#[derive(Clone, Debug, PartialEq)]
pub struct Terms {
    /// T.
    pub temperature: f32,
    /// α, the teacher's share of the loss.
    pub alpha: f32,
    /// D.
    pub divergence: Divergence,
    /// Tokens that a cache of the teacher tells apart.
    pub top_k: Option<usize>,
    /// SHA-256 of the teacher's shape and weights.
    pub teacher: String,
    /// What the teacher is rounded to.
    pub teacher_quant: Quant,
}

impl Terms {
    pub(crate) fn settle(asked: Asked, before: Option<&Map<String, Value>>, teacher: String) -> Result<Self, Error> {
        let number = |name| before.and_then(|before| before.get(name)?.as_f64()).map(|value| value as f32);
        let divergence = || serde_json::from_value(before?.get("divergence")?.clone()).ok();
        let teacher_quant = || serde_json::from_value(before?.get("teacher_quant")?.clone()).ok();
        let terms = Self {
            temperature: asked.temperature.or_else(|| number("temperature")).unwrap_or(2.0),
            alpha: asked.alpha.or_else(|| number("alpha")).unwrap_or(0.5),
            divergence: asked.divergence.or_else(divergence).unwrap_or_default(),
            top_k: asked.top_k,
            teacher,
            teacher_quant: asked.teacher_quant.or_else(teacher_quant).unwrap_or_default(),
        };
        let wrong =
            |name: &str, value: f32, must: &str| Err(Error::Usage(format!("{name} is {value}; it must be {must}")));
        // A run that goes on keeps what it began with.
        if asked.temperature.is_some() && !TEMPERATURES.contains(&terms.temperature) {
            let must = format!("between {} and {}", TEMPERATURES.start(), TEMPERATURES.end());
            return wrong("temperature", terms.temperature, &must);
        }
        if !(0.0..=1.0).contains(&terms.alpha) {
            return wrong("alpha", terms.alpha, "between 0 and 1");
        }
        if terms.top_k.is_some() && terms.divergence != Divergence::ForwardKl {
            return Err(Error::Usage(
                "a cache knows the teacher's likeliest tokens alone, which is enough for forward_kl only: leave \
                 --teacher_cache or --divergence away"
                    .into(),
            ));
        }
        Ok(terms)
    }

    /// The part that the engine needs.
    fn config(&self) -> DistillConfig {
        let Self { temperature, alpha, divergence, .. } = *self;
        DistillConfig { temperature, alpha, divergence }
    }

    /// What the run's files remember.
    fn to_json(&self) -> Map<String, Value> {
        let Self { temperature, alpha, divergence, top_k, teacher, teacher_quant } = self;
        // By way of text, so that 0.1 stays 0.1 where f32 becomes f64.
        let number = |value: &f32| value.to_string().parse::<f64>().map_or(Value::Null, Value::from);
        let (temperature, alpha) = (number(temperature), number(alpha));
        let quant = Some(teacher_quant).filter(|&&quant| quant != Quant::None);
        let json = json!({ "temperature": temperature, "alpha": alpha, "divergence": divergence, "teacher_top_k": top_k,
            "teacher_sha256": teacher, "teacher_quant": quant });
        match json {
            Value::Object(map) => map,
            _ => unreachable!("it was written as an object"),
        }
    }
}

/// What a student learns from, but for its teacher.
#[derive(Debug)]
pub struct Plan {
    /// The text.
    pub corpus: TokenObjective,
    /// How it learns.
    pub terms: Terms,
}

/// A few batches' losses, by the teacher itself and by what a cache knows of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Compared {
    /// With the teacher's whole distribution.
    pub exact: DistillLoss,
    /// With its likeliest tokens, and the rest as one.
    pub cached: DistillLoss,
    /// The teacher's probability on those tokens, a mean over the places.
    pub covered: f32,
}

impl Plan {
    /// Settles a run on the token file `data`, with the teacher that was read from `from`.
    ///
    /// # Errors
    /// As [`Request::start`] and [`crate::Start::with`]; [`Error::Usage`] for a teacher that the student cannot learn from.
    pub fn prepare(
        device: &dyn Device,
        request: Request,
        data: &Path,
        asked: Asked,
        from: &Path,
        teacher: &Checkpoint,
    ) -> Result<(Job, Self, Weights), Error> {
        let file = TokenFile::open(data)?;
        let start = request.start(|| Ok(file.vocab_size()?))?;
        if is_same_file(from, &start.paths.model) {
            let teacher = from.display();
            return Err(Error::Usage(format!("{teacher} is the teacher: the student needs a file of its own, --out")));
        }
        let terms = Terms::settle(asked, start.lesson(), sha256_of_model(teacher))?;
        let corpus = TokenObjective::open(data, &start.config, &start.settings)?;
        let described = corpus.describe(&start.config)?;
        check_teacher(from, teacher, &start.config, &described)?;
        if let Some(k) = terms.top_k.filter(|&k| k == 0 || k >= start.config.vocab_size) {
            let vocab = start.config.vocab_size;
            return Err(Error::Usage(format!(
                "teacher_top_k is {k}; it must be at least 1 and below the vocabulary of {vocab}"
            )));
        }
        let (job, weights) =
            start.with(device, described, terms.to_json(), Some((&teacher.config, terms.teacher_quant)))?;
        Ok((job, Self { corpus, terms }, weights))
    }

    /// Opens a cache of what the teacher, which computes in `dtype`, says, or makes it.
    ///
    /// # Errors
    /// As [`TeacherCache::open`]; [`Error::Usage`] when no cache was asked for.
    pub fn open_cache(&self, job: &Job, folder: &Path, dtype: Dtype) -> Result<TeacherCache, Error> {
        let Some(top_k) = self.terms.top_k else {
            return Err(Error::Usage("a run without a cache of its teacher was asked for".into()));
        };
        let data = job.data.identity.clone();
        let teacher = match self.terms.teacher_quant {
            Quant::None => self.terms.teacher.clone(),
            quant => format!("{} in {quant}", self.terms.teacher),
        };
        let (vocab_size, block_size) = (job.config.vocab_size, job.config.block_size);
        let about = About::new(teacher, dtype, data, vocab_size, block_size, self.terms.temperature, top_k);
        TeacherCache::open(folder, about, self.corpus.sampler().windows())
    }

    /// The student's losses on `batches` batches, with the teacher and with the cache, which must be filled. `None` if `stop`,
    /// which is looked at before each of them, is set before the end.
    ///
    /// # Errors
    /// What a file or an engine could not do.
    pub fn compare(
        &mut self,
        cache: &TeacherCache,
        teacher: &mut dyn Teacher,
        student: &mut dyn Trainer,
        batches: u64,
        stop: &AtomicBool,
    ) -> Result<Option<Compared>, Error> {
        let zero = DistillLoss { cross_entropy: 0.0, divergence: 0.0 };
        let mut mean = Compared { exact: zero, cached: zero, covered: 0.0 };
        let share = 1.0 / batches as f32;
        let add = |sum: &mut DistillLoss, loss: DistillLoss| {
            sum.cross_entropy += share * loss.cross_entropy;
            sum.divergence += share * loss.divergence;
        };
        let (student, config) = (student.distiller()?, self.terms.config());
        for step in 0..batches {
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let windows = self.corpus.sampler().draw_windows(step, 0);
            let said = cache.read(&windows)?;
            let batch = self.corpus.window_batch(&windows);
            let covered: f64 = said.log_probs.iter().map(|&value| f64::from(value).exp()).sum();
            mean.covered += share * (covered / batch.inputs.len() as f64) as f32;
            add(&mut mean.cached, student.distill(batch, TeacherSource::TopK(&said), &config, None)?);
            add(&mut mean.exact, student.distill(batch, TeacherSource::Teacher(teacher), &config, None)?);
        }
        Ok(Some(mean))
    }
}

/// What a student learns from: the text, and what the teacher says of it.
pub struct Distillation {
    plan: Plan,
    source: Source,
}

enum Source {
    Teacher(Box<dyn Teacher>),
    Cache(TeacherCache),
}

impl Distillation {
    /// From the teacher itself, at places drawn at random.
    pub fn from_teacher(plan: Plan, teacher: Box<dyn Teacher>) -> Self {
        Self { plan, source: Source::Teacher(teacher) }
    }

    /// From a cache, which must be filled, at the windows that it knows.
    pub fn from_cache(plan: Plan, cache: TeacherCache) -> Self {
        Self { plan, source: Source::Cache(cache) }
    }
}

impl Objective for Distillation {
    fn training_step(&mut self, engine: &mut dyn Trainer, micro: &Micro) -> Result<StepOutput, Error> {
        let Self { plan: Plan { corpus, terms }, source } = self;
        let (engine, config, backward) = (engine.distiller()?, terms.config(), Some(micro.backward));
        let (batch, loss);
        match source {
            Source::Teacher(teacher) => {
                batch = corpus.train_batch(micro.step, micro.index);
                loss = engine.distill(batch, TeacherSource::Teacher(&mut **teacher), &config, backward)?;
            }
            Source::Cache(cache) => {
                let windows = corpus.sampler().draw_windows(micro.step, micro.index);
                let said = cache.read(&windows)?;
                batch = corpus.window_batch(&windows);
                loss = engine.distill(batch, TeacherSource::TopK(&said), &config, backward)?;
            }
        }
        let DistillLoss { cross_entropy, divergence } = loss;
        Ok(StepOutput {
            loss: terms.alpha * divergence + (1.0 - terms.alpha) * cross_entropy,
            parts: vec![("cross_entropy", cross_entropy), ("divergence", divergence)],
            tokens: batch.inputs.len() as u64,
        })
    }

    fn evaluate(&mut self, engine: &mut dyn Trainer, stop: &AtomicBool) -> Result<Evaluation, Error> {
        self.plan.corpus.evaluate(engine, stop)
    }

    fn probe(&mut self, engine: &mut dyn Trainer) -> Result<f32, Error> {
        self.plan.corpus.probe(engine)
    }
}

/// A student can learn from a teacher that reads the same tokens, in rows as long as its own.
fn check_teacher(from: &Path, teacher: &Checkpoint, student: &Config, data: &Data) -> Result<(), Error> {
    let Checkpoint { config, meta, .. } = teacher;
    let reason = if config.vocab_size != student.vocab_size {
        format!("its vocabulary has {} tokens, and the student's {}", config.vocab_size, student.vocab_size)
    } else if config.block_size < student.block_size {
        format!(
            "its block of {} is shorter than the student's of {}; give the student a --block_size of at most {0}",
            config.block_size, student.block_size
        )
    } else if data.tokenizer != meta.tokenizer && ![&data.tokenizer, &meta.tokenizer].contains(&&TokenizerRef::Unknown)
    {
        format!("its tokenizer is not the one that made {}: the same ids stand for other text", data.path.display())
    } else {
        return Ok(());
    };
    Err(Error::Usage(format!("{} cannot be the teacher: {reason}", from.display())))
}
