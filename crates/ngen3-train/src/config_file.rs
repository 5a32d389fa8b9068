//! `--config FILE.toml`: settings and, for a model that is no variant, its shape.
//!
//! ```toml
//! # A tiny model. Every key is optional; what is not said comes from the variant, or from the defaults.
//! n_layer = 2          # or: layers
//! n_head = 2           # or: heads
//! n_embd = 32          # or: width
//! block_size = 64      # or: block
//! learning_rate = 1e-3
//! max_iters = 500
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use ngen3_engine::Dtype;
use ngen3_model::{Activation, Config, Variant};
use serde::de::DeserializeOwned;
use toml::de::DeTable;

use crate::{Error, Overrides};

/// No file of settings is longer than this, in bytes; a device or a data file given by mistake is.
const MAX_LEN: u64 = 1 << 20;

/// A model's shape, as far as somebody asked for it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Shape {
    /// Transformer blocks.
    pub n_layer: Option<usize>,
    /// Attention heads.
    pub n_head: Option<usize>,
    /// Width of the residual stream.
    pub n_embd: Option<usize>,
    /// Longest context, in tokens.
    pub block_size: Option<usize>,
    /// Rows of the token embedding.
    pub vocab_size: Option<usize>,
    /// The MLP's non-linearity.
    pub activation: Option<Activation>,
}

impl Shape {
    const KEYS: [&str; 6] = ["n_layer", "n_head", "n_embd", "block_size", "vocab_size", "activation"];
    /// What else a key may be called.
    const ALIASES: [(&str, &str); 5] = [
        ("layers", "n_layer"),
        ("heads", "n_head"),
        ("width", "n_embd"),
        ("block", "block_size"),
        ("vocabulary", "vocab_size"),
    ];

    /// This shape, and where it says nothing, `below`.
    pub fn or(self, below: Self) -> Self {
        Self {
            n_layer: self.n_layer.or(below.n_layer),
            n_head: self.n_head.or(below.n_head),
            n_embd: self.n_embd.or(below.n_embd),
            block_size: self.block_size.or(below.block_size),
            vocab_size: self.vocab_size.or(below.vocab_size),
            activation: self.activation.or(below.activation),
        }
    }

    /// Whether it says nothing else of layers, heads and width than a variant, or the GPT-2 that is named after it.
    pub(crate) fn keeps_to(&self, variant: &Variant) -> bool {
        let Config { n_layer, n_head, n_embd, .. } = variant.config();
        let says = |n_layer, n_head, n_embd| {
            let said = [(self.n_layer, n_layer), (self.n_head, n_head), (self.n_embd, n_embd)];
            said.into_iter().all(|(said, own)| said.is_none_or(|said| said == own))
        };
        says(n_layer, n_head, n_embd) || variant.gpt2().is_some_and(|gpt2| says(gpt2.n_layer, gpt2.n_head, gpt2.n_embd))
    }

    fn take_from(entries: &mut Entries) -> Result<Self, String> {
        Ok(Self {
            n_layer: entries.take("n_layer")?,
            n_head: entries.take("n_head")?,
            n_embd: entries.take("n_embd")?,
            block_size: entries.take("block_size")?,
            vocab_size: entries.take("vocab_size")?,
            activation: entries.take("activation")?,
        })
    }
}

impl From<&Config> for Shape {
    fn from(config: &Config) -> Self {
        Self {
            n_layer: Some(config.n_layer),
            n_head: Some(config.n_head),
            n_embd: Some(config.n_embd),
            block_size: Some(config.block_size),
            vocab_size: Some(config.vocab_size),
            activation: Some(config.activation),
        }
    }
}

/// Reads a file of settings.
///
/// # Errors
/// [`Error::Io`] if it cannot be read; [`Error::File`] if it is not TOML, or a key or a value is wrong.
pub fn load(path: &Path) -> Result<(Overrides, Shape), Error> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(Error::io("open", path))?;
    file.take(MAX_LEN + 1).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    if bytes.len() as u64 > MAX_LEN {
        return Err(Error::file(path, "too long for a file of settings"));
    }
    let text = String::from_utf8(bytes).map_err(|_| Error::file(path, "not text, so not a file of settings"))?;
    parse(&text).map_err(|what| Error::file(path, what))
}

