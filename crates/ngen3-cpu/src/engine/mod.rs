//! The engine on the CPU: one file for each layer with its forward beside its backward, and [`CpuEngine`], which walks
//! through them.
//!
//! Read `model.rs` for the order of things, `arena.rs` for where activations live, then whichever layer you like.

mod arena;
pub(crate) mod batch_plan;
mod decode;
mod distill;
mod model;
mod teacher;

use std::borrow::Cow;

use ngen3_engine::{
    AdamW, Backward, Batch, Decoder, Distill, DistillLoss, Dtype, Engine, Error, IGNORE, Options, Quant, Slot, Teacher,
    TeacherModel,
};
use ngen3_model::{BlockRanges, Config, Lora, LoraList, ParamList, Target};
use rayon::ThreadPool;

use crate::base::memory::Buffer;
use crate::gemm::{Precision, tiles};
use crate::layers::lora::Adapters;
use crate::layers::{adamw, loss};
use arena::{Arena, Keep, Walk};
use batch_plan::{PASS_TOKENS, Plan, TEACHER_TOKENS, largest_pass};
use model::{Drops, Model, Passes};
pub use teacher::CpuTeacher;

/// What products round their operands to with this choice, on this processor.
pub(crate) fn precision(dtype: Dtype) -> Precision {
    match dtype {
        Dtype::Auto if tiles::kernel::available() => Precision::Bf16,
        Dtype::Auto | Dtype::F32 => Precision::F32,
        Dtype::Bf16 => Precision::Bf16,
    }
}

/// What a pass forward keeps for its backward.
fn keep(options: &Options) -> Keep {
    if options.recompute { Keep::Inputs } else { Keep::All }
}

/// A model, its gradients and its optimizer on the CPU.
#[derive(Debug)]
pub struct CpuEngine {
    model: Model,
    quant: Quant,
    pool: ThreadPool,
    /// As many as what learns, as are the two below; empty until training needs them.
    grads: Buffer,
    exp_avg: Buffer,
    exp_avg_sq: Buffer,
    arena: Arena,
    plan: Plan,
    /// The logits of a block of tokens, for distilling.
    logits: Buffer,
}

impl CpuEngine {
    /// An engine over these parameters, `[total]` in the order of [`ParamList`].
    ///
    /// # Errors
    /// [`Error::Input`] when the shape is invalid or `params` has another length, [`Error::Threads`] when the threads cannot
    /// be started.
    pub fn new(config: Config, params: Vec<f32>, options: Options) -> Result<Self, Error> {
        config.validate().map_err(|e| Error::Input(e.to_string()))?;
        let list = ParamList::new(&config);
        if params.len() != list.total() {
            return Err(Error::Input(format!("{} parameters for a model of {}", params.len(), list.total())));
        }
        let precision = precision(options.dtype);
        if precision == Precision::Bf16 && !tiles::kernel::available() {
            return Err(Error::Input("this processor has no AVX512-BF16: use --dtype f32".into()));
        }
        let pool = pool(options.threads)?;
        let mut model = Model { config, list, precision, keep: keep(&options), params, adapters: None, packed: None };
        if options.quant == Quant::Int8 {
            model.round_to_int8();
        }
        Ok(Self {
            model,
            quant: options.quant,
            pool,
            grads: Buffer::default(),
            exp_avg: Buffer::default(),
            exp_avg_sq: Buffer::default(),
            arena: Arena::default(),
            plan: Plan::default(),
            logits: Buffer::default(),
        })
    }

    /// What the operands of products are rounded to.
    pub fn dtype(&self) -> Dtype {
        match self.model.precision {
            Precision::F32 => Dtype::F32,
            Precision::Bf16 => Dtype::Bf16,
        }
    }

    /// Puts low-rank adapters beside the model's linear layers, `params` in the order of [`LoraList`]. From now on they learn
    /// and nothing else does, and every [`Slot`] is theirs, `[LoraList::total]`.
    ///
    /// # Errors
    /// [`Error::Input`] when the model cannot have them, `params` has another length, or there are adapters already.
    pub fn adapt(&mut self, lora: &Lora, params: Vec<f32>) -> Result<(), Error> {
        if self.model.adapters.is_some() {
            return Err(Error::Input("a model with adapters cannot take others before they are merged".into()));
        }
        self.model.adapters = Some(Adapters::new(&self.model.config, lora, params)?);
        self.forget();
        Ok(())
    }

