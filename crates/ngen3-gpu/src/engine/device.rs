//! [`Gpu`]: opens models on a GPU and computes the memory that they need.

use std::sync::Arc;

use ngen3_engine::{Device, Dtype, Error, Options, PASS_TOKENS, Quant, Teacher, Trainer, Workload};
use ngen3_model::{Config, LoraList, ParamList};

use super::arena::{ForwardMode, arena_len};
use super::rate::product_gflops;
use super::teacher::GpuTeacher;
use super::trainer::GpuTrainer;
use crate::device::{Adapter, Context};

/// An open GPU.
#[derive(Clone)]
pub struct Gpu {
    context: Arc<Context>,
    /// Most elements of a segment of parameters.
    most: usize,
}

impl Gpu {
    /// Opens an adapter.
    ///
    /// # Errors
    /// [`Error::Device`] with the driver's reason.
    pub fn open(adapter: &Adapter) -> Result<Self, Error> {
        let context = Context::open(adapter)?;
        let most = context.binding_len();
        Ok(Self { context: Arc::new(context), most })
    }

    /// Name of the hardware.
    pub fn adapter_name(&self) -> &str {
        self.context.name()
    }

    /// The same GPU, which takes no buffers of parameters of more elements than this: for tests of models that are larger than the
    /// largest buffer.
    pub fn with_segments_of(&self, most: usize) -> Self {
        Self { context: Arc::clone(&self.context), most: most.min(self.most) }
    }
}

/// Checks that the options are supported.
fn check(options: Options) -> Result<(), Error> {
    match options.dtype {
        Dtype::Auto | Dtype::F32 => {}
        Dtype::Bf16 => {
            return Err(Error::Input("dtype bf16 is not supported on a GPU: expected auto or f32".into()));
        }
    }
    match options.quant {
        Quant::None => Ok(()),
        Quant::Int8 => Err(Error::Unsupported("int8 weights")),
        Quant::Int4 => Err(Error::Unsupported("int4 weights")),
    }
}

impl Device for Gpu {
    fn name(&self) -> &'static str {
        "gpu"
    }

    fn open(&self, config: Config, params: Vec<f32>, options: Options) -> Result<Box<dyn Trainer>, Error> {
        check(options)?;
        Ok(Box::new(GpuTrainer::new(&self.context, config, &params, options.recompute, self.most)?))
    }

    fn open_teacher(&self, config: Config, params: Vec<f32>, options: Options) -> Result<Box<dyn Teacher>, Error> {
        check(options)?;
        Ok(Box::new(GpuTeacher::new(&self.context, config, &params, self.most)?))
    }

    fn has_own_memory(&self) -> bool {
        true
    }

    fn product_gflops(&self, dtype: Dtype, _: usize, shape: [usize; 3]) -> Result<f64, Error> {
        check(Options { dtype, ..Options::default() })?;
        product_gflops(&self.context, shape)
    }

    fn memory(&self, config: &Config, workload: Workload<'_>, options: Options) -> Result<u64, Error> {
        let total = ParamList::new(config).total();
        let training = if options.recompute { ForwardMode::Recompute } else { ForwardMode::Training };
        let tokens =
            |batch_size: usize| (PASS_TOKENS / config.block_size).clamp(1, batch_size.max(1)) * config.block_size;
        let arena = |rank, mode, batch_size| arena_len(config, rank, mode, tokens(batch_size));
        let elements = match workload {
            Workload::Train { batch_size } => 4 * total + arena(0, training, batch_size),
            Workload::Adapt { batch_size, lora } => {
                let adapters = LoraList::new(config, lora).map_err(|e| Error::Input(e.to_string()))?.total();
                total + 4 * adapters + arena(lora.rank, training, batch_size)
            }
            Workload::Distill { batch_size, teacher, .. } => {
                let teaching = arena_len(teacher, 0, ForwardMode::Inference, tokens(batch_size));
                4 * total + ParamList::new(teacher).total() + arena(0, training, batch_size) + teaching
            }
            Workload::Sample => {
                total + 2 * config.n_layer * config.kv_width() * config.block_size + arena(0, ForwardMode::Inference, 1)
            }
        };
        Ok(4 * elements as u64)
    }
}