/// Reads settings from the text of a TOML file; the error says what is wrong with it.
pub fn parse(text: &str) -> Result<(Overrides, Shape), String> {
    let mut entries = Entries::of(text)?;
    let settings = Overrides::take_from(&mut entries)?;
    let shape = Shape::take_from(&mut entries)?;
    match entries.0.into_iter().min_by_key(|(_, entry)| entry.line) {
        None => Ok((settings, shape)),
        Some((key, Entry { line, .. })) => Err(match near_match(&key) {
            Some(name) => format!("line {line}: there is no setting {key:?}; did you mean {name}?"),
            None => format!("line {line}: there is no setting {key:?}"),
        }),
    }
}

/// What a file says, by the settings' own names.
pub(crate) struct Entries(BTreeMap<String, Entry>);

struct Entry {
    /// As it is called in the file.
    key: String,
    /// Where that stands.
    line: usize,
    value: toml::Value,
}

impl Entries {
    fn of(text: &str) -> Result<Self, String> {
        let line_at = |at: usize| 1 + text[..at].matches('\n').count();
        let not_toml = |error: toml::de::Error| {
            let line = error.span().map_or(1, |span| line_at(span.start));
            format!("line {line} is not TOML: {}", error.message().replace('\n', ", "))
        };
        let mut values: toml::Table = text.parse().map_err(not_toml)?;
        let places = DeTable::parse(text).map_err(not_toml)?;
        let mut entries = BTreeMap::new();
        let mut places: Vec<_> = places.get_ref().keys().collect();
        places.sort_by_key(|place| place.span().start);
        for place in places {
            let (key, line) = (place.get_ref().to_string(), line_at(place.span().start));
            let Some(value) = values.remove(&key) else { continue };
            let name = Shape::ALIASES.iter().find(|(alias, _)| *alias == key).map_or(key.as_str(), |(_, name)| name);
            if let Some(Entry { key: other, .. }) =
                entries.insert(name.to_owned(), Entry { key: key.clone(), line, value })
            {
                return Err(format!("line {line}: {key} and {other} are the same setting; keep one"));
            }
        }
        Ok(Self(entries))
    }

    /// Takes a setting out.
    pub(crate) fn take<T: Setting>(&mut self, name: &str) -> Result<Option<T>, String> {
        let Some(Entry { key, line, value }) = self.0.remove(name) else { return Ok(None) };
        let shown = shown(&value);
        let must = T::MUST;
        value.try_into().map(Some).map_err(|_| format!("line {line}: {key} is {shown}; it must be {must}"))
    }
}

/// A value as an error quotes it, on one line.
fn shown(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) if text.chars().count() > 40 => "a long text".into(),
        toml::Value::String(text) => format!("{text:?}"),
        toml::Value::Array(_) => "a list".into(),
        toml::Value::Table(_) => "a table".into(),
        value => value.to_string(),
    }
}

/// What a setting can be.
pub(crate) trait Setting: DeserializeOwned {
    /// In words.
    const MUST: &str;
}

impl Setting for u64 {
    const MUST: &str = "a whole number, 0 or more";
}

impl Setting for usize {
    const MUST: &str = u64::MUST;
}

impl Setting for f32 {
    const MUST: &str = "a number";
}

impl Setting for f64 {
    const MUST: &str = "a number";
}

impl Setting for bool {
    const MUST: &str = "true or false";
}

impl Setting for Dtype {
    const MUST: &str = "\"auto\", \"f32\" or \"bf16\"";
}

impl Setting for Activation {
    const MUST: &str = "\"gelu_new\" or \"gelu\"";
}

/// The setting that `key` was probably meant to be.
fn near_match(key: &str) -> Option<&'static str> {
    let key = key.replace('-', "_").to_ascii_lowercase();
    let names = Overrides::KEYS.iter().chain(&Shape::KEYS).copied().chain(Shape::ALIASES.map(|(alias, _)| alias));
    let (distance, name) = names.map(|name| (edit_distance(&key, name), name)).min()?;
    (distance <= 1 + name.len() / 4).then_some(name)
}

