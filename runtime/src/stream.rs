//! Token bytes into text, as they arrive: only whole UTF-8 characters come out.
//!
//! A token of a byte-level vocabulary may end in the middle of a character. [`TextStream`] holds such a beginning back
//! until the rest arrives. Bytes that can never become a character come out as U+FFFD, exactly as
//! [`String::from_utf8_lossy`] would write them: the text of a stream never depends on where the tokens were cut.

/// Turns pieces of UTF-8 into text.
#[derive(Debug, Default)]
pub struct TextStream {
    /// The beginning of a character whose end has not arrived: at most three bytes.
    pending: Vec<u8>,
}

impl TextStream {
    /// A stream with nothing pending.
    pub fn new() -> TextStream {
        TextStream::default()
    }

    /// Takes the next bytes and returns the text that is complete now, which may be empty.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    rest = after;
                    let Some(invalid) = error.error_len() else { break };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &rest[invalid..];
                }
            }
        }
        self.pending.drain(..self.pending.len() - rest.len());
        text
    }

    /// Ends the stream: a character that was begun and never finished becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether every way of cutting `bytes` into two or three pieces gives the text that the whole gives.
    fn check(bytes: &[u8]) {
        let whole = String::from_utf8_lossy(bytes);
        for first in 0..=bytes.len() {
            for second in first..=bytes.len() {
                let mut stream = TextStream::new();
                let pieces = [&bytes[..first], &bytes[first..second], &bytes[second..]];
                let mut text: String = pieces.iter().map(|piece| stream.push(piece)).collect();
                text += &stream.finish();
                assert_eq!(text, whole, "{bytes:?} cut at {first} and {second}");
            }
        }
    }

    #[test]
    fn text_does_not_depend_on_the_cuts() {
        check("plain".as_bytes());
        check("é 中 👩‍👩‍👧 end".as_bytes());
        check(b"\xff\xfeA\xf0\x9f\x91");
        check(b"\xf0\x9f\xf0\x9f\x98\x80\xc3");
        check(b"\xe4\xb8A\xed\xa0\x80");
    }

    #[test]
    fn holds_a_character_back_until_it_is_whole() {
        let mut stream = TextStream::new();
        let face = "😀".as_bytes();
        assert_eq!(stream.push(&face[..1]), "");
        assert_eq!(stream.push(&face[1..3]), "");
        assert_eq!(stream.push(&face[3..]), "😀");
        assert_eq!(stream.finish(), "");
    }

    #[test]
    fn an_unfinished_character_becomes_one_replacement_at_the_end() {
        let mut stream = TextStream::new();
        assert_eq!(stream.push(b"a\xf0\x9f\x98"), "a");
        assert_eq!(stream.finish(), "\u{fffd}");
        assert_eq!(stream.finish(), "", "the stream can be used again");
    }
}
