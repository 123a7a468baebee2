//! Tables into the bytes of a plan: what is written is what is read, so that nothing is built when a plan is loaded.

use std::collections::BTreeMap;

use super::{Matching, TokenKind, TokenizerModel, TokenizerTables, hash};
use crate::codec::{Codec, encode_bytes};

impl TokenizerTables {
    /// The bytes of the plan's section, which [`super::PackedTokenizer`] reads: the settings, then each table as its count
    /// and its items. Tables that contradict each other are written all the same, and refused when they are read.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.model.encode(&mut out);
        self.pretokenizer.encode(&mut out);
        self.nfc.encode(&mut out);
        self.whole_pieces.encode(&mut out);
        self.space_prefix.encode(&mut out);
        self.unk.encode(&mut out);
        self.bos.encode(&mut out);
        self.eos.encode(&mut out);
        self.add_bos.encode(&mut out);
        self.add_eos.encode(&mut out);
        encode_bytes(&self.pool, &mut out);
        self.offsets.encode(&mut out);
        self.kinds.encode(&mut out);
        (self.merges.len() as u64).encode(&mut out);
        for merge in &self.merges {
            [merge.left, merge.right].encode(&mut out);
            merge.merged.encode(&mut out);
        }
        self.pairs().encode(&mut out);
        self.ranks.encode(&mut out);
        self.texts().encode(&mut out);
        let added = self.added();
        added.iter().map(|(id, _)| *id).collect::<Vec<u32>>().encode(&mut out);
        encode_bytes(&added.iter().map(|(_, matching)| matching.bits()).collect::<Vec<u8>>(), &mut out);
        out
    }

    /// Ranks of merges by the hash of their pair.
    fn pairs(&self) -> Vec<u32> {
        if self.merges.is_empty() {
            return Vec::new();
        }
        let pair = |rank: u32| (self.merges[rank as usize].left, self.merges[rank as usize].right);
        let hash = |rank: u32| (rank, hash::of_pair(pair(rank).0, pair(rank).1));
        let keys: Vec<(u32, u64)> = (0..self.merges.len() as u32).map(hash).collect();
        hash::table(&keys, |a, b| pair(a) == pair(b))
    }

    /// Normal tokens by the hash of their text, where the model looks texts up.
    fn texts(&self) -> Vec<u32> {
        if self.model == TokenizerModel::Bpe && !self.whole_pieces {
            return Vec::new();
        }
        let ids = (0..).zip(&self.kinds).filter(|(_, kind)| **kind == TokenKind::Normal).map(|(id, _)| id);
        let text = |id: u32| self.token(id).filter(|text| !text.is_empty());
        let keys: Vec<(u32, u64)> = ids.filter_map(|id| Some((id, hash::of_text(text(id)?)))).collect();
        hash::table(&keys, |a, b| text(a) == text(b))
    }

    /// The tokens that are matched whole, in the order of their texts; of those with one text the first.
    fn added(&self) -> Vec<(u32, Matching)> {
        let mut by_text: BTreeMap<&str, u32> = BTreeMap::new();
        for (id, kind) in (0..).zip(&self.kinds) {
            let text = self.token(id).and_then(|bytes| std::str::from_utf8(bytes).ok()).filter(|text| !text.is_empty());
            if let (true, Some(text)) = (kind.is_matched_whole(), text) {
                by_text.entry(text).or_insert(id);
            }
        }
        by_text.into_values().map(|id| (id, self.matching.get(&id).copied().unwrap_or_default())).collect()
    }
}

impl TokenKind {
    /// Whether tokens of this kind are found in a text before anything else looks at it.
    pub(super) fn is_matched_whole(self) -> bool {
        match self {
            TokenKind::Control | TokenKind::Unknown | TokenKind::UserDefined => true,
            TokenKind::Normal | TokenKind::Byte | TokenKind::Unused => false,
        }
    }
}