/// Letters to insert, delete or replace to make `b` of `a` (Levenshtein 1966).
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, &y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn settings_and_a_shape_are_read() {
        let text =
            "layers = 2\nn_head = 3\nwidth = 12\nactivation = 'gelu'\nlearning_rate = 1\nseed = 5\ndtype = 'f32'\n";
        let (settings, shape) = parse(text).unwrap();
        let expected = Shape {
            n_layer: Some(2),
            n_head: Some(3),
            n_embd: Some(12),
            activation: Some(Activation::Gelu),
            ..Shape::default()
        };
        assert_eq!(shape, expected);
        let expected =
            Overrides { learning_rate: Some(1.0), seed: Some(5), dtype: Some(Dtype::F32), ..Overrides::default() };
        assert_eq!(settings, expected);
        assert_eq!(parse("").unwrap(), (Overrides::default(), Shape::default()));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            ("learning_rat = 1", "line 1: there is no setting \"learning_rat\"; did you mean learning_rate?"),
            ("max-iters = 1", "line 1: there is no setting \"max-iters\"; did you mean max_iters?"),
            ("seed = 1\n# red\ncolour = 1", "line 3: there is no setting \"colour\""),
            ("the_second = 1\nseed = 1\na_third = 1", "line 1: there is no setting \"the_second\""),
            ("\n[train]\nseed = 1", "line 2: there is no setting \"train\""),
            ("layers = 1\nn_layer = 1", "line 2: n_layer and layers are the same setting; keep one"),
            ("n_layer = 1\nlayers = 1", "line 2: layers and n_layer are the same setting; keep one"),
            ("seed = 1\nmax_iters = 'x'", "line 2: max_iters is \"x\"; it must be a whole number, 0 or more"),
            ("max_iters = -1", "line 1: max_iters is -1; it must be a whole number, 0 or more"),
            ("width = 1.5", "line 1: width is 1.5; it must be a whole number, 0 or more"),
            ("dropout = 'some'", "line 1: dropout is \"some\"; it must be a number"),
            ("val_fraction = [1]", "line 1: val_fraction is a list; it must be a number"),
            ("seed = { a = \"\"\"\n\"\"\" }", "line 1: seed is a table; it must be a whole number, 0 or more"),
            ("keep_best = 1", "line 1: keep_best is 1; it must be true or false"),
            ("dtype = 'f16'", "line 1: dtype is \"f16\"; it must be \"auto\", \"f32\" or \"bf16\""),
            ("activation = 'relu'", "line 1: activation is \"relu\"; it must be \"gelu_new\" or \"gelu\""),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text).unwrap_err(), expected, "{text}");
        }
        let error = parse("seed = 1\nmax_iters = \n").unwrap_err();
        assert!(error.starts_with("line 2 is not TOML: ") && !error.contains('\n'), "{error}");
    }

    #[test]
    fn files_that_are_no_settings_are_refused_in_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.toml");
        for (bytes, expected) in [(vec![0xff, 0xfe], "not text"), (vec![b' '; (1 << 20) + 1], "too long")] {
            std::fs::write(&path, bytes).unwrap();
            let error = load(&path).unwrap_err().to_string();
            assert!(error.contains("x.toml") && error.contains(expected), "{error}");
        }
        let error = load(&dir.path().join("none.toml")).unwrap_err().to_string();
        assert!(error.contains("none.toml"), "{error}");
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(([a-z_]{0,8}|seed|layers|width)? ?=? ?[\\[\"'0-9a-zé.\\]-]{0,6}\n?){0,6}") {
            if let Err(error) = parse(&text) {
                prop_assert!(!error.is_empty() && !error.contains('\n'), "{}", error);
            }
        }

        #[test]
        fn every_whole_number_comes_back(n in 0..=i64::MAX as u64) {
            let (settings, _) = parse(&format!("max_iters = {n}")).unwrap();
            prop_assert_eq!(settings.max_iters, Some(n));
        }

        #[test]
        fn one_wrong_letter_is_understood(index in 0..Overrides::KEYS.len(), letter in "[a-z]", at in 0usize..4) {
            let name = Overrides::KEYS[index];
            let mut key = name.to_owned();
            key.replace_range(at..=at, &letter);
            prop_assume!(key != name);
            prop_assert_eq!(edit_distance(&key, name), 1);
            prop_assert!(near_match(&key).is_some());
        }
    }
}
