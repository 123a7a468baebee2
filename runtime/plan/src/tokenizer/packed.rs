//! A tokenizer as it lies in a plan. Its tables are checked once and then read where they are: loading one allocates for
//! nothing but its bytes and a few settings.

use std::ops::Range;
use std::sync::Arc;

use super::{Matching, Merge, SpacePrefix, TokenKind, TokenizerModel, TokenizerTables, hash};
use crate::codec::{Codec, DecodeError, Decoder, decode_all};

/// What a pair becomes, and how early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Rules of lower rank apply first.
    pub rank: u32,
    /// What the pair becomes.
    pub merged: u32,
}

/// A token that is matched whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddedToken<'a> {
    /// Its id.
    pub id: u32,
    /// Its text, which is not empty.
    pub text: &'a str,
    /// Whether it is structure, which only trusted text may hold.
    pub is_control: bool,
    /// How it is matched.
    pub matching: Matching,
}

/// A tokenizer, ready to be read. Clones share its tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedTokenizer {
    /// The algorithm.
    pub model: TokenizerModel,
    /// Which rule cuts text into pieces before [`TokenizerModel::Bpe`] merges.
    pub pretokenizer: String,
    /// Whether text is put into Unicode's normalization form C first.
    pub nfc: bool,
    /// Whether a piece that is a token as a whole becomes that token, whatever the merges would make of it.
    pub whole_pieces: bool,
    /// Where a text gets a space in front.
    pub space_prefix: SpacePrefix,
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
    bytes: Arc<Vec<u8>>,
    tables: Tables,
    /// Bytes of the longest token.
    longest: usize,
}

/// Where each table lies in the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Tables {
    /// Bytes of the tokens.
    pool: Range<usize>,
    /// u32, one more than there are tokens.
    offsets: Range<usize>,
    /// u8 per token.
    kinds: Range<usize>,
    /// Three u32 per merge: left, right, merged.
    merges: Range<usize>,
    /// u32 slots of merges by their pair.
    pairs: Range<usize>,
    /// u32 per token, or empty.
    ranks: Range<usize>,
    /// u32 slots of tokens by their text.
    texts: Range<usize>,
    /// u32 per token that is matched whole, in the order of the texts.
    added: Range<usize>,
    /// u8 for each of these.
    matching: Range<usize>,
}

const WORD: usize = size_of::<u32>();
const MERGE: usize = 3 * WORD;

