//! Devices, which models run on, and the memory that they need.

use std::time::Duration;

use ngen3_model::gguf::TensorType;
use ngen3_model::{Config, Lora, StoredWeight};

use crate::{Dtype, Error, Model, Options, Quant, Teacher, Trainer};

/// Backend that models run on, such as a CPU or a GPU.
pub trait Device: Sync {
    /// Name in messages and records, such as `cpu`.
    fn name(&self) -> &'static str;

    /// Opens a model for training, evaluation and generation. `params` are its parameters, `[total]` in the order of
    /// `ngen3_model::ParamList`.
    ///
    /// # Errors
    /// [`Error::Input`] when the shape is invalid, `params` has the wrong length, or the device lacks [`Options::dtype`];
    /// [`Error::Unsupported`] when it lacks [`Options::quant`]; [`Error::Memory`] when its buffers cannot be allocated;
    /// [`Error::Threads`] when its threads cannot be started.
    fn open(&self, config: Config, params: Vec<f32>, options: Options) -> Result<Box<dyn Trainer>, Error>;

    /// Returns true if [`Device::open_stored`] multiplies by weights of this type as they are.
    fn multiplies(&self, _tensor_type: TensorType) -> bool {
        false
    }

    /// Opens a model for generation that multiplies by weights as a GGUF file stores them, in place of the parameters that they
    /// stand for. `stored` has one entry for each parameter, in the order of `ngen3_model::ParamList`; see
    /// `ngen3_model::Checkpoint::load_stored`.
    ///
    /// # Errors
    /// As [`Device::open`]; [`Error::Input`] for weights of another number, shape or type than the device multiplies.
    fn open_stored(
        &self,
        _config: Config,
        _params: Vec<f32>,
        _stored: Vec<Option<StoredWeight>>,
        _options: Options,
    ) -> Result<Box<dyn Model>, Error> {
        Err(Error::Unsupported("weights as a file stores them"))
    }

    /// Returns the best rate at which memory is read on `threads` threads (0 = all), in GB/s.
    ///
    /// # Errors
    /// [`Error::Threads`] when the threads cannot be started; [`Error::Memory`] when there is too little memory to measure.
    fn read_gbps(&self, _threads: usize) -> Result<f64, Error> {
        Err(Error::Unsupported("measuring memory bandwidth"))
    }

    /// Opens a model for inference only, as a teacher. [`Options::quant`] quantises its weights and, in int8, the inputs of its
    /// products.
    ///
    /// # Errors
    /// As [`Device::open`].
    fn open_teacher(&self, _config: Config, _params: Vec<f32>, _options: Options) -> Result<Box<dyn Teacher>, Error> {
        Err(Error::Unsupported("distillation"))
    }

    /// Returns true if models are in memory of the device's own, whose size is not known: one that does not fit is
    /// [`Error::Memory`] when it is opened.
    fn has_own_memory(&self) -> bool {
        false
    }

    /// Returns the memory that a workload needs, in bytes.
    ///
    /// # Errors
    /// [`Error::Input`] when the adapters do not fit the model.
    fn memory(&self, config: &Config, workload: Workload<'_>, options: Options) -> Result<u64, Error>;

    /// Returns the time spent in each part of a step since the last call, in the order of a step. Empty if the device does not
    /// measure it.
    fn take_profile(&self) -> Vec<(&'static str, Duration)> {
        Vec::new()
    }

    /// Repeats the product `[m, k]·[n, k]ᵀ` for a quarter of a second on `threads` threads (0 = all) and returns the best rate,
    /// in GFLOP/s. `shape` is `[m, k, n]`.
    ///
    /// # Errors
    /// [`Error::Threads`] when the threads cannot be started; [`Error::Input`] for a dtype that the device lacks.
    fn product_gflops(&self, _dtype: Dtype, _threads: usize, _shape: [usize; 3]) -> Result<f64, Error> {
        Err(Error::Unsupported("measuring matrix products"))
    }
}

/// Workload of a model, for [`Device::memory`].
#[derive(Clone, Copy, Debug)]
pub enum Workload<'a> {
    /// Training all parameters, in batches of sequences of `block_size` tokens.
    Train {
        /// Number of sequences per batch.
        batch_size: usize,
    },
    /// Training adapters with the model frozen.
    Adapt {
        /// Number of sequences per batch.
        batch_size: usize,
        /// Rank and targets of the adapters.
        lora: &'a Lora,
    },
    /// Training all parameters with a teacher.
    Distill {
        /// Number of sequences per batch.
        batch_size: usize,
        /// Shape of the teacher.
        teacher: &'a Config,
        /// Quantisation of the teacher.
        quant: Quant,
    },
    /// Generating one sequence of `block_size` tokens.
    Sample,
}
