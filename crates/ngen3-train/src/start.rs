//! The three ways to begin a run: fresh, from a checkpoint's weights, from where it stopped.

use std::path::{Path, PathBuf};

use ngen3_model::words::count;
use ngen3_model::{
    ChatFormat, Checkpoint, Config, Error as ModelError, Lora, LoraList, ParamList, Recipe, TokenizerRef, Variant,
};
use serde_json::{Map, Value};

use crate::config_file::Shape;
use crate::hash::sha256_of;
use crate::job::{Kind, Moments};
use crate::state::{self, Adapting, Header, Reached, State};
use crate::{Error, Overrides, RunPaths, TrainSettings};

/// What a shape trains with when no variant says.
const PLAIN_RECIPE: Recipe = Recipe { batch_size: 16, learning_rate: 3e-4, max_iters: 2_000 };

/// Where a run stands when it starts.
#[derive(Debug)]
pub struct Start {
    /// What kind of run it is.
    pub kind: Kind,
    /// Where it goes.
    pub paths: RunPaths,
    /// The model's shape.
    pub config: Config,
    /// How it is trained.
    pub settings: TrainSettings,
    /// `[total]`; `None` if they are to be drawn.
    pub params: Option<Vec<f32>>,
    /// The adapters, if only they learn.
    pub adapting: Option<Adapting>,
    /// Their numbers.
    pub adapter: Option<Vec<f32>>,
    /// AdamW's, of a run that goes on.
    pub moments: Option<Moments>,
    /// How far it is.
    pub reached: Reached,
    pub(crate) origin: Origin,
    pub(crate) notes: Vec<String>,
}

/// What the data has to fit, besides the model.
#[derive(Debug)]
pub(crate) enum Origin {
    Nothing,
    /// A checkpoint, the tokenizer that it was trained with, and how it has conversations.
    Checkpoint(PathBuf, TokenizerRef, Option<ChatFormat>),
    /// A state of the same run.
    State(Box<Header>),
}

impl Start {
    /// At step 0 with weights to be drawn. `vocab_size` is the data's, for a model that is not told another.
    pub(crate) fn fresh(
        kind: Kind,
        paths: RunPaths,
        variant: Option<&Variant>,
        shape: Shape,
        asked: Overrides,
        vocab_size: usize,
    ) -> Result<Self, Error> {
        let Shape { n_layer, n_head, n_embd, block_size, vocab_size: told, activation } = shape.or(shape_of(variant));
        let (Some(n_layer), Some(n_head), Some(n_embd), Some(block_size)) = (n_layer, n_head, n_embd, block_size)
        else {
            return Err(Error::Usage(format!(
                "the model's shape is not complete: name a {}, or give n_layer, n_head, n_embd and block_size in a \
                 --config file",
                kind.variant_flag()
            )));
        };
        let mut config = Config::new(n_layer, n_head, n_embd, block_size, told.unwrap_or(vocab_size));
        config.activation = activation.unwrap_or_default();
        config.validate()?;
        let settings = TrainSettings::settle(asked, recipe_of(variant))?;
        let (reached, origin, notes) = (Reached::default(), Origin::Nothing, Vec::new());
        let (params, adapting, adapter, moments) = (None, None, None, None);
        Ok(Self { kind, paths, config, settings, params, adapting, adapter, moments, reached, origin, notes })
    }

    /// At step 0 with the weights of a checkpoint, whose shape must be the one asked for. Only its block may be asked to
    /// be smaller: the positions past it are cut off.
    pub(crate) fn init_from(
        kind: Kind,
        paths: RunPaths,
        from: PathBuf,
        checkpoint: Checkpoint,
        variant: Option<&Variant>,
        shape: Shape,
        asked: Overrides,
    ) -> Result<Self, Error> {
        let Checkpoint { mut config, mut params, meta } = checkpoint;
        let mut wanted = shape.or(shape_of(variant));
        if let Some(block_size) = wanted.block_size.take_if(|block_size| *block_size < config.block_size) {
            let shorter = Config { block_size, ..config.clone() };
            shorter.validate()?;
            params = cut_positions(&params, &config, &shorter);
            config = shorter;
        }
        let differences = differences(&config, &wanted);
        if !differences.is_empty() {
            return Err(ModelError::OtherModel { path: from, differences }.into());
        }
        let settings = TrainSettings::settle(asked, recipe_of(variant))?;
        let origin = Origin::Checkpoint(from, meta.tokenizer, meta.chat);
        let (params, reached, notes) = (Some(params), Reached::default(), Vec::new());
        let (adapting, adapter, moments) = (None, None, None);
        Ok(Self { kind, paths, config, settings, params, adapting, adapter, moments, reached, origin, notes })
    }

    /// The same start, but that only adapters learn, beside a checkpoint's weights.
    pub(crate) fn adapting(mut self, lora: Lora) -> Result<Self, Error> {
        let (Some(params), Origin::Checkpoint(from, ..)) = (&self.params, &self.origin) else {
            return Err(Error::Usage("adapters need a model to learn beside: name its checkpoint".into()));
        };
        self.adapter = Some(LoraList::new(&self.config, &lora)?.init(self.settings.seed));
        let base = from.display().to_string();
        self.adapting = Some(Adapting { lora, base, base_sha256: sha256_of(params) });
        Ok(self)
    }

