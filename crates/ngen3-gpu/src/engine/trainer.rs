//! [`GpuTrainer`]: a model with its gradients and moments.

use std::any::Any;
use std::borrow::Cow;
use std::sync::Arc;

use ngen3_engine::{
    AdamW, Backward, Batch, ComputeInfo, Decoder, DistillConfig, DistillLoss, Distiller, Dtype, Error, Model, Muon,
    PassDropout, Slot, TeacherSource, Trainer, pass_seed, passes,
};
use ngen3_model::{Config, Lora, LoraList, Param};

use super::arena::{Arena, ForwardMode, Inputs};
use super::block::Run;
use super::decoder::GpuDecoder;
use super::distill::{self, Source};
use super::layout::{Array, Layout};
use super::network::{Adapters, Network};
use super::teacher::GpuTeacher;
use crate::device::{Buffer, Context, Recorder};
use crate::kernels::optimizer::{self, Arrays, PARTIALS};

/// Trainer on a GPU.
pub struct GpuTrainer {
    network: Network,
    inputs: Inputs,
    arena: Option<Arena>,
    mode: ForwardMode,
    grads: Option<Array>,
    moments: Option<[Array; 2]>,
    muon: Option<MuonMemory>,
    distill: Option<distill::Memory>,
    /// Most elements of a segment.
    most: usize,
}

/// Working memory of Muon.
struct MuonMemory {
    matrices: [Buffer; 2],
    squares: [Buffer; 2],
    partials: Buffer,
}

impl GpuTrainer {
    /// Moves a model's parameters, `[total]`, to a device.
    ///
    /// # Errors
    /// As [`Network::new`].
    pub fn new(
        context: &Arc<Context>,
        config: Config,
        params: &[f32],
        recompute: bool,
        most: usize,
    ) -> Result<Self, Error> {
        Ok(Self {
            network: Network::new(context, config, params, most)?,
            inputs: Inputs::default(),
            arena: None,
            mode: if recompute { ForwardMode::Recompute } else { ForwardMode::Training },
            grads: None,
            moments: None,
            muon: None,
            distill: None,
            most,
        })
    }

    /// Checks a batch that has a backward pass.
    fn check(&self, batch: &Batch, backward: &Backward<'_>) -> Result<(), Error> {
        batch.check(&self.network.config)?;
        let dropout = backward.dropout;
        if !(0.0..1.0).contains(&dropout) {
            return Err(Error::Input(format!("dropout is {dropout}: expected 0 ≤ dropout < 1")));
        }
        if batch.sequences.iter().any(|sequence| sequence.continues) {
            return Err(Error::Input("sequences that continue another have no gradient".into()));
        }
        Ok(())
    }

    fn allocate_grads(&mut self) -> Result<(), Error> {
        if self.grads.is_none() {
            let (layout, _) = self.network.learned();
            self.grads = Some(Array::new(&self.network.context, "gradients", layout)?);
        }
        Ok(())
    }

    fn allocate_moments(&mut self) -> Result<(), Error> {
        if self.moments.is_none() {
            let (layout, _) = self.network.learned();
            let array = || Array::new(&self.network.context, "moments", layout);
            self.moments = Some([array()?, array()?]);
        }
        Ok(())
    }

    /// Allocates Muon's memory for its largest matrix.
    fn allocate_muon(&mut self, matrices: &[(usize, usize, [usize; 2])]) -> Result<(), Error> {
        let len = matrices.iter().map(|(.., [rows, columns])| rows * columns).max().unwrap_or(1);
        let side = matrices.iter().map(|&(.., [rows, columns])| rows.min(columns)).max().unwrap_or(1);
        if self.muon.is_none() {
            let buffer = |len: &usize| self.network.context.buffer("Muon's matrices", *len);
            self.muon = Some(MuonMemory {
                matrices: [buffer(&len)?, buffer(&len)?],
                squares: [buffer(&(side * side))?, buffer(&(side * side))?],
                partials: buffer(&PARTIALS)?,
            });
        }
        Ok(())
    }

    fn forget_training(&mut self) {
        (self.arena, self.grads, self.moments, self.muon) = (None, None, None, None);
    }

    /// Returns the sums of squares of the gradients.
    fn square_sums(&self, grads: &Array) -> Result<f64, Error> {
        let (layout, _) = self.network.learned();
        let partials = self.network.context.buffer("partial sums", PARTIALS * layout.segments.len())?;
        let mut recorder = Recorder::new(&self.network.context);
        for (index, segment) in layout.segments.iter().enumerate() {
            let view = grads.segment(index);
            optimizer::square_sum(&mut recorder, view, 0..segment.len, partials.all(), index * PARTIALS);
        }
        drop(recorder);
        Ok(self.network.context.read(partials.all())?.iter().map(|&sum| f64::from(sum)).sum())
    }