impl PackedTokenizer {
    /// Reads the bytes of a plan's section.
    ///
    /// # Errors
    /// When they are cut short or too long, and when the tables contradict each other.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<PackedTokenizer, DecodeError> {
        let settings = decode_all(&bytes, |input| {
            Ok(PackedTokenizer {
                model: Codec::decode(input)?,
                pretokenizer: Codec::decode(input)?,
                nfc: Codec::decode(input)?,
                whole_pieces: Codec::decode(input)?,
                space_prefix: Codec::decode(input)?,
                unk: Codec::decode(input)?,
                bos: Codec::decode(input)?,
                eos: Codec::decode(input)?,
                add_bos: Codec::decode(input)?,
                add_eos: Codec::decode(input)?,
                bytes: Arc::default(),
                tables: Tables {
                    pool: table(input, 1)?,
                    offsets: table(input, WORD)?,
                    kinds: table(input, 1)?,
                    merges: table(input, MERGE)?,
                    pairs: table(input, WORD)?,
                    ranks: table(input, WORD)?,
                    texts: table(input, WORD)?,
                    added: table(input, WORD)?,
                    matching: table(input, 1)?,
                },
                longest: 0,
            })
        })?;
        let mut tokenizer = PackedTokenizer { bytes: Arc::new(bytes), ..settings };
        tokenizer.longest = tokenizer.check_tokens()?;
        tokenizer.check_settings()?;
        tokenizer.check_merges()?;
        tokenizer.check_slots("pairs", &tokenizer.tables.pairs, tokenizer.merge_count())?;
        tokenizer.check_slots("texts", &tokenizer.tables.texts, tokenizer.len())?;
        tokenizer.check_added()?;
        Ok(tokenizer)
    }

    /// How many tokens there are.
    pub fn len(&self) -> usize {
        self.tables.kinds.len()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of a token.
    pub fn token(&self, id: u32) -> Option<&[u8]> {
        let start = self.word(&self.tables.offsets, id as usize)?;
        let end = self.word(&self.tables.offsets, id as usize + 1)?;
        self.table(&self.tables.pool).get(start as usize..end as usize)
    }

    /// What a token is for.
    pub fn kind(&self, id: u32) -> Option<TokenKind> {
        self.table(&self.tables.kinds).get(id as usize).and_then(|tag| kind(*tag))
    }

    /// What each token is for.
    pub fn kinds(&self) -> impl Iterator<Item = TokenKind> {
        self.table(&self.tables.kinds).iter().filter_map(|tag| kind(*tag))
    }

    /// How many merges there are.
    pub fn merge_count(&self) -> usize {
        self.tables.merges.len() / MERGE
    }

    /// All merges in rank order.
    pub fn merges(&self) -> impl Iterator<Item = Merge> {
        self.table(&self.tables.merges).as_chunks::<MERGE>().0.iter().map(merge)
    }

    /// The rule for two neighbours.
    pub fn rule(&self, left: u32, right: u32) -> Option<Rule> {
        let slots = self.table(&self.tables.pairs).as_chunks::<WORD>().0;
        let merges = self.table(&self.tables.merges).as_chunks::<MERGE>().0;
        find(slots, hash::of_pair(left, right), |rank| {
            let merge = merge(merges.get(rank as usize)?);
            (merge.left == left && merge.right == right).then_some(Rule { rank, merged: merge.merged })
        })
    }

    /// The normal token with this text, where the model looks texts up; none where it does not.
    pub fn find(&self, text: &[u8]) -> Option<u32> {
        if text.len() > self.longest {
            return None;
        }
        let slots = self.table(&self.tables.texts).as_chunks::<WORD>().0;
        find(slots, hash::of_text(text), |id| (self.token(id) == Some(text)).then_some(id))
    }

    /// The rank of a token of [`TokenizerModel::Spm`].
    pub fn rank(&self, id: u32) -> Option<u32> {
        self.word(&self.tables.ranks, id as usize)
    }

    /// How many tokens are matched whole.
    pub fn added_count(&self) -> usize {
        self.tables.matching.len()
    }

    /// The token of this place in the order of the texts of those that are matched whole.
    pub fn added(&self, index: usize) -> Option<AddedToken<'_>> {
        let id = self.word(&self.tables.added, index)?;
        let text = std::str::from_utf8(self.token(id)?).ok()?;
        let matching = Matching::from_bits(*self.table(&self.tables.matching).get(index)?)?;
        Some(AddedToken { id, text, is_control: self.kind(id)? != TokenKind::UserDefined, matching })
    }

    fn table(&self, range: &Range<usize>) -> &[u8] {
        self.bytes.get(range.clone()).unwrap_or_default()
    }

    fn word(&self, range: &Range<usize>, index: usize) -> Option<u32> {
        self.table(range).as_chunks::<WORD>().0.get(index).map(|word| u32::from_le_bytes(*word))
    }

    /// Checks that offsets ascend over exactly the pool and that kinds are kinds; gives the length of the longest token.
    fn check_tokens(&self) -> Result<usize, DecodeError> {
        let kinds = self.table(&self.tables.kinds);
        let offsets = self.table(&self.tables.offsets).as_chunks::<WORD>().0;
        let (tokens, found) = (kinds.len(), offsets.len());
        if found != tokens + 1 {
            return wrong(format!("{tokens} tokens need {} offsets, found {found}", tokens + 1));
        }
        let pool = self.tables.pool.len();
        let (mut longest, mut before) = (0, 0);
        let mut ascend = offsets[0] == [0; WORD];
        for (offset, tag) in offsets[1..].iter().map(|word| u32::from_le_bytes(*word)).zip(kinds) {
            let length = offset.wrapping_sub(before) as usize;
            ascend &= offset >= before;
            if *tag == BYTE && length != 1 && ascend {
                let id = offsets.iter().position(|word| u32::from_le_bytes(*word) == before).unwrap_or(0);
                return wrong(format!("byte token {id} must hold exactly one byte"));
            }
            longest = longest.max(length);
            before = offset;
        }
        if !ascend || before as usize != pool {
            return wrong(format!("the offsets must ascend from 0 to the pool's {pool} bytes"));
        }
        match kinds.iter().position(|tag| kind(*tag).is_none()) {
            Some(id) => wrong(format!("{} is no token kind, for token {id}", kinds[id])),
            None => Ok(longest),
        }
    }

    fn check_settings(&self) -> Result<(), DecodeError> {
        let tokens = self.len();
        let special = self.bos.iter().chain(&self.unk).chain(&self.eos).chain(&self.add_eos);
        if let Some(id) = special.copied().find(|id| *id as usize >= tokens) {
            return wrong(format!("special token {id} is none of the {tokens} tokens"));
        }
        if self.add_bos && self.bos.is_none() {
            return wrong("texts start with a bos token, but none is named".to_owned());
        }
        let is_spm = self.model == TokenizerModel::Spm;
        let (ranks, wanted) = (self.tables.ranks.len() / WORD, if is_spm { tokens } else { 0 });
        if ranks != wanted {
            return wrong(format!("{tokens} tokens of this model need {wanted} ranks, found {ranks}"));
        }
        if is_spm && self.merge_count() > 0 {
            return wrong(format!("this model joins by rank and has no merges, found {}", self.merge_count()));
        }
        Ok(())
    }

    /// Checks that merges name tokens and that a merged token is its two parts joined.
    fn check_merges(&self) -> Result<(), DecodeError> {
        for (rank, Merge { left, right, merged }) in self.merges().enumerate() {
            let parts = self.token(left).zip(self.token(right));
            let joined = parts
                .zip(self.token(merged))
                .is_some_and(|((left, right), merged)| merged.strip_prefix(left) == Some(right));
            if !joined {
                return wrong(format!("merge {rank}: token {merged} is not token {left} followed by token {right}"));
            }
        }
        Ok(())
    }

    /// Checks that a table of slots names only what there is and that a search in it ends.
    fn check_slots(&self, name: &str, range: &Range<usize>, count: usize) -> Result<(), DecodeError> {
        let slots = self.table(range).as_chunks::<WORD>().0;
        let mut has_free = false;
        for slot in slots.iter().map(|word| u32::from_le_bytes(*word)) {
            if slot != hash::FREE && slot as usize >= count {
                return wrong(format!("the table of {name} names {slot} of {count}"));
            }
            has_free |= slot == hash::FREE;
        }
        if slots.is_empty() || slots.len().is_power_of_two() && has_free {
            return Ok(());
        }
        wrong(format!(
            "the table of {name} must have a power of two of slots, one of them free; it has {}",
            slots.len()
        ))
    }

    /// Checks that tokens that are matched whole are text, each once and in order.
    fn check_added(&self) -> Result<(), DecodeError> {
        let (count, found) = (self.tables.added.len() / WORD, self.added_count());
        if count != found {
            return wrong(format!("{count} tokens are matched whole, and {found} ways of matching are given"));
        }
        let mut before = "";
        for index in 0..count {
            let token = self
                .added(index)
                .filter(|token| token.text > before && self.kind(token.id).is_some_and(TokenKind::is_matched_whole));
            let Some(token) = token else {
                return wrong(format!("token {index} of those matched whole is no such token, or out of order"));
            };
            before = token.text;
        }
        Ok(())
    }
}

