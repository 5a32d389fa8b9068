//! `ngen3 chat`: a conversation with a model, in the terminal.

use std::fs;
use std::io::{BufRead, ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail, ensure};
use ngen3_data::chat::{ChatEncoder, Message, Role};
use ngen3_generate::Sampling;
use ngen3_model::files::write_atomic;
use ngen3_model::words::grouped_count;
use ngen3_model::{Checkpoint, Variant};
use serde_json::{Map, Value, json};
use signal_hook::consts::SIGINT;

use crate::device::device;
use crate::error_line::one_line;
use crate::progress::write_line;
use crate::streaming::{Answer, SamplingFlags};
use crate::{interrupt, model, stdout};

/// Talk to a model
///
/// Each line is a turn; the answer goes to stdout as it is made. The model sees the whole conversation; when that outgrows its
/// block, the oldest turns are forgotten. A line that begins with / is a command: /help lists them. Ctrl-C stops an answer; where
/// there is none to stop, it ends the chat. Where the lines come from a file or a program, the exit code is 1 if one of them failed.
#[derive(clap::Args)]
#[command(rename_all = "snake_case", after_help = EXAMPLES, mut_arg("temperature", |arg| arg.default_value("0.8")))]
pub struct Args {
    /// Model to talk to: .pt, .safetensors, a Hugging Face folder, a name on the hub, or hf (GPT-2 in the size of the variant)
    #[arg(long, value_name = "MODEL")]
    model_checkpoint: PathBuf,
    /// Check that the model is of this variant
    #[arg(long, value_name = "NAME", value_parser = Variant::by_name)]
    variant: Option<&'static Variant>,
    /// What the model is told before everything else
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    system: Option<String>,
    /// Most tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 200)]
    length: usize,
    #[command(flatten)]
    flags: SamplingFlags,
}

const EXAMPLES: &str = "\
Examples:
  ngen3 chat --model_checkpoint finetuned_7M_model.pt
  ngen3 chat --model_checkpoint finetuned_7M_model.pt --system \"Answer in one word.\" --temperature 0
  echo \"Hello, how are you?\" | ngen3 chat --model_checkpoint finetuned_7M_model.pt --seed 1";

const HELP: &str = "\
/reset      forget the conversation
/save FILE  write the conversation as a line of JSON, which finetune reads; a file of such lines is added to
/help       this
/quit       end (so does Ctrl-D)
";

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let sampling = args.flags.sampling()?;
    let path = &args.model_checkpoint;
    let (_, Checkpoint { config, params, meta }) = model::load(path, args.variant)?;
    let Some(tokenizer) = model::tokenizer(path, &config, &meta)? else {
        bail!("{} does not say which tokenizer made its token ids, so nobody can talk to it", path.display());
    };
    if meta.chat.is_none() {
        write_line("note: the model was not trained on conversations, so its answers may be none");
    }
    let encoder = ChatEncoder::new(tokenizer, meta.chat)?;
    let block_size = config.block_size;
    let engine = device().open(config, params, args.flags.options())?;
    let stop = interrupt::watch_for(&[SIGINT])?;

    let system = args.system.into_iter().map(|content| Message { role: Role::System, content });
    let messages: Vec<_> = system.collect();
    let system = messages.len();
    let (length, stops) = (args.length, args.flags.stop);
    let mut talk = Talk { encoder, block_size, length, stops, messages, system, first: system };
    let terminal = std::io::stdin().is_terminal();
    let mut lines = std::io::stdin().lock();
    if terminal {
        write_line("/help lists the commands");
    }
    let (mut turn, mut failed) = (0, 0);
    loop {
        // There is no answer to stop: the first signal ends the program.
        interrupt::idle(true);
        if terminal {
            ask();
        }
        let mut line = String::new();
        let read = lines.read_line(&mut line).context("cannot read what you say from stdin")?;
        if read == 0 {
            break;
        }
        match line.trim() {
            "" => {}
            "/quit" => break,
            "/help" => stdout::print(HELP)?,
            "/reset" => talk.reset(),
            command if command.starts_with('/') => {
                if let Err(error) = other(command, &talk) {
                    write_line(&format!("error: {}", one_line(&error)));
                    failed += 1;
                }
            }
            said => {
                interrupt::idle(false);
                stop.store(false, Ordering::Relaxed);
                turn += 1;
                // Each answer draws anew, and the same whatever was answered before.
                let sampling = Sampling { seed: sampling.seed.wrapping_add(turn), ..sampling };
                match talk.answer(said, &*engine, sampling, &stop)? {
                    Ok(whole) => failed += u64::from(!whole),
                    Err(error) => {
                        write_line(&format!("error: {error}"));
                        failed += 1;
                    }
                }
            }
        }
    }
    // Somebody at a terminal has seen it; a script has not.
    ensure!(terminal || failed == 0, "{} of stdin failed", grouped_count(failed, "line"));
    Ok(())
}

/// Asks for the next turn, on a terminal.
fn ask() {
    let mut err = std::io::stderr().lock();
    // As with every line on stderr: nobody may be reading.
    let _ = err.write_all(b"> ").and_then(|()| err.flush());
}