    /// Where a run stopped. Settings are the run's own, but for those asked for now; its shape cannot change.
    pub(crate) fn resume(
        kind: Kind,
        paths: RunPaths,
        variant: Option<&Variant>,
        shape: Shape,
        asked: Overrides,
    ) -> Result<Self, Error> {
        let Some(State { header, params, exp_avg, exp_avg_sq }) = state::load(&paths.state)? else {
            return Err(Error::Usage(format!(
                "there is nothing to resume: no {}. Leave --resume away to start; {} starts from the weights of a \
                 checkpoint",
                paths.state.display(),
                kind.init_flag()
            )));
        };
        if header.kind != kind {
            let (path, was) = (paths.state.display(), header.kind.name());
            return Err(Error::Usage(format!("{path} is of a run of ngen3 {was}, which goes on with that command")));
        }
        let layers = variant.filter(|variant| !variant.fits(&header.config)).map(|variant| {
            let Shape { n_layer, n_head, n_embd, .. } = shape_of(Some(variant));
            Shape { n_layer, n_head, n_embd, ..Shape::default() }
        });
        let differences = differences(&header.config, &shape.or(layers.unwrap_or_default()));
        if !differences.is_empty() {
            return Err(ModelError::OtherModel { path: paths.state, differences }.into());
        }
        let step = header.reached.step;
        let mut own = Overrides::from(header.settings.clone());
        if step == 0 && own.warmup_iters == Some(TrainSettings::default_warmup(header.settings.max_iters)) {
            // Nothing is warm yet (`--max_iters 0` only made the model), so a longer run gets the warm-up of its length.
            own.warmup_iters = None;
        }
        if asked.learning_rate.is_some() && own.min_lr == own.learning_rate.map(|lr| lr / 10.0) {
            // It follows the learning rate, as nobody had said otherwise.
            own.min_lr = None;
        }
        if let Some(max_iters) = asked.max_iters.filter(|&max_iters| max_iters < step) {
            let done = count(step, "step");
            return Err(Error::Usage(format!("max_iters is {max_iters}, and the run has done {done} already")));
        }
        let settings = TrainSettings::settle(asked.or(own), &PLAIN_RECIPE)?;
        let changes = settings.changes_since(&header.settings);
        let mut notes = Vec::new();
        if !changes.is_empty() {
            notes.push(format!("changed since the run stopped: {}", changes.join(", ")));
        }
        let (before, now) = (header.settings.lr_at(step), settings.lr_at(step));
        if before != now {
            notes.push(format!(
                "the learning rate goes on at {now:.2e}; before the change it would have been {before:.2e}"
            ));
        }
        let (config, mut reached, adapting) = (header.config.clone(), header.reached.clone(), header.adapting.clone());
        let was_kept = header.settings.keep_best || reached.best_step == step;
        if settings.keep_best && reached.best_val_loss.is_some() && !(was_kept && paths.model.exists()) {
            let (best, model) = (reached.best_step, paths.model.display());
            let why = if was_kept { format!("is not in {model} any more") } else { "was not kept".into() };
            notes.push(format!("the model of step {best} {why}: the best is looked for from here on"));
            let Reached { elapsed_s, unevaluated, .. } = reached;
            reached = Reached { step, elapsed_s, unevaluated, ..Reached::default() };
        }
        let moments = Some(Moments { exp_avg, exp_avg_sq });
        let (params, adapter) = match &adapting {
            None => (Some(params), None),
            Some(adapting) => (Some(base_of(&paths, &config, adapting)?), Some(params)),
        };
        let origin = Origin::State(Box::new(header));
        Ok(Self { kind, paths, config, settings, params, adapting, adapter, moments, reached, origin, notes })
    }

    /// What the run that goes on learns from besides its data; `None` of a run that starts.
    pub fn lesson(&self) -> Option<&Map<String, Value>> {
        match &self.origin {
            Origin::State(header) => Some(&header.lesson),
            Origin::Nothing | Origin::Checkpoint(..) => None,
        }
    }
}

/// What a run trains with where nobody says.
pub(crate) fn recipe_of(variant: Option<&Variant>) -> &Recipe {
    variant.map_or(&PLAIN_RECIPE, |variant| &variant.recipe)
}

/// The model that the adapters of a run learn beside.
fn base_of(paths: &RunPaths, config: &Config, adapting: &Adapting) -> Result<Vec<f32>, Error> {
    let Checkpoint { params, .. } = Checkpoint::load_for(&paths.base, config)?;
    if sha256_of(&params) != adapting.base_sha256 {
        let what = "it is not the model that the run's adapters learn beside; start the run anew with --overwrite";
        return Err(Error::file(&paths.base, what));
    }
    Ok(params)
}

/// A variant's shape. Its vocabulary and activation are only defaults: the data and the checkpoint decide them.
pub(crate) fn shape_of(variant: Option<&Variant>) -> Shape {
    variant.map_or_else(Shape::default, |variant| Shape {
        vocab_size: None,
        activation: None,
        ..Shape::from(&variant.config())
    })
}

