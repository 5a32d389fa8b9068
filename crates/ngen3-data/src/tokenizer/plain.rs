//! Vocabularies without merges: of the characters of a text, and of bytes.

use std::collections::BTreeSet;

use ngen3_model::hf::Roles;

use super::backend::Backend;
use super::bpe::alphabet::bytes_to_unicode;
use super::bpe::merge::Merges;
use super::bpe::{Bpe, Steps};
use super::chars::Chars;
use super::codec::Tokenizer;
use super::limits::ENDOFTEXT;
use super::{Error, Trained};

/// Makes the vocabulary of the characters of all texts, in order of their code points, as nanoGPT's `prepare.py` does. `eos`, if
/// any, is added as the last token, which ends documents.
///
/// # Errors
/// The first error of `texts`; [`Error::NoText`]; [`Error::Eos`] for a single character.
pub fn train_chars<S, E>(texts: impl Iterator<Item = Result<S, E>>, eos: Option<&str>, name: &str) -> Result<Trained, E>
where
    S: AsRef<str>,
    E: From<Error>,
{
    if let Some(eos) = eos.filter(|eos| eos.chars().nth(1).is_none()) {
        return Err(Error::Eos(eos.into()).into());
    }
    let (mut found, mut bytes) = (BTreeSet::new(), 0);
    for text in texts {
        let text = text?;
        let text = text.as_ref();
        bytes += text.len() as u64;
        // Most text is ASCII, which a table finds faster than a tree.
        let mut ascii = [false; 128];
        for c in text.chars() {
            match ascii.get_mut(c as usize) {
                Some(seen) => *seen = true,
                None => {
                    found.insert(c);
                }
            }
        }
        found.extend((0..128u8).filter(|&c| ascii[usize::from(c)]).map(char::from));
    }
    if found.is_empty() {
        return Err(Error::NoText.into());
    }
    let special = eos.map(|eos| (eos.to_owned(), found.len() as u32));
    let chars = Chars::new(found.iter().copied().zip(0..), special.into_iter().collect());
    let requested = chars.vocab_size();
    let tokenizer = Tokenizer::made(name, Backend::Chars(Box::new(chars)), &Roles::ending_with(eos));
    Ok(Trained { tokenizer, requested, bytes, words: 0 })
}

impl Tokenizer {
    /// Makes a vocabulary of these characters and ids, both distinct, and no other tokens.
    pub fn of_chars(chars: &[(char, u32)], name: &str) -> Tokenizer {
        let chars = Chars::new(chars.iter().copied(), Vec::new());
        Tokenizer::made(name, Backend::Chars(Box::new(chars)), &Roles::default())
    }

    /// Makes the vocabulary of the 256 bytes, each with its value as id, and `<|endoftext|>`.
    pub fn of_bytes(name: &str) -> Tokenizer {
        let spellings: Vec<String> = (0..=255).map(|byte| bytes_to_unicode(&[byte])).collect();
        let tokens: Vec<_> = spellings.iter().map(String::as_str).zip(0..).collect();
        let bpe = Bpe::from_tokens(&tokens, Merges::default(), vec![(ENDOFTEXT.to_owned(), 256)], Steps::default());
        let bpe = bpe.expect("every byte has a token");
        Tokenizer::made(name, Backend::ByteLevel(Box::new(bpe)), &Roles::ending_with(Some(ENDOFTEXT)))
    }
}
