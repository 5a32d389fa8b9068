//! [`CpuTeacher`]: a forward-only model for distillation.

use ngen3_engine::{Batch, Error, Options, Quant, Teacher, TopK, check_temperature};
use ngen3_model::Config;

use super::batch_plan::TEACHER_TOKENS;
use super::runner::Runner;
use crate::gemm::Precision;
use crate::gemm::tiles::int8;
use crate::layers::loss;

/// Teacher on the CPU. With bf16 products, it keeps the weights of its layers only in packed bf16: the same results as a
/// [`super::CpuEngine`], faster, with half the memory for these weights. With [`Quant::Int8`] it keeps them in int8, a quarter
/// of the memory, and quantises the activations of each token too, also for the final projection. This changes the logits
/// slightly, and is faster still on processors with AVX512-VNNI. [`Quant::Int4`] rounds the weights to 4 bits, and leaves products
/// and memory as they are.
#[derive(Debug)]
pub struct CpuTeacher {
    runner: Runner,
    /// Output of `ln_f` for the latest batch, `[tokens, width]`.
    hidden: Vec<f32>,
}

impl CpuTeacher {
    /// Creates a teacher with these parameters, `[total]` in the order of [`ngen3_model::ParamList`].
    ///
    /// # Errors
    /// As [`super::CpuEngine::new`]; [`Error::Memory`] if the packed weights do not fit in memory; [`Error::Input`] if the
    /// model is too wide for int8.
    pub fn new(config: Config, params: Vec<f32>, options: Options) -> Result<Self, Error> {
        if options.quant == Quant::Int8 {
            int8::check_width(config.n_embd.max(config.q_width()).max(config.inner_width()), 1)?;
        }
        // Packing to int8 rounds the weights once, as products read them. The input embeddings stay unrounded.
        let (rounding, packing) = match options.quant {
            Quant::Int8 => (Quant::None, Quant::Int8),
            quant => (quant, Quant::None),
        };
        let mut runner = Runner::new(config, params, Options { quant: rounding, ..options })?;
        if runner.model.precision == Precision::Bf16 || packing == Quant::Int8 {
            let Runner { model, pool, .. } = &mut runner;
            pool.install(|| model.pack(packing))?;
        }
        Ok(Self { runner, hidden: Vec::new() })
    }

    /// Runs a batch and returns the teacher's output, for a student with this vocabulary size.
    ///
    /// # Errors
    /// As [`Batch::check`]; [`Error::Input`] if the vocabulary sizes differ.
    pub(super) fn output(&mut self, batch: &Batch, vocab_size: usize) -> Result<loss::Teacher<'_>, Error> {
        let Self { runner, hidden } = self;
        let own = runner.model.config.vocab_size;
        if own != vocab_size {
            return Err(Error::Input(format!(
                "teacher vocabulary: expected {vocab_size} tokens as in the student, got {own}"
            )));
        }
        runner.plan(batch, TEACHER_TOKENS)?;
        hidden.clear();
        runner.run(batch, |model, passes| model.hidden(passes, |rows| hidden.extend_from_slice(rows)))?;
        Ok(loss::Teacher::Head { hidden, wte: runner.model.lm_head(), quant: runner.model.quant() })
    }
}

impl Teacher for CpuTeacher {
    fn top_k(&mut self, batch: &Batch, k: usize, temperature: f32) -> Result<TopK, Error> {
        let Runner { model, pool, .. } = &mut self.runner;
        pool.install(|| model.pack_head())?;
        self.runner.plan(batch, TEACHER_TOKENS)?;
        let vocab_size = self.runner.model.config.vocab_size;
        if k == 0 || k > vocab_size {
            return Err(Error::Input(format!("k is {k}: expected 1 to {vocab_size}, the vocabulary size")));
        }
        check_temperature(temperature)?;
        let (mut ids, mut log_probs) = (vec![0; batch.inputs.len() * k], vec![0.0; batch.inputs.len() * k]);
        self.runner.run(batch, |model, passes| model.top_k(passes, temperature, &mut ids, &mut log_probs))?;
        Ok(TopK { k, ids, log_probs })
    }
}
