//! Distillation: a small model learns from a large one (Hinton et al. 2015).
//!
//! The loss of a position is α · T² · D(p, q) + (1 − α) · cross entropy, with p and q the teacher's and the student's
//! probabilities at temperature T: softmax(logits / T). T² keeps the size of D's gradient as T changes. D is the
//! Kullback-Leibler divergence KL(p ‖ q), or as [`Divergence`] says. A student is judged, on what is held out, by its plain
//! cross entropy, so that it compares with models that had no teacher.

use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use ngen3_engine::{DistillConfig, DistillLoss, Divergence, Dtype, Quant, Teacher, TeacherSource, Trainer};

use crate::objective::{Evaluation, Micro, Objective, StepOutput};
use crate::objectives::teacher_cache::{CacheIdentity, TeacherCache};
use crate::run_files::record::{DistillRecord, ObjectiveRecord};
use crate::{Error, Job, TokenObjective};

/// T far below 1 leaves the likeliest token alone, T far above 1 makes all alike; out of these bounds only rounding is left of the
/// loss, or nothing finite.
const TEMPERATURES: RangeInclusive<f32> = 0.1..=100.0;

/// Distillation as it was asked for; a run that goes on keeps its own where nothing is said.
#[derive(Clone, Debug, Default)]
pub struct DistillRequest {
    /// T. Default: 2.
    pub temperature: Option<f32>,
    /// α. Default: 0.5.
    pub alpha: Option<f32>,
    /// D. Default: forward KL.
    pub divergence: Option<Divergence>,
    /// Precision that the teacher is rounded to. Default: nothing.
    pub teacher_quant: Option<Quant>,
    /// Tokens that a cache of the teacher tells apart; `None` if there is to be no cache.
    pub top_k: Option<usize>,
}

impl DistillRequest {
    /// Settles what was left open. `before` is the objective of the run that goes on.
    ///
    /// # Errors
    /// [`Error::Usage`] naming what is out of range.
    pub(crate) fn settle(
        self,
        before: Option<&ObjectiveRecord>,
        teacher_sha256: String,
    ) -> Result<DistillRecord, Error> {
        let before = match before {
            Some(ObjectiveRecord::Distill(before)) => Some(before),
            _ => None,
        };
        let quant = self.teacher_quant.or(before.and_then(|before| before.teacher_quant)).unwrap_or_default();
        let record = DistillRecord {
            temperature: self.temperature.or(before.map(|before| before.temperature)).unwrap_or(2.0),
            alpha: self.alpha.or(before.map(|before| before.alpha)).unwrap_or(0.5),
            divergence: self.divergence.or(before.map(|before| before.divergence)).unwrap_or_default(),
            teacher_top_k: self.top_k,
            teacher_sha256: Some(teacher_sha256),
            teacher_quant: Some(quant).filter(|&quant| quant != Quant::None),
        };
        let wrong =
            |name: &str, value: f32, must: &str| Err(Error::Usage(format!("{name} is {value}; it must be {must}")));
        // A run that goes on keeps what it began with.
        if self.temperature.is_some() && !TEMPERATURES.contains(&record.temperature) {
            let must = format!("between {} and {}", TEMPERATURES.start(), TEMPERATURES.end());
            return wrong("temperature", record.temperature, &must);
        }
        if !(0.0..=1.0).contains(&record.alpha) {
            return wrong("alpha", record.alpha, "between 0 and 1");
        }
        if record.teacher_top_k.is_some() && record.divergence != Divergence::ForwardKl {
            return Err(Error::Usage(
                "a cache knows the teacher's likeliest tokens alone, which is enough for forward_kl only: leave \
                 --teacher_cache or --divergence away"
                    .into(),
            ));
        }
        Ok(record)
    }
}

impl DistillRecord {
    /// The part that the engine needs.
    fn config(&self) -> DistillConfig {
        let Self { temperature, alpha, divergence, .. } = *self;
        DistillConfig { temperature, alpha, divergence }
    }

    /// Precision that the teacher is rounded to.
    pub fn quant(&self) -> Quant {
        self.teacher_quant.unwrap_or_default()
    }
}

