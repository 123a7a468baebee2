//! The tokenizer as ready tables: no file format of any tokenizer library is read at run time.
//!
//! [`TokenizerTables`] is what the compiler fills in. [`PackedTokenizer`] is the same as it lies in a plan, with tables to
//! look things up in, which are read where they are.

mod hash;
mod pack;
mod packed;

use std::collections::BTreeMap;

use crate::codec::variants;

pub use packed::{AddedToken, PackedTokenizer, Rule};

/// How text becomes tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TokenizerModel {
    /// Byte-pair encoding over raw bytes: merges in rank order within each piece of the pre-tokenizer.
    #[default]
    Bpe,
    /// `SentencePiece`'s byte-pair encoding over characters: of all neighbours whose joined text is a token, those of
    /// lowest rank become it first. A character without a token is spelled by byte tokens.
    Spm,
    /// Byte-pair encoding over characters: merges in rank order over the whole text. A character without a token is
    /// spelled by byte tokens, before merges apply.
    Characters,
}

/// Where a text gets a space in front before it is encoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SpacePrefix {
    /// Nowhere.
    #[default]
    Never,
    /// At its start and after each token that is matched whole.
    Always,
    /// In the same places, unless a space is there.
    Missing,
    /// At its start, unless a space is there.
    MissingAtStart,
}

/// How a token that is matched whole is matched; by default wherever its text stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own in tokenizer files")]
pub struct Matching {
    /// White space before it belongs to it.
    pub lstrip: bool,
    /// White space after it belongs to it.
    pub rstrip: bool,
    /// It stands between no letters, digits or underscores.
    pub single_word: bool,
    /// It is looked for in what the tokens without this leave over.
    pub second: bool,
}

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// Text.
    Normal,
    /// Structure such as an end of turn: never made from a user's text, not shown.
    Control,
    /// Added whole: matched in the text before merges apply.
    UserDefined,
    /// Stands for text that no token covers.
    Unknown,
    /// One raw byte.
    Byte,
    /// A row of the vocabulary that nothing produces.
    Unused,
}

/// A rule: the pair `left`, `right` becomes `merged`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merge {
    /// The left token.
    pub left: u32,
    /// The right token.
    pub right: u32,
    /// The token that replaces both.
    pub merged: u32,
}

/// A tokenizer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenizerTables {
    /// The algorithm.
    pub model: TokenizerModel,
    /// Which rule cuts text into pieces before [`TokenizerModel::Bpe`] merges (`smollm`, `gpt-2`, `qwen2`, …).
    pub pretokenizer: String,
    /// Whether text is put into Unicode's normalization form C first.
    pub nfc: bool,
    /// Whether a piece that is a token as a whole becomes that token, whatever the merges would make of it.
    pub whole_pieces: bool,
    /// Where a text gets a space in front.
    pub space_prefix: SpacePrefix,
    /// The tokens' bytes, one after the other: the text that a token stands for, not a library's spelling of it.
    pub pool: Vec<u8>,
    /// Token `i` is `pool[offsets[i]..offsets[i + 1]]`; one entry more than there are tokens.
    pub offsets: Vec<u32>,
    /// One per token.
    pub kinds: Vec<TokenKind>,
    /// In rank order: an earlier one applies first.
    pub merges: Vec<Merge>,
    /// For [`TokenizerModel::Spm`] one per token, for others none: a token of lower rank is made first, and of equal
    /// ranks the leftmost.
    pub ranks: Vec<u32>,
    /// The tokens matched whole that are matched in a way of their own.
    pub matching: BTreeMap<u32, Matching>,
    /// Stands for what no token spells.
    pub unk: Option<u32>,
    /// The token that starts a sequence.
    pub bos: Option<u32>,
    /// The tokens that end an answer.
    pub eos: Vec<u32>,
    /// Whether a text is tokenized with `bos` in front.
    pub add_bos: bool,
    /// The token that a whole document is tokenized with at its end.
    pub add_eos: Option<u32>,
}

impl TokenizerTables {
    /// How many tokens there are.
    pub fn len(&self) -> usize {
        self.kinds.len()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.kinds.is_empty()
    }

    /// The bytes of a token.
    pub fn token(&self, id: u32) -> Option<&[u8]> {
        let id = id as usize;
        let start = *self.offsets.get(id)? as usize;
        let end = *self.offsets.get(id + 1)? as usize;
        self.pool.get(start..end)
    }

    /// Adds a token; its id is the count before.
    pub fn push(&mut self, bytes: &[u8], kind: TokenKind) {
        if self.offsets.is_empty() {
            self.offsets.push(0);
        }
        self.pool.extend_from_slice(bytes);
        self.offsets.push(self.pool.len() as u32);
        self.kinds.push(kind);
    }
}

variants!(TokenizerModel, "tokenizer model", {
    0 => Bpe {},
    1 => Spm {},
    2 => Characters {},
});
variants!(SpacePrefix, "space prefix", {
    0 => Never {},
    1 => Always {},
    2 => Missing {},
    3 => MissingAtStart {},
});
variants!(TokenKind, "token kind", {
    0 => Normal {},
    1 => Control {},
    2 => UserDefined {},
    3 => Unknown {},
    4 => Byte {},
    5 => Unused {},
});

impl Matching {
    const LSTRIP: u8 = 1;
    const RSTRIP: u8 = 2;
    const SINGLE_WORD: u8 = 4;
    const SECOND: u8 = 8;

    /// One bit for each.
    fn bits(self) -> u8 {
        let bit = |set: bool, bit: u8| if set { bit } else { 0 };
        bit(self.lstrip, Self::LSTRIP)
            | bit(self.rstrip, Self::RSTRIP)
            | bit(self.single_word, Self::SINGLE_WORD)
            | bit(self.second, Self::SECOND)
    }

    fn from_bits(bits: u8) -> Option<Matching> {
        let has = |bit: u8| bits & bit != 0;
        let matching = Matching {
            lstrip: has(Self::LSTRIP),
            rstrip: has(Self::RSTRIP),
            single_word: has(Self::SINGLE_WORD),
            second: has(Self::SECOND),
        };
        (matching.bits() == bits).then_some(matching)
    }
}