    /// Adds the adapters, if there are any, to the weights that they stand beside. The model is then a plain one, all of
    /// which learns, decodes, and fills the slots.
    pub fn merge(&mut self) {
        let Self { model: Model { list, params, adapters, .. }, pool, .. } = self;
        if let Some(adapters) = adapters.take() {
            pool.install(|| adapters.merge_into(list, params));
            self.forget();
        }
    }

    /// The adapters' shape, if there are any.
    pub fn lora(&self) -> Option<&Lora> {
        self.model.adapters.as_ref().map(|adapters| &adapters.lora)
    }

    /// Lets go of the gradients and moments: what learns is another thing now.
    fn forget(&mut self) {
        self.grads = Buffer::default();
        self.exp_avg = Buffer::default();
        self.exp_avg_sq = Buffer::default();
    }

    /// Bytes of memory that training a model of this shape takes, with batches of `rows` rows of a whole block.
    pub fn training_bytes(config: &Config, rows: usize, options: Options) -> u64 {
        4 * (4 * ParamList::new(config).total() + arena_numbers(config, 0, rows, options)) as u64
    }

    /// Bytes of memory that training adapters beside such a model takes.
    ///
    /// # Errors
    /// [`Error::Input`] when it cannot have them.
    pub fn adapting_bytes(config: &Config, lora: &Lora, rows: usize, options: Options) -> Result<u64, Error> {
        let adapters = LoraList::new(config, lora).map_err(|e| Error::Input(e.to_string()))?.total();
        let arena = arena_numbers(config, lora.rank, rows, options);
        Ok(4 * (ParamList::new(config).total() + 4 * adapters + arena) as u64)
    }

    /// Bytes of memory that distilling a model of the shape `teacher`, rounded to `quant`, into one of the shape `config` takes, beside
    /// [`CpuTeacher::bytes`], with batches of `rows` rows of a whole block.
    pub fn distilling_bytes(config: &Config, teacher: &Config, quant: Quant, rows: usize, options: Options) -> u64 {
        let tokens = largest_pass(rows, config.block_size, PASS_TOKENS);
        let precision = precision(options.dtype);
        let arena = |keep, loss| arena::numbers(config, precision, 0, tokens, threads(options), Walk { keep, loss });
        // The plain loss is that of what is held out.
        let arena = arena(keep(&options), false).max(arena(Keep::Nothing, true));
        let loss = loss::distill_numbers(precision, loss::Sizes::of(config, tokens), teacher.n_embd, quant);
        let said = rows.saturating_mul(config.block_size).saturating_mul(teacher.n_embd);
        (4 * ParamList::new(config).total() + arena + loss).saturating_add(said).saturating_mul(4) as u64
    }

    /// Bytes of memory that sampling one text with a model of this shape takes: its parameters, what decoding reads instead of its
    /// weights, and a whole block of keys and values.
    pub fn sampling_bytes(config: &Config, options: Options) -> u64 {
        let list = ParamList::new(config);
        let weights = list.wte.len() + layer_weights(&list);
        let copies = match (options.quant, precision(options.dtype)) {
            (Quant::Int8, _) => weights,
            (Quant::None, Precision::Bf16) => 2 * weights,
            (Quant::None, Precision::F32) => 0,
        };
        (4 * list.total() + copies + 8 * config.n_layer * config.n_embd * config.block_size) as u64
    }

    /// Threads that compute.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// Checks a batch and plans how to take it through the layers, up to `most` tokens at a time.
    fn plan(&mut self, batch: &Batch, most: usize) -> Result<(), Error> {
        batch.check(&self.model.config)?;
        self.plan.make(batch, most);
        Ok(())
    }

    /// Checks that the planned batch has a gradient, and makes room for it.
    fn check_gradient(&mut self, batch: &Batch) -> Result<(), Error> {
        if batch.rows.iter().any(|row| row.continues) {
            return Err(Error::Input("rows that continue another have no gradient".into()));
        }
        batch.check_counted()?;
        self.reserve(false)
    }

