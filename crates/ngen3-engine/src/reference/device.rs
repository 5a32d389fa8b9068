//! [`ReferenceDevice`]: opens models in the reference engine and computes the memory that they need.

use crate::PASS_TOKENS;
use std::time::{Duration, Instant};

use ngen3_model::{Config, LoraList, ParamList};

use super::layers::linear_forward;
use super::teacher::ReferenceTeacher;
use super::trainer::Reference;
use crate::{Device, Dtype, Error, Options, Quant, Teacher, Trainer, Workload};

/// Plain loops on one CPU thread, in f32 only. Ignores [`Options::recompute`].
#[derive(Clone, Copy, Debug, Default)]
pub struct ReferenceDevice;

/// Checks that the options are supported: f32, not quantised.
fn check(options: Options) -> Result<(), Error> {
    check_dtype(options.dtype)?;
    match options.quant {
        Quant::None => Ok(()),
        Quant::Int8 => Err(Error::Unsupported("int8 weights")),
        Quant::Int4 => Err(Error::Unsupported("int4 weights")),
    }
}

fn check_dtype(dtype: Dtype) -> Result<(), Error> {
    match dtype {
        Dtype::Auto | Dtype::F32 => Ok(()),
        Dtype::Bf16 => {
            Err(Error::Input("dtype bf16 is not supported by the reference engine: expected auto or f32".into()))
        }
    }
}

impl Device for ReferenceDevice {
    fn name(&self) -> &'static str {
        "reference"
    }

    fn open(&self, config: Config, params: Vec<f32>, options: Options) -> Result<Box<dyn Trainer>, Error> {
        check(options)?;
        Ok(Box::new(Reference::new(config, params)?))
    }

    fn open_teacher(&self, config: Config, params: Vec<f32>, options: Options) -> Result<Box<dyn Teacher>, Error> {
        check(options)?;
        Ok(Box::new(ReferenceTeacher::new(config, params)?))
    }

    fn memory(&self, config: &Config, workload: Workload<'_>, _: Options) -> Result<u64, Error> {
        let total = ParamList::new(config).total();
        let numbers = match workload {
            // Parameters, gradients and two moments.
            Workload::Train { batch_size } => 4 * total + pass_numbers(config, batch_size, 0),
            Workload::Adapt { batch_size, lora } => {
                let adapters = LoraList::new(config, lora).map_err(|e| Error::Input(e.to_string()))?.total();
                total + 4 * adapters + pass_numbers(config, batch_size, lora.rank)
            }
            Workload::Distill { batch_size, teacher, .. } => {
                let passes = [config, teacher].map(|config| pass_numbers(config, batch_size, 0));
                4 * total + ParamList::new(teacher).total() + passes[0] + passes[1]
            }
            // A prompt of `block_size` tokens in one pass, and its keys and values.
            Workload::Sample => {
                4 * total + pass_numbers(config, 1, 0) + 2 * config.n_layer * config.kv_width() * config.block_size
            }
        };
        Ok(4 * numbers as u64)
    }

    fn product_gflops(&self, dtype: Dtype, _: usize, [m, k, n]: [usize; 3]) -> Result<f64, Error> {
        check_dtype(dtype)?;
        let (a, b) = (vec![1.0; m * k], vec![1.0; n * k]);
        let (start, mut best) = (Instant::now(), Duration::MAX);
        while start.elapsed() < Duration::from_millis(250) {
            let product = Instant::now();
            std::hint::black_box(linear_forward(&a, std::hint::black_box(&b), &[], k));
            best = best.min(product.elapsed());
        }
        Ok((2 * m * k * n) as f64 / best.as_secs_f64() / 1e9)
    }
}

/// Returns the number of values in the activations of the largest pass and their gradients, for batches of `batch_size`
/// sequences of `block_size` tokens.
fn pass_numbers(config: &Config, batch_size: usize, rank: usize) -> usize {
    let Config { n_layer, n_head, block_size, vocab_size, .. } = *config;
    let width = config.n_embd.max(config.q_width()).max(config.fc_width() / 4);
    let tokens = (PASS_TOKENS / block_size).clamp(1, batch_size.max(1)) * block_size;
    let block = 20 * width + n_head * block_size + 7 * rank;
    // The backward pass holds all gradients of one block at once, that of `qkv` in f64.
    tokens * (n_layer * block + 30 * width + 3 * vocab_size)
}
