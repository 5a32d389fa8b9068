//! nanoGPT's `meta.pkl`: the character vocabulary of a dataset, as `data/shakespeare_char/prepare.py` writes it. Read as data,
//! never executed.

use crate::tensors::pickle::{Id, Node, Pickle};

/// Size limit of a `meta.pkl`, in bytes: every vocabulary of 16-bit ids fits.
pub const MAX_BYTES: usize = 8 << 20;
/// Largest vocabulary: nanoGPT stores ids of 16 bits.
const MAX_VOCAB_SIZE: usize = 1 << 16;

/// Character vocabulary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CharVocab {
    /// Vocabulary size, above every id.
    pub vocab_size: usize,
    /// Characters with their ids, in order of id; both distinct.
    pub chars: Vec<(char, u32)>,
}

impl CharVocab {
    /// Parses a `meta.pkl`: a dictionary with `stoi` (character to id), and optionally `itos` (its inverse) and `vocab_size`.
    ///
    /// # Errors
    /// The reason, if it is another kind of file or vocabulary, or contradicts itself.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let pickle = Pickle::parse(bytes)?;
        let entries = pickle.entries(pickle.root()).ok_or("expected a dictionary with stoi and itos")?;
        let stoi = *entries.get("stoi").ok_or("no stoi: expected a dictionary from characters to ids")?;
        let Node::Dict(pairs) = pickle.node(stoi) else {
            return Err("stoi: expected a dictionary from characters to ids".into());
        };
        let mut chars = pairs.iter().map(|&(key, id)| char_and_id(&pickle, key, id)).collect::<Result<Vec<_>, _>>()?;
        chars.sort_by_key(|&(c, id)| (id, c));
        if let Some(two) = chars.windows(2).find(|two| two[0].1 == two[1].1) {
            return Err(format!("stoi: {:?} and {:?} both have the id {}", two[0].0, two[1].0, two[0].1));
        }
        let mut sorted: Vec<char> = chars.iter().map(|&(c, _)| c).collect();
        sorted.sort_unstable();
        if let Some(two) = sorted.windows(2).find(|two| two[0] == two[1]) {
            return Err(format!("stoi: {:?} has two ids", two[0]));
        }
        let Some(&(_, last)) = chars.last() else { return Err("stoi is empty".into()) };
        let needed = last as usize + 1;
        let vocab_size = match entries.get("vocab_size").map(|&id| pickle.node(id)) {
            None => needed,
            Some(Node::Int(size)) => usize::try_from(*size)
                .ok()
                .filter(|size| (needed..=MAX_VOCAB_SIZE).contains(size))
                .ok_or_else(|| format!("vocab_size: expected {needed} to {MAX_VOCAB_SIZE}, got {size}"))?,
            Some(_) => return Err("vocab_size: expected a number".into()),
        };
        if let Some(&itos) = entries.get("itos") {
            check_inverse(&pickle, itos, &chars)?;
        }
        Ok(Self { vocab_size, chars })
    }
}

fn char_and_id(pickle: &Pickle, key: Id, id: Id) -> Result<(char, u32), String> {
    let Node::Str(text) = pickle.node(key) else { return Err("stoi: expected characters as keys".into()) };
    let mut chars = text.chars();
    let (Some(c), None) = (chars.next(), chars.next()) else {
        let shown: String = text.chars().take(20).collect();
        return Err(format!("stoi: expected single characters, got {shown:?}"));
    };
    match pickle.node(id) {
        Node::Int(id) if (0..MAX_VOCAB_SIZE as i128).contains(id) => Ok((c, *id as u32)),
        Node::Int(id) => Err(format!("stoi: {c:?}: expected an id below {MAX_VOCAB_SIZE}, got {id}")),
        _ => Err(format!("stoi: {c:?}: expected an id")),
    }
}

/// Checks that `itos`, a dictionary or a list, decodes every id as `stoi` encodes it.
fn check_inverse(pickle: &Pickle, itos: Id, chars: &[(char, u32)]) -> Result<(), String> {
    let inverse: Vec<(i128, Id)> = match pickle.node(itos) {
        Node::Dict(pairs) => pairs
            .iter()
            .map(|&(key, value)| match pickle.node(key) {
                Node::Int(id) => Ok((*id, value)),
                _ => Err("itos: expected ids as keys"),
            })
            .collect::<Result<_, _>>()?,
        Node::List(items) => (0..).zip(items.iter().copied()).collect(),
        _ => return Err("itos: expected a dictionary from ids to characters".into()),
    };
    for (id, value) in inverse {
        let at = chars.binary_search_by_key(&id, |&(_, id)| id.into());
        let expected = at.ok().map(|at| chars[at].0);
        let same = matches!(pickle.node(value), Node::Str(text) if expected.is_some_and(|c| text.chars().eq([c])));
        if !same {
            return Err(format!("itos: id {id} is not the character that stoi gives it"));
        }
    }
    Ok(())
}
