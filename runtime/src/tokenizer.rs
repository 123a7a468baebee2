//! Text into tokens and tokens into bytes, from the plan's ready tables.
//!
//! Texts that stand for whole tokens are taken out first ([`added`]). What lies between is encoded by one of three kinds
//! of byte-pair encoding. The byte-level one cuts it into pieces ([`split`]) and applies merges to the bytes of each
//! ([`merge`]). The others take it whole, spelled in characters: `SentencePiece`'s own joins them by the rank of what comes
//! out, and its form in Hugging Face's files by merges. Every stage takes time of at most `n log n`, whatever the text.
//!
//! A control token such as `<|im_end|>` is structure. It is made from text only when the caller says that the text is
//! trusted to hold structure ([`Control::Recognize`]); a user's text never becomes one, because no merge may yield one.

pub mod added;
mod categories;
pub mod decoder;
pub mod merge;
pub mod split;

use std::borrow::Cow;

use lathe_plan::tokenizer::Rule;
use lathe_plan::{DecodeError, PackedTokenizer, SpacePrefix, TokenKind, TokenizerModel};
use unicode_normalization::{UnicodeNormalization, is_nfc};

use self::added::Added;
use self::decoder::Decoder;
use self::merge::{Merger, UNKNOWN};
use self::split::Scanner;

/// Why tables make no tokenizer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The tables contradict themselves.
    #[error("the plan's tokenizer is inconsistent: {0}; recompile the model")]
    Tables(DecodeError),
    /// A pre-tokenizer that this version does not know.
    #[error("the plan's tokenizer cuts text by the rule `{found}`, this version knows {known}; use a newer lathe")]
    Pretokenizer {
        /// The name in the tables.
        found: String,
        /// All known names.
        known: String,
    },
    /// A merge yields a control token, so that a user could write one.
    #[error("merge {rank} of the plan's tokenizer yields the control token {token}; the model's tokenizer is damaged")]
    ControlMerge {
        /// Index of the merge.
        rank: usize,
        /// The token.
        token: u32,
    },
}

/// What the text of a control token becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Plain text, spelled with ordinary tokens: for what users and documents say.
    AsText,
    /// The token: for templates and for prompts that their author wrote token by token.
    Recognize,
}

/// Part of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment<'a> {
    /// A text that stands for one token.
    Token(u32),
    /// What merges apply to.
    Text(&'a str),
}

/// A tokenizer, ready to use.
#[derive(Debug)]
pub struct Tokenizer {
    tables: PackedTokenizer,
    /// Cuts text into pieces, where the model merges within pieces.
    scanner: Scanner,
    added: Added,
    /// The token of each single byte; a byte that has none is left out of the encoding, as elsewhere.
    bytes: [Option<u32>; 256],
}

/// What `SentencePiece`'s vocabularies have in place of a space; both are the same to it.
const SPACE_MARK: char = '▁';

impl Tokenizer {
    /// Takes a plan's tables, or those that a plan would be made of, which are packed first. The plan's are used as they
    /// lie there: nothing is built that grows with the vocabulary.
    ///
    /// # Errors
    /// When the tables contradict each other, or ask for what this version does not know.
    pub fn new<T>(tables: T) -> Result<Tokenizer, TokenizerError>
    where
        T: TryInto<PackedTokenizer>,
        DecodeError: From<T::Error>,
    {
        let tables = tables.try_into().map_err(|error| TokenizerError::Tables(error.into()))?;
        let is_bpe = tables.model == TokenizerModel::Bpe;
        let scanner = if is_bpe { scanner(&tables.pretokenizer)? } else { str::len };
        let is_control = |id: u32| tables.kind(id) == Some(TokenKind::Control);
        if let Some((rank, merge)) = tables.merges().enumerate().find(|(_, merge)| is_control(merge.merged)) {
            return Err(TokenizerError::ControlMerge { rank, token: merge.merged });
        }
        let mut bytes = [None; 256];
        for (id, kind) in (0..).zip(tables.kinds()) {
            let is_byte = kind == TokenKind::Byte || (kind == TokenKind::Normal && is_bpe);
            if let (true, Some(&[byte])) = (is_byte, tables.token(id)) {
                bytes[usize::from(byte)].get_or_insert(id);
            }
        }
        Ok(Tokenizer { scanner, added: Added::new(&tables), bytes, tables })
    }

    /// The tokens of a text, without a BOS token.
    pub fn encode(&self, text: &str, control: Control) -> Vec<u32> {
        let mut out = Vec::with_capacity(text.len() / 4 + 4);
        self.encode_into(text, control, &mut out);
        out
    }

    /// Appends the tokens of a text, which starts the whole text where there are no tokens yet.
    pub(crate) fn encode_into(&self, text: &str, control: Control, out: &mut Vec<u32>) {
        let mut merger = Merger::default();
        for segment in self.added.segments(&self.tables, text, control) {
            match segment {
                Segment::Token(id) => out.push(id),
                Segment::Text(text) => self.encode_text(text, &mut merger, out),
            }
        }
    }

    /// The tokens of a whole document: [`Self::encode`] with the tokens around it that the model expects, BOS and EOS.
    pub fn encode_document(&self, text: &str, control: Control) -> Vec<u32> {
        let mut tokens = self.encode_prompt(text, control);
        tokens.extend(self.tables.add_eos.filter(|eos| tokens.last() != Some(eos)));
        tokens
    }

    /// The tokens of a text that goes on: [`Self::encode`] with the BOS token in front, where the model expects one.
    pub fn encode_prompt(&self, text: &str, control: Control) -> Vec<u32> {
        let mut tokens = self.encode(text, control);
        if let Some(bos) = self.leading_bos().filter(|bos| tokens.first() != Some(bos)) {
            tokens.insert(0, bos);
        }
        tokens
    }