impl TryFrom<TokenizerTables> for PackedTokenizer {
    type Error = DecodeError;

    fn try_from(tables: TokenizerTables) -> Result<PackedTokenizer, DecodeError> {
        PackedTokenizer::from_bytes(tables.to_bytes())
    }
}

fn wrong<T>(what: String) -> Result<T, DecodeError> {
    Err(DecodeError::Inconsistent(what))
}

/// Skips a table and says where it lies.
fn table(input: &mut Decoder<'_>, size: usize) -> Result<Range<usize>, DecodeError> {
    let count = input.count(size)?;
    let start = input.at();
    input.take(count * size)?;
    Ok(start..input.at())
}

/// The tag of [`TokenKind::Byte`].
const BYTE: u8 = 4;

fn kind(tag: u8) -> Option<TokenKind> {
    use TokenKind::{Byte, Control, Normal, Unknown, Unused, UserDefined};
    [Normal, Control, UserDefined, Unknown, Byte, Unused].get(usize::from(tag)).copied()
}

fn merge(bytes: &[u8; MERGE]) -> Merge {
    let [l0, l1, l2, l3, r0, r1, r2, r3, m0, m1, m2, m3] = *bytes;
    Merge {
        left: u32::from_le_bytes([l0, l1, l2, l3]),
        right: u32::from_le_bytes([r0, r1, r2, r3]),
        merged: u32::from_le_bytes([m0, m1, m2, m3]),
    }
}

