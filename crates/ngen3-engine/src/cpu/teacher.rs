//! A model that only teaches.

use ngen3_model::Config;

use super::{CpuEngine, Options};
use crate::gemm::Precision;
use crate::{Batch, Error, TeacherModel};

/// A teacher on the CPU. Where products are in bf16 it keeps the weights of its layers in bf16 alone, laid out as products read
/// them: half the memory of a [`CpuEngine`], the same numbers, sooner.
#[derive(Debug)]
pub struct CpuTeacher {
    engine: CpuEngine,
}

impl CpuTeacher {
    /// A teacher with these parameters, `[total]` in the order of [`ngen3_model::ParamList`].
    ///
    /// # Errors
    /// As [`CpuEngine::new`]; [`Error::Memory`] when its weights do not fit a second time.
    pub fn new(config: Config, params: Vec<f32>, options: Options) -> Result<Self, Error> {
        let mut engine = CpuEngine::new(config, params, options)?;
        if engine.model.precision == Precision::Bf16 {
            let CpuEngine { model, pool, .. } = &mut engine;
            pool.install(|| model.pack())?;
        }
        Ok(Self { engine })
    }
}

impl TeacherModel for CpuTeacher {
    fn wte(&self) -> &[f32] {
        self.engine.wte()
    }

    fn hidden(&mut self, batch: &Batch) -> Result<Vec<f32>, Error> {
        self.engine.hidden(batch)
    }

    fn top_k(&mut self, batch: &Batch, k: usize, temperature: f32) -> Result<(Vec<u32>, Vec<f32>), Error> {
        self.engine.top_k(batch, k, temperature)
    }
}
