//! A model that only teaches.

use ngen3_model::{Config, ParamList};

use super::CpuEngine;
use super::arena::{self, Keep, Walk};
use super::batch_plan::{TEACHER_TOKENS, largest_pass};
use crate::gemm::Precision;
use crate::gemm::tiles::int8;
use ngen3_engine::{Batch, Error, Teacher, TeacherModel};
use ngen3_engine::{Options, Quant};

/// A teacher on the CPU. Where products are in bf16 it keeps the weights of its layers in bf16 alone, laid out as products read
/// them: the same numbers as a [`CpuEngine`]'s, sooner, and in half the memory for these weights. With [`Quant::Int8`] it keeps
/// them in int8, a quarter, and rounds what they are multiplied with to int8 too, each token by itself; so it does for the final
/// projection. Where the processor has AVX512-VNNI that is sooner still, and what it says changes by a little.
#[derive(Debug)]
pub struct CpuTeacher {
    engine: CpuEngine,
}

impl CpuTeacher {
    /// A teacher with these parameters, `[total]` in the order of [`ngen3_model::ParamList`].
    ///
    /// # Errors
    /// As [`CpuEngine::new`]; [`Error::Memory`] when its weights do not fit a second time; [`Error::Input`] when it is too wide for
    /// int8.
    pub fn new(config: Config, params: Vec<f32>, options: Options) -> Result<Self, Error> {
        if options.quant == Quant::Int8 {
            int8::check_width(config.n_embd, 4)?;
        }
        // Rounded once, as products read them; the embeddings that tokens begin as are not.
        let mut engine = CpuEngine::new(config, params, Options { quant: Quant::None, ..options })?;
        if engine.model.precision == Precision::Bf16 || options.quant == Quant::Int8 {
            let CpuEngine { model, pool, .. } = &mut engine;
            pool.install(|| model.pack(options.quant))?;
        }
        Ok(Self { engine })
    }

    /// Bytes of memory that a teacher of this shape takes while it teaches, with batches of `rows` rows of a whole block.
    pub fn bytes(config: &Config, rows: usize, options: Options) -> u64 {
        let (list, precision) = (ParamList::new(config), super::precision(options.dtype));
        let weights = super::layer_weights(&list);
        let layers = match (options.quant, precision) {
            (Quant::Int8, _) => weights,
            (Quant::None, Precision::Bf16) => 2 * weights,
            (Quant::None, Precision::F32) => 4 * weights,
        };
        let tokens = largest_pass(rows, config.block_size, TEACHER_TOKENS);
        let walk = Walk { keep: Keep::Nothing, loss: false };
        let arena = arena::numbers(config, precision, 0, tokens, super::threads(options), walk);
        (4 * (list.total() - weights + arena)).saturating_add(layers) as u64
    }
}

impl TeacherModel for CpuTeacher {
    fn says<'a>(&'a self, hidden: &'a [f32]) -> Teacher<'a> {
        self.engine.says(hidden)
    }

    fn hidden(&mut self, batch: &Batch) -> Result<Vec<f32>, Error> {
        self.engine.hidden(batch)
    }

    fn top_k(&mut self, batch: &Batch, k: usize, temperature: f32) -> Result<(Vec<u32>, Vec<f32>), Error> {
        let CpuEngine { model, pool, .. } = &mut self.engine;
        pool.install(|| model.pack_head())?;
        self.engine.top_k(batch, k, temperature)
    }
}