    /// Takes the planned batch through `work` on the threads that compute.
    fn run<R: Send>(
        &mut self,
        batch: &Batch,
        work: impl FnOnce(&Model, Passes<'_>) -> Result<R, Error> + Send,
    ) -> Result<R, Error> {
        let threads = self.threads();
        let Self { model, pool, arena, plan, .. } = self;
        pool.install(|| work(model, Passes { batch, plan, threads, arena }))
    }

    /// Makes sure that the gradients and, for an update, the moments are there, zeros at first.
    fn reserve(&mut self, moments: bool) -> Result<(), Error> {
        let total = self.model.learned().1.len();
        let slots = [(&mut self.grads, true), (&mut self.exp_avg, moments), (&mut self.exp_avg_sq, moments)];
        for (slot, wanted) in slots {
            if wanted && slot.is_empty() {
                *slot = Buffer::zeros(total, "gradients and moments as long as the parameters")?;
            }
        }
        Ok(())
    }
}

/// Numbers in the arena of such a training.
fn arena_numbers(config: &Config, rank: usize, rows: usize, options: Options) -> usize {
    let tokens = largest_pass(rows, config.block_size, PASS_TOKENS);
    let walk = Walk { keep: keep(&options), loss: true };
    arena::numbers(config, precision(options.dtype), rank, tokens, threads(options), walk)
}

/// Numbers in the weights of the blocks' linear layers.
fn layer_weights(list: &ParamList) -> usize {
    let linear = |block: &BlockRanges| Target::ALL.map(|target| block.linear(target).0.len()).iter().sum::<usize>();
    list.blocks.iter().map(linear).sum()
}

/// Threads that compute with these options.
fn threads(options: Options) -> usize {
    match options.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    }
}

/// What a pass backward drops.
fn drops(backward: &Backward) -> Result<Drops, Error> {
    let Backward { dropout, seed, .. } = *backward;
    if !(0.0..1.0).contains(&dropout) {
        return Err(Error::Input(format!("dropout is {dropout}; it must be at least 0 and below 1")));
    }
    Ok(Drops { p: dropout, seed })
}

/// The threads that compute; 0 is one for each core.
pub(crate) fn pool(threads: usize) -> Result<ThreadPool, Error> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|i| format!("ngen3-{i}"))
        .build()
        .map_err(|e| Error::Threads(e.to_string()))
}

impl Engine for CpuEngine {
    fn config(&self) -> &Config {
        &self.model.config
    }

    fn losses(&mut self, batch: &Batch) -> Result<Vec<f32>, Error> {
        let mut losses = Vec::with_capacity(batch.targets.len());
        self.plan(batch, PASS_TOKENS)?;
        self.run(batch, |model, passes| model.losses(passes, |counted| losses.extend_from_slice(counted)))?;
        let mut counted = losses.into_iter();
        let at = |&target: &u32| if target == IGNORE { 0.0 } else { counted.next().unwrap_or_default() };
        Ok(batch.targets.iter().map(at).collect())
    }

    fn forward_backward(&mut self, batch: &Batch, backward: Backward) -> Result<f32, Error> {
        self.plan(batch, PASS_TOKENS)?;
        let drops = drops(&backward)?;
        self.check_gradient(batch)?;
        let mut grads = std::mem::take(&mut self.grads);
        let loss = self.run(batch, |model, passes| model.forward_backward(passes, backward.weight, drops, &mut grads));
        self.grads = grads;
        loss
    }

    fn distill(
        &mut self,
        batch: &Batch,
        distill: &Distill<'_>,
        backward: Option<Backward>,
    ) -> Result<DistillLoss, Error> {
        self.plan(batch, PASS_TOKENS)?;
        distill.check(batch, &self.model.config)?;
        batch.check_counted()?;
        let drops = backward.as_ref().map(drops).transpose()?;
        if backward.is_some() {
            self.check_gradient(batch)?;
        }
        let (mut grads, mut logits) = (std::mem::take(&mut self.grads), std::mem::take(&mut self.logits));
        let loss = self.run(batch, |model, passes| {
            let backward = backward.zip(drops).map(|(backward, drops)| (backward.weight, drops, &mut grads[..]));
            model.distill(passes, distill, backward, &mut logits)
        });
        (self.grads, self.logits) = (grads, logits);
        loss
    }

