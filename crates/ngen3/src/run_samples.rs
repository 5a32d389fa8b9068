//! Samples of a model while it is trained.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use ngen3_data::Tokenizer;
use ngen3_engine::Model;
use ngen3_generate::Sampling;
use ngen3_model::CheckpointMeta;
use ngen3_train::Job;

use crate::error_line::one_line;
use crate::model;
use crate::progress::write_line;
use crate::streaming::Answer;

/// Temperature of the samples.
const TEMPERATURE: f32 = 0.8;

/// Writes the samples of a run: each begins a document, with the run's seed.
pub struct RunSampler {
    tokenizer: Tokenizer,
    prompt: Vec<u32>,
    length: usize,
    sampling: Sampling,
    stop: Arc<AtomicBool>,
}

impl RunSampler {
    /// Prepares the samples of a run. Returns `None` if the run wants no samples or, after a note, if it cannot have any.
    ///
    /// # Errors
    /// A tokenizer that does not fit the model, or cannot begin a text.
    pub fn new(job: &Job, stop: &Arc<AtomicBool>) -> anyhow::Result<Option<Self>> {
        let length = job.settings.eval_sample;
        if length == 0 {
            return Ok(None);
        }
        if job.adapters.is_some() {
            write_line("note: --eval_sample has no effect with --lora_rank: adapters are merged after training");
            return Ok(None);
        }
        let meta = CheckpointMeta { tokenizer: job.data.tokenizer.clone(), ..CheckpointMeta::default() };
        let Some(tokenizer) = model::tokenizer(&job.data.path, &job.config, &meta)? else {
            write_line("note: --eval_sample has no effect: the tokenizer of the data is unknown");
            return Ok(None);
        };
        let prompt = tokenizer.encode_prompt("")?;
        if prompt.is_empty() {
            write_line("note: --eval_sample has no effect: the vocabulary has no token to begin a text with");
            return Ok(None);
        }
        let sampling = Sampling { temperature: TEMPERATURE, seed: job.settings.seed, ..Sampling::default() };
        Ok(Some(Self { tokenizer, prompt, length, sampling, stop: Arc::clone(stop) }))
    }

    /// Generates a text; `None`, with a note, if the model cannot.
    pub fn sample(&self, model: &dyn Model) -> Option<String> {
        let Self { tokenizer, prompt, length, sampling, stop } = self;
        let answer = Answer { prompt, length: *length, end: tokenizer.eot(), stops: &[], sampling: *sampling };
        let mut text = String::new();
        let made = answer.make(model, tokenizer, stop, &mut |piece| {
            text.push_str(piece);
            Ok(())
        });
        match made {
            Ok(whole) => whole.then_some(text),
            Err(error) => {
                write_line(&format!("note: no sample (--eval_sample): {}", one_line(&error)));
                None
            }
        }
    }
}
