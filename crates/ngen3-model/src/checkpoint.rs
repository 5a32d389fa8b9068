//! Checkpoints: a model's shape, its parameters and how they came about, in one file.
//!
//! Two formats hold the same things under the same names. `.pt` is a PyTorch zip checkpoint in nanoGPT's layout
//! (`checkpoint/torch.rs`); `.safetensors` is Hugging Face's (`checkpoint/safetensors.rs`). What stands beside the
//! tensors is laid out in `header.rs`; how the tensors of a file become the flat array is in `state.rs`. Reading never
//! runs anything that a file says: see `pickle/read.rs`.

mod header;
mod pickle;
pub mod safetensors;
pub(crate) mod state;
pub(crate) mod torch;

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::files::write_atomic;
use crate::{Config, Error, GPT2_VOCAB_SIZE, ParamList, hf};

/// A model as a file holds it.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// The model's shape.
    pub config: Config,
    /// `[total]`, in the order of [`ParamList`].
    pub params: Vec<f32>,
    /// How it came about.
    pub meta: CheckpointMeta,
}

/// What a checkpoint says beside the parameters.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CheckpointMeta {
    /// Optimizer steps done.
    pub iter_num: u64,
    /// The lowest validation loss so far, in nats per token; `None` before the first evaluation.
    pub best_val_loss: Option<f64>,
    /// What made its token ids.
    pub tokenizer: TokenizerRef,
    /// How conversations become text, for a model that was trained on them.
    pub chat: Option<ChatFormat>,
    /// How it was trained: settings by name.
    pub training: Map<String, Value>,
    /// What benchmarks and texts it was measured on, by the task's name: `{version, n-shot, n-samples, dataset, metrics}`.
    pub evaluations: Map<String, Value>,
}

/// The tokenizer that a model's ids belong to; it travels with the model. Stored as one string.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum TokenizerRef {
    /// GPT-2's, which is built in: `"gpt2"`.
    #[default]
    Gpt2,
    /// The whole text of a Hugging Face `tokenizer.json`.
    Json(String),
    /// The file does not say, and its vocabulary is not GPT-2's: `""`.
    Unknown,
}

/// How conversations become text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatFormat {
    /// A Jinja template, which `transformers` keeps as `chat_template`.
    pub template: String,
    /// What the template knows as `bos_token`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bos_token: Option<String>,
    /// What the template knows as `eos_token`. A turn of the assistant ends with it, if it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eos_token: Option<String>,
}

/// nanoGPT trains from scratch with GPT-2's vocabulary rounded up to a multiple of 64.
const NANOGPT_VOCAB_SIZE: usize = 50_304;

impl TokenizerRef {
    /// The largest tokenizer.json that is taken, in bytes: well above any in use, and no larger than a checkpoint can hold.
    pub const MAX_BYTES: usize = 48 << 20;

    /// What made the ids of a model that does not say: GPT-2's tokenizer, if the vocabulary is of its size.
    pub(crate) fn guess(vocab_size: usize) -> Self {
        match vocab_size {
            GPT2_VOCAB_SIZE | NANOGPT_VOCAB_SIZE => Self::Gpt2,
            _ => Self::Unknown,
        }
    }
}

impl From<String> for TokenizerRef {
    fn from(text: String) -> Self {
        match text.as_str() {
            "gpt2" => Self::Gpt2,
            "" => Self::Unknown,
            _ => Self::Json(text),
        }
    }
}

impl From<TokenizerRef> for String {
    fn from(tokenizer: TokenizerRef) -> Self {
        match tokenizer {
            TokenizerRef::Gpt2 => "gpt2".into(),
            TokenizerRef::Json(text) => text,
            TokenizerRef::Unknown => String::new(),
        }
    }
}

impl Checkpoint {
    /// Reads a checkpoint: ours, nanoGPT's `ckpt.pt`, a safetensors file of ours, or a Hugging Face folder. The content
    /// decides the format.
    ///
    /// # Errors
    /// [`Error::Read`] naming the file and what is wrong with it.
    pub fn load(path: &Path) -> Result<Self, Error> {
        if path.is_dir() { hf::read(path) } else { Ok(read(path).map_err(refused(path))?.0) }
    }

    /// Checks that this checkpoint, which came from `path`, is a model of the shape `expected`.
    fn expect(&self, path: &Path, expected: &Config) -> Result<(), Error> {
        let (found, wanted) = (fields(&self.config), fields(expected));
        let differences: Vec<_> = found
            .iter()
            .filter(|(name, value)| wanted.get(*name) != Some(value))
            .map(|(name, value)| format!("{name} is {value}, not {}", wanted[name]))
            .collect();
        if differences.is_empty() {
            return Ok(());
        }
        Err(Error::OtherModel { path: path.into(), differences: differences.join("; ") })
    }

