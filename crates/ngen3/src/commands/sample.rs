//! `ngen3 sample`: a model continues a text.

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, anyhow, bail};
use clap::builder::NonEmptyStringValueParser;
use ngen3_data::Tokenizer;
use ngen3_data::tokenizer::TextStream;
use ngen3_engine::{CpuEngine, Dtype, Generator, Options, Quant, Request, Sampling};
use ngen3_model::words;
use ngen3_model::{Checkpoint, Variant};

use crate::progress::write_line;
use crate::threads::Threads;
use crate::{model, stdout, talk};

/// Let a model continue a text
///
/// The text goes to stdout as it is made: the prompt, then what follows it. A text may outgrow the model's block; the
/// model then goes on from the last three quarters of a block.
#[derive(clap::Args)]
#[command(rename_all = "snake_case", after_help = EXAMPLES)]
pub struct Args {
    /// Model to sample from: .pt, .safetensors, a Hugging Face folder, a name on the hub, or hf (GPT-2 in the size of the
    /// variant)
    #[arg(long, value_name = "MODEL")]
    model_checkpoint: PathBuf,
    /// Check that the model is of this variant
    #[arg(long, value_name = "NAME", value_parser = Variant::by_name)]
    variant: Option<&'static Variant>,
    /// Text to continue; - reads it from stdin [default: a new document]
    #[arg(long, value_name = "TEXT", conflicts_with = "prompt_file", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// File with the text to continue, its last line break included
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,
    /// Tokens to make of each sample
    #[arg(long, value_name = "N", default_value_t = 100)]
    length: usize,
    /// Samples to make
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    num_samples: u16,
    /// Below 1 keeps to what is likely, above 1 is bolder, 0 always takes the likeliest token
    #[arg(long, value_name = "T", default_value_t = 1.0)]
    temperature: f32,
    /// Draw from the likeliest K tokens only
    #[arg(long, value_name = "K", default_value_t = 0, hide_default_value = true)]
    top_k: usize,
    /// Draw from the fewest tokens that together have this probability
    #[arg(long, value_name = "P", default_value_t = 1.0, hide_default_value = true)]
    top_p: f32,
    /// Draw from tokens at least this times as likely as the likeliest
    #[arg(long, value_name = "P", default_value_t = 0.0, hide_default_value = true)]
    min_p: f32,
    /// Above 1 makes tokens that are already in the text less likely
    #[arg(long, value_name = "X", default_value_t = 1.0, hide_default_value = true)]
    repetition_penalty: f32,
    /// End a sample before this text; may be given several times
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new(), allow_hyphen_values = true)]
    stop: Vec<String>,
    /// The same seed gives the same text [default: another each time, told on stderr]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Numbers to compute with: auto (the fastest that the processor has), f32 or bf16
    #[arg(long, value_name = "TYPE", default_value = "auto")]
    dtype: Dtype,
    /// Round the weights further, to read fewer bytes for each token: int8, with a scale for each output; or none
    #[arg(long, value_name = "TYPE", default_value = "none")]
    quant: Quant,
    #[command(flatten)]
    threads: Threads,
}

