//! Distillation: a small model learns from a large one (Hinton et al. 2015).
//!
//! The loss of a position is α · T² · D(p, q) + (1 − α) · cross entropy, with p and q the teacher's and the student's
//! probabilities at temperature T: softmax(logits / T). T² keeps the scale of D's gradient as T changes. D is the
//! Kullback-Leibler divergence KL(p ‖ q) or another [`Divergence`]. Evaluations use the plain cross entropy, so that they are
//! comparable with models trained without a teacher.

use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use ngen3_cluster::World;
use ngen3_engine::{DistillConfig, DistillLoss, Divergence, Dtype, Quant, Teacher, TeacherSource, Trainer};

use crate::objective::{Evaluation, Micro, Objective, StepOutput};
use crate::objectives::teacher_cache::{CacheIdentity, TeacherCache};
use crate::run_files::record::{DistillRecord, ObjectiveRecord};
use crate::{Error, Job, TokenObjective};

/// Range of T. Far below 1 only the most likely token counts, far above 1 all tokens count the same; outside this range the loss
/// is rounding error or not finite.
const TEMPERATURES: RangeInclusive<f32> = 0.1..=100.0;

/// Distillation settings given on the command line. `None` takes the resumed run's value, or the default.
#[derive(Clone, Debug, Default)]
pub struct DistillRequest {
    /// Temperature T. Default: 2.
    pub temperature: Option<f32>,
    /// Weight α of the divergence. Default: 0.5.
    pub alpha: Option<f32>,
    /// Divergence D. Default: forward KL.
    pub divergence: Option<Divergence>,
    /// Quantisation of the teacher. Default: none.
    pub teacher_quant: Option<Quant>,
    /// Tokens per position in the teacher's cache; `None` for no cache.
    pub top_k: Option<usize>,
}

impl DistillRequest {
    /// Fills in missing values. `before` is the objective of the resumed run.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the value that is out of range.
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
            |name: &str, value: f32, must: &str| Err(Error::Usage(format!("{name}: expected {must}, got {value}")));
        // A resumed run keeps its temperature, whatever it is.
        if self.temperature.is_some() && !TEMPERATURES.contains(&record.temperature) {
            let must = format!("between {} and {}", TEMPERATURES.start(), TEMPERATURES.end());
            return wrong("temperature", record.temperature, &must);
        }
        if !(0.0..=1.0).contains(&record.alpha) {
            return wrong("alpha", record.alpha, "between 0 and 1");
        }
        if record.teacher_top_k.is_some() && record.divergence != Divergence::ForwardKl {
            return Err(Error::Usage(
                "--teacher_cache supports only --divergence forward_kl: it holds just the teacher's most likely tokens"
                    .into(),
            ));
        }
        Ok(record)
    }
}

impl DistillRecord {
    /// Returns the settings of the engine.
    fn config(&self) -> DistillConfig {
        let Self { temperature, alpha, divergence, .. } = *self;
        DistillConfig { temperature, alpha, divergence }
    }

    /// Quantisation of the teacher.
    pub fn quant(&self) -> Quant {
        self.teacher_quant.unwrap_or_default()
    }
}

/// Data and settings of a distillation, before the choice between the teacher and a cache of its predictions.
#[derive(Debug)]
pub struct DistillTask {
    /// The training text.
    pub tokens: TokenObjective,
    /// Distillation settings.
    pub record: DistillRecord,
}

/// Mean losses of a few batches, with the teacher and with its cache.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Compared {
    /// With the teacher's whole distribution.
    pub exact: DistillLoss,
    /// With its most likely tokens, and all others as one.
    pub cached: DistillLoss,
    /// Teacher's total probability of those tokens, the mean over all positions.
    pub covered: f32,
}

impl DistillTask {
    /// Opens or creates the cache of a teacher that computes in `dtype`.
    ///
    /// # Errors
    /// As [`TeacherCache::open`]; [`Error::Usage`] if the run has no cache.
    pub fn open_cache(&self, job: &Job, folder: &Path, dtype: Dtype) -> Result<TeacherCache, Error> {
        let Some(top_k) = self.record.teacher_top_k else {
            return Err(Error::Usage("expected a run with a teacher cache".into()));
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

    /// Computes the student's losses on `batches` batches, with the teacher and with the cache, which must be complete. Returns
    /// `None` if `stop`, checked before each batch, is set.
    ///
    /// # Errors
    /// Errors of the engines, and of files that cannot be read.
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

/// Objective of a student: next-token prediction, and the divergence from its teacher.
pub struct DistillObjective {
    task: DistillTask,
    source: Source,
}

enum Source {
    Teacher(Box<dyn Teacher>),
    Cache(TeacherCache),
}

impl DistillObjective {
    /// Uses the teacher, at random positions.
    pub fn from_teacher(task: DistillTask, teacher: Box<dyn Teacher>) -> Self {
        Self { task, source: Source::Teacher(teacher) }
    }

    /// Uses a complete cache, at its windows.
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

    fn evaluate(
        &mut self,
        trainer: &mut dyn Trainer,
        world: &dyn World,
        stop: &AtomicBool,
    ) -> Result<Evaluation, Error> {
        self.task.tokens.evaluate(trainer, world, stop)
    }

    fn probe(&mut self, trainer: &mut dyn Trainer) -> Result<f32, Error> {
        self.task.tokens.probe(trainer)
    }
}
