//! Text into tokens and tokens into bytes, from the plan's ready tables.
//!
//! Texts that stand for whole tokens are taken out first ([`added`]). What lies between is encoded by one of two kinds of
//! byte-pair encoding. The byte-level one cuts it into pieces ([`split`]) and applies merges to the bytes of each
//! ([`merge`]). `SentencePiece`'s takes it whole and joins characters into tokens by the rank of what comes out
//! ([`vocabulary`]). Every stage takes time of at most `n log n`, whatever the text.
//!
//! A control token such as `<|im_end|>` is structure. It is made from text only when the caller says that the text is
//! trusted to hold structure ([`Control::Recognize`]); a user's text never becomes one, because no merge may yield one.

pub mod added;
pub mod merge;
pub mod split;
pub mod vocabulary;

use std::borrow::Cow;

use lathe_plan::{TokenKind, TokenizerModel, TokenizerTables};

use self::added::Added;
use self::merge::{Merger, Merges, Rule, UNKNOWN};
use self::split::Scanner;
use self::vocabulary::Vocabulary;

/// Why tables make no tokenizer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The tables contradict themselves.
    #[error("the plan's tokenizer is inconsistent: {0}; recompile the model")]
    Tables(lathe_plan::DecodeError),
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
    tables: TokenizerTables,
    encoder: Encoder,
    added: Added,
    /// The token of each single byte; a byte that has none is left out of the encoding, as elsewhere.
    bytes: [Option<u32>; 256],
}

/// How text without whole tokens is encoded.
#[derive(Debug)]
enum Encoder {
    /// By merges within pieces.
    Bpe {
        scanner: Scanner,
        merges: Merges,
        /// Where pieces that are tokens as a whole are kept.
        whole: Option<Vocabulary>,
    },
    /// By the ranks of the vocabulary's texts.
    Spm(Vocabulary),
}

/// What `SentencePiece`'s vocabularies have in place of a space; both are the same to it.
const SPACE_MARK: char = '▁';

impl Tokenizer {
    /// Builds the lookup structures, in a few milliseconds for the largest vocabularies.
    pub fn new(tables: TokenizerTables) -> Result<Tokenizer, TokenizerError> {
        tables.validate().map_err(TokenizerError::Tables)?;
        let is_spm = tables.model == TokenizerModel::Spm;
        let encoder = if is_spm { Encoder::Spm(Vocabulary::new(&tables)) } else { bpe(&tables)? };
        let mut bytes = [None; 256];
        for (id, kind) in (0..).zip(&tables.kinds) {
            let is_byte = *kind == TokenKind::Byte || (*kind == TokenKind::Normal && !is_spm);
            if let (true, Some(&[byte])) = (is_byte, tables.token(id)) {
                bytes[usize::from(byte)].get_or_insert(id);
            }
        }
        Ok(Tokenizer { encoder, added: Added::new(&tables), bytes, tables })
    }

    /// The tokens of a text, without a BOS token.
    pub fn encode(&self, text: &str, control: Control) -> Vec<u32> {
        let mut out = Vec::with_capacity(text.len() / 4 + 4);
        let mut merger = Merger::default();
        for segment in self.segments(text, control) {
            match segment {
                Segment::Token(id) => out.push(id),
                Segment::Text(text) => self.encode_text(text, &mut merger, &mut out),
            }
        }
        out
    }

    /// The tokens of a whole document: [`Self::encode`] with the BOS token in front, where the model expects one.
    pub fn encode_document(&self, text: &str, control: Control) -> Vec<u32> {
        let mut tokens = self.encode(text, control);
        if let Some(bos) = self.leading_bos().filter(|bos| tokens.first() != Some(bos)) {
            tokens.insert(0, bos);
        }
        tokens
    }

    /// Takes apart what stands for whole tokens and what merges apply to.
    pub fn segments<'a>(&'a self, text: &'a str, control: Control) -> impl Iterator<Item = Segment<'a>> {
        self.added.segments(text, control)
    }

    /// Encodes a text that holds no whole tokens and stands at the start or after one.
    fn encode_text(&self, text: &str, merger: &mut Merger, out: &mut Vec<u32>) {
        match &self.encoder {
            Encoder::Bpe { scanner, merges, whole } => {
                let mut text = text;
                while !text.is_empty() {
                    let (piece, rest) = text.split_at(scanner(text));
                    text = rest;
                    let token = whole.as_ref().and_then(|whole| whole.find(&self.tables, piece.as_bytes()));
                    if let Some(token) = token {
                        out.push(token);
                        continue;
                    }
                    let tokens = piece.bytes().filter_map(|byte| self.bytes[usize::from(byte)]);
                    merger.merge(tokens.map(|token| (token, 1)), |left, right, _| merges.rule(left, right));
                    out.extend(merger.tokens().map(|(token, _)| token));
                }
            }
            Encoder::Spm(vocabulary) => self.encode_spm(vocabulary, &self.with_spaces(text), merger, out),
        }
    }