    /// As [`Checkpoint::load`], of a model that must have the shape `expected`.
    ///
    /// # Errors
    /// The same; [`Error::OtherModel`] naming each field that differs.
    pub fn load_for(path: &Path, expected: &Config) -> Result<Self, Error> {
        let checkpoint = Self::load(path)?;
        checkpoint.expect(path, expected)?;
        Ok(checkpoint)
    }
}

/// Says that a file cannot be read, and why. A reason may quote the file, which can hold anything: its line breaks and its
/// length stay out of the error.
pub(crate) fn refused(path: &Path) -> impl FnOnce(String) -> Error {
    |reason| {
        let reason = reason.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).take(300).collect();
        Error::Read { path: path.into(), reason }
    }
}

fn fields(config: &Config) -> Map<String, Value> {
    match serde_json::to_value(config) {
        Ok(Value::Object(fields)) => fields,
        other => unreachable!("a Config serialises to an object, not {other:?}"),
    }
}

/// Writes a checkpoint whole or not at all; a `.pt` or `.safetensors` ending chooses the format.
///
/// # Errors
/// [`Error::Write`] naming the file: another ending, or the disk's refusal.
///
/// # Panics
/// If `params` is not as long as `config` says.
pub fn save(path: &Path, config: &Config, params: &[f32], meta: &CheckpointMeta) -> Result<(), Error> {
    let list = ParamList::new(config);
    assert_eq!(params.len(), list.total(), "the parameters of another shape");
    match Format::of(path)? {
        Format::Torch => write_atomic(path, |file| torch::write(file, config, &list, params, meta)),
        Format::Safetensors => write_atomic(path, |file| safetensors::write(file, config, &list, params, meta)),
    }
}

/// Changes what a checkpoint of ours says beside the parameters. `false` if the file is another program's, which may hold
/// what would be lost: it stays as it is.
///
/// # Errors
/// [`Error::Read`] naming the file; [`Error::Write`] as [`AtomicFile::commit`](crate::files::AtomicFile::commit).
pub fn amend(path: &Path, change: impl FnOnce(&mut CheckpointMeta)) -> Result<bool, Error> {
    let (mut checkpoint, ours) = read(path).map_err(refused(path))?;
    if ours {
        change(&mut checkpoint.meta);
        save(path, &checkpoint.config, &checkpoint.params, &checkpoint.meta)?;
    }
    Ok(ours)
}

/// The format that a checkpoint's ending chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `.pt`
    Torch,
    /// `.safetensors`
    Safetensors,
}

impl Format {
    /// Looks at a path's ending: worth doing before hours of training rather than after.
    ///
    /// # Errors
    /// [`Error::Write`] for any other ending.
    pub fn of(path: &Path) -> Result<Self, Error> {
        match path.extension().and_then(|ending| ending.to_str()) {
            Some("pt") => Ok(Self::Torch),
            Some("safetensors") => Ok(Self::Safetensors),
            _ => {
                let source = io::Error::other("a checkpoint's name ends in .pt or .safetensors");
                Err(Error::Write { path: path.into(), source })
            }
        }
    }
}

/// Reads a file; says whether it is one of ours.
fn read(path: &Path) -> Result<(Checkpoint, bool), String> {
    let (file, len, format) = open(path)?;
    match format {
        Format::Torch => torch::read(file, len),
        Format::Safetensors => safetensors::read(file, len),
    }
}

/// Opens a file of tensors: with its length, and the format that its first bytes tell.
pub(crate) fn open(path: &Path) -> Result<(File, u64, Format), String> {
    let say = |error: io::Error| error.to_string();
    let metadata = fs::metadata(path).map_err(say)?;
    if !metadata.is_file() {
        return Err("it is not a file".into());
    }
    let mut file = File::open(path).map_err(say)?;
    let len = metadata.len();
    let mut start = [0; 9];
    let got = usize::try_from(len).unwrap_or(usize::MAX).min(start.len());
    file.read_exact(&mut start[..got]).map_err(say)?;
    file.rewind().map_err(say)?;
    match start[..got] {
        [] => Err("it is empty".into()),
        [b'P', b'K', ..] => Ok((file, len, Format::Torch)),
        // A header's length, then its JSON.
        [_, _, _, _, _, _, _, _, b'{'] => Ok((file, len, Format::Safetensors)),
        // A bare pickle: its first opcode names the protocol.
        [0x80, ..] => Err("it is in PyTorch's format from before version 1.6; load it with PyTorch and torch.save it \
            again, then it can be read here"
            .into()),
        _ => Err("it is not a checkpoint: it starts like neither a PyTorch zip file nor a safetensors file".into()),
    }
}
