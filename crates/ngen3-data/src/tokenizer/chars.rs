//! Character vocabulary: each character is a token. A character without a token is dropped.

/// Marks a character without a token.
const NONE: u32 = u32::MAX;

/// A character vocabulary.
pub(super) struct Chars {
    /// Id of each character by code point, up to the last that has one.
    ids: Vec<u32>,
    /// Character of each id; `None` for an unused id and for special tokens.
    chars: Vec<Option<char>>,
    /// Special tokens, which are never found in text.
    special: Vec<(String, u32)>,
}

impl Chars {
    /// Makes a vocabulary. Characters and ids are distinct; `special` may repeat some of `chars`.
    pub fn new(chars: impl Iterator<Item = (char, u32)> + Clone, special: Vec<(String, u32)>) -> Self {
        let points = chars.clone().map(|(c, _)| c as usize + 1).max().unwrap_or(0);
        let size = chars.clone().map(|(_, id)| id).chain(special.iter().map(|&(_, id)| id)).max();
        let size = size.map_or(0, |last| last as usize + 1);
        let mut vocabulary = Self { ids: vec![NONE; points], chars: vec![None; size], special };
        for (c, id) in chars {
            vocabulary.ids[c as usize] = id;
            vocabulary.chars[id as usize] = Some(c);
        }
        vocabulary
    }

    pub fn vocab_size(&self) -> usize {
        self.chars.len()
    }

    /// Returns the id of a character.
    pub fn id(&self, c: char) -> Option<u32> {
        self.ids.get(c as usize).copied().filter(|&id| id != NONE)
    }

    /// Returns the id of a token.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        if let Some((_, id)) = self.special.iter().find(|(special, _)| special == token) {
            return Some(*id);
        }
        let mut chars = token.chars();
        match (chars.next(), chars.next()) {
            (Some(c), None) => self.id(c),
            _ => None,
        }
    }

    pub fn special(&self) -> &[(String, u32)] {
        &self.special
    }

    /// Returns the characters with their ids, in order of id.
    pub fn tokens(&self) -> impl Iterator<Item = (char, u32)> {
        self.chars.iter().zip(0..).filter_map(|(c, id)| Some(((*c)?, id)))
    }

    /// Appends the ids of `text`.
    pub fn encode_into(&self, text: &str, out: &mut Vec<u32>) {
        out.extend(text.chars().filter_map(|c| self.id(c)));
    }

    /// Appends the text of a token; nothing for an id that is unused or outside the vocabulary.
    pub fn decode_into(&self, id: u32, text: &mut String) {
        match self.chars.get(id as usize) {
            Some(Some(c)) => text.push(*c),
            Some(None) => {
                let special = self.special.iter().find(|&&(_, special)| special == id);
                text.extend(special.map(|(token, _)| token.as_str()));
            }
            None => {}
        }
    }
}
