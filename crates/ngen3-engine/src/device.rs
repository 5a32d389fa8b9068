//! A device opens models, and says beforehand what they need.

use std::time::Duration;

use ngen3_model::{Config, Lora};

use crate::{Dtype, Error, Options, Quant, Teacher, Trainer};

/// Something to compute on.
pub trait Device {
    /// Its name in messages and records, such as `cpu`.
    fn name(&self) -> &'static str;

    /// A model with these parameters, `[total]` in the order of `ngen3_model::ParamList`.
    ///
    /// # Errors
    /// [`Error::Input`] when the shape is invalid, `params` has another length, or the device lacks the dtype asked for;
    /// [`Error::Unsupported`] for a quantisation that it lacks;
    /// [`Error::Memory`] or [`Error::Threads`] when it cannot be held or computed.
    fn open(&self, config: Config, params: Vec<f32>, options: Options) -> Result<Box<dyn Trainer>, Error>;

    /// A model that only teaches: [`Options::quant`] rounds its weights and their inputs.
    ///
    /// # Errors
    /// As [`Device::open`].
    fn open_teacher(&self, _config: Config, _params: Vec<f32>, _options: Options) -> Result<Box<dyn Teacher>, Error> {
        Err(Error::Unsupported("distillation"))
    }

    /// Bytes of memory that a workload takes.
    ///
    /// # Errors
    /// [`Error::Input`] for adapters that the model cannot have.
    fn memory(&self, config: &Config, workload: Workload<'_>, options: Options) -> Result<u64, Error>;

    /// The time that each part of a step has taken since the last call, in the order of a step; empty where it is not measured.
    fn take_profile(&self) -> Vec<(&'static str, Duration)> {
        Vec::new()
    }

    /// The best rate, in GFLOP/s, of repeated products `[m, k]·[n, k]ᵀ` in a quarter of a second on `threads` threads (0 = all).
    ///
    /// # Errors
    /// [`Error::Threads`] when the threads cannot be started; [`Error::Input`] for a dtype that it lacks.
    fn product_gflops(&self, _dtype: Dtype, _threads: usize, _shape: [usize; 3]) -> Result<f64, Error> {
        Err(Error::Unsupported("measuring its products"))
    }
}

/// Work that a model is to do.
#[derive(Clone, Copy, Debug)]
pub enum Workload<'a> {
    /// Train all of it, with batches of so many sequences of a whole block.
    Train {
        /// Sequences in a batch.
        batch_size: usize,
    },
    /// Train adapters beside it.
    Adapt {
        /// Sequences in a batch.
        batch_size: usize,
        /// Their shape.
        lora: &'a Lora,
    },
    /// Train all of it with a teacher.
    Distill {
        /// Sequences in a batch.
        batch_size: usize,
        /// The teacher's shape.
        teacher: &'a Config,
        /// Precision that the teacher is rounded to.
        quant: Quant,
    },
    /// Generate one text as long as a block.
    Sample,
}
