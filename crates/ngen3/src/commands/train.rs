//! `ngen3 train`: trains a model.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::{BoolValueParser, TypedValueParser};
use clap::{Arg, ArgMatches, Command, FromArgMatches};
use ngen3_engine::{Device, Dtype};
use ngen3_model::{Family, Variant};
use ngen3_train::{Flag, Overrides, RunKind, RunSpec, Shape, StartFrom, setup};

use crate::device::DeviceFlag;
use crate::interrupt;
use crate::model::{self, variant_help};
use crate::training::Training;
use crate::world::world;

/// Train a model
///
/// Writes VARIANT_model.pt (the model, in nanoGPT's format), VARIANT_model.state (the training state for --resume) and
/// VARIANT_model.run (metrics.jsonl, TensorBoard events, loss.svg). Ctrl-C finishes the step, saves, and prints the resume
/// command; an interrupted evaluation is rerun.
#[derive(clap::Args)]
#[command(rename_all = "snake_case", after_help = EXAMPLES)]
pub struct Args {
    #[arg(long, value_name = "NAME", value_parser = Variant::by_name)]
    #[arg(help = variant_help("Shape and training defaults"))]
    variant: Option<&'static Variant>,
    /// Family of the model: gpt2 or llama; mistral, qwen2 and qwen3 are llama with small changes [default: gpt2]
    #[arg(long, value_name = "NAME")]
    arch: Option<Family>,
    /// Token file to train on, from ngen3 tokenize, or a folder with one (data.bin, or nanoGPT's train.bin with meta.pkl)
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Model to start from: .pt, .safetensors, .gguf, a Hugging Face folder, a hub name, or hf (GPT-2 in the size of --variant)
    /// [default: random weights]
    #[arg(long, value_name = "MODEL", conflicts_with = "resume")]
    init_from: Option<PathBuf>,
    #[command(flatten)]
    files: RunFlags,
    #[command(flatten)]
    flags: Flags,
}

/// Output and resume flags, shared by every command that trains.
#[derive(clap::Args)]
#[command(rename_all = "snake_case")]
pub struct RunFlags {
    /// Model file to write (.pt or .safetensors) [default: the name above]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// TOML file with settings, named like the flags below, and optionally the shape and parts of a model that is not a variant
    /// (arch, n_layer, n_head, n_embd, block_size and others), which is then named after the file. Flags override the file; the
    /// file overrides the variant
    #[arg(long, value_name = "FILE.toml")]
    pub config: Option<PathBuf>,
    /// Resume the run exactly where it stopped; settings given now replace the saved ones
    #[arg(long)]
    pub resume: bool,
    /// Replace an existing model
    #[arg(long, conflicts_with = "resume")]
    pub overwrite: bool,
    #[command(flatten)]
    pub device: DeviceFlag,
}

impl RunFlags {
    /// Source of the weights: the saved state with `--resume`, otherwise `start`.
    pub fn start(&self, start: StartFrom) -> StartFrom {
        if self.resume { StartFrom::Resume } else { start }
    }
}

/// Opens the device of a run. Several ranks, and bf16, are the CPU's.
///
/// # Errors
/// As [`DeviceFlag::open`].
pub fn open_device(flag: DeviceFlag, settings: &Overrides) -> anyhow::Result<&'static dyn Device> {
    flag.open(world().size() == 1 && settings.dtype != Some(Dtype::Bf16))
}

/// Training settings, and the parts of the model's shape that have flags. `ngen3-train` defines the flags.
pub struct Flags {
    settings: Overrides,
    shape: Shape,
}

impl clap::Args for Flags {
    fn augment_args(mut command: Command) -> Command {
        for flag in Overrides::FLAGS {
            command = command.arg(arg(flag));
            // Keep the two batch dimensions together.
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

/// Converts a flag's definition to clap's.
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

/// Values of the flags on the command line.
fn given<T: Clone + Send + Sync + 'static>(flags: &[Flag<T>], matches: &ArgMatches) -> impl Iterator<Item = T> {
    flags.iter().filter_map(|flag| matches.get_one::<T>(flag.name).cloned())
}

const EXAMPLES: &str = "\
Examples:
  ngen3 train --variant 7M --data _data_tinyshakespeare_/data.bin
  ngen3 train --variant 7M --data _data_tinyshakespeare_/data.bin \\
    --max_iters 5000 --resume
  ngen3 train --arch llama --variant 7M --out llama.pt \\
    --data _data_tinyshakespeare_/data.bin
  ngen3 train --config tiny.toml --data _data_tinyshakespeare_/data.bin \\
    --out tiny.pt
  ngen3 train --variant 7M --init_from 7M_model.pt \\
    --data _data_plays_/data.bin --out plays.pt";

impl Flags {
    /// Returns the settings and the shape that the flags give.
    pub fn asked(self) -> (Overrides, Shape) {
        (self.settings, self.shape)
    }
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let (settings, mut shape) = args.flags.asked();
    shape.family = args.arch;
    // Before watching for signals: an interrupted download resumes on the next run.
    let init_from = args.init_from.map(|named| model::find(&named, args.variant, None)).transpose()?;
    let shape = match &init_from {
        Some(found) => found.shaped(shape),
        None => shape,
    };
    let device = open_device(args.files.device, &settings)?;
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
        world: world(),
    };
    let (job, mut objective, weights) = setup::on_tokens(device, spec, &args.data)?;
    let Some(training) = Training::new(device, &job, weights)? else { return Ok(()) };
    let command = [&["train".into(), "--data".into(), args.data.into()], &args.files.device.again()[..]].concat();
    training.run(&mut objective, &command.iter().map(OsString::as_os_str).collect::<Vec<_>>(), &stop)
}