/// A student's data and how it learns, before it is settled whether the teacher itself or a cache teaches.
#[derive(Debug)]
pub struct DistillTask {
    /// The text.
    pub tokens: TokenObjective,
    /// How it learns.
    pub record: DistillRecord,
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

impl DistillTask {
    /// Opens a cache of what the teacher, which computes in `dtype`, says, or makes it.
    ///
    /// # Errors
    /// As [`TeacherCache::open`]; [`Error::Usage`] when no cache was asked for.
    pub fn open_cache(&self, job: &Job, folder: &Path, dtype: Dtype) -> Result<TeacherCache, Error> {
        let Some(top_k) = self.record.teacher_top_k else {
            return Err(Error::Usage("a run without a cache of its teacher was asked for".into()));
        };
        let data = job.data.identity.clone();
        let sha256 = self.record.teacher_sha256.clone().unwrap_or_default();
        let teacher = match self.record.quant() {
            Quant::None => sha256,
            quant => format!("{sha256} in {quant}"),
        };
        let (vocab_size, block_size) = (job.config.vocab_size, job.config.block_size);
        let about = CacheIdentity::new(teacher, dtype, data, vocab_size, block_size, self.record.temperature, top_k);
        TeacherCache::open(folder, about, self.tokens.sampler().windows())
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
        let config = self.record.config();
        for step in 0..batches {
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let (student, windows) = (student.distiller()?, self.tokens.sampler().draw_windows(step, 0));
            let top_k = cache.read(&windows)?;
            let batch = self.tokens.window_batch(&windows);
            let covered: f64 = top_k.log_probs.iter().map(|&value| f64::from(value).exp()).sum();
            mean.covered += share * (covered / batch.inputs.len() as f64) as f32;
            add(&mut mean.cached, student.distill(batch, TeacherSource::TopK(&top_k), &config, None)?);
            add(&mut mean.exact, student.distill(batch, TeacherSource::Teacher(teacher), &config, None)?);
        }
        Ok(Some(mean))
    }
}

/// The objective of a student: the text, and its teacher's probabilities.
pub struct DistillObjective {
    task: DistillTask,
    source: Source,
}

enum Source {
    Teacher(Box<dyn Teacher>),
    Cache(TeacherCache),
}

impl DistillObjective {
    /// From the teacher itself, at places drawn at random.
    pub fn from_teacher(task: DistillTask, teacher: Box<dyn Teacher>) -> Self {
        Self { task, source: Source::Teacher(teacher) }
    }

    /// From a cache, which must be filled, at the windows that it knows.
    pub fn from_cache(task: DistillTask, cache: TeacherCache) -> Self {
        Self { task, source: Source::Cache(cache) }
    }
}

impl Objective for DistillObjective {
    fn training_step(&mut self, trainer: &mut dyn Trainer, micro: &Micro) -> Result<StepOutput, Error> {
        let Self { task: DistillTask { tokens, record }, source } = self;
        let (student, config, backward) = (trainer.distiller()?, record.config(), Some(micro.backward));
        let (batch, loss);
        match source {
            Source::Teacher(teacher) => {
                batch = tokens.train_batch(micro.step, micro.index);
                loss = student.distill(batch, TeacherSource::Teacher(&mut **teacher), &config, backward)?;
            }
            Source::Cache(cache) => {
                let windows = tokens.sampler().draw_windows(micro.step, micro.index);
                let top_k = cache.read(&windows)?;
                batch = tokens.window_batch(&windows);
                loss = student.distill(batch, TeacherSource::TopK(&top_k), &config, backward)?;
            }
        }
        let DistillLoss { cross_entropy, divergence } = loss;
        Ok(StepOutput {
            loss: record.alpha * divergence + (1.0 - record.alpha) * cross_entropy,
            parts: vec![("cross_entropy", cross_entropy), ("divergence", divergence)],
            tokens: batch.inputs.len() as u64,
        })
    }

    fn evaluate(&mut self, trainer: &mut dyn Trainer, stop: &AtomicBool) -> Result<Evaluation, Error> {
        self.task.tokens.evaluate(trainer, stop)
    }

    fn probe(&mut self, trainer: &mut dyn Trainer) -> Result<f32, Error> {
        self.task.tokens.probe(trainer)
    }
}
