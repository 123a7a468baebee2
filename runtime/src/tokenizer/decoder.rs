//! Tokens back into the bytes that they stand for, one after the other, as they arrive.
//!
//! Some vocabularies put a space in front of a text before they encode it, and of each text after a token that is
//! matched whole. A text that is decoded has that space in its first token, and nobody wrote it: it is left out here,
//! in an answer that streams as in a text that is there at once.

use lathe_plan::{SpacePrefix, TokenKind};

use super::Tokenizer;

/// Where the decoding of a sequence stands.
#[derive(Clone, Copy, Debug, Default)]
pub struct Decoder {
    /// Whether a space at the start of the next ordinary token was put there by the encoding.
    drops_space: bool,
}

impl Decoder {
    /// Before the first token of a text of its own, such as an answer in a chat.
    pub fn new(tokenizer: &Tokenizer) -> Decoder {
        Decoder { drops_space: tokenizer.tables().space_prefix != SpacePrefix::Never }
    }

    /// Before the first token of what goes on after a prompt.
    pub fn after(tokenizer: &Tokenizer, prompt: &[u32]) -> Decoder {
        let mut decoder = Decoder::new(tokenizer);
        for id in prompt {
            decoder.bytes(tokenizer, *id);
        }
        decoder
    }

    /// The bytes that the next token adds to the text that [`Tokenizer::encode`] would make it from.
    pub fn bytes<'a>(&mut self, tokenizer: &'a Tokenizer, id: u32) -> &'a [u8] {
        let tables = tokenizer.tables();
        let bytes = tokenizer.bytes(id);
        let is_ordinary = matches!(tables.kind(id), Some(TokenKind::Normal | TokenKind::Byte));
        let space: &[u8] = if self.drops_space && is_ordinary { b" " } else { b"" };
        self.drops_space = match tables.space_prefix {
            SpacePrefix::Never | SpacePrefix::MissingAtStart => false,
            SpacePrefix::Always | SpacePrefix::Missing => !is_ordinary,
        };
        bytes.strip_prefix(space).unwrap_or(bytes)
    }

    /// The bytes to show for the next token: as [`Self::bytes`], but nothing for control tokens and unused rows.
    pub fn visible_bytes<'a>(&mut self, tokenizer: &'a Tokenizer, id: u32) -> &'a [u8] {
        let bytes = self.bytes(tokenizer, id);
        match tokenizer.tables().kind(id) {
            None | Some(TokenKind::Control | TokenKind::Unused) => &[],
            Some(_) => bytes,
        }
    }
}