    fn update(&mut self, adamw: &AdamW) -> Result<f32, Error> {
        self.reserve(true)?;
        let Self { model, pool, grads, exp_avg, exp_avg_sq, .. } = self;
        let (list, params) = model.learned_mut();
        Ok(pool.install(|| {
            let norm = adamw::grad_norm(grads);
            if !norm.is_finite() {
                grads.fill(0.0);
                return norm;
            }
            // As torch.nn.utils.clip_grad_norm_ has it.
            let clip = if adamw.grad_clip > 0.0 { (adamw.grad_clip / (norm + 1e-6)).min(1.0) } else { 1.0 };
            for param in list {
                let range = param.range();
                adamw::update(
                    adamw,
                    param.decays(),
                    clip,
                    &mut params[range.clone()],
                    &mut grads[range.clone()],
                    &mut exp_avg[range.clone()],
                    &mut exp_avg_sq[range],
                );
            }
            norm
        }))
    }

    fn read(&self, slot: Slot) -> Cow<'_, [f32]> {
        let values = match slot {
            Slot::Params => self.model.learned().1,
            Slot::Grads => &self.grads,
            Slot::ExpAvg => &self.exp_avg,
            Slot::ExpAvgSq => &self.exp_avg_sq,
        };
        if values.is_empty() { Cow::Owned(vec![0.0; self.model.learned().1.len()]) } else { Cow::Borrowed(values) }
    }

    fn write(&mut self, slot: Slot, values: &[f32]) -> Result<(), Error> {
        assert_eq!(values.len(), self.model.learned().1.len(), "a flat array of every parameter that learns");
        if slot != Slot::Params {
            self.reserve(slot != Slot::Grads)?;
        }
        let target = match slot {
            Slot::Params => self.model.learned_mut().1,
            Slot::Grads => &mut self.grads,
            Slot::ExpAvg => &mut self.exp_avg,
            Slot::ExpAvgSq => &mut self.exp_avg_sq,
        };
        target.copy_from_slice(values);
        Ok(())
    }

    fn merged(&self) -> Cow<'_, [f32]> {
        let Some(adapters) = &self.model.adapters else { return Cow::Borrowed(&self.model.params) };
        let mut params = self.model.params.clone();
        self.pool.install(|| adapters.merge_into(&self.model.list, &mut params));
        Cow::Owned(params)
    }

    fn decoder(&self, rows: usize) -> Result<Box<dyn Decoder + '_>, Error> {
        if self.model.adapters.is_some() {
            return Err(Error::Input("a model with adapters decodes once they are merged".into()));
        }
        Ok(Box::new(decode::CpuDecoder::new(&self.model, &self.pool, self.quant, rows)?))
    }
}

impl TeacherModel for CpuEngine {
    fn says<'a>(&'a self, hidden: &'a [f32]) -> Teacher<'a> {
        Teacher::Head { hidden, wte: self.model.wte(), quant: self.model.quant() }
    }

    fn hidden(&mut self, batch: &Batch) -> Result<Vec<f32>, Error> {
        self.plan(batch, TEACHER_TOKENS)?;
        let mut hidden = Vec::with_capacity(batch.inputs.len() * self.model.config.n_embd);
        self.run(batch, |model, passes| model.hidden(passes, |rows| hidden.extend_from_slice(rows)))?;
        Ok(hidden)
    }

    fn top_k(&mut self, batch: &Batch, k: usize, temperature: f32) -> Result<(Vec<u32>, Vec<f32>), Error> {
        self.plan(batch, TEACHER_TOKENS)?;
        if k == 0 || k > self.model.config.vocab_size {
            return Err(Error::Input(format!("the {k} likeliest tokens of {}", self.model.config.vocab_size)));
        }
        if !(temperature > 0.0 && temperature.is_finite()) {
            return Err(Error::Input(format!("temperature is {temperature}; it must be a number above 0")));
        }
        let (mut ids, mut log_probs) = (vec![0; batch.inputs.len() * k], vec![0.0; batch.inputs.len() * k]);
        self.run(batch, |model, passes| model.top_k(passes, temperature, &mut ids, &mut log_probs))?;
        Ok((ids, log_probs))
    }
}