    /// The text as a `SentencePiece` vocabulary sees it: with its space in front, and every space spelled as one.
    fn with_spaces<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let is_plain = !self.tables.space_prefix && !text.contains(SPACE_MARK);
        if is_plain {
            return Cow::Borrowed(text);
        }
        let prefix = if self.tables.space_prefix { " " } else { "" };
        Cow::Owned(format!("{prefix}{text}").replace(SPACE_MARK, " "))
    }

    /// Joins characters into tokens; what remains without a token is spelled in bytes.
    fn encode_spm(&self, vocabulary: &Vocabulary, text: &str, merger: &mut Merger, out: &mut Vec<u32>) {
        let bytes = text.as_bytes();
        let characters = text.char_indices().map(|(at, c)| {
            let length = c.len_utf8();
            (vocabulary.find(&self.tables, &bytes[at..at + length]).unwrap_or(UNKNOWN), length)
        });
        merger.merge(characters, |_, _, span| {
            let merged = vocabulary.find(&self.tables, &bytes[span])?;
            Some(Rule { rank: self.tables.ranks[merged as usize], merged })
        });
        for (token, span) in merger.tokens() {
            if token != UNKNOWN {
                out.push(token);
                continue;
            }
            let spelled = bytes[span].iter().map(|byte| self.bytes[usize::from(*byte)]);
            match spelled.collect::<Option<Vec<u32>>>() {
                Some(spelled) => out.extend(spelled),
                None => out.extend(self.tables.unk),
            }
        }
    }

    /// The bytes that a token stands for; none for an id outside the vocabulary.
    pub fn bytes(&self, id: u32) -> &[u8] {
        self.tables.token(id).unwrap_or_default()
    }

    /// The bytes to show for a token: as [`Self::bytes`], but nothing for control tokens and unused rows.
    pub fn visible_bytes(&self, id: u32) -> &[u8] {
        match self.tables.kinds.get(id as usize) {
            None | Some(TokenKind::Control | TokenKind::Unused) => &[],
            Some(_) => self.bytes(id),
        }
    }

    /// The bytes of a sequence, control tokens included: the text that [`Self::encode`] would make it from, without the
    /// spaces that it puts in front.
    pub fn decode(&self, ids: &[u32]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut has_prefix = self.tables.space_prefix;
        for id in ids {
            let bytes = self.bytes(*id);
            let is_ordinary = matches!(self.tables.kinds.get(*id as usize), Some(TokenKind::Normal | TokenKind::Byte));
            let prefix: &[u8] = if has_prefix && is_ordinary { b" " } else { b"" };
            out.extend_from_slice(bytes.strip_prefix(prefix).unwrap_or(bytes));
            has_prefix = self.tables.space_prefix && !is_ordinary;
        }
        out
    }

    /// The texts of all control tokens.
    pub fn control_texts(&self) -> impl Iterator<Item = &str> {
        self.added.control_texts()
    }

    /// The BOS token, where texts are tokenized with it in front.
    pub fn leading_bos(&self) -> Option<u32> {
        self.tables.bos.filter(|_| self.tables.add_bos)
    }

    /// The tables.
    pub fn tables(&self) -> &TokenizerTables {
        &self.tables
    }
}

/// The byte-level encoder.
fn bpe(tables: &TokenizerTables) -> Result<Encoder, TokenizerError> {
    let scanner = split::scanner(&tables.pretokenizer).ok_or_else(|| TokenizerError::Pretokenizer {
        found: tables.pretokenizer.clone(),
        known: split::SCANNERS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "),
    })?;
    let is_control = |id: u32| tables.kinds[id as usize] == TokenKind::Control;
    if let Some(rank) = tables.merges.iter().position(|merge| is_control(merge.merged)) {
        return Err(TokenizerError::ControlMerge { rank, token: tables.merges[rank].merged });
    }
    let whole = tables.whole_pieces.then(|| Vocabulary::new(tables));
    Ok(Encoder::Bpe { scanner, merges: Merges::new(&tables.merges), whole })
}

#[cfg(test)]
mod tests;