const EXAMPLES: &str = "\
Examples:
  ngen3 sample --model_checkpoint 7M_model.pt --prompt \"To be\" --length 100 --temperature 0.8
  ngen3 sample --model_checkpoint 7M_model.pt --top_k 50 --num_samples 3 --seed 1
  ngen3 sample --model_checkpoint 7M_model.pt --prompt_file play.txt --stop \"ROMEO:\" --temperature 0
  echo \"Once upon a time\" | ngen3 sample --model_checkpoint 7M_model.pt --prompt -";

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let seed = args.seed.unwrap_or_else(seed_of_the_moment);
    let sampling = Sampling {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        min_p: args.min_p,
        repetition_penalty: args.repetition_penalty,
        seed,
    };
    // What can be wrong is looked at before a large file is read.
    sampling.validate()?;
    let prompt = read_prompt(&args)?;

    let path = &args.model_checkpoint;
    let (_, Checkpoint { config, params, meta }) = model::load(path, args.variant)?;
    let Some(tokenizer) = model::tokenizer(path, &config, &meta)? else {
        bail!(
            "{} does not say which tokenizer made its {} token ids, and they are not GPT-2's: it cannot continue text",
            path.display(),
            config.vocab_size
        );
    };
    let options = Options { threads: args.threads.count(), dtype: args.dtype, quant: args.quant, ..Options::default() };
    let block_size = config.block_size;
    let engine = CpuEngine::new(config, params, options)?;

    let ids = encode(&tokenizer, &prompt)?;
    talk::say_what_is_seen(ids.len(), block_size);
    let rows = usize::from(args.num_samples);
    let request = Request {
        prompt: &ids,
        rows,
        length: args.length,
        end: tokenizer.eot(),
        vocab_size: tokenizer.vocab_size(),
        sampling,
    };
    let started = Instant::now();
    let mut generator = Generator::new(&engine, request)?;
    let mut texts: Vec<_> = (0..rows).map(|_| Text::new(tokenizer.stream(), &args.stop)).collect();
    let mut printer = Printer::start(&prompt, rows)?;
    let mut made = 0;
    while let Some(tokens) = generator.step()? {
        let mut ended = Vec::new();
        for (row, (text, token)) in texts.iter_mut().zip(tokens).enumerate() {
            made += usize::from(token.is_some());
            match token {
                Some(token) => text.push(*token),
                None => text.finish(),
            }
            if text.ended {
                ended.push(row);
            }
        }
        ended.into_iter().for_each(|row| generator.end(row));
        printer.show(&mut texts)?;
    }
    texts.iter_mut().for_each(Text::finish);
    printer.show(&mut texts)?;
    let seconds = started.elapsed().as_secs_f64();
    let rate = made as f64 / seconds.max(1e-9);
    write_line(&format!("{} in {seconds:.2} s ({rate:.0}/s), seed {seed}", words::count(made, "token")));
    Ok(())
}

/// A number that differs from run to run and is short enough to type.
pub fn seed_of_the_moment() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.as_micros() as u64 % 1_000_000_000
}

/// The text of `--prompt` or `--prompt_file`; empty when there is neither.
fn read_prompt(args: &Args) -> anyhow::Result<String> {
    let (name, bytes) = match (&args.prompt, &args.prompt_file) {
        (Some(text), _) if text != "-" => return Ok(text.clone()),
        (Some(_), _) => {
            let mut bytes = Vec::new();
            std::io::stdin().lock().read_to_end(&mut bytes).context("cannot read the prompt from stdin")?;
            ("the prompt on stdin".to_string(), bytes)
        }
        (None, Some(path)) => {
            (path.display().to_string(), fs::read(path).with_context(|| format!("cannot read {}", path.display()))?)
        }
        (None, None) => return Ok(String::new()),
    };
    String::from_utf8(bytes)
        .map_err(|error| anyhow!("{name} is not UTF-8 text at byte {}", error.utf8_error().valid_up_to()))
}

/// The prompt's ids; for no prompt, the token that stands between documents, or else a line break.
fn encode(tokenizer: &Tokenizer, prompt: &str) -> anyhow::Result<Vec<u32>> {
    Ok(match tokenizer.eot() {
        Some(eot) if prompt.is_empty() => vec![eot],
        _ => tokenizer.encode(if prompt.is_empty() { "\n" } else { prompt })?,
    })
}

/// One sample's text in the making, up to the first of the texts to stop at.
struct Text<'a> {
    stream: Option<TextStream>,
    stops: &'a [String],
    /// What may be the beginning of a text to stop at.
    held: String,
    /// What can be printed and is not yet.
    ready: String,
    ended: bool,
}

impl<'a> Text<'a> {
    fn new(stream: TextStream, stops: &'a [String]) -> Self {
        Self { stream: Some(stream), stops, held: String::new(), ready: String::new(), ended: false }
    }