/// Each field in which a model is not what is wanted; empty if there is none.
fn differences(config: &Config, wanted: &Shape) -> String {
    let Config { n_layer, n_head, n_embd, block_size, vocab_size, activation, .. } = config;
    let numbers = [
        ("n_layer", n_layer, wanted.n_layer),
        ("n_head", n_head, wanted.n_head),
        ("n_embd", n_embd, wanted.n_embd),
        ("block_size", block_size, wanted.block_size),
        ("vocab_size", vocab_size, wanted.vocab_size),
    ];
    let mut differences: Vec<String> = numbers
        .into_iter()
        .filter_map(|(name, found, wanted)| {
            wanted.filter(|wanted| wanted != found).map(|wanted| format!("{name} is {found}, not {wanted}"))
        })
        .collect();
    if let Some(wanted) = wanted.activation.filter(|wanted| wanted != activation) {
        differences.push(format!("activation is {activation:?}, not {wanted:?}"));
    }
    differences.join("; ")
}

/// The parameters of the same model with a shorter block: the first positions are kept.
fn cut_positions(params: &[f32], from: &Config, to: &Config) -> Vec<f32> {
    let (from, to) = (ParamList::new(from), ParamList::new(to));
    let pairs = from.iter().zip(&to);
    pairs.flat_map(|(from, to)| &params[from.range()][..to.len()]).copied().collect()
}

/// A model of fewer layers: the first, the last and those at even distances between, with the embeddings and the final norm
/// as they are. Of 12 layers 6 are 0, 2, 4, 7, 9 and 11: the choice of DistilGPT-2 (Sanh et al. 2019).
///
/// # Errors
/// [`Error::Usage`] if it has fewer layers than are wanted. `from` is where it came from.
pub(crate) fn some_layers(deeper: &Checkpoint, from: &Path, n_layer: Option<usize>) -> Result<Checkpoint, Error> {
    let Checkpoint { config: from_config, params, meta } = deeper;
    let n_layer = n_layer.unwrap_or(from_config.n_layer.div_ceil(2));
    if n_layer > from_config.n_layer {
        return Err(Error::Usage(format!(
            "{} has {}, too few for a student of {n_layer}",
            from.display(),
            count(from_config.n_layer, "layer")
        )));
    }
    let config = Config { n_layer, ..from_config.clone() };
    config.validate()?;
    let (list, from_list) = (ParamList::new(&config), ParamList::new(from_config));
    let mut kept = Vec::with_capacity(list.total());
    kept.extend_from_slice(&params[..from_list.wpe.end]);
    for layer in 0..n_layer {
        let block = &from_list.blocks[spread(layer, n_layer, from_config.n_layer)];
        kept.extend_from_slice(&params[block.ln_1_weight.start..block.mlp_c_proj_bias.end]);
    }
    kept.extend_from_slice(&params[from_list.ln_f_weight.start..]);
    Ok(Checkpoint { config, params: kept, meta: meta.clone() })
}

/// Where the `i`th of `n` stands among `of`, when the first is the first and the last the last.
fn spread(i: usize, n: usize, of: usize) -> usize {
    match n {
        0 | 1 => 0,
        n => (2 * i * (of - 1) + (n - 1)) / (2 * (n - 1)),
    }
}

#[cfg(test)]
mod tests {
    use ngen3_model::CheckpointMeta;

    use super::*;

    #[test]
    fn layers_are_taken_evenly_from_the_first_to_the_last() {
        let chosen = |n, of| (0..n).map(|i| spread(i, n, of)).collect::<Vec<_>>();
        assert_eq!(chosen(6, 12), [0, 2, 4, 7, 9, 11], "DistilGPT-2");
        assert_eq!(chosen(1, 4), [0]);
        assert_eq!(chosen(4, 4), [0, 1, 2, 3]);
        assert_eq!(chosen(2, 5), [0, 4]);
    }

    #[test]
    fn a_student_of_some_layers_has_their_numbers_and_the_embeddings() {
        let config = Config::new(5, 1, 2, 3, 7);
        let list = ParamList::new(&config);
        let params: Vec<f32> = (0..list.total()).map(|i| i as f32).collect();
        let teacher = Checkpoint { config, params: params.clone(), meta: CheckpointMeta::default() };
        let of = |n_layer| some_layers(&teacher, Path::new("t.pt"), n_layer);
        let student = of(None).unwrap();
        assert_eq!(student.config, Config::new(3, 1, 2, 3, 7));
        let mut expected = params[..list.wpe.end].to_vec();
        for layer in [0, 2, 4] {
            let block = &list.blocks[layer];
            expected.extend(&params[block.ln_1_weight.start..block.mlp_c_proj_bias.end]);
        }
        expected.extend(&params[list.ln_f_weight.start..]);
        assert_eq!(student.params, expected);
        assert_eq!(of(Some(5)).unwrap(), teacher);
        assert_eq!(of(Some(6)).unwrap_err().to_string(), "t.pt has 5 layers, too few for a student of 6");
        assert!(of(Some(0)).is_err());
    }
}