    /// Returns the matrices that Muon updates: segment, first element, rows and columns.
    fn muon_matrices(&self) -> Vec<(usize, usize, [usize; 2])> {
        let (layout, network) = (&self.network.layout, &self.network);
        if network.adapters.is_some() {
            return Vec::new();
        }
        let matrices = |param: &Param| {
            let count = param.num_layer_matrices();
            let (segment, start) = layout.place(param).expect("layers are whole");
            let (rows, columns) = (param.shape[0] / count.max(1), param.shape.get(1).copied().unwrap_or(0));
            (0..count).map(move |index| (segment, start + index * rows * columns, [rows, columns])).collect::<Vec<_>>()
        };
        network.list.iter().filter(|param| param.num_layer_matrices() > 0).flat_map(matrices).collect()
    }
}

/// Returns the ranges of a segment of this length between matrices that are updated otherwise.
fn others(len: usize, matrices: impl Iterator<Item = (usize, usize)>) -> Vec<std::ops::Range<usize>> {
    let mut sorted: Vec<_> = matrices.collect();
    sorted.sort_unstable();
    let mut start = 0;
    let mut ranges = Vec::new();
    for (first, count) in sorted {
        ranges.push(start..first);
        start = first + count;
    }
    ranges.push(start..len);
    ranges.retain(|range| !range.is_empty());
    ranges
}

impl Model for GpuTrainer {
    fn config(&self) -> &Config {
        &self.network.config
    }

    fn info(&self) -> ComputeInfo {
        ComputeInfo { threads: 0, dtype: Dtype::F32, kernels: "gpu" }
    }

    fn losses(&mut self, batch: &Batch) -> Result<Vec<f32>, Error> {
        batch.check(&self.network.config)?;
        let Self { network, inputs, arena, .. } = self;
        let passes = passes(batch);
        let most = passes.iter().map(|pass| pass.inputs.len()).max().unwrap_or(0);
        let arena = Arena::reserve(arena, network, ForwardMode::Inference, most)?;
        let mut losses = Vec::with_capacity(batch.targets.len());
        for pass in &passes {
            inputs.write(network, pass, None, false)?;
            let run = Run { inputs, arena, drops: PassDropout::NONE };
            let mut recorder = Recorder::new(&network.context);
            network.forward(&mut recorder, run, &[]);
            network.losses(&mut recorder, run);
            drop(recorder);
            losses.extend(network.context.read(arena.losses.first(pass.inputs.len()))?);
        }
        Ok(losses)
    }

    fn decoder_within(&self, sequences: usize, pages: usize) -> Result<Box<dyn Decoder + '_>, Error> {
        Ok(Box::new(GpuDecoder::new(&self.network, sequences, pages)?))
    }
}

impl Trainer for GpuTrainer {
    fn forward_backward(&mut self, batch: &Batch, backward: Backward<'_>) -> Result<f32, Error> {
        self.check(batch, &backward)?;
        let targets = batch.check_targets()? as f32;
        self.allocate_grads()?;
        let Self { network, inputs, arena, grads, mode, .. } = self;
        let grads = grads.as_ref().expect("just allocated");
        let passes = passes(batch);
        let most = passes.iter().map(|pass| pass.inputs.len()).max().unwrap_or(0);
        let arena = Arena::reserve(arena, network, *mode, most)?;
        Recorder::new(&network.context).clear(arena.loss_sum.all());
        for (index, pass) in passes.iter().enumerate() {
            inputs.write(network, pass, None, true)?;
            let drops = PassDropout { p: backward.dropout, seed: pass_seed(backward.seed, index as u64) };
            let mut recorder = Recorder::new(&network.context);
            network.forward_backward(&mut recorder, Run { inputs, arena, drops }, backward.weight / targets, grads);
        }
        Ok(network.context.read(arena.loss_sum.all())?[0] / targets)
    }

    fn grad_square_sum(&self) -> f64 {
        let sums = self.grads.as_ref().map_or(Ok(0.0), |grads| self.square_sums(grads));
        // Not a number, so that nothing is updated; the update returns the failure.
        sums.unwrap_or(f64::NAN)
    }

    fn update(&mut self, adamw: &AdamW, muon: Option<&Muon>) -> Result<f32, Error> {
        let sums = self.grads.as_ref().map_or(Ok(0.0), |grads| self.square_sums(grads));
        let norm = sums?.sqrt() as f32;
        self.update_share(adamw, muon, norm)?;
        Ok(norm)
    }

