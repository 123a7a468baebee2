//! The tokenizer as ready tables: no file format of any tokenizer library is read at run time.

use crate::codec::{Codec, DecodeError, Decoder, encode_bytes, fields, variants};

/// How text becomes tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TokenizerModel {
    /// Byte-pair encoding over raw bytes: merges in rank order within each piece of the pre-tokenizer.
    #[default]
    Bpe,
    /// `SentencePiece`'s byte-pair encoding over characters: of all neighbours whose joined text is a token, those of
    /// lowest rank become it first. A character without a token is spelled by byte tokens.
    Spm,
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
    /// Whether a piece that is a token as a whole becomes that token, whatever the merges would make of it.
    pub whole_pieces: bool,
    /// Whether a text gets a space in front, and so does what follows a token that is matched whole.
    pub space_prefix: bool,
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
    /// Stands for what no token spells.
    pub unk: Option<u32>,
    /// The token that starts a sequence.
    pub bos: Option<u32>,
    /// The tokens that end an answer.
    pub eos: Vec<u32>,
    /// Whether a text is tokenized with `bos` in front.
    pub add_bos: bool,
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

    /// Checks that the tables fit each other: offsets ascend over exactly the pool, ids name tokens, and a merged token
    /// is its two parts joined.
    pub fn validate(&self) -> Result<(), DecodeError> {
        let wrong = |what: String| Err(DecodeError::Inconsistent(what));
        let (tokens, offsets) = (self.kinds.len(), self.offsets.len());
        if offsets != tokens + 1 {
            return wrong(format!("{tokens} tokens need {} offsets, found {offsets}", tokens + 1));
        }
        if self.offsets[0] != 0 || self.offsets[tokens] as usize != self.pool.len() || !self.offsets.is_sorted() {
            return wrong(format!("the offsets must ascend from 0 to the pool's {} bytes", self.pool.len()));
        }
        if let Some(id) = self.bos.iter().chain(&self.unk).chain(&self.eos).find(|&&id| id as usize >= tokens) {
            return wrong(format!("special token {id} is none of the {tokens} tokens"));
        }
        if self.add_bos && self.bos.is_none() {
            return wrong("texts start with a bos token, but none is named".to_owned());
        }
        let (ranks, wanted) = (self.ranks.len(), if self.model == TokenizerModel::Spm { tokens } else { 0 });
        if ranks != wanted {
            return wrong(format!("{tokens} tokens of this model need {wanted} ranks, found {ranks}"));
        }
        if self.model == TokenizerModel::Spm && !self.merges.is_empty() {
            return wrong(format!("this model joins by rank and has no merges, found {}", self.merges.len()));
        }
        let is_broken = |&(id, kind): &(usize, &TokenKind)| {
            *kind == TokenKind::Byte && self.offsets[id + 1] - self.offsets[id] != 1
        };
        if let Some((id, _)) = self.kinds.iter().enumerate().find(is_broken) {
            return wrong(format!("byte token {id} must hold exactly one byte"));
        }
        for (rank, merge) in self.merges.iter().enumerate() {
            let parts = self.token(merge.left).zip(self.token(merge.right));
            let joined = parts
                .zip(self.token(merge.merged))
                .is_some_and(|((left, right), merged)| merged.strip_prefix(left) == Some(right));
            if !joined {
                let Merge { left, right, merged } = merge;
                return wrong(format!("merge {rank}: token {merged} is not token {left} followed by token {right}"));
            }
        }
        Ok(())
    }
}

fields!(Merge { left: u32, right: u32, merged: u32 });

variants!(TokenizerModel, "tokenizer model", {
    0 => Bpe {},
    1 => Spm {},
});
variants!(TokenKind, "token kind", {
    0 => Normal {},
    1 => Control {},
    2 => UserDefined {},
    3 => Unknown {},
    4 => Byte {},
    5 => Unused {},
});

impl Codec for TokenizerTables {
    const MIN_BYTES: usize = TokenizerModel::MIN_BYTES + 7 * u64::MIN_BYTES + 5;

    fn encode(&self, out: &mut Vec<u8>) {
        self.model.encode(out);
        self.pretokenizer.encode(out);
        self.whole_pieces.encode(out);
        self.space_prefix.encode(out);
        encode_bytes(&self.pool, out);
        self.offsets.encode(out);
        self.kinds.encode(out);
        self.merges.encode(out);
        self.ranks.encode(out);
        self.unk.encode(out);
        self.bos.encode(out);
        self.eos.encode(out);
        self.add_bos.encode(out);
    }

    fn decode(input: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        let tables = TokenizerTables {
            model: TokenizerModel::decode(input)?,
            pretokenizer: String::decode(input)?,
            whole_pieces: bool::decode(input)?,
            space_prefix: bool::decode(input)?,
            pool: input.byte_list()?.to_vec(),
            offsets: Vec::decode(input)?,
            kinds: Vec::decode(input)?,
            merges: Vec::decode(input)?,
            ranks: Vec::decode(input)?,
            unk: Option::decode(input)?,
            bos: Option::decode(input)?,
            eos: Vec::decode(input)?,
            add_bos: bool::decode(input)?,
        };
        tables.validate()?;
        Ok(tables)
    }
}
