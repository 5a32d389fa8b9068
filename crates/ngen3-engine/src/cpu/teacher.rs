//! A model that only teaches.

use ngen3_model::Config;

use super::{CpuEngine, Options, Quant};
use crate::gemm::Precision;
use crate::gemm::tiles::int8;
use crate::{Batch, Error, Teacher, TeacherModel};

/// A teacher on the CPU. Where products are in bf16 it keeps the weights of its layers in bf16 alone, laid out as products read
/// them: half the memory of a [`CpuEngine`], the same numbers, sooner. With [`Quant::Int8`] it keeps them in int8, a quarter,
/// and rounds what they and the embeddings are multiplied with to int8 too, each token by itself: sooner still, and what it says
/// changes by a little.
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
        if options.quant == Quant::Int8 && config.n_embd > int8::MOST / 4 {
            let (width, most) = (config.n_embd, int8::MOST / 4);
            return Err(Error::Input(format!("a teacher of width {width} in int8, whose sums fit up to {most}")));
        }
        let mut engine = CpuEngine::new(config, params, options)?;
        if engine.model.precision == Precision::Bf16 || options.quant == Quant::Int8 {
            let CpuEngine { model, pool, .. } = &mut engine;
            pool.install(|| model.pack(options.quant))?;
        }
        Ok(Self { engine })
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
        self.engine.top_k(batch, k, temperature)
    }
}
