//! `ngen3 train`: a model learns from a dataset.

use std::path::PathBuf;

use clap::builder::{BoolValueParser, TypedValueParser};
use clap::{Arg, ArgMatches, Command, FromArgMatches};
use ngen3_model::Variant;
use ngen3_train::{Flag, Overrides, RunKind, RunSpec, Shape, StartFrom, setup};

use crate::device::device;
use crate::training::Training;
use crate::{interrupt, model};

/// Train a model on a dataset
///
/// Leaves VARIANT_model.pt (the model, in nanoGPT's layout), VARIANT_model.state (what --resume goes on from) and
/// VARIANT_model.run (metrics.jsonl, TensorBoard events, loss.svg). Ctrl-C finishes the step, saves, and says how to go
/// on; an evaluation is left, and made when the run goes on.
#[derive(clap::Args)]
#[command(rename_all = "snake_case", after_help = EXAMPLES)]
pub struct Args {
    /// Shape and training defaults; ngen3 variants lists them
    #[arg(long, value_name = "NAME", value_parser = Variant::by_name)]
    variant: Option<&'static Variant>,
    /// Tokens to train on; ngen3 tokenize makes them
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Start from the weights of a model: .pt, .safetensors, a Hugging Face folder, a name on the hub, or hf (GPT-2 in the
    /// size of the variant)
    #[arg(long, value_name = "MODEL", conflicts_with = "resume")]
    init_from: Option<PathBuf>,
    #[command(flatten)]
    files: RunFlags,
    #[command(flatten)]
    flags: Flags,
}

/// Where a run goes, and whether it goes on from what is there: the same for every command that trains.
#[derive(clap::Args)]
#[command(rename_all = "snake_case")]
pub struct RunFlags {
    /// File for the model (.pt or .safetensors) [default: the one named above]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Settings in TOML, named as the flags below, and the shape of a model that is no variant (n_layer, n_head, n_embd,
    /// block_size, vocab_size, activation), which is then named after the file; a flag comes before the file, and the file
    /// before the variant
    #[arg(long, value_name = "FILE.toml")]
    pub config: Option<PathBuf>,
    /// Go on from where the run stopped, as if it never had; settings given now replace the run's own
    #[arg(long)]
    pub resume: bool,
    /// Replace a model that is there already
    #[arg(long, conflicts_with = "resume")]
    pub overwrite: bool,
}

impl RunFlags {
    /// Source of the weights: the run's own state, or `start` for a fresh one.
    pub fn start(&self, start: StartFrom) -> StartFrom {
        if self.resume { StartFrom::Resume } else { start }
    }
}

/// The settings of a run, and the part of the model's shape that has a flag. The flags are those of the lists in `ngen3-train`.
pub struct Flags {
    settings: Overrides,
    shape: Shape,
}

impl clap::Args for Flags {
    fn augment_args(mut command: Command) -> Command {
        for flag in Overrides::FLAGS {
            command = command.arg(arg(flag));
            // The two sizes of a batch stand together.
            if flag.name == "batch_size" {
                command = command.args(Shape::FLAGS.iter().map(arg));
            }
        }
        command
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self { settings: Overrides::default(), shape: Shape::default() };
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        let settings = given(Overrides::FLAGS, matches).fold(Overrides::default(), Overrides::or);
        let shape = given(Shape::FLAGS, matches).fold(Shape::default(), Shape::or);
        self.settings = settings.or(std::mem::take(&mut self.settings));
        self.shape = shape.or(std::mem::take(&mut self.shape));
        Ok(())
    }
}

/// A flag as clap knows it.
fn arg<T: Clone + Send + Sync + 'static>(flag: &Flag<T>) -> Arg {
    let Flag { name, value_name, help, default, is_switch, parse } = *flag;
    let arg = Arg::new(name)
        .long(name)
        .value_name(value_name)
        .help(format!("{help} [default: {default}]"))
        .help_heading("Settings");
    if is_switch {
        let parser = BoolValueParser::new().try_map(move |value| parse(&value.to_string()));
        arg.num_args(0..=1).default_missing_value("true").value_parser(parser)
    } else {
        arg.value_parser(parse)
    }
}

/// The values of the flags that were given.
fn given<T: Clone + Send + Sync + 'static>(flags: &[Flag<T>], matches: &ArgMatches) -> impl Iterator<Item = T> {
    flags.iter().filter_map(|flag| matches.get_one::<T>(flag.name).cloned())
}

const EXAMPLES: &str = "\
Examples:
  ngen3 train --variant 7M --data _data_tinyshakespeare_/data.bin
  ngen3 train --variant 7M --data _data_tinyshakespeare_/data.bin --max_iters 5000 --resume
  ngen3 train --config tiny.toml --data _data_tinyshakespeare_/data.bin --out tiny.pt
  ngen3 train --variant 7M --init_from 7M_model.pt --data _data_plays_/data.bin --out plays.pt";

impl Flags {
    /// The settings and the shape that were asked for.
    pub fn asked(self) -> (Overrides, Shape) {
        (self.settings, self.shape)
    }
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let (settings, shape) = args.flags.asked();
    // Before the signals are watched: a download that is stopped goes on the next time.
    let init_from = args.init_from.map(|named| model::find(&named, args.variant, None)).transpose()?;
    let shape = match &init_from {
        Some(found) => found.shaped(shape),
        None => shape,
    };
    let stop = interrupt::watch()?;
    let start = init_from.map_or(StartFrom::Scratch, |found| StartFrom::Checkpoint(found.path));
    let spec = RunSpec {
        kind: RunKind::Train,
        variant: args.variant,
        start: args.files.start(start),
        overwrite: args.files.overwrite,
        config_file: args.files.config,
        out: args.files.out,
        settings,
        shape,
        lora: None,
    };
    let (job, mut objective, weights) = setup::on_tokens(device(), spec, &args.data)?;
    let Some(training) = Training::new(&job, weights)? else { return Ok(()) };
    training.run(&mut objective, &["train".as_ref(), "--data".as_ref(), args.data.as_ref()], &stop)
}