    fn push(&mut self, token: u32) {
        let text = self.stream.as_mut().map(|stream| stream.push(token)).unwrap_or_default();
        self.add(&text);
    }

    /// No token follows.
    fn finish(&mut self) {
        if self.ended {
            return;
        }
        let text = self.stream.take().map(TextStream::finish).unwrap_or_default();
        self.add(&text);
        self.ready.push_str(&std::mem::take(&mut self.held));
        self.ended = true;
    }

    fn add(&mut self, text: &str) {
        if self.ended {
            return;
        }
        self.held.push_str(text);
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.ready.push_str(&self.held[..at]);
            self.held.clear();
            self.ended = true;
            return;
        }
        let begins_a_stop = |at: &usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[*at..]));
        let starts = self.held.char_indices().map(|(at, _)| at);
        let safe = starts.into_iter().find(begins_a_stop).unwrap_or(self.held.len());
        self.ready.extend(self.held.drain(..safe));
    }
}

/// Prints samples one after the other: the first as it is made, each further one from where it stands by then.
struct Printer<'a> {
    prompt: &'a str,
    rows: usize,
    /// The sample being printed.
    row: usize,
}

impl<'a> Printer<'a> {
    fn start(prompt: &'a str, rows: usize) -> anyhow::Result<Self> {
        let printer = Self { prompt, rows, row: 0 };
        printer.head()?;
        Ok(printer)
    }

    fn head(&self) -> anyhow::Result<()> {
        if self.rows > 1 {
            stdout::print(&format!("--- sample {} of {} ---\n", self.row + 1, self.rows))?;
        }
        stdout::print(self.prompt)
    }

    fn show(&mut self, texts: &mut [Text]) -> anyhow::Result<()> {
        while let Some(text) = texts.get_mut(self.row) {
            if !text.ready.is_empty() {
                stdout::print(&std::mem::take(&mut text.ready))?;
            }
            if !text.ended {
                break;
            }
            stdout::print("\n")?;
            self.row += 1;
            if self.row < self.rows {
                self.head()?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is printed after each piece of text, and whether the sample ended.
    fn printed(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let stops: Vec<String> = stops.iter().map(ToString::to_string).collect();
        let mut text = Text::new(Tokenizer::gpt2().stream(), &stops);
        let mut printed: Vec<_> = pieces
            .iter()
            .map(|piece| {
                text.add(piece);
                std::mem::take(&mut text.ready)
            })
            .collect();
        let stopped = text.ended;
        text.finish();
        printed.push(text.ready);
        (printed, stopped)
    }

    #[track_caller]
    fn assert_printed(stops: &[&str], pieces: &[&str], expected: &[&str], stopped: bool) {
        assert_eq!(printed(stops, pieces), (expected.iter().map(ToString::to_string).collect(), stopped));
    }

    #[test]
    fn text_without_stops_is_printed_as_it_comes() {
        assert_printed(&[], &["a", "", "bc"], &["a", "", "bc", ""], false);
    }

    #[test]
    fn a_stop_is_found_across_pieces_and_not_printed() {
        assert_printed(&["END"], &["one E", "N", "D two", "three"], &["one ", "", "", "", ""], true);
        assert_printed(&["END"], &["EEN", "DX"], &["E", "", ""], true);
    }

    #[test]
    fn what_only_began_like_a_stop_is_printed_later() {
        assert_printed(&["END"], &["a E", "N", "X E"], &["a ", "", "ENX ", "E"], false);
        assert_printed(&["aab"], &["aa", "a", "b!"], &["", "a", "", ""], true);
    }

    #[test]
    fn the_first_of_several_stops_ends_the_text() {
        assert_printed(&["two", "one"], &["zero one two"], &["zero ", ""], true);
        assert_printed(&["ab", "b"], &["xab"], &["x", ""], true);
    }

    #[test]
    fn characters_of_several_bytes_are_never_split() {
        assert_printed(&["é!"], &["größe é", "é", "!?"], &["größe ", "é", "", ""], true);
    }
}