/// What `matches` makes of the first slot, from that of the hash on, that it accepts; none at a free slot.
fn find<T>(slots: &[[u8; WORD]], hash: u64, matches: impl Fn(u32) -> Option<T>) -> Option<T> {
    let mask = slots.len().checked_sub(1)?;
    let mut slot = hash as usize & mask;
    loop {
        let index = u32::from_le_bytes(slots[slot]);
        if index == hash::FREE {
            return None;
        }
        if let Some(found) = matches(index) {
            return Some(found);
        }
        slot = (slot + 1) & mask;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_is_found_and_no_other() {
        let mut tables = TokenizerTables { whole_pieces: true, ..TokenizerTables::default() };
        for number in 0..5000u32 {
            tables.push(format!("token {}", number * 3).as_bytes(), TokenKind::Normal);
        }
        tables.push(b"token 1", TokenKind::Control);
        tables.push(b"token 3", TokenKind::Normal);
        let packed = PackedTokenizer::try_from(tables).expect("the tables are sound");
        for number in 0..15_000u32 {
            let found = packed.find(format!("token {number}").as_bytes());
            assert_eq!(found, number.is_multiple_of(3).then_some(number / 3), "{number}");
        }
        assert_eq!(packed.find(b""), None);
        assert_eq!(packed.find(&[b'x'; 100]), None);
    }

    #[test]
    fn no_damaged_byte_makes_reading_or_looking_up_panic() {
        let mut tables = TokenizerTables { whole_pieces: true, eos: vec![0], ..TokenizerTables::default() };
        tables.push(b"<end>", TokenKind::Control);
        for text in ["a", "b", "ab", "aba"] {
            tables.push(text.as_bytes(), TokenKind::Normal);
        }
        tables.push(b"\xff", TokenKind::Byte);
        tables.merges = vec![Merge { left: 1, right: 2, merged: 3 }, Merge { left: 3, right: 1, merged: 4 }];
        let whole = tables.to_bytes();
        let (mut accepted, mut refused) = (0, 0);
        for at in 0..whole.len() {
            assert!(PackedTokenizer::from_bytes(whole[..at].to_vec()).is_err(), "cut at {at}");
            for value in [0, 1, 2, 4, 0x7f, 0x80, 0xff] {
                let mut damaged = whole.clone();
                damaged[at] = value;
                let Ok(read) = PackedTokenizer::from_bytes(damaged) else {
                    refused += 1;
                    continue;
                };
                accepted += 1;
                for id in 0..8 {
                    let _ = (read.token(id), read.kind(id), read.rank(id), read.added(id as usize), read.find(b"ab"));
                    let rules = (0..8).filter_map(|right| read.rule(id, right)).count();
                    assert!(rules <= 8);
                }
            }
        }
        assert!(accepted > 100 && refused > 500, "{accepted} accepted, {refused} refused");
    }
}