    /// Takes apart what stands for whole tokens and what merges apply to.
    pub fn segments<'a>(&self, text: &'a str, control: Control) -> impl Iterator<Item = Segment<'a>> {
        self.added.segments(&self.tables, text, control).into_iter()
    }

    /// Encodes a text that holds no whole tokens and stands at the start or after one.
    fn encode_text(&self, text: &str, merger: &mut Merger, out: &mut Vec<u32>) {
        let text = if self.tables.nfc && !text.is_ascii() && !is_nfc(text) {
            Cow::Owned(text.nfc().collect::<String>())
        } else {
            Cow::Borrowed(text)
        };
        match self.tables.model {
            TokenizerModel::Bpe => self.encode_pieces(&text, merger, out),
            TokenizerModel::Spm => self.encode_spm(&self.with_spaces(&text, out.is_empty()), merger, out),
            TokenizerModel::Characters => self.encode_characters(&self.with_spaces(&text, out.is_empty()), merger, out),
        }
    }

    /// Cuts the text and merges the bytes of each piece.
    fn encode_pieces(&self, mut text: &str, merger: &mut Merger, out: &mut Vec<u32>) {
        while !text.is_empty() {
            let (piece, rest) = text.split_at((self.scanner)(text));
            text = rest;
            // Without whole pieces there is no table to find them in.
            if let Some(token) = self.tables.find(piece.as_bytes()).filter(|_| self.tables.whole_pieces) {
                out.push(token);
                continue;
            }
            let tokens = piece.bytes().filter_map(|byte| self.bytes[usize::from(byte)]);
            merger.merge(tokens.map(|token| (token, 1)), |left, right, _| self.tables.rule(left, right));
            out.extend(merger.tokens().map(|(token, _)| token));
        }
    }

    /// The text as a `SentencePiece` vocabulary sees it: every space spelled as one, and with its space in front.
    fn with_spaces<'a>(&self, text: &'a str, is_start: bool) -> Cow<'a, str> {
        let has_space = || text.starts_with([' ', SPACE_MARK]);
        let is_prefixed = match self.tables.space_prefix {
            SpacePrefix::Never => false,
            SpacePrefix::Always => true,
            SpacePrefix::Missing => !has_space(),
            SpacePrefix::MissingAtStart => is_start && !has_space(),
        };
        if !is_prefixed && !text.contains(SPACE_MARK) {
            return Cow::Borrowed(text);
        }
        let prefix = if is_prefixed { " " } else { "" };
        Cow::Owned(format!("{prefix}{text}").replace(SPACE_MARK, " "))
    }

    /// Joins characters into tokens; what remains without a token is spelled in bytes.
    fn encode_spm(&self, text: &str, merger: &mut Merger, out: &mut Vec<u32>) {
        let bytes = text.as_bytes();
        let characters = text.char_indices().map(|(at, c)| {
            let length = c.len_utf8();
            (self.tables.find(&bytes[at..at + length]).unwrap_or(UNKNOWN), length)
        });
        merger.merge(characters, |_, _, span| {
            let merged = self.tables.find(&bytes[span])?;
            Some(Rule { rank: self.tables.rank(merged)?, merged })
        });
        for (token, span) in merger.tokens() {
            if token == UNKNOWN {
                self.spell(&bytes[span], out);
            } else {
                out.push(token);
            }
        }
    }

    /// Spells what has no token in bytes, then merges.
    fn encode_characters(&self, text: &str, merger: &mut Merger, out: &mut Vec<u32>) {
        let bytes = text.as_bytes();
        let mut spelled = Vec::with_capacity(text.len());
        for (at, c) in text.char_indices() {
            let character = &bytes[at..at + c.len_utf8()];
            match self.tables.find(character) {
                Some(token) => spelled.push(token),
                None => self.spell(character, &mut spelled),
            }
        }
        merger.merge(spelled.into_iter().map(|token| (token, 1)), |left, right, _| self.tables.rule(left, right));
        out.extend(merger.tokens().map(|(token, _)| token));
    }

    /// A character's byte tokens, or the unknown one where a byte has none.
    fn spell(&self, character: &[u8], out: &mut Vec<u32>) {
        let spelled = character.iter().map(|byte| self.bytes[usize::from(*byte)]);
        match spelled.collect::<Option<Vec<u32>>>() {
            Some(spelled) => out.extend(spelled),
            None => out.extend(self.tables.unk),
        }
    }

    /// The bytes that a token stands for; none for an id outside the vocabulary.
    pub fn bytes(&self, id: u32) -> &[u8] {
        self.tables.token(id).unwrap_or_default()
    }

    /// The bytes of a sequence, control tokens included: the text that [`Self::encode`] would make it from, without the
    /// spaces that it puts in front.
    pub fn decode(&self, ids: &[u32]) -> Vec<u8> {
        let mut decoder = Decoder::new(self);
        ids.iter().flat_map(|id| decoder.bytes(self, *id)).copied().collect()
    }

    /// The texts of all control tokens.
    pub fn control_texts(&self) -> impl Iterator<Item = &str> {
        added::control_texts(&self.tables)
    }

    /// The BOS token, where texts are tokenized with it in front.
    pub fn leading_bos(&self) -> Option<u32> {
        self.tables.bos.filter(|_| self.tables.add_bos)
    }

    /// The tables.
    pub fn tables(&self) -> &PackedTokenizer {
        &self.tables
    }
}

fn scanner(name: &str) -> Result<Scanner, TokenizerError> {
    split::scanner(name).ok_or_else(|| TokenizerError::Pretokenizer {
        found: name.to_owned(),
        known: split::SCANNERS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "),
    })
}

#[cfg(test)]
mod tests;
