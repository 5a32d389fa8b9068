//! `ngen3 sample`: generates text from a model.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, anyhow, bail};
use ngen3_data::tokenizer::Text;
use ngen3_generate::{Generator, Request};
use ngen3_model::words;
use ngen3_model::{Checkpoint, Variant};

use crate::model::{self, CHECK_VARIANT, variant_help};
use crate::progress::write_line;
use crate::stdout;
use crate::streaming::{SamplingFlags, encode_prompt, say_what_is_missing, say_what_is_seen};

/// Generate text from a model
///
/// Streams the prompt and its continuation to stdout. When the text fills the model's context, generation continues from
/// the last three quarters of it.
#[derive(clap::Args)]
#[command(rename_all = "snake_case", after_help = EXAMPLES)]
pub struct Args {
    /// Model to sample from: .pt, .safetensors, .gguf, a Hugging Face folder, a hub name, or hf (GPT-2 in the size of --variant)
    #[arg(long, value_name = "MODEL")]
    model_checkpoint: PathBuf,
    #[arg(long, value_name = "NAME", value_parser = Variant::by_name, help = variant_help(CHECK_VARIANT))]
    variant: Option<&'static Variant>,
    /// Text to continue; - for stdin [default: start a new document]
    #[arg(long, value_name = "TEXT", conflicts_with = "prompt_file", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// File with the text to continue, including its final line break; - for stdin
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,
    /// Tokens to generate per sample
    #[arg(long, value_name = "N", default_value_t = 100)]
    length: usize,
    /// Samples to generate
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    num_samples: u16,
    #[command(flatten)]
    flags: SamplingFlags,
}

const EXAMPLES: &str = "\
Examples:
  ngen3 sample --model_checkpoint 7M_model.pt --prompt \"To be\" --length 100 \\
    --temperature 0.8
  ngen3 sample --model_checkpoint 7M_model.pt --top_k 50 --num_samples 3
  ngen3 sample --model_checkpoint 7M_model.pt --prompt_file play.txt \\
    --stop \"ROMEO:\" --temperature 0
  echo \"Once upon\" | ngen3 sample --model_checkpoint 7M_model.pt --prompt -";

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    // Checked before a large file is read.
    let sampling = args.flags.sampling()?;
    let prompt = read_prompt(&args)?;

    let path = &args.model_checkpoint;
    let loaded = args.flags.decode.load(path, args.variant)?;
    let Checkpoint { config, meta, .. } = &loaded.checkpoint;
    let Some(tokenizer) = model::tokenizer(path, config, meta)? else {
        bail!(
            "{}: no recorded tokenizer, and its vocabulary of {} tokens is not GPT-2's, so it cannot generate text",
            path.display(),
            config.vocab_size
        );
    };
    let block_size = config.block_size;
    let engine = args.flags.decode.open(loaded)?;

    say_what_is_missing(&tokenizer, &prompt)?;
    let ids = encode_prompt(&tokenizer, &prompt)?;
    say_what_is_seen(ids.len(), block_size);
    let num_samples = usize::from(args.num_samples);
    let request = Request {
        prompt: &ids,
        num_samples,
        length: args.length,
        end: tokenizer.eot(),
        vocab_size: tokenizer.vocab_size(),
        sampling,
    };
    let started = Instant::now();
    let mut generator = Generator::new(&*engine, request)?;
    let mut texts: Vec<_> = (0..num_samples).map(|_| Text::new(tokenizer.stream(), &args.flags.stop)).collect();
    let mut printer = Printer::start(&prompt, num_samples)?;
    let mut made = 0;
    while let Some(tokens) = generator.step()? {
        let mut ended = Vec::new();
        for (sample, (text, token)) in texts.iter_mut().zip(tokens).enumerate() {
            made += usize::from(token.is_some());
            match token {
                Some(token) => text.push(*token),
                None => text.finish(),
            }
            if text.ended {
                ended.push(sample);
            }
        }
        ended.into_iter().for_each(|sample| generator.end(sample));
        printer.show(&mut texts)?;
    }
    texts.iter_mut().for_each(Text::finish);
    printer.show(&mut texts)?;
    let seconds = started.elapsed().as_secs_f64();
    let rate = made as f64 / seconds.max(1e-9);
    write_line(&format!("{} in {seconds:.2} s ({rate:.0}/s), seed {}", words::count(made, "token"), sampling.seed));
    Ok(())
}

/// Reads `--prompt` or `--prompt_file`; empty if neither is given.
fn read_prompt(args: &Args) -> anyhow::Result<String> {
    let (name, bytes) = match (&args.prompt, &args.prompt_file) {
        (Some(text), _) if text != "-" => return Ok(text.clone()),
        (None, None) => return Ok(String::new()),
        (None, Some(path)) if path != Path::new("-") => {
            (path.display().to_string(), fs::read(path).with_context(|| format!("cannot read {}", path.display()))?)
        }
        _ => {
            let mut bytes = Vec::new();
            std::io::stdin().lock().read_to_end(&mut bytes).context("cannot read the prompt from stdin")?;
            ("prompt on stdin".to_string(), bytes)
        }
    };
    String::from_utf8(bytes).map_err(|error| {
        anyhow!("{name}: expected UTF-8 text, got an invalid sequence at byte {}", error.utf8_error().valid_up_to())
    })
}

/// Prints samples one after another: each streams once those before it have ended.
struct Printer<'a> {
    prompt: &'a str,
    num_samples: usize,
    /// The sample being printed.
    current: usize,
}

impl<'a> Printer<'a> {
    fn start(prompt: &'a str, num_samples: usize) -> anyhow::Result<Self> {
        let printer = Self { prompt, num_samples, current: 0 };
        printer.head()?;
        Ok(printer)
    }

    fn head(&self) -> anyhow::Result<()> {
        if self.num_samples > 1 {
            stdout::print(&format!("--- sample {} of {} ---\n", self.current + 1, self.num_samples))?;
        }
        stdout::print(self.prompt)
    }

    fn show(&mut self, texts: &mut [Text]) -> anyhow::Result<()> {
        while let Some(text) = texts.get_mut(self.current) {
            if !text.ready.is_empty() {
                stdout::print(&std::mem::take(&mut text.ready))?;
            }
            if !text.ended {
                break;
            }
            stdout::print("\n")?;
            self.current += 1;
            if self.current < self.num_samples {
                self.head()?;
            }
        }
        Ok(())
    }
}