    fn update_share(&mut self, adamw: &AdamW, muon: Option<&Muon>, grad_norm: f32) -> Result<(), Error> {
        self.network.context.check()?;
        self.allocate_grads()?;
        self.allocate_moments()?;
        let matrices = if muon.is_some() { self.muon_matrices() } else { Vec::new() };
        if !matrices.is_empty() {
            self.allocate_muon(&matrices)?;
        }
        let (layout, params) = self.network.learned();
        let (Some(grads), Some([exp_avg, exp_avg_sq])) = (&self.grads, &self.moments) else {
            unreachable!("just allocated")
        };
        let mut recorder = Recorder::new(&self.network.context);
        let clip = if adamw.grad_clip > 0.0 { (adamw.grad_clip / (grad_norm + 1e-6)).min(1.0) } else { 1.0 };
        for (index, segment) in layout.segments.iter().enumerate() {
            if !grad_norm.is_finite() {
                recorder.clear(grads.segment(index));
                continue;
            }
            let arrays = Arrays {
                params: params.segment(index),
                grads: grads.segment(index),
                exp_avg: exp_avg.segment(index),
                exp_avg_sq: exp_avg_sq.segment(index),
            };
            let own = matrices.iter().filter(|(segment, ..)| *segment == index);
            for range in others(segment.len, own.clone().map(|(_, first, [rows, columns])| (*first, rows * columns))) {
                optimizer::adamw(&mut recorder, adamw, segment.decays, clip, arrays, range);
            }
            if let (Some(muon), Some(memory)) = (muon, &self.muon) {
                let scratch = optimizer::Scratch {
                    matrices: memory.matrices.each_ref().map(Buffer::all),
                    squares: memory.squares.each_ref().map(Buffer::all),
                    partials: memory.partials.all(),
                };
                for &(_, first, shape) in own {
                    optimizer::muon(&mut recorder, muon, clip, arrays, first, shape, scratch);
                }
            }
        }
        Ok(())
    }

    fn values_mut(&mut self, _: Slot) -> Result<&mut [f32], Error> {
        Err(Error::Unsupported("changing its arrays in place"))
    }

    fn read(&self, slot: Slot) -> Cow<'_, [f32]> {
        let (layout, params) = self.network.learned();
        let array = match slot {
            Slot::Params => Some(params),
            Slot::Grads => self.grads.as_ref(),
            Slot::ExpAvg => self.moments.as_ref().map(|[first, _]| first),
            Slot::ExpAvgSq => self.moments.as_ref().map(|[_, second]| second),
        };
        let Some(array) = array else { return Cow::Owned(vec![0.0; layout.total]) };
        Cow::Owned(read(&self.network.context, layout, array))
    }

    fn write(&mut self, slot: Slot, values: &[f32]) -> Result<(), Error> {
        match slot {
            Slot::Params => {}
            Slot::Grads => self.allocate_grads()?,
            Slot::ExpAvg | Slot::ExpAvgSq => self.allocate_moments()?,
        }
        let (layout, params) = self.network.learned();
        let (grads, moments) = (self.grads.as_ref(), self.moments.as_ref());
        let array = match slot {
            Slot::Params => Some(params),
            Slot::Grads => grads,
            Slot::ExpAvg => moments.map(|[first, _]| first),
            Slot::ExpAvgSq => moments.map(|[_, second]| second),
        };
        array.expect("just allocated").write(&self.network.context, layout, values);
        self.network.context.check()
    }

    fn merged(&self) -> Cow<'_, [f32]> {
        let Network { context, layout, params, adapters, .. } = &self.network;
        if adapters.is_none() {
            return self.read(Slot::Params);
        }
        let merge = || {
            let merged = Array::new(context, "merged parameters", layout)?;
            let mut recorder = Recorder::new(context);
            for index in 0..layout.segments.len() {
                recorder.copy(params.segment(index), merged.segment(index));
            }
            self.network.merge_into(&mut recorder, &merged);
            drop(recorder);
            merged.read(context, layout)
        };
        Cow::Owned(merge().unwrap_or_else(|error| std::panic::panic_any(error)))
    }

    fn distiller(&mut self) -> Result<&mut dyn Distiller, Error> {
        Ok(self)
    }

    fn adapt(&mut self, lora: &Lora, params: Vec<f32>) -> Result<(), Error> {
        if self.network.adapters.is_some() {
            return Err(Error::Input("the model already has adapters: merge them first".into()));
        }
        let list = LoraList::new(&self.network.config, lora).map_err(|e| Error::Input(e.to_string()))?;
        if params.len() != list.total() {
            return Err(Error::Input(format!("expected {} adapter parameters, got {}", list.total(), params.len())));
        }
        let layout = Layout::of_adapters(&list, &self.network.config, lora.rank, self.most);
        if !layout.is_whole_but(&[]) {
            return Err(Error::Unsupported("adapters larger than its largest binding"));
        }
        let array = Array::new(&self.network.context, "adapters", &layout)?;
        array.write(&self.network.context, &layout, &params);
        self.network.adapters = Some(Adapters { lora: lora.clone(), list, layout, params: array });
        self.forget_training();
        Ok(())
    }

    fn merge(&mut self) {
        if self.network.adapters.is_some() {
            let mut recorder = Recorder::new(&self.network.context);
            self.network.merge_into(&mut recorder, &self.network.params);
            drop(recorder);
            self.network.adapters = None;
            self.forget_training();
        }
    }
}

