//! [`CpuTeacher`]: a model that only teaches.

use ngen3_engine::{Batch, Error, Options, Quant, Teacher, TopK, check_temperature};
use ngen3_model::Config;

use super::batch_plan::TEACHER_TOKENS;
use super::runner::Runner;
use crate::gemm::Precision;
use crate::gemm::tiles::int8;
use crate::layers::loss;

/// A teacher on the CPU. Where products are in bf16 it keeps the weights of its layers in bf16 alone, laid out as products read
/// them: the same numbers as a [`super::CpuEngine`]'s, sooner, and in half the memory for these weights. With [`Quant::Int8`] it
/// keeps them in int8, a quarter, and rounds what they are multiplied with to int8 too, each token by itself; so it does for the
/// final projection. Where the processor has AVX512-VNNI that is sooner still, and its logits change by a little.
#[derive(Debug)]
pub struct CpuTeacher {
    runner: Runner,
    /// `ln_f`'s output for the latest batch, `[tokens, width]`.
    hidden: Vec<f32>,
}

impl CpuTeacher {
    /// A teacher with these parameters, `[total]` in the order of [`ngen3_model::ParamList`].
    ///
    /// # Errors
    /// As [`super::CpuEngine::new`]; [`Error::Memory`] when its weights do not fit a second time; [`Error::Input`] when it is too
    /// wide for int8.
    pub fn new(config: Config, params: Vec<f32>, options: Options) -> Result<Self, Error> {
        if options.quant == Quant::Int8 {
            int8::check_width(config.n_embd, 4)?;
        }
        // Rounded once, as products read them; the embeddings that tokens begin as are not.
        let mut runner = Runner::new(config, params, Options { quant: Quant::None, ..options })?;
        if runner.model.precision == Precision::Bf16 || options.quant == Quant::Int8 {
            let Runner { model, pool, .. } = &mut runner;
            pool.install(|| model.pack(options.quant))?;
        }
        Ok(Self { runner, hidden: Vec::new() })
    }

    /// Its output for a batch, for a student of that vocabulary.
    ///
    /// # Errors
    /// As [`Batch::check`]; [`Error::Input`] for another vocabulary.
    pub(super) fn output(&mut self, batch: &Batch, vocab_size: usize) -> Result<loss::Teacher<'_>, Error> {
        let Self { runner, hidden } = self;
        let own = runner.model.config.vocab_size;
        if own != vocab_size {
            return Err(Error::Input(format!("a teacher with {own} tokens for a vocabulary of {vocab_size}")));
        }
        runner.plan(batch, TEACHER_TOKENS)?;
        hidden.clear();
        runner.run(batch, |model, passes| model.hidden(passes, |rows| hidden.extend_from_slice(rows)))?;
        Ok(loss::Teacher::Head { hidden, wte: runner.model.wte(), quant: runner.model.quant() })
    }
}

impl Teacher for CpuTeacher {
    fn top_k(&mut self, batch: &Batch, k: usize, temperature: f32) -> Result<TopK, Error> {
        let Runner { model, pool, .. } = &mut self.runner;
        pool.install(|| model.pack_head())?;
        self.runner.plan(batch, TEACHER_TOKENS)?;
        let vocab_size = self.runner.model.config.vocab_size;
        if k == 0 || k > vocab_size {
            return Err(Error::Input(format!("the {k} likeliest tokens of {vocab_size}")));
        }
        check_temperature(temperature)?;
        let (mut ids, mut log_probs) = (vec![0; batch.inputs.len() * k], vec![0.0; batch.inputs.len() * k]);
        self.runner.run(batch, |model, passes| model.top_k(passes, temperature, &mut ids, &mut log_probs))?;
        Ok(TopK { k, ids, log_probs })
    }
}
