//! A device with one fault: the reference, less one thing.

mod decoder;
mod distiller;
mod trainer;

use ngen3_engine::reference::ReferenceDevice;
use ngen3_engine::{Device, Dtype, Error, Options, Slot, Teacher, Trainer, Workload};
use ngen3_model::Config;

use distiller::FaultyTeacher;
use trainer::FaultyTrainer;

/// One thing that is wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// None: a device that only passes everything on.
    Nothing,
    /// Neither adapters nor distillation are supported.
    Unsupported,

    /// The loss of one position is off.
    Loss,
    /// An ignored target has a loss, too small for any tolerance.
    IgnoredLoss,
    /// The mean loss counts ignored targets.
    MeanLoss,
    /// A sequence attends to the one before it.
    JoinedSequences,
    /// A sequence that continues another begins anew.
    ContinuedAlone,

    /// The training loss is off.
    TrainingLoss,
    /// Dropout masks follow from another seed.
    Dropout,
    /// The gradient's weight is ignored.
    Weight,
    /// The gradient of this parameter is 1.001 times too large.
    Gradient(usize),
    /// The second micro-batch replaces the gradient of the first.
    GradientsOverwritten,
    /// Gradients are given as final before the last are added.
    ReadyTooEarly,
    /// The first gradients are given as final before the others.
    ReadyBackwards,

    /// AdamW's moments are not corrected for their start at 0.
    NoBiasCorrection,
    /// Gradients are never clipped.
    NoClipping,
    /// Gradients are scaled to the clipping norm, up as well as down.
    ClippedUpwards,
    /// Weights do not decay.
    NoDecay,
    /// AdamW updates the matrices that Muon should.
    MuonIgnored,
    /// A parameter outside the share changes.
    ShareIgnored,
    /// Biases and LayerNorms decay.
    BiasesDecay,
    /// The first moment starts at 0 with every update.
    MomentForgotten,
    /// An update is applied though one of its gradients is not finite.
    InfiniteApplied,
    /// An update that is skipped keeps its gradients.
    InfiniteKept,
    /// Gradients are not cleared after an update.
    GradientsKept,
    /// The norm is returned that gradients have once clipped.
    ClippedNorm,
    /// Writing this array does nothing.
    WriteIgnored(Slot),
    /// The forward pass uses the weights before the update.
    StaleAfterUpdate,
    /// The forward pass uses the weights before they were written.
    StaleAfterWrite,

    /// The gradient of this parameter of the adapters is 1.001 times too large.
    AdapterGradient(usize),
    /// Adapters do not decay.
    AdaptersNoDecay,
    /// The forward pass uses the adapters before the update.
    StaleAdapters,
    /// The merged parameters lack the factor alpha/rank.
    MergedUnscaled,
    /// Merging forgets the factor alpha/rank.
    MergeUnscaled,
    /// Parameters get no gradient once adapters were merged into them.
    MergedFrozen,
    /// A model with adapters decodes without them.
    AdaptersDecode,

    /// The divergence in a distillation's loss lacks its factor T².
    DivergenceLoss,
    /// The cross entropy in a distillation's loss is off.
    DistillCrossEntropy,
    /// The losses that come with a gradient are off.
    DistillTrainingLoss,
    /// The divergence has another share in the gradient.
    DivergenceWeight,
    /// The gradient is another divergence's.
    DivergenceGradient,
    /// The gradient's weight is ignored in distillation.
    DistillWeight,
    /// A distillation's gradient replaces the one before.
    DistillOverwrites,
    /// All but the teacher's most likely tokens count for nothing.
    TopKWithoutRest,
    /// The teacher's log probabilities are not tempered.
    TopKTemperature,
    /// The teacher's tokens are those of other ranks.
    TopKIds,

    /// A sequence sees another's tokens.
    SeesAnother,
    /// A cleared sequence still sees its last token.
    ClearKeeps,
    /// A cleared sequence still counts a token.
    ClearCounts,
    /// Logits are in the order of sequences, not of feeds.
    FeedOrder,
    /// Decoding uses the weights that the model was opened with.
    StaleDecoder,
    /// A feed is refused only after the one before it was taken.
    RefusedInPart,
    /// A decoder without sequences opens.
    AcceptsNoSequences,
    /// Feeding nothing is accepted.
    AcceptsNoFeeds,
    /// A feed without tokens is accepted.
    AcceptsNoTokens,
    /// Two feeds of one sequence are accepted.
    AcceptsTwice,
    /// A sequence that does not exist is accepted.
    AcceptsUnknownSequence,
    /// A token outside the vocabulary is accepted.
    AcceptsUnknownToken,
    /// More than one token past the block is accepted.
    AcceptsPastBlock,
    /// One token past the block is accepted.
    AcceptsOneMore,
    /// A token that needs a page is accepted when none is free.
    AcceptsFull,
    /// One more page is said to be free than is.
    CountsPages,
    /// A sequence that shares another's pages sees other tokens in them.
    SharesWrongly,
}

/// The reference device with this fault.
pub struct Faulty(pub Fault);

impl Device for Faulty {
    fn name(&self) -> &'static str {
        "faulty"
    }

    fn open(&self, config: Config, params: Vec<f32>, _: Options) -> Result<Box<dyn Trainer>, Error> {
        Ok(Box::new(FaultyTrainer::new(self.0, config, params)?))
    }

    fn open_teacher(&self, config: Config, params: Vec<f32>, options: Options) -> Result<Box<dyn Teacher>, Error> {
        let inner = ReferenceDevice.open_teacher(config, params, options)?;
        Ok(Box::new(FaultyTeacher { fault: self.0, inner }))
    }

    fn memory(&self, config: &Config, workload: Workload<'_>, options: Options) -> Result<u64, Error> {
        ReferenceDevice.memory(config, workload, options)
    }

    fn product_gflops(&self, dtype: Dtype, threads: usize, shape: [usize; 3]) -> Result<f64, Error> {
        ReferenceDevice.product_gflops(dtype, threads, shape)
    }
}