impl Distiller for GpuTrainer {
    fn distill(
        &mut self,
        batch: &Batch,
        teacher: TeacherSource<'_>,
        distill: &DistillConfig,
        backward: Option<Backward<'_>>,
    ) -> Result<DistillLoss, Error> {
        let vocab_size = self.network.config.vocab_size;
        batch.check(&self.network.config)?;
        distill.validate()?;
        if let Some(backward) = &backward {
            self.check(batch, backward)?;
            self.allocate_grads()?;
        }
        let targets = batch.check_targets()? as f32;
        let (mut model, top_k) = match teacher {
            TeacherSource::Teacher(teacher) => {
                let teacher: &mut dyn Any = teacher;
                let Some(teacher) = teacher.downcast_mut::<GpuTeacher>() else {
                    return Err(Error::Input("the teacher is on another device: expected gpu".into()));
                };
                let found = teacher.network.config.vocab_size;
                if found != vocab_size {
                    return Err(Error::Input(format!(
                        "teacher: expected {vocab_size} tokens as in the student, got {found}"
                    )));
                }
                batch.check(&teacher.network.config)?;
                (Some(teacher), None)
            }
            TeacherSource::TopK(top_k) => {
                top_k.check(distill.divergence, batch, &self.network.config)?;
                (None, Some(top_k))
            }
        };
        let Self { network, inputs, arena, grads, mode, distill: memory, .. } = self;
        let passes = passes(batch);
        let most = passes.iter().map(|pass| pass.inputs.len()).max().unwrap_or(0);
        let mode = if backward.is_some() { *mode } else { ForwardMode::Inference };
        let arena = Arena::reserve(arena, network, mode, most)?;
        let k = top_k.map_or(0, |top_k| top_k.k);
        let memory = distill::Memory::reserve(memory, &network.context, most, k)?;
        let mut recorder = Recorder::new(&network.context);
        recorder.clear(arena.loss_sum.all());
        recorder.clear(memory.total.all());
        drop(recorder);
        let mut first = 0;
        for (index, pass) in passes.iter().enumerate() {
            let places = first * k..(first + pass.inputs.len()) * k;
            first += pass.inputs.len();
            if let Some(top_k) = top_k {
                memory.write(&network.context, &top_k.ids[places.clone()], &top_k.log_probs[places]);
            }
            let source = match &mut model {
                Some(teacher) => {
                    teacher.run(pass, most)?;
                    Source::Model(&teacher.network, teacher.arena.as_ref().expect("the pass ran"))
                }
                None => Source::TopK(k),
            };
            let drops = backward.map_or(PassDropout::NONE, |backward| PassDropout {
                p: backward.dropout,
                seed: pass_seed(backward.seed, index as u64),
            });
            inputs.write(network, pass, None, backward.is_some())?;
            let run = Run { inputs, arena, drops };
            let backward = backward.and_then(|backward| Some((backward.weight / targets, grads.as_ref()?)));
            let mut recorder = Recorder::new(&network.context);
            network.forward(&mut recorder, run, &[]);
            network.distill(&mut recorder, run, source, distill, memory, backward);
        }
        let [cross_entropy, divergence] = [&arena.loss_sum, &memory.total].map(|sum| network.context.read(sum.all()));
        Ok(DistillLoss { cross_entropy: cross_entropy?[0] / targets, divergence: divergence?[0] / targets })
    }
}

/// Reads an array. The contract has no error here: the program ends with it as a product that runs out of memory does.
fn read(context: &Context, layout: &Layout, array: &Array) -> Vec<f32> {
    array.read(context, layout).unwrap_or_else(|error| std::panic::panic_any(error))
}