/// A command that can fail.
fn other(command: &str, talk: &Talk) -> anyhow::Result<()> {
    match command.split_once(char::is_whitespace).unwrap_or((command, "")) {
        ("/save", file) if !file.trim().is_empty() => save(Path::new(file.trim()), &talk.answered()),
        ("/save", _) => bail!("/save needs the name of a file"),
        (name, _) => bail!("there is no command {name}; /help lists them"),
    }
}

/// Writes a conversation into a file, after those that are in it.
fn save(path: &Path, messages: &[&Message]) -> anyhow::Result<()> {
    ensure!(messages.iter().any(|message| message.role == Role::Assistant), "nothing has been answered yet");
    let shown = path.display();
    let before = match fs::read(path) {
        Ok(bytes) => Some(bytes),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| format!("cannot read {shown}, to add to it")),
    };
    let added = before.is_some();
    let text = String::from_utf8(before.unwrap_or_default()).ok().filter(|text| text.lines().all(is_conversation));
    let mut text = text
        .with_context(|| format!("{shown} is there and holds something else than conversations; give another name"))?;
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    let turns: Vec<_> =
        messages.iter().map(|message| json!({ "role": message.role.name(), "content": message.content })).collect();
    text += &format!("{}\n", json!({ "messages": turns }));
    write_atomic(path, |file| file.write_all(text.as_bytes()))?;
    let turns = grouped_count(messages.len() as u64, "turn");
    write_line(&format!("{}{shown}: {turns}", if added { "added to " } else { "" }));
    Ok(())
}

/// True if a line is as [`save`] writes it, or empty.
fn is_conversation(line: &str) -> bool {
    let line = line.trim();
    let has_messages = |object: Map<String, Value>| object.get("messages").is_some_and(Value::is_array);
    line.is_empty() || serde_json::from_str(line).is_ok_and(has_messages)
}

/// A conversation.
struct Talk {
    encoder: ChatEncoder,
    block_size: usize,
    /// Most tokens of an answer.
    length: usize,
    /// Texts before which an answer ends.
    stops: Vec<String>,
    /// All that was said; each turn of the user has its answer after it.
    messages: Vec<Message>,
    /// How many of the messages came before the first turn, and stay.
    system: usize,
    /// The first turn that the model still sees.
    first: usize,
}

impl Talk {
    /// Forgets all turns.
    fn reset(&mut self) {
        self.messages.truncate(self.system);
        self.first = self.system;
    }

    /// What there is to learn from: no turn is empty, as one that was stopped may be, and no question without an answer.
    fn answered(&self) -> Vec<&Message> {
        let (system, turns) = self.messages.split_at(self.system);
        let turns = turns.chunks(2).filter(|pair| pair.iter().all(is_said)).flatten();
        system.iter().filter(|message| is_said(message)).chain(turns).collect()
    }

    /// Answers a turn on stdout; says whether it came to the answer's end. The inner error is one that the conversation survives.
    fn answer(
        &mut self,
        said: &str,
        model: &dyn ngen3_engine::Model,
        sampling: Sampling,
        stop: &AtomicBool,
    ) -> anyhow::Result<Result<bool, String>> {
        self.messages.push(Message::user(said));
        let prompt = match self.prompt() {
            Ok(prompt) => prompt,
            Err(error) => {
                self.messages.pop();
                return Ok(Err(error));
            }
        };
        let (tokenizer, end) = (self.encoder.tokenizer(), Some(self.encoder.end()));
        let mut text = String::new();
        let answer = Answer { prompt: &prompt, length: self.length, end, stops: &self.stops, sampling };
        let whole = answer.make(model, tokenizer, stop, &mut |piece| {
            text.push_str(piece);
            stdout::print(piece)
        })?;
        stdout::print("\n")?;
        if !whole {
            write_line("(stopped)");
        }
        self.messages.push(Message::assistant(text));
        Ok(Ok(whole))
    }

    /// The ids of the conversation, after forgetting the oldest turns as long as there is too little room for an answer.
    fn prompt(&mut self) -> Result<Vec<u32>, String> {
        let room = self.length.min(self.block_size / 4).max(1);
        let mut first = self.first;
        loop {
            let kept = [&self.messages[..self.system], &self.messages[first..]].concat();
            let ids = self.encoder.prompt(&kept).map_err(|error| error.to_string())?;
            if ids.len() + room <= self.block_size {
                if first > self.first {
                    let forgotten = first - self.first;
                    self.first = first;
                    write_line(&format!(
                        "note: the block is full; the oldest turns are forgotten (count: {forgotten})"
                    ));
                }
                return Ok(ids);
            }
            // A question goes with its answer.
            first += 2;
            if first >= self.messages.len() {
                return Err(format!(
                    "that is too long: {} with room for an answer, in a model with a block of {}",
                    grouped_count((ids.len() + room) as u64, "token"),
                    self.block_size
                ));
            }
        }
    }
}

fn is_said(message: &Message) -> bool {
    !message.content.trim().is_empty()
}
