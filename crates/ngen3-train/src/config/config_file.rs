//! `--config FILE.toml`: settings and, for a model that is not a variant, its shape.
//!
//! ```toml
//! # A tiny model. Every key is optional; missing values come from the variant or the defaults.
//! n_layer = 2          # or: layers
//! n_head = 2           # or: heads
//! n_embd = 32          # or: width
//! block_size = 64      # or: block
//! learning_rate = 1e-3
//! max_iters = 500
//! ```

use std::fs::File;
use std::io::Read;
use std::path::Path;

use strsim::levenshtein;

use crate::config::field::Entries;
use crate::{Error, Overrides, Shape};

/// Maximum size of a settings file in bytes; a device or a data file given by mistake is larger.
const MAX_LEN: u64 = 1 << 20;

/// Reads a settings file.
///
/// # Errors
/// [`Error::Io`] if it cannot be read; [`Error::File`] if it is not TOML, or a key or a value is wrong.
pub fn load(path: &Path) -> Result<(Overrides, Shape), Error> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(Error::io("open", path))?;
    file.take(MAX_LEN + 1).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    if bytes.len() as u64 > MAX_LEN {
        return Err(Error::file(path, "expected a settings file, got more than 1 MiB"));
    }
    let text = String::from_utf8(bytes).map_err(|_| Error::file(path, "expected TOML, got invalid UTF-8"))?;
    parse(&text).map_err(|what| Error::file(path, what))
}

/// Parses the text of a settings file; errors name the line and the key.
pub fn parse(text: &str) -> Result<(Overrides, Shape), String> {
    let mut entries = Entries::parse(text, Shape::ALIASES)?;
    let settings = Overrides::take_from(&mut entries)?;
    let shape = Shape::take_from(&mut entries)?;
    match entries.first_left() {
        None => Ok((settings, shape)),
        Some((line, key)) => Err(match near_match(&key) {
            Some(name) => format!("line {line}: unknown setting {key:?}; did you mean {name}?"),
            None => format!("line {line}: unknown setting {key:?}"),
        }),
    }
}

/// Returns the known setting closest to `key`, if one is close enough to be a typo.
fn near_match(key: &str) -> Option<&'static str> {
    let key = key.replace('-', "_").to_ascii_lowercase();
    let aliases = Shape::ALIASES.iter().map(|(alias, _)| alias);
    let names = Overrides::KEYS.iter().chain(Shape::KEYS).chain(aliases).copied();
    let (distance, name) = names.map(|name| (levenshtein(&key, name), name)).min()?;
    (distance <= 1 + name.len() / 4).then_some(name)
}

#[cfg(test)]
mod tests {
    use ngen3_engine::Dtype;
    use ngen3_model::Activation;
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
            ("learning_rat = 1", "line 1: unknown setting \"learning_rat\"; did you mean learning_rate?"),
            ("max-iters = 1", "line 1: unknown setting \"max-iters\"; did you mean max_iters?"),
            ("seed = 1\n# red\ncolour = 1", "line 3: unknown setting \"colour\""),
            ("the_second = 1\nseed = 1\na_third = 1", "line 1: unknown setting \"the_second\""),
            ("\n[train]\nseed = 1", "line 2: unknown setting \"train\""),
            ("layers = 1\nn_layer = 1", "line 2: n_layer and layers are the same setting; keep one"),
            ("n_layer = 1\nlayers = 1", "line 2: layers and n_layer are the same setting; keep one"),
            ("seed = 1\nmax_iters = 'x'", "line 2: max_iters: expected a non-negative integer, got \"x\""),
            ("max_iters = -1", "line 1: max_iters: expected a non-negative integer, got -1"),
            ("width = 1.5", "line 1: width: expected a non-negative integer, got 1.5"),
            ("dropout = 'some'", "line 1: dropout: expected a number, got \"some\""),
            ("val_fraction = [1]", "line 1: val_fraction: expected a number, got a list"),
            ("seed = { a = \"\"\"\n\"\"\" }", "line 1: seed: expected a non-negative integer, got a table"),
            ("keep_best = 1", "line 1: keep_best: expected true or false, got 1"),
            ("dtype = 'f16'", "line 1: dtype: expected \"auto\", \"f32\" or \"bf16\", got \"f16\""),
            (
                "activation = 'relu'",
                "line 1: activation: expected \"gelu_new\" or \"gelu\" (gpt2), or \"swiglu\" (the other families), got \
                 \"relu\"",
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text).unwrap_err(), expected, "{text}");
        }
        let error = parse("seed = 1\nmax_iters = \n").unwrap_err();
        assert!(error.starts_with("line 2: invalid TOML: ") && !error.contains('\n'), "{error}");
    }

    #[test]
    fn files_that_are_no_settings_are_refused_in_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.toml");
        for (bytes, expected) in [(vec![0xff, 0xfe], "invalid UTF-8"), (vec![b' '; (1 << 20) + 1], "more than 1 MiB")] {
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
            prop_assert_eq!(levenshtein(&key, name), 1);
            prop_assert!(near_match(&key).is_some());
        }
    }
}
