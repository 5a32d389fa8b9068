//! [`Cpu`]: opens models on the CPU and estimates their memory.

use std::time::Duration;

use ngen3_engine::{Device, Dtype, Error, Model, Options, PASS_TOKENS, Quant, Teacher, Trainer, Workload};
use ngen3_model::gguf::TensorType;
use ngen3_model::{Config, LoraList, ParamList, StoredWeight};

use super::arena::{ArenaSpec, Checkpointing, ForwardMode};
use super::batch_plan::{TEACHER_TOKENS, largest_pass};
use super::precision::{precision, threads};
use super::teacher::CpuTeacher;
use super::trainer::CpuEngine;
use super::weights::num_layer_weights;
use crate::base::profile;
use crate::bench::{product_gflops, read_gbps};
use crate::gemm::Precision;
use crate::gemm::groups::Format;
use crate::layers::loss;

/// The CPU that the program runs on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu;

impl Device for Cpu {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn open(&self, config: Config, params: Vec<f32>, options: Options) -> Result<Box<dyn Trainer>, Error> {
        Ok(Box::new(CpuEngine::new(config, params, options)?))
    }

    fn open_teacher(&self, config: Config, params: Vec<f32>, options: Options) -> Result<Box<dyn Teacher>, Error> {
        Ok(Box::new(CpuTeacher::new(config, params, options)?))
    }

    fn multiplies(&self, tensor_type: TensorType) -> bool {
        Format::of(tensor_type).is_some()
    }

    fn open_stored(
        &self,
        config: Config,
        params: Vec<f32>,
        stored: Vec<Option<StoredWeight>>,
        options: Options,
    ) -> Result<Box<dyn Model>, Error> {
        Ok(Box::new(CpuEngine::with_stored(config, params, stored, options)?))
    }

    fn read_gbps(&self, threads: usize) -> Result<f64, Error> {
        read_gbps(threads)
    }

    fn memory(&self, config: &Config, workload: Workload<'_>, options: Options) -> Result<u64, Error> {
        let total = ParamList::new(config).total();
        Ok(match workload {
            // Parameters, gradients and the two AdamW moments.
            Workload::Train { batch_size } => 4 * (4 * total + step_numbers(config, 0, batch_size, options)) as u64,
            Workload::Adapt { batch_size, lora } => {
                let adapters = LoraList::new(config, lora).map_err(|e| Error::Input(e.to_string()))?.total();
                4 * (total + 4 * adapters + step_numbers(config, lora.rank, batch_size, options)) as u64
            }
            Workload::Distill { batch_size, teacher, quant } => {
                let teaching = teacher_bytes(teacher, batch_size, Options { quant, ..options });
                // The teacher is loaded completely before it is packed.
                let loading = 4 * (ParamList::new(teacher).total() + total) as u64;
                student_bytes(config, teacher, quant, batch_size, options).saturating_add(teaching).max(loading)
            }
            Workload::Sample => sample_bytes(config, options),
        })
    }

    fn take_profile(&self) -> Vec<(&'static str, Duration)> {
        profile::take().map(|(part, time)| (part.name(), time)).to_vec()
    }

    fn product_gflops(&self, dtype: Dtype, threads: usize, shape: [usize; 3]) -> Result<f64, Error> {
        product_gflops(dtype, threads, shape)
    }
}

/// Length in f32 of the arena of a training step.
fn step_numbers(config: &Config, rank: usize, batch_size: usize, options: Options) -> usize {
    let tokens = largest_pass(batch_size, config.block_size, PASS_TOKENS);
    let spec =
        ArenaSpec { config, precision: precision(options.dtype), rank, threads: threads(options), frozen: false };
    spec.numbers(tokens, ForwardMode { keep: Checkpointing::of(options), loss: true })
}

/// Memory of a student with the shape `config`, in bytes, without its teacher.
fn student_bytes(config: &Config, teacher: &Config, quant: Quant, batch_size: usize, options: Options) -> u64 {
    let tokens = largest_pass(batch_size, config.block_size, PASS_TOKENS);
    let precision = precision(options.dtype);
    let spec = ArenaSpec { config, precision, rank: 0, threads: threads(options), frozen: false };
    // Evaluation uses the plain loss.
    let arena = spec
        .numbers(tokens, ForwardMode { keep: Checkpointing::of(options), loss: false })
        .max(spec.numbers(tokens, ForwardMode { keep: Checkpointing::Nothing, loss: true }));
    let loss = loss::distill_numbers(precision, loss::Sizes::of(config, tokens), teacher.n_embd, quant);
    let hidden = batch_size.saturating_mul(config.block_size).saturating_mul(teacher.n_embd);
    (4 * ParamList::new(config).total() + arena + loss).saturating_add(hidden).saturating_mul(4) as u64
}

/// Memory of a packed teacher during distillation, in bytes.
fn teacher_bytes(config: &Config, batch_size: usize, options: Options) -> u64 {
    let (list, precision) = (ParamList::new(config), precision(options.dtype));
    let weights = num_layer_weights(&list);
    let layers = match (options.quant, precision) {
        (Quant::Int8, _) => weights,
        (Quant::None | Quant::Int4, Precision::Bf16) => 2 * weights,
        (Quant::None | Quant::Int4, Precision::F32) => 4 * weights,
    };
    let tokens = largest_pass(batch_size, config.block_size, TEACHER_TOKENS);
    let spec = ArenaSpec { config, precision, rank: 0, threads: threads(options), frozen: false };
    let arena = spec.numbers(tokens, ForwardMode { keep: Checkpointing::Nothing, loss: false });
    (4 * (list.total() - weights + arena)).saturating_add(layers) as u64
}

/// Memory of a model that generates one sequence, in bytes: parameters, the narrower weight copies for decoding, and a full
/// key-value cache.
fn sample_bytes(config: &Config, options: Options) -> u64 {
    let list = ParamList::new(config);
    let weights = list.lm_head.len() + num_layer_weights(&list);
    let copies = match (options.quant, precision(options.dtype)) {
        (Quant::Int8, _) => weights,
        // A float16 scale for 32 of them.
        (Quant::Int4, _) => weights / 2 + weights / 16,
        (Quant::None, Precision::Bf16) => 2 * weights,
        (Quant::None, Precision::F32) => 0,
    };
    (4 * list.total() + copies + 8 * config.n_layer * config.kv_width() * config.block_size) as u64
}
