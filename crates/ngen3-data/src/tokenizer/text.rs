//! Text that grows token by token and ends before a stop text.

use super::TextStream;

/// A text that grows by tokens, up to the first stop text.
pub struct Text {
    stream: Option<TextStream>,
    stops: Vec<String>,
    /// Text held back because it may begin a stop text.
    held: String,
    /// Text that is ready to print; the caller takes it.
    pub ready: String,
    /// Length in characters of the text that was ever ready.
    released: usize,
    /// True if a stop text ended it.
    cut: bool,
    /// True once the text is complete.
    pub ended: bool,
}

impl Text {
    /// Returns an empty text.
    pub fn new(stream: TextStream, stops: &[String]) -> Self {
        let (held, ready) = (String::new(), String::new());
        Self { stream: Some(stream), stops: stops.to_vec(), held, ready, released: 0, cut: false, ended: false }
    }

    /// Adds a token.
    pub fn push(&mut self, token: u32) {
        let text = self.stream.as_mut().map(|stream| stream.push(token)).unwrap_or_default();
        self.add(&text);
    }

    /// Completes the text: no token follows.
    pub fn finish(&mut self) {
        if self.ended {
            return;
        }
        let text = self.stream.take().map(TextStream::finish).unwrap_or_default();
        self.add(&text);
        self.release(self.held.len());
        self.ended = true;
    }

    /// Returns the length in characters of the text that was ever ready: where the next piece of it begins.
    pub fn released(&self) -> usize {
        self.released
    }

    /// Returns the length in characters of the text of all tokens so far, including what is held back.
    pub fn decoded(&self) -> usize {
        self.released + self.held.chars().count()
    }

    /// Returns true if a stop text ended it.
    pub fn is_cut(&self) -> bool {
        self.cut
    }

    fn add(&mut self, text: &str) {
        if self.ended {
            return;
        }
        self.held.push_str(text);
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.release(at);
            self.held.clear();
            (self.ended, self.cut) = (true, true);
            return;
        }
        let begins_a_stop = |at: &usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[*at..]));
        let starts = self.held.char_indices().map(|(at, _)| at);
        let safe = starts.into_iter().find(begins_a_stop).unwrap_or(self.held.len());
        self.release(safe);
    }

    /// Makes the first `len` bytes of the held text ready.
    fn release(&mut self, len: usize) {
        self.released += self.held[..len].chars().count();
        self.ready.extend(self.held.drain(..len));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tokenizer;

    /// Returns the text printed after each piece, and whether a stop text ended it.
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
    fn the_place_of_each_piece_is_known() {
        let mut text = Text::new(Tokenizer::gpt2().stream(), &["END".into()]);
        let places = ["one E", "N", "X", " END", "more"].map(|piece| {
            text.add(piece);
            (text.released(), text.decoded())
        });
        assert_eq!(places, [(4, 5), (4, 6), (7, 7), (8, 8), (8, 8)]);
    }

    #[test]
    fn characters_of_several_bytes_are_never_split() {
        assert_printed(&["é!"], &["größe é", "é", "!?"], &["größe ", "é", "", ""], true);
    }
}
